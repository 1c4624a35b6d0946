"""Owns what records of an export cost by price books, and the usage that invoices are compared with.

Costs are computed in SQL with the same integers and the same rounding as ``ledger.cost.rating``, each record
by itself. Which rate is whose is decided there, once for each deployment; what is left to SQL is to find a
record's start and length between bounds.
"""

# ruff: noqa: S608 - SQL is put together from this module's own names

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from msgspec import UNSET

from ledger.core.errors import InvalidError
from ledger.core.price_books import PriceBook
from ledger.cost.rating import TOKENS_PER_RATE, Charges, charges_of, find_rates, for_length
from ledger.cost.self_hosted import Made
from ledger.cost.usage import QUARTER_US, LoggedUsage
from ledger.export.query import DIMENSIONS, Question, conditions

if TYPE_CHECKING:
    import duckdb

__all__ = ["logged_usage", "made_by_deployment", "rate_records", "rated_groups", "span_us"]

_NO_END = (1 << 62) - 1
_START = "make_timestamp(epoch_us(started_at))"
_TIMES = {
    "hour": f"strftime({_START}, '%Y-%m-%dT%H:00:00Z')",
    "day": f"strftime({_START}, '%Y-%m-%d')",
    "week": f"strftime(date_trunc('week', {_START}), '%Y-%m-%d')",
    "month": f"strftime({_START}, '%Y-%m')",
}
"""Dimensions of time as ``query`` writes them, UTC."""
_MODEL = ("model", "version", "provider", "region")


def rate_records(
    connection: duckdb.DuckDBPyConnection,
    question: Question,
    books: Sequence[PriceBook],
    *,
    tier: str | None = None,
    instead: Mapping[str, str | None] | None = None,
) -> str:
    """Make a table of rates, and return SQL of the question's records with what they cost by it.

    The SQL has the columns of ``records`` and ``rated_nano``, ``rated_currency`` (null without a rate).

    Args:
        connection: of ``open_export``.
        question: which records; its parameters are those of ``conditions``.
        books: see ``rating.Rater``.
        tier: whose rates.
        instead: what to take for ``model``, ``provider`` or ``region`` of all records: what they would have
            cost elsewhere.
    """
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE rate (model VARCHAR, version VARCHAR, provider VARCHAR, "
        "region VARCHAR, from_us BIGINT, until_us BIGINT, above BIGINT, upto BIGINT, currency VARCHAR, "
        "fresh HUGEINT, cached HUGEINT, output HUGEINT, reasoning HUGEINT, request HUGEINT)"
    )
    names = ", ".join(_MODEL)
    kinds = connection.execute(f"SELECT DISTINCT {names} FROM records").fetchall()
    rows = [
        row
        for kind in kinds
        for row in _boxes(books, dict(zip(_MODEL, kind, strict=True)) | dict(instead or {}), kind, tier)
    ]
    if rows:
        connection.executemany(f"INSERT INTO rate VALUES ({', '.join('?' * 14)})", rows)
    same = " AND ".join(f"r.{name} IS NOT DISTINCT FROM p.{name}" for name in _MODEL)
    view = "records_corrected" if question.corrected else "records"
    half = TOKENS_PER_RATE
    chosen, _ = conditions(question)
    return f"""SELECT r.*, p.currency AS rated_currency,
            (2 * ((r.input_tokens - coalesce(r.cached_input_tokens, 0)) * p.fresh
                  + coalesce(r.cached_input_tokens, 0) * p.cached
                  + (r.output_tokens - least(coalesce(r.reasoning_tokens, 0), r.output_tokens)) * p.output
                  + least(coalesce(r.reasoning_tokens, 0), r.output_tokens) * p.reasoning) + {half})
            // {2 * half} + p.request AS rated_nano
        FROM (SELECT * FROM {view}{chosen}) r LEFT JOIN rate p ON {same}
            AND epoch_us(r.started_at) >= p.from_us AND epoch_us(r.started_at) < p.until_us
            AND r.input_tokens > p.above AND r.input_tokens <= p.upto"""


def rated_groups(
    connection: duckdb.DuckDBPyConnection,
    question: Question,
    books: Sequence[PriceBook],
    *,
    tier: str | None = None,
    instead: Mapping[str, str | None] | None = None,
) -> list[dict[str, Any]]:
    """What the records of each group cost by ``books``, exactly.

    Returns:
        For each group its dimensions, ``records``, ``input_tokens``, ``cached_input_tokens``,
        ``output_tokens``, ``reasoning_tokens``; ``rated_records``; ``cost_nano`` and ``currency`` where one
        currency rates any; ``logged_nano``, ``logged_currency`` and ``logged_records`` where records state a
        cost in one currency; ``differing_records``, whose stated cost is another than the rated one.

    Raises:
        InvalidError: an unknown dimension.
    """
    for name in question.by:
        if name not in DIMENSIONS:
            raise InvalidError(
                f"cannot group by {name!r}",
                where="query",
                remedy=f"use {', '.join(DIMENSIONS)}",
                code="bad-parameter",
            )
    inner = rate_records(connection, question, books, tier=tier, instead=instead)
    keys = [f'{_TIMES.get(name, DIMENSIONS[name])} AS "{name}"' for name in question.by]
    sums = [
        "count(*)",
        "coalesce(sum(input_tokens), 0)",
        "coalesce(sum(cached_input_tokens), 0)",
        "coalesce(sum(output_tokens), 0)",
        "coalesce(sum(reasoning_tokens), 0)",
        "count(rated_nano)",
        "sum(rated_nano)",
        "min(rated_currency)",
        "count(DISTINCT rated_currency)",
        "count(cost_nano)",
        "sum(cost_nano)",
        "min(currency)",
        "count(DISTINCT currency)",
        "count(*) FILTER (cost_nano IS NOT NULL AND rated_nano IS NOT NULL "
        "AND (cost_nano <> rated_nano OR currency <> rated_currency))",
    ]
    grouped = " GROUP BY ALL ORDER BY ALL NULLS FIRST" if keys else ""
    _, parameters = conditions(question)
    found = connection.execute(f"SELECT {', '.join([*keys, *sums])} FROM ({inner}){grouped}", parameters)
    return [_group(question.by, values) for values in found.fetchall()]


def logged_usage(
    connection: duckdb.DuckDBPyConnection,
    question: Question,
    books: Iterable[PriceBook],
    *,
    attributed: Literal["started", "ended"] = "started",
) -> list[LoggedUsage]:
    """Usage by quarter of an hour and model, for ``ledger.cost.reconcile``.

    Args:
        connection: of ``open_export``.
        question: which records; its times are ``attributed`` ones.
        books: at whose bounds of length usage is told apart.
        attributed: whether requests count when they started or when they ended.
    """
    when = f"epoch_us({attributed}_at)"
    bounds = sorted({rate.above_input_tokens or 0 for book in books for rate in book.rates} - {0})
    longer = "".join(f" WHEN input_tokens > {bound} THEN {bound}" for bound in reversed(bounds))
    longer = f"CASE{longer} ELSE 0 END" if bounds else "0"
    estimated = "coalesce(list_contains(list_transform(quality, lambda q: q.name), 'usage_estimated'), false)"
    timeless = Question(where=question.where)
    chosen, parameters = conditions(timeless)
    for operator, bound in ((">=", question.from_us), ("<", question.to_us)):
        if bound is not None:
            chosen += f"{' AND' if chosen else ' WHERE'} {when} {operator} ?"
            parameters.append(bound)
    sums = [
        f"coalesce(sum({name}){condition}, 0)"
        for condition in ("", f" FILTER ({estimated})")
        for name in ("1", "input_tokens", "cached_input_tokens", "output_tokens")
    ]
    reasoning = "coalesce(sum(least(coalesce(reasoning_tokens, 0), output_tokens)), 0)"
    found = connection.execute(
        f"SELECT {when} // {QUARTER_US} AS quarter, model, version, provider, region, {longer} AS longer, "
        f"{', '.join(sums)}, {reasoning} FROM records{chosen} "
        "GROUP BY quarter, model, version, provider, region, longer ORDER BY ALL",
        parameters,
    )
    usage = []
    for quarter, model, version, provider, region, above, *values in found.fetchall():
        requests, inputs, cached, outputs, some, some_inputs, _, some_outputs, reasoned = map(int, values)
        usage.append(
            LoggedUsage(
                at_us=quarter * QUARTER_US,
                model=model,
                version=version,
                provider=provider,
                region=region,
                longer_than=above,
                requests=requests,
                input_tokens=inputs,
                cached_input_tokens=cached,
                output_tokens=outputs,
                reasoning_tokens=reasoned,
                estimated_requests=some,
                estimated_input_tokens=some_inputs,
                estimated_output_tokens=some_outputs,
            )
        )
    return usage


def _boxes(
    books: Sequence[PriceBook], wanted: Mapping[str, str | None], kind: tuple[Any, ...], tier: str | None
) -> list[tuple[Any, ...]]:
    """The rates of one model, for each stretch of time and of length: as ``rating.Rater`` finds them."""
    ordered = sorted(books, key=_from_us, reverse=True)
    known = [
        (
            book,
            find_rates(
                book,
                (wanted["version"], wanted["model"]),
                provider=wanted["provider"],
                region=wanted["region"],
                tier=tier,
            ),
        )
        for book in ordered
    ]
    times = sorted({0, _NO_END, *(max(0, _from_us(book)) for book in books), *map(_until_us, books)})
    lengths = sorted(
        {
            -1,
            _NO_END,
            *(rate.above_input_tokens for _, rates in known for rate in rates if rate.above_input_tokens),
        }
    )
    made = []
    for from_us, until_us in pairwise(times):
        for above, upto in pairwise(lengths):
            for book, rates in known:
                if not _from_us(book) <= from_us < _until_us(book):
                    continue
                rate = for_length(rates, above + 1)
                if rate is not None:
                    made.append(
                        (*kind, from_us, until_us, above, upto, book.currency, *_of(charges_of(rate)))
                    )
                    break
    return made


def _of(charges: Charges) -> tuple[int, ...]:
    return charges.input, charges.cached_input, charges.output, charges.reasoning, charges.request


def _from_us(book: PriceBook) -> int:
    return -1 if book.valid_from_us is UNSET else book.valid_from_us


def _until_us(book: PriceBook) -> int:
    return _NO_END if book.valid_until_us is UNSET else min(book.valid_until_us, _NO_END)


def _group(by: Sequence[str], values: tuple[Any, ...]) -> dict[str, Any]:
    keys, sums = values[: len(by)], values[len(by) :]
    records, inputs, cached, outputs, reasoning, rated, cost, currency, currencies, *logged = sums
    row: dict[str, Any] = dict(zip(by, keys, strict=True))
    row |= {
        "records": records,
        "input_tokens": int(inputs),
        "cached_input_tokens": int(cached),
        "output_tokens": int(outputs),
        "reasoning_tokens": int(reasoning),
        "rated_records": rated,
    }
    if currencies == 1:
        row |= {"cost_nano": int(cost), "currency": currency}
    stated, total, logged_currency, logged_currencies, differing = logged
    row["logged_records"] = stated
    if logged_currencies == 1:
        row |= {"logged_nano": int(total), "logged_currency": logged_currency}
    row["differing_records"] = differing
    return row


def made_by_deployment(connection: duckdb.DuckDBPyConnection, question: Question) -> list[Made]:
    """What each deployment made, for ``ledger.cost.self_hosted``."""
    chosen, parameters = conditions(question)
    view = "records_corrected" if question.corrected else "records"
    found = connection.execute(
        "SELECT deployment, model, site, accelerator, count(*), sum(input_tokens), sum(output_tokens), "
        "coalesce(sum(energy_uj), 0), count(energy_uj), count(*) FILTER (energy_method = 'measured') "
        f"FROM {view}{chosen} GROUP BY ALL ORDER BY ALL",
        parameters,
    )
    return [Made(*row[:4], *map(int, row[4:])) for row in found.fetchall()]


def span_us(connection: duckdb.DuckDBPyConnection, question: Question) -> tuple[int, int] | None:
    """The earliest start and the latest end of the question's records; None without any."""
    chosen, parameters = conditions(question)
    found = connection.execute(
        f"SELECT epoch_us(min(started_at)), epoch_us(max(ended_at)) FROM records{chosen}", parameters
    ).fetchone()
    return None if found is None or found[0] is None else (found[0], found[1])
