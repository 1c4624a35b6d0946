"""``tallystick trace``: from a record to deployment, statement and checkpoint, as text, JSON or a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json

if TYPE_CHECKING:
    from ledger.audit.trace import Traced

__all__ = ["EXAMPLES", "trace"]

EXAMPLES = (
    "tallystick trace export-all 01a20a9b-7ea7-77ff-a448-fa57bb0fd68e --log-key log.vkey",
    "tallystick trace export-all 01a20a9b-7ea7-77ff-a448-fa57bb0fd68e --log-key log.vkey --page trace.html",
)


def trace(
    export: Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder of a Parquet export.")],
    record: Annotated[str, typer.Argument(metavar="RECORD", help="The record's id.")],
    log_key: Annotated[
        str, typer.Option(metavar="VKEY", help="The log's verifier key, or a file that holds it (log.vkey).")
    ],
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page that shows the trace and verifies itself."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the trace, for `tallystick verify`.")
    ] = None,
    json: Json = False,
) -> None:
    """Trace a record to its deployment, weights, statement and checkpoint, verifying each step.

    The page needs nothing but a current browser: no network, no server. It verifies with WebCrypto, and says
    what does not hold where a byte was changed.

    With --json: the trace, as --save writes it.
    """
    from cli.audit import read_vkey
    from cli.output import fields, note, verdict, write_bytes
    from ledger.audit.trace import verify_trace
    from ledger.core.log_keys import parse_log_keys
    from ledger.core.trace import encode_trace
    from ledger.export.trace import make_trace, trace_page

    vkey = read_vkey(log_key)
    made = make_trace(export, record)
    traced = verify_trace(made, parse_log_keys(vkey))
    if save is not None:
        save.write_bytes(encode_trace(made))
    if page is not None:
        page.write_bytes(trace_page(made, vkey))
    if json:
        write_bytes(encode_trace(made))
        return
    fields((name, value) for name, value in _told(traced, made.statement.leaf_index, made.position) if value)
    verdict("sound", "every step was verified with the log's key")
    if page is not None:
        note(f"\nOpen {page} in a browser.")


def _told(traced: Traced, leaf_index: int, position: int) -> list[tuple[str, str]]:
    from msgspec import UNSET, to_builtins

    from cli import figures
    from ledger.core.records import Record

    record: Record = traced.record
    plain: dict[str, Any] = to_builtins(record)
    deployment = traced.deployment
    weights = deployment.weights
    checkpoint = traced.checkpoint
    rows = [
        ("record", record.id),
        ("started", figures.time(record.started_us)),
        ("tokens", f"{record.usage.input_tokens:,} in, {record.usage.output_tokens:,} out"),
        ("energy", figures.energy_of(plain)),
        ("model", deployment.model),
        ("version", "" if deployment.version is UNSET else deployment.version),
        ("engine", deployment.engine),
        ("weights", "" if weights is UNSET else f"{weights.digest} ({weights.method})"),
        ("deployment", record.deployment),
        ("factors", "" if traced.factors is None else f"{traced.factors.name} {traced.factors.version}"),
        ("issuer", traced.statement.issuer),
        ("statement", f"number {traced.statement.payload.seq} of its issuer's chain, leaf {leaf_index}"),
        ("position", str(position)),
        ("log", checkpoint.origin),
        ("checkpoint", f"size {checkpoint.size:,}, root {checkpoint.root.hex()}"),
    ]
    return rows + _later(traced)


def _later(traced: Traced) -> list[tuple[str, str]]:
    """Corrections, with the figures that stand now beside those logged, and evaluations."""
    from msgspec import to_builtins

    from cli import figures
    from ledger.core.corrections import restate

    payloads = [each.payload for each in traced.corrections]
    restated = restate(traced.record, list(enumerate(payloads)))  # type: ignore[arg-type]
    view = to_builtins(restated.record)
    rows = [(f"restated {name}", figures.restated(view, name)) for name in restated.changed]
    for each, reason in zip(traced.corrections, restated.reasons, strict=True):
        rows.append(("correction", f"{reason}, leaf hash {each.leaf_hash.hex()}"))
    for each in traced.evaluations:
        payload = to_builtins(each.payload)
        metrics = ", ".join(
            f"{name} {figures.scaled(one['value'], one['scale'])}" for name, one in payload["metrics"].items()
        )
        by = f"by {payload['evaluator']} ({each.issuer})"
        rows.append(("evaluation", f"{metrics}, {by}, leaf hash {each.leaf_hash.hex()}"))
    return rows
