"""Carbon and water recompute to the last unit from records and factor sets, in a second implementation."""

from __future__ import annotations

import ast
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, structs

from ledger.core.canonical import encode_canonical
from ledger.core.records import Energy, FactorSet, FactorSource, Usage
from ledger.emit import Recorder
from ledger.emit.compose import Composer, Report
from ledger.emit.identity import Tenants
from ledger.emit.ids import RecordIds
from ledger.energy.factors import default_factor_set
from tests.build import make_deployment
from tests.emit.real_service import running_service
from tests.energy import recompute

FIGURES = ("carbon_ng", "carbon_low_ng", "carbon_high_ng", "carbon_market_ng", "water_nl")


def test_it_is_a_second_implementation() -> None:
    tree = ast.parse(Path(recompute.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "json", "fractions", "hashlib", "math"}


@st.composite
def factor_sets(draw: st.DrawFn) -> FactorSet:
    grid = sorted(draw(st.lists(st.integers(0, 3 * 10**9), min_size=3, max_size=3)))
    optional = st.one_of(st.just(UNSET), st.integers(0, 10**7))
    ranged = draw(st.booleans())
    return FactorSet(
        name=draw(st.text(min_size=1, max_size=20)),
        version="1",
        pue_milli=draw(st.integers(1000, 3000)),
        intensity_ug_per_kwh=grid[1],
        intensity_low_ug_per_kwh=grid[0] if ranged else UNSET,
        intensity_high_ug_per_kwh=grid[2] if ranged else UNSET,
        market_ug_per_kwh=draw(optional),
        water_ul_per_kwh=draw(optional),
        source_water_ul_per_kwh=draw(optional),
        embodied_ng_per_s=draw(optional),
        sources=(FactorSource(factor="all", source="test"),),
    )


@st.composite
def energies(draw: st.DrawFn) -> Energy:
    # Up to 3 MWh: beyond it carbon passes 2^53 - 1 ng on the dirtiest grid.
    low, value, high = sorted(draw(st.lists(st.integers(0, 10**12), min_size=3, max_size=3)))
    ends = draw(st.sampled_from([(UNSET, UNSET), (low, high), (low, UNSET), (UNSET, high), (value, value)]))
    return Energy(energy_uj=value, low_uj=ends[0], high_uj=ends[1], method="modelled", source="test")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(factors=factor_sets(), energy=energies(), busy_us=st.none() | st.integers(0, 10**9))
def test_generated_records(tmp_path: Path, factors: FactorSet, energy: Energy, busy_us: int | None) -> None:
    composer = Composer(make_deployment(power_mw=UNSET), factors, Tenants(tmp_path / "tenants", bytes(32)))
    now_us = time.time_ns() // 1000
    fields: dict[str, Any] = dict.fromkeys(Report._fields)
    fields |= {
        "id": RecordIds().new(),
        "usage": Usage(input_tokens=1, output_tokens=1),
        "started_us": now_us - 1,
        "ended_us": now_us,
        "energy": energy,
        "busy_us": busy_us,
    }
    report = Report(**fields)
    composer.prepare([report])
    made = composer.compose(report, now_us)
    again = recompute.carbon_and_water(made.line, encode_canonical(factors))
    for name in FIGURES:
        stated = getattr(made.record, name)
        assert again.get(name) == (None if stated is UNSET else stated), name
    if made.record.embodied_ng is not UNSET:
        assert busy_us is not None
        assert made.record.embodied_ng == recompute.embodied(encode_canonical(factors), busy_us)


def test_a_wrong_figure_does_not_recompute(tmp_path: Path) -> None:
    """The check can fail: by one unit, and by another factor set."""
    factors = default_factor_set()
    composer = Composer(make_deployment(), factors, Tenants(tmp_path / "tenants", bytes(32)))
    now_us = time.time_ns() // 1000
    fields: dict[str, Any] = dict.fromkeys(Report._fields)
    fields |= {
        "id": RecordIds().new(),
        "usage": Usage(input_tokens=1, output_tokens=1),
        "started_us": now_us - 1,
        "ended_us": now_us,
        "energy": Energy(energy_uj=10**9, method="measured", source="meter"),
    }
    report = Report(**fields)
    composer.prepare([report])
    made = composer.compose(report, now_us)
    changed = structs.replace(made.record, carbon_ng=made.record.carbon_ng + 1)
    again = recompute.carbon_and_water(encode_canonical(changed), encode_canonical(factors))
    assert again["carbon_ng"] == changed.carbon_ng - 1
    with pytest.raises(ValueError, match="another factor set"):
        recompute.carbon_and_water(made.line, encode_canonical(structs.replace(factors, version="2")))


def test_a_real_log_recomputes_in_sql(tmp_path: Path) -> None:
    """Recorder, service and export as users run them; then DuckDB alone, over the export's files."""
    duckdb = pytest.importorskip("duckdb")
    pytest.importorskip("pyarrow")
    drawn = random.Random(3)
    sets = [
        default_factor_set(embodied_ng_per_s=300),
        structs.replace(default_factor_set(), name="ville é\u2028", market_ug_per_kwh=0, water_ul_per_kwh=7),
        structs.replace(
            default_factor_set(),
            name="no range, no water",
            intensity_low_ug_per_kwh=UNSET,
            intensity_high_ug_per_kwh=UNSET,
            source_water_ul_per_kwh=UNSET,
        ),
    ]
    now = {"set": sets[0]}
    with running_service(tmp_path / "ledger") as service:
        recorder = Recorder(
            spool=tmp_path / "spool",
            deployment=make_deployment(power_mw=250_000),
            factors=lambda: now["set"],
            max_age_s=0.05,
            **service.options,
        )
        service.register(recorder)
        logged = 0
        for i in range(300):
            now["set"] = sets[i % 3]
            at_us = time.time_ns() // 1000
            value = drawn.randint(0, 10 ** drawn.randint(0, 12))
            energy = Energy(
                energy_uj=value, low_uj=value // 3, high_uj=value * 2, method="modelled", source="t"
            )
            exact = Energy(energy_uj=value, method="measured", source="meter")
            recorder.record(
                usage=Usage(input_tokens=1, output_tokens=1),
                started_us=at_us - 10,
                ended_us=at_us,
                busy_us=drawn.randint(0, 10**6),
                energy=drawn.choice([energy, exact, None]),
            )
            logged += 1
            if i % 50 == 49:
                assert recorder.sync(30)
        assert recorder.flush(60), recorder.status()
        assert recorder.status().dropped == 0
        assert recorder.close()
    from typer.testing import CliRunner

    from cli.main import app

    out = tmp_path / "export"
    done = CliRunner().invoke(app, ["export", "parquet", str(tmp_path / "ledger"), str(out), "--json"])
    assert done.exit_code == 0, done.output
    connection = duckdb.connect()
    connection.execute(f"SET VARIABLE folder = '{out}'")
    [(records, without, wrong)] = connection.sql(recompute.SQL).fetchall()
    assert (records, without, wrong) == (logged, 0, 0)
    # And in fractions, over the same files.
    factors = {
        digest: body.encode()
        for digest, body in connection.sql(
            "SELECT sha256(body), body FROM (SELECT CAST(payload::JSON->'factors' AS VARCHAR) AS body FROM "
            f"read_parquet('{out}/_log/statements.parquet') WHERE kind = 'factors')"
        ).fetchall()
    }
    rows = connection.sql(
        f"SELECT record, factors, {', '.join(FIGURES)} FROM read_parquet('{out}/records/**/*.parquet')"
    ).fetchall()
    assert len(rows) == logged
    assert {row[1] for row in rows} == set(factors)
    for record, digest, *stated in rows:
        again = recompute.carbon_and_water(record, factors[digest])
        assert [again.get(name) for name in FIGURES] == stated
