"""Owns the layout of an export: file names, columns, the manifest and its signature. Pure; version 1.

An export is a directory that proves itself with nothing but the log's key::

    manifest.json                                  canonical JSON (RFC 8785): every other file with its digest
    manifest.cose                                  COSE_Sign1 by the log over manifest.json (detached payload)
    README.md                                      how to read and verify it
    records/day=2026-11-23/part-000000.parquet     one row per record; the day is that of ``started_at``, UTC
    _log/statements.parquet                        one row per statement, in leaf order

``records/**/*.parquet`` is the glob to query. Rows are in order of (``leaf_index``, ``position``) within a
file. A column is null where the record does not have the field; nothing unknown is written as zero.

What a verifier does, in this order:

1. ``open_manifest``: the log's signature over ``manifest.json``; then the checkpoint in it, by the log's key.
2. The directory holds exactly the files of the manifest (and the two manifest files), each with its digest.
3. Statements: rows ascend by ``leaf_index``; ``inclusion_path`` leads from the leaf hash of ``entry`` to the
   checkpoint's root; the other columns repeat what ``entry`` says. If the scope's ``statements`` is ``all``,
   ``leaf_index`` runs from 0 to the checkpoint's size without gaps, so issuer chains can be checked whole.
4. Records: (``leaf_index``, ``position``) is unique; the record hashes of one leaf, in order of ``position``,
   have the root that the batch statement states. Where the export has only some records of a batch (a period
   cuts it, or bytes were erased), ``record_hashes`` of its statement holds the hash of each position.
   ``record_columns`` and ``deployment_columns`` say what the other columns must hold, ``day_of`` the day.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ledger.core import cose
from ledger.core.canonical import decode_canonical, encode_canonical
from ledger.core.errors import InvalidError
from ledger.core.keys import PublicKey, Signer
from ledger.core.records import Amount, Deployment, Hex32, Record, TimeUs

__all__ = [
    "DEPLOYMENT_COLUMNS",
    "MANIFEST_FILE",
    "MANIFEST_SIGNATURE_FILE",
    "README_FILE",
    "RECORDS_DIR",
    "RECORDS_GLOB",
    "RECORD_COLUMNS",
    "STATEMENTS_FILE",
    "STATEMENT_COLUMNS",
    "Column",
    "Manifest",
    "ManifestFile",
    "Scope",
    "day_of",
    "deployment_columns",
    "is_export_path",
    "open_manifest",
    "part_path",
    "record_columns",
    "sign_manifest",
]

MANIFEST_FILE = "manifest.json"
MANIFEST_SIGNATURE_FILE = "manifest.cose"
README_FILE = "README.md"
STATEMENTS_FILE = "_log/statements.parquet"
RECORDS_DIR = "records"
RECORDS_GLOB = "records/**/*.parquet"
CONTENT_TYPE = "application/vnd.tallystick.export+json"
MAX_MANIFEST_BYTES = 64 << 20
"""Some 300,000 files; a day of a busy log has a few."""

_PART = re.compile(r"records/day=[0-9]{4}-[0-9]{2}-[0-9]{2}/part-[0-9]{6}\.parquet").fullmatch
_DAY_US = 86_400_000_000
_EPOCH_DAY = date(1970, 1, 1)


# --- columns ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One column. ``type`` is Arrow's name of the type; ``nullable`` tells whether it may be null."""

    name: str
    type: str
    description: str
    nullable: bool = True


_TIME = "timestamp[us, tz=UTC]"
_QUALITY = (
    "list<element: struct<name: string not null, value: int64 not null, scale: int64 not null> not null>"
)

DEPLOYMENT_COLUMNS = (
    Column("model", "string", "model name, from the deployment"),
    Column("version", "string", "model version, from the deployment"),
    Column("engine", "string", "serving engine, from the deployment"),
    Column("engine_version", "string", "version of the engine, from the deployment"),
    Column("quantization", "string", "quantization scheme, from the deployment"),
    Column("accelerator", "string", "accelerator, from the deployment"),
    Column("provider", "string", "provider, from the deployment"),
    Column("region", "string", "region, from the deployment"),
    Column("site", "string", "site, from the deployment"),
)
"""Copied from the deployment that a record refers to."""

RECORD_COLUMNS = (
    Column("leaf_index", "int64", "leaf of the log that holds the record's batch statement", False),
    Column("position", "int32", "place of the record in its batch", False),
    Column("id", "string", "record id, UUID version 7", False),
    Column("issuer", "string", "who signed the batch statement", False),
    Column("tenant", "string", "pseudonym of the tenant"),
    Column("deployment", "string", "digest of the deployment, hex", False),
    *DEPLOYMENT_COLUMNS,
    Column("factors", "string", "digest of the factor set, hex"),
    Column("started_at", _TIME, "when the request started", False),
    Column("first_token_at", _TIME, "when the first token was out"),
    Column("ended_at", _TIME, "when the request ended", False),
    Column("finish_reason", "string", "why the generation ended"),
    Column("input_tokens", "int64", "input tokens, the cached ones included", False),
    Column("output_tokens", "int64", "output tokens, reasoning included", False),
    Column("cached_input_tokens", "int64", "input tokens that a cache served"),
    Column("reasoning_tokens", "int64", "output tokens of reasoning"),
    Column("drafted_tokens", "int64", "tokens that speculative decoding drafted"),
    Column("accepted_tokens", "int64", "drafted tokens that were accepted"),
    Column("energy_uj", "int64", "energy in microjoules"),
    Column("energy_low_uj", "int64", "low end of the energy's range, microjoules"),
    Column("energy_high_uj", "int64", "high end of the energy's range, microjoules"),
    Column("energy_method", "string", "how the energy is known: measured, modelled or estimated"),
    Column("energy_source", "string", "counter, model or table that the energy comes from"),
    Column("carbon_ng", "int64", "location-based CO2e in nanograms, without the embodied share"),
    Column("carbon_low_ng", "int64", "low end of carbon_ng's range, nanograms"),
    Column("carbon_high_ng", "int64", "high end of carbon_ng's range, nanograms"),
    Column("carbon_market_ng", "int64", "market-based CO2e in nanograms"),
    Column("embodied_ng", "int64", "embodied CO2e of the hardware in nanograms"),
    Column("water_nl", "int64", "water in nanolitres"),
    Column("cost_nano", "int64", "cost in billionths of the currency"),
    Column("currency", "string", "ISO 4217 code"),
    Column("quality", _QUALITY, "quality metrics sorted by name; each is value / 10^scale"),
    Column("request", "string", "salted hash of the caller's request id, hex"),
    Column("input_digest", "string", "commitment to the input, hex"),
    Column("input_of", "string", "what the input commitment hides: tokens or text"),
    Column("output_digest", "string", "commitment to the output, hex"),
    Column("output_of", "string", "what the output commitment hides: tokens or text"),
    Column("parent", "string", "id of the record that caused this one"),
    Column("record", "binary", "the record's canonical bytes, whose hash the batch commits to", False),
)
"""Columns of ``records/**/*.parquet``. The partition column ``day`` is in the path only."""

STATEMENT_COLUMNS = (
    Column("leaf_index", "int64", "index of the leaf", False),
    Column("leaf_hash", "string", "RFC 6962 leaf hash of the entry, hex", False),
    Column("kind", "string", "kind of the statement", False),
    Column("issuer", "string", "who signed it", False),
    Column("seq", "int64", "number of the statement in its issuer's chain", False),
    Column("registered_at", _TIME, "when the log registered it (whole seconds; the log's word)", False),
    Column("tree_size", "int64", "size of the tree that the statement's receipt proves", False),
    Column("receipt_signature", "binary", "signature of that receipt", False),
    Column("record_count", "int32", "records of the batch; null for other kinds"),
    Column("exported_records", "int32", "how many of them this export has; null for other kinds"),
    Column("payload", "string", "what was signed: canonical JSON", False),
    Column("entry", "binary", "the leaf's bytes: the whole COSE_Sign1", False),
    Column("inclusion_path", "binary", "proof that leads to the checkpoint: 32 bytes a hash", False),
    Column(
        "record_hashes",
        "binary",
        "hash of each record of the batch, 32 bytes each; present where exported_records is from 1 up to, "
        "not including, record_count",
    ),
)
"""Columns of ``_log/statements.parquet``."""


def record_columns(records: Sequence[Record]) -> dict[str, list[Any]]:
    """The columns that follow from ``records`` alone, in the order of ``RECORD_COLUMNS``; times in us.

    ``ledger/_c/columns.c`` makes the same ones natively: change both.
    """
    usages = [r.usage for r in records]
    energies = [None if r.energy is UNSET else r.energy for r in records]
    inputs = [None if r.input is UNSET else r.input for r in records]
    outputs = [None if r.output is UNSET else r.output for r in records]
    return {
        "id": [r.id for r in records],
        "tenant": [_given(r.tenant) for r in records],
        "deployment": [r.deployment for r in records],
        "factors": [_given(r.factors) for r in records],
        "started_at": [r.started_us for r in records],
        "first_token_at": [_given(r.first_token_us) for r in records],
        "ended_at": [r.ended_us for r in records],
        "finish_reason": [_given(r.finish_reason) for r in records],
        "input_tokens": [u.input_tokens for u in usages],
        "output_tokens": [u.output_tokens for u in usages],
        "cached_input_tokens": [_given(u.cached_input_tokens) for u in usages],
        "reasoning_tokens": [_given(u.reasoning_tokens) for u in usages],
        "drafted_tokens": [_given(u.drafted_tokens) for u in usages],
        "accepted_tokens": [_given(u.accepted_tokens) for u in usages],
        "energy_uj": [None if e is None else e.energy_uj for e in energies],
        "energy_low_uj": [None if e is None else _given(e.low_uj) for e in energies],
        "energy_high_uj": [None if e is None else _given(e.high_uj) for e in energies],
        "energy_method": [None if e is None else e.method for e in energies],
        "energy_source": [None if e is None else e.source for e in energies],
        "carbon_ng": [_given(r.carbon_ng) for r in records],
        "carbon_low_ng": [_given(r.carbon_low_ng) for r in records],
        "carbon_high_ng": [_given(r.carbon_high_ng) for r in records],
        "carbon_market_ng": [_given(r.carbon_market_ng) for r in records],
        "embodied_ng": [_given(r.embodied_ng) for r in records],
        "water_nl": [_given(r.water_nl) for r in records],
        "cost_nano": [_given(r.cost_nano) for r in records],
        "currency": [_given(r.currency) for r in records],
        "quality": [
            None
            if r.quality is UNSET
            else [{"name": name, "value": q.value, "scale": q.scale} for name, q in sorted(r.quality.items())]
            for r in records
        ],
        "request": [_given(r.request) for r in records],
        "input_digest": [None if c is None else c.digest for c in inputs],
        "input_of": [None if c is None else c.of for c in inputs],
        "output_digest": [None if c is None else c.digest for c in outputs],
        "output_of": [None if c is None else c.of for c in outputs],
        "parent": [_given(r.parent) for r in records],
    }


def deployment_columns(deployment: Deployment) -> dict[str, str | None]:
    """The values of ``DEPLOYMENT_COLUMNS`` for every record that refers to ``deployment``."""
    return {column.name: _given(getattr(deployment, column.name)) for column in DEPLOYMENT_COLUMNS}


def _given(value: Any) -> Any:
    return None if value is UNSET else value


# --- files -----------------------------------------------------------------------------------------------


def day_of(started_us: int) -> str:
    """The UTC day, ``YYYY-MM-DD``, of the partition that holds a record started then."""
    return str(_EPOCH_DAY + timedelta(days=started_us // _DAY_US))


def part_path(day: str, number: int) -> str:
    """Path of a records file below the export's directory."""
    return f"{RECORDS_DIR}/day={day}/part-{number:06d}.parquet"


def is_export_path(path: str) -> bool:
    """Whether a manifest may list ``path``: nothing outside the directory, nothing unknown."""
    return path in {README_FILE, STATEMENTS_FILE} or _PART(path) is not None


# --- manifest --------------------------------------------------------------------------------------------


class ManifestFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file: its path below the directory, size, SHA-256 and, for Parquet, number of rows."""

    path: Annotated[str, Meta(min_length=1, max_length=255)]
    bytes: Amount
    sha256: Hex32
    rows: Amount | UnsetType = UNSET


class Scope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the export holds: records with ``from_us <= started_us < to_us``; an absent end is open.

    ``statements`` is ``all`` when every statement up to the checkpoint is there. ``needed`` leaves out
    heartbeats and the batches without a record in the export: what is there is proven, but not that nothing
    was left out.
    """

    statements: Literal["all", "needed"]
    from_us: TimeUs | UnsetType = UNSET
    to_us: TimeUs | UnsetType = UNSET


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an export is made of. ``checkpoint`` is the signed note, verbatim; ``files`` ascend by path.

    ``created_us`` and ``software`` say when and by what it was made: the log's word.
    """

    format: Literal["tallystick-export"] = "tallystick-export"
    version: Literal[1] = 1
    origin: Annotated[str, Meta(min_length=1, max_length=255)]
    checkpoint: Annotated[str, Meta(min_length=1)]
    created_us: TimeUs
    software: Annotated[str, Meta(min_length=1, max_length=255)]
    scope: Scope
    records: Amount
    statements: Amount
    files: tuple[ManifestFile, ...]


_decoder = msgspec.json.Decoder(Manifest)
_UNDERSTOOD = frozenset({cose.ALG, cose.CONTENT_TYPE, cose.KID, cose.CWT_CLAIMS})


def sign_manifest(manifest: Manifest, key: Signer) -> tuple[bytes, bytes]:
    """The bytes of ``manifest.json`` and of ``manifest.cose``, signed with the log's key."""
    data = encode_canonical(manifest)
    _check_files(manifest, MANIFEST_FILE)
    header = {
        cose.CONTENT_TYPE: CONTENT_TYPE,
        cose.CWT_CLAIMS: {cose.CWT_ISS: manifest.origin, cose.CWT_SUB: "tallystick:export"},
    }
    return data, cose.encode_sign1(cose.sign1(header, data, key, detached=True))


def open_manifest(data: bytes, signature: bytes, key: PublicKey) -> Manifest:
    """The manifest, once it is shown that the log's ``key`` signed it. Its checkpoint is not yet verified.

    Raises:
        InvalidError: malformed, of another version, or signed by another key. CorruptError: it was changed.
    """
    where = MANIFEST_SIGNATURE_FILE
    message = cose.decode_sign1(signature, where=where)
    claims = message.header.get(cose.CWT_CLAIMS)
    if (
        message.payload is not None
        or message.unprotected
        or message.header.get(cose.CONTENT_TYPE) != CONTENT_TYPE
        or not isinstance(claims, dict)
        or claims.keys() != {cose.CWT_ISS, cose.CWT_SUB}
        or claims[cose.CWT_SUB] != "tallystick:export"
    ):
        raise InvalidError("is not the signature of an export", where=where, code="malformed-manifest")
    if message.header.get(cose.KID) != key.kid:
        raise InvalidError(
            f"was not signed by key {key.kid.hex()[:16]}...",
            where=where,
            remedy="use the verifier key of the log that made the export",
            code="other-key",
        )
    cose.verify_sign1(message, key, payload=data, understood=_UNDERSTOOD, where=where)
    if len(data) > MAX_MANIFEST_BYTES:
        raise InvalidError(
            f"has {len(data)} bytes, more than {MAX_MANIFEST_BYTES}", where=MANIFEST_FILE, code="too-large"
        )
    manifest = decode_canonical(data, _decoder, where=MANIFEST_FILE)
    if claims[cose.CWT_ISS] != manifest.origin:
        raise InvalidError("names another log than its signature", where=MANIFEST_FILE, code="other-key")
    _check_files(manifest, MANIFEST_FILE)
    return manifest


def _check_files(manifest: Manifest, where: str) -> None:
    paths = [each.path for each in manifest.files]
    bad = [path for path in paths if not is_export_path(path)]
    if bad:
        raise InvalidError(f"lists {bad[0]!r}, which no export has", where=where, code="malformed-manifest")
    if paths != sorted(set(paths)):
        raise InvalidError("does not list its files sorted and once", where=where, code="malformed-manifest")
    if STATEMENTS_FILE not in paths:
        raise InvalidError(f"does not list {STATEMENTS_FILE}", where=where, code="malformed-manifest")
