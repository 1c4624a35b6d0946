"""Owns the step from an export to a reconciliation: what it holds, and by which day requests are billed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
from msgspec import UNSET

from ledger.core.export_layout import MANIFEST_FILE, Manifest
from ledger.core.price_books import PriceBook
from ledger.cost.differences import Reconciliation
from ledger.cost.invoices import Invoice
from ledger.cost.reconcile import reconcile
from ledger.export.costs import logged_usage
from ledger.export.query import Question
from ledger.export.reading import open_export

__all__ = ["ATTRIBUTIONS", "reconcile_export"]

ATTRIBUTIONS = ("auto", "started", "ended")
_NO_END_US = 1 << 62


def reconcile_export(
    export: Path,
    invoice: Invoice,
    books: Sequence[PriceBook] = (),
    *,
    where: Mapping[str, Sequence[str]] | None = None,
    zone: ZoneInfo | None = None,
    from_us: int | None = None,
    until_us: int | None = None,
    aliases: Mapping[str, str] | None = None,
    provider: str | None = None,
    tolerance_nano: int = 0,
    attributed: str = "auto",
) -> Reconciliation:
    """Compare an invoice with the records of an export; see ``ledger.cost.reconcile``.

    Lines for times that the export does not hold are left out and told. Tokens are those first logged:
    corrections restate none.

    Args:
        export: the export's folder.
        invoice: the invoice.
        books: price books.
        where: which records the invoice is about.
        zone: whose days.
        from_us: beginning of the billing period.
        until_us: its end, exclusive.
        aliases: model as the invoice names it -> as the log does.
        provider: whose rates.
        tolerance_nano: of amounts.
        attributed: one of ``ATTRIBUTIONS``; ``auto`` takes the one with fewer differences.

    Raises:
        InvalidError: no export, or lines that cannot be compared.
    """
    results = []
    with open_export(export) as connection:
        scope = msgspec.json.decode((export / MANIFEST_FILE).read_bytes(), type=Manifest).scope
        low = 0 if scope.from_us is UNSET else scope.from_us
        high = _NO_END_US if scope.to_us is UNSET else scope.to_us
        beyond = tuple(n.number for n in invoice.lines if n.from_us < low or n.until_us > high)
        within = tuple(line for line in invoice.lines if line.from_us >= low and line.until_us <= high)
        question = Question(where=where or {})
        ways = ("started", "ended") if attributed == "auto" else (attributed,)
        for way in ways:
            usage = logged_usage(
                connection, question, books, attributed="ended" if way == "ended" else "started"
            )
            found = reconcile(
                replace(invoice, lines=within),
                [each for each in usage if low <= each.at_us < high],
                books,
                zone=zone,
                from_us=from_us,
                until_us=until_us,
                aliases=aliases,
                provider=provider,
                tolerance_nano=tolerance_nano,
            )
            results.append(replace(found, attributed=way, outside_log=beyond))
            if not found.differences:
                break
        best = min(results, key=lambda each: len(each.differences))
        dropped = connection.execute(
            "SELECT coalesce(sum((payload ->> '$.dropped')::BIGINT), 0)::BIGINT FROM statements "
            "WHERE kind IN ('batch', 'heartbeat') AND (payload ->> '$.issued_us')::BIGINT BETWEEN ? AND ?",
            [best.from_us, best.until_us],
        ).fetchone()
    return replace(best, dropped=dropped[0] if dropped else 0)
