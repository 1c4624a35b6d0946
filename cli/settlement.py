"""``tallystick settlement``: one customer's records of a period as evidence, and the answer to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import ApiKeyFile, Directory, From, Json, To, command
from cli.spool import LedgerUrl, LogKey, Timeout
from cli.submission import IssuerName, SigningKeyFile, SubmissionSpool

if TYPE_CHECKING:
    from ledger.audit.settlement import Settled, SettledRecord

__all__ = ["app"]

app = typer.Typer(
    help="Settle a customer's records of a period, and answer: acknowledge or dispute.", no_args_is_help=True
)

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The file that `settlement bundle` made.")]
Vkey = Annotated[
    str,
    typer.Option("--log-key", metavar="VKEY", help="The log's verifier key, or a file with it (log.vkey)."),
]


@command(
    app,
    "tallystick settlement bundle ledger-data t-7f3a-2026-01.settlement --tenant t-7f3a "
    "--from 2026-01-01 --to 2026-02-01",
    "tallystick settlement bundle ledger-data t-7f3a.settlement --tenant t-7f3a --spool recorder --json",
)
def bundle(
    directory: Directory,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; must not exist.")],
    tenant: Annotated[str, typer.Option(metavar="PSEUDONYM", help="Whose records: as they carry it.")],
    from_: From = None,
    to: To = None,
    spool: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Spool of the recorder, whose secrets let the customer find records by own request ids.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write one file with a tenant's records, their proofs, receipts and totals by day and model, sealed.

    Corrections are in place, and what was first logged stands beside it. The customer needs nothing but this
    file and the log's verifier key.

    With --json: file, tenant, records, statements, corrected_records, opened, size_bytes, tree_size.
    """
    from dataclasses import asdict

    from cli import figures
    from cli.folder import open_folder
    from cli.output import fields, note, print_json
    from cli.progress import progress
    from ledger.export.settlement import make_settlement
    from ledger.signers import load_signer

    salts = None
    if spool is not None:
        from ledger.emit.request_salts import request_salts

        salts = request_salts(spool)
    folder = open_folder(directory)
    store = folder.open()
    try:
        with progress("settling leaves") as report:
            summary = make_settlement(
                store,
                out,
                log_key=load_signer(folder.log_key),
                tenant=tenant,
                from_us=figures.parse_time(from_, "--from"),
                to_us=figures.parse_time(to, "--to"),
                request_salt=salts,
                progress=report,
            )
    finally:
        store.close()
    made = asdict(summary) | {"file": str(out)}
    if json:
        print_json(made)
        return
    fields((name.replace("_", " "), str(value)) for name, value in made.items())
    note(f"\nNext, at the customer's: tallystick settlement verify {out} --log-key {folder.vkey}")


@command(
    app,
    "tallystick settlement verify t-7f3a-2026-01.settlement --log-key log.vkey",
    "tallystick settlement verify t-7f3a-2026-01.settlement --log-key log.vkey --json",
)
def verify(file: Bundle, log_key: Vkey, json: Json = False) -> None:
    """Check a bundle offline with the log's key alone, and show its totals. Every changed byte is found.

    Exit code 0: it holds; 1: refuted, and where is said.

    With --json: verdict, proves, findings (code, where, what, remedy), notes, tenant, records,
    corrected_records, totals (each day, model, sums, and as_logged where corrections changed them).
    """
    import msgspec

    from cli.audit import exit_code, print_findings
    from cli.errors import REFUTED
    from cli.output import fields, print_json, verdict
    from ledger.audit.settlement import proven_by_settlement

    settled, _ = _verified(file, log_key, keep=False)
    found = settled.findings
    sound = found.verdict == "sound"
    proves = proven_by_settlement(settled) if sound else ()
    if json:
        print_json(
            {
                "verdict": found.verdict,
                "proves": proves,
                "findings": [vars(each) for each in found.kept],
                "notes": list(found.notes),
                "tenant": "" if settled.header is None else settled.header.tenant,
                "records": settled.records,
                "corrected_records": settled.corrected_records,
                "totals": [msgspec.to_builtins(each) for each in settled.totals],
            }
        )
        raise typer.Exit(exit_code(found.verdict))
    if sound:
        _print_totals(settled)
    fields([("source", str(file)), *(("proves", text) for text in proves)])
    print_findings(found.kept, found.more)
    fields(("note", text) for text in found.notes)
    verdict(found.verdict, "it holds" if sound else "it does not hold; see above why")
    raise typer.Exit(exit_code(found.verdict) if sound else REFUTED)


@command(
    app,
    "tallystick settlement acknowledge t-7f3a-2026-01.settlement --spool customer --issuer acme.example.com "
    "--url https://log.example.com --log-key log.vkey --api-key-file emit.key",
    "tallystick settlement acknowledge t-7f3a-2026-01.settlement --spool customer --note 'paid' --json",
)
def acknowledge(
    file: Bundle,
    spool: SubmissionSpool = None,
    issuer: IssuerName = None,
    note: Annotated[str | None, typer.Option(metavar="WORDS", help="Said in each acknowledgement.")] = None,
    url: LedgerUrl = None,
    log_key: LogKey = None,
    api_key_file: ApiKeyFile = None,
    key: SigningKeyFile = None,
    timeout: Timeout = 600.0,
    json: Json = False,
) -> None:
    """Countersign, as the customer, each statement and receipt of a bundle, and log that: both halves.

    The bundle is verified first. The customer signs with a key that is registered with the ledger; a new
    spool makes one. Doing it again changes nothing.

    With --json: issuer, new, statements (each leaf_hash, leaf_index, new, statement).
    """
    from cli.output import fields, print_json
    from cli.spool import open_client
    from cli.submission import open_submission, send, told
    from ledger.audit.dispute import digest_of
    from ledger.core.errors import InvalidError
    from ledger.emit.acknowledgements import acknowledgements

    client, log = open_client(url, log_key, api_key_file)
    vkey = _log_key_text(log_key)
    if log is None or vkey is None:
        raise InvalidError(
            "the log's key is needed", where="--log-key", remedy="pass the log's vkey file", code="bad-key"
        )
    settled, _ = _verified(file, vkey, keep=False)
    _must_hold(settled, file)
    contents = acknowledgements(
        ((each.statement.leaf_hash, each.receipt) for each in settled.batches),
        note=f"settlement {digest_of(file)}" + ("" if note is None else f": {note}"),
    )
    where = open_submission(spool, issuer, new=True)
    found = told(where, send(where, key, contents, client, log, timeout))
    if json:
        print_json(found)
        return
    count = len(found["statements"])
    fields(
        [
            ("issuer", found["issuer"]),
            ("acknowledged", f"{count:,} statements with {settled.records:,} records"),
            ("new", f"{found['new']:,}"),
        ]
    )


@command(
    app,
    "tallystick settlement dispute t-7f3a-2026-01.settlement requests.csv --log-key log.vkey "
    "--customer acme.example.com --key customer.pem --out dispute.json",
    "tallystick settlement dispute t-7f3a-2026-01.settlement requests.jsonl --log-key log.vkey --json",
)
def dispute(
    file: Bundle,
    own: Annotated[
        Path,
        typer.Argument(
            metavar="OWN",
            help="The customer's log, CSV or JSON lines: record or request, input_tokens, output_tokens.",
        ),
    ],
    log_key: Vkey,
    customer: Annotated[str | None, typer.Option(metavar="NAME", help="Who disputes.")] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The customer's private key, to sign the dispute.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the signed dispute, if anything differs.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare the customer's own log with a bundle, and write a signed file of what differs and how.

    The bundle is verified first. Exit code 0: both sides agree; 1: they differ.

    With --json: own_rows, records, matched, differences (kind, own_line, request, record, leaf_index,
    position, figures, own, logged), and file if a dispute was written.
    """
    import time

    import msgspec

    from cli.errors import REFUTED
    from cli.output import fields, print_json, verdict
    from ledger.audit import dispute as form
    from ledger.core.errors import InvalidError
    from ledger.keyfiles import load_private_key

    if (out is None) is not (key is None) or (out is None) is not (customer is None):
        raise InvalidError(
            "--out, --key and --customer belong together",
            remedy="give all three to write a dispute, or none to compare",
            code="bad-parameter",
        )
    rows = form.read_own_log(own.read_bytes(), where=str(own))
    settled, records = _verified(file, log_key, keep=True)
    _must_hold(settled, file)
    found = form.compare(records, rows)
    written = None
    if found.differences and out is not None and key is not None and customer is not None:
        header = settled.header
        assert header is not None  # noqa: S101 - it holds
        made = form.Dispute(
            customer=customer,
            bundle=form.digest_of(file),
            origin=header.origin,
            tenant=header.tenant,
            made_us=time.time_ns() // 1000,
            own_rows=found.own_rows,
            records=found.records,
            matched=found.matched,
            differences=found.differences,
        )
        with out.open("xb") as target:
            target.write(form.sign_dispute(made, load_private_key(key)))
        written = out
    if json:
        told: dict[str, Any] = {
            "own_rows": found.own_rows,
            "records": found.records,
            "matched": found.matched,
            "differences": [msgspec.to_builtins(each) for each in found.differences],
        }
        print_json(told | ({} if written is None else {"file": str(written)}))
    else:
        if found.differences:
            _print_differences([msgspec.to_builtins(each) for each in found.differences])
        fields(
            [
                ("own log", f"{found.own_rows:,} rows"),
                ("bundle", f"{found.records:,} records"),
                ("in both", f"{found.matched:,}"),
            ]
            + ([] if written is None else [("dispute", str(written))])
        )
        agree = not found.differences
        verdict(
            "sound" if agree else "refuted",
            "both sides agree" if agree else f"{len(found.differences):,} things differ",
        )
    if found.differences:
        raise typer.Exit(REFUTED)


@command(
    app,
    "tallystick settlement check-dispute dispute.json t-7f3a-2026-01.settlement --log-key log.vkey "
    "--customer-key customer.pub",
)
def check_dispute(
    file: Annotated[Path, typer.Argument(metavar="DISPUTE", help="The customer's dispute.")],
    bundle_: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle that it is about.")],
    log_key: Vkey,
    customer_key: Annotated[Path, typer.Option(metavar="FILE", help="The customer's public key.")],
    json: Json = False,
) -> None:
    """Check a dispute: the customer's signature, and that the bundle says what the dispute says it does.

    Exit code 0: it is well founded as far as the bundle can tell; 1: it is not.

    With --json: customer, tenant, differences, problems (in words; empty if there are none).
    """
    from cli.errors import REFUTED
    from cli.keys import load_public
    from cli.output import fields, print_json, printable, verdict
    from ledger.audit import dispute as form

    made = form.open_dispute(file.read_bytes(), load_public(customer_key), where=str(file))
    settled, records = _verified(bundle_, log_key, keep=True)
    _must_hold(settled, bundle_)
    problems = list(form.check_against(made, form.digest_of(bundle_), records))
    if json:
        print_json(
            {
                "customer": made.customer,
                "tenant": made.tenant,
                "differences": len(made.differences),
                "problems": problems,
            }
        )
    else:
        fields(
            [
                ("customer", made.customer),
                ("tenant", made.tenant),
                ("differences", f"{len(made.differences):,}"),
            ]
        )
        for each in problems:
            print(f"problem: {printable(each)}")
        verdict("refuted" if problems else "sound", "it does not hold" if problems else "the bundle says so")
    if problems:
        raise typer.Exit(REFUTED)


def _verified(file: Path, log_key: str, *, keep: bool) -> tuple[Settled, list[SettledRecord]]:
    from cli.audit import read_vkey
    from cli.progress import progress
    from ledger.audit.settlement import verify_settlement
    from ledger.core.log_keys import parse_log_keys

    records: list[SettledRecord] = []
    with progress("reading bytes") as report:
        settled = verify_settlement(
            file,
            parse_log_keys(read_vkey(log_key)),
            on_record=records.append if keep else None,
            progress=report,
        )
    return settled, records


def _must_hold(settled: Settled, file: Path) -> None:
    from ledger.core.errors import CorruptError

    if settled.findings.verdict != "sound":
        first = settled.findings.kept[0]
        raise CorruptError(
            f"the bundle does not hold: {first.what}",
            where=f"{file}, {first.where}",
            remedy="see all of it with `tallystick settlement verify`",
            code="bad-settlement",
        )


def _log_key_text(given: str | None) -> str | None:
    import os

    return given or os.environ.get("TALLYSTICK_LOG_KEY")


def _print_totals(settled: Settled) -> None:
    from msgspec import UNSET

    from cli import figures
    from cli.output import table

    rows = []
    for each in settled.totals:
        sums, before = each.figures, each.as_logged
        costs = {} if sums.cost_nano is UNSET else sums.cost_nano
        rows.append(
            (
                each.day,
                each.model,
                figures.count(each.records),
                figures.count(each.corrected_records) if each.corrected_records else "",
                figures.count(each.input_tokens),
                figures.count(each.output_tokens),
                figures.energy(None if sums.energy_uj is UNSET else sums.energy_uj),
                ""
                if before is UNSET
                else figures.energy(None if before.energy_uj is UNSET else before.energy_uj),
                figures.carbon(None if sums.carbon_ng is UNSET else sums.carbon_ng),
                ", ".join(figures.cost(nano, currency) for currency, nano in sorted(costs.items())),
            )
        )
    columns = ("day", "model", "records", "restated", "in", "out", "energy", "as logged", "carbon", "cost")
    table(columns, rows, right=columns[2:])


def _print_differences(found: list[dict[str, Any]]) -> None:
    from cli.output import note, table

    def counts(side: dict[str, int] | None) -> str:
        names = {"input_tokens": "in", "output_tokens": "out", "cost_nano": "nano"}
        return (
            "" if side is None else ", ".join(f"{side[n]:,} {word}" for n, word in names.items() if n in side)
        )

    shown = found[:_SHOWN]
    table(
        ("what", "own line", "request", "record", "leaf", "own", "logged"),
        [
            (
                each["kind"],
                str(each.get("own_line", "")),
                each.get("request", ""),
                each.get("record", ""),
                f"{each['leaf_index']}/{each['position']}" if "leaf_index" in each else "",
                counts(each.get("own")),
                counts(each.get("logged")),
            )
            for each in shown
        ],
    )
    if len(found) > len(shown):
        note(f"and {len(found) - len(shown):,} more: --json shows all")


_SHOWN = 50
