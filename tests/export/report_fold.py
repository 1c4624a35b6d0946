"""The truth that reports must repeat: plain folds over the records, and SQL over the Parquet files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
from msgspec import UNSET

from ledger.core.keys import generate_key
from ledger.core.records import Record, document_digest
from ledger.export.parquet import export_parquet
from ledger.export.reports import Report, Scope, make_report
from ledger.store import Sequencer, migrate, open_store
from ledger.store.append import create_log
from tests.build import ORIGIN
from tests.export.conftest import CREATED_US, Ledger
from tests.export.report_ledger import DEPLOYMENTS, FACTORS, corrected_records, fill

BY_DIGEST = {document_digest(each): each for each in DEPLOYMENTS}
PUE = {document_digest(each): Fraction(each.pue_milli, 1000) for each in FACTORS}
KWH, MWH, KG, T, LITRE, M3, NANO = 36 * 10**11, 36 * 10**14, 10**12, 10**15, 10**9, 10**12, 10**9
INPUTS = {
    "own_providers": "aws , other",
    "total_energy_mwh": "0.5",
    "energy_fossil_share_percent": "20",
    "energy_nuclear_share_percent": "12.5",
    "energy_renewable_share_percent": "67.5",
    "scope1_t": "3.25",
    "other_scope2_location_t": "100",
    "other_scope2_market_t": "90",
    "other_scope3_t": "1000.5",
    "net_revenue_million_eur": "7",
    "training_energy_mwh": "12",
    "e_dc_kwh": "1250000",
    "e_it_kwh": "1000000",
    "w_in_m3": "400",
    "e_reuse_kwh": "300000",
    "e_res_tot_kwh": "900000",
    "e_res_goo_kwh": "500000.25",
    "e_res_ppa_kwh": "300000",
    "e_res_os_kwh": "99999.75",
}


@dataclass(frozen=True)
class World:
    """The truth, and the export that reports are made from."""

    folder: Path
    records: Sequence[tuple[str, Record]]
    inputs: Path
    connection: duckdb.DuckDBPyConnection

    def report(
        self, kind: str, where: Mapping[str, tuple[str, ...]] | None = None, *, inputs: bool = False
    ) -> Report:
        return make_report(
            kind,
            self.folder,
            scope=Scope(where=dict(where or {})),
            subject="X",
            inputs=self.inputs if inputs else None,
        )

    def sql(self, expression: str, where: str) -> Any:
        """Over the Parquet files themselves, with the one correction that holds put in by hand."""
        row = self.connection.execute(f"SELECT {expression} FROM truth WHERE {where}").fetchone()
        assert row is not None
        return row[0]


def make_world(root: Path) -> Iterator[World]:
    """Log it, export it, and see it as it should be."""
    store = open_store(root / "ledger.db")
    migrate(store)
    key = generate_key()
    create_log(store, key, ORIGIN)
    sequencer = Sequencer(store, key)
    sequencer.start()
    made = Ledger(store, key, sequencer)
    fill(made)
    export_parquet(store, root / "export", log_key=key, created_us=CREATED_US)
    values = {name: {"value": value, "source": "test"} for name, value in INPUTS.items()}
    file = {"format": "tallystick-inputs", "version": 1, "stated_by": "controlling", "values": values}
    (root / "inputs.json").write_text(json.dumps(file))
    records = corrected_records(made)
    (corrected,) = (r for _, r in records if r.carbon_ng == 5)
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    pue = " ".join(
        f"WHEN '{digest}' THEN {value.numerator * 1000 // value.denominator}" for digest, value in PUE.items()
    )
    connection.execute(
        f"""CREATE VIEW truth AS SELECT * REPLACE (
            CASE WHEN id = '{corrected.id}' THEN 5 ELSE carbon_ng END AS carbon_ng,
            CASE WHEN id = '{corrected.id}' THEN NULL ELSE carbon_low_ng END AS carbon_low_ng,
            CASE WHEN id = '{corrected.id}' THEN NULL ELSE carbon_high_ng END AS carbon_high_ng,
            CASE WHEN id = '{corrected.id}' THEN 11 ELSE energy_uj END AS energy_uj,
            CASE WHEN id = '{corrected.id}' THEN NULL ELSE energy_low_uj END AS energy_low_uj,
            CASE WHEN id = '{corrected.id}' THEN NULL ELSE energy_high_uj END AS energy_high_uj,
            CASE WHEN id = '{corrected.id}' THEN 'measured' ELSE energy_method END AS energy_method,
            CASE WHEN id = '{corrected.id}' THEN 'nvml, corrected' ELSE energy_source END AS energy_source),
            CASE factors {pue} END AS pue_milli, input_tokens + output_tokens AS tokens
        FROM read_parquet('{root}/export/records/**/*.parquet')"""
    )
    connection.execute(
        f"CREATE VIEW statements AS SELECT * FROM read_parquet('{root}/export/_log/statements.parquet')"
    )
    yield World(root / "export", records, root / "inputs.json", connection)
    sequencer.stop()
    store.close()


# --- the fold ----------------------------------------------------------------------------------------------


def field(record: Record, name: str) -> int | None:
    """A record's figure; None if it has none."""
    if name == "records":
        return 1
    if name == "tokens":
        return record.usage.input_tokens + record.usage.output_tokens
    if name.endswith("_tokens"):
        value: Any = getattr(record.usage, name)
    elif name.startswith("energy"):
        part = {"energy_uj": "energy_uj", "energy_low_uj": "low_uj", "energy_high_uj": "high_uj"}[name]
        value = UNSET if record.energy is UNSET else getattr(record.energy, part)
    else:
        value = getattr(record, name)
    return None if value is UNSET else value


def text(value: Fraction, places: int) -> str:
    """Rounded half away from zero by the standard library."""
    with localcontext(prec=100, rounding=ROUND_HALF_UP):
        exact = Decimal(value.numerator) / Decimal(value.denominator)
        return f"{exact.quantize(Decimal(1).scaleb(-places)):f}"


Keep = Callable[[Record], bool]
RANGED = {
    "energy_uj": ("energy_low_uj", "energy_high_uj"),
    "carbon_ng": ("carbon_low_ng", "carbon_high_ng"),
}
"""Figures whose records state a range. One that states none counts with the figure itself."""


def bounded(record: Record, name: str, bound: int | None) -> int | None:
    """A record's figure, or the low (0) or high (1) end of its range."""
    value = field(record, name)
    if bound is None or value is None or name not in RANGED:
        return value
    end = field(record, RANGED[name][bound])
    return value if end is None else end


def column(name: str, bound: int | None) -> str:
    """The same in SQL."""
    if name == "records":
        return "1"
    return name if bound is None or name not in RANGED else f"coalesce({RANGED[name][bound]}, {name})"


def total(records: Sequence[tuple[str, Record]], name: str, keep: Keep, bound: int | None = None) -> Fraction:
    values = (bounded(record, name, bound) for _, record in records if keep(record))
    return Fraction(sum(value for value in values if value is not None))


def provider(record: Record) -> Any:
    return BY_DIGEST[record.deployment].provider


@dataclass(frozen=True)
class Sum:
    """``sum(column) / divisor`` of the records that are kept: in Python and in SQL."""

    column: str
    divisor: int = 1
    places: int = 0
    keep: Keep = lambda _: True
    where: str = "true"

    @property
    def ranged(self) -> bool:
        return self.column in RANGED

    def both(self, world: World, where: str, keep: Keep, bound: int | None = None) -> tuple[str, str]:
        folded = total(world.records, self.column, lambda r: keep(r) and self.keep(r), bound)
        sql = f"coalesce(sum({column(self.column, bound)}), 0)::VARCHAR"
        found = Fraction(int(world.sql(sql, f"{where} AND {self.where}")))
        return text(folded / self.divisor, self.places), text(found / self.divisor, self.places)


@dataclass(frozen=True)
class Ratio:
    """``sum(above) / divisor / (sum(below) / per)`` over the records that have ``above``."""

    above: tuple[str, ...]
    below: str
    divisor: int
    per: int = 1
    places: int = 6

    @property
    def ranged(self) -> bool:
        return any(name in RANGED for name in self.above)

    def both(self, world: World, where: str, keep: Keep, bound: int | None = None) -> tuple[str, str]:
        def has(record: Record) -> bool:
            return keep(record) and all(field(record, name) is not None for name in self.above)

        above = sum(total(world.records, name, has, bound) for name in self.above)
        folded = above / self.divisor / (total(world.records, self.below, has) / self.per)
        there = " AND ".join(f"{name} IS NOT NULL" for name in self.above)
        top, bottom = (
            Fraction(int(world.sql(f"sum({expression})::VARCHAR", f"{where} AND {there}")))
            for expression in (
                " + ".join(column(name, bound) for name in self.above),
                column(self.below, None),
            )
        )
        return text(folded, self.places), text(top / self.divisor / (bottom / self.per), self.places)


@dataclass(frozen=True)
class Facility:
    """Energy times the PUE of the record's factor set; per energy itself if ``mean``."""

    keep: Keep = lambda _: True
    where: str = "true"
    divisor: int = MWH
    places: int = 9
    mean: bool = False

    @property
    def ranged(self) -> bool:
        return not self.mean

    def both(self, world: World, where: str, keep: Keep, bound: int | None = None) -> tuple[str, str]:
        chosen = [
            record
            for _, record in world.records
            if keep(record)
            and self.keep(record)
            and record.energy is not UNSET
            and record.factors is not UNSET
        ]
        folded = sum(
            (PUE[str(r.factors)] * (bounded(r, "energy_uj", bound) or 0) for r in chosen), Fraction(0)
        )
        known = f"{where} AND {self.where} AND pue_milli IS NOT NULL"
        energy = column("energy_uj", bound)
        found = Fraction(int(world.sql(f"sum({energy} * pue_milli::HUGEINT)::VARCHAR", known)), 1000)
        if self.mean:
            plain = sum(bounded(r, "energy_uj", None) or 0 for r in chosen)
            below = Fraction(int(world.sql("sum(energy_uj)::VARCHAR", known)))
            return text(folded / plain, 6), text(found / below, 6)
        return text(folded / self.divisor, self.places), text(found / self.divisor, self.places)


@dataclass(frozen=True)
class Of:
    """A figure of statements or times: one function of the truth, and one query over the Parquet files.

    ``fold`` takes the records of the scope. ``sql`` may use the views ``truth`` and ``statements``, and
    ``{where}`` for the scope.
    """

    fold: Callable[[Sequence[Record]], int | Fraction]
    sql: str
    divisor: int = 1
    places: int = 0
    ranged: bool = False

    def both(self, world: World, where: str, keep: Keep, bound: int | None = None) -> tuple[str, str]:
        assert bound is None
        folded = Fraction(self.fold([record for _, record in world.records if keep(record)]))
        row = world.connection.execute(self.sql.format(where=where)).fetchone()
        assert row is not None
        return (
            text(folded / self.divisor, self.places),
            text(Fraction(int(row[0])) / self.divisor, self.places),
        )
