"""Owns what reports are computed from: an export's records within a scope, asked once and reused.

Every figure of a report comes through here, from exact totals (``ledger.export.query``), so that all reports
agree with each other and with a plain sum over the records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from ledger.core.export_layout import MANIFEST_FILE, Manifest
from ledger.core.records import FactorSet
from ledger.export.completeness import completeness
from ledger.export.query import Question, ask, conditions
from ledger.export.reading import open_export
from ledger.export.reports.document import Scope, UsedFactors

if TYPE_CHECKING:
    import duckdb

__all__ = ["Facts", "open_facts"]


@dataclass
class Facts:
    """An export as seen through a scope. Owns its connection; close it."""

    directory: Path
    scope: Scope
    manifest: Manifest
    manifest_digest: str
    connection: duckdb.DuckDBPyConnection
    _answers: dict[tuple[Any, ...], list[dict[str, Any]]] = field(default_factory=dict)

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

    def both(self, first: str, second: str) -> dict[str, int]:
        """Totals of two figures over the records that have both: records, tokens, and each figure's sum."""
        condition, parameters = conditions(
            Question(where=self.scope.where, from_us=self.from_us, to_us=self.to_us)
        )
        names = ("records", "tokens", first, second)
        sql = (
            f"SELECT count(*), coalesce(sum(input_tokens + output_tokens), 0), coalesce(sum({first}), 0), "  # noqa: S608
            f"coalesce(sum({second}), 0) FROM (SELECT * FROM records_corrected{condition}) "
            f"WHERE {first} IS NOT NULL AND {second} IS NOT NULL"
        )
        found = self.connection.execute(sql, parameters).fetchone() or (0, 0, 0, 0)
        return {name: int(value) for name, value in zip(names, found, strict=True)}

    def methods(self) -> dict[str, int]:
        """Records by how their energy is known; ``unknown`` where they state none."""
        return {row["method"] or "unknown": row["records"] for row in self.rows("method")}

    def factor_sets(self) -> dict[str, FactorSet]:
        """The factor sets in the log, by digest."""
        found = self.connection.execute(
            "SELECT payload -> '$.factors' FROM statements WHERE kind = 'factors' ORDER BY leaf_index"
        ).fetchall()
        sets = {}
        for (text,) in found:
            made = msgspec.json.decode(text, type=FactorSet)
            sets[_digest_of(made)] = made
        return sets

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

    def gaps(self) -> tuple[str, ...]:
        """What the export does not cover of the period, in words."""
        told = completeness(self.directory, from_us=self.from_us, to_us=self.to_us)
        return told.gaps

    def coverage(self) -> tuple[str, ...]:
        """What the export has of each issuer's chain, in words."""
        told = completeness(self.directory, from_us=self.from_us, to_us=self.to_us)
        return tuple(
            f"{each.issuer}: statements {each.first_seq} to {each.last_seq}, {each.batches:,} batches, "
            f"{each.records:,} records, {each.dropped:,} dropped, {each.late_records:,} late, "
            f"{each.corrected_records:,} restated, {each.erased_records:,} erased"
            for each in told.issuers
        )

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def _digest_of(made: FactorSet) -> str:
    from ledger.core.records import document_digest

    return document_digest(made)


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
