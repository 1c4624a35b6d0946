"""Fuzz targets of what the service does with a request's body, before it looks at the log's state."""

from __future__ import annotations

from collections.abc import Callable

from ledger import zstd
from ledger.core import cose, merkle
from ledger.core.errors import InvalidError, RefusedError, TallystickError
from ledger.core.keys import PublicKey
from ledger.core.statements import MAX_BATCH_RECORDS
from ledger.service.bodies import decompress
from ledger.store.prepare import Limits, prepare_statement
from tests.build import HOUR_US, START_US, Issuer, SealedBatch, changed, make_deployment, make_records
from tests.core.examples import key_of
from tests.fuzz.targets_core import outcome_of

__all__ = ["SEEDS", "TARGETS"]

_ISSUER = Issuer(key=key_of("ed25519"))
_BATCHES: list[SealedBatch] = [_ISSUER.batch(make_records(count, make_deployment())) for count in (1, 2, 9)]
_BODIES = {batch.body: batch for batch in _BATCHES}
_MAX_BYTES = 1 << 20


def _key_of(issuer: str, kid: bytes) -> PublicKey:
    if (issuer, kid) != (_ISSUER.name, _ISSUER.key.public.kid):
        raise RefusedError("is not a registered key", code="unknown-key")
    return _ISSUER.key.public


def _prepare(entry: bytes, lines: bytes) -> None:
    prepared = prepare_statement(entry, lines, key_of=_key_of, now_us=START_US + 2 * HOUR_US, limits=Limits())
    assert prepared.records is not None
    assert zstd.decompress_bounded(prepared.records.block, _MAX_BYTES) == lines


def fuzz_batch(data: bytes) -> str:
    """Prepare a batch; only a batch that was signed, with its own records, may pass."""
    try:
        parts = cose.decode_cbor(data, where="body")
        if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(p, bytes) for p in parts)):
            raise InvalidError("is no batch", code="malformed-batch")
        _prepare(*parts)
    except TallystickError as error:
        return outcome_of(error)
    assert data in _BODIES, "a batch passes that nobody signed"
    return "accepted"


def fuzz_batch_records(data: bytes) -> str:
    """Prepare ``data`` as the records of a batch that somebody else signed, then of one over just them."""
    theirs = _BATCHES[2]
    try:
        _prepare(theirs.statement.entry, data)
    except TallystickError:
        assert data != theirs.lines
    else:
        assert data == theirs.lines, "records pass that the statement does not commit to"
    leaves = [merkle.leaf_hash(line) for line in data.split(b"\n")[:-1]]
    if not 0 < len(leaves) <= MAX_BATCH_RECORDS:
        return "no batch"
    payload = changed(theirs.statement.payload, count=len(leaves), root=merkle.root(leaves).hex())
    try:
        _prepare(_ISSUER.sign(payload, advance=False).entry, data)
    except TallystickError as error:
        return outcome_of(error)
    return "accepted"


def fuzz_zstd(data: bytes) -> str:
    """Decompress a body within its limit."""
    try:
        out = decompress(data, max_bytes=_MAX_BYTES)
    except TallystickError as error:
        return outcome_of(error)
    assert len(out) <= _MAX_BYTES
    return "accepted"


TARGETS: dict[str, Callable[[bytes], str | None]] = {
    "batch": fuzz_batch,
    "batch_records": fuzz_batch_records,
    "zstd": fuzz_zstd,
}

SEEDS: dict[str, list[bytes]] = {
    "batch": sorted(_BODIES),
    "batch_records": [batch.lines for batch in _BATCHES],
    "zstd": [
        zstd.compress(b""),
        zstd.compress(_BATCHES[2].lines),
        zstd.compress(bytes(_MAX_BYTES + 1)),
        zstd.compress(bytes(64 * _MAX_BYTES)),
    ],
}
