"""Makes traces from an export: the proof of one record as JSON, and as a page that verifies itself."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from ledger.core.errors import InvalidError
from ledger.core.export_layout import MANIFEST_FILE, Manifest
from ledger.core.merkle import inclusion_path
from ledger.core.records import record_hash
from ledger.core.statements import decode_statement
from ledger.core.trace import Leaf, Trace
from ledger.export.reading import open_export

if TYPE_CHECKING:
    import duckdb

__all__ = ["make_trace", "trace_page"]

_MAX_LATER = 1000


def make_trace(export: Path, record_id: str) -> Trace:
    """The trace of one record, from an export that has it.

    Raises:
        InvalidError: no export, or the export lacks the record or a statement that its proof needs.
    """
    with open_export(export) as connection:
        manifest = msgspec.json.decode((export / MANIFEST_FILE).read_bytes(), type=Manifest)
        found = connection.execute(
            "SELECT leaf_index, position, record, deployment, factors, issuer FROM records WHERE id = ?",
            [record_id],
        ).fetchone()
        if found is None:
            raise InvalidError(
                f"the export has no record {record_id}",
                where=str(export),
                remedy="check the id, and that the export's period holds it",
                code="not-found",
            )
        leaf_index, position, record, deployment, factors, issuer = found
        hashes = _hashes(connection, leaf_index)
        statement = _leaf(connection, "leaf_index = ?", [leaf_index])
        kid = _kid(statement)
        later = connection.execute(_LATER, [issuer, record_id, leaf_index, deployment, _MAX_LATER]).fetchall()
        return Trace(
            record=record,
            position=position,
            path=tuple(each.hex() for each in inclusion_path(hashes, position)),
            statement=statement,
            issuer_key=_leaf(
                connection,
                "kind = 'key' AND payload ->> '$.issuer' = ? AND payload ->> '$.kid' = ? "
                "AND payload ->> '$.action' <> 'revoke' AND leaf_index < ?",
                [issuer, kid, leaf_index],
            ),
            deployment=_document(connection, "deployment", deployment),
            factors=UNSET if factors is None else _document(connection, "factors", factors),
            later=tuple(_made(*row) for row in later),
            checkpoint=manifest.checkpoint,
        )


_LATER = """
SELECT entry, leaf_index, inclusion_path FROM statements s
WHERE (kind = 'correction' AND issuer = $1 AND payload ->> '$.record' = $2
       AND payload ->> '$.record_hash' = (SELECT sha256('\\x00'::BLOB || record) FROM records WHERE id = $2))
   OR (kind = 'evaluation' AND ($2 = payload ->> '$.record' OR $4 = payload ->> '$.deployment'
       OR payload ->> '$.statement' = (SELECT leaf_hash FROM statements WHERE leaf_index = $3)))
ORDER BY leaf_index LIMIT $5"""


def _hashes(connection: duckdb.DuckDBPyConnection, leaf_index: int) -> list[bytes]:
    """The record hashes of a batch, by position."""
    (given,) = connection.execute(
        "SELECT record_hashes FROM statements WHERE leaf_index = ?", [leaf_index]
    ).fetchone() or (None,)
    if given is not None:  # the export has only some of the batch's records
        return [given[at : at + 32] for at in range(0, len(given), 32)]
    rows = connection.execute(
        "SELECT record FROM records WHERE leaf_index = ? ORDER BY position", [leaf_index]
    ).fetchall()
    return [record_hash(record) for (record,) in rows]


def _leaf(connection: duckdb.DuckDBPyConnection, condition: str, parameters: list[Any]) -> Leaf:
    row = connection.execute(
        f"SELECT entry, leaf_index, inclusion_path FROM statements WHERE {condition} "  # noqa: S608 - ours
        "ORDER BY leaf_index LIMIT 1",
        parameters,
    ).fetchone()
    if row is None:
        raise InvalidError(
            "the export lacks a statement that the trace needs",
            remedy="export with --every-statement",
            code="not-found",
        )
    return _made(*row)


def _document(connection: duckdb.DuckDBPyConnection, kind: str, digest: str) -> Leaf:
    """The statement that published a document: its subject has the document's digest."""
    rows = connection.execute(
        "SELECT entry, leaf_index, inclusion_path FROM statements WHERE kind = ? ORDER BY leaf_index", [kind]
    ).fetchall()
    for row in rows:
        if decode_statement(row[0]).subject == f"tallystick:{kind}:{digest}":
            return _made(*row)
    raise InvalidError(
        f"the export lacks the {kind} statement of {digest}",
        remedy="export with --every-statement",
        code="not-found",
    )


def _made(entry: bytes, leaf_index: int, path: bytes) -> Leaf:
    return Leaf(
        entry=entry,
        leaf_index=leaf_index,
        path=tuple(path[at : at + 32].hex() for at in range(0, len(path), 32)),
    )


def _kid(statement: Leaf) -> str:
    return decode_statement(statement.entry).kid.hex()


def trace_page(trace: Trace, log_vkey: str) -> bytes:
    """A page (HTML, self-contained) that shows the trace and verifies it in the reader's browser.

    The log's key is in it for convenience: the page tells its reader to compare it with the log's own.
    """
    folder = files("ledger.export")
    script = folder.joinpath("trace.js").read_text("utf-8")
    style = folder.joinpath("trace.css").read_text("utf-8")
    data = msgspec.json.encode({"trace": trace, "log_key": log_vkey}).decode().replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"POLICY": policy, "STYLE": style, "DATA": data, "SCRIPT": script}
    page = folder.joinpath("trace.html").read_text("utf-8")
    return re.sub("{{([A-Z]+)}}", lambda found: parts[found[1]], page).encode()


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
