"""Records, deployments and factor sets: the documents that statements commit to.

A *record* describes one token batch: the tokens of one generation. Names follow the OpenTelemetry GenAI
semantic conventions. Every number is an integer within 2^53 - 1 with its unit in the name; what is unknown is
absent, never zero. The bytes are canonical JSON (RFC 8785, see ``canonical``); a record's hash is the
RFC 6962 leaf hash of its bytes.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ledger.core.canonical import MAX_SAFE_INTEGER, decode_canonical, encode_canonical
from ledger.core.errors import InvalidError
from ledger.core.merkle import leaf_hash
from ledger.native import parsing as _native

__all__ = [
    "MAX_RECORD_BYTES",
    "UUID7",
    "Adapter",
    "Commitment",
    "Deployment",
    "Energy",
    "FactorSet",
    "FactorSource",
    "Hex32",
    "Quality",
    "Record",
    "Speculative",
    "Usage",
    "Weights",
    "check_record",
    "decode_deployment",
    "decode_factor_set",
    "decode_record",
    "decode_record_lines",
    "document_digest",
    "encode_record",
    "encode_record_lines",
    "energy_holds",
    "record_hash",
]

MAX_RECORD_BYTES = 16_384
"""One record's bytes at most. Real ones have 500 to 1,000; the rest is room for quality metrics."""
_LEAST_RECORD_BYTES = 128
"""No record has fewer: those with the required fields alone have 200."""

# --- field types -----------------------------------------------------------------------------------------

Amount: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER)]
Signed: TypeAlias = Annotated[int, Meta(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER)]
TimeUs: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER, description="Unix time in microseconds")]
# Patterns are published in the schema but checked by ``check_record`` and ``_check_forms``: a regular
# expression per field would cost four times the whole decoding.
# ``(?!\n)``: in Python, unlike in JSON Schema, ``$`` also matches before a newline at the end.
_SLUG = r"^[A-Za-z0-9][A-Za-z0-9._:~-]*(?!\n)$"
_HEX = "^[0-9a-f]{64}$"
UUID7 = "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
_REASON = "^[a-z][a-z_]*$"

Hex32: TypeAlias = Annotated[
    str,
    Meta(
        min_length=64,
        max_length=64,
        description="32 bytes, lower-case hex",
        extra_json_schema={"pattern": _HEX},
    ),
]
Uuid7: TypeAlias = Annotated[
    str,
    Meta(
        min_length=36,
        max_length=36,
        description="UUID version 7 (RFC 9562), lower case",
        extra_json_schema={"pattern": UUID7},
    ),
]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
# What a database keeps as text: PostgreSQL's has no U+0000.
Label: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\u0000]*$")]
Slug: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64, pattern=_SLUG)]
Pseudonym: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        description="stands for the tenant; never a name or an e-mail address",
        extra_json_schema={"pattern": _SLUG},
    ),
]
Reason: TypeAlias = Annotated[str, Meta(min_length=1, max_length=32, extra_json_schema={"pattern": _REASON})]
Currency: TypeAlias = Annotated[str, Meta(max_length=3, pattern="^[A-Z]{3}$", description="ISO 4217 code")]
Method: TypeAlias = Literal["measured", "modelled", "estimated"]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """Base of everything that is encoded canonically. Trees of values, so no work for the collector.

    A record and its parts declare their fields in the canonical order, sorted by name: both the decoder,
    which looks for the next field first, and the encoder, which then need not sort, are faster by a third.
    """


# --- record ----------------------------------------------------------------------------------------------


class Usage(_Document, frozen=True, kw_only=True):
    """Token counts as the engine or provider reported them.

    ``input_tokens`` includes the cached ones; ``output_tokens`` includes reasoning.
    """

    accepted_tokens: Amount | UnsetType = UNSET
    cached_input_tokens: Amount | UnsetType = UNSET
    drafted_tokens: Amount | UnsetType = UNSET
    input_tokens: Amount
    output_tokens: Amount
    reasoning_tokens: Amount | UnsetType = UNSET


class Commitment(_Document, frozen=True, kw_only=True):
    """A salted hash that hides tokens (or, where ids are not visible, UTF-8 text). See ``commitments``."""

    digest: Hex32
    of: Literal["tokens", "text"]


class Energy(_Document, frozen=True, kw_only=True):
    """Energy attributed to this record, in microjoules, with how it is known and its range.

    ``measured`` comes from counters, ``modelled`` from a model fed with this run's own times and hardware,
    ``estimated`` from tables.
    """

    energy_uj: Amount
    high_uj: Amount | UnsetType = UNSET
    low_uj: Amount | UnsetType = UNSET
    method: Method
    source: Name


class Quality(_Document, frozen=True, kw_only=True):
    """A quality metric: ``value / 10**scale``."""

    scale: Annotated[int, Meta(ge=0, le=9)]
    value: Signed


class Record(_Document, frozen=True, kw_only=True):
    """One token batch: the tokens of one generation. ``schemas/record.schema.json`` is made from this.

    ``request`` is a salted hash of the caller's request id. ``deployment`` and ``factors`` are document
    digests. Times are Unix microseconds. ``carbon_ng`` is location-based CO2e in nanograms;
    ``embodied_ng`` is the hardware's share and is not part of ``carbon_ng``. ``cost_nano`` is a billionth of
    ``currency``. ``parent`` is the record that caused this one (agent chains).
    """

    carbon_high_ng: Amount | UnsetType = UNSET
    carbon_low_ng: Amount | UnsetType = UNSET
    carbon_market_ng: Amount | UnsetType = UNSET
    carbon_ng: Amount | UnsetType = UNSET
    cost_nano: Amount | UnsetType = UNSET
    currency: Currency | UnsetType = UNSET
    deployment: Hex32
    embodied_ng: Amount | UnsetType = UNSET
    ended_us: TimeUs
    energy: Energy | UnsetType = UNSET
    factors: Hex32 | UnsetType = UNSET
    finish_reason: Reason | UnsetType = UNSET
    first_token_us: TimeUs | UnsetType = UNSET
    id: Uuid7
    input: Commitment | UnsetType = UNSET
    output: Commitment | UnsetType = UNSET
    parent: Uuid7 | UnsetType = UNSET
    quality: Annotated[dict[Slug, Quality], Meta(min_length=1, max_length=32)] | UnsetType = UNSET
    request: Hex32 | UnsetType = UNSET
    started_us: TimeUs
    tenant: Pseudonym | UnsetType = UNSET
    usage: Usage
    water_nl: Amount | UnsetType = UNSET


# --- documents that records refer to by digest -----------------------------------------------------------


class Weights(_Document, frozen=True):
    """What identifies the weights. ``openssf-model-signing`` is the manifest digest of the OpenSSF Model
    Signing specification; ``file`` the SHA-256 of a single file; ``hub-revision`` a hub's commit, for when no
    weights are at hand.
    """

    method: Literal["openssf-model-signing", "file", "hub-revision"]
    digest: Annotated[str, Meta(max_length=64, pattern=r"^[0-9a-f]{40,64}(?!\n)$")]


class Adapter(_Document, frozen=True):
    """A LoRA or other adapter on top of the weights."""

    name: Name
    weights: Weights | UnsetType = UNSET


class Speculative(_Document, frozen=True):
    """Speculative decoding: the method (``draft_model``, ``ngram``, ``eagle``, ...), drafter and depth."""

    method: Slug
    model: Name | UnsetType = UNSET
    tokens: Amount | UnsetType = UNSET


class Deployment(_Document, frozen=True):
    """What generates tokens. Content-addressed: its digest is the SHA-256 of its canonical bytes.

    ``quantization`` names the scheme as the engine does (``int8``, ``int4``, ``gptq``, ``awq``, ``Q4_K_M``);
    ``attention`` the backend (``paged``, ``flash_attention_2``); ``accelerators`` how many of them;
    ``power_mw`` the rated power of one accelerator or CPU package in milliwatts.
    """

    model: Label
    engine: Slug
    version: Label | UnsetType = UNSET
    engine_version: Name | UnsetType = UNSET
    weights: Weights | UnsetType = UNSET
    adapters: Annotated[tuple[Adapter, ...], Meta(min_length=1, max_length=64)] | UnsetType = UNSET
    quantization: Slug | UnsetType = UNSET
    attention: Slug | UnsetType = UNSET
    speculative: Speculative | UnsetType = UNSET
    tensor_parallel: Amount | UnsetType = UNSET
    pipeline_parallel: Amount | UnsetType = UNSET
    accelerator: Name | UnsetType = UNSET
    accelerators: Amount | UnsetType = UNSET
    power_mw: Amount | UnsetType = UNSET
    provider: Name | UnsetType = UNSET
    region: Slug | UnsetType = UNSET
    site: Name | UnsetType = UNSET


class FactorSource(_Document, frozen=True):
    """Where a factor comes from: publication, its version and the year that it describes."""

    factor: Slug
    source: Annotated[str, Meta(min_length=1, max_length=1024)]
    version: Name | UnsetType = UNSET
    year: Annotated[int, Meta(ge=1990, le=2200)] | UnsetType = UNSET


class FactorSet(_Document, frozen=True):
    """Factors that turn energy into carbon and water. Content-addressed like a deployment.

    ``pue_milli`` is power usage effectiveness times 1,000; ``intensity_ug_per_kwh`` the location-based grid
    intensity in micrograms CO2e per kWh (1 g/kWh = 1,000,000) with its range; ``market_ug_per_kwh`` the
    market-based one; ``water_ul_per_kwh`` site water (WUE) and ``source_water_ul_per_kwh`` the water of power
    generation, in microlitres per kWh; ``embodied_ng_per_s`` the embodied CO2e of the hardware for each
    second that one generation has it busy.
    """

    name: Name
    version: Name
    pue_milli: Annotated[int, Meta(ge=1000, le=100_000)]
    intensity_ug_per_kwh: Amount
    sources: Annotated[tuple[FactorSource, ...], Meta(min_length=1, max_length=32)]
    intensity_low_ug_per_kwh: Amount | UnsetType = UNSET
    intensity_high_ug_per_kwh: Amount | UnsetType = UNSET
    market_ug_per_kwh: Amount | UnsetType = UNSET
    water_ul_per_kwh: Amount | UnsetType = UNSET
    source_water_ul_per_kwh: Amount | UnsetType = UNSET
    embodied_ng_per_s: Amount | UnsetType = UNSET
    region: Slug | UnsetType = UNSET
    valid_from_us: TimeUs | UnsetType = UNSET
    valid_until_us: TimeUs | UnsetType = UNSET


# --- bytes -----------------------------------------------------------------------------------------------

_record_decoder = msgspec.json.Decoder(Record)
_deployment_decoder = msgspec.json.Decoder(Deployment)
_factors_decoder = msgspec.json.Decoder(FactorSet)
# Sorts the keys of dicts (``quality``); the fields of a record are declared in canonical order.
_encoder = msgspec.json.Encoder(order="deterministic")


def encode_record(record: Record) -> bytes:
    """Canonical bytes of one record."""
    return _encoder.encode(record)


def decode_record(data: bytes, *, where: str = "record") -> Record:
    """Decode and check one record's canonical bytes.

    Raises:
        InvalidError: too large, not canonical, of another shape, or inconsistent in itself.
    """
    if _native is not None and _native.is_record(data):  # then its values need no further look
        return _record_decoder.decode(data)
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidError(
            f"has {len(data)} bytes, more than {MAX_RECORD_BYTES}", where=where, code="record-too-large"
        )
    record = decode_canonical(data, _record_decoder, where=where)
    check_record(record, where=where)
    return record


def as_read(record: Record, line: bytes, *, where: str = "record") -> Record:
    """``record`` as whoever reads its canonical bytes, ``line``, has it: all values of the stated types.

    Raises:
        InvalidError: a reader refuses it.
    """
    if (
        _native is not None
        and type(record.usage) is Usage
        and (record.energy is UNSET or type(record.energy) is Energy)
        and _native.is_record(line)
    ):
        return record
    return decode_record(line, where=where)


def encode_record_lines(records: list[Record]) -> bytes:
    """Canonical records, each ended by a newline: the form in which records travel beside a statement.

    Canonical JSON escapes newlines, so the split is unambiguous.
    """
    return _encoder.encode_lines(records)


def decode_record_lines(data: bytes, *, where: str = "records") -> tuple[list[Record], list[bytes]]:
    """Decode newline-ended canonical records.

    Returns:
        The records and the bytes of each, in order.

    Raises:
        InvalidError: as ``decode_record``; ``where`` then names the position of the first bad one.
    """
    if not data:
        return [], []
    if data[-1] != 0x0A:
        raise InvalidError("the last record is not ended by a newline", where=where, code="malformed-json")
    if data.count(b"\n") * _LEAST_RECORD_BYTES > len(data):  # nothing as long as a list of them is made
        return _decode_one_by_one(data, where)
    if _native is not None and (sound_lines := _native.record_lines(data)) is not None:
        return _record_decoder.decode_lines(data), sound_lines
    try:
        # Fast path: one call decodes the whole block. Each record's canonical bytes are wanted anyway, so
        # encoding one by one gives the cut and the comparison at once.
        records = _record_decoder.decode_lines(data)
        lines = list(map(_encoder.encode, records))
        sound = b"\n".join([*lines, b""]) == data and max(map(len, lines)) <= MAX_RECORD_BYTES
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        sound = False
    if sound:
        sound = _forms_hold(records)
    return (records, lines) if sound else _decode_one_by_one(data, where)


def _decode_one_by_one(data: bytes, where: str) -> tuple[list[Record], list[bytes]]:
    """The same, slower, to name the first bad one."""
    records: list[Record] = []
    lines: list[bytes] = []
    start = 0
    while start < len(data):
        end = data.index(b"\n", start)
        lines.append(data[start:end])
        records.append(decode_record(lines[-1], where=f"{where}[{len(records)}]"))
        start = end + 1
    return records, lines


_is_hex = re.compile(_HEX).fullmatch
_is_uuid7 = re.compile(UUID7).fullmatch
_is_slug = re.compile(_SLUG).fullmatch
_is_reason = re.compile(_REASON).fullmatch
_UUID_DASHES = (8, 13, 18, 23)


def _forms_hold(records: list[Record]) -> bool:
    """Whether every record would pass ``check_record``: the same rules, a column of the block at a time."""
    # Each list below has the records that break one rule: a whole column is looked through without a call.
    if [
        r
        for r in records
        if not r.started_us <= (r.started_us if r.first_token_us is UNSET else r.first_token_us) <= r.ended_us
    ]:
        return False
    if [r for r in records if (r.cost_nano is UNSET) is not (r.currency is UNSET)]:
        return False
    usages = [r.usage for r in records]
    if [u for u in usages if u.cached_input_tokens is not UNSET and u.cached_input_tokens > u.input_tokens]:
        return False
    energies = [r.energy for r in records if r.energy is not UNSET]
    if [
        e
        for e in energies
        if (e.low_uj is not UNSET and e.low_uj > e.energy_uj)
        or (e.high_uj is not UNSET and e.high_uj < e.energy_uj)
    ]:
        return False
    if not all(_is_uuid7(r.parent) for r in records if r.parent is not UNSET):
        return False
    if not all(_is_slug(tenant) for tenant in {r.tenant for r in records} if tenant is not UNSET):
        return False
    reasons = {r.finish_reason for r in records}
    if not all(_is_reason(reason) for reason in reasons if reason is not UNSET):
        return False
    hexes = list({r.deployment for r in records})
    hexes += {r.factors for r in records if r.factors is not UNSET}
    hexes += [r.request for r in records if r.request is not UNSET]
    hexes += [r.input.digest for r in records if r.input is not UNSET]
    hexes += [r.output.digest for r in records if r.output is not UNSET]
    ids = "".join([r.id for r in records])
    count = len(records)
    return (
        _besides_hex("".join(hexes)) == b""
        and all(ids[dash::36] == "-" * count for dash in _UUID_DASHES)
        and ids[14::36] == "7" * count
        and set(ids[19::36]) <= set("89ab")
        and _besides_hex(ids) == b"-" * (len(_UUID_DASHES) * count)
    )


def _besides_hex(text: str) -> bytes:
    """What is left of ``text`` without its lower-case hex digits. The decoder has checked the lengths."""
    return text.encode(errors="replace").translate(None, b"0123456789abcdef")


def check_record(record: Record, *, where: str = "record") -> None:
    """Check what the decoder leaves out: patterns, the order of times, and fields that need each other."""

    def refuse(what: str, code: str = "inconsistent-record") -> InvalidError:
        return InvalidError(what, where=f"{where} {record.id}", code=code)

    for name, value, fits in (
        ("id", record.id, _is_uuid7),
        ("parent", record.parent, _is_uuid7),
        ("deployment", record.deployment, _is_hex),
        ("factors", record.factors, _is_hex),
        ("request", record.request, _is_hex),
        ("input.digest", UNSET if record.input is UNSET else record.input.digest, _is_hex),
        ("output.digest", UNSET if record.output is UNSET else record.output.digest, _is_hex),
        ("tenant", record.tenant, _is_slug),
        ("finish_reason", record.finish_reason, _is_reason),
    ):
        if isinstance(value, str) and fits(value) is None:
            raise refuse(f"{name} does not have the form that its schema states", "schema")
    if record.ended_us < record.started_us:
        raise refuse("ended_us is before started_us")
    first = record.first_token_us
    if first is not UNSET and not record.started_us <= first <= record.ended_us:
        raise refuse("first_token_us is not between started_us and ended_us")
    if (record.cost_nano is UNSET) != (record.currency is UNSET):
        raise refuse("cost_nano and currency must come together")
    if record.energy is not UNSET and not energy_holds(record.energy):
        raise refuse("energy_uj is not between low_uj and high_uj")
    cached = record.usage.cached_input_tokens
    if cached is not UNSET and cached > record.usage.input_tokens:
        raise refuse("cached_input_tokens is more than input_tokens")


def energy_holds(energy: Energy) -> bool:
    """Whether the figure lies within its own range."""
    low = 0 if energy.low_uj is UNSET else energy.low_uj
    high = MAX_SAFE_INTEGER if energy.high_uj is UNSET else energy.high_uj
    return low <= energy.energy_uj <= high


def record_hash(data: bytes) -> bytes:
    """The record's hash: RFC 6962 leaf hash of its canonical bytes."""
    return leaf_hash(data)


def document_digest(document: msgspec.Struct) -> str:
    """Content address of a deployment, factor set or price book: hex SHA-256 of its canonical bytes."""
    return hashlib.sha256(encode_canonical(document)).hexdigest()


def decode_deployment(data: bytes, *, where: str = "deployment") -> Deployment:
    """Decode a deployment's canonical bytes."""
    return decode_canonical(data, _deployment_decoder, where=where)


def decode_factor_set(data: bytes, *, where: str = "factors") -> FactorSet:
    """Decode a factor set's canonical bytes."""
    return decode_canonical(data, _factors_decoder, where=where)
