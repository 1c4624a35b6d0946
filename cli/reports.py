"""``tallystick report``: make reports from an export, and check them by making them again."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import From, Json, To, command

if TYPE_CHECKING:
    from ledger.core.keys import PublicKey
    from ledger.export.reports.document import Figure, Report

__all__ = ["app"]

app = typer.Typer(help="Make and verify reports.", no_args_is_help=True)


class Format(StrEnum):
    """How a report is rendered for people."""

    XLSX = "xlsx"
    PDF = "pdf"


_SHOWN = 20
"""Findings and differences printed for people; --json has all."""
REPORT_FILE, SIGNATURE_FILE = "report.json", "report.cose"
InputsKey = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="PEM of the public key of who stated the inputs; checks FILE.cose."),
]
Export = Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder of a Parquet export.")]


@command(app, "tallystick report kinds", "tallystick report kinds --json")
def kinds(json: Json = False) -> None:
    """List the kinds of reports, each with its standard.

    With --json: kinds, each name, title, standard.
    """
    from cli.output import print_json, table
    from ledger.export.reports.make import KINDS, kind_of

    found = [kind_of(name) for name in KINDS]
    if json:
        print_json({"kinds": [{"name": k.name, "title": k.title, "standard": k.standard} for k in found]})
        return
    table(("kind", "title", "standard"), [(k.name, k.title, k.standard) for k in found])


@command(
    app,
    "tallystick report make sci export-all sci-2026-01 --subject 'Example Cloud GmbH' --key reporter.pem",
    "tallystick report make sci export-all out --subject X --key reporter.pem --where tenant=t-1",
    "tallystick report make sci export-all out --subject X --key reporter.pem --inputs inputs.json --json",
)
def make(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="As `tallystick report kinds` lists them.")],
    export: Export,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist, or be empty.")],
    subject: Annotated[str, typer.Option(metavar="WORDS", help="Whom the report is about.")],
    key: Annotated[
        Path,
        typer.Option(metavar="FILE", help="PEM of the reporter's private key: `tallystick keys generate`."),
    ],
    issuer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who signs it. Default: the subject.")
    ] = None,
    from_: From = None,
    to: To = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Only records with this value; may be repeated."),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON file of what the log cannot know.")
    ] = None,
    inputs_key: InputsKey = None,
    format_: Annotated[
        list[Format] | None,
        typer.Option("--format", help="Render it besides the signed JSON; may be repeated. Default: both."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a report from an export: signed JSON, and the same as workbook and PDF.

    Every figure says how it was derived and what it covers. What the log cannot know comes from --inputs;
    what is missing is stated as a gap.

    With --json: directory, kind, records, figures, gaps, files.
    """
    from cli import figures
    from cli.output import fields, note, print_json
    from cli.progress import progress
    from cli.query import parse_conditions
    from ledger.export.reports import Scope, make_report, sign_report
    from ledger.export.reports.rendering import render
    from ledger.keyfiles import load_private_key

    _check_empty(out)
    scope = Scope(
        where={name: tuple(values) for name, values in sorted(parse_conditions(where or ()).items())},
        **{
            name: value
            for name, value in (
                ("from_us", figures.parse_time(from_, "--from")),
                ("to_us", figures.parse_time(to, "--to")),
            )
            if value is not None
        },
    )
    signer = load_private_key(key)
    formats = list(dict.fromkeys(each.value for each in format_ or Format))
    with progress("making the report") as tell:
        steps = 1 + len(formats)
        report = make_report(
            kind, export, scope=scope, subject=subject, inputs=inputs, inputs_key=_public(inputs_key)
        )
        if tell is not None:
            tell(1, steps)
        data, signature = sign_report(report, signer, issuer=issuer or subject)
        files = {REPORT_FILE: data, SIGNATURE_FILE: signature, "reporter.pub": signer.public.to_pem()}
        for done, each in enumerate(formats, 2):
            files[f"report.{each}"] = render(report, each)
            if tell is not None:
                tell(done, steps)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    told = {
        "directory": str(out),
        "kind": report.kind,
        "records": report.records,
        "figures": sum(len(section.figures) for section in report.sections),
        "gaps": list(report.gaps),
        "files": sorted(files),
    }
    if json:
        print_json(told)
        return
    rows = [(name, str(told[name])) for name in ("directory", "kind", "records", "figures")]
    fields([*rows, *(("gap", text) for text in report.gaps), ("files", ", ".join(sorted(files)))])
    with_inputs = "" if inputs is None else f" --inputs {inputs}"
    with_inputs += "" if inputs_key is None else f" --inputs-key {inputs_key}"
    note(
        f"\nNext: tallystick report verify {out} --key {out}/reporter.pub --export {export} "
        f"--log-key LOG.vkey{with_inputs}"
    )


def _public(path: Path | None) -> PublicKey | None:
    from cli.keys import load_public

    return None if path is None else load_public(path)


def _check_empty(out: Path) -> None:
    from ledger.core.errors import RefusedError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RefusedError(
            "is there already and is not empty",
            where=str(out),
            remedy="name a new folder, or empty it",
            code="directory-not-empty",
        )


@command(
    app,
    "tallystick report sign-inputs inputs.json --key facilities.pem",
    "tallystick report sign-inputs inputs.json --key facilities.pem --json",
)
def sign_inputs(
    inputs: Annotated[Path, typer.Argument(metavar="INPUTS", help="JSON file of what the log cannot know.")],
    key: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="PEM of the private key of who states it: `tallystick keys generate`."
        ),
    ],
    json: Json = False,
) -> None:
    """Sign an inputs file, as whoever states its values. The signature is written beside it.

    With --json: file, signature, stated_by, key.
    """
    from cli.output import fields, print_json
    from ledger.export.reports.inputs import read_inputs, sign_inputs, signature_of
    from ledger.keyfiles import load_private_key

    signer = load_private_key(key)
    signature_of(inputs).write_bytes(sign_inputs(inputs, signer))
    checked = read_inputs(inputs, signer.public)
    told = {
        "file": str(inputs),
        "signature": str(signature_of(inputs)),
        "stated_by": checked.stated_by,
        "key": checked.signed_by,
    }
    if json:
        print_json(told)
    else:
        fields((name.replace("_", " "), str(value)) for name, value in told.items())


@command(
    app,
    "tallystick report show sci-2026-01",
    "tallystick report show esrs-2026 --figure scope2_location --figure total_market --json",
)
def show(
    directory: Annotated[Path, typer.Argument(metavar="REPORT", help="Folder of a report.")],
    figure: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this figure; may be repeated.")
    ] = None,
    json: Json = False,
) -> None:
    """Show the figures of a report as it states them, with what is missing. It verifies nothing.

    With --json: kind, subject, records, figures (each as in report.json), gaps.
    """
    from cli.output import fields, note, print_json, table

    report = read_report(directory)
    wanted = set(figure or ())
    every = [each for section in report.sections for each in section.figures]
    _check_names(wanted - {each.name for each in every}, directory)
    shown = [each for each in every if not wanted or each.name in wanted]
    if json:
        import msgspec

        figures = [msgspec.to_builtins(each) for each in shown]
        print_json(
            {
                "kind": report.kind,
                "subject": report.subject,
                "records": report.records,
                "figures": figures,
                "gaps": list(report.gaps),
            }
        )
        return
    fields([("report", report.title), ("subject", report.subject), ("records", f"{report.records:,}")])
    table(("figure", "value", "unit", "from"), [_row(each) for each in shown])
    if not wanted:
        fields(("gap", text) for text in report.gaps)
    note("as stated, not verified: tallystick report verify")


def _row(figure: Figure) -> tuple[str, str, str, str]:
    from msgspec import UNSET

    value = f"not stated: {figure.gap}" if figure.value is UNSET else figure.value
    return figure.name, value, figure.unit, figure.basis


def _check_names(unknown: set[str], directory: Path) -> None:
    from ledger.core.errors import InvalidError

    if unknown:
        raise InvalidError(
            f"has no figure {', '.join(sorted(unknown))}",
            where=str(directory),
            remedy="without --figure, all of them are shown",
            code="bad-parameter",
        )


def read_report(directory: Path) -> Report:
    """The report of a folder as it states itself; nothing is verified.

    Raises:
        InvalidError: the folder holds none.
    """
    import msgspec

    from ledger.core.errors import InvalidError
    from ledger.export.reports import Report

    try:
        return msgspec.json.decode((directory / REPORT_FILE).read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidError(
            f"holds no report: {error}",
            where=str(directory),
            remedy="name a folder that `tallystick report make` wrote",
            code="malformed-report",
        ) from None


@command(
    app,
    "tallystick report verify sci-2026-01 --key reporter.pub --export export-all --log-key log.vkey",
    "tallystick report verify sci-2026-01 --key reporter.pub --export export-all --log-key log.vkey --json",
)
def verify(
    directory: Annotated[Path, typer.Argument(metavar="REPORT", help="Folder of a report.")],
    key: Annotated[
        Path, typer.Option(metavar="FILE", help="PEM of the reporter's public key, from the reporter.")
    ],
    export: Annotated[Path, typer.Option(metavar="EXPORT", help="The export to compute it from again.")],
    log_key: Annotated[
        str, typer.Option(metavar="VKEY", help="The log's verifier key, or a file that holds it (log.vkey).")
    ],
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The inputs file that the report was made with.")
    ] = None,
    inputs_key: InputsKey = None,
    json: Json = False,
) -> None:
    """Check a report: its signature, the export under it, and every figure by computing it again.

    Workbook and PDF beside it, which no signature covers, are made again and compared.

    Exit code 0: all of it holds. 1: refuted, and the places that differ are named. 2: it could not be told.

    With --json: verdict (sound, refuted or unknown), signature, export (the verdict on it), findings about it
    (code, where, what, remedy), gaps (where, why), differences (where, stated, computed), notes.
    """
    from cli.audit import exit_code
    from cli.output import fields, print_json, verdict

    told = check(directory, key, export, log_key, inputs, inputs_key)
    if json:
        print_json(told)
    else:
        fields((name, str(told[name])) for name in ("signature", "export"))
        _print_places(told)
        fields(("note", text) for text in told["notes"])
        words = {
            "sound": "every figure follows from the log",
            "refuted": "it does not say what the log says; see above where",
            "unknown": "something that belongs to it could not be checked",
        }
        verdict(told["verdict"], words[told["verdict"]])
    raise typer.Exit(exit_code(told["verdict"]))


def _print_places(told: dict[str, Any]) -> None:
    """What contradicts, each with its place; the first of each kind."""
    from cli.output import fields

    fields(("refuted", f"{each['where']}: {each['what']}") for each in told["findings"][:_SHOWN])
    fields(("unread", f"{each['where']}: {each['why']}") for each in told["gaps"][:_SHOWN])
    for each in told["differences"][:_SHOWN]:
        fields([("differs", f"{each['where']}: stated {each['stated']}, computed {each['computed']}")])
    for name in ("findings", "gaps", "differences"):
        if (more := len(told[name]) - _SHOWN) > 0:
            fields([("and", f"{more:,} {name} more; --json shows them")])


def check(
    directory: Path,
    key: Path,
    export: Path,
    log_key: str,
    inputs: Path | None,
    inputs_key: Path | None = None,
) -> dict[str, Any]:
    """Verify a report; see the command."""
    from dataclasses import asdict

    from msgspec import UNSET, structs

    from cli.audit import run_audit
    from cli.keys import load_public
    from ledger.core.errors import CorruptError, InvalidError, TallystickError
    from ledger.export.reports import compare, make_report, open_report

    notes: list[str] = []
    try:
        stated = open_report(
            (directory / REPORT_FILE).read_bytes(),
            (directory / SIGNATURE_FILE).read_bytes(),
            load_public(key),
        )
    except (CorruptError, InvalidError) as error:
        return {
            "verdict": "refuted",
            "signature": f"does not hold: {error.what}",
            "export": "not checked",
            "findings": [],
            "gaps": [],
            "differences": [],
            "notes": notes,
        }
    audited = run_audit(str(export), log_key)
    told: dict[str, Any] = {
        "verdict": audited.verdict,
        "signature": "holds",
        "export": audited.verdict,
        "findings": [asdict(each) for each in audited.findings],
        "gaps": [asdict(each) for each in audited.gaps],
        "differences": [],
        "notes": notes,
    }
    try:
        computed = make_report(
            stated.kind,
            export,
            scope=stated.scope,
            subject=stated.subject,
            inputs=inputs,
            inputs_key=_public(inputs_key),
        )
    except TallystickError as error:
        if audited.verdict != "refuted":
            raise
        notes.append(f"the report cannot be made again from this export: {error}")
        return told
    checked = UNSET not in (stated.inputs_signed_by, computed.inputs_signed_by)
    if not checked:  # what only one side had the key for contradicts nothing
        computed = structs.replace(computed, inputs_signed_by=stated.inputs_signed_by)
    differences = compare(stated, computed)
    if stated.export_manifest != computed.export_manifest:
        notes.append(
            "the export is not the one that the report was made from; figures are compared all the same"
        )
    if stated.inputs_digest is not None and inputs is None:
        notes.append("the report was made with an inputs file: pass it with --inputs")
    if stated.software != computed.software:
        notes.append(f"made by {stated.software}, computed by {computed.software}")
    told["differences"] = [asdict(each) for each in differences]
    unread = (
        [] if differences else _unfaithful(directory, stated)
    )  # only what we would make is safe to render
    if stated.inputs_signed_by is not UNSET and not checked:
        unread.append(
            {"where": "inputs file", "why": "its signature was not checked: pass its key with --inputs-key"}
        )
    told["gaps"] += unread
    if differences:
        told["verdict"] = "refuted"
    elif unread and audited.verdict == "sound":
        told["verdict"] = "unknown"
    return told


def _unfaithful(directory: Path, report: Report) -> list[dict[str, str]]:
    """Workbook and PDF of the folder that cannot be shown to say what the report says, as gaps."""
    from ledger.export.reports.rendering import FORMATS, unfaithful

    files = {form: directory / f"report.{form}" for form in FORMATS}
    there = {form: path.read_bytes() for form, path in files.items() if path.is_file()}
    return [{"where": f"report.{form}", "why": why} for form, why in unfaithful(report, there).items()]
