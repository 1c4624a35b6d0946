"""Logged usage as invoices are compared with: sums of requests by quarter of an hour and model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QUARTER_US", "LoggedUsage"]

QUARTER_US = 900_000_000
"""Offsets of time zones are multiples of a quarter of an hour, so days of any zone are sums of these."""


@dataclass(frozen=True)
class LoggedUsage:
    """Requests of one model in a quarter of an hour.

    Attributes:
        at_us: its beginning, Unix microseconds.
        model: of the deployment.
        version: of the deployment, None if not stated.
        provider: likewise.
        region: likewise.
        longer_than: the rates' bound of length that these requests' input is beyond, 0 for none.
        requests: how many.
        input_tokens: cached ones included.
        cached_input_tokens: of those; 0 where records do not state it.
        output_tokens: reasoning included.
        reasoning_tokens: of those; likewise.
        estimated_requests: how many of the requests have estimated token counts.
        estimated_input_tokens: in those.
        estimated_output_tokens: in those.
    """

    at_us: int
    model: str
    version: str | None
    provider: str | None
    region: str | None
    longer_than: int
    requests: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    estimated_requests: int = 0
    estimated_input_tokens: int = 0
    estimated_output_tokens: int = 0

    def count(self, kind: str, kinds: tuple[str, ...]) -> int:
        """What was logged of ``kind``, if an invoice tells ``kinds`` apart."""
        if kind == "input":
            return self.input_tokens - (self.cached_input_tokens if "cached_input" in kinds else 0)
        if kind == "cached_input":
            return self.cached_input_tokens
        if kind == "output":
            return self.output_tokens - (self.reasoning_tokens if "reasoning" in kinds else 0)
        if kind == "reasoning":
            return self.reasoning_tokens
        if kind == "tokens":
            return self.input_tokens + self.output_tokens
        return self.requests if kind == "requests" else 0

    def estimated(self, kind: str, kinds: tuple[str, ...]) -> int:  # noqa: ARG002 - as ``count``
        """How many of ``count`` are estimates."""
        if kind in ("input", "cached_input"):
            return self.estimated_input_tokens
        if kind in ("output", "reasoning"):
            return self.estimated_output_tokens
        return self.estimated_input_tokens + self.estimated_output_tokens if kind == "tokens" else 0
