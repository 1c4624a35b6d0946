"""Reads files of quality metrics (JSON or CSV) and makes evaluations of them, exact to the digit.

A value is a decimal number and becomes an integer with a scale, never a float: ``0.871`` is 871 with scale
3. CSV has a column ``record``, ``statement`` or ``deployment`` and one for each metric; JSON is an array of
objects with the same names and ``metrics``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from msgspec import UNSET

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.errors import InvalidError
from ledger.core.records import Quality
from ledger.core.statements import Evaluation
from ledger.emit.submission import MAX_CONTENTS, UNPLACED

__all__ = ["ABOUT", "KNOWN_METRICS", "Metric", "evaluation", "quality_of", "read_evaluations"]

ABOUT = ("record", "statement", "deployment")
"""What an evaluation can be about: a record's id, a statement's leaf hash, a deployment's digest."""
MAX_FILE_BYTES = 32 << 20
_MAX_SCALE = 9
_MAX_TEXT = 64
_MAX_COLUMNS = 65


@dataclass(frozen=True)
class Metric:
    """A metric whose range is known: a value outside of it is a mistake, most often of scale."""

    low: int | None
    high: int | None
    meaning: str


KNOWN_METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(0, 1, "share of right answers, from 0 to 1"),
    "toxicity": Metric(0, 1, "share or probability of toxic output, from 0 to 1"),
    "human_rating": Metric(None, None, "rating by a person, on the evaluator's own scale"),
    "perplexity": Metric(1, None, "perplexity, at least 1"),
    "verifier_score": Metric(None, None, "score of a verifier or reward model, on its own scale"),
}
"""Any other name can be used too; its range is not checked."""


def quality_of(name: str, value: object, *, where: str = "metric") -> Quality:
    """The exact quality value of a decimal number.

    Args:
        name: the metric.
        value: an integer, a decimal, its text, or an object with ``value`` and ``scale``.
        where: the place, for errors.

    Raises:
        InvalidError: not a number, too fine (more than 9 decimal places), or outside of a known range.
    """
    if isinstance(value, dict):
        scaled = value.get("value"), value.get("scale")
        if value.keys() != {"value", "scale"} or not all(type(each) is int for each in scaled):
            raise _bad(f"{name} must have the integers value and scale", where)
        number, scale = scaled
        assert isinstance(number, int) and isinstance(scale, int)  # noqa: S101, PT018 - seen above
        if not 0 <= scale <= _MAX_SCALE:
            raise _bad(f"{name} has scale {scale}; it is from 0 to {_MAX_SCALE}", where)
    else:
        if isinstance(value, bool | float) or not isinstance(value, str | int | Decimal):
            raise _bad(f"{name} is not a decimal number", where)
        text = str(value).strip()
        try:
            decimal = Decimal(text) if len(text) <= _MAX_TEXT else Decimal("NaN")
        except InvalidOperation:
            decimal = Decimal("NaN")
        sign, digits, exponent = decimal.as_tuple()
        if not isinstance(exponent, int) or abs(exponent) > _MAX_TEXT:
            raise _bad(f"{name} is {text[:40]!r}, not a decimal number", where)
        scale = max(0, -exponent)
        if scale > _MAX_SCALE:
            raise _bad(f"{name} has {scale} decimal places; at most {_MAX_SCALE} are kept", where)
        number = int("".join(map(str, digits))) * 10 ** max(0, exponent) * (-1 if sign else 1)
    if abs(number) > MAX_SAFE_INTEGER:
        raise _bad(f"{name} has more digits than 2^53 - 1", where)
    known = KNOWN_METRICS.get(name)
    if known is not None and (
        (known.low is not None and number < known.low * 10**scale)
        or (known.high is not None and number > known.high * 10**scale)
    ):
        raise _bad(f"{name} is outside of its range: {known.meaning}", where)
    return Quality(value=number, scale=scale)


def evaluation(evaluator: str, metrics: Mapping[str, object], **about: str) -> Evaluation:
    """An evaluation, to be given to ``submit``.

    Args:
        evaluator: who or what measured: a model's or a person's pseudonym, a benchmark and its version.
        metrics: value of each metric, as ``quality_of`` takes it.
        **about: exactly one of ``record``, ``statement``, ``deployment``.

    Raises:
        InvalidError: a value is not exact, or not exactly one thing is evaluated.
    """
    if len(about) != 1 or about.keys() - set(ABOUT):
        raise _bad(f"an evaluation is about exactly one of {', '.join(ABOUT)}", "evaluation")
    (identity,) = about.values()
    where = f"evaluation of {identity}"
    if not metrics:
        raise _bad("has no metric", where)
    found = {name: quality_of(name, value, where=where) for name, value in sorted(metrics.items())}
    return Evaluation(
        evaluator=evaluator,
        metrics=found,
        **UNPLACED,
        **{name: about.get(name, UNSET) for name in ABOUT},  # type: ignore[arg-type]
    )


def read_evaluations(data: bytes, *, evaluator: str, where: str = "file") -> list[Evaluation]:
    """The evaluations in a file's bytes; JSON if it begins with a bracket, else CSV.

    Raises:
        InvalidError: too large, or a row is not sound; ``where`` names it.
    """
    if len(data) > MAX_FILE_BYTES:
        raise InvalidError(
            f"has more than {MAX_FILE_BYTES} bytes", where=where, remedy="split it", code="too-large"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _bad("is not UTF-8 text", where) from None
    rows = _json_rows(text, where) if text.lstrip()[:1] in ("[", "{") else _csv_rows(text, where)
    made: list[Evaluation] = []
    for place, about, metrics in rows:
        if len(made) == MAX_CONTENTS:
            raise InvalidError(
                f"has more than {MAX_CONTENTS:,} rows", where=where, remedy="split it", code="too-large"
            )
        try:
            made.append(evaluation(evaluator, metrics, **about))
        except InvalidError as error:
            raise _bad(error.what, place) from None
    if not made:
        raise _bad("has no evaluation", where)
    return made


_Row = tuple[str, dict[str, str], dict[str, Any]]


def _csv_rows(text: str, where: str) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [each.strip() for each in next(reader, [])]
        if len(names) > _MAX_COLUMNS or len(set(names)) < len(names):
            raise _bad(f"has a column twice, or more than {_MAX_COLUMNS}", f"{where}, line 1")
        if not set(ABOUT) & set(names) or not set(names) - set(ABOUT):
            raise _bad(f"the first line must name {' or '.join(ABOUT)}, and the metrics", f"{where}, line 1")
        for row in reader:
            place = f"{where}, line {reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                raise _bad(f"has {len(row)} cells, but the first line {len(names)}", place)
            cells = {name: cell.strip() for name, cell in zip(names, row, strict=True) if cell.strip()}
            about = {name: cells.pop(name) for name in ABOUT if name in cells}
            yield place, about, cells
    except csv.Error as error:
        raise _bad(f"is not CSV: {error}", f"{where}, line {reader.line_num}") from None


def _json_rows(text: str, where: str) -> Iterator[_Row]:
    def no_constant(name: str) -> Any:
        raise _bad(f"has {name}, which is no number", where)

    try:
        rows = json.loads(text, parse_float=Decimal, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise _bad(f"is not JSON: {str(error)[:200]}", where) from None
    if not isinstance(rows, list):
        raise _bad("is not an array of evaluations", where)
    for number, row in enumerate(rows, 1):
        place = f"{where}, number {number}"
        if not isinstance(row, dict) or row.keys() - {*ABOUT, "metrics"}:
            raise _bad(f"must be an object with metrics and one of {', '.join(ABOUT)}", place)
        about, metrics = {name: row[name] for name in ABOUT if name in row}, row.get("metrics")
        if not isinstance(metrics, dict) or not all(isinstance(each, str) for each in about.values()):
            raise _bad(f"must be an object with metrics and one of {', '.join(ABOUT)}", place)
        yield place, about, metrics


def _bad(what: str, where: str) -> InvalidError:
    return InvalidError(
        what,
        where=where,
        remedy="write decimal numbers such as 0.871; see docs/how-to/evaluate.md",
        code="bad-evaluation",
    )
