"""Spans of records: read back by OpenTelemetry's own messages, sent to a server that speaks OTLP."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from google.protobuf import json_format
from msgspec import UNSET
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.records import encode_record, record_hash
from ledger.export import otlp
from ledger.export.otlp import HEADERS_VARIABLE, send_otlp, write_otlp
from ledger.export.parquet import ExportSummary
from ledger.export.query import Question
from tests.build import ORIGIN
from tests.export.conftest import Ledger


def message(data: bytes) -> ExportTraceServiceRequest:
    """Read OTLP's JSON, whose ids are hex where protobuf's JSON has base64; unknown names are refused."""
    body = json.loads(data)
    for resource in body["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in span.keys() & {"traceId", "spanId", "parentSpanId"}:
                    span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    return json_format.ParseDict(body, ExportTraceServiceRequest())


def plain(values: Any) -> dict[str, Any]:
    found = {}
    for each in values:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        found[each.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


def spans_of(messages: list[ExportTraceServiceRequest]) -> list[tuple[dict[str, Any], Any, dict[str, Any]]]:
    return [
        (plain(resource.resource.attributes), span, plain(span.attributes))
        for each in messages
        for resource in each.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


@pytest.fixture(scope="module")
def spans(export: ExportSummary, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    out = tmp_path_factory.mktemp("otlp") / "spans.jsonl"
    summary = write_otlp(export.directory, out, Question(corrected=False))
    lines = out.read_bytes().splitlines()
    assert (summary.spans, summary.requests, summary.rejected) == (export.records, len(lines), 0)
    return spans_of([message(line) for line in lines])


def test_each_span_repeats_its_record(spans: list[Any], ledger: Ledger) -> None:
    assert len(spans) == len(ledger.records)
    for (resource, span, given), (leaf, position, issuer, record) in zip(spans, ledger.records, strict=True):
        assert resource["service.name"] == issuer
        assert resource["tallystick.deployment"] == record.deployment
        assert resource["tallystick.log"] == ORIGIN
        assert span.start_time_unix_nano == 1000 * record.started_us
        assert span.end_time_unix_nano == 1000 * record.ended_us
        assert span.span_id.hex() == record.id.replace("-", "")[16:]
        assert given["gen_ai.usage.input_tokens"] == record.usage.input_tokens
        assert given["gen_ai.usage.output_tokens"] == record.usage.output_tokens
        assert given["tallystick.record_hash"] == record_hash(encode_record(record)).hex()
        assert (given["tallystick.leaf_index"], given["tallystick.position"]) == (leaf, position)
        energy = None if record.energy is UNSET else record.energy.energy_uj
        assert given.get("tallystick.energy_uj") == energy
        assert ("gen_ai.response.finish_reasons" in given) == (record.finish_reason is not UNSET)
        assert given.get("tallystick.tenant") == (None if record.tenant is UNSET else record.tenant)


def test_names_are_those_of_the_convention(spans: list[Any]) -> None:
    known = {
        value
        for value in vars(gen_ai_attributes).values()
        if isinstance(value, str) and value[:7] == "gen_ai."
    }
    used = {name for _, _, given in spans for name in given if name.startswith("gen_ai.")}
    assert used <= known
    assert len(used) >= 7
    operations = {each.value for each in gen_ai_attributes.GenAiOperationNameValues}
    assert {given["gen_ai.operation.name"] for *_, given in spans} <= operations


def test_a_chain_is_one_trace(spans: list[Any], ledger: Ledger) -> None:
    parents = {record.id: record.parent for *_, record in ledger.records if record.parent is not UNSET}
    assert parents
    for _, span, given in spans:
        parent = parents.get(given["tallystick.record"])
        own = given["tallystick.record"].replace("-", "")
        assert span.trace_id.hex() == (own if parent is None else parent.replace("-", ""))
        assert span.parent_span_id.hex() == ("" if parent is None else parent.replace("-", "")[16:])


def test_a_circle_of_parents_ends() -> None:
    assert otlp._trace_of("a", {"a": "b", "b": "c", "c": "a"}) == "c"
    assert otlp._trace_of("a", {"a": "a"}) == "a"


# --- sending ---


@contextmanager
def collector(answers: list[tuple[int, bytes]]) -> Iterator[tuple[str, list[tuple[Any, bytes]]]]:
    """A server that takes what OTLP messages can be read from; the last of ``answers`` goes on."""
    seen: list[tuple[Any, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, told = answers[min(len(seen), len(answers) - 1)]
            seen.append((self.headers, body))
            assert self.path == "/v1/traces"
            self.send_response(status)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_spans_are_sent_in_parts(
    export: ExportSummary, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "_SPANS", 100)
    monkeypatch.setenv(HEADERS_VARIABLE, "authorization=Bearer%20abc, x-tenant=1")
    with collector([(200, b"{}")]) as (url, seen):
        summary = send_otlp(export.directory, url + "/", Question())
    assert (summary.spans, summary.requests) == (len(ledger.records), 4)
    for headers, _ in seen:
        assert headers["Content-Type"] == "application/json"
        assert (headers["Authorization"], headers["X-Tenant"]) == ("Bearer abc", "1")
    found = spans_of([message(body) for _, body in seen])
    assert [given["tallystick.record"] for *_, given in found] == [record.id for *_, record in ledger.records]


def test_a_busy_collector_is_asked_again(export: ExportSummary) -> None:
    with collector([(503, b""), (429, b""), (200, b"")]) as (url, seen):
        assert send_otlp(export.directory, url, Question()).requests == 1
    assert len(seen) == 3
    assert seen[0][1] == seen[2][1]


def test_rejected_spans_are_told(export: ExportSummary) -> None:
    told = json.dumps({"partialSuccess": {"rejectedSpans": "7", "errorMessage": "no"}}).encode()
    with collector([(200, told)]) as (url, _):
        assert send_otlp(export.directory, url, Question()).rejected == 7


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_an_error(export: ExportSummary, status: int) -> None:
    with collector([(status, b"no")]) as (url, _), pytest.raises(UnavailableError, match=str(status)):
        send_otlp(export.directory, url, Question())


def test_nobody_there_is_an_error(export: ExportSummary) -> None:
    with pytest.raises(UnavailableError, match="did not take"):
        send_otlp(export.directory, "http://127.0.0.1:1", Question())
    with pytest.raises(InvalidError, match="no URL"):
        send_otlp(export.directory, "localhost:4318", Question())


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"partialSuccess": 3}', b'{"partialSuccess":{"rejectedSpans":[]}}']
)
def test_what_a_collector_says_else_is_nothing(body: bytes) -> None:
    assert otlp._rejected(body) == 0
