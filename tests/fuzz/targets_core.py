"""Fuzz targets of the core's formats: each feeds one parser and allows it no error but TallystickError.

Where bytes are accepted, the parser must be a strict inverse, and only what was signed may verify. A target
returns what came of its input, so that the runner keeps input with a new outcome as a seed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import cbor2
import msgspec
import rfc8785

from ledger.core import commitments, cose, keys, merkle, price_books, receipts, records
from ledger.core import statements as s
from ledger.core.canonical import decode_canonical, encode_canonical
from ledger.core.errors import TallystickError
from ledger.core.keys import PublicKey
from ledger.schemas.vector_log import sample_prices
from tests.build import ISSUER, make_deployment, make_factor_set, make_price_book, make_records
from tests.core.examples import ALGORITHMS, KINDS, SUBJECT, key_of, logged, payload_of, statement_of

__all__ = ["SEEDS", "TARGETS", "outcome_of"]

_KEYS = {key_of(algorithm).public.kid: key_of(algorithm).public for algorithm in ALGORITHMS}
_STATEMENTS = {statement_of(kind, algorithm).entry for kind in KINDS for algorithm in ALGORITHMS}
_LEAF_ENTRY = statement_of("heartbeat").entry
_PLACES = [(1, 0), (6, 0), (7, 3), (9, 8), (100, 64)]
_LOGGED = {size: logged(size, index, entry=_LEAF_ENTRY, subject=SUBJECT) for size, index in _PLACES}
_RECEIPTS = {place.receipt for place in _LOGGED.values()}
_LEAF = merkle.leaf_hash(_LEAF_ENTRY)
_DEPLOYMENT = make_deployment()
_RECORDS = make_records(3, _DEPLOYMENT)
_PAYLOADS: msgspec.json.Decoder[s.Payload] = msgspec.json.Decoder(s.Payload)
_VARIABLE = re.compile(r"[0-9]+|'.*'|\".*\"|`.*`|\(.*\)", re.DOTALL)


def outcome_of(error: TallystickError) -> str:
    """What kind of refusal this is, without the numbers and quotations of one input."""
    return f"{type(error).__name__} {error.code}: {_VARIABLE.sub('', error.what)[:60]}"


def _target(check: Callable[[bytes], str | None]) -> Callable[[bytes], str]:
    """A target out of a check that may raise TallystickError, and nothing else."""

    @wraps(check)
    def run(data: bytes) -> str:
        try:
            return check(data) or "accepted"
        except TallystickError as error:
            return outcome_of(error)

    return run


@_target
def _cbor(data: bytes) -> None:
    assert cose.encode_cbor(cose.decode_cbor(data, where="x")) == data


@_target
def _sign1(data: bytes) -> str:
    message = cose.decode_sign1(data)
    assert cose.encode_sign1(message) == data
    for key in _KEYS.values():
        try:
            cose.verify_sign1(message, key, understood=frozenset(range(20)))
        except TallystickError:
            continue
        bare = cose.encode_sign1(replace(message, unprotected={}))
        assert bare in _STATEMENTS, "a signature verifies over bytes that nobody signed"
        return "verified"
    return "decoded"


@_target
def _statement(data: bytes) -> str:
    statement = s.decode_statement(data)
    assert s.transparent_statement(statement, statement.receipts) == data
    assert s.subject_of(statement.payload) == statement.subject
    key = _KEYS.get(statement.kid)
    if key is None:
        return "decoded"
    s.verify_statement(statement, key)
    assert statement.entry in _STATEMENTS, "a signature verifies over bytes that nobody signed"
    return f"verified {statement.kind}"


def _wrap(header: dict[Any, Any] | bytes, payload: bytes) -> bytes:
    """A statement with any header and payload, and zeros for its signature."""
    protected = header if isinstance(header, bytes) else cose.encode_cbor(header)
    return cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, bytes(64)]))


def _header(payload: bytes) -> dict[Any, Any]:
    """The header that a statement with this payload needs, as far as the payload can be read."""
    try:
        subject = s.subject_of(_PAYLOADS.decode(payload))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        subject = ""
    key = key_of("ed25519").public
    claims = {cose.CWT_ISS: ISSUER, cose.CWT_SUB: subject}
    return {
        cose.ALG: key.alg,
        cose.CONTENT_TYPE: s.CONTENT_TYPE,
        cose.KID: key.kid,
        cose.CWT_CLAIMS: claims,
    }


@_target
def _statement_payload(data: bytes) -> str:
    statement = s.decode_statement(_wrap(_header(data), data))
    assert encode_canonical(statement.payload) == data == rfc8785.dumps(json.loads(data))
    assert s.sign_statement(statement.payload, issuer=ISSUER, key=key_of("ed25519")).message.payload == data
    return f"accepted {statement.kind}"


_HEARTBEAT = encode_canonical(payload_of("heartbeat"))


@_target
def _statement_header(data: bytes) -> None:
    statement = s.decode_statement(_wrap(data, _HEARTBEAT))
    assert cose.encode_cbor(statement.message.header) == data
    assert statement.payload == payload_of("heartbeat")


@_target
def _issuer_key(data: bytes) -> None:
    """``data`` as the key of an IssuerKey statement, with the kid that it claims or that fits."""
    try:
        kid = keys.parse_cose_key(cose.decode_cbor(data, where="key")).kid
    except TallystickError:
        kid = bytes(32)
    payload = encode_canonical(msgspec.structs.replace(payload_of("key"), key=data.hex(), kid=kid.hex()))
    statement = s.decode_statement(_wrap(_header(payload), payload))
    assert isinstance(statement.payload, s.IssuerKey)
    assert statement.payload.kid == kid.hex()


def _check_receipt(data: bytes) -> str:
    receipt = receipts.decode_receipt(data)
    receipts.verify_receipt(receipt, _LEAF, key_of("ed25519").public)
    assert data in _RECEIPTS, "a receipt verifies that the log did not give"
    return "verified"


_receipt = _target(_check_receipt)


@_target
def _receipt_proof(data: bytes) -> str:
    """``data`` as the inclusion proof in each signed receipt."""
    found = "refused"
    for place in _LOGGED.values():
        protected, _, payload, signature = cbor2.loads(place.receipt).value
        header = {cose.VDP: {-1: [data]}}
        try:
            found = _check_receipt(cbor2.dumps(cbor2.CBORTag(18, [protected, header, payload, signature])))
        except TallystickError as error:
            found = outcome_of(error)
    return found


@_target
def _record(data: bytes) -> None:
    record = records.decode_record(data)
    assert records.encode_record(record) == data == rfc8785.dumps(json.loads(data))
    assert records.decode_record_lines(data + b"\n") == ([record], [data])


@_target
def _record_lines(data: bytes) -> None:
    try:
        one_by_one = [records.decode_record(line) for line in data.split(b"\n")[:-1]]
    except TallystickError:
        one_by_one = None
    if data and not data.endswith(b"\n"):
        one_by_one = None
    try:
        together, lines = records.decode_record_lines(data)
    except TallystickError:
        assert one_by_one is None, "refused together, accepted one by one"
        raise
    assert together == one_by_one, "accepted together, refused one by one"
    assert b"".join(line + b"\n" for line in lines) == data == records.encode_record_lines(together)


@_target
def _deployment(data: bytes) -> None:
    deployment = records.decode_deployment(data)
    assert encode_canonical(deployment) == data == rfc8785.dumps(json.loads(data))


@_target
def _factor_set(data: bytes) -> None:
    factor_set = records.decode_factor_set(data)
    assert encode_canonical(factor_set) == data == rfc8785.dumps(json.loads(data))


@_target
def _price_book(data: bytes) -> None:
    book = price_books.decode_price_book(data)
    assert encode_canonical(book) == data == rfc8785.dumps(json.loads(data))


@_target
def _any_json(data: bytes) -> None:
    """JSON without a schema: what is accepted must have one spelling, whatever it holds."""
    value = decode_canonical(data, _ANYTHING)
    assert encode_canonical(value) == data


_ANYTHING: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def _same_key(key: PublicKey) -> None:
    assert keys.parse_cose_key(key.to_cose_key()) == key == keys.parse_public_pem(key.to_pem())


@_target
def _cose_key(data: bytes) -> None:
    _same_key(keys.parse_cose_key(cose.decode_cbor(data, where="key")))


@_target
def _public_pem(data: bytes) -> None:
    _same_key(keys.parse_public_pem(data))


_SALT = bytes(range(32))
_WHOLE = commitments.Opening("tokens", _SALT, commitments.token_bytes(range(200)))
_DIGEST = commitments.commit_tokens(range(200), _SALT)
_SHOWN = [commitments.open_chunk(_WHOLE, index) for index in range(4)]
_KINDS_OF = ["tokens", "text", "bytes", ""]


def _pack_chunk(opening: commitments.ChunkOpening) -> bytes:
    numbers = [value.to_bytes(9, "big", signed=True) for value in (opening.count, opening.index)]
    head = bytes([_KINDS_OF.index(opening.of)]) + b"".join(numbers) + bytes([len(opening.path)])
    return head + opening.salt + b"".join(opening.path) + opening.content


@_target
def _opened_chunk(data: bytes) -> str:
    of, count, index = data[:1], data[1:10], data[10:19]
    levels = data[19] if len(data) > 19 else 0
    rest = data[52:]
    opening = commitments.ChunkOpening(
        of=_KINDS_OF[of[0] % 4] if of else "",
        count=int.from_bytes(count, "big", signed=True),
        index=int.from_bytes(index, "big", signed=True),
        salt=data[20:52],
        content=rest[32 * levels :],
        path=tuple(rest[32 * level : 32 * level + 32] for level in range(levels)),
    )
    commitments.verify_chunk(_DIGEST, opening)
    assert opening in _SHOWN, "a chunk verifies that was not committed to"
    return "verified"


@_target
def _opening(data: bytes) -> str:
    opening = commitments.Opening(_KINDS_OF[data[0] % 4] if data else "", data[1:33], data[33:])
    commitments.verify_opening(_DIGEST, opening)
    assert opening == _WHOLE, "an opening verifies that was not committed to"
    return "verified"


TARGETS: dict[str, Callable[[bytes], str | None]] = {
    "any_json": _any_json,
    "cbor": _cbor,
    "cose_key": _cose_key,
    "deployment": _deployment,
    "factor_set": _factor_set,
    "issuer_key": _issuer_key,
    "opened_chunk": _opened_chunk,
    "opening": _opening,
    "price_book": _price_book,
    "public_pem": _public_pem,
    "receipt": _receipt,
    "receipt_proof": _receipt_proof,
    "record": _record,
    "record_lines": _record_lines,
    "sign1": _sign1,
    "statement": _statement,
    "statement_header": _statement_header,
    "statement_payload": _statement_payload,
}

_ENTRIES = sorted(_STATEMENTS)
_COSE_KEYS = [cose.encode_cbor(key.to_cose_key()) for key in _KEYS.values()]
_DOCUMENTS = [encode_canonical(payload_of(kind)) for kind in KINDS]
_TRANSPARENT = s.transparent_statement(statement_of("heartbeat"), sorted(_RECEIPTS)[:2])

SEEDS: dict[str, list[bytes]] = {
    "any_json": [*_DOCUMENTS, b'{"a":[1,[],{},"\\u001f\xc3\xa9",null,true,false,-1]}'],
    "cbor": [*_ENTRIES, *_COSE_KEYS, *sorted(_RECEIPTS), _TRANSPARENT],
    "cose_key": _COSE_KEYS,
    "deployment": [
        encode_canonical(make_deployment()),
        encode_canonical(
            make_deployment(
                weights=records.Weights(method="file", digest="ab" * 32),
                adapters=(records.Adapter(name="lora \u00e9"),),
                speculative=records.Speculative(method="ngram", tokens=4),
                site='a "quoted"\nname',
            )
        ),
    ],
    "factor_set": [encode_canonical(make_factor_set()), encode_canonical(make_factor_set(region="DE"))],
    "issuer_key": _COSE_KEYS,
    "opened_chunk": [_pack_chunk(each) for each in _SHOWN],
    "opening": [b"\x00" + _SALT + _WHOLE.content],
    "price_book": [encode_canonical(make_price_book()), encode_canonical(sample_prices())],
    "public_pem": [key.to_pem() for key in _KEYS.values()],
    "receipt": sorted(_RECEIPTS),
    "receipt_proof": [cbor2.loads(place.receipt).value[1][cose.VDP][-1][0] for place in _LOGGED.values()],
    "record": [records.encode_record(each) for each in _RECORDS],
    "record_lines": [records.encode_record_lines(_RECORDS), records.encode_record_lines(_RECORDS[:1]), b""],
    "sign1": [*_ENTRIES, *sorted(_RECEIPTS)],
    "statement": [*_ENTRIES, _TRANSPARENT],
    "statement_header": [statement_of("heartbeat", algorithm).message.protected for algorithm in ALGORITHMS],
    "statement_payload": _DOCUMENTS,
}
