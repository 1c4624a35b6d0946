"""Tables of reports against a fold over the records, and what they tell of statements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from ledger.core.records import document_digest, encode_record, record_hash
from ledger.export.reports import KINDS
from ledger.export.reports.document import Column, Figure, Report, Section, Table
from ledger.export.reports.pdf import _figure, _shown, _table
from tests.export.report_fold import (
    BY_DIGEST,
    KG,
    KWH,
    LITRE,
    M3,
    MWH,
    NANO,
    T,
    World,
    field,
    make_world,
    provider,
    text,
)
from tests.export.report_ledger import DAYS, DEPLOYMENTS, FACTORS
from tests.export.test_report_figures import scope_of


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from make_world(tmp_path_factory.mktemp("tables"))


def tables(report: Report) -> dict[str, Table]:
    found = [table for section in report.sections for table in section.tables]
    assert len({table.name for table in found}) == len(found)
    return {table.name: table for table in found}


def day(record: Any) -> str:
    return f"{datetime.fromtimestamp(record.started_us // 10**6, UTC):%Y-%m-%d}"


def named(*fields: str, none: str = "not stated") -> Callable[[Any], str]:
    """The label of a record's group, by its deployment."""

    def label(record: Any) -> str:
        values = [getattr(BY_DIGEST[record.deployment], name) for name in fields]
        return " ".join(value for value in values if value is not UNSET) or none

    return label


def in_sql(*fields: str, none: str = "not stated") -> str:
    """The same in SQL."""
    return f"coalesce(nullif(concat_ws(' ', {', '.join(fields)}), ''), '{none}')"


def method(record: Any) -> str:
    return "unknown" if record.energy is UNSET else record.energy.method


def method_and_source(record: Any) -> str:
    return "unknown" if record.energy is UNSET else f"{record.energy.method} {record.energy.source}"


def is_own(record: Any) -> bool:
    return provider(record) is UNSET


DAY_SQL = "strftime(started_at, '%Y-%m-%d')"
OWN_SQL = "provider IS NULL"
Labels = tuple[Callable[[Any], str], str]
BY_DAY: Labels = (day, DAY_SQL)
BY_METHOD: Labels = (method, "coalesce(energy_method, 'unknown')")


def by(*fields: str, none: str = "not stated") -> Labels:
    return named(*fields, none=none), in_sql(*fields, none=none)


def everything(_: Any) -> bool:
    return True


def not_own(record: Any) -> bool:
    return not is_own(record)


GROUPED: dict[tuple[str, str], tuple[Labels, Callable[[Any], bool], str]] = {
    ("eu-ai-act-log", "finish_reasons"): ((lambda r: r.finish_reason, "finish_reason"), everything, "true"),
    ("eu-ai-act-log", "by_day"): (BY_DAY, everything, "true"),
    ("eu-ai-act-gpai", "by_model"): (by("model", "version"), everything, "true"),
    ("eu-ai-act-gpai", "by_hardware"): (by("accelerator", "quantization"), everything, "true"),
    ("eu-ai-act-gpai", "by_source"): (
        (method_and_source, in_sql("energy_method", "energy_source", none="unknown")),
        everything,
        "true",
    ),
    ("esrs-e1", "energy_by_model"): (by("model", "version"), everything, "true"),
    ("esrs-e1", "energy_by_region"): (by("region"), everything, "true"),
    ("esrs-e1", "energy_by_method"): (BY_METHOD, everything, "true"),
    ("esrs-e1", "by_provider"): (by("provider", none="own, no provider named"), everything, "true"),
    ("eu-data-centres", "by_site"): (by("site"), everything, "true"),
    ("eu-data-centres", "by_month"): ((lambda r: day(r)[:7], f"{DAY_SQL}[:7]"), everything, "true"),
    ("eu-data-centres", "by_accelerator"): (by("accelerator"), everything, "true"),
    ("eu-data-centres", "by_method"): (BY_METHOD, everything, "true"),
    ("ghg-protocol", "own_by_region"): (by("region", "provider"), is_own, OWN_SQL),
    ("ghg-protocol", "others_by_provider"): (by("provider"), not_own, f"NOT {OWN_SQL}"),
    ("ghg-protocol", "others_by_model"): (by("provider", "model"), not_own, f"NOT {OWN_SQL}"),
    ("ghg-protocol", "by_method"): (BY_METHOD, everything, "true"),
    ("sb-253", "own_by_site"): (by("site", "provider"), is_own, OWN_SQL),
    ("sb-253", "bought_by_provider"): (by("provider"), not_own, f"NOT {OWN_SQL}"),
    ("sb-253", "by_method"): (BY_METHOD, everything, "true"),
    ("customer-statement", "by_day"): (BY_DAY, everything, "true"),
    ("customer-statement", "by_model"): (by("model", "version"), everything, "true"),
}
"""Of each grouped table: the groups, and which records are in it; each in Python and in SQL."""
MEASURES = {
    ("energy", "kWh"): ("energy_uj", KWH, 6),
    ("energy", "MWh"): ("energy_uj", MWH, 9),
    ("carbon_location", "kg CO2e"): ("carbon_ng", KG, 6),
    ("carbon_location", "t CO2e"): ("carbon_ng", T, 9),
    ("carbon_market", "t CO2e"): ("carbon_market_ng", T, 9),
    ("carbon_embodied", "t CO2e"): ("embodied_ng", T, 9),
    ("water", "l"): ("water_nl", LITRE, 6),
    ("water", "m3"): ("water_nl", M3, 9),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_grouped_table_equals_a_fold_and_sql(world: World, kind: str) -> None:
    where, scope_sql, keep = scope_of(kind, world)
    found = tables(world.report(kind, where))
    assert {name for name, table in found.items() if table.columns[0].name == "group"} == {
        name for of, name in GROUPED if of == kind
    }
    for (of, name), ((label, label_sql), inside, inside_sql) in GROUPED.items():
        if of != kind:
            continue
        table = found[name]
        records = [(who, r) for who, r in world.records if keep(r) and inside(r)]
        groups = {row[0] for row in table.rows}
        assert groups == {label(r) for _, r in records}, name
        assert len(groups) == len(table.rows)
        for at, column in enumerate(table.columns[1:], 1):
            figure, divisor, places = MEASURES.get((column.name, str(column.unit)), (column.name, 1, 0))
            summed = world.connection.execute(
                f"SELECT {label_sql}, sum({'1' if figure == 'records' else figure})::VARCHAR FROM truth "
                f"WHERE {scope_sql} AND {inside_sql} GROUP BY 1"
            ).fetchall()
            queried = {
                group: None if value is None else text(Fraction(int(value)) / divisor, places)
                for group, value in summed
            }
            assert {row[0]: row[at] for row in table.rows} == queried, (name, column.name)
            for row in table.rows:
                values = [field(r, figure) for _, r in records if label(r) == row[0]]
                known = [value for value in values if value is not None]
                folded = text(Fraction(sum(known), divisor), places) if known else None
                assert row[at] == folded, (name, row[0], column.name)


def test_the_log_extract_tells_of_statements(world: World) -> None:
    found = tables(world.report("eu-ai-act-log"))
    assert len(found["deployments"].rows) == len(DEPLOYMENTS)
    for row in found["deployments"].rows:
        mine = [r for _, r in world.records if r.deployment == row[0]]
        assert row[1] is not None
        assert row[1].startswith(BY_DIGEST[str(row[0])].model)
        assert row[6] == str(len(mine))
    weights = {row[0]: row[2] for row in found["deployments"].rows}
    assert (
        weights[document_digest(DEPLOYMENTS[0])] == f"openssf-model-signing {DEPLOYMENTS[0].weights.digest}"
    )  # type: ignore[union-attr]
    assert weights[document_digest(DEPLOYMENTS[1])] == "not stated"
    assert [row[2].split()[0] for row in found["evaluations"].rows if row[2]] == ["deployment", "record"]
    assert found["evaluations"].rows[0][3] == "accuracy 0.91, toxicity 0.003"
    ((_, _, issuer, rule, _, erased),) = found["erasures"].rows
    assert (issuer, rule, erased) == ("gpu-7.example.com/vllm", "erased at the end of the contract", "1")
    lost = {row[0]: row[5] for row in found["issuers"].rows}
    assert lost == {
        "gateway.example.com/litellm": "0",
        "gpu-7.example.com/vllm": str(sum(d % 3 for d in range(DAYS))),
    }
    fields = {row[0]: row[3] for row in found["fields"].rows}
    assert fields["quality"] == str(sum(r.quality is not UNSET for _, r in world.records))
    assert fields["tenant"] == str(sum(r.tenant is not UNSET for _, r in world.records))
    for row in found["references"].rows:
        mine = world.connection.execute(
            "SELECT min(leaf_index), max(leaf_index), count(DISTINCT leaf_index) FROM truth "
            "WHERE issuer = $1",
            [row[0]],
        ).fetchone()
        assert mine == (int(str(row[1])), int(str(row[3])), int(str(row[5])))


def test_evaluations_are_those_of_the_scope(world: World) -> None:
    found = tables(world.report("eu-ai-act-log", {"provider": ("openai",)}))
    assert found["evaluations"].rows == ()
    assert len(found["deployments"].rows) == 1


def test_a_statement_tells_costs_and_leaves(world: World) -> None:
    found = tables(world.report("customer-statement", {"tenant": ("customer-3",)}))
    mine = [r for _, r in world.records if r.tenant == "customer-3"]
    for date, model, currency, requests, _, cost in found["cost_by_day"].rows:
        group = [
            r for r in mine if (day(r), BY_DIGEST[r.deployment].model, r.currency) == (date, model, currency)
        ]
        assert requests == str(len(group))
        assert cost == text(Fraction(sum(r.cost_nano for r in group), NANO), 9)  # type: ignore[misc]
    priced = sum(int(str(row[3])) for row in found["cost_by_day"].rows)
    assert priced == sum(r.currency is not UNSET for r in mine)
    assert sum(int(str(row[4])) for row in found["statements"].rows) == len(mine)


def test_an_incident_is_told_whole(world: World) -> None:
    """The second of the agent chain: it has a cause, and caused two."""
    record = next(r for _, r in world.records if r.parent is not UNSET)
    cause = next(r for _, r in world.records if r.id == record.parent)
    caused = {r.id for _, r in world.records if r.parent == record.id}
    assert len(caused) == 2
    found = tables(world.report("incident", {"record": (record.id,)}))
    family = [(row[0], row[1]) for row in found["family"].rows]
    assert family[0] == ("its cause", cause.id)
    assert {each for relation, each in family if relation == "caused by it"} == caused
    proof = {row[0]: row[1] for row in found["proof"].rows}
    assert proof["record hash"] == record_hash(encode_record(record)).hex()
    assert [row[1] for row in found["neighbours"].rows if row[0] == proof["seq"]] == ["batch (its own)"]
    assert found["deployment"].rows[0] == ("digest", record.deployment)
    assert ("pue_milli", "1250") in found["factors"].rows
    (said,) = found["about"].rows
    assert (said[1], said[4]) == ("evaluation", "record")
    assert "accuracy 0.91" in str(said[5])
    commitments = {row[0]: row[1] for row in found["commitments"].rows}
    assert commitments["input"] == record.input.digest  # type: ignore[union-attr]
    assert set(commitments) == {"input", "output", "request"}
    grandchild = next(r for _, r in world.records if r.parent == record.id)
    up = tables(world.report("incident", {"record": (grandchild.id,)}))["family"].rows
    assert [row[0] for row in up][:2] == ["its cause", "its cause, 2 steps up"]


def test_an_incident_tells_which_corrections_hold(world: World) -> None:
    record = next(r for _, r in world.records if r.carbon_ng == 5)
    told = [
        row[5]
        for row in tables(world.report("incident", {"record": (record.id,)}))["about"].rows
        if row[1] == "correction"
    ]
    assert told == ["meter was miscalibrated"]
    foreign = next(r for who, r in world.records if who == "gateway.example.com/litellm")
    about = tables(world.report("incident", {"record": (foreign.id,)}))["about"].rows
    assert "does not hold" in str([row[5] for row in about if row[1] == "correction"])


def test_a_record_that_is_not_there(world: World) -> None:
    report = world.report("incident", {"record": ("0199c8a0-0000-7000-8000-00000000000a",)})
    assert "has no record" in report.sections[0].text[0]


def test_long_words_can_break_in_print(world: World) -> None:
    """Digests are wider than a column; the printed text is the same but for spaces of no width."""
    report = world.report("eu-ai-act-log")
    shown = next(
        t for s in _shown(report)["sections"] for t in s["tables"] if t["title"].startswith("Deployments")
    )
    digest = shown["rows"][0][0]
    assert max(map(len, digest.split("\u200b"))) <= 16
    assert digest.replace("\u200b", "") == tables(report)["deployments"].rows[0][0]


def test_a_table_tells_that_its_sums_lack_records(world: World) -> None:
    """Once for all groups: a cell cannot say it."""
    having = sum(r.carbon_market_ng is not UNSET for _, r in world.records)
    assert 0 < having < len(world.records)
    table = tables(world.report("esrs-e1"))["energy_by_region"]
    assert f"; {having:,} of {len(world.records):,} records state carbon_market_ng" in table.derivation


def test_a_long_amount_can_break_in_print() -> None:
    """Training computation takes more digits than a column is wide."""
    figure = Figure(name="f", label="F", unit="FLOP", value="1" + "0" * 24, derivation="d")
    printed = _figure(figure, Section(title="S"))["value"]
    assert max(map(len, printed.split("\u200b"))) <= 4
    assert printed.replace("\u200b", "") == f"{10**24:,}"


def test_a_long_table_says_what_print_leaves_out() -> None:
    rows = tuple((str(n), str(n)) for n in range(240))
    columns = (Column(name="group", label="Group"), Column(name="records", label="Requests", unit="requests"))
    long = Table(name="t", title="T", columns=columns, rows=rows, chart="records", derivation="d")
    shown = _table(long)
    assert (len(shown["rows"]), shown["left_out"]) == (200, 40)
    assert (len(shown["bars"]), shown["undrawn"]) == (31, 240 - 31)
    short = _table(msgspec.structs.replace(long, rows=rows[:31]))
    assert (short["left_out"], short["undrawn"], len(short["bars"])) == (0, 0, 31)


def test_intensity_by_model_equals_a_fold_and_sql(world: World) -> None:
    """SCI: over the records of each model that state their carbon."""
    label, label_sql = by("model", "version")
    (table,) = [each for name, each in tables(world.report("sci")).items() if name == "by_model"]
    queried = {
        row[0]: row[1:]
        for row in world.connection.execute(
            f"SELECT {label_sql}, count(*)::VARCHAR, sum(tokens)::VARCHAR, sum(carbon_ng)::VARCHAR, "
            "sum(tokens) FILTER (carbon_ng IS NOT NULL)::VARCHAR FROM truth GROUP BY 1"
        ).fetchall()
    }
    assert {row[0] for row in table.rows} == set(queried) == {label(r) for _, r in world.records}
    for name, requests, tokens, intensity in table.rows:
        mine = [r for _, r in world.records if label(r) == name]
        stating = [r for r in mine if r.carbon_ng is not UNSET]
        folded = Fraction(sum(r.carbon_ng for r in stating), 10**6) / (  # type: ignore[misc]
            Fraction(sum(field(r, "tokens") or 0 for r in stating), 1000)
        )
        asked, counted, carbon, below = queried[name]
        assert (
            (requests, tokens)
            == (asked, counted)
            == (str(len(mine)), str(sum(field(r, "tokens") or 0 for r in mine)))
        )
        assert intensity == text(folded, 6) == text(Fraction(1000 * int(carbon), 10**6 * int(below)), 6)


def test_percentiles_equal_a_fold_and_sql(world: World) -> None:
    """The smallest value that so many of a hundred do not pass."""
    table = tables(world.report("eu-ai-act-log"))["latency"]
    expected = {
        "Time to the first token": (
            [r.first_token_us - r.started_us for _, r in world.records if r.first_token_us is not UNSET],
            "epoch_us(first_token_at) - epoch_us(started_at)",
        ),
        "Duration": (
            [r.ended_us - r.started_us for _, r in world.records],
            "epoch_us(ended_at) - epoch_us(started_at)",
        ),
    }
    assert {row[0] for row in table.rows} == set(expected)
    for label, *cells in table.rows:
        values, sql = expected[str(label)]
        for level, cell in zip((50, 90, 95, 99), cells, strict=True):
            folded = sorted(values)[-(-len(values) * level // 100) - 1]
            queried = world.sql(f"quantile_disc({sql}, {level / 100})", "true")
            assert cell == text(Fraction(folded, 1000), 3) == text(Fraction(queried, 1000), 3), (label, level)


@pytest.mark.parametrize("kind", ["esrs-e1", "ghg-protocol", "sb-253"])
def test_factor_sets_are_those_that_records_name(world: World, kind: str) -> None:
    table = tables(world.report(kind))["factor_sets"]
    queried = dict(
        world.connection.execute("SELECT pue_milli, count(*)::VARCHAR FROM truth GROUP BY 1").fetchall()
    )
    for made in FACTORS:
        (row,) = [row for row in table.rows if row[0] == f"{made.name} {made.version}"]
        mine = [r for _, r in world.records if r.factors == document_digest(made)]
        market = made.market_ug_per_kwh
        assert row[2] == text(Fraction(made.intensity_ug_per_kwh, 10**6), 6)
        assert row[3] == (None if market is UNSET else text(Fraction(market, 10**6), 6))
        assert row[4] == text(Fraction(made.pue_milli, 1000), 3)
        assert row[5] == str(len(mine)) == queried[made.pue_milli]


def test_spans_and_deployments_equal_sql(world: World) -> None:
    found = tables(world.report("eu-ai-act-log"))
    for table, group, cells in (("span", "issuer", (1, 2, 3)), ("deployments", "deployment", (4, 5, 6))):
        queried = {
            row[0]: (f"{row[1]} UTC", f"{row[2]} UTC", row[3])
            for row in world.connection.execute(
                f"SELECT {group}, strftime(min(started_at), '%Y-%m-%d %H:%M:%S'), "
                f"strftime(max(ended_at), '%Y-%m-%d %H:%M:%S'), count(*)::VARCHAR FROM truth GROUP BY 1"
            ).fetchall()
        }
        assert {row[0]: tuple(row[at] for at in cells) for row in found[table].rows} == queried
        for name, *_ in found[table].rows:
            mine = [r for who, r in world.records if name in (who, r.deployment)]
            first, last = min(r.started_us for r in mine), max(r.ended_us for r in mine)
            assert queried[str(name)] == (
                *(
                    f"{datetime.fromtimestamp(us // 10**6, UTC):%Y-%m-%d %H:%M:%S} UTC"
                    for us in (first, last)
                ),
                str(len(mine)),
            )
