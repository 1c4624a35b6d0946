"""Gives an export's records as OpenTelemetry spans: to a collector, or into a file that one reads.

OTLP 1.x in its JSON encoding (ids in hex, 64-bit integers as text), attributes by the GenAI semantic
conventions, which are still in development; what they have no name for is called ``tallystick.*``, in
integers with the unit in the name. The trace of a span is named after the first record of its chain
(``parent``), so that the calls of an agent are one trace. A span repeats what a record says and proves
nothing: it names the record's place and hash, by which anybody finds the proof.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec

import ledger
from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.export_layout import MANIFEST_FILE, Manifest
from ledger.export.csv import replaced_file
from ledger.export.query import Question, conditions
from ledger.export.reading import open_export

if TYPE_CHECKING:
    import duckdb

__all__ = ["HEADERS_VARIABLE", "OtlpSummary", "requests", "send_otlp", "write_otlp"]

HEADERS_VARIABLE = "OTEL_EXPORTER_OTLP_HEADERS"
"""Headers for the collector, ``name=value,...`` in URL encoding. Never an option: it may hold a secret."""

_SPANS = 1_000
"""Of one request; some 1.5 MB. Collectors refuse bodies of more than 4 or 20 MB by default."""
_KIND_INTERNAL, _KIND_CLIENT = 1, 3
_OPERATION = "generate_content"
"""The convention's name for a generation of any kind; a record does not say whether it was a chat."""
_RETRIES = 4
_RETRIED = (429, 502, 503, 504)

_ATTRIBUTES: Mapping[str, str] = {
    "gen_ai.response.model": "model",
    "gen_ai.usage.input_tokens": "input_tokens",
    "gen_ai.usage.output_tokens": "output_tokens",
    "gen_ai.usage.cache_read.input_tokens": "cached_input_tokens",
    "gen_ai.usage.reasoning.output_tokens": "reasoning_tokens",
    "tallystick.record": "id",
    "tallystick.leaf_index": "leaf_index",
    "tallystick.position": "position",
    "tallystick.record_hash": "record_hash",
    "tallystick.corrected": "corrected",
    "tallystick.tenant": "tenant",
    "tallystick.drafted_tokens": "drafted_tokens",
    "tallystick.accepted_tokens": "accepted_tokens",
    "tallystick.energy_uj": "energy_uj",
    "tallystick.energy_low_uj": "energy_low_uj",
    "tallystick.energy_high_uj": "energy_high_uj",
    "tallystick.energy_method": "energy_method",
    "tallystick.energy_source": "energy_source",
    "tallystick.carbon_ng": "carbon_ng",
    "tallystick.carbon_market_ng": "carbon_market_ng",
    "tallystick.embodied_ng": "embodied_ng",
    "tallystick.water_nl": "water_nl",
    "tallystick.cost_nano": "cost_nano",
    "tallystick.currency": "currency",
}
"""Attribute of a span -> column; one that a record does not have is left out."""
_RESOURCE: Mapping[str, str] = {
    "service.name": "issuer",
    "tallystick.deployment": "deployment",
    "tallystick.engine": "engine",
    "tallystick.engine_version": "engine_version",
    "tallystick.quantization": "quantization",
    "tallystick.accelerator": "accelerator",
    "cloud.region": "region",
    "tallystick.site": "site",
}
"""Attribute of a resource -> column: who generated."""


@dataclass(frozen=True)
class OtlpSummary:
    """What was given away, in ``requests`` of a thousand spans at most; the collector ``rejected`` some."""

    spans: int
    requests: int
    rejected: int


def requests(export: Path, question: Question) -> Iterator[tuple[dict[str, Any], int]]:
    """The bodies of export requests (``ExportTraceServiceRequest``), and how many spans each has.

    Raises:
        InvalidError: no export, or an unknown dimension.
    """
    with open_export(export) as connection:
        manifest = msgspec.json.decode((export / MANIFEST_FILE).read_bytes(), type=Manifest)
        where, parameters = conditions(question)
        view = "records_corrected" if question.corrected else "records"
        columns = sorted({*_ATTRIBUTES.values(), *_RESOURCE.values()} - {"record_hash", "corrected"})
        parents = _parents(connection)
        found = connection.execute(
            f"SELECT {', '.join(columns)}, parent, finish_reason, provider, "  # noqa: S608 - this module's names
            "epoch_us(started_at) AS started_us, epoch_us(first_token_at) AS first_us, "
            "epoch_us(ended_at) AS ended_us, sha256('\\x00'::BLOB || record) AS record_hash, "
            f"{'corrected' if question.corrected else 'false AS corrected'} "
            f"FROM {view}{where} ORDER BY leaf_index, position",
            parameters,
        )
        names = [column[0] for column in found.description or ()]
        while rows := found.fetchmany(_SPANS):
            made = [dict(zip(names, row, strict=True)) for row in rows]
            yield {"resourceSpans": _resource_spans(made, manifest.origin, parents)}, len(made)


def write_otlp(
    export: Path, out: Path, question: Question, *, progress: Callable[[int, int], None] | None = None
) -> OtlpSummary:
    """Write spans into a file, one request a line: what the collector's OTLP JSON file receiver reads.

    Raises:
        InvalidError: no export. UnavailableError: it cannot be written.
    """
    spans = lines = 0
    with replaced_file(out) as path, path.open("wb") as file:
        for body, count in requests(export, question):
            file.write(_encoded(body) + b"\n")
            spans, lines = spans + count, lines + 1
            if progress is not None:
                progress(spans, 0)
    return OtlpSummary(spans, lines, 0)


def send_otlp(
    export: Path, endpoint: str, question: Question, *, progress: Callable[[int, int], None] | None = None
) -> OtlpSummary:
    """Send spans to a collector (OTLP over HTTP); busy ones are asked again a few times.

    Args:
        export: the export's folder.
        endpoint: the collector's base URL; ``/v1/traces`` is added.
        question: which records.
        progress: called with (spans done, 0).

    Raises:
        InvalidError: no export, or no URL. UnavailableError: the collector does not take them.
    """
    from ledger import http_call

    url = endpoint.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise InvalidError(
            "is no URL", where=endpoint, remedy="name a collector, like http://localhost:4318", code="bad-url"
        )
    url = url if url.endswith("/v1/traces") else f"{url}/v1/traces"
    headers = {"Content-Type": "application/json", **_headers()}
    limits = http_call.Limits(connect_s=10, read_s=60, total_s=120, body_bytes=1 << 20, problem_bytes=1 << 16)
    pool = http_call.open_pool(url)
    spans = sent = rejected = 0
    for body, count in requests(export, question):
        data = _encoded(body)
        for attempt in range(_RETRIES + 1):
            try:
                answer = http_call.call(pool, "POST", url, limits, headers=headers, body=data)
            except ConnectionError as error:
                raise _refused(url, str(error), spans) from error
            if answer.status not in _RETRIED or attempt == _RETRIES:
                break
            time.sleep(2**attempt / 4)
        if answer.status != 200:
            raise _refused(url, f"it answered {answer.status}", spans)
        rejected += _rejected(answer.body)
        spans, sent = spans + count, sent + 1
        if progress is not None:
            progress(spans, 0)
    return OtlpSummary(spans, sent, rejected)


def _refused(url: str, why: str, spans: int) -> UnavailableError:
    return UnavailableError(
        f"the collector did not take the spans: {why}; it has {spans} of them",
        where=url,
        remedy="see the collector's log; sending again repeats spans, with the same ids",
        code="collector-failed",
    )


def _rejected(body: bytes) -> int:
    """What a partial success names (OTLP specification, "Partial Success")."""
    try:
        told = json.loads(body or b"{}")
        return int(told.get("partialSuccess", {}).get("rejectedSpans", 0))
    except (ValueError, AttributeError, TypeError):
        return 0


def _headers() -> dict[str, str]:
    pairs = (each.partition("=") for each in os.environ.get(HEADERS_VARIABLE, "").split(",") if each.strip())
    return {name.strip(): unquote(value.strip()) for name, _, value in pairs}


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _parents(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Record -> its parent, of the records that have one."""
    return dict(connection.execute("SELECT id, parent FROM records WHERE parent IS NOT NULL").fetchall())


def _trace_of(record: str, parents: Mapping[str, str]) -> str:
    """The first record of the chain that ``record`` is in, as far as the export knows it."""
    seen = {record}
    while (parent := parents.get(record)) is not None and parent not in seen:
        seen.add(parent)
        record = parent
    return record


def _resource_spans(
    rows: list[dict[str, Any]], origin: str, parents: Mapping[str, str]
) -> list[dict[str, Any]]:
    def who(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[column] or "" for column in _RESOURCE.values())

    made = []
    for _, group in groupby(rows, key=who):
        of = list(group)
        resource = {name: of[0][column] for name, column in _RESOURCE.items()} | {"tallystick.log": origin}
        made.append(
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeSpans": [
                    {
                        "scope": {"name": "tallystick", "version": ledger.__version__},
                        "spans": [_span(row, parents) for row in of],
                    }
                ],
            }
        )
    return made


def _span(row: dict[str, Any], parents: Mapping[str, str]) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": _OPERATION,
        "gen_ai.provider.name": row["provider"] or row["engine"],
        **{name: row[column] for name, column in _ATTRIBUTES.items()},
    }
    if row["finish_reason"] is not None:
        attributes["gen_ai.response.finish_reasons"] = [row["finish_reason"]]
    if row["first_us"] is not None:
        wait = timedelta(microseconds=row["first_us"] - row["started_us"])
        attributes["gen_ai.response.time_to_first_chunk"] = wait / timedelta(seconds=1)
    made = {
        "traceId": _trace_of(row["id"], parents).replace("-", ""),
        "spanId": _span_id(row["id"]),
        "name": f"{_OPERATION} {row['model']}" if row["model"] else _OPERATION,
        "kind": _KIND_INTERNAL if row["provider"] is None else _KIND_CLIENT,
        "startTimeUnixNano": str(1_000 * row["started_us"]),
        "endTimeUnixNano": str(1_000 * row["ended_us"]),
        "attributes": _attributes(attributes),
    }
    if row["parent"] is not None:
        made["parentSpanId"] = _span_id(row["parent"])
    return made


def _span_id(record: str) -> str:
    """The random end of a UUID version 7."""
    return record.replace("-", "")[16:]


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in values.items() if value is not None]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(each) for each in value]}}
    return {"stringValue": str(value)}
