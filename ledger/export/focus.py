"""Writes what tokens cost as a FOCUS dataset: the FinOps Open Cost and Usage Specification, version 1.2.

One row for each day, tenant, deployment and currency. A record states one cost, so list, contracted,
effective and billed cost are the same, and prices are in the currency that is billed; records without a cost
are left out and counted. No invoice is known. Amounts are exact decimal text. Columns of our own begin with
``x_``, as the specification asks (Column Handling).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

from ledger.export.query import Question, ask
from ledger.export.reading import open_export
from ledger.export.reports.document import decimal
from ledger.export.tables import safe_cell

__all__ = ["COLUMNS", "FOCUS_VERSION", "FocusSummary", "write_focus"]

FOCUS_VERSION = "1.2"

COLUMNS = (
    "AvailabilityZone", "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency",
    "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription",
    "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart", "CommitmentDiscountCategory",
    "CommitmentDiscountId", "CommitmentDiscountName", "CommitmentDiscountStatus", "CommitmentDiscountType",
    "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice", "EffectiveCost",
    "InvoiceId", "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory", "PricingCurrency",
    "PricingCurrencyContractedUnitPrice", "PricingCurrencyEffectiveCost", "PricingCurrencyListUnitPrice",
    "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "RegionId", "RegionName", "ResourceId",
    "ResourceName", "ResourceType", "ServiceCategory", "ServiceName", "ServiceSubcategory", "SkuId",
    "SkuMeter", "SkuPriceDetails", "SkuPriceId", "SubAccountId", "SubAccountName", "Tags", "x_InputTokens",
    "x_OutputTokens", "x_EnergyMicrojoules", "x_CarbonNanograms",
)  # fmt: skip
"""In the order of the file."""

_NANO = 10**9
_UNIT_PLACES = 12
"""Places of unit prices, which are quotients; costs are exact with nine."""


@dataclass(frozen=True)
class FocusSummary:
    """What was written. ``without_cost`` records state no cost and are in no row."""

    file: Path
    rows: int
    records: int
    without_cost: int


def write_focus(
    export: Path,
    out: Path,
    *,
    account: str,
    provider: str,
    from_us: int | None = None,
    to_us: int | None = None,
) -> FocusSummary:
    """Write the costs of an export as CSV.

    Args:
        export: the export's folder.
        out: the file to write; replaced if it is there.
        account: id of the billing account that the charges belong to.
        provider: who provides and invoices, where a deployment names no provider.
        from_us: records started then or later.
        to_us: records started before.

    Raises:
        InvalidError: no export.
    """
    by = ("day", "tenant", "deployment", "model", "version", "provider", "region", "site", "currency")
    with open_export(export) as connection:
        question = Question(by=by, from_us=from_us, to_us=to_us)
        groups = ask(connection, question)
    priced = [row for row in groups if "cost_nano" in row]
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(COLUMNS)
        for row in _rows(priced, account, provider):
            writer.writerow([_cell(row.get(name)) for name in COLUMNS])
    records = sum(row["cost_nano_records"] for row in priced)
    return FocusSummary(out, len(priced), records, sum(row["records"] for row in groups) - records)


def _cell(value: Any) -> str:
    """Null is the empty cell; text is never a formula."""
    return "" if value is None else safe_cell(value)


def _rows(groups: list[dict[str, Any]], account: str, provider: str) -> Iterator[dict[str, Any]]:
    for row in groups:
        day = datetime.fromisoformat(row["day"]).replace(tzinfo=UTC)
        month = day.replace(day=1)
        cost = decimal(Fraction(row["cost_nano"], _NANO), 9)
        tokens = row["cost_nano_tokens"]
        thousands = Fraction(tokens, 1000)
        unit_price = decimal(Fraction(row["cost_nano"], _NANO) / thousands, _UNIT_PLACES) if tokens else None
        issuer = row["provider"] or provider
        sku = row["model"] if row["version"] is None else f"{row['model']} {row['version']}"
        tags = {name: row[name] for name in ("model", "version", "site") if row[name] is not None}
        yield {
            "BilledCost": cost,
            "BillingAccountId": account,
            "BillingCurrency": row["currency"],
            "BillingPeriodStart": _time(month),
            "BillingPeriodEnd": _time((month + timedelta(days=32)).replace(day=1)),
            "ChargeCategory": "Usage",
            "ChargeDescription": f"Tokens of {sku}",
            "ChargeFrequency": "Usage-Based",
            "ChargePeriodStart": _time(day),
            "ChargePeriodEnd": _time(day + timedelta(days=1)),
            "ConsumedQuantity": decimal(tokens, 1),
            "ConsumedUnit": "Tokens",
            "ContractedCost": cost,
            "ContractedUnitPrice": unit_price,
            "EffectiveCost": cost,
            "InvoiceIssuerName": issuer,
            "ListCost": cost,
            "ListUnitPrice": unit_price,
            "PricingCategory": "Standard",
            "PricingCurrency": row["currency"],
            "PricingCurrencyContractedUnitPrice": unit_price,
            "PricingCurrencyEffectiveCost": cost,
            "PricingCurrencyListUnitPrice": unit_price,
            "PricingQuantity": decimal(thousands, 3),
            "PricingUnit": "1000 Tokens",
            "ProviderName": issuer,
            "PublisherName": issuer,
            "RegionId": row["region"],
            "RegionName": row["region"],
            "ResourceId": row["deployment"],
            "ResourceName": row["model"],
            "ResourceType": "Model deployment",
            "ServiceCategory": "AI and Machine Learning",
            "ServiceName": "Token generation",
            "ServiceSubcategory": "Generative AI",
            "SkuId": sku,
            "SkuMeter": "Tokens",
            "SkuPriceId": f"{sku}/{row['currency']}",
            "SubAccountId": row["tenant"],
            "SubAccountName": row["tenant"],
            "Tags": json.dumps(tags, sort_keys=True, ensure_ascii=False),
            "x_InputTokens": row["input_tokens"],
            "x_OutputTokens": row["output_tokens"],
            "x_EnergyMicrojoules": row.get("energy_uj"),
            "x_CarbonNanograms": row.get("carbon_ng"),
        }


def _time(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
