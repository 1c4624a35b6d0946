"""Owns how a provider's invoice or usage file is read: CSV or JSON in four forms, into plain lines.

Forms: ``focus``, a FOCUS cost and usage dataset (FinOps Foundation; 1.0 to 1.3); ``openai-usage`` and
``openai-costs``, what OpenAI's dashboard exports as CSV and its usage and costs API answer as JSON pages;
``plain``, the one that docs/how-to/costs.md describes, to which other files are mapped column by column.

A line counts tokens by kind. ``input_tokens`` of a row includes what a cache served where the row counts
that too, and ``output_tokens`` includes reasoning, as in a record; lines of one kind each (``input``,
``cached_input``) stand beside each other, so there ``input`` is what no cache served.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

from ledger.core.errors import InvalidError
from ledger.cost.invoice_rows import bad, csv_rows, decimal, json_rows, places, time_of, unix_us

__all__ = ["FIELDS", "FORMS", "KINDS", "MAX_INVOICE_BYTES", "Invoice", "Line", "kind_of", "read_invoice"]

MAX_INVOICE_BYTES = 256 << 20
MAX_LINES = 1_000_000
_NANO = 10**9

KINDS = ("input", "cached_input", "cache_write", "output", "reasoning", "tokens", "requests")
"""What lines count: tokens, ``tokens`` being input and output together; and ``requests``."""

FIELDS = (
    "start", "end", "model", "kind", "quantity", "unit", "input_tokens", "uncached_input_tokens",
    "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens", "requests", "amount",
    "currency", "tier", "provider", "region", "category", "item", "period_start", "period_end",
)  # fmt: skip
"""What can be told of a line; the column names of the form ``plain``. ``item`` names model and kind in one,
``gpt-4o-mini, cached input``; ``category`` other than ``Usage`` (taxes, credits) sets a line aside."""

FORMS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "focus": {
        "start": ("ChargePeriodStart",),
        "end": ("ChargePeriodEnd",),
        "model": ("x_Model", "ResourceName", "SkuId"),
        "kind": ("x_TokenType", "SkuMeter", "ChargeDescription"),
        "quantity": ("ConsumedQuantity", "PricingQuantity"),
        "unit": ("ConsumedUnit", "PricingUnit"),
        "amount": ("BilledCost",),
        "currency": ("BillingCurrency",),
        "tier": ("x_Tier",),
        "provider": ("ServiceProviderName", "ProviderName"),
        "region": ("RegionId",),
        "category": ("ChargeCategory",),
        "period_start": ("BillingPeriodStart",),
        "period_end": ("BillingPeriodEnd",),
    },
    "openai-usage": {
        "start": ("start_time", "start_time_iso"),
        "end": ("end_time", "end_time_iso"),
        "model": ("model",),
        "input_tokens": ("input_tokens",),
        "cached_input_tokens": ("input_cached_tokens",),
        "output_tokens": ("output_tokens",),
        "requests": ("num_model_requests",),
        "tier": ("batch",),
    },
    "openai-costs": {
        "start": ("start_time", "start_time_iso"),
        "end": ("end_time", "end_time_iso"),
        "item": ("line_item",),
        "quantity": ("quantity",),
        "unit": ("quantity_unit",),
        "amount": ("amount_value",),
        "currency": ("amount_currency",),
    },
    "plain": {name: (name,) for name in FIELDS},
}
"""For each form: field -> columns, the first of which that the file has is read."""
_SIGNS = {
    "focus": ("ChargePeriodStart", "BilledCost"),
    "openai-costs": ("start_time", "amount_value"),
    "openai-usage": ("start_time", "num_model_requests"),
}
_COUNTS = (
    "input_tokens", "uncached_input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens",
    "reasoning_tokens", "requests",
)  # fmt: skip
_THOUSAND = re.compile(r"(?:\b1[ ,.']?000\b|\b1? ?k\b|\bktok|thousand)", re.IGNORECASE).search
_MILLION = re.compile(r"(?:\b1[ ,.']?000[ ,.']?000\b|\b1? ?m\b|\bmtok|\b1m|million)", re.IGNORECASE).search


@dataclass(frozen=True)
class Line:
    """One line of an invoice.

    Attributes:
        number: of the line in its file; of the result, in JSON. From 1, the line of names being 1.
        from_us: beginning of its period, Unix microseconds.
        until_us: end of its period, exclusive.
        model: as the invoice names it.
        quantities: (kind, count) in the order of ``KINDS``; none if the line tells only an amount.
        cost_nano: what is charged, billionths of ``currency``; negative in credits. None if not told.
        currency: ISO 4217 code, None if not told.
        tier: such as ``batch``, None for the ordinary one.
        provider: who provides, None if not told.
        region: likewise.
    """

    number: int
    from_us: int
    until_us: int
    model: str
    quantities: tuple[tuple[str, int], ...]
    cost_nano: int | None = None
    currency: str | None = None
    tier: str | None = None
    provider: str | None = None
    region: str | None = None


@dataclass(frozen=True)
class Invoice:
    """An invoice's lines.

    Attributes:
        form: how it was read.
        lines: charges for usage, in the order of the file.
        others: charges that are not for usage (taxes, credits, support): numbers of their lines.
        others_nano: what those come to, by currency.
        amount_tolerance_nano: half of the last digit that amounts are written with, at least 1.
        quantity_tolerance: half of the last digit of quantities in thousands or millions; 0 where exact.
        period_us: the billing period, from and until, where the file states one.
    """

    form: str
    lines: tuple[Line, ...]
    others: tuple[int, ...] = ()
    others_nano: tuple[tuple[str, int], ...] = ()
    amount_tolerance_nano: int = 1
    quantity_tolerance: int = 0
    period_us: tuple[int, int] | None = None


def kind_of(text: str) -> str | None:
    """Which kind of token (or requests) a meter's or line item's words speak of; None if of none."""
    said = text.lower().replace("-", " ").replace("_", " ")
    if "cach" in said:
        if "uncached" in said or "non cached" in said or "not cached" in said or "miss" in said:
            return "input"
        return "cache_write" if "writ" in said or "creat" in said else "cached_input"
    for kind, words in (
        ("reasoning", ("reason", "think", "thought")),
        ("output", ("output", "completion", "generated")),
        ("input", ("input", "prompt")),
        ("requests", ("request",)),
        ("tokens", ("token",)),
    ):
        if any(word in said for word in words):
            return kind
    return None


def read_invoice(
    data: bytes,
    *,
    form: str | None = None,
    columns: Mapping[str, str] | None = None,
    currency: str | None = None,
    zone: ZoneInfo | None = None,
    where: str = "invoice",
) -> Invoice:
    """Read an invoice.

    Args:
        data: the file's bytes: CSV in UTF-8, separated by commas, semicolons or tabs, with a line of names;
            or JSON as OpenAI's API answers.
        form: one of ``FORMS``; told by the columns if None.
        columns: field -> column, for files that name them otherwise; the rest is as in ``form``.
        currency: of amounts where the file tells none.
        zone: whose days dates without an offset are; UTC if None.

    Raises:
        InvalidError: it cannot be read so; ``where`` names the line.
    """
    if len(data) > MAX_INVOICE_BYTES:
        raise bad(f"has more than {MAX_INVOICE_BYTES} bytes", where)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise bad("is not UTF-8", where, "save it as CSV in UTF-8") from None
    first_line = 1 if text.lstrip()[:1] in ("{", "[") else 2
    names, rows = json_rows(text, where) if first_line == 1 else csv_rows(text, where)
    chosen = _form(form, names, where, mapped=bool(columns))
    fields = _fields(FORMS[chosen], columns or {}, names, where)
    reader = _Reader(fields, currency, ZoneInfo("UTC") if zone is None else zone)
    for number, row in rows:
        reader.add(number, row, f"{where}:{number}")
    if not reader.lines and not reader.others:
        raise bad("has no line that charges or counts anything", where)
    return reader.invoice(chosen)


class _Reader:
    """Makes lines of rows, and remembers how precisely they are written."""

    def __init__(self, fields: Mapping[str, str], currency: str | None, zone: ZoneInfo) -> None:
        self._fields = fields
        self._currency = currency
        self._zone = zone
        self.lines: list[Line] = []
        self.others: list[int] = []
        self._others: dict[str, int] = {}
        self._places = 0  # of amounts
        self._step = Decimal(0)  # the coarsest last digit of a quantity, in tokens
        self._period: tuple[int, int] | None = None

    def invoice(self, form: str) -> Invoice:
        """What was read."""
        tolerance = max(1, 10 ** max(0, 9 - self._places) // 2)
        return Invoice(
            form,
            tuple(self.lines),
            tuple(self.others),
            tuple(sorted(self._others.items())),
            tolerance,
            int(self._step / 2) if self._step > 1 else 0,
            self._period,
        )

    def add(self, number: int, row: Mapping[str, str], where: str) -> None:
        """Read one row; rows that neither count nor charge anything are empty periods, and left out."""

        def cell(name: str) -> str:
            return row.get(self._fields[name], "").strip() if name in self._fields else ""

        amount = cell("amount")
        cost = None if not amount else self._amount(amount, where)
        counts = {name: self._count(told, 1, where) for name in _COUNTS if (told := cell(name))}
        if not counts and not cell("quantity") and cost is None:
            return
        currency = (cell("currency") or self._currency or "").upper() or None
        category = cell("category")
        if category and category.casefold() != "usage":
            self.others.append(number)
            if cost is not None:
                name = currency or ""
                self._others[name] = self._others.get(name, 0) + cost
            return
        from_us, until_us = self._times(cell("start"), cell("end"), where)
        model, kind = _item(cell("item"), cell("model"), cell("kind"))
        if not model:
            raise bad("names no model", where, "map a column: --column model=NAME")
        quantities = _told(counts)
        if cell("quantity"):
            unit = cell("unit")
            kind = kind or kind_of(unit)
            if kind is None:
                raise bad(
                    f"does not say what it counts ({(cell('kind') or cell('item') or unit)[:80]!r})",
                    where,
                    f"map a column: --column kind=NAME, whose cells tell one of {', '.join(KINDS)}",
                )
            times = 1_000_000 if _MILLION(unit) else 1000 if _THOUSAND(unit) else 1
            quantities = {kind: self._count(cell("quantity"), times, where)}
        if cell("period_start") and cell("period_end"):
            low, high = self._times(cell("period_start"), cell("period_end"), where)
            low, high = (
                (low, high)
                if self._period is None
                else (min(low, self._period[0]), max(high, self._period[1]))
            )
            self._period = (low, high)
        self.lines.append(
            Line(
                number,
                from_us,
                until_us,
                model,
                tuple((name, quantities[name]) for name in KINDS if name in quantities),
                cost,
                currency,
                _tier(cell("tier")),
                cell("provider") or None,
                cell("region") or None,
            )
        )
        if len(self.lines) > MAX_LINES:
            raise bad(f"has more than {MAX_LINES} lines", where)

    def _amount(self, text: str, where: str) -> int:
        value = decimal(text, where)
        self._places = max(self._places, places(value))
        return int((value * _NANO).to_integral_value(rounding="ROUND_HALF_UP"))

    def _count(self, text: str, times: int, where: str) -> int:
        value = decimal(text, where)
        if value < 0:
            raise bad(f"counts {text[:40]!r}", where, "credits are charges of another category")
        exact = value * times
        if times > 1 or exact != exact.to_integral_value():
            self._step = max(self._step, times * Decimal(10) ** -places(value))
        return int(exact.to_integral_value(rounding="ROUND_HALF_UP"))

    def _times(self, start: str, end: str, where: str) -> tuple[int, int]:
        if not start:
            raise bad("tells no date", where, "map a column: --column start=NAME")
        begins = time_of(start, self._zone, where)
        if end:
            ends = time_of(end, self._zone, where)
        else:
            day = begins.astimezone(self._zone).date() + timedelta(days=1)
            ends = datetime(day.year, day.month, day.day, tzinfo=self._zone)
        from_us, until_us = unix_us(begins), unix_us(ends)
        if until_us <= from_us:
            raise bad("its period ends before it begins", where, "the end is exclusive: the next day")
        return from_us, until_us


def _told(counts: Mapping[str, int]) -> dict[str, int]:
    """Quantities by kind, from columns that include one another."""
    found: dict[str, int] = {}
    cached, written = counts.get("cached_input_tokens"), counts.get("cache_write_tokens")
    if "uncached_input_tokens" in counts:
        found["input"] = counts["uncached_input_tokens"]
    elif "input_tokens" in counts:
        found["input"] = max(0, counts["input_tokens"] - (cached or 0) - (written or 0))
    known = (("cached_input", cached), ("cache_write", written))
    found |= {kind: count for kind, count in known if count is not None}
    reasoning = counts.get("reasoning_tokens")
    if "output_tokens" in counts:
        found["output"] = max(0, counts["output_tokens"] - (reasoning or 0))
    if reasoning is not None:
        found["reasoning"] = reasoning
    if "requests" in counts:
        found["requests"] = counts["requests"]
    return found


def _item(item: str, model: str, kind: str) -> tuple[str, str | None]:
    """Model and kind, from columns of their own or from one line item that names both."""
    if item and not model:
        model, _, rest = item.partition(",")
        kind = kind or rest
    return model.strip()[:256], (kind if kind in KINDS else kind_of(kind)) if kind else None


def _tier(text: str) -> str | None:
    """The tier that a cell tells; ``batch`` of OpenAI is true or false."""
    said = text.casefold()
    if said == "true":
        return "batch"
    return None if said in ("", "false", "default", "standard", "auto") else said[:64]


def _form(form: str | None, names: Iterable[str], where: str, *, mapped: bool) -> str:
    if form is not None:
        if form not in FORMS:
            raise InvalidError(
                f"there is no form {form!r}",
                where=where,
                remedy=f"use {', '.join(FORMS)}",
                code="bad-parameter",
            )
        return form
    known = set(names)
    for each, signs in _SIGNS.items():
        if not mapped and known.issuperset(signs):
            return each
    return "plain"


def _fields(
    form: Mapping[str, tuple[str, ...]], columns: Mapping[str, str], names: Iterable[str], where: str
) -> dict[str, str]:
    known = set(names)
    for name, column in columns.items():
        if name not in FIELDS or column not in known:
            what = f"there is no field {name!r}" if name not in FIELDS else f"has no column {column!r}"
            choice = FIELDS if name not in FIELDS else sorted(known)
            raise InvalidError(
                what, where=where, remedy=f"use {', '.join(choice)[:1000]}", code="bad-parameter"
            )
    free = known - set(columns.values())  # a column that is mapped means nothing else
    found = {
        field: next(name for name in candidates if name in free)
        for field, candidates in form.items()
        if any(name in free for name in candidates)
    } | dict(columns)
    for needed, told in (("start", ("start",)), ("model", ("model", "item"))):
        if not any(name in found for name in told):
            raise bad(
                f"has no column that tells the {needed}",
                where,
                f"map one: --column {needed}=NAME; it has {', '.join(sorted(known))[:500]}",
            )
    return found
