"""Finds what was said later about a record: corrections of it, evaluations of it, its batch or deployment.

The database looks through the bytes of such statements alone, which an index of their own finds; what it
finds is then read properly. So there is no table to keep, and none that could be wrong.
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

__all__ = ["MAX_FOUND", "MAX_LOOKED_AT", "Later", "Said", "described", "later_of"]

MAX_LOOKED_AT = 200_000
"""Statements whose bytes are looked through for one record: some 100 MB, a fifth of a second."""
MAX_FOUND = 1_000
_HAS = {
    "sqlite": "instr(entry, :{name}) > 0",
    "postgresql": 'pg_catalog."position"(entry, :{name}) > 0',
}


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
        is_whole: False if there are more statements than are looked through, or more found than are given.
    """

    corrections: tuple[Said, ...]
    evaluations: tuple[Said, ...]
    restated: Restated
    is_whole: bool


def later_of(connection: Connection, found: Found) -> Later:
    """What was said later about ``found``."""
    batch = statement(connection, found.leaf_index).leaf_hash.hex()
    targets = (found.record.id, batch, found.record.deployment)
    has = _HAS[connection.dialect.name]
    anywhere = " OR ".join(has.format(name=f"target{n}") for n in range(len(targets)))
    query = text(
        f"""
SELECT leaf_index, entry FROM (
    SELECT leaf_index, entry FROM statement
    WHERE kind IN ('correction', 'evaluation') ORDER BY leaf_index DESC LIMIT :most) AS newest
WHERE {anywhere} ORDER BY leaf_index LIMIT :limit"""  # noqa: S608 - of this module's own words
    ).bindparams(*(bindparam(f"target{n}", type_=LargeBinary) for n in range(len(targets))))
    values: dict[str, Any] = {f"target{n}": target.encode() for n, target in enumerate(targets)}
    rows = connection.execute(query, values | {"most": MAX_LOOKED_AT, "limit": MAX_FOUND}).all()
    count = text(
        "SELECT count(*) FROM (SELECT leaf_index FROM statement "
        "WHERE kind IN ('correction', 'evaluation') LIMIT :more) AS later"
    )
    is_whole = connection.execute(count, {"more": MAX_LOOKED_AT + 1}).scalar_one() <= MAX_LOOKED_AT
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
        is_whole and len(rows) < MAX_FOUND,
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
