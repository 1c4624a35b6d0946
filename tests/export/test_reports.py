"""Reports: each figure against a fold over the records, the same bytes each time, and every change named."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import openpyxl
import pytest
from msgspec import UNSET

from ledger.core.errors import CorruptError, InvalidError
from ledger.core.keys import generate_key
from ledger.core.records import Record
from ledger.export.parquet import ExportSummary
from ledger.export.reports import KINDS, Report, Scope, compare, make_report, open_report, sign_report
from ledger.export.reports.document import Figure, decimal
from ledger.export.reports.inputs import read_inputs
from ledger.export.reports.rendering import render
from tests.build import START_US
from tests.export.conftest import DAY_US, Ledger

SCHEMAS = Path(__file__).parents[2] / "schemas"
SUBJECT = "Example Cloud GmbH"
GPU = "gpu-7.example.com/llama"


@pytest.fixture(scope="module")
def folder(export: ExportSummary) -> Path:
    return Path(export.directory)


@pytest.fixture(scope="module")
def record(ledger: Ledger) -> Record:
    """The first record of the second day's last batches: rich, and within every scope that tests use."""
    return next(
        r for _, _, issuer, r in ledger.records if issuer == GPU and r.started_us >= START_US + DAY_US
    )


def scope_of(kind: str, record: Record, **fields: Any) -> Scope:
    """The widest scope that a report of this kind takes, narrowed by ``fields``."""
    own = {"customer-statement": {"tenant": ("t-2",)}, "incident": {"record": (record.id,)}}.get(kind, {})
    return Scope(where={**own, **fields.pop("where", {})}, **fields)


def inside(scope: Scope, ledger: Ledger) -> list[Record]:
    """The records of a scope, by a plain filter."""
    return [
        r
        for _, _, issuer, r in ledger.records
        if (scope.from_us is UNSET or r.started_us >= scope.from_us)
        and all(
            {"issuer": issuer, "tenant": r.tenant, "record": r.id}[name] in values
            for name, values in scope.where.items()
        )
    ]


def figures(report: Report) -> dict[str, Figure]:
    return {figure.name: figure for section in report.sections for figure in section.figures}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_inputs_give_the_same_bytes(folder: Path, record: Record, kind: str) -> None:
    scope = scope_of(kind, record)
    key = generate_key("ed25519")
    first, second = (
        sign_report(make_report(kind, folder, scope=scope, subject=SUBJECT), key, issuer="me")
        for _ in range(2)
    )
    assert first == second
    report = open_report(*first, key.public)
    assert not compare(report, make_report(kind, folder, scope=scope, subject=SUBJECT))


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_derived_and_has_a_value_or_a_gap(folder: Path, record: Record, kind: str) -> None:
    report = make_report(kind, folder, scope=scope_of(kind, record), subject=SUBJECT)
    assert report.sections
    for section in report.sections:
        for figure in section.figures:
            assert (figure.value is UNSET) is (figure.gap is not UNSET), figure.name
            assert figure.derivation
            if figure.value is not UNSET and figure.low is not UNSET and figure.high is not UNSET:
                assert Fraction(figure.low) <= Fraction(figure.value) <= Fraction(figure.high), figure.name
        for table in section.tables:
            names = [column.name for column in table.columns]
            assert len(set(names)) == len(names)
            assert all(len(row) == len(names) for row in table.rows)
            assert table.chart is UNSET or table.chart in names
            for row in table.rows:
                for column, cell in zip(table.columns, row, strict=True):
                    if column.unit is not UNSET and cell is not None:
                        Fraction(cell)


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_figures_are_unique(folder: Path, record: Record, kind: str) -> None:
    report = make_report(kind, folder, scope=scope_of(kind, record), subject=SUBJECT)
    names = [figure.name for section in report.sections for figure in section.figures]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_on_what_it_stands(folder: Path, ledger: Ledger, record: Record, kind: str) -> None:
    scope = scope_of(kind, record)
    report = make_report(kind, folder, scope=scope, subject=SUBJECT)
    assert report.records == len(inside(scope, ledger)) > 0
    assert sum(report.methods.values()) == report.records
    assert report.checkpoint.startswith(report.origin)
    assert any("2 records were lost" in gap for gap in report.gaps)
    assert bool(report.factors) is any(r.factors is not UNSET for r in inside(scope, ledger))


@pytest.mark.parametrize("kind", KINDS)
def test_no_figure_is_a_gap_that_the_report_does_not_tell(folder: Path, record: Record, kind: str) -> None:
    report = make_report(kind, folder, scope=scope_of(kind, record), subject=SUBJECT)
    for name, figure in figures(report).items():
        if figure.basis != "log":
            continue
        lacks = figure.coverage is not UNSET and "records state" in figure.coverage
        told = [gap for gap in report.gaps if figure.label in gap.rpartition(": ")[0].split("; ")]
        assert bool(told) is (figure.gap is not UNSET or lacks), name


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("customer-statement", {}),
        ("customer-statement", {"tenant": ("t-1", "t-2")}),
        ("customer-statement", {"tenant": ("",)}),
        ("incident", {}),
        ("incident", {"tenant": ("t-1",)}),
    ],
)
def test_a_report_about_one_needs_one(folder: Path, kind: str, where: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(InvalidError, match="about one") as caught:
        make_report(kind, folder, scope=Scope(where=where), subject=SUBJECT)
    assert caught.value.code == "bad-report-scope"


def test_a_period_that_ends_before_it_begins_is_refused(folder: Path) -> None:
    for to_us in (START_US, START_US - 1):
        with pytest.raises(InvalidError, match="before it begins"):
            make_report("sci", folder, scope=Scope(from_us=START_US, to_us=to_us), subject=SUBJECT)


def test_a_key_without_an_inputs_file_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidError, match="no file"):
        make_report("sci", folder, subject=SUBJECT, inputs_key=generate_key().public)


def test_sci_against_a_fold(folder: Path, ledger: Ledger) -> None:
    found = figures(make_report("sci", folder, subject=SUBJECT))
    records = [record for *_, record in ledger.records]
    both = [r for r in records if r.carbon_ng is not UNSET and r.embodied_ng is not UNSET]
    tokens = sum(r.usage.input_tokens + r.usage.output_tokens for r in both)
    total = sum(r.carbon_ng + r.embodied_ng for r in both)
    assert found["sci_per_1k_tokens"].value == decimal(Fraction(total, 10**6) / Fraction(tokens, 1000), 6)
    assert found["sci_per_request"].value == decimal(Fraction(total, 10**6 * len(both)), 6)
    assert found["e"].value == decimal(
        Fraction(sum(r.energy.energy_uj for r in records if r.energy is not UNSET), 3_600_000_000_000), 6
    )
    assert found["input_tokens"].value == str(sum(r.usage.input_tokens for r in records))


@pytest.mark.parametrize("kind", KINDS)
def test_a_scope_without_records_makes_a_report_of_gaps(folder: Path, record: Record, kind: str) -> None:
    scope = scope_of(kind, record, from_us=1, to_us=2)
    report = make_report(kind, folder, scope=scope, subject=SUBJECT)
    assert report.records == 0
    for form in ("xlsx", "pdf"):
        assert render(report, form)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_a_part(folder: Path, ledger: Ledger, record: Record, kind: str) -> None:
    scope = scope_of(kind, record, from_us=START_US + DAY_US, where={"issuer": (GPU,)})
    report = make_report(kind, folder, scope=scope, subject=SUBJECT)
    assert report.records == len(inside(scope, ledger)) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_figure_is_named(folder: Path, record: Record, kind: str) -> None:
    """Signed anew by the reporter: the signature holds, and the figure does not follow from the log."""
    report = make_report(kind, folder, scope=scope_of(kind, record), subject=SUBJECT)
    data = msgspec.to_builtins(report)
    for section in data["sections"]:
        for figure in section.get("figures", ()):
            if "value" in figure:
                was, figure["value"] = figure["value"], "7" + figure["value"]
                changed = msgspec.convert(data, Report)
                (difference,) = compare(changed, report)
                assert figure["name"] in difference.where
                assert (difference.stated, difference.computed) == ("7" + was, was)
                figure["value"] = was


def test_a_changed_byte_breaks_the_signature(folder: Path) -> None:
    key = generate_key("ed25519")
    data, signature = sign_report(make_report("sci", folder, subject=SUBJECT), key, issuer="me")
    at = data.index(b'"value":"') + 9
    for broken in (data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], data[:-1]):
        with pytest.raises((CorruptError, InvalidError)):
            open_report(broken, signature, key.public)
    with pytest.raises(InvalidError, match="another key"):
        open_report(data, signature, generate_key("ed25519").public)


@pytest.mark.parametrize("kind", KINDS)
def test_renderings_hold_every_figure(folder: Path, record: Record, kind: str) -> None:
    subject = "=HYPERLINK(1) & <b>#strong[x]</b>"
    report = make_report(kind, folder, scope=scope_of(kind, record), subject=subject)
    workbook = render(report, "xlsx")
    assert render(report, "xlsx") == workbook
    sheet = openpyxl.load_workbook(io.BytesIO(workbook))["Figures"]
    rows = {row[11].value: row for row in sheet.iter_rows(min_row=2)}
    for name, figure in figures(report).items():
        shown = rows[name][2].value
        assert (shown is None) is (figure.value is UNSET)
        assert shown is None or Fraction(str(figure.value)) == pytest.approx(Fraction(str(shown)))
    cells = [cell for page in openpyxl.load_workbook(io.BytesIO(workbook)) for row in page for cell in row]
    assert not [cell for cell in cells if cell.data_type == "f"]
    pdf = render(report, "pdf")
    assert pdf.startswith(b"%PDF-")
    assert render(report, "pdf") == pdf


@pytest.mark.parametrize("kind", KINDS)
def test_its_schema_fits(folder: Path, record: Record, kind: str) -> None:
    schema = json.loads((SCHEMAS / "report.schema.json").read_bytes())
    data, _ = sign_report(
        make_report(kind, folder, scope=scope_of(kind, record), subject=SUBJECT),
        generate_key("ed25519"),
        issuer="me",
    )
    check = jsonschema.Draft202012Validator(schema)
    check.validate(json.loads(data))
    for was, spoilt in ((b'"records":', b'"record":'), (b'"value":"', b'"value":"x'), (b'"title":', b'"x":')):
        assert was in data
        assert not check.is_valid(json.loads(data.replace(was, spoilt, 1)))


def test_inputs_are_shown_as_stated_and_what_is_missing_is_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "inputs.json"
    file = {
        "format": "tallystick-inputs",
        "version": 1,
        "stated_by": "facilities",
        "values": {"facility_energy_kwh": {"value": "12.5", "source": "meter M1"}},
    }
    path.write_text(json.dumps(file))
    schema = json.loads((SCHEMAS / "report-inputs.schema.json").read_bytes())
    jsonschema.Draft202012Validator(schema).validate(file)
    inputs = read_inputs(path)
    assert inputs.number("facility_energy_kwh", "the site's energy") == Fraction(25, 2)
    assert inputs.number("reused_heat_kwh", "the heat reused") is None
    assert inputs.used == {"facility_energy_kwh": "12.5 (meter M1)"}
    assert inputs.missing == {"reused_heat_kwh": "the heat reused"}
    file["values"]["facility_energy_kwh"]["value"] = "much"
    path.write_text(json.dumps(file))
    with pytest.raises(InvalidError, match="not a decimal number"):
        read_inputs(path).number("facility_energy_kwh", "the site's energy")
    path.write_text("{}")
    with pytest.raises(InvalidError, match="not an inputs file"):
        read_inputs(path)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (Fraction(1, 2), 0, "1"),
        (Fraction(-1, 2), 0, "-1"),
        (Fraction(-1, 3), 0, "0"),
        (Fraction(1, 3), 3, "0.333"),
        (Fraction(2, 3), 3, "0.667"),
        (10**20, 2, "100000000000000000000.00"),
        (0, 2, "0.00"),
    ],
)
def test_decimal(value: Fraction, digits: int, text: str) -> None:
    assert decimal(value, digits) == text
