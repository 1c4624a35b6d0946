"""Gives an export as OpenLineage events: which model was run when, into which log, and what was exported.

OpenLineage 2-0-2, one event a line. A run is a deployment's day: its input is the model, with the weights'
digest as version; its output the log, with the number of records; a facet of our own has tokens, energy and
carbon with their checkpoint. The last run is the export: from the log, at its checkpoint, to the files, at
their manifest. The same export gives the same events.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import ledger
from ledger.core.export_layout import MANIFEST_FILE, RECORD_COLUMNS, RECORDS_DIR, Manifest
from ledger.export.csv import replaced_file
from ledger.export.query import Question, ask
from ledger.export.reading import open_export

if TYPE_CHECKING:
    import duckdb

__all__ = ["LineageSummary", "events", "write_openlineage"]

_SPEC = "https://openlineage.io/spec"
_RUN_EVENT = f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
_PRODUCER = f"urn:tallystick:{ledger.__version__}"
_OWN_FACET = "urn:tallystick:openlineage:generation:1"
_RUNS = uuid.UUID("8c1d6b0e-6a0d-5f5c-9f6e-5a1f0e3f7a11")
"""Namespace of the runs' ids (RFC 9562, version 5)."""
_FACETS = {
    "nominalTime": "1-0-1/NominalTimeRunFacet",
    "jobType": "2-0-4/JobTypeJobFacet",
    "version": "1-0-1/DatasetVersionDatasetFacet",
    "schema": "1-2-0/SchemaDatasetFacet",
    "outputStatistics": "1-0-2/OutputStatisticsOutputDatasetFacet",
}
_FIGURES = (
    "input_tokens",
    "output_tokens",
    "energy_uj",
    "carbon_ng",
    "carbon_market_ng",
    "water_nl",
    "cost_nano",
)


@dataclass(frozen=True)
class LineageSummary:
    """What was written."""

    file: Path
    events: int


def write_openlineage(export: Path, out: Path, question: Question) -> LineageSummary:
    """Write the events of an export, one a line (NDJSON).

    Raises:
        InvalidError: no export. UnavailableError: it cannot be written.
    """
    count = 0
    with replaced_file(out) as path, path.open("w", encoding="utf-8") as file:
        for event in events(export, question):
            file.write(json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n")
            count += 1
    return LineageSummary(out, count)


def events(export: Path, question: Question) -> Iterator[dict[str, Any]]:
    """The events: of each deployment and day that ``question`` selects, and of the export itself."""
    data = b""
    with open_export(export) as connection:
        data = (export / MANIFEST_FILE).read_bytes()
        manifest = msgspec.json.decode(data, type=Manifest)
        namespace = f"tallystick://{manifest.origin}"
        size, root = manifest.checkpoint.splitlines()[1:3]
        log = {"namespace": namespace, "name": "log"}
        checkpoint = {"size": int(size), "root": root}
        documents = _deployments(connection)
        groups = ask(
            connection,
            Question(
                by=("day", "deployment", "model", "currency"),
                where=question.where,
                from_us=question.from_us,
                to_us=question.to_us,
                corrected=question.corrected,
            ),
        )
        for group in groups:
            yield _generation(group, namespace, log, checkpoint, documents.get(group["deployment"], {}))
    digest = hashlib.sha256(data).hexdigest()
    yield _export_event(manifest, namespace, log, root, digest)


def _generation(
    group: Mapping[str, Any],
    namespace: str,
    log: Mapping[str, str],
    checkpoint: Mapping[str, Any],
    document: Mapping[str, Any],
) -> dict[str, Any]:
    day = datetime.fromisoformat(group["day"]).replace(tzinfo=UTC)
    begun, ended = _time(day), _time(day + timedelta(days=1))
    version = document.get("weights", {}).get("digest") or document.get("version")
    model: dict[str, Any] = {"namespace": namespace, "name": f"models/{group['model']}", "facets": {}}
    if version:
        model["facets"]["version"] = _facet("version", datasetVersion=version)
    figures = {name: group[name] for name in _FIGURES if name in group}
    own = {
        "_producer": _PRODUCER,
        "_schemaURL": _OWN_FACET,
        "deployment": group["deployment"],
        "checkpoint": dict(checkpoint),
        "records": group["records"],
        **({"currency": group["currency"]} if group["currency"] else {}),
        **figures,
    }
    name = f"generate/{group['model']}/{group['deployment'][:16]}"
    return _event(
        _time(day + timedelta(days=1)),
        f"{namespace}/{name}/{group['day']}/{group['currency'] or ''}",
        {
            "nominalTime": _facet("nominalTime", nominalStartTime=begun, nominalEndTime=ended),
            "tallystick": own,
        },
        {
            "namespace": namespace,
            "name": name,
            "facets": {
                "jobType": _facet(
                    "jobType", processingType="SERVICE", integration="TALLYSTICK", jobType="MODEL"
                )
            },
        },
        [model],
        [
            {
                **log,
                "facets": {},
                "outputFacets": {"outputStatistics": _facet("outputStatistics", rowCount=group["records"])},
            }
        ],
    )


def _export_event(
    manifest: Manifest, namespace: str, log: Mapping[str, str], root: str, digest: str
) -> dict[str, Any]:
    files = [each for each in manifest.files if each.path.startswith(f"{RECORDS_DIR}/")]
    made = _time(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=manifest.created_us))
    return _event(
        made,
        f"{namespace}/export/{digest}",
        {},
        {
            "namespace": namespace,
            "name": "export",
            "facets": {
                "jobType": _facet("jobType", processingType="BATCH", integration="TALLYSTICK", jobType="JOB")
            },
        },
        [{**log, "facets": {"version": _facet("version", datasetVersion=root)}}],
        [
            {
                "namespace": namespace,
                "name": "export/records",
                "facets": {
                    "version": _facet("version", datasetVersion=digest),
                    "schema": _facet(
                        "schema",
                        fields=[
                            {"name": each.name, "type": each.type, "description": each.description}
                            for each in RECORD_COLUMNS
                        ],
                    ),
                },
                "outputFacets": {
                    "outputStatistics": _facet(
                        "outputStatistics",
                        rowCount=manifest.records,
                        size=sum(each.bytes for each in files),
                        fileCount=len(files),
                    )
                },
            }
        ],
    )


def _event(
    when: str,
    run: str,
    run_facets: Mapping[str, Any],
    job: Mapping[str, Any],
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "eventTime": when,
        "producer": _PRODUCER,
        "schemaURL": _RUN_EVENT,
        "eventType": "COMPLETE",
        "run": {"runId": str(uuid.uuid5(_RUNS, run)), "facets": dict(run_facets)},
        "job": dict(job),
        "inputs": inputs,
        "outputs": outputs,
    }


def _facet(name: str, **fields: Any) -> dict[str, Any]:
    path = _FACETS[name]
    kind = path.split("/")[1]
    return {"_producer": _PRODUCER, "_schemaURL": f"{_SPEC}/facets/{path}.json#/$defs/{kind}", **fields}


def _deployments(connection: duckdb.DuckDBPyConnection) -> dict[str, Mapping[str, Any]]:
    """Digest -> the deployment's document, of those that the log has published."""
    found: dict[str, Mapping[str, Any]] = {}
    rows = connection.execute("SELECT payload FROM statements WHERE kind = 'deployment'").fetchall()
    for (payload,) in rows:
        document = json.loads(payload)["deployment"]
        canonical = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        found[hashlib.sha256(canonical.encode()).hexdigest()] = document
    return found


def _time(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
