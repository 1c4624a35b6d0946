"""CSV and XLSX of records: every figure as logged or corrected, and nothing that a spreadsheet computes."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from msgspec import UNSET

from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.keys import generate_key
from ledger.core.records import Energy, Quality, document_digest, encode_record, record_hash
from ledger.core.statements import Correction
from ledger.export import xlsx_records
from ledger.export.csv import COLUMNS, write_csv
from ledger.export.parquet import export_parquet
from ledger.export.query import Question
from ledger.export.tables import safe_cell
from ledger.export.xlsx_records import write_xlsx
from ledger.store import Sequencer, migrate, open_store
from ledger.store.append import create_log
from tests.build import ORIGIN, START_US, make_deployment, make_record, make_records
from tests.export.conftest import DAY_US, HUGE, Ledger, rich_record

FORMULAS = (
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\0=1",
    "＝1+1",
    '=HYPERLINK("http://x","y")',
)
HARMLESS = ("-12", "3.5", "a=b", "1+1", "Würzburg 2", "'quoted", ' "x", y')


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Ledger]]:
    """An export whose texts are formulas; one record is corrected, one has every field."""
    folder = tmp_path_factory.mktemp("hostile")
    store = open_store(folder / "ledger.db")
    migrate(store)
    key = generate_key()
    create_log(store, key, ORIGIN)
    sequencer = Sequencer(store, key)
    sequencer.start()
    made = Ledger(store, key, sequencer)
    issuer = made.issuer("gpu-7.example.com/llama")
    for at, text in enumerate((*FORMULAS, *HARMLESS)):
        model = "another" if "\0" in text else text  # no model has U+0000
        deployment = make_deployment(model=model, accelerator=text, site=text, power_mw=at)
        made.log(issuer.deployment(deployment))
        energy = Energy(energy_uj=1_500_000, method="modelled", source=text)
        made.batch(issuer, [make_record(deployment, n=at, energy=energy, salt="hostile")])
    from tests.build import make_factor_set

    plain, factors = make_deployment(), make_factor_set()
    made.log(issuer.deployment(plain))
    made.log(issuer.factors(factors))
    digest = document_digest(plain)
    made.batch(issuer, [rich_record(digest, document_digest(factors), n=0, started_us=START_US + DAY_US)])
    made.batch(issuer, make_records(5, digest, first=100, salt="plain"))
    record = made.records[0][3]
    made.log(
        issuer.sign(
            Correction(
                record=record.id,
                record_hash=record_hash(encode_record(record)).hex(),
                reason="=cmd",
                carbon_ng=77,
                **issuer.chain(),
            )
        )
    )
    export_parquet(store, folder / "export", log_key=key)
    yield folder / "export", made
    sequencer.stop()
    store.close()


def texts_of(record: Any) -> dict[str, str]:
    """What a cell of a record must hold, of the figures that stand in it as they are."""
    plain = json.loads(encode_record(record))
    cells = {
        "id": plain["id"],
        "input_tokens": plain["usage"]["input_tokens"],
        "output_tokens": plain["usage"]["output_tokens"],
        "energy_uj": plain.get("energy", {}).get("energy_uj"),
        "carbon_ng": plain.get("carbon_ng"),
        "carbon_market_ng": plain.get("carbon_market_ng"),
        "cost_nano": plain.get("cost_nano"),
        "request": plain.get("request"),
        "record_hash": record_hash(encode_record(record)).hex(),
    }
    return {name: "" if value is None else str(value) for name, value in cells.items()}


def test_csv_has_every_record_and_figure(hostile: tuple[Path, Ledger], tmp_path: Path) -> None:
    export, ledger = hostile
    summary = write_csv(export, tmp_path / "x.csv", Question(corrected=False))
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert summary.records == len(rows) == len(ledger.records)
    assert list(rows[0]) == [column.name for column in COLUMNS]
    records = {record.id: record for *_, record in ledger.records}
    for row in rows:
        expected = texts_of(records[row["id"]])
        assert {name: row[name] for name in expected} == expected
    assert [(row["started_at"], row["id"]) for row in rows] == sorted(
        (r["started_at"], r["id"]) for r in rows
    )
    last = rows[-1]
    assert (last["day"], last["started_at"]) == ("2025-10-10", "2025-10-10T09:00:00.000000Z")
    assert int(last["input_tokens"]) == HUGE
    assert json.loads(last["quality"])[0] == {"name": "faithfulness", "value": 871, "scale": 3}
    assert (tmp_path / "x.csv").read_bytes().count(b"\r\n") >= len(rows)


def test_a_correction_shows(hostile: tuple[Path, Ledger], tmp_path: Path) -> None:
    export, ledger = hostile
    for corrected, carbon, flag in ((True, "77", "true"), (False, "", "false")):
        summary = write_csv(export, tmp_path / "x.csv", Question(corrected=corrected))
        assert summary.corrected_records == int(corrected)
        with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
            found = {row["id"]: row for row in csv.DictReader(file)}[ledger.records[0][3].id]
        assert (found["carbon_ng"], found["corrected"]) == (carbon, flag)


def test_no_cell_is_a_formula(hostile: tuple[Path, Ledger], tmp_path: Path) -> None:
    export, _ = hostile
    write_csv(export, tmp_path / "x.csv", Question())
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("model", "accelerator", "site", "energy_source"):
        found = {row[name] for row in rows}
        assert {f"'{text}" for text in FORMULAS if "\0" not in text or name != "model"} <= found
        assert set(HARMLESS) <= found
    for row in rows:
        for cell in row.values():
            assert safe_cell(cell) == cell or cell.startswith("'")


def test_filters_and_periods(hostile: tuple[Path, Ledger], tmp_path: Path) -> None:
    export, _ = hostile
    question = Question(where={"model": ["=1+1", "SmolLM2-135M-Instruct"]}, to_us=START_US + DAY_US)
    summary = write_csv(export, tmp_path / "x.csv", question)
    assert summary.records == 6
    assert write_xlsx(export, tmp_path / "x.xlsx", question).records == 6
    none = Question(where={"model": ["nothing"]})
    assert write_csv(export, tmp_path / "x.csv", none).records == 0
    assert write_xlsx(export, tmp_path / "x.xlsx", none).sheets == 1


def workbook(path: Path) -> tuple[Any, list[dict[str, Any]]]:
    book = openpyxl.load_workbook(path)
    rows = []
    for name in book.sheetnames[1:]:
        lines = list(book[name].iter_rows(values_only=True))
        assert lines[0] == tuple(column.name for column in COLUMNS)
        rows += [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    return book, rows


def test_openpyxl_opens_the_workbook(hostile: tuple[Path, Ledger], tmp_path: Path) -> None:
    export, ledger = hostile
    summary = write_xlsx(export, tmp_path / "x.xlsx", Question(corrected=False))
    book, rows = workbook(tmp_path / "x.xlsx")
    assert (summary.records, summary.sheets) == (len(ledger.records), 1)
    assert len(rows) == len(ledger.records)
    records = {record.id: record for *_, record in ledger.records}
    for row in rows:
        expected = texts_of(records[row["id"]])
        assert {name: "" if row[name] is None else str(row[name]) for name in expected} == expected
        for name in ("energy_uj", "output_tokens"):
            assert row[name] is None or type(row[name]) is int
    assert isinstance(rows[-1]["input_tokens"], str)  # more digits than a spreadsheet's number holds
    for sheet in book:
        for line in sheet.iter_rows():
            assert all(cell.data_type != "f" for cell in line)
    assert {f"'{text}" for text in FORMULAS if text.isprintable()} <= {row["model"] for row in rows}
    assert ORIGIN in [cell.value for cell in book["About"]["B"]]


@pytest.mark.parametrize("write", [write_csv, write_xlsx])
def test_a_file_that_cannot_be_written_is_said_to_be(
    hostile: tuple[Path, Ledger], tmp_path: Path, write: Callable[[Path, Path, Question], object]
) -> None:
    export, _ = hostile
    with pytest.raises(UnavailableError, match="could not be written"):
        write(export, tmp_path / "away" / "x", Question())


def test_sheets_end_at_the_limit(
    hostile: tuple[Path, Ledger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export, ledger = hostile
    monkeypatch.setattr(xlsx_records, "_SHEET_ROWS", 11)
    summary = write_xlsx(export, tmp_path / "x.xlsx", Question())
    book, rows = workbook(tmp_path / "x.xlsx")
    assert summary.sheets == len(book.sheetnames) - 1 == 3
    assert sorted(row["id"] for row in rows) == sorted(record.id for *_, record in ledger.records)


OFFICE = shutil.which("soffice")


@pytest.mark.skipif(OFFICE is None, reason="LibreOffice is not installed (Debian: libreoffice-calc-nogui)")
@pytest.mark.slow
def test_libreoffice_opens_both(hostile: tuple[Path, Ledger], tmp_path: Path) -> None:
    """What LibreOffice makes of them, saved as CSV, has each text and computes none."""
    export, ledger = hostile
    write_xlsx(export, tmp_path / "book.xlsx", Question())
    write_csv(export, tmp_path / "text.csv", Question())
    assert OFFICE is not None
    for name, sheet in (("book.xlsx", 2), ("text.csv", 0)):
        out = tmp_path / name.replace(".", "-")
        subprocess.run(
            [
                OFFICE,
                f"-env:UserInstallation=file://{tmp_path}/profile",
                "--headless",
                "--convert-to",
                f"csv:Text - txt - csv (StarCalc):44,34,76,1,,0,false,true,false,false,false,{sheet}",
                "--outdir",
                str(out),
                str(tmp_path / name),
            ],
            check=True,
            capture_output=True,
            timeout=200,
        )
        made = next(out.glob("*.csv"))
        with made.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert sorted(row["id"] for row in rows) == sorted(record.id for *_, record in ledger.records)
        records = {record.id: record for *_, record in ledger.records}
        for row in rows:
            assert int(row["output_tokens"]) == records[row["id"]].usage.output_tokens
        models = {row["model"] for row in rows}
        assert "2" not in models
        assert {"'=1+1", "'@SUM(1)", "'+1+1"} <= models or {"=1+1", "@SUM(1)", "+1+1"} <= models


def test_what_cannot_be_written_leaves_the_old_file(hostile: tuple[Path, Ledger], tmp_path: Path) -> None:
    export, _ = hostile
    (tmp_path / "x.csv").write_text("old")
    with pytest.raises(InvalidError, match="not an export"):
        write_csv(tmp_path, tmp_path / "x.csv", Question())
    with pytest.raises(InvalidError):
        write_csv(export, tmp_path / "x.csv", Question(where={"day": ["no day"]}))
    assert (tmp_path / "x.csv").read_text() == "old"
    with pytest.raises(UnavailableError):
        write_csv(export, tmp_path / "none/x.csv", Question())
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_absent_figures_are_empty(hostile: tuple[Path, Ledger], tmp_path: Path) -> None:
    export, ledger = hostile
    write_csv(export, tmp_path / "x.csv", Question())
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        empty = sum(row["cost_nano"] == "" for row in csv.DictReader(file))
    assert empty == sum(record.cost_nano is UNSET for *_, record in ledger.records) > 0


def test_guarding_twice_is_guarding_once() -> None:
    assert all(safe_cell(safe_cell(text)) == safe_cell(text) for text in (*FORMULAS, *HARMLESS, ""))
    assert safe_cell(Quality(value=1, scale=0)).startswith("Quality")
