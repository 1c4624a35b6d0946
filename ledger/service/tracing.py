"""OpenTelemetry traces of requests, where the operator asks for them; nothing is imported or done else.

On if ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` is set (extra ``tracing``).
Spans are named by route and have the route, the method, the status and the problem's code: no address, query,
header or body, and no tenant, issuer or record.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from ledger import __version__
from ledger.core.errors import UnavailableError

__all__ = ["Tracing", "tracing_from_environment"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing(Protocol):
    """Tells of requests."""

    def begin(self, headers: Mapping[str, str]) -> Any:
        """A request began; ``headers`` may name the caller's trace (W3C Trace Context)."""

    def end(self, span: Any, method: str, route: str, status: int, problem: str) -> None:
        """It was answered."""

    def close(self) -> None:
        """Send what waits."""


def tracing_from_environment(environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """What the environment asks for; None if it asks for nothing.

    Raises:
        UnavailableError: the extra is missing.
    """
    asked = any(environment.get(name) for name in _ENDPOINTS)
    if not asked or environment.get("OTEL_SDK_DISABLED") == "true":
        return None
    try:
        return _OpenTelemetry(environment)
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"{_ENDPOINTS[0]} is set, but {error.name} is not installed",
            remedy="pip install 'tallystick[tracing]', or unset it",
            code="missing-package",
        ) from None


class _OpenTelemetry:
    def __init__(self, environment: Mapping[str, str]) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = environment.get("OTEL_SERVICE_NAME", "tallystick")
        resource = Resource.create({"service.name": name, "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("tallystick", __version__)
        self._extract = TraceContextTextMapPropagator().extract
        self._kind = SpanKind.SERVER
        self._error = StatusCode.ERROR

    def begin(self, headers: Mapping[str, str]) -> Any:
        return self._tracer.start_span("request", context=self._extract(headers), kind=self._kind)

    def end(self, span: Any, method: str, route: str, status: int, problem: str) -> None:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.request.method", method)
        span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        if problem:
            span.set_attribute("error.type", problem)
        if status >= 500:
            span.set_status(self._error)
        span.end()

    def close(self) -> None:
        self._provider.shutdown()
