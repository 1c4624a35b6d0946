"""Owns what reports are computed from: an export's records within a scope, asked once and reused.

Every figure of a report comes through here, from exact totals (``ledger.export.query``), so that all reports
agree with each other and with a plain sum over the records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import UNSET

from ledger.core.export_layout import MANIFEST_FILE, Manifest
from ledger.core.records import Deployment, FactorSet, document_digest
from ledger.export.completeness import Completeness, completeness
from ledger.export.query import Question, ask, conditions
from ledger.export.reading import open_export
from ledger.export.reports.document import Scope, UsedFactors

if TYPE_CHECKING:
    import duckdb

    from ledger.export.reports.figures import Quantity

__all__ = ["Both", "Facts", "open_facts"]

_D = TypeVar("_D", Deployment, FactorSet)


@dataclass(frozen=True)
class Both:
    """The sum of two figures over the records that have both, in our units, with its range."""

    records: int
    tokens: int
    value: int
    low: int
    high: int


@dataclass
class Facts:
    """An export as seen through a scope. Owns its connection; close it."""

    directory: Path
    scope: Scope
    manifest: Manifest
    manifest_digest: str
    connection: duckdb.DuckDBPyConnection
    _answers: dict[tuple[Any, ...], list[dict[str, Any]]] = field(default_factory=dict)
    _told: Completeness | None = None

    @property
    def from_us(self) -> int | None:
        """Begin of the period, None if open."""
        return None if self.scope.from_us is UNSET else self.scope.from_us

    @property
    def to_us(self) -> int | None:
        """End of the period, None if open."""
        return None if self.scope.to_us is UNSET else self.scope.to_us

    def rows(
        self, *by: str, where: Mapping[str, tuple[str, ...]] | None = None, percentiles: bool = False
    ) -> list[dict[str, Any]]:
        """Totals grouped by ``by`` (see ``query.ask``), within the scope and ``where`` besides."""
        both = dict(self.scope.where)
        for name, values in (where or {}).items():
            both[name] = tuple(v for v in both[name] if v in values) if name in both else values
        key = (by, tuple(sorted(both.items())), percentiles)
        if key not in self._answers:
            question = Question(
                by=by, where=both, from_us=self.from_us, to_us=self.to_us, percentiles=percentiles
            )
            self._answers[key] = ask(self.connection, question)
        return self._answers[key]

    def total(self, **where: tuple[str, ...]) -> dict[str, Any]:
        """Totals of the whole scope (and ``where`` besides)."""
        return self.rows(where=where)[0]

    def both(self, first: Quantity, second: Quantity) -> Both:
        """Of the records that state two figures: how many, their tokens, and the figures' exact sum."""
        condition, parameters = conditions(
            Question(where=self.scope.where, from_us=self.from_us, to_us=self.to_us)
        )
        ends = (_sum_of(end, first, second) for end in ("", "low", "high"))
        sums = ", ".join(f"coalesce(sum({part}), 0)" for part in ("input_tokens + output_tokens", *ends))
        sql = (
            f"SELECT count(*), {sums} "  # noqa: S608
            f"FROM (SELECT * FROM records_corrected{condition}) "
            f"WHERE {first.column} IS NOT NULL AND {second.column} IS NOT NULL"
        )
        found = self.connection.execute(sql, parameters).fetchone() or (0, 0, 0, 0, 0)
        return Both(*map(int, found))

    def methods(self) -> dict[str, int]:
        """Records by how their energy is known; ``unknown`` where they state none."""
        return {row["method"] or "unknown": row["records"] for row in self.rows("method")}

    def fetch(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows that one of our own queries gives."""
        found = self.connection.execute(sql, list(parameters))
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, values, strict=True)) for values in found.fetchall()]

    def scoped(self, select: str, after: str = "") -> list[dict[str, Any]]:
        """``SELECT select FROM (the records of the scope) after``."""
        condition, parameters = conditions(
            Question(where=self.scope.where, from_us=self.from_us, to_us=self.to_us)
        )
        return self.fetch(
            f"SELECT {select} FROM (SELECT * FROM records_corrected{condition}) {after}",  # noqa: S608
            parameters,
        )

    def factor_sets(self) -> dict[str, FactorSet]:
        """The factor sets in the log, by digest."""
        return {document_digest(made): made for made in self._documents("factors", FactorSet)}

    def deployments(self) -> dict[str, Deployment]:
        """The deployments in the log, by digest."""
        return {document_digest(made): made for made in self._documents("deployment", Deployment)}

    def _documents(self, kind: str, of: type[_D]) -> list[_D]:
        found = self.fetch(
            "SELECT payload -> ('$.' || kind) AS text FROM statements WHERE kind = $1 ORDER BY leaf_index",
            [kind],
        )
        return [msgspec.json.decode(row["text"], type=of) for row in found]

    def used_factors(self) -> tuple[UsedFactors, ...]:
        """The factor sets that records of the scope name, by digest."""
        known = self.factor_sets()
        used = []
        for row in self.rows("factors"):
            digest = row["factors"]
            if digest is None or digest not in known:
                continue
            made = known[digest]
            used.append(
                UsedFactors(
                    digest=digest,
                    name=made.name,
                    version=made.version,
                    records=row["records"],
                    region=made.region,
                    sources=tuple(_cited(each) for each in made.sources),
                )
            )
        return tuple(used)

    def told(self) -> Completeness:
        """What the export covers of the period."""
        if self._told is None:
            self._told = completeness(self.directory, from_us=self.from_us, to_us=self.to_us)
        return self._told

    def gaps(self) -> tuple[str, ...]:
        """What the export does not cover of the period, in words."""
        return self.told().gaps

    def coverage(self) -> tuple[str, ...]:
        """What the export has of each issuer's chain, in words."""
        return tuple(
            f"{each.issuer}: statements {each.first_seq} to {each.last_seq}, {each.batches:,} batches, "
            f"{each.records:,} records, {each.dropped:,} dropped, {each.heartbeats:,} heartbeats, "
            f"{each.late_records:,} late, "
            f"{each.corrected_records:,} restated, {each.erased_records:,} erased"
            for each in self.told().issuers
        )

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def _sum_of(end: str, *quantities: Quantity) -> str:
    """SQL that adds figures of one record, or an end of their ranges: without a range it is the figure."""
    ends = ((each.column, getattr(each, end) if end else None) for each in quantities)
    return " + ".join(column if bound is None else f"coalesce({bound}, {column})" for column, bound in ends)


def _cited(source: Any) -> str:
    parts = [f"{source.factor}: {source.source}"]
    parts += [] if source.version is UNSET else [f"version {source.version}"]
    parts += [] if source.year is UNSET else [str(source.year)]
    return ", ".join(parts)


def open_facts(export: Path, scope: Scope) -> Facts:
    """Open an export for a report. It is believed: verify it before, or verify the report after.

    Raises:
        InvalidError: the folder holds no export.
    """
    connection = open_export(export)
    data = (export / MANIFEST_FILE).read_bytes()
    return Facts(
        directory=export,
        scope=scope,
        manifest=msgspec.json.decode(data, type=Manifest),
        manifest_digest=hashlib.sha256(data).hexdigest(),
        connection=connection,
    )
