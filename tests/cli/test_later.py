"""Corrections and evaluations where people look: records show, trace, query; both figures each time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.folder import Folder
from ledger.core.records import Energy, Quality, encode_record, record_hash
from ledger.core.statements import Correction, Evaluation
from ledger.keyfiles import load_private_key
from ledger.store import Sequencer
from tests.cli.conftest import LedgerFolder, Run, _log, json_of


@pytest.fixture
def said(own_ledger: LedgerFolder) -> LedgerFolder:
    """A ledger whose first record was corrected and evaluated."""
    folder = Folder(own_ledger.path)
    store = folder.open()
    sequencer = Sequencer(store, load_private_key(folder.log_key), published=folder.published)
    sequencer.start()
    issuer, record = own_ledger.issuer, own_ledger.records[0]
    right = record_hash(encode_record(record)).hex()
    energy = Energy(energy_uj=7_200_000_000, method="measured", source="rack meter")
    metrics = {"accuracy": Quality(value=91, scale=2)}
    for payload in (
        lambda: Correction(
            record=record.id,
            record_hash=right,
            reason="meter 7",
            energy=energy,
            carbon_ng=2_500_000,
            water_nl=1_800_000,
            **issuer.chain(),
        ),
        lambda: Evaluation(evaluator="judge 1", metrics=metrics, record=record.id, **issuer.chain()),
    ):
        _log(sequencer, issuer.key, issuer.sign(payload()).entry, None)
    sequencer.stop()
    store.close()
    return own_ledger


def test_show_has_both_figures_and_the_evaluation(run: Run, said: LedgerFolder) -> None:
    record = said.records[0]
    found = json_of(run("records", "show", said.path, record.id, "--json"))
    assert record.energy
    assert found["record"]["energy"]["energy_uj"] == record.energy.energy_uj
    assert found["corrected"]["energy"]["energy_uj"] == 7_200_000_000
    assert [each["reason"] for each in found["corrections"]] == ["meter 7"]
    assert found["evaluations"][0]["metrics"] == {"accuracy": {"value": 91, "scale": 2}}
    assert found["evaluations"][0]["about"] == "record"
    shown = run("records", "show", said.path, record.id).stdout
    for text in (
        "restated energy",
        "2.00 Wh",
        "2.50 mg CO2e",
        "1.80 ml",
        "meter 7",
        "accuracy 0.91",
        "of it by judge 1",
    ):
        assert text in shown
    plain = json_of(run("records", "show", said.path, said.records[1].id, "--json"))
    assert not plain.keys() & {"corrections", "corrected", "evaluations", "later_is_whole"}


def test_trace_and_query_have_them_too(run: Run, said: LedgerFolder, tmp_path: Path) -> None:
    record = said.records[0]
    export = tmp_path / "export"
    assert run("export", "parquet", said.path, export).exit_code == 0
    shown = run("trace", export, record.id, "--log-key", said.path / "log.vkey")
    assert shown.exit_code == 0, shown.output
    for text in (
        "restated energy",
        "2.00 Wh",
        "2.50 mg CO2e",
        "1.80 ml",
        "meter 7",
        "accuracy 0.91, by judge 1",
    ):
        assert text in shown.stdout
    rows = json_of(run("query", export, "--quality", "--json"))["rows"]
    total = sum(each.energy.energy_uj for each in said.records if each.energy)
    assert rows[0]["corrected_records"] == 1
    assert rows[0]["as_logged"]["energy_uj"] == total
    assert rows[0]["energy_uj"] == total - record.energy.energy_uj + 7_200_000_000  # type: ignore[union-attr]
    (mean,) = rows[0]["quality"]
    assert [mean[name] for name in ("metric", "about", "count", "scale")] == ["accuracy", "record", 1, 5]
    assert (mean["mean"], mean["least"], mean["most"]) == (91_000, 91_000, 91_000)
    logged = json_of(run("query", export, "--as-logged", "--json"))["rows"]
    assert logged[0]["energy_uj"] == total
    text = run("query", export, "--quality").stdout
    for word in ("restated", "energy logged", "accuracy", "0.91"):
        assert word in text
    compared = run("compare", export, "--a", "tenant=t-0", "--b", "tenant=t-1", "--json")
    assert compared.exit_code == 0, compared.output
    names = {each["name"] for each in json_of(compared)["figures"]}
    assert {"energy_uj_per_1k_tokens", "duration_us_p95", "quality accuracy (record)"} <= names
    table = run("compare", export, "--a", "tenant=t-0", "--b", "tenant=t-1")
    assert "more than chance" in table.stdout
    assert re.search(r"energy per 1k tokens +mWh +[0-9.,]+ ", table.stdout)
    assert "_uj" not in table.stdout
    assert run("compare", export, "--a", "tenant=t-0", "--b", "tenant=x").exit_code == 2
