"""Owns the check that records cost what the price books say that their batches name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import UNSET

from ledger.core.price_books import PriceBook
from ledger.core.records import Deployment, Record, document_digest
from ledger.cost.rating import Rater
from ledger.export.reading import open_export

__all__ = ["Charged", "check_charged"]

_MAX_EXAMPLES = 20
_ROWS = 10_000


@dataclass(frozen=True)
class Charged:
    """What came of it.

    Attributes:
        batches: that name price books.
        records: of those batches, as far as the export has them.
        by_book: records whose cost is what one of their batch's books says.
        otherwise: records that state another cost: their recorder was told it, or it is wrong.
        unstated: records without a cost.
        examples: some of ``otherwise``, in words.
    """

    batches: int
    records: int
    by_book: int
    otherwise: int
    unstated: int
    examples: tuple[str, ...]


def check_charged(export: Path, *, progress: Callable[[int, int], None] | None = None) -> Charged:
    """Compute the costs of an export's records anew, by the books that its log published.

    Args:
        export: the export's folder.
        progress: called with (records done, records of batches that name books).

    Raises:
        InvalidError: no export.
    """
    with open_export(export) as connection:

        def published(kind: str) -> list[bytes]:
            found = connection.execute(
                "SELECT payload FROM statements WHERE kind = ? ORDER BY leaf_index", [kind]
            )
            return [row[0].encode() for row in found.fetchall()]

        books = {document_digest(b): b for b in (_book(data) for data in published("prices"))}
        deployments = {document_digest(d): d for d in (_deployment(data) for data in published("deployment"))}
        batches = {
            leaf: tuple(msgspec.json.decode(digests))
            for leaf, digests in connection.execute(
                "SELECT leaf_index, payload -> '$.prices' FROM statements "
                "WHERE kind = 'batch' AND (payload -> '$.prices') IS NOT NULL"
            ).fetchall()
        }
        raters: dict[tuple[str, ...], list[Rater]] = {}
        by_book = otherwise = unstated = 0
        examples: list[str] = []
        leaves = sorted(batches)
        counted = connection.execute(
            "SELECT count(*) FROM records WHERE leaf_index IN (SELECT unnest(?))", [leaves]
        ).fetchone()
        total = counted[0] if counted else 0
        records = connection.execute(
            "SELECT leaf_index, record FROM records WHERE leaf_index IN (SELECT unnest(?)) "
            "ORDER BY leaf_index, position",
            [leaves],
        )
        while rows := records.fetchmany(_ROWS):
            if progress is not None:
                progress(by_book + otherwise + unstated, total)
            for leaf, data in rows:
                digests = batches[leaf]
                if digests not in raters:
                    raters[digests] = [Rater([books[each]]) for each in digests if each in books]
                record = msgspec.json.decode(data, type=Record)
                if record.cost_nano is UNSET:
                    unstated += 1
                    continue
                deployment = deployments.get(record.deployment)
                costs = (
                    []
                    if deployment is None
                    else [
                        (rated[0], rated[1].currency)
                        for rater in raters[digests]
                        if (
                            rated := rater.rate(
                                deployment, record.deployment, record.usage, record.started_us
                            )
                        )
                    ]
                )
                if (record.cost_nano, record.currency) in costs:
                    by_book += 1
                    continue
                otherwise += 1
                if len(examples) < _MAX_EXAMPLES:
                    told = ", ".join(f"{cost} {currency}" for cost, currency in costs) or "nothing"
                    examples.append(
                        f"record {record.id}: states {record.cost_nano} {record.currency} (billionths), "
                        f"the price book says {told}"
                    )
    return Charged(len(batches), total, by_book, otherwise, unstated, tuple(examples))


def _book(data: bytes) -> PriceBook:
    return msgspec.json.decode(data, type=_Prices).prices


def _deployment(data: bytes) -> Deployment:
    return msgspec.json.decode(data, type=_Deployed).deployment


class _Prices(msgspec.Struct):
    prices: PriceBook


class _Deployed(msgspec.Struct):
    deployment: Deployment
