"""Evaluations and corrections in queries: DuckDB says what a plain fold over the statements says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from ledger.core.corrections import applies, restate
from ledger.core.records import Energy, Quality, Record, encode_record, record_hash
from ledger.core.statements import Correction, Evaluation, SignedStatement
from ledger.export.parquet import export_parquet
from ledger.export.quality import EXTRA_SCALE
from ledger.export.query import FIGURES, Question, ask
from ledger.export.reading import open_export
from tests import build
from tests.build import START_US


@dataclass
class Made:
    """A ledger with evaluations and corrections of every kind, its export, and what went in."""

    ledger: build.Ledger
    folder: Path
    records: list[tuple[SignedStatement, Record]] = field(default_factory=list)
    later: list[SignedStatement] = field(default_factory=list)


def metrics(**values: tuple[int, int]) -> dict[str, Quality]:
    return {name: Quality(value=value, scale=scale) for name, (value, scale) in values.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    directory = tmp_path_factory.mktemp("quality")
    ledger = build.make_ledger(directory)
    issuer = ledger.issuer
    made = Made(ledger, directory / "export")
    other = build.make_deployment(model="Qwen3-32B")
    ledger.append(issuer.deployment(other))
    for batch in range(4):
        records = [
            build.make_record(
                (ledger.deployment, other)[n % 2],
                n=batch * 20 + n,
                carbon_ng=1000 + n,
                carbon_low_ng=900,
                carbon_high_ng=2000,
                quality=metrics(bleu=(400 + n, 3)) if n % 5 == 0 else UNSET,
                cost_nano=50 + n,
                currency="EUR",
            )
            for n in range(20)
        ]
        sealed = issuer.batch(records)
        ledger.append(sealed)
        made.records += [(sealed.statement, record) for record in records]

    def say(payload: Any) -> None:
        statement = issuer.sign(payload)
        ledger.append(statement)
        made.later.append(statement)

    ids = [record.id for _, record in made.records]
    for about, values in (
        ({"record": ids[0]}, metrics(accuracy=(9, 1), toxicity=(3, 3))),
        ({"record": ids[1]}, metrics(accuracy=(875, 3))),
        ({"record": ids[2]}, metrics(accuracy=(-2, 0))),
        ({"record": ids[2]}, metrics(accuracy=(1, 0))),  # said again: the later one counts
        ({"record": "01a20a9b-7ea7-77ff-a448-fa57bb0fd68e"}, metrics(accuracy=(0, 0))),  # of no record here
        ({"statement": made.records[0][0].leaf_hash.hex()}, metrics(perplexity=(731, 2))),
        ({"deployment": ledger.digest}, {"a.b~c": Quality(value=5, scale=0)}),
    ):
        say(Evaluation(evaluator="judge", metrics=values, **about, **issuer.chain()))
    say(Evaluation(evaluator="people", metrics=metrics(accuracy=(5, 1)), record=ids[2], **issuer.chain()))
    for at, figures in (
        (3, {"carbon_ng": 5}),
        (3, {"energy": Energy(energy_uj=9, method="measured", source="again"), "water_nl": 4}),
        (3, {"carbon_ng": 6, "cost_nano": 1}),
        (8, {"embodied_ng": 2}),
    ):
        record = made.records[at][1]
        right = record_hash(encode_record(record)).hex()
        say(Correction(record=record.id, record_hash=right, reason=f"at {at}", **figures, **issuer.chain()))
    say(Correction(record=ids[9], record_hash="00" * 32, reason="other bytes", carbon_ng=1, **issuer.chain()))
    export_parquet(ledger.store, made.folder, log_key=ledger.log_key, created_us=START_US)
    yield made
    ledger.store.close()


def group_of(made: Made, by: tuple[str, ...], record: Record) -> tuple[Any, ...]:
    model = "SmolLM2-135M-Instruct" if record.deployment == made.ledger.digest else "Qwen3-32B"
    return tuple({"model": model, "tenant": record.tenant}[name] for name in by)


@pytest.mark.parametrize("by", [(), ("model",), ("tenant", "model")])
def test_means_equal_a_plain_fold(made: Made, by: tuple[str, ...]) -> None:
    latest: dict[tuple[str, str, str], tuple[str, Quality]] = {}
    for statement in made.later:
        payload = statement.payload
        if isinstance(payload, Evaluation):
            about = "record" if payload.record is not UNSET else None
            about = about or ("batch" if payload.statement is not UNSET else "deployment")
            target = next(
                t for t in (payload.record, payload.statement, payload.deployment) if t is not UNSET
            )
            for name, value in payload.metrics.items():
                latest[payload.evaluator, str(target), name] = about, value
    values: dict[Any, list[Fraction]] = defaultdict(list)
    scales: dict[Any, int] = defaultdict(int)
    counted = set()

    def count(key: Any, value: Quality) -> None:
        values[key].append(Fraction(value.value, 10**value.scale))
        scales[key] = max(scales[key], value.scale)

    for statement, record in made.records:
        group = group_of(made, by, record)
        for name, value in (record.quality or {}).items():
            count((group, name, "recorded"), value)
        for (evaluator, target, name), (about, value) in latest.items():
            mine = {"record": record.id, "batch": statement.leaf_hash.hex(), "deployment": record.deployment}
            if mine[about] == target and (group, evaluator, target, name) not in counted:
                counted.add((group, evaluator, target, name))
                count((group, name, about), value)
    rows = ask(made.folder, Question(by=by, quality=True))
    found = {
        (tuple(row[name] for name in by), each["metric"], each["about"]): each
        for row in rows
        for each in row.get("quality", ())
    }
    assert found.keys() == values.keys()
    for key, each in found.items():
        unit = 10 ** each["scale"]
        assert each["scale"] == scales[key] + EXTRA_SCALE
        assert each["count"] == len(values[key])
        exact = sum(values[key]) / len(values[key]) * unit
        assert abs(exact - each["mean"]) <= Fraction(1, 2)
        assert (each["least"], each["most"]) == (min(values[key]) * unit, max(values[key]) * unit)


@pytest.mark.parametrize("by", [(), ("model",), ("tenant", "model")])
def test_corrected_totals_equal_a_plain_fold_and_show_both(made: Made, by: tuple[str, ...]) -> None:
    groups: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for statement, record in made.records:
        digest = record_hash(encode_record(record)).hex()
        corrections = [
            (leaf, each.payload)
            for leaf, each in enumerate(made.later)
            if isinstance(each.payload, Correction)
            and applies(each.payload, each.issuer, record, digest, statement.issuer)
        ]
        groups[group_of(made, by, record)].append(restate(record, corrections))

    def total(records: list[Record], name: str) -> int | None:
        def value(record: Record) -> Any:
            energy = record.energy
            if name.startswith("energy"):
                if energy is UNSET:
                    return UNSET
                end = {"energy_low_uj": energy.low_uj, "energy_high_uj": energy.high_uj}.get(name, UNSET)
                return energy.energy_uj if end is UNSET else end
            if name in ("carbon_low_ng", "carbon_high_ng") and getattr(record, name) is UNSET:
                return record.carbon_ng
            return getattr(record, name, UNSET)

        given = [v for r in records if (v := value(r)) is not UNSET]
        return sum(given) if given else None

    names = [n for n in FIGURES if not n.endswith("_tokens")]
    names += ["energy_low_uj", "energy_high_uj", "carbon_low_ng", "carbon_high_ng"]
    rows = ask(made.folder, Question(by=by))
    assert len(rows) == len(groups)
    changed = 0
    for row in rows:
        restated = groups[tuple(row[name] for name in by)]
        corrected = sum(bool(each.changed) for each in restated)
        assert row.get("corrected_records", 0) == corrected
        changed += corrected
        for name in names:
            after, before = (
                total([each.record for each in restated], name),
                total([each.logged for each in restated], name),
            )
            assert row.get(name) == after, name
            assert (name in row.get("as_logged", {})) is (after != before)
            if after != before:
                assert row["as_logged"][name] == before
    assert changed == 2
    for row in ask(made.folder, Question(by=by, corrected=False)):
        assert "as_logged" not in row


def test_evaluations_are_in_the_export_to_the_digit(made: Made) -> None:
    with open_export(made.folder) as connection:
        found = connection.execute(
            "SELECT evaluator, about, target, metric, value, scale, latest FROM evaluations "
            "ORDER BY leaf_index, metric"
        ).fetchall()
    said = [
        (p.evaluator, name, q.value, q.scale)
        for each in made.later
        if isinstance(p := each.payload, Evaluation)
        for name, q in sorted(p.metrics.items())
    ]
    assert [(e, m, v, s) for e, _, _, m, v, s, _ in found] == said
    assert [row[6] for row in found].count(False) == 1


def test_reports_say_what_was_first_logged(made: Made) -> None:
    from ledger.export.reports import figures as fig

    (row,) = ask(made.folder, Question())
    energy = fig.total(row, fig.ENERGY_KWH)
    logged = sum(r.energy.energy_uj for _, r in made.records if r.energy is not UNSET)
    assert energy.coverage == f"with corrections; {logged / 3.6e12:.6f} as first logged"
    water = fig.total(row, fig.WATER_L)  # stated by a correction alone
    assert (
        water.coverage
        == f"1 of {len(made.records)} records state it; with corrections; 0.000000 as first logged"
    )
    per = fig.per(row, fig.ENERGY_KWH, "J", 10**6, by="tokens")
    assert per.coverage == "with corrections: 2 records are restated"
    rows = ask(made.folder, Question(by=("model",)))
    parts = [fig.sum_of([each], fig.CARBON_KG) for each in rows]
    assert parts[0] is not None
    assert parts[1] is not None
    both = parts[0] + parts[1]
    assert both.logged == Fraction(sum(r.carbon_ng for _, r in made.records), 10**12)  # type: ignore[misc]
    (plain,) = ask(made.folder, Question(corrected=False))
    assert fig.total(plain, fig.ENERGY_KWH).coverage is UNSET
