"""Owns what an export covers: for a period, which chains it has, and what it does not have.

A report can be exact and still leave things out. This says what: per issuer the range of ``seq``, its gaps,
the records that the issuer itself counted as lost, how long it was silent, what came late, what was
restated or erased, and the measured energy that no record carries. All from signed statements.

A scope narrows records, not chains: what an issuer lost or was silent about names no model and no tenant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from ledger.core.export_layout import MANIFEST_FILE, Manifest
from ledger.export.query import Question, conditions
from ledger.export.reading import open_export

if TYPE_CHECKING:
    import duckdb

__all__ = ["LATE_US", "Completeness", "IssuerCoverage", "completeness"]

LATE_US = 3_600_000_000
"""A record is late when the log registered it more than an hour after it ended."""
SILENCE_US = 3_600_000_000
"""A silence is told from an hour on: emitters give a sign of life every minute."""


@dataclass(frozen=True)
class IssuerCoverage:
    """What the export has of one issuer's chain that bears on the period.

    Attributes:
        issuer: the chain's issuer.
        first_seq: of the first statement that bears on the period: made in it, or with records of it;
        last_seq: of the last; those between belong to it too.
        statements: how many of that range the export has.
        missing_seqs: ranges of ``seq`` in it that the export has not, as (first, last).
        batches: statements with records of the period.
        records: records of the period and scope.
        dropped: records that the issuer says were lost, told in that range.
        heartbeats: signs of life in that range.
        longest_silence_us: the longest time without a statement, within the period: from its begin, if the
            chain is older, to the next statement or its end, if the chain has batches. None: there is none.
        late_records: of these, registered more than an hour after they ended.
        corrected_records: of these, with restated figures.
        erased_records: whose bytes were removed.
        unattributed_uj: measured energy that no record carries, told in that range; None if none was told.
    """

    issuer: str
    first_seq: int
    last_seq: int
    statements: int
    missing_seqs: tuple[tuple[int, int], ...]
    batches: int
    records: int
    dropped: int
    heartbeats: int
    longest_silence_us: int | None
    late_records: int
    corrected_records: int
    erased_records: int
    unattributed_uj: int | None


@dataclass(frozen=True)
class Completeness:
    """What the export covers.

    ``every_statement`` is what its manifest promises: only then do chains without gaps show that nothing was
    left out. ``gaps`` says in words what keeps the period from being complete; empty if nothing does. With a
    scope, ``issuers`` are those that logged a record of it, in whatever period.
    """

    from_us: int | None
    to_us: int | None
    where: Mapping[str, Sequence[str]]
    origin: str
    tree_size: int
    every_statement: bool
    issuers: tuple[IssuerCoverage, ...]
    gaps: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def completeness(
    export: Path,
    *,
    from_us: int | None = None,
    to_us: int | None = None,
    where: Mapping[str, Sequence[str]] | None = None,
) -> Completeness:
    """What ``export`` covers of the records that started from ``from_us`` to before ``to_us``.

    Believe it as far as the export itself: verify that first.

    Args:
        where: dimension -> values that a record of the scope has one of, as in ``ledger.export.query``.

    Raises:
        InvalidError: the folder holds no export, or an unknown dimension.
    """
    scope = conditions(Question(where=where or {}))
    with open_export(export) as connection:
        manifest = msgspec.json.decode((export / MANIFEST_FILE).read_bytes(), type=Manifest)
        bounds = [from_us if from_us is not None else 0, to_us if to_us is not None else 2**62]
        connection.execute(_STATEMENTS, [*bounds, manifest.origin])  # the log has no records of its own
        end_us = None if to_us is None else min(to_us, manifest.created_us)
        chains = [
            _coverage(connection, row, bounds, scope, from_us, end_us) for row in _fetch(connection, _RANGES)
        ]
        silent = [row["issuer"] for row in _fetch(connection, _SILENT, [bounds[1]])]
        beside: list[IssuerCoverage] = []
        if where:
            found = _fetch(connection, f"SELECT DISTINCT issuer FROM records_corrected{scope[0]}", scope[1])  # noqa: S608
            inside = {row["issuer"] for row in found}
            beside = [each for each in chains if each.issuer not in inside]
            chains = [each for each in chains if each.issuer in inside]
            silent = [issuer for issuer in silent if issuer in inside]
    every = manifest.scope.statements == "all"
    return Completeness(
        from_us=from_us,
        to_us=to_us,
        where=where or {},
        origin=manifest.origin,
        tree_size=int(manifest.checkpoint.split("\n")[1]),
        every_statement=every,
        issuers=tuple(chains),
        gaps=(*_gaps(manifest, from_us, to_us, chains, silent), *_gaps_beside(beside)),
    )


def _fetch(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: list[Any] | None = None
) -> list[dict[str, Any]]:
    found = connection.execute(sql, parameters)
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, values, strict=True)) for values in found.fetchall()]


# ``bears``: made in the period, or a batch whose records overlap it.
_STATEMENTS = """
CREATE TEMP TABLE s AS
SELECT issuer, seq, leaf_index, kind, leaf_hash, record_count,
       issued_us, first_us, last_us, dropped, unattributed_uj,
       CASE kind WHEN 'batch' THEN first_us < $2 AND last_us >= $1 ELSE issued_us >= $1 AND issued_us < $2 END
           AS bears
FROM (SELECT issuer, seq, leaf_index, kind, leaf_hash, record_count,
             (payload ->> '$.issued_us')::BIGINT AS issued_us, (payload ->> '$.first_us')::BIGINT AS first_us,
             (payload ->> '$.last_us')::BIGINT AS last_us, (payload ->> '$.dropped')::BIGINT AS dropped,
             (payload ->> '$.unattributed_uj')::BIGINT AS unattributed_uj
      FROM statements WHERE issuer <> $3)"""

_RANGES = """
WITH r AS (SELECT issuer, min(seq) AS first_seq, max(seq) AS last_seq FROM s WHERE bears GROUP BY issuer)
SELECT r.issuer, r.first_seq, r.last_seq, count(*) AS statements,
       list(s.seq ORDER BY s.seq) AS seqs,
       count(*) FILTER (s.kind = 'batch' AND s.bears) AS batches,
       coalesce(sum(s.dropped), 0) AS dropped,
       count(*) FILTER (s.kind = 'heartbeat') AS heartbeats,
       sum(s.unattributed_uj) AS unattributed_uj,
       list(s.issued_us ORDER BY s.seq) AS times,
       (SELECT max(x.issued_us) FROM s x WHERE x.issuer = r.issuer AND x.seq < r.first_seq) AS before_us,
       (SELECT min(x.issued_us) FROM s x WHERE x.issuer = r.issuer AND x.seq > r.last_seq) AS after_us,
       max(greatest(s.issued_us, coalesce(s.last_us, 0))) AS until_us,
       bool_or(s.kind = 'batch') AS records_anything
FROM r JOIN s ON s.issuer = r.issuer AND s.seq BETWEEN r.first_seq AND r.last_seq
GROUP BY ALL ORDER BY r.issuer"""

_SILENT = """
SELECT issuer FROM s GROUP BY issuer
HAVING NOT bool_or(bears) AND min(issued_us) < $1 ORDER BY issuer"""

_RECORDS = """
SELECT count(*) AS records,
       count(*) FILTER (epoch_us(t.registered_at) - epoch_us(r.ended_at) > ?) AS late,
       count(*) FILTER (r.corrected) AS corrected
FROM (SELECT leaf_index, issuer, started_at, ended_at, corrected FROM records_corrected{scope}) r
     JOIN statements t USING (leaf_index)
WHERE r.issuer = ? AND epoch_us(r.started_at) >= ? AND epoch_us(r.started_at) < ?"""

_ERASED = """
SELECT coalesce(sum(len(from_json(e.payload -> '$.positions', '["INTEGER"]'))), 0) AS erased
FROM statements e JOIN s ON s.leaf_hash = e.payload ->> '$.statement'
WHERE e.kind = 'erasure' AND s.issuer = $1 AND s.bears"""


def _coverage(
    connection: duckdb.DuckDBPyConnection,
    row: dict[str, Any],
    bounds: list[int],
    scope: tuple[str, list[Any]],
    from_us: int | None,
    end_us: int | None,
) -> IssuerCoverage:
    clause, values = scope
    counted = _RECORDS.format(scope=clause)
    (records,) = _fetch(connection, counted, [LATE_US, *values, row["issuer"], *bounds])
    (erased,) = _fetch(connection, _ERASED, [row["issuer"]])
    return IssuerCoverage(
        issuer=row["issuer"],
        first_seq=row["first_seq"],
        last_seq=row["last_seq"],
        statements=row["statements"],
        missing_seqs=tuple(_missing(row["seqs"])),
        batches=row["batches"],
        records=records["records"],
        dropped=int(row["dropped"]),
        heartbeats=row["heartbeats"],
        longest_silence_us=max(_silences(row, from_us, end_us), default=None),
        late_records=records["late"],
        corrected_records=records["corrected"],
        erased_records=int(erased["erased"]),
        unattributed_uj=None if row["unattributed_uj"] is None else int(row["unattributed_uj"]),
    )


def _silences(row: dict[str, Any], from_us: int | None, end_us: int | None) -> Iterator[int]:
    """How long each stretch without a statement was, those that reach over the period's ends cut there."""
    yield from (b - a for a, b in pairwise(row["times"]))
    before_us, after_us, until_us = row["before_us"], row["after_us"], row["until_us"]
    if from_us is not None and before_us is not None:
        yield row["times"][0] - max(before_us, from_us)
    if end_us is not None and (after_us is not None or row["records_anything"]):
        yield (end_us if after_us is None else min(after_us, end_us)) - until_us


def _missing(seqs: list[int]) -> list[tuple[int, int]]:
    return [(a + 1, b - 1) for a, b in pairwise(seqs) if b > a + 1]


def _gaps(
    manifest: Manifest,
    from_us: int | None,
    to_us: int | None,
    issuers: Sequence[IssuerCoverage],
    silent: Sequence[str],
) -> Iterator[str]:
    scope = manifest.scope
    if scope.statements != "all":
        yield "the export has only the statements it needs: batches of the period may be missing unseen"
    if scope.from_us is not UNSET and (from_us is None or from_us < scope.from_us):
        yield f"the export begins at {scope.from_us} (Unix microseconds), after the period does"
    if scope.to_us is not UNSET and (to_us is None or to_us > scope.to_us):
        yield f"the export ends at {scope.to_us} (Unix microseconds), before the period does"
    for each in issuers:
        for first, last in each.missing_seqs:
            yield f"{each.issuer}: statements {first} to {last} of its chain are not in the export"
        if each.dropped:
            yield f"{each.issuer}: {each.dropped:,} records were lost unsigned, by its own count"
        if each.erased_records:
            yield f"{each.issuer}: the bytes of {each.erased_records:,} records were erased"
        if each.longest_silence_us is not None and each.longest_silence_us >= SILENCE_US:
            minutes = each.longest_silence_us // 60_000_000
            yield f"{each.issuer}: it was silent for {minutes:,} minutes, without a sign of life"
    for issuer in silent:
        yield f"{issuer}: it has a chain, but nothing of it bears on the period"


def _gaps_beside(issuers: Sequence[IssuerCoverage]) -> Iterator[str]:
    """What issuers without a record of the scope may have kept from it."""
    for each in issuers:
        missing = sum(last - first + 1 for first, last in each.missing_seqs)
        if each.dropped or each.erased_records or missing:
            yield (
                f"{each.issuer}: no record of the scope; but {each.dropped:,} records lost, "
                f"{each.erased_records:,} erased and {missing:,} statements missing, perhaps of it"
            )
