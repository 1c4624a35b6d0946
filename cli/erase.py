"""``tallystick erase``: removes the bytes of records; their hashes stay. Done where the database is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import Directory, From, Json, To

__all__ = ["EXAMPLES", "erase"]

EXAMPLES = (
    "tallystick erase ledger-data --tenant t-7f3a --rule 'GDPR Art. 17, request 2026-114'",
    "tallystick erase ledger-data --tenant t-7f3a --rule 'GDPR Art. 17, request 2026-114' --yes",
    "tallystick erase ledger-data --record 019ab0c2-7d1e-7a55-9a3b-0f1e2d3c4b5a --rule 'court order 7' --yes",
    "tallystick erase ledger-data --records-file ids.txt --rule 'GDPR Art. 17' --yes --json",
    "tallystick erase ledger-data --purge",
)


def erase(
    directory: Directory,
    rule: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The rule under which; it is logged and public: no names."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(metavar="TENANT", help="Records of this tenant.")] = None,
    record: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="This record; may be repeated.")
    ] = None,
    records_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Records by their ids, one a line.")
    ] = None,
    from_time: From = None,
    to_time: To = None,
    yes: Annotated[bool, typer.Option("--yes", help="Erase. Without it, only say what would be.")] = False,
    purge: Annotated[
        bool | None,
        typer.Option(
            "--purge/--no-purge",
            help="Write the database anew, so that no old page holds the bytes: done after erasing unless "
            "refused; alone, nothing else is.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Erase record bytes under a rule. All conditions must hold; hashes and all other proofs stay.

    Nothing is erased while one of the records is under a legal hold. Statements are leaves of the log: they
    stay, with their sums. Backups and exports made before keep the bytes; erase those where they are.

    With --json: records, statements, held, first_leaf, last_leaf, erased, purged.
    """
    from cli import figures
    from cli.folder import open_folder
    from cli.output import fields, note, print_json
    from cli.progress import progress
    from ledger.core.errors import InvalidError
    from ledger.store import erasure

    ids = tuple(record or ()) + _read_ids(records_file)
    wanted = erasure.Wanted(
        ids=ids,
        tenant=tenant,
        from_us=figures.parse_time(from_time, "--from"),
        to_us=figures.parse_time(to_time, "--to"),
    )
    folder = open_folder(directory)
    store = folder.open()
    only_purge = wanted == erasure.Wanted() and rule is None and purge is True
    done: dict[str, Any] = {"records": 0, "statements": 0, "held": 0, "erased": False, "purged": False}
    if not only_purge:
        if rule is None:
            raise InvalidError(
                "the rule is missing",
                where="--rule",
                remedy="say under which rule, such as 'GDPR Art. 17, request 2026-114'",
                code="bad-parameter",
            )
        if not yes:
            held: list[str] = []
            with store.read() as connection:
                parts = list(erasure.find_records(connection, wanted, held=held))
            done |= {
                "records": sum(len(part.positions) for part in parts),
                "statements": len(parts),
                "held": len(held),
            }
        else:
            with folder.sequencer(store) as sequencer, progress("erasing") as report:
                erased = erasure.erase(
                    store,
                    sequencer,
                    wanted,
                    rule,
                    progress=None if report is None else lambda count: report(count, 0),
                )
            done |= {**vars(erased), "erased": True}
    if only_purge or (yes and purge is not False):
        erasure.purge(store)
        done["purged"] = True
    if json:
        print_json({name: value for name, value in done.items() if value is not None})
        return
    fields((name.replace("_", " "), str(value)) for name, value in done.items() if value is not None)
    if not yes and not only_purge:
        note("nothing was erased: repeat it with --yes")


def _read_ids(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
