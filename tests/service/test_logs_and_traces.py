"""Log lines and OpenTelemetry traces of a real service: what they say, and what they must not."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import urllib3
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cli.children import free_port
from cli.init import init_folder
from ledger.core.errors import UnavailableError
from ledger.service.tracing import tracing_from_environment

SECRET = "tenant-who-must-not-be-named"


@contextmanager
def serving(folder: Path, *options: str, **environment: str) -> Iterator[tuple[str, Path]]:
    """A service's URL and the file of its log lines."""
    port, lines = free_port(), folder.parent / "lines"
    command = [sys.executable, "-m", "cli", "serve", str(folder), "--port", str(port), *options]
    with (
        lines.open("wb") as log,
        subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "TALLYSTICK_LOG_REQUESTS": "1", **environment}
        ) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 60
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, lines.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield url, lines
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("operations") / "ledger"
    init_folder(path, "log.example.com/operations")
    return path


class _Sink(BaseHTTPRequestHandler):
    spans: list[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.spans.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_lines_and_spans_tell_of_requests_and_nothing_private(folder: Path) -> None:
    taken: list[ExportTraceServiceRequest] = []
    sink = ThreadingHTTPServer(("127.0.0.1", 0), type("Sink", (_Sink,), {"spans": taken}))
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    key = (folder / "admin.key").read_text().strip()
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"Authorization": f"Bearer {key}", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink.server_port}"}
    with serving(folder, "--log-format", "json", **endpoint) as (url, lines):
        assert urllib3.request("GET", f"{url}/records?tenant={SECRET}", headers=headers).status == 200
        assert urllib3.request("GET", f"{url}/records", headers={"Authorization": "Bearer x"}).status == 401
    sink.shutdown()

    text = lines.read_text()
    told = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    requests = [line for line in told if "http.route" in line]
    assert [(r["http.route"], r["http.response.status_code"]) for r in requests] == [
        ("/records", 200),
        ("/records", 401),
    ]
    assert {"time", "level", "logger", "message"} <= requests[0].keys()
    spans = [span for each in taken for r in each.resource_spans for s in r.scope_spans for span in s.spans]
    assert [span.name for span in spans] == ["GET /records"] * 2
    assert spans[0].trace_id.hex() == trace
    assert {a.key for a in spans[1].attributes} >= {"error.type", "http.route"}
    for private in (key, SECRET, key.split("_")[-1]):
        assert private not in text
        assert not any(private.encode() in each.SerializeToString() for each in taken)


@pytest.mark.slow
def test_lines_for_people_are_no_json(folder: Path) -> None:
    with serving(folder) as (url, lines):
        assert urllib3.request("GET", f"{url}/healthz").status == 200
    assert "GET '/healthz' 200" in lines.read_text()


def test_traces_are_off_unless_asked_for() -> None:
    assert tracing_from_environment({}) is None
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert tracing_from_environment({**asked, "OTEL_SDK_DISABLED": "true"}) is None


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(UnavailableError, match="not installed"):
        tracing_from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
