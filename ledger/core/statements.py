"""Statements: what issuers sign and the log's leaves are (SCITT Signed Statements, RFC 9943 section 5).

A statement is a COSE_Sign1 whose payload is canonical JSON of one *kind*. Every kind carries the issuer's
``seq`` and ``prev`` (leaf hash of that issuer's previous statement), so that a dropped, reordered or doubled
statement shows. The leaf is the statement with an empty unprotected header: attaching receipts changes no
hash. A leaf has at most 65,535 bytes (C2SP tlog-tiles).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ledger.core import cose
from ledger.core.canonical import MAX_SAFE_INTEGER, decode_canonical, encode_canonical
from ledger.core.errors import InvalidError
from ledger.core.keys import PublicKey, Signer, parse_cose_key
from ledger.core.merkle import leaf_hash
from ledger.core.price_books import PriceBook, check_price_book
from ledger.core.records import (
    UUID7,
    Amount,
    Deployment,
    Energy,
    FactorSet,
    Hex32,
    Name,
    Quality,
    Record,
    Slug,
    TimeUs,
    Uuid7,
    document_digest,
    energy_holds,
)

__all__ = [
    "CONTENT_TYPE",
    "MAX_BATCH_RECORDS",
    "MAX_STATEMENT_BYTES",
    "Acknowledgement",
    "Admin",
    "Batch",
    "Correction",
    "DeploymentStatement",
    "Erasure",
    "Evaluation",
    "FactorsStatement",
    "Heartbeat",
    "IssuerKey",
    "PricesStatement",
    "SignedStatement",
    "Totals",
    "check_issuer_id",
    "decode_statement",
    "sign_statement",
    "subject_of",
    "sum_records",
    "transparent_statement",
    "verify_statement",
]

CONTENT_TYPE = "application/vnd.tallystick.statement+json"
MAX_STATEMENT_BYTES = 65_535
"""C2SP tlog-tiles writes an entry's length as a uint16."""
MAX_BATCH_RECORDS = 4_096
"""One signature then costs nothing per record, and a position fits 12 bits."""
MAX_BATCH_DOCUMENTS = 256
"""Deployments (and factor sets) that one batch may refer to: their digests must fit the statement."""
MAX_BATCH_PRICES = 16
"""Price books of one batch: the old one and the new one where prices change, with room."""

_ISSUER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._~:/-]{0,253}[A-Za-z0-9])?").fullmatch
_UNDERSTOOD = frozenset({cose.ALG, cose.CONTENT_TYPE, cose.KID, cose.CWT_CLAIMS})


# --- payloads --------------------------------------------------------------------------------------------


class _Statement(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", gc=False
):
    """What every kind has. ``prev`` is absent only where ``seq`` is 0."""

    seq: Amount
    issued_us: TimeUs
    prev: Hex32 | UnsetType = UNSET
    version: Literal[1] = 1


Position: TypeAlias = Annotated[int, Meta(ge=0, lt=MAX_BATCH_RECORDS, description="place in a batch")]


class Totals(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """Sums over a batch's records. A field is present when at least one record has it."""

    input_tokens: Amount
    output_tokens: Amount
    cached_input_tokens: Amount | UnsetType = UNSET
    reasoning_tokens: Amount | UnsetType = UNSET
    energy_uj: Amount | UnsetType = UNSET
    carbon_ng: Amount | UnsetType = UNSET
    carbon_market_ng: Amount | UnsetType = UNSET
    embodied_ng: Amount | UnsetType = UNSET
    water_nl: Amount | UnsetType = UNSET


class Batch(_Statement, frozen=True, tag="batch"):
    """Commits to ``count`` records, which travel beside the statement.

    ``root`` is the RFC 6962 root over the record hashes; ``first_us`` and ``last_us`` the earliest start and
    latest end; ``deployments`` and ``factors`` the sorted digests that the records use; ``dropped`` how
    many records the issuer knows it lost since its previous batch or heartbeat. ``unattributed_uj`` is energy
    that the issuer's meter measured since then and no record carries: so over a chain the measured energy of
    the records and this add up to what the meter counted. Absent where there was none. ``prices`` are the
    sorted digests of the price books that the issuer computed costs of these records by; absent where none.
    """

    count: Annotated[int, Meta(ge=1, le=MAX_BATCH_RECORDS)]
    root: Hex32
    first_us: TimeUs
    last_us: TimeUs
    deployments: Annotated[tuple[Hex32, ...], Meta(min_length=1, max_length=MAX_BATCH_DOCUMENTS)]
    factors: Annotated[tuple[Hex32, ...], Meta(max_length=MAX_BATCH_DOCUMENTS)]
    totals: Totals
    dropped: Amount
    unattributed_uj: Amount | UnsetType = UNSET
    prices: Annotated[tuple[Hex32, ...], Meta(min_length=1, max_length=MAX_BATCH_PRICES)] | UnsetType = UNSET


class DeploymentStatement(_Statement, frozen=True, tag="deployment"):
    """Publishes a deployment, so that records can refer to it by digest."""

    deployment: Deployment


class FactorsStatement(_Statement, frozen=True, tag="factors"):
    """Publishes a factor set, so that records can refer to it by digest."""

    factors: FactorSet


class PricesStatement(_Statement, frozen=True, tag="prices"):
    """Publishes a price book, so that batches can refer to it by digest."""

    prices: PriceBook


class Evaluation(_Statement, frozen=True, tag="evaluation"):
    """Quality metrics measured later, of one record, statement (leaf hash) or deployment."""

    evaluator: Name
    metrics: Annotated[dict[Slug, Quality], Meta(min_length=1, max_length=64)]
    record: Uuid7 | UnsetType = UNSET
    statement: Hex32 | UnsetType = UNSET
    deployment: Hex32 | UnsetType = UNSET


class Correction(_Statement, frozen=True, tag="correction"):
    """Restates figures of an earlier record; the old ones stay in the log.

    ``record_hash`` pins the record that is corrected. Absent figures are not changed.
    """

    record: Uuid7
    record_hash: Hex32
    reason: Annotated[str, Meta(min_length=1, max_length=1024)]
    energy: Energy | UnsetType = UNSET
    carbon_ng: Amount | UnsetType = UNSET
    carbon_market_ng: Amount | UnsetType = UNSET
    embodied_ng: Amount | UnsetType = UNSET
    water_nl: Amount | UnsetType = UNSET
    cost_nano: Amount | UnsetType = UNSET


class Heartbeat(_Statement, frozen=True, tag="heartbeat"):
    """Says that the issuer lives and had nothing (more) to report.

    ``dropped`` and ``unattributed_uj`` as in a batch.
    """

    dropped: Amount
    unattributed_uj: Amount | UnsetType = UNSET


class IssuerKey(_Statement, frozen=True, tag="key"):
    """An issuer's key was added, rotated (added beside the old ones) or revoked. Signed by the log's key.

    ``key`` is the COSE_Key in hex (deterministic encoding), ``kid`` its thumbprint. A revoked key's
    statements are refused from this leaf on; what it signed before stays valid. ``detail`` is the SHA-256
    of who did it and for which tenant, as an act's; a change of the log's own key has none.
    """

    action: Literal["add", "rotate", "revoke"]
    issuer: Annotated[str, Meta(min_length=1, max_length=255)]
    kid: Hex32
    key: (
        Annotated[str, Meta(max_length=4096, extra_json_schema={"pattern": "^([0-9a-f]{2})+$"})] | UnsetType
    ) = UNSET
    reason: Annotated[str, Meta(min_length=1, max_length=1024)] | UnsetType = UNSET
    detail: Hex32 | UnsetType = UNSET


class Acknowledgement(_Statement, frozen=True, tag="acknowledgement"):
    """A customer countersigns: it has seen this statement and its receipt. Both halves of the stick."""

    statement: Hex32
    receipt: Annotated[Hex32, Meta(description="SHA-256 of the receipt")]
    note: Annotated[str, Meta(min_length=1, max_length=1024)] | UnsetType = UNSET


class Erasure(_Statement, frozen=True, tag="erasure"):
    """Says which record bytes were removed and under which rule. The hashes stay."""

    statement: Hex32
    positions: Annotated[tuple[Position, ...], Meta(min_length=1, max_length=MAX_BATCH_RECORDS)]
    rule: Annotated[str, Meta(min_length=1, max_length=1024)]


class Admin(_Statement, frozen=True, tag="admin"):
    """Says that an administrator did something: made a key, set a policy. Signed by the log's key.

    ``detail`` is the SHA-256 of the particulars: canonical JSON with a random salt, kept beside the log. So
    the act is fixed for ever, while whom it concerned is shown to those alone who may see it.
    """

    action: Slug
    detail: Hex32


Payload: TypeAlias = (
    Batch
    | DeploymentStatement
    | FactorsStatement
    | PricesStatement
    | Evaluation
    | Correction
    | Heartbeat
    | IssuerKey
    | Acknowledgement
    | Erasure
    | Admin
)
_decoder: msgspec.json.Decoder[Payload] = msgspec.json.Decoder(Payload)


# --- signed form -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignedStatement:
    """A decoded statement. ``entry`` is the leaf's bytes: the statement with no unprotected header."""

    entry: bytes
    message: cose.Sign1
    issuer: str
    subject: str
    kid: bytes
    payload: Payload
    receipts: tuple[bytes, ...] = ()

    @property
    def leaf_hash(self) -> bytes:
        """RFC 6962 leaf hash of the entry."""
        return leaf_hash(self.entry)

    @property
    def kind(self) -> str:
        """The payload's kind, as in its JSON."""
        return str(self.payload.__struct_config__.tag)


def check_issuer_id(issuer: str, *, what: str = "issuer name") -> str:
    """Return ``issuer`` if it is a usable name: a scheme-less URL such as ``gpu-7.example.com/vllm``."""
    if _ISSUER(issuer) is None:
        raise InvalidError(
            f"{what} {issuer[:80]!r} is not usable",
            remedy="use a scheme-less URL: letters, digits and . _ ~ : / - , at most 255 characters",
            code="bad-issuer-name",
        )
    return issuer


def subject_of(payload: Payload) -> str:
    """The CWT subject that a statement must carry: what the statement is about."""
    match payload:
        case Batch():
            return f"tallystick:batch:{payload.root}"
        case DeploymentStatement():
            return f"tallystick:deployment:{document_digest(payload.deployment)}"
        case FactorsStatement():
            return f"tallystick:factors:{document_digest(payload.factors)}"
        case PricesStatement():
            return f"tallystick:prices:{document_digest(payload.prices)}"
        case Evaluation():
            about = [x for x in (payload.record, payload.statement, payload.deployment) if x is not UNSET]
            return f"tallystick:evaluation:{about[0] if len(about) == 1 else ''}"
        case Correction():
            return f"tallystick:record:{payload.record}"
        case Heartbeat():
            return f"tallystick:heartbeat:{payload.seq}"
        case IssuerKey():
            return f"tallystick:key:{payload.kid}"
        case Acknowledgement() | Erasure():
            return f"tallystick:statement:{payload.statement}"
        case Admin():
            return f"tallystick:admin:{payload.action}"


def sign_statement(payload: Payload, *, issuer: str, key: Signer) -> SignedStatement:
    """Sign ``payload`` as ``issuer``.

    Raises:
        InvalidError: the payload is inconsistent or its statement would be larger than a leaf can be.
    """
    check_issuer_id(issuer)
    data = encode_canonical(payload)
    decode_canonical(data, _decoder, where="statement")  # never sign what a reader would refuse
    _check_payload(payload, "statement")
    subject = subject_of(payload)
    header = {
        cose.CONTENT_TYPE: CONTENT_TYPE,
        cose.CWT_CLAIMS: {cose.CWT_ISS: issuer, cose.CWT_SUB: subject},
    }
    message = cose.sign1(header, data, key)
    entry = cose.encode_sign1(message)
    if len(entry) > MAX_STATEMENT_BYTES:
        raise InvalidError(
            f"statement has {len(entry)} bytes, more than {MAX_STATEMENT_BYTES}", code="statement-too-large"
        )
    return SignedStatement(entry, message, issuer, subject, key.public.kid, payload)


def decode_statement(data: bytes, *, where: str = "statement") -> SignedStatement:
    """Decode a statement, with or without receipts, and check everything but the signature.

    Raises:
        InvalidError: the bytes are not a well-formed statement; ``code`` and ``where`` tell what and where.
    """
    message = cose.decode_sign1(data, where=where)
    receipts = message.unprotected.get(cose.RECEIPTS, [])
    if (
        message.unprotected.keys() - {cose.RECEIPTS}
        or not isinstance(receipts, list)
        or (cose.RECEIPTS in message.unprotected and not receipts)
        or not all(isinstance(r, bytes) for r in receipts)
    ):
        raise InvalidError(
            "the unprotected header may hold receipts (394) only", where=where, code="malformed-statement"
        )
    bare = replace(message, unprotected={})
    entry = cose.encode_sign1(bare) if receipts else data
    if len(entry) > MAX_STATEMENT_BYTES:
        raise InvalidError(
            f"has {len(entry)} bytes, more than {MAX_STATEMENT_BYTES}",
            where=where,
            code="statement-too-large",
        )
    header = message.header
    claims = header.get(cose.CWT_CLAIMS)
    kid = header.get(cose.KID)
    if not (isinstance(claims, dict) and isinstance(kid, bytes) and len(kid) == 32):
        raise InvalidError(
            "the protected header needs kid (4) and CWT claims (15)", where=where, code="malformed-statement"
        )
    issuer, subject = claims.get(cose.CWT_ISS), claims.get(cose.CWT_SUB)
    if not (isinstance(issuer, str) and isinstance(subject, str)):
        raise InvalidError("the CWT claims need iss (1) and sub (2)", where=where, code="malformed-statement")
    if header.keys() - _UNDERSTOOD or claims.keys() - {cose.CWT_ISS, cose.CWT_SUB}:
        raise InvalidError(
            "the protected header has parameters that statements do not have",
            where=where,
            code="malformed-statement",
        )
    if header.get(cose.CONTENT_TYPE) != CONTENT_TYPE:
        raise InvalidError(f"content type (3) is not {CONTENT_TYPE}", where=where, code="malformed-statement")
    check_issuer_id(issuer)
    if message.payload is None:
        raise InvalidError("the payload is detached", where=where, code="malformed-statement")
    payload = decode_canonical(message.payload, _decoder, where=f"{where} payload")
    _check_payload(payload, where)
    if subject != subject_of(payload):
        raise InvalidError(
            f"the subject is not {subject_of(payload)!r}", where=where, code="malformed-statement"
        )
    return SignedStatement(entry, bare, issuer, subject, kid, payload, tuple(receipts))


def verify_statement(statement: SignedStatement, key: PublicKey, *, where: str = "statement") -> None:
    """Verify the issuer's signature.

    Raises:
        CorruptError: it does not verify. InvalidError: another key, or an algorithm that does not fit.
    """
    if statement.kid != key.kid:
        raise InvalidError(
            f"names key {statement.kid.hex()[:16]}... as its signer, not {key.kid.hex()[:16]}...",
            where=where,
            remedy="use the issuer's key that the statement names",
            code="other-key",
        )
    cose.verify_sign1(statement.message, key, understood=_UNDERSTOOD, where=where)


def transparent_statement(statement: SignedStatement, receipts: Iterable[bytes]) -> bytes:
    """The statement with ``receipts`` attached (RFC 9943 section 6); without any it is the statement."""
    attached = list(receipts)
    return cose.encode_sign1(
        replace(statement.message, unprotected={cose.RECEIPTS: attached} if attached else {})
    )


def _check_payload(payload: Payload, where: str) -> None:
    def bad(what: str) -> InvalidError:
        return InvalidError(what, where=where, code="malformed-statement")

    _check_hexes(payload, where)
    if (payload.prev is UNSET) != (payload.seq == 0):
        raise bad("prev must be absent exactly where seq is 0")
    match payload:
        case Batch():
            for name, digests in (("deployments", payload.deployments), ("factors", payload.factors)):
                if list(digests) != sorted(set(digests)):
                    raise bad(f"{name} must be sorted and unique")
            if payload.prices is not UNSET and list(payload.prices) != sorted(set(payload.prices)):
                raise bad("prices must be sorted and unique")
            if payload.first_us > payload.last_us:
                raise bad("first_us is after last_us")
        case PricesStatement():
            check_price_book(payload.prices, where=f"{where} payload")
        case Evaluation():
            if sum(x is not UNSET for x in (payload.record, payload.statement, payload.deployment)) != 1:
                raise bad("an evaluation is about exactly one of record, statement, deployment")
        case Correction():
            figures = (getattr(payload, name) for name in _CORRECTABLE)
            if all(figure is UNSET for figure in figures):
                raise bad("a correction must restate at least one figure")
            if payload.energy is not UNSET and not energy_holds(payload.energy):
                raise bad("energy_uj is not between low_uj and high_uj")
        case Erasure():
            if list(payload.positions) != sorted(set(payload.positions)):
                raise bad("positions must be sorted and unique")
        case IssuerKey():
            check_issuer_id(payload.issuer)
            if (payload.key is UNSET) != (payload.action == "revoke"):
                raise bad("key must be absent exactly where the action is revoke")
            if payload.key is not UNSET:
                if _is_hex(payload.key) is None:
                    raise InvalidError("key is not lower-case hex", where=where, code="schema")
                key_map = cose.decode_cbor(bytes.fromhex(payload.key), where=f"{where} key")
                if parse_cose_key(key_map, where=f"{where} key").kid.hex() != payload.kid:
                    raise bad("kid is not the thumbprint of key")
        case _:
            pass


_CORRECTABLE = (
    "energy",
    "carbon_ng",
    "carbon_market_ng",
    "embodied_ng",
    "water_nl",
    "cost_nano",
)
_is_hex = re.compile("([0-9a-f]{2})+").fullmatch
_is_hex32 = re.compile("[0-9a-f]{64}").fullmatch
_is_uuid7 = re.compile(UUID7).fullmatch


def _check_hexes(payload: Any, where: str) -> None:
    """Check the patterns of digests and record ids, which the decoder leaves out (see ``records``)."""
    record = getattr(payload, "record", UNSET)
    if record is not UNSET and _is_uuid7(record) is None:
        raise InvalidError("record is not a UUID version 7", where=where, code="schema")
    for name in ("prev", "root", "record_hash", "statement", "deployment", "kid", "receipt", "detail"):
        value = getattr(payload, name, UNSET)
        if isinstance(value, str) and _is_hex32(value) is None:
            raise InvalidError(f"{name} is not 64 lower-case hex digits", where=where, code="schema")
    for name in ("deployments", "factors", "prices"):
        value = getattr(payload, name, ())
        if isinstance(value, tuple) and not all(map(_is_hex32, value)):
            raise InvalidError(f"{name} has a digest that is not lower-case hex", where=where, code="schema")


# --- sums ------------------------------------------------------------------------------------------------


def sum_records(records: Iterable[Record], *, where: str = "batch") -> Totals:
    """Sum records into ``Totals``, exactly.

    Raises:
        InvalidError: a sum passes 2^53 - 1; the batch must be split.
    """
    records = list(records)
    usages = [r.usage for r in records]
    sums: dict[str, int] = {
        "input_tokens": sum([u.input_tokens for u in usages]),
        "output_tokens": sum([u.output_tokens for u in usages]),
    }
    present: dict[str, list[int]] = {
        "cached_input_tokens": [v for u in usages if (v := u.cached_input_tokens) is not UNSET],
        "reasoning_tokens": [v for u in usages if (v := u.reasoning_tokens) is not UNSET],
        "energy_uj": [e.energy_uj for r in records if (e := r.energy) is not UNSET],
        "carbon_ng": [v for r in records if (v := r.carbon_ng) is not UNSET],
        "carbon_market_ng": [v for r in records if (v := r.carbon_market_ng) is not UNSET],
        "embodied_ng": [v for r in records if (v := r.embodied_ng) is not UNSET],
        "water_nl": [v for r in records if (v := r.water_nl) is not UNSET],
    }
    sums |= {name: sum(values) for name, values in present.items() if values}
    for name, value in sums.items():
        if value > MAX_SAFE_INTEGER:
            raise InvalidError(
                f"the sum of {name} passes 2^53 - 1",
                where=where,
                remedy="split the batch",
                code="total-too-large",
            )
    return Totals(**sums)
