"""All reports on a sample ledger: how long they take, whether they verify, what a verifier names.

    python -m benchmarks.sample sample-data --records 2000000
    python -m benchmarks.reports sample-data sample-reports

It exports the ledger, makes every kind of report (signed JSON, workbook, PDF), verifies the export once, and
makes each report again to compare. Then it cheats, each time as somebody would who holds the keys that the
change needs: a figure of a signed report, a record of the export, a factor set in the log's statements.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from ledger.core.export_layout import (
    MANIFEST_FILE,
    MANIFEST_SIGNATURE_FILE,
    STATEMENTS_FILE,
    Manifest,
    sign_manifest,
)
from ledger.core.keys import PrivateKey, generate_key
from ledger.export.parquet import export_parquet
from ledger.export.reading import open_export
from ledger.export.reports import KINDS, Report, Scope, make_report, sign_report
from ledger.export.reports.make import kind_of
from ledger.export.reports.rendering import FORMATS, render
from ledger.keyfiles import load_private_key
from ledger.store import open_store

SUBJECT = "Sample Cloud GmbH"
BAR_S = 60
"""A report on two million records takes less."""
_LESS_UJ = 1_000_000
"""How much energy the forger takes from one record: a joule."""
_WORDS = "made up for a sample"
_AMOUNTS = {
    "retention_months": "24",
    "training_compute_flop": "1200000000000000000000000",
    "training_energy_mwh": "410.5",
    "inference_compute_flop": "510000000000000000",
    "total_energy_mwh": "182.4",
    "energy_fossil_share_percent": "31.5",
    "energy_nuclear_share_percent": "4.5",
    "energy_renewable_share_percent": "64",
    "scope1_t": "31.4",
    "scope1_ets_percent": "0",
    "other_scope2_location_t": "61.2",
    "other_scope2_market_t": "12.9",
    "other_scope3_t": "804.7",
    "net_revenue_million_eur": "12.75",
    "pd_it_kw": "640",
    "s_dc_m2": "2100",
    "s_cr_m2": "900",
    "e_dc_kwh": "4585000",
    "e_dc_bg_kwh": "1900",
    "e_it_kwh": "3500000",
    "c_btg_kw": "0",
    "w_in_m3": "6300",
    "w_in_pot_m3": "900",
    "e_reuse_kwh": "410000",
    "t_wh_celsius": "34.5",
    "t_in_celsius": "26",
    "cdd_degree_days": "74",
    "e_res_tot_kwh": "4100000",
    "e_res_goo_kwh": "2600000",
    "e_res_ppa_kwh": "1450000",
    "e_res_os_kwh": "50000",
    "c_serv": "96000",
    "c_serv_area_percent": "88",
    "c_stor_pb": "14.2",
    "c_stor_area_percent": "100",
    "b_in_gb_per_s": "12.5",
    "b_out_gb_per_s": "50",
    "t_in_eb": "0.011",
    "t_out_eb": "0.043",
}
"""Of an invented company, so that no report is all gaps."""
_TEXTS = {"own_providers": "", "scope3_category": "1", "role": "provider", "year": "2026"}


CHANGES = ("figure", "record", "record_bytes", "factor")


@dataclass(frozen=True)
class Made:
    """A report that was made, where it is, and how long that took, its renderings included."""

    name: str
    kind: str
    directory: Path
    report: Report
    seconds: float


def write_inputs(path: Path) -> Path:
    """An inputs file with a value for everything that any report asks for."""
    values = {}
    for kind in KINDS:
        for name, asked in kind_of(kind).inputs.items():
            value = _TEXTS.get(name, _WORDS) if asked.unit is None else _AMOUNTS[name]
            if value:
                values[name] = {"value": value, "source": _WORDS}
    file = {
        "format": "tallystick-inputs",
        "version": 1,
        "stated_by": f"{SUBJECT}, controlling",
        "values": values,
    }
    path.write_text(json.dumps(file, indent=2, sort_keys=True) + "\n")
    return path


def scopes_of(export: Path) -> dict[str, tuple[str, Scope]]:
    """Name of the report to its kind and scope: the sample's month, all of it or the one that it is about."""
    with open_export(export) as connection:
        found = connection.execute(
            "SELECT id, model, site, tenant, epoch_us(date_trunc('month', started_at)), "
            "epoch_us(date_trunc('month', started_at) + INTERVAL 1 MONTH) FROM records "
            "ORDER BY leaf_index, position LIMIT 1"
        ).fetchone()
    assert found is not None, "the sample has records"
    record, model, site, tenant, from_us, to_us = found
    own = {"customer-statement": {"tenant": (tenant,)}, "incident": {"record": (record,)}}
    wanted = [(kind, kind, own.get(kind, {})) for kind in KINDS]
    wanted.append(("eu-ai-act-gpai-one-model", "eu-ai-act-gpai", {"model": (model,)}))
    wanted.append(("eu-data-centres-one-site", "eu-data-centres", {"site": (site,)}))
    return {
        name: (kind, Scope(from_us=from_us, to_us=to_us, where=dict(where))) for name, kind, where in wanted
    }


def make_all(export: Path, out: Path, inputs: Path, key: PrivateKey) -> list[Made]:
    """Make every report into a folder of its own below ``out``."""
    made = []
    for name, (kind, scope) in scopes_of(export).items():
        begun = time.perf_counter()
        report = make_report(kind, export, scope=scope, subject=SUBJECT, inputs=inputs)
        _write(out / name, report, key)
        made.append(Made(name, kind, out / name, report, time.perf_counter() - begun))
    return made


def _write(directory: Path, report: Report, key: PrivateKey, forms: tuple[str, ...] = FORMATS) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    data, signature = sign_report(report, key, issuer=SUBJECT)
    (directory / "report.json").write_bytes(data)
    (directory / "report.cose").write_bytes(signature)
    (directory / "reporter.pub").write_bytes(key.public.to_pem())
    for form in forms:
        (directory / f"report.{form}").write_bytes(render(report, form))


# --- cheating ----------------------------------------------------------------------------------------------


def change_figure(made: Made, out: Path, key: PrivateKey) -> tuple[Path, str]:
    """A copy of a report with the first figure doubled, signed anew. Returns it, and the figure's name."""
    data = msgspec.to_builtins(made.report)
    figure = next(f for s in data["sections"] for f in s.get("figures", ()) if "value" in f)
    figure["value"] = str(2 * int(figure["value"])) if figure["value"].isdigit() else "9" + figure["value"]
    _write(out, msgspec.convert(data, Report), key, ())
    return out, figure["name"]


def change_record(export: Path, out: Path, log_key: PrivateKey) -> tuple[Path, str]:
    """A copy of the export in which the row of one record took a joule less. Returns it, and the row."""
    path, row, _ = _lower(export, out, log_key, whole=False)
    return out, f"{path}, row {row}"


def change_record_bytes(export: Path, out: Path, log_key: PrivateKey) -> tuple[Path, str]:
    """The same, and the record's own bytes say so too. Returns it, and the batch that has the record.

    The batch commits to the root over its records, so an auditor sees which batch is wrong; which of its
    records, it could only tell from the record as it was.
    """
    *_, leaf = _lower(export, out, log_key, whole=True)
    return out, f"leaf {leaf}"


def _lower(export: Path, out: Path, log_key: PrivateKey, *, whole: bool) -> tuple[str, int, int]:
    """Take a joule from one record; return its file, its row there, and its batch's leaf."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _link(export, out)
    path = sorted((out / "records").rglob("*.parquet"))[-1]
    table = pq.read_table(path)
    energies, records = table["energy_uj"].to_pylist(), table["record"].to_pylist()
    row = next(n for n, value in enumerate(energies) if value and value > _LESS_UJ)
    old, energies[row] = energies[row], energies[row] - _LESS_UJ
    changed = {"energy_uj": energies}
    if whole:
        records[row] = records[row].replace(b'"energy_uj":%d' % old, b'"energy_uj":%d' % energies[row], 1)
        changed["record"] = records
    for name, values in changed.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    _replace(path, lambda file: pq.write_table(table, file, version="2.6"))
    _resign(out, log_key)
    return path.relative_to(out).as_posix(), row, table["leaf_index"][row].as_py()


def change_factor(export: Path, out: Path, log_key: PrivateKey) -> tuple[Path, str]:
    """A copy of the export in which a factor set has a lower PUE. Returns it, and the place of the set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _link(export, out)
    path = out / STATEMENTS_FILE
    table = pq.read_table(path)
    row = table["kind"].to_pylist().index("factors")
    payloads = table["payload"].to_pylist()
    said = json.loads(payloads[row])
    said["factors"]["pue_milli"] -= 50
    payloads[row] = json.dumps(said, sort_keys=True, separators=(",", ":"))
    at = table.schema.get_field_index("payload")
    table = table.set_column(at, table.schema.field("payload"), pa.array(payloads, pa.string()))
    _replace(path, lambda file: pq.write_table(table, file, version="2.6"))
    _resign(out, log_key)
    return out, f"{STATEMENTS_FILE}, row {row}"


def _link(export: Path, out: Path) -> None:
    """The same files by other names: only what is changed takes room."""
    for path in export.rglob("*"):
        if path.is_file():
            target = out / path.relative_to(export)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)


def _replace(path: Path, write: Callable[[str], None]) -> None:
    fresh = path.with_suffix(".new")
    write(str(fresh))
    fresh.replace(path)


def _resign(export: Path, log_key: PrivateKey) -> None:
    """Make manifest and signature fit the files again."""
    manifest = msgspec.json.decode((export / MANIFEST_FILE).read_bytes(), type=Manifest)
    files = []
    for each in manifest.files:
        data = (export / each.path).read_bytes()
        files.append(structs.replace(each, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    made = sign_manifest(structs.replace(manifest, files=tuple(files)), log_key)
    for name, data in zip((MANIFEST_FILE, MANIFEST_SIGNATURE_FILE), made, strict=True):
        (export / name).unlink()
        (export / name).write_bytes(data)


# --- the run -----------------------------------------------------------------------------------------------


def run(folder: Path, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Export, make, verify, cheat. ``out`` must not exist, but for an ``export`` that was made before."""
    from cli.reports import check

    log_key, key = load_private_key(folder / "keys" / "log.pem"), generate_key()
    vkey, export = str(folder / "log.vkey"), out / "export"
    told: dict[str, Any] = {}
    if not export.exists():
        begun = time.perf_counter()
        store = open_store(folder / "ledger.db")
        try:
            summary = export_parquet(store, export, log_key=log_key)
        finally:
            store.close()
        told["export_s"] = round(time.perf_counter() - begun, 1)
        say(f"export of {summary.records:,} records: {told['export_s']} s, {summary.size_bytes:,} bytes")
    inputs = write_inputs(out / "inputs.json")
    made = make_all(export, out / "reports", inputs, key)
    for each in made:
        say(f"made     {each.name:26} {each.report.records:>10,} records {each.seconds:6.1f} s")
    told["made_s"] = {each.name: round(each.seconds, 1) for each in made}
    public = made[0].directory / "reporter.pub"

    def verify(report: Path, of: Path = export) -> dict[str, Any]:
        begun = time.perf_counter()
        found = check(report, public, of, vkey, inputs)
        found["seconds"] = round(time.perf_counter() - begun, 1)
        return found

    told["verified"] = {}
    for each in made:
        found = told["verified"][each.name] = verify(each.directory)
        say(f"verified {each.name:26} {found['verdict']:>18} {found['seconds']:6.1f} s")
    first = next(each for each in made if each.kind == "ghg-protocol")
    for what, (report, of, name) in {
        "figure": (*_swap(change_figure(first, out / "changed-figure", key), export),),
        "record": (first.directory, *change_record(export, out / "changed-record", log_key)),
        "record_bytes": (first.directory, *change_record_bytes(export, out / "changed-bytes", log_key)),
        "factor": (first.directory, *change_factor(export, out / "changed-factor", log_key)),
    }.items():
        found = verify(report, of)
        places = [each["where"] for each in (*found["findings"], *found["differences"])]
        named = any(name in place for place in places)
        told[f"changed_{what}"] = {**found, "named": named, "name": name}
        say(f"changed {what} ({name}): {found['verdict']}, {'named' if named else 'NOT named'}:")
        for each in found["findings"][:3]:
            say(f"    {each['where']}: {each['what'][:200]}")
        for each in found["differences"][:3]:
            say(f"    {each['where']}: stated {each['stated']}, computed {each['computed']}")
    return told


def _swap(changed: tuple[Path, str], export: Path) -> tuple[Path, Path, str]:
    return changed[0], export, changed[1]


def holds(told: Mapping[str, Any]) -> bool:
    """Whether every report was fast enough and sound, and every change was named."""
    return (
        max(told["made_s"].values()) < BAR_S
        and all(each["verdict"] == "sound" for each in told["verified"].values())
        and all(
            told[f"changed_{what}"]["verdict"] == "refuted" and told[f"changed_{what}"]["named"]
            for what in CHANGES
        )
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make and verify all reports on a sample ledger.")
    parser.add_argument("folder", type=Path, help="as `python -m benchmarks.sample` made it")
    parser.add_argument("out", type=Path, help="for the export, the reports and the forgeries")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    told = run(given.folder, given.out, lambda text: print(text, flush=True))
    (given.out / "reports.json").write_text(json.dumps(told, indent=2) + "\n")
    print("every bar holds" if holds(told) else "A BAR IS MISSED")
    sys.exit(0 if holds(told) else 1)


if __name__ == "__main__":
    main()
