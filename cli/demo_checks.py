"""What the demo shows about the evidence: proofs, the audit, a forgery, the export, a query."""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger.core.errors import TallystickError, UnavailableError

if TYPE_CHECKING:
    from cli.folder import Folder
    from cli.target import RemoteLedger

__all__ = ["audit_forgery", "audit_service", "export_and_query", "verify_export", "wait_for_proof"]

_POLL_S = 0.2
_MAX_BLOCK_BYTES = 1 << 30
_STOLEN_UJ = 1_000
"""How much energy the forger takes away: a millijoule is enough to be caught."""


def wait_for_proof(
    ledger: RemoteLedger, record_id: str, folder: Folder, timeout_s: float
) -> tuple[dict[str, Any], bool]:
    """The record once it is logged, and whether its proof holds with the log's key."""
    import msgspec

    from cli.keys import load_public
    from ledger.audit import verify_data

    deadline = time.monotonic() + timeout_s
    while True:
        try:
            place = ledger.record(record_id)
            break
        except TallystickError as error:
            if error.code != "not-found":
                raise
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"record {record_id} was not logged within {timeout_s:g} s",
                    where=str(folder.path / "model.log"),
                    remedy="read the logs of the model server and of the service",
                    code="not-logged",
                ) from None
            time.sleep(_POLL_S)
    proof = msgspec.json.encode(ledger.record_proof(record_id))
    report = verify_data(
        proof,
        folder.vkey.read_text(encoding="utf-8"),
        name=f"proof of {record_id}",
        issuer_keys=[load_public(folder.path / "keys" / "issuer.pem")],
    )
    return place, report.verdict == "sound"


def audit_service(url: str, folder: Folder) -> dict[str, Any]:
    """Audit over HTTP, with the checkpoint of an earlier run if there is one."""
    from cli.audit import described, print_report, run_audit

    report = run_audit(
        url, str(folder.vkey), api_key_file=folder.admin_key, remember=folder.path / "checkpoint.seen"
    )
    print_report(report)
    return described(report)


def audit_forgery(folder: Folder) -> dict[str, Any]:
    """Lower one record's energy in a copy of the database, then audit the copy."""
    from cli.audit import described, print_report, run_audit

    forged = folder.path / "forged.db"
    forged.unlink(missing_ok=True)
    print(f"\n5. Cheat: in a copy of the database, one record takes {_STOLEN_UJ:,} µJ less")
    _forge(Path(folder.database), forged)
    report = run_audit(str(forged), str(folder.vkey))
    print_report(report, shown=1)
    return described(report)


def _forge(database: Path, copy: Path) -> None:
    """What a careful forger would do: change the record, and every checksum that needs no key."""
    import hashlib

    import msgspec

    from ledger import zstd

    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        leaf, block = target.execute(
            "SELECT leaf_index, records FROM statement WHERE records IS NOT NULL ORDER BY leaf_index LIMIT 1"
        ).fetchone()
        lines = (zstd.decompress_bounded(block, _MAX_BLOCK_BYTES) or b"").splitlines()
        record = msgspec.json.decode(lines[0])
        record["energy"]["energy_uj"] -= _STOLEN_UJ
        lines[0] = msgspec.json.encode(record, order="sorted")
        block = zstd.compress(b"".join(line + b"\n" for line in lines))
        target.execute(
            "UPDATE statement SET records = ?, records_sha256 = ? WHERE leaf_index = ?",
            (block, hashlib.sha256(block).digest(), leaf),
        )
        target.commit()


def export_and_query(folder: Folder, query: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Export everything as Parquet, and ask DuckDB a question about it."""
    import duckdb

    from cli.output import table
    from ledger.export.parquet import export_parquet
    from ledger.keyfiles import load_private_key

    out = folder.path / "export"
    print("\n6. Export to Parquet and query it with DuckDB")
    if out.exists():
        shutil.rmtree(out)  # of an earlier run
    store = folder.open()
    try:
        summary = export_parquet(store, out, log_key=load_private_key(folder.log_key))
    finally:
        store.close()
    print(f"   {summary.records} records and {summary.statements} statements in {out}")
    query = query.format(export=out)
    print("".join(f"   {line}\n" for line in query.splitlines()), end="")
    with closing(duckdb.connect()) as connection:
        result = connection.execute(query)
        columns = [column[0] for column in result.description]
        rows = result.fetchall()
    figures = {"records", "input_tokens", "output_tokens", "energy_uj", "carbon_ng"}
    shown = [[_cell(value) for value in row] for row in rows]
    table(columns, shown, right=[name for name in columns if name in figures])
    made = asdict(summary) | {"directory": str(out)}
    return made, {"columns": columns, "rows": [list(row) for row in rows]}


def _cell(value: Any) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else str(value)


def verify_export(folder: Folder) -> dict[str, Any]:
    """Verify the export offline."""
    from cli.verify import described_evidence, print_evidence, run_verify

    print("\n7. Verify the export, without the service and its database")
    report = run_verify(folder.path / "export", str(folder.vkey))
    print_evidence(report)
    return described_evidence(report)
