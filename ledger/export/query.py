"""Owns questions over an export: filters, groups, exact totals, percentiles and intensities.

Totals are exact integers of any size (DuckDB's HUGEINT). A figure that no record of a group has is absent,
and each total comes with how many records have it, so that one over half the records cannot pass for one over
all. Intensities divide a figure's total by the tokens (input and output, ``*_tokens``) or the number of the
records that have that figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger.core.errors import InvalidError
from ledger.export.quality import quality_by_group
from ledger.export.reading import open_export

if TYPE_CHECKING:
    import duckdb

__all__ = ["DIMENSIONS", "FIGURES", "FILTERS", "PERCENTILES", "Question", "ask", "conditions"]

DIMENSIONS: Mapping[str, str] = {
    "hour": "epoch_us(started_at) // 3600000000",
    "day": "epoch_us(started_at) // 86400000000",
    "week": "(epoch_us(started_at) // 86400000000 + 3) // 7",
    "month": "year({date}) * 12 + month({date}) - 1".format(
        date="make_date((epoch_us(started_at) // 86400000000)::INTEGER)"
    ),
    "model": "model",
    "version": "version",
    "deployment": "deployment",
    "engine": "engine",
    "engine_version": "engine_version",
    "quantization": "quantization",
    "accelerator": "accelerator",
    "provider": "provider",
    "region": "region",
    "site": "site",
    "tenant": "tenant",
    "issuer": "issuer",
    "finish_reason": "finish_reason",
    "method": "energy_method",
    "energy_source": "energy_source",
    "factors": "factors",
    "currency": "currency",
}
"""What can be grouped by, and its SQL. Times are numbers there: those group several times faster."""

_EPOCH = date(1970, 1, 1)


def _day(number: int) -> date:
    return _EPOCH + timedelta(days=number)


_TIMES: Mapping[str, tuple[str, Callable[[int], str], Callable[[str], int]]] = {
    "hour": (
        "2026-01-31T12:00:00Z",
        lambda n: f"{_day(n // 24)}T{n % 24:02d}:00:00Z",
        lambda text: (
            int(datetime.strptime(text, "%Y-%m-%dT%H:00:00Z").replace(tzinfo=UTC).timestamp()) // 3600
        ),
    ),
    "day": ("2026-01-31", lambda n: str(_day(n)), lambda text: (date.fromisoformat(text) - _EPOCH).days),
    "week": (
        "2026-01-26, its Monday",
        lambda n: str(_day(7 * n - 3)),
        lambda text: ((date.fromisoformat(text) - _EPOCH).days + 3) // 7,
    ),
    "month": (
        "2026-01",
        lambda n: f"{n // 12:04d}-{n % 12 + 1:02d}",
        lambda text: date.fromisoformat(f"{text}-01").year * 12 + date.fromisoformat(f"{text}-01").month - 1,
    ),
}
"""For each dimension of time: an example, how its number is written, how that is read. All in UTC."""

FILTERS: Mapping[str, str] = {**DIMENSIONS, "record": "id"}
"""What can be filtered on: besides, one record by its id."""

FIGURES = (
    "cached_input_tokens",
    "reasoning_tokens",
    "drafted_tokens",
    "accepted_tokens",
    "energy_uj",
    "carbon_ng",
    "carbon_market_ng",
    "embodied_ng",
    "water_nl",
    "cost_nano",
)
"""Totalled where a record has them. ``cost_nano`` adds up within one currency only, ``cost_currency``; it is
null, and the cost absent, where there are several."""

_RANGED = {"energy_uj": ("energy_low_uj", "energy_high_uj"), "carbon_ng": ("carbon_low_ng", "carbon_high_ng")}
_SUMMED = (*FIGURES, *(bound for bounds in _RANGED.values() for bound in bounds))
_INTENSITIES = ("energy_uj", "carbon_ng", "carbon_market_ng", "embodied_ng", "water_nl", "cost_nano")
PERCENTILES: Mapping[str, str] = {
    "duration_us": "epoch_us(ended_at) - epoch_us(started_at)",
    "first_token_us": "epoch_us(first_token_at) - epoch_us(started_at)",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "energy_uj": "energy_uj",
}
"""Distributions: the percentile is the value of a record that is there, never one in between."""
_LEVELS = (50, 90, 95, 99)
_MAX_GROUPS = 1_000_000


@dataclass(frozen=True)
class Question:
    """What is asked of an export.

    Attributes:
        by: dimensions to group by, in order; none gives one row.
        where: dimension, or ``record``, -> values, of which a record must have one; an empty string asks
            for absence.
        from_us: records started then or later, Unix microseconds.
        to_us: records started before.
        corrected: whether restated figures replace those first logged.
        percentiles: whether to add the distributions.
        quality: whether to add the means of quality metrics.
    """

    by: Sequence[str] = ()
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    from_us: int | None = None
    to_us: int | None = None
    corrected: bool = True
    percentiles: bool = False
    quality: bool = False


def ask(export: Path | duckdb.DuckDBPyConnection, question: Question) -> list[dict[str, Any]]:
    """Answer ``question``, one row for each group, ordered by the groups' keys (absent ones first).

    Corrections are never silent: a row with restated records has ``corrected_records``, and ``as_logged``
    with those of its figures that were others as first logged (null where no record had stated one).

    Args:
        export: the export's folder, or a connection that ``open_export`` made.

    Raises:
        InvalidError: an unknown dimension, or no export.
    """
    _check_names(question.by, DIMENSIONS)
    _check_names(question.where, FILTERS)
    if isinstance(export, Path):
        with open_export(export) as connection:
            return _answer(connection, question)
    return _answer(export, question)


def _check_names(names: Iterable[str], known: Mapping[str, str]) -> None:
    for name in names:
        if name not in known:
            raise InvalidError(
                f"cannot group by or filter on {name!r}",
                where="query",
                remedy=f"use {', '.join(known)}",
                code="bad-parameter",
            )


def _answer(connection: duckdb.DuckDBPyConnection, question: Question) -> list[dict[str, Any]]:
    rows = _rows(connection, *_sql(question), question)
    keys = [tuple(row[name] for name in question.by) for row in rows]
    if any("corrected_records" in row for row in rows):
        plain = replace(question, corrected=False, percentiles=False)
        logged = _rows(connection, *_sql(plain), plain)
        by_key = {tuple(row[name] for name in question.by): row for row in logged}
        for key, row in zip(keys, rows, strict=True):
            # A restated word (method) can put a record into another group: then nothing stands beside it.
            before = by_key.get(key, {})
            if "corrected_records" in row:
                row["as_logged"] = {
                    name: before.get(name) for name in _SUMMED if row.get(name) != before.get(name)
                }
    if question.quality:
        chosen = [(name, DIMENSIONS[name]) for name in question.by]
        found = quality_by_group(connection, _view(question), chosen, *conditions(question))
        shown = {
            tuple(
                _TIMES[name][1](part) if name in _TIMES else part
                for name, part in zip(question.by, key, strict=True)
            ): metrics
            for key, metrics in found.items()
        }
        for key, row in zip(keys, rows, strict=True):
            if key in shown:
                row["quality"] = shown[key]
    return rows


def _sql(question: Question) -> tuple[str, list[Any]]:
    keys = [f'{DIMENSIONS[name]} AS "{name}"' for name in question.by]
    sums = ["count(*) AS records", "sum(input_tokens) AS input_tokens", "sum(output_tokens) AS output_tokens"]
    for name in FIGURES:
        sums += [f"sum({name}) AS {name}", f"count({name}) AS {name}_records"]
    for name, (low, high) in _RANGED.items():
        # A record without a range is known as well as its figure: its range is the figure.
        sums += [f"sum(coalesce({low}, {name})) AS {low}", f"sum(coalesce({high}, {name})) AS {high}"]
    for name in _INTENSITIES:
        sums.append(f"sum(input_tokens + output_tokens) FILTER ({name} IS NOT NULL) AS _{name}_tokens")
    sums.append("min(currency) AS _currency, max(currency) AS _other_currency")
    if question.corrected:
        sums.append("count(*) FILTER (corrected) AS corrected_records")
    if question.percentiles:
        levels = ", ".join(str(level / 100) for level in _LEVELS)
        sums += [f"quantile_disc({value}, [{levels}]) AS _p_{name}" for name, value in PERCENTILES.items()]
    chosen, parameters = conditions(question)
    grouped = " GROUP BY ALL ORDER BY ALL NULLS FIRST" if keys else ""
    sql = f"SELECT {', '.join([*keys, *sums])} FROM {_view(question)}{chosen}{grouped} LIMIT {_MAX_GROUPS}"  # noqa: S608
    return sql, parameters


def _view(question: Question) -> str:
    return "records_corrected" if question.corrected else "records"


def conditions(question: Question) -> tuple[str, list[Any]]:
    """The question's filters as a WHERE clause (empty without any) and its parameters.

    Raises:
        InvalidError: an unknown dimension, or a time that is none.
    """
    _check_names(question.where, FILTERS)
    parts: list[str] = []
    parameters: list[Any] = []
    for operator, bound in ((">=", question.from_us), ("<", question.to_us)):
        if bound is not None:
            parts.append(f"started_at {operator} make_timestamptz(?::BIGINT)")
            parameters.append(bound)
    for name, values in question.where.items():
        chosen = [value for value in values if value]
        either = [f"{FILTERS[name]} IN ({', '.join('?' * len(chosen))})"] if chosen else []
        either += [f"{FILTERS[name]} IS NULL"] if len(chosen) < len(values) else []
        parts.append(f"({' OR '.join(either) or 'false'})")
        parameters += [_key(name, value) for value in chosen] if name in _TIMES else chosen
    return (f" WHERE {' AND '.join(parts)}" if parts else ""), parameters


def _key(name: str, text: str) -> int:
    example, _, read = _TIMES[name]
    try:
        return read(text)
    except ValueError:
        raise InvalidError(
            f"{text!r} is no {name}", where="query", remedy=f"write it as {example}", code="bad-parameter"
        ) from None


def _rows(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: list[Any], question: Question
) -> list[dict[str, Any]]:
    found = connection.execute(sql, parameters)
    names = [column[0] for column in found.description or ()]
    return [_row(dict(zip(names, values, strict=True)), question) for values in found.fetchall()]


def _row(found: dict[str, Any], question: Question) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: _TIMES[name][1](found[name]) if name in _TIMES else found[name] for name in question.by
    }
    row["records"] = found["records"]
    for name in ("input_tokens", "output_tokens"):
        row[name] = int(found[name] or 0)
    currency, mixed = found["_currency"], found["_currency"] != found["_other_currency"]
    for name in FIGURES:
        if found[name] is None or (name == "cost_nano" and mixed):
            continue
        row[name] = int(found[name])
        for bound in _RANGED.get(name, ()):
            row[bound] = int(found[bound])
        row[f"{name}_records"] = found[f"{name}_records"]
    if currency is not None:
        row["cost_currency"] = None if mixed else currency
    for name in _INTENSITIES:
        if name in row:
            row[f"{name}_tokens"] = int(found[f"_{name}_tokens"])
            row |= _intensities(name, row, row[f"{name}_tokens"])
    if question.corrected and found["corrected_records"]:
        row["corrected_records"] = found["corrected_records"]
    if question.percentiles:
        for name in PERCENTILES:
            values = found[f"_p_{name}"]
            if values is not None:
                row |= {f"{name}_p{level}": int(v) for level, v in zip(_LEVELS, values, strict=True)}
    return row


def _intensities(name: str, row: Mapping[str, int], tokens: int) -> dict[str, int]:
    """Per thousand tokens and per request, rounded half up; absent where nothing was generated."""
    made = {f"{name}_per_request": _rounded(row[name], row[f"{name}_records"])}
    if tokens:
        made[f"{name}_per_1k_tokens"] = _rounded(1000 * row[name], tokens)
        for bound in _RANGED.get(name, ()):
            made[f"{bound}_per_1k_tokens"] = _rounded(1000 * row[bound], tokens)
    return made


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
