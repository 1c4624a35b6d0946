"""``tallystick completeness``: what an export covers, and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import From, Json, To
from cli.query import Where

__all__ = ["EXAMPLES", "completeness"]

EXAMPLES = (
    "tallystick completeness export-all",
    "tallystick completeness export-all --from 2026-01-01 --to 2026-02-01 --json",
    "tallystick completeness export-all --where site=de-1 --where model=Qwen3-32B",
)


def completeness(
    export: Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder of a Parquet export.")],
    from_: From = None,
    to: To = None,
    where: Where = None,
    json: Json = False,
) -> None:
    """Say what an export covers of a period: each issuer's chain, lost, late, restated and erased records.

    With --where it is about the issuers that logged such records, and counts those alone; what a chain lost,
    or was silent about, names no model and no tenant, and counts whole.

    It reads what issuers signed; run `tallystick verify` on the export first, to know if it can be believed.

    With --json: from_us, to_us, where, origin, tree_size, every_statement, issuers (issuer, first_seq,
    last_seq, statements, missing_seqs, batches, records, dropped, heartbeats, longest_silence_us,
    late_records, corrected_records, erased_records, unattributed_uj) and gaps, in words; empty if none.
    """
    from cli import figures
    from cli.output import note, print_json, printable, table
    from cli.query import parse_conditions
    from ledger.export.completeness import completeness as tell

    told = tell(
        export,
        from_us=figures.parse_time(from_, "--from"),
        to_us=figures.parse_time(to, "--to"),
        where=parse_conditions(where or ()),
    )
    if json:
        print_json(told.as_dict())
        return
    columns = (
        "issuer", "seq", "batches", "records", "dropped", "heartbeats", "late", "restated", "erased",
        "silent for",
    )  # fmt: skip
    rows = [
        (
            each.issuer,
            f"{each.first_seq} to {each.last_seq}",
            figures.count(each.batches),
            figures.count(each.records),
            figures.count(each.dropped),
            figures.count(each.heartbeats),
            figures.count(each.late_records),
            figures.count(each.corrected_records),
            figures.count(each.erased_records),
            "" if each.longest_silence_us is None else figures.duration(each.longest_silence_us),
        )
        for each in told.issuers
    ]
    table(columns, rows, right=columns[2:])
    for gap in told.gaps:
        print(f"gap: {printable(gap)}")
    if not told.gaps:
        note("no gaps: every chain is whole, nothing was dropped, erased or silent")
