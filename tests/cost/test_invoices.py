"""Reading invoices: forms of numbers, times and words; and any bytes are an invoice or refused."""

from __future__ import annotations

import json
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.core.errors import InvalidError
from ledger.cost.invoices import FIELDS, Invoice, Line, kind_of, read_invoice

DAY_US = 86_400_000_000


def read(text: str, **options: object) -> Invoice:
    return read_invoice(text.encode(), **options)  # type: ignore[arg-type]


def line(text: str, **options: object) -> Line:
    (found,) = read(text, **options).lines
    return found


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("input_tokens", "input"),
        ("Prompt tokens", "input"),
        ("gpt-4o, cached input", "cached_input"),
        ("input_cache_hit_tokens", "cached_input"),
        ("input_cache_miss_tokens", "input"),
        ("uncached input", "input"),
        ("Cache read", "cached_input"),
        ("cache creation input tokens", "cache_write"),
        ("5m cache writes", "cache_write"),
        ("Output tokens", "output"),
        ("completion", "output"),
        ("reasoning output", "reasoning"),
        ("request_count", "requests"),
        ("1K tokens", "tokens"),
        ("Support plan", None),
    ],
)
def test_words_for_kinds(words: str, kind: str | None) -> None:
    assert kind_of(words) == kind


@pytest.mark.parametrize(
    ("start", "end", "zone", "expected"),
    [
        ("2026-03-29", "", "Europe/Paris", (1_774_738_800, 23)),
        ("2026-10-25", "", "Europe/Paris", (1_792_879_200, 25)),
        ("2026-10-25", "2026-10-26", "UTC", (1_792_886_400, 24)),
        ("2026-10-25T00:00:00+02:00", "2026-10-25T01:00:00+02:00", "UTC", (1_792_879_200, 1)),
        ("1792886400", "1792972800", "Europe/Paris", (1_792_886_400, 24)),
        ("1792886400000", "1792972800000", "Europe/Paris", (1_792_886_400, 24)),
        ("2026-10-25 00:00:00 UTC", "2026-10-26T00:00:00Z", "Europe/Paris", (1_792_886_400, 24)),
    ],
)
def test_times_and_zones(start: str, end: str, zone: str, expected: tuple[int, int]) -> None:
    found = line(f"start,end,model,input_tokens\n{start},{end},m,1\n", zone=ZoneInfo(zone))
    assert (found.from_us, found.until_us) == (
        expected[0] * 10**6,
        (expected[0] + 3600 * expected[1]) * 10**6,
    )


@pytest.mark.parametrize(
    ("quantity", "unit", "count", "tolerance"),
    [
        ("1234567", "Tokens", 1_234_567, 0),
        ("1234.567", "1000 tokens", 1_234_567, 0),
        ("1234.5", "1K tokens", 1_234_500, 50),
        ("1.234567", "1M tokens", 1_234_567, 0),
        ("1.2", "MTok", 1_200_000, 50_000),
        ("1,234,567", "Tokens", 1_234_567, 0),
        ("12.0", "Tokens", 12, 0),
    ],
)
def test_quantities_and_their_units(quantity: str, unit: str, count: int, tolerance: int) -> None:
    found = read(f'start,model,kind,quantity,unit\n2026-10-01,m,output,"{quantity}",{unit}\n')
    assert found.lines[0].quantities == (("output", count),)
    assert found.quantity_tolerance == tolerance


@pytest.mark.parametrize(
    ("amounts", "nano", "tolerance"),
    [
        (("1.5", "2.25"), 1_500_000_000, 5_000_000),
        (("0.0038359800000000", "1"), 3_835_980, 1),
        (("$1,234.50",), 1_234_500_000_000, 5_000_000),
        (("3", "4"), 3_000_000_000, 500_000_000),
    ],
)
def test_amounts_are_as_exact_as_they_are_written(
    amounts: tuple[str, ...], nano: int, tolerance: int
) -> None:
    rows = "".join(f'2026-10-01,m,1,"{amount}"\n' for amount in amounts)
    found = read(f"start,model,input_tokens,amount\n{rows}", currency="usd")
    assert found.lines[0].cost_nano == nano
    assert found.lines[0].currency == "USD"
    assert found.amount_tolerance_nano == tolerance


def test_columns_that_include_each_other() -> None:
    names = "start,model,input_tokens,cached_input_tokens,cache_write_tokens,output_tokens,reasoning_tokens"
    found = line(f"{names},requests\n2026-10-01,m,100,30,20,50,5,3\n")
    assert dict(found.quantities) == {
        "input": 50,
        "cached_input": 30,
        "cache_write": 20,
        "output": 45,
        "reasoning": 5,
        "requests": 3,
    }


def test_openai_costs_with_empty_buckets_and_items() -> None:
    text = (
        "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,quantity,quantity_unit,line_item\n"
        "1790467200,1790553600,a,b,,,,,\n"
        '1790553600,1790640000,a,b,0.500000000000000,usd,1000,tokens,"gpt-5-nano, cached input"\n'
    )
    found = read(text)
    assert found.form == "openai-costs"
    assert found.lines == (
        Line(
            3,
            1790553600_000_000,
            1790640000_000_000,
            "gpt-5-nano",
            (("cached_input", 1000),),
            500_000_000,
            "USD",
        ),
    )


def test_focus_with_taxes_and_a_billing_period() -> None:
    names = (
        "BilledCost,BillingCurrency,BillingPeriodStart,BillingPeriodEnd,ChargeCategory,ChargePeriodStart,"
        "ChargePeriodEnd,ConsumedQuantity,ConsumedUnit,ProviderName,RegionId,ResourceName,SkuMeter"
    )
    period = "2026-10-01T00:00:00Z,2026-11-01T00:00:00Z"
    day = "2026-10-02T00:00:00Z,2026-10-03T00:00:00Z"
    found = read(
        f"{names}\n0.5,USD,{period},Usage,{day},1000,Tokens,OpenAI,eu,gpt-4o,Output tokens\n"
        f"0.1,USD,{period},Tax,{day},,,OpenAI,eu,,\n"
    )
    assert found.form == "focus"
    assert found.period_us == (1_790_812_800_000_000, 1_793_491_200_000_000)
    assert found.lines[0].quantities == (("output", 1000),)
    assert (found.lines[0].provider, found.lines[0].region) == ("OpenAI", "eu")
    assert (found.others, found.others_nano) == ((3,), (("USD", 100_000_000),))


def test_a_mapped_column_means_nothing_else() -> None:
    """A provider whose ``amount`` is a count, and whose kinds are told by a column."""
    text = (
        "user_id,start_time_iso,end_time_iso,model,type,price,amount\n"
        "u,2026-09-22T00:00:00Z,2026-09-22T01:00:00Z,chat,input_cache_miss_tokens,0.27,500\n"
        "u,2026-09-22T00:00:00Z,2026-09-22T01:00:00Z,chat,request_count,,3\n"
    )
    columns = {"start": "start_time_iso", "end": "end_time_iso", "kind": "type", "quantity": "amount"}
    found = read(text, columns=columns)
    assert [each.quantities for each in found.lines] == [(("input", 500),), (("requests", 3),)]
    assert all(each.cost_nano is None for each in found.lines)


@pytest.mark.parametrize(
    ("cell", "tier"), [("true", "batch"), ("false", None), ("default", None), ("flex", "flex")]
)
def test_tiers(cell: str, tier: str | None) -> None:
    assert line(f"start,model,tier,input_tokens\n2026-10-01,m,{cell},1\n").tier == tier


cells = st.sampled_from(
    [
        "",
        "2026-10-01",
        "2026-10-02T00:00:00Z",
        "m",
        "1",
        "-1",
        "1e400",
        "1.5",
        "input",
        "USD",
        "Usage",
        "NaN",
        '"',
        "\x00",
    ]
) | st.text(max_size=8)


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(FIELDS), min_size=1, max_size=8, unique=True),
    st.lists(st.lists(cells, max_size=9), max_size=4),
    st.sampled_from([",", ";", "\t"]),
)
def test_any_rows_are_an_invoice_or_refused(names: list[str], rows: list[list[str]], delimiter: str) -> None:
    text = "\n".join(delimiter.join(row) for row in [names, *rows])
    try:
        found = read_invoice(text.encode(errors="replace"))
    except InvalidError:
        return
    for each in found.lines:
        assert each.from_us < each.until_us
        assert each.model
        assert all(count >= 0 for _, count in each.quantities)


pages = st.recursive(
    st.none() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "results", "start_time", "amount"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.binary(max_size=200) | pages.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_invoice_or_refused(data: bytes) -> None:
    with pytest.raises(InvalidError):
        read_invoice(data)
