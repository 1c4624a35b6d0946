"""Finds what was said later about a record: corrections of it, evaluations of it, its batch or deployment.

An index over the subject in such statements' own bytes finds them; what it finds is then read properly. So
there is no table to keep, and none that could be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, to_builtins
from sqlalchemy import Connection, LargeBinary, bindparam, text

from ledger.core.corrections import RESTATED, Restated, applies, restate
from ledger.core.records import record_hash
from ledger.core.statements import Correction, Evaluation, SignedStatement, decode_statement
from ledger.store.queries import Found, statement

__all__ = ["MAX_FOUND", "SUBJECT_SQL", "Later", "Said", "described", "later_of"]

MAX_FOUND = 1_000
"""Statements that one record is shown with."""

_MARK = b"tallystick:".hex()
_MOST = len("tallystick:evaluation:") + 64
SUBJECT_SQL = {
    "sqlite": f"substr(entry, instr(entry, x'{_MARK}'), {_MOST})",
    "postgresql": f"substr(entry, pg_catalog.\"position\"(entry, '\\x{_MARK}'::bytea), {_MOST})",
}
"""The statement's subject, and perhaps some bytes behind it. The index is over this very expression.

Before the subject stand numbers, a key's hash and the issuer's name: one that has ``tallystick:`` in its
name would not be found by what it says.
"""


@dataclass(frozen=True)
class Said:
    """A statement about a record, and where the log has it."""

    leaf_index: int
    statement: SignedStatement


@dataclass(frozen=True)
class Later:
    """What was said later about a record, in the order of the log.

    Attributes:
        corrections: those that count for the record.
        evaluations: of the record, of its batch or of its deployment.
        restated: the record with the corrections in place.
        is_whole: False if there are more than ``MAX_FOUND`` about the same thing.
    """

    corrections: tuple[Said, ...]
    evaluations: tuple[Said, ...]
    restated: Restated
    is_whole: bool


def later_of(connection: Connection, found: Found, *, tenant: str | None = None) -> Later:
    """What was said later about ``found``; for a ``tenant``, without what issuers of other tenants said."""
    batch = statement(connection, found.leaf_index).leaf_hash.hex()
    targets = (found.record.id, batch, found.record.deployment)
    prefixes = [f"tallystick:record:{found.record.id}"] + [
        f"tallystick:evaluation:{each}" for each in targets
    ]
    subject = SUBJECT_SQL[connection.dialect.name]
    # Deployments are shared, and so are batches of shared issuers: each tenant may evaluate them for itself.
    of_others = "AND issuer NOT IN (SELECT issuer FROM issuer_tenant WHERE tenant <> :tenant) "
    others = "" if tenant is None else of_others
    query = text(
        f"SELECT leaf_index, entry FROM statement WHERE kind IN ('correction', 'evaluation') "  # noqa: S608
        f"AND {subject} >= :first AND {subject} < :end {others}ORDER BY {subject} LIMIT :limit"
    ).bindparams(bindparam("first", type_=LargeBinary), bindparam("end", type_=LargeBinary))
    rows: list[Any] = []
    is_whole = True
    for prefix in prefixes:
        first = prefix.encode()
        # Behind the subject, the last text of the protected header, comes the empty unprotected one: 0xa0.
        bounds: dict[str, Any] = {"first": first, "end": first + b"\xff", "limit": MAX_FOUND + 1}
        bounds |= {} if tenant is None else {"tenant": tenant}
        part = connection.execute(query, bounds).all()
        is_whole = is_whole and len(part) <= MAX_FOUND
        rows += part[:MAX_FOUND]
    rows.sort(key=lambda row: row.leaf_index)
    digest = record_hash(found.line).hex()
    corrections, evaluations = [], []
    for index, entry in rows:
        said = Said(index, decode_statement(bytes(entry), where=f"leaf {index}"))
        payload = said.statement.payload
        if isinstance(payload, Correction):
            if applies(payload, said.statement.issuer, found.record, digest, found.issuer):
                corrections.append(said)
        elif isinstance(payload, Evaluation):
            about = [x for x in (payload.record, payload.statement, payload.deployment) if x is not UNSET]
            if about[0] in targets:
                evaluations.append(said)
    in_order = [(each.leaf_index, each.statement.payload) for each in corrections]
    return Later(
        tuple(corrections),
        tuple(evaluations),
        restate(found.record, in_order),  # type: ignore[arg-type]
        is_whole,
    )


def described(later: Later) -> dict[str, Any]:
    """For JSON: ``corrections``, ``corrected`` (the figures that stand now), ``evaluations``; absent if none.

    ``later_is_whole`` is there, and false, where more was said than is looked through.
    """
    made: dict[str, Any] = {}
    if later.corrections:
        made["corrections"] = [_correction(each) for each in later.corrections]
        view = to_builtins(later.restated.record)
        made["corrected"] = {name: view[name] for name in later.restated.changed}
    if later.evaluations:
        made["evaluations"] = [_evaluation(each) for each in later.evaluations]
    return made if later.is_whole else made | {"later_is_whole": False}


def _correction(said: Said) -> dict[str, Any]:
    payload = to_builtins(said.statement.payload)
    figures = {name: payload[name] for name in RESTATED if name in payload}
    return {
        "leaf_index": said.leaf_index,
        "issuer": said.statement.issuer,
        "issued_us": payload["issued_us"],
        "reason": payload["reason"],
        "figures": figures,
    }


def _evaluation(said: Said) -> dict[str, Any]:
    payload = to_builtins(said.statement.payload)
    about = next(word for word in ("record", "statement", "deployment") if word in payload)
    return {
        "leaf_index": said.leaf_index,
        "issuer": said.statement.issuer,
        "issued_us": payload["issued_us"],
        "evaluator": payload["evaluator"],
        "about": "batch" if about == "statement" else about,
        "metrics": payload["metrics"],
    }
