"""Owns the service's metrics (Prometheus), in a registry of their own for each app.

Labels have few values: routes are templates, never addresses; problems are codes. No tenant, issuer or
record is ever a label.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from ledger.service.witnessing import WitnessEvent
from ledger.store.append import Commit
from ledger.store.budgets import Alert

__all__ = ["Metrics"]

_LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COMMITS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_GROUPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counters that the app, its edge and the sequencer's thread move; each is thread-safe by itself."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "tallystick_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self.latency = Histogram(
            "tallystick_http_request_seconds",
            "Time from the first byte of a request's head to the last of its answer.",
            ["route"],
            buckets=_LATENCIES_S,
            registry=registry,
        )
        self.problems = Counter(
            "tallystick_problems",
            "Requests answered with a problem, by its code.",
            ["code"],
            registry=registry,
        )
        self.statements = Counter("tallystick_statements", "Statements appended.", registry=registry)
        self.records = Counter("tallystick_records", "Records appended.", registry=registry)
        self.refused = Counter(
            "tallystick_refused_statements", "Statements refused by the transaction.", registry=registry
        )
        self.group = Histogram(
            "tallystick_commit_statements",
            "Statements in one transaction.",
            buckets=_GROUPS,
            registry=registry,
        )
        self.commit = Histogram(
            "tallystick_commit_seconds", "Time of one transaction.", buckets=_COMMITS_S, registry=registry
        )
        self.tree_size = Gauge("tallystick_tree_size", "Leaves of the log.", registry=registry)
        self.buffered = Gauge(
            "tallystick_buffered_bytes", "Bytes of request bodies held now.", registry=registry
        )

        self.witness_requests = Counter(
            "tallystick_witness_requests",
            "Times that witnesses were asked to cosign, by what came of it.",
            ["witness", "outcome"],
            registry=registry,
        )
        self.witness_latency = Histogram(
            "tallystick_witness_seconds",
            "Time that a witness took to answer.",
            ["witness"],
            buckets=_LATENCIES_S,
            registry=registry,
        )
        self.budget_checks = Counter(
            "tallystick_budget_checks",
            "Requests that asked their budgets for room.",
            ["outcome"],
            registry=registry,
        )
        self.budget_alerts = Counter(
            "tallystick_budget_alerts",
            "Alerts of budgets, by the percentage that was reached, or refused.",
            ["percent"],
            registry=registry,
        )

    def observe_commit(self, commit: Commit) -> None:
        """Count a transaction. Called on the sequencer's thread."""
        self.statements.inc(commit.statements)
        self.records.inc(commit.records)
        self.refused.inc(commit.refused)
        if commit.statements:
            self.group.observe(commit.statements)
        self.commit.observe(commit.seconds)
        self.tree_size.set(commit.tree_size)

    def observe_witness(self, event: WitnessEvent) -> None:
        """Count a witness's answer. Called on the thread that asks."""
        self.witness_requests.labels(event.witness, event.outcome).inc()
        self.witness_latency.labels(event.witness).observe(event.seconds)

    def observe_alerts(self, alerts: Sequence[Alert]) -> None:
        """Count alerts. Called on the thread that keeps budgets."""
        for alert in alerts:
            self.budget_alerts.labels(str(alert.percent) if alert.percent else "refused").inc()

    def observe_request(self, method: str, route: str, status: int, seconds: float, problem: str) -> None:
        """Count an answered request."""
        self.requests.labels(method, route, str(status)).inc()
        self.latency.labels(route).observe(seconds)
        if problem:
            self.problems.labels(problem).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
