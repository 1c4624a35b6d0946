"""A customer's statement of usage, carbon, water and cost: the records of one tenant."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from msgspec import UNSET

from ledger.core.errors import InvalidError
from ledger.export.reports import figures as fig
from ledger.export.reports.document import Cell, Column, Section, Table, decimal
from ledger.export.reports.facts import Facts
from ledger.export.reports.inputs import Asked, Inputs
from ledger.export.reports.tables import breakdown, stated_words, words_of
from ledger.export.reports.words import time_of

__all__ = ["INPUTS", "STANDARD", "TITLE", "build"]

TITLE = "Customer statement: usage, carbon, water and cost"
STANDARD = "No external standard; carbon as in the GHG Protocol Scope 2 Guidance, location- and market-based"
INPUTS: Mapping[str, Asked] = {
    "customer": Asked("the customer that the pseudonym stands for", None, needed=False),
    "contract": Asked("the contract and the period that it bills", None, needed=False),
}
_NANO = 10**9
_MEASURES = ("records", "input_tokens", "output_tokens", fig.ENERGY_KWH, fig.CARBON_KG, fig.WATER_L)
_MG = 10**6


def build(facts: Facts, inputs: Inputs) -> tuple[Section, ...]:
    """The report's sections.

    Raises:
        InvalidError: the scope does not name exactly one tenant.
    """
    tenants = facts.scope.where.get("tenant", ())
    if len(tenants) != 1 or not tenants[0]:
        raise InvalidError(
            f"names {len([t for t in tenants if t])} tenants; a customer's statement is about one",
            where="scope",
            remedy="choose one: --where tenant=PSEUDONYM",
            code="bad-report-scope",
        )
    row = facts.total()
    return (
        Section(
            title="Customer",
            text=(
                f"Everything that the log holds for tenant {tenants[0]} in the period. The pseudonym is the "
                "log's; whom it stands for is the provider's statement.",
            ),
            tables=(stated_words(inputs, INPUTS, name="stated", title="Statements of the provider"),),
        ),
        Section(
            title="Usage",
            figures=(
                fig.count(row, "records", "Requests", "requests"),
                fig.count(row, "input_tokens", "Input tokens", "tokens"),
                fig.count(row, "cached_input_tokens", "Input tokens, of which served from a cache", "tokens"),
                fig.count(row, "output_tokens", "Output tokens", "tokens"),
                fig.count(row, "reasoning_tokens", "Output tokens, of which reasoning", "tokens"),
            ),
            tables=(
                _by_day(facts),
                breakdown(
                    facts, "model", "version", name="by_model", title="By model", heading="Model",
                    measures=_MEASURES, chart="output_tokens",
                ),
            ),
        ),
        Section(
            title="Energy, carbon and water",
            reference="GHG Protocol Scope 3 Standard, category 1: for the customer's own inventory",
            figures=(
                fig.total(row, fig.ENERGY_KWH),
                fig.total(row, fig.CARBON_KG),
                fig.total(row, fig.CARBON_MARKET_KG),
                fig.total(row, fig.EMBODIED_KG),
                fig.total(row, fig.WATER_L),
                fig.per(row, fig.CARBON_KG, "mg CO2e", _MG, by="tokens"),
                fig.per(row, fig.CARBON_KG, "mg CO2e", _MG, by="requests"),
            ),
        ),
        _cost(facts),
        Section(
            title="References into the log",
            text=(
                "Each line is a signed statement that commits to records of this customer; its receipt "
                "proves it against the checkpoint.",
            ),
            tables=(_statements(facts),),
        ),
    )  # fmt: skip


def _by_day(facts: Facts) -> Table:
    return breakdown(
        facts, "day", name="by_day", title="By day", heading="Day (UTC)",
        measures=_MEASURES, chart="output_tokens",
    )  # fmt: skip


def _cost(facts: Facts) -> Section:
    rows = [row for row in facts.rows("currency") if row["currency"] is not None]
    records = facts.total()["records"]
    derivation = "sum of cost_nano of the records in this currency / 1,000,000,000"
    figures = [
        fig.derived(
            f"cost_{row['currency'].lower()}",
            f"Cost in {row['currency']}",
            row["currency"],
            _cost_of(row, records),
            derivation=derivation,
            places=9,
            ranged=False,
        )
        for row in rows
    ] or [fig.missing("cost", "Cost", "", "no record of the scope states it", derivation)]
    priced = [row for row in facts.rows("day", "model", "currency") if row["currency"] is not None]
    one_model = len({row["model"] for row in priced}) == 1  # then a bar is a day
    table = Table(
        name="cost_by_day",
        title="Cost by day and model",
        columns=(
            Column(name="day", label="Day (UTC)"),
            Column(name="model", label="Model"),
            Column(name="currency", label="Currency"),
            Column(name="records", label="Requests", unit="requests"),
            Column(name="tokens", label="Tokens", unit="tokens"),
            Column(name="cost", label="Cost", unit=""),
        ),
        rows=tuple(_priced(row) for row in priced),
        derivation="sum of cost_nano over the records of each group / 1,000,000,000",
        chart="cost" if len(rows) == 1 and one_model else UNSET,
    )
    return Section(title="Cost", figures=tuple(figures), tables=(table,) if priced else ())


def _cost_of(row: Mapping[str, Any], records: int) -> fig.Sum:
    value = Fraction(row["cost_nano"], _NANO)
    return fig.Sum(value, value, value, row["cost_nano_records"], records)


def _priced(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    return (
        row["day"],
        words_of(row["model"]),
        row["currency"],
        str(row["records"]),
        str(row["input_tokens"] + row["output_tokens"]),
        decimal(Fraction(row["cost_nano"], _NANO), 9),
    )


def _statements(facts: Facts) -> Table:
    found = facts.scoped(
        "leaf_index, issuer, count(*) AS records, min(epoch_us(started_at)) AS first_us, "
        "max(epoch_us(ended_at)) AS last_us",
        "GROUP BY leaf_index, issuer ORDER BY leaf_index",
    )
    return Table(
        name="statements",
        title="Statements with records of this customer",
        columns=(
            Column(name="leaf", label="Leaf"),
            Column(name="issuer", label="Issuer"),
            Column(name="from", label="First start"),
            Column(name="to", label="Last end"),
            Column(name="records", label="Requests", unit="requests"),
        ),
        rows=tuple(
            (
                str(row["leaf_index"]),
                row["issuer"],
                time_of(row["first_us"]),
                time_of(row["last_us"]),
                str(row["records"]),
            )
            for row in found
        ),
        derivation="the batch statements that hold records of the scope, by leaf of the log",
    )
