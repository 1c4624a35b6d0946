"""The FOCUS dataset: its sums against the records, and its form against the FinOps Foundation's validator."""

from __future__ import annotations

import csv
import os
import re
import subprocess
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from msgspec import UNSET

from ledger.export.focus import COLUMNS, FOCUS_VERSION, write_focus
from ledger.export.parquet import ExportSummary
from ledger.export.tables import safe_cell
from tests.export.conftest import Ledger

VALIDATOR = os.environ.get("TALLYSTICK_FOCUS_PYTHON")
"""A Python that has focus-validator: `make focus` makes one."""


@pytest.fixture(scope="module")
def dataset(export: ExportSummary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("focus") / "focus.csv"
    write_focus(Path(export.directory), out, account="acct-1", provider="Example Cloud")
    return out


def rows(dataset: Path) -> list[dict[str, str]]:
    with dataset.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_costs_equal_the_records(dataset: Path, ledger: Ledger) -> None:
    priced = [r for *_, r in ledger.records if r.cost_nano is not UNSET]
    found = rows(dataset)
    for column in ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost"):
        assert sum(Fraction(row[column]) for row in found) == Fraction(
            sum(r.cost_nano for r in priced), 10**9
        )
    tokens = sum(r.usage.input_tokens + r.usage.output_tokens for r in priced)
    assert sum(Fraction(row["ConsumedQuantity"]) for row in found) == tokens
    by_tenant = Counter()
    for record in priced:
        by_tenant["" if record.tenant is UNSET else record.tenant] += record.cost_nano
    mine = Counter()
    for row in found:
        mine[row["SubAccountId"]] += int(Fraction(row["BilledCost"]) * 10**9)
    assert mine == by_tenant


def test_what_has_no_cost_is_counted(export: ExportSummary, ledger: Ledger, tmp_path: Path) -> None:
    told = write_focus(Path(export.directory), tmp_path / "f.csv", account="a", provider="p")
    assert told.without_cost == sum(r.cost_nano is UNSET for *_, r in ledger.records) > 0
    assert told.records + told.without_cost == len(ledger.records)


def test_price_times_quantity_is_the_cost(dataset: Path) -> None:
    for row in rows(dataset):
        product = Fraction(row["ListUnitPrice"]) * Fraction(row["PricingQuantity"])
        assert abs(product - Fraction(row["ListCost"])) <= Fraction(row["PricingQuantity"]) / 10**12


def test_columns_that_came_with_1_2(dataset: Path) -> None:
    """Nullability as the columns' pages of the specification ask, version 1.2."""
    for row in rows(dataset):
        assert row["PricingCurrency"] == row["BillingCurrency"] != ""
        assert row["PricingCurrencyEffectiveCost"] == row["EffectiveCost"]
        assert row["PricingCurrencyListUnitPrice"] == row["ListUnitPrice"]
        assert row["SkuMeter"]
        assert row["InvoiceId"] == ""  # a log does not know invoices


def test_columns_of_our_own_come_last() -> None:
    own = [name.startswith("x_") for name in COLUMNS]
    assert own == sorted(own)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("=1+1", "'=1+1"),
        ("@x", "'@x"),
        ("-5", "-5"),
        ("-5.25", "-5.25"),
        ("-x", "'-x"),
        ("+1", "'+1"),
        ("", ""),
    ],
)
def test_no_cell_is_a_formula(cell: str, text: str) -> None:
    assert safe_cell(cell) == text


RULES_2 = (
    "USAGE_MEASUREMENT_SUPPORTED", "UNIT_PRICING_SUPPORTED", "PUBLIC_PRICE_LIST_SUPPORTED",
    "SUB_ACCOUNT_SUPPORTED", "BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED", "REGION_SUPPORTED",
    "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED", "TAGGING_SUPPORTED",
)  # fmt: skip
"""What our dataset claims, in the words of the validator's rules for 1.2."""
UNDECIDED = {"InvoiceId-C-005-C"}
"""That there must be an invoice: of this and its opposite one must hold, yet each is told by itself."""


def version_and_folder() -> tuple[str, str]:
    """The validator's version, and where it is: it reads its tables from there."""
    assert VALIDATOR is not None
    told = (
        "from importlib.metadata import distribution as d; f = d('focus-validator'); "
        "print(f.version, f.locate_file(''))"
    )
    version, folder = subprocess.run(
        [VALIDATOR, "-c", told], capture_output=True, text=True, check=True
    ).stdout.split()
    return version, folder


def validated(data: Path, folder: str, *arguments: str) -> str:
    assert VALIDATOR is not None
    command = [VALIDATOR, "-c", "from focus_validator.main import main; main()", "--data-file", str(data)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=folder)
    return done.stdout + done.stderr[-2000:]


def spoilt(data: Path) -> Path:
    broken = data.with_name("broken.csv")
    broken.write_text(data.read_text().replace("AI and Machine Learning", "Magic", 1))
    return broken


@pytest.mark.skipif(VALIDATOR is None, reason="needs focus-validator: `make focus`")
def test_the_validator_passes_it(dataset: Path, tmp_path: Path) -> None:
    version, folder = version_and_folder()
    if version.startswith("1."):
        passes_rules_of_1_0(dataset, folder, tmp_path)
    else:
        passes_rules_of_1_2(dataset, folder)


def passes_rules_of_1_0(dataset: Path, folder: str, tmp_path: Path) -> None:
    """Its rules name five columns otherwise than the specification: they are renamed for it."""
    names = {
        "ProviderName": "Provider",
        "PublisherName": "Publisher",
        "InvoiceIssuerName": "InvoiceIssuer",
        "ResourceId": "ResourceID",
    }
    found = rows(dataset)
    renamed = tmp_path / "renamed.csv"
    with renamed.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(names.get(name, name) for name in COLUMNS), "ChargeType"])
        writer.writerows([[*row.values(), row["ChargeCategory"]] for row in found])
    told = validated(renamed, folder, "--validate-version", "1.0")
    assert "Validation succeeded" in told, told[-2000:]
    assert "Validation failed" in validated(spoilt(renamed), folder, "--validate-version", "1.0")


def passes_rules_of_1_2(dataset: Path, folder: str) -> None:
    arguments = (
        "--validate-version", FOCUS_VERSION, "--focus-dataset", "CostAndUsage", "--block-download",
        "--applicability-criteria", ",".join(RULES_2),
    )  # fmt: skip

    def failed(data: Path) -> set[str]:
        told = validated(data, folder, *arguments)
        assert "Total: " in told, told[-2000:]
        return set(re.findall(r"^❌ ([\w-]+): FAIL", told, re.MULTILINE))

    assert failed(dataset) == UNDECIDED
    assert failed(spoilt(dataset)) > UNDECIDED
