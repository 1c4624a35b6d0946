"""Owns the checkpoints that witnesses cosigned: the newest few, each as one note with all its signatures.

The log's own signature is in ``checkpoint`` already; here it is again, so that a note can be served as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Integer, delete, insert, select, text, update
from sqlmodel import Field, SQLModel

from ledger.core.note import Note, NoteSignature, format_note, parse_note

__all__ = ["Witnessed", "WitnessedRow", "add_cosignatures", "newest_witnessed", "witnessed_at"]

KEPT = 256
"""Older ones are removed: the newest one with a quorum says all that they say."""

_LOCK = 0x7769_746E_6573
"""Advisory lock of whoever adds cosignatures: "witnes"."""

_Big = BigInteger().with_variant(Integer, "sqlite")


class WitnessedRow(SQLModel, table=True):
    """A checkpoint with cosignatures. ``quorum`` is 1 once those of the policy's quorum are there."""

    __tablename__ = "witnessed"

    size: int = Field(sa_column=Column(_Big, primary_key=True, autoincrement=False))
    note: str
    quorum: int
    cosigned_s: int = Field(sa_column=Column(_Big, autoincrement=False, nullable=False))


_rows: Any = WitnessedRow.__table__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Witnessed:
    """A cosigned checkpoint. ``cosigned_s``: when its last cosignature came (POSIX seconds, our clock)."""

    size: int
    note: str
    quorum: bool
    cosigned_s: int


def newest_witnessed(connection: Connection) -> Witnessed | None:
    """The newest checkpoint that a quorum cosigned; None if there is none."""
    query = select(_rows).where(_rows.c.quorum == 1).order_by(_rows.c.size.desc()).limit(1)
    return _read(connection.execute(query).one_or_none())


def witnessed_at(connection: Connection, size: int) -> Witnessed | None:
    """The cosigned checkpoint of a size, with a quorum or not; None if no witness cosigned it."""
    return _read(connection.execute(select(_rows).where(_rows.c.size == size)).one_or_none())


def add_cosignatures(
    connection: Connection,
    size: int,
    note: bytes,
    cosignatures: Iterable[NoteSignature],
    is_quorum: Callable[[Note], bool],
    now_s: int,
) -> Witnessed:
    """Add verified cosignatures to the checkpoint of ``size``, whose bare note the log signed.

    To be called in a write transaction; of two replicas, none overwrites what the other one added.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    before = witnessed_at(connection, size)
    parsed = parse_note(note if before is None else before.note.encode())
    signatures = {(each.name, each.key_id): each for each in parsed.signatures}
    signatures |= {(each.name, each.key_id): each for each in cosignatures}  # the latest of each witness
    merged = Note(parsed.text, tuple(signatures.values()))
    quorum = is_quorum(merged)
    values = {"note": format_note(merged).decode(), "quorum": int(quorum), "cosigned_s": now_s}
    if before is None:
        connection.execute(insert(_rows).values(size=size, **values))
        oldest = select(_rows.c.size).order_by(_rows.c.size.desc()).offset(KEPT - 1).limit(1)
        floor = connection.execute(oldest).scalar_one_or_none()
        newest = newest_witnessed(connection)
        if floor is not None:
            kept = floor if newest is None else min(floor, newest.size)
            connection.execute(delete(_rows).where(_rows.c.size < kept))
    else:
        connection.execute(update(_rows).where(_rows.c.size == size).values(**values))
    return Witnessed(size, values["note"], quorum, now_s)  # type: ignore[arg-type]


def _read(row: Any) -> Witnessed | None:
    return None if row is None else Witnessed(row.size, row.note, bool(row.quorum), row.cosigned_s)
