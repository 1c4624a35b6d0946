"""``tallystick reconcile`` over a real export: right invoices in every form, and errors put into them."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from ledger.core.records import Record, document_digest
from tests.cli.conftest import Run, json_of, run_command
from tests.cost.logged import DAY_US, DEPLOYMENTS, FIRST_US, LARGE, MINI, NEW, OLD, OWN, Logged

BY_DIGEST = {document_digest(each): each.model for each in DEPLOYMENTS.values()}
DAY = {n: date(2026, 9, 28) + timedelta(days=n) for n in range(5)}
FROM, TO = "2026-09-28", "2026-10-03"


@pytest.fixture
def run() -> Run:
    return run_command


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("books")
    arguments = []
    for book in (OLD, NEW):
        path = folder / f"{book.version}.json"
        path.write_bytes(msgspec.json.encode(book))
        arguments += ["--prices", str(path)]
    return arguments


def by_day(records: tuple[Record, ...], *, ended: bool = False) -> dict[tuple[int, str], list[Record]]:
    found: dict[tuple[int, str], list[Record]] = defaultdict(list)
    for record in records:
        if BY_DIGEST[record.deployment] != OWN:
            at = record.ended_us if ended else record.started_us
            found[(at - FIRST_US) // DAY_US, BY_DIGEST[record.deployment]].append(record)
    return found


def usage_rows(records: tuple[Record, ...], *, ended: bool = False) -> list[dict[str, Any]]:
    """As OpenAI's dashboard exports usage."""
    rows = []
    for (day, model), group in sorted(by_day(records, ended=ended).items()):
        start = FIRST_US // 10**6 + day * 86_400
        rows.append(
            {
                "start_time": start,
                "end_time": start + 86_400,
                "num_model_requests": len(group),
                "model": "gpt-4o-mini-2024-07-18" if model == MINI else model,
                "batch": "false",
                "input_tokens": sum(r.usage.input_tokens for r in group),
                "output_tokens": sum(r.usage.output_tokens for r in group),
                "input_cached_tokens": sum(r.usage.cached_input_tokens or 0 for r in group),
            }
        )
    return rows


def plain_rows(records: tuple[Record, ...]) -> list[dict[str, Any]]:
    """Lines of one kind each with exact amounts, by the contract."""
    rows = []
    for (day, model), group in sorted(by_day(records).items()):
        amounts: dict[str, list[Fraction]] = defaultdict(list)
        counts: dict[str, int] = defaultdict(int)
        for record in group:
            usage = record.usage
            cached = usage.cached_input_tokens or 0
            long = usage.input_tokens > 128_000
            if model == MINI:
                rates = ("0.1", "0.033333333", "0.500000001") if day >= 3 else ("0.15", "0.075", "0.6")
            else:
                rates = ("5", "5", "15") if long else ("2.5", "1.25", "10")
            reasoning = (usage.reasoning_tokens or 0) if model == LARGE else 0
            values = (usage.input_tokens - cached, cached, usage.output_tokens - reasoning)
            for kind, count, rate in zip(("input", "cached_input", "output"), values, rates, strict=True):
                counts[kind] += count
                amounts[kind].append(count * Fraction(rate) / 10**6)
            if model == LARGE:
                counts["reasoning"] += reasoning
                amounts["reasoning"].append(reasoning * Fraction("15" if long else "9.999999999") / 10**6)
                counts["requests"] += 1
                amounts["requests"].append(Fraction(0 if long else 1001, 10**9))
        for kind, count in counts.items():
            if count:
                cents = sum(amounts[kind]) * 10_000 + Fraction(1, 2)
                rows.append(
                    {
                        "start": DAY[day].isoformat(),
                        "model": model,
                        "kind": kind,
                        "quantity": count,
                        "amount": f"{int(cents) // 10_000}.{int(cents) % 10_000:04d}",
                        "currency": "USD",
                    }
                )
    return rows


def write(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(out.getvalue(), encoding="utf-8")
    return path


def reconcile(run: Run, path: Path, logged: Logged, *more: str) -> Any:
    return run("reconcile", path, "--export", logged.export, "--where", "provider=openai", *more, "--json")


PERIOD = ("--from", FROM, "--to", TO)


@pytest.mark.parametrize("ended", [False, True])
def test_openai_usage_agrees_by_either_day(
    run: Run,
    logged: Logged,
    books: list[str],
    tmp_path: Path,
    ended: bool,
) -> None:
    path = write(tmp_path / "usage.csv", usage_rows(logged.records, ended=ended))
    result = reconcile(run, path, logged, *books, *PERIOD)
    found = json_of(result)
    assert (result.exit_code, found["differences"], found["form"]) == (0, [], "openai-usage")
    assert found["attributed"] == ("ended" if ended else "started")
    assert len(found["compared"]) == 10


def test_openai_usage_as_json_pages(run: Run, logged: Logged, tmp_path: Path) -> None:
    buckets = [
        {
            "object": "bucket",
            "start_time": row["start_time"],
            "end_time": row["end_time"],
            "results": [{k: v for k, v in row.items() if not k.endswith("_time")} | {"batch": None}],
        }
        for row in usage_rows(logged.records)
    ]
    path = tmp_path / "usage.json"
    path.write_text(json.dumps({"object": "page", "data": buckets, "has_more": False}))
    result = reconcile(run, path, logged, *PERIOD)
    assert (result.exit_code, json_of(result)["differences"]) == (0, [])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_plain_lines_agree_to_the_last_digit(
    run: Run,
    logged: Logged,
    books: list[str],
    tmp_path: Path,
    delimiter: str,
) -> None:
    path = write(tmp_path / "bill.csv", plain_rows(logged.records), delimiter)
    result = reconcile(run, path, logged, *books, *PERIOD)
    assert json_of(result)["differences"] == []
    assert result.exit_code == 0


def test_every_seeded_error_is_named(
    run: Run,
    logged: Logged,
    books: list[str],
    tmp_path: Path,
) -> None:
    rows = plain_rows(logged.records)

    def at(day: int, model: str, kind: str) -> dict[str, Any]:
        (found,) = (
            r for r in rows if (r["start"], r["model"], r["kind"]) == (DAY[day].isoformat(), model, kind)
        )
        return found

    missing = at(0, MINI, "output")
    doubled, moved, wrong = at(1, MINI, "input"), at(2, MINI, "cached_input"), at(4, LARGE, "output")
    dearer, other = at(3, MINI, "output"), at(4, MINI, "input")
    rows.remove(missing)
    rows.append(dict(doubled))
    moved["start"] = DAY[4].isoformat()
    wrong["quantity"] += 1
    dearer["amount"] = f"{float(dearer['amount']) * 1.2:.4f}"
    other["currency"] = "EUR"
    rows.append({**dearer, "model": "gpt-5", "amount": "1.0000"})
    path = write(tmp_path / "bill.csv", rows)
    result = reconcile(run, path, logged, *books, *PERIOD)
    found = json_of(result)["differences"]
    line = {id(row): number for number, row in enumerate(rows, 2)}
    told = {(d["what"], d["model"], (d["from_us"] - FIRST_US) // DAY_US, tuple(d["lines"])) for d in found}
    assert result.exit_code == 1
    assert told == {
        ("missing", MINI, 0, ()),
        ("double", MINI, 1, (len(rows),)),
        ("wrong-day", MINI, 4, (line[id(moved)],)),
        ("wrong-quantity", LARGE, 4, (line[id(wrong)],)),
        ("wrong-rate", MINI, 3, (line[id(dearer)],)),
        ("other-currency", MINI, 4, (line[id(other)],)),
        ("unlogged", "gpt-5", 3, (len(rows) + 1,)),
    }
    by_what = {each["what"]: each for each in found}
    assert by_what["double"]["first"] == line[id(doubled)]
    assert by_what["wrong-day"]["belongs_us"] == FIRST_US + 2 * DAY_US
    assert by_what["missing"]["logged"] == {"output": missing["quantity"]}
    assert by_what["missing"]["amount_nano"] == -round(Fraction("0.6") * missing["quantity"] * 1000)
    table = run("reconcile", path, "--export", logged.export, "--where", "provider=openai", *books, *PERIOD)
    assert table.exit_code == 1
    assert f"belongs to {DAY[2]}" in table.stdout
    assert f"same as line {line[id(doubled)]}" in table.stdout
    sheet = run(
        "reconcile", path, "--export", logged.export, "--where", "provider=openai", *books, *PERIOD, "--csv"
    )
    assert [row["what"] for row in csv.DictReader(io.StringIO(sheet.stdout))].count("wrong-day") == 1


def test_days_of_another_zone(run: Run, logged: Logged, tmp_path: Path) -> None:
    shift = 7 * 3_600_000_000  # Los Angeles in September
    groups: dict[tuple[int, str], list[Record]] = defaultdict(list)
    for record in logged.records:
        if BY_DIGEST[record.deployment] != OWN:
            day = (record.started_us - FIRST_US - shift) // DAY_US
            groups[day, BY_DIGEST[record.deployment]].append(record)
    rows = [
        {
            "start": (date(2026, 9, 28) + timedelta(days=day)).isoformat(),
            "model": model,
            "input_tokens": sum(r.usage.input_tokens for r in group),
            "output_tokens": sum(r.usage.output_tokens for r in group),
        }
        for (day, model), group in groups.items()
    ]
    path = write(tmp_path / "bill.csv", rows)
    right = reconcile(run, path, logged, "--timezone", "America/Los_Angeles")
    assert (right.exit_code, json_of(right)["differences"]) == (0, [])
    assert reconcile(run, path, logged).exit_code == 1


def test_costs_alone(run: Run, logged: Logged, books: list[str], tmp_path: Path) -> None:
    """As OpenAI's costs API tells, without quantities."""
    rows = []
    for (day, model), group in sorted(by_day(logged.records).items()):
        start = FIRST_US // 10**6 + day * 86_400
        cost = sum(r.cost_nano for r in group if r.cost_nano is not UNSET)
        rows.append(
            {
                "start_time": start,
                "end_time": start + 86_400,
                "amount_value": f"{cost // 10**9}.{cost % 10**9 // 10**5:04d}",
                "amount_currency": "usd",
                "line_item": model,
            }
        )
    more = ("--tolerance", "0.0002", *books, *PERIOD)
    path = write(tmp_path / "costs.csv", rows)
    result = reconcile(run, path, logged, *more)
    assert (result.exit_code, json_of(result)["differences"]) == (0, [])
    rows[3]["amount_value"] = "99.0000"
    found = json_of(reconcile(run, write(path, rows), logged, *more))["differences"]
    assert [(each["what"], each["lines"]) for each in found] == [("wrong-amount", [5])]


def test_our_own_focus_export_agrees(run: Run, logged: Logged, books: list[str], tmp_path: Path) -> None:
    out = tmp_path / "focus.csv"
    made = run("export", "focus", logged.export, out, "--account", "1", "--provider", "openai")
    assert made.exit_code == 0, made.output
    result = reconcile(run, out, logged, *books, *PERIOD)
    found = json_of(result)
    assert (found["form"], found["differences"], result.exit_code) == ("focus", [], 0)


def test_lines_that_the_export_does_not_hold_are_told(
    run: Run,
    logged: Logged,
    tmp_path: Path,
) -> None:
    """Lines outside the period asked for are left out; what has no rate cannot be checked."""
    rows = plain_rows(logged.records)
    path = write(tmp_path / "bill.csv", rows)
    day = reconcile(run, path, logged, "--from", "2026-09-29", "--to", "2026-09-30")
    assert day.exit_code == 0
    assert {each["from_us"] for each in json_of(day)["compared"]} == {FIRST_US + DAY_US}
    assert json_of(day)["outside"]


def test_unpriced_lines_cannot_be_checked(
    run: Run,
    logged: Logged,
    books: list[str],
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "bill.csv", plain_rows(logged.records))
    result = reconcile(run, path, logged, *books[2:], *PERIOD)  # the new book alone knows no old day
    assert result.exit_code == 2
    assert json_of(result)["unpriced"]


@pytest.mark.parametrize(
    ("text", "more", "says"),
    [
        ("", (), "each column once"),
        ("Day,tokens\n", (), "no column"),
        ("start,model\n", (), "has no line"),
        ("start,model,kind,quantity\n2026-10-01,x,input,many\n", (), "is no number"),
        ("start,model,kind,quantity\n1.10.2026,x,input,1\n", (), "is no time"),
        ("start,model,quantity\n2026-10-01,x,1\n", (), "what it counts"),
        ("a,a\n1,2\n", (), "each column once"),
        ("Day,Service,input_tokens\n2026-10-01,x,1\n", ("--column", "start=Date"), "no column 'Date'"),
        ("Day,Service,input_tokens\n2026-10-01,x,1\n", ("--column", "colour=Day"), "no field"),
        ('{"data": 5}', (), "is not a page"),
        ("start,model,input_tokens\n2026-10-01,x,1\n", ("--timezone", "Mars/Olympus"), "no time zone"),
        ("start,model,input_tokens\n2026-10-01,x,1\n", ("--form", "sap"), "no form"),
    ],
)
def test_unusable_invoices_are_refused(
    run: Run,
    logged: Logged,
    tmp_path: Path,
    text: str,
    more: tuple[str, ...],
    says: str,
) -> None:
    path = tmp_path / "bill.csv"
    path.write_text(text)
    result = run("reconcile", path, "--export", logged.export, *more)
    assert result.exit_code == 2
    assert says in result.stderr


def test_columns_can_be_mapped(run: Run, logged: Logged, tmp_path: Path) -> None:
    rows = [
        {
            "Day": row["start"],
            "Service": f"tokens of {row['model']}",
            "Meter": row["kind"],
            "Used": row["quantity"],
        }
        for row in plain_rows(logged.records)
    ]
    path = write(tmp_path / "bill.csv", rows)
    mapped = ("start=Day", "model=Service", "kind=Meter", "quantity=Used")
    more = [part for each in mapped for part in ("--column", each)]
    more += ["--alias", f"tokens of {MINI}={MINI}", "--alias", f"tokens of {LARGE}={LARGE}"]
    result = reconcile(run, path, logged, *more, *PERIOD)
    assert (result.exit_code, json_of(result)["differences"]) == (0, [])
