"""Verifies a trace: that one record, and all that explains it, is in the log whose key is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from msgspec import UNSET

from ledger.core.checkpoint import Checkpoint, LogKeys, open_checkpoint
from ledger.core.cose import decode_cbor
from ledger.core.errors import CorruptError, TallystickError
from ledger.core.keys import PublicKey, parse_cose_key
from ledger.core.log_keys import public_of_log_key
from ledger.core.merkle import root_from_inclusion
from ledger.core.note import VerifierKey
from ledger.core.records import Deployment, FactorSet, Record, decode_record, document_digest, record_hash
from ledger.core.statements import (
    Batch,
    Correction,
    DeploymentStatement,
    Evaluation,
    FactorsStatement,
    IssuerKey,
    SignedStatement,
    decode_statement,
    verify_statement,
)
from ledger.core.trace import Leaf, Trace

__all__ = ["Traced", "verify_trace"]

_Payload = TypeVar("_Payload")


@dataclass(frozen=True)
class Traced:
    """What a trace shows, all of it verified."""

    record: Record
    statement: SignedStatement
    deployment: Deployment
    factors: FactorSet | None
    corrections: tuple[SignedStatement, ...]
    evaluations: tuple[SignedStatement, ...]
    checkpoint: Checkpoint


def verify_trace(trace: Trace, log_key: LogKeys) -> Traced:
    """Verify ``trace``, trusting the log's key (or keys, if it rotated) alone.

    Who signed an evaluation is as the log accepted it: its signature is not checked again, its place is.

    Raises:
        CorruptError: something in it does not follow; ``where`` names the part.
        InvalidError: something in it cannot be read.
    """
    checkpoint = open_checkpoint(trace.checkpoint.encode(), log_key)
    keys = (log_key,) if isinstance(log_key, VerifierKey) else log_key
    log = {key.kid: key for key in map(public_of_log_key, keys)}
    statement, batch = _leaf(trace.statement, Batch, checkpoint, "statement")
    _, registered = _signed(trace.issuer_key, IssuerKey, checkpoint, "issuer_key", log)
    if registered.issuer != statement.issuer or registered.action == "revoke" or registered.key is UNSET:
        raise _wrong("issuer_key", "does not register a key of the statement's issuer")
    key = parse_cose_key(decode_cbor(_hex(registered.key, "issuer_key"), where="issuer_key"))
    if key.kid.hex() != registered.kid or key.kid != statement.kid:
        raise _wrong("issuer_key", "registers another key than the one that signed the statement")
    verify_statement(statement, key)
    record = _record(trace, batch)
    _, published = _leaf(trace.deployment, DeploymentStatement, checkpoint, "deployment")
    if document_digest(published.deployment) != record.deployment:
        raise _wrong("deployment", "is not the one that the record refers to")
    factors = None
    if (trace.factors is UNSET) is not (record.factors is UNSET):
        raise _wrong("factors", "must be there exactly if the record refers to some")
    if trace.factors is not UNSET:
        factors = _leaf(trace.factors, FactorsStatement, checkpoint, "factors")[1].factors
        if document_digest(factors) != record.factors:
            raise _wrong("factors", "are not those that the record refers to")
    corrections, evaluations = [], []
    for number, leaf in enumerate(trace.later):
        where = f"later[{number}]"
        later, about = _leaf(leaf, (Correction, Evaluation), checkpoint, where)
        if isinstance(about, Correction):
            if (about.record, about.record_hash) != (record.id, record_hash(trace.record).hex()):
                raise _wrong(where, "corrects another record")
            if later.issuer != statement.issuer:
                raise _wrong(where, "is not by the record's own issuer")
            corrections.append(later)
        elif isinstance(about, Evaluation):
            targets = {record.id, statement.leaf_hash.hex(), record.deployment}
            if not {about.record, about.statement, about.deployment} & targets:
                raise _wrong(where, "evaluates something else")
            evaluations.append(later)
    return Traced(
        record, statement, published.deployment, factors, tuple(corrections), tuple(evaluations), checkpoint
    )


def _wrong(where: str, what: str) -> CorruptError:
    return CorruptError(what, where=where, code="bad-record-trace")


def _hex(text: str, where: str) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if data.hex() != text:
        raise _wrong(where, "is not lower-case hex")
    return data


def _record(trace: Trace, batch: Batch) -> Record:
    path = [_hex(each, "path") for each in trace.path]
    try:
        root = root_from_inclusion(record_hash(trace.record), trace.position, batch.count, path)
    except TallystickError as error:
        raise _wrong("path", error.what) from None
    if root.hex() != batch.root:
        raise _wrong("record", "record, position and path do not lead to the root that the issuer signed")
    return decode_record(trace.record)


def _leaf(
    leaf: Leaf, kind: type[_Payload] | tuple[type[_Payload], ...], checkpoint: Checkpoint, where: str
) -> tuple[SignedStatement, _Payload]:
    statement = decode_statement(leaf.entry, where=where)
    if not isinstance(statement.payload, kind) or statement.receipts:
        raise _wrong(where, f"holds a statement of kind {statement.kind}, which does not belong there")
    path = [_hex(each, f"{where}.path") for each in leaf.path]
    try:
        root = root_from_inclusion(statement.leaf_hash, leaf.leaf_index, checkpoint.size, path)
    except TallystickError as error:
        raise _wrong(f"{where}.path", error.what) from None
    if root != checkpoint.root:
        raise _wrong(where, "statement and path do not lead to the checkpoint's root")
    return statement, statement.payload


def _signed(
    leaf: Leaf, kind: type[_Payload], checkpoint: Checkpoint, where: str, keys: Mapping[bytes, PublicKey]
) -> tuple[SignedStatement, _Payload]:
    statement, payload = _leaf(leaf, kind, checkpoint, where)
    verify_statement(statement, keys.get(statement.kid) or next(iter(keys.values())))
    return statement, payload
