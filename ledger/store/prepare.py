"""Preparing a statement for the log: every check that needs no transaction, and all heavy work.

Pure CPU, safe to run in many threads at once. What is left for the transaction is what depends on the log's
state: the issuer's chain, revocation, known documents, and record ids seen before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import UNSET

from ledger import zstd
from ledger.core import merkle
from ledger.core.canonical import encode_canonical
from ledger.core.errors import InvalidError, RefusedError
from ledger.core.keys import PublicKey
from ledger.core.records import Record, decode_record_lines, document_digest
from ledger.core.statements import (
    Admin,
    Batch,
    DeploymentStatement,
    FactorsStatement,
    IssuerKey,
    PricesStatement,
    SignedStatement,
    Totals,
    decode_statement,
    sum_records,
    verify_statement,
)
from ledger.native import parsing as _native
from ledger.store.tables import ROLLUP_SUMS

__all__ = ["Limits", "Prepared", "PreparedRecords", "prepare_statement"]

US_PER_HOUR = 3_600_000_000
ZSTD_LEVEL = 1  # level 3 takes twice the time and, on hashes, saves nothing


@dataclass(frozen=True)
class Limits:
    """What the ledger accepts."""

    max_future_us: int = 300_000_000
    """How far ahead of our clock a time may be: five minutes cover clocks that are not in step."""
    min_time_us: int = 1_577_836_800_000_000
    """Nothing is older than 2020: a smaller time is a clock that was never set, or another unit."""


@dataclass(frozen=True)
class PreparedRecords:
    """A batch's records, ready to be stored."""

    block: bytes
    block_sha256: bytes
    ids: list[bytes]
    slices: dict[tuple[str, str], int]
    rollups: dict[tuple[int, str, str], list[int]] = field(repr=False)


@dataclass(frozen=True)
class Prepared:
    """A statement that may be logged as far as can be told without the log's state."""

    statement: SignedStatement
    leaf_hash: bytes
    records: PreparedRecords | None
    document: tuple[str, bytes] | None
    """Digest and canonical body of the deployment, factor set or price book that the statement publishes."""
    own: bool = False
    """Signed by the log itself, just now."""


def prepare_statement(
    entry: bytes,
    records: bytes | None,
    *,
    key_of: Callable[[str, bytes], PublicKey],
    now_us: int,
    limits: Limits,
) -> Prepared:
    """Check a statement and, for a batch, its records.

    Args:
        entry: the statement's bytes, as the issuer sent them.
        records: newline-ended canonical records for a batch, None for any other kind.
        key_of: returns the verifying key of (issuer, kid) or raises RefusedError.
        now_us: the ledger's clock.
        limits: what the ledger accepts.

    Raises:
        InvalidError, RefusedError, CorruptError: with a code that names the reason. Nothing was changed.
    """
    statement = decode_statement(entry)
    if statement.receipts:
        raise InvalidError(
            "the unprotected header must be empty", where="statement", code="malformed-statement"
        )
    verify_statement(statement, key_of(statement.issuer, statement.kid))
    payload = statement.payload
    _check_time("issued_us", payload.issued_us, now_us, limits)
    prepared_records = None
    document = None
    if isinstance(payload, Batch):
        if records is None:
            raise InvalidError(
                "a batch statement came without its records",
                where="statement",
                remedy="send it to /batches together with the records",
                code="records-missing",
            )
        prepared_records = _prepare_records(payload, records, now_us, limits)
    elif records is not None:
        raise InvalidError(
            f"records came with a statement of kind {statement.kind}, which has none",
            where="statement",
            remedy="send it to /entries",
            code="records-unexpected",
        )
    elif isinstance(payload, DeploymentStatement):
        document = (document_digest(payload.deployment), encode_canonical(payload.deployment))
    elif isinstance(payload, FactorsStatement):
        document = (document_digest(payload.factors), encode_canonical(payload.factors))
    elif isinstance(payload, PricesStatement):
        document = (document_digest(payload.prices), encode_canonical(payload.prices))
    elif isinstance(payload, IssuerKey | Admin):
        raise RefusedError(
            f"{statement.kind} statements are made by the log itself",
            where="statement",
            remedy="ask an administrator of the log",
            code="kind-not-allowed",
        )
    return Prepared(statement, statement.leaf_hash, prepared_records, document)


def prepare_own(statement: SignedStatement) -> Prepared:
    """Wrap a statement that the log itself just signed."""
    return Prepared(statement, statement.leaf_hash, None, None, own=True)


def _prepare_records(batch: Batch, block: bytes, now_us: int, limits: Limits) -> PreparedRecords:
    found = _certain(batch, block) or _checked(batch, block)
    _check_time("first_us", batch.first_us, now_us, limits)
    _check_time("last_us", batch.last_us, now_us, limits)
    compressed = zstd.compress(block, level=ZSTD_LEVEL)
    digest = hashlib.sha256(compressed).digest()
    return PreparedRecords(compressed, digest, found.ids, found.slices, found.rollups)


@dataclass(frozen=True)
class _Found:
    """What is stored of records beside their bytes."""

    ids: list[bytes]
    slices: dict[tuple[str, str], int]
    rollups: dict[tuple[int, str, str], list[int]]


def _certain(batch: Batch, block: bytes) -> _Found | None:
    """What the native part finds, if it is certain that the records hold and are what the statement says.

    None means that Python must look: it decides, and says what is wrong.
    """
    facts = None if _native is None else _native.batch_facts(block)
    if facts is None:
        return None
    ids, first_us, last_us, factors, rollups, root = facts
    if root is None:  # the processor does not hash; hashlib does
        root = merkle.root(merkle.leaf_hashes(block.split(b"\n")[:-1]))
    slices: dict[tuple[str, str], int] = {}
    for (_, tenant, deployment), sums in rollups.items():
        slices[tenant, deployment] = slices.get((tenant, deployment), 0) + sums[0]
    said = (batch.count, batch.root, batch.first_us, batch.last_us, batch.factors)
    agreed = (
        said == (len(ids), root.hex(), first_us, last_us, factors)
        and batch.deployments == tuple(sorted({deployment for _, deployment in slices}))
        and batch.totals == _totals(rollups)
        and len(set(ids)) == len(ids)
    )
    return _Found(list(ids), slices, rollups) if agreed else None


def _totals(rollups: dict[tuple[int, str, str], list[int]]) -> Totals:
    """The statement's totals over the records of these roll-ups."""
    total = dict(zip(ROLLUP_SUMS, map(sum, zip(*rollups.values(), strict=True)), strict=True))
    energies = total["measured_records"] + total["modelled_records"] + total["estimated_records"]
    counts = {
        "cached_input_tokens": total["cached_input_records"],
        "reasoning_tokens": total["reasoning_records"],
        "energy_uj": energies,
        "carbon_ng": total["carbon_records"],
        "carbon_market_ng": total["carbon_market_records"],
        "embodied_ng": total["embodied_records"],
        "water_nl": total["water_records"],
    }
    known = {name: total[name] for name, count in counts.items() if count}
    return Totals(input_tokens=total["input_tokens"], output_tokens=total["output_tokens"], **known)


def _checked(batch: Batch, block: bytes) -> _Found:
    """What Python finds.

    Raises:
        InvalidError: the records do not hold, or are not what the statement says.
    """
    records, lines = decode_record_lines(block)
    if len(records) != batch.count:
        raise InvalidError(
            f"the statement counts {batch.count} records, but {len(records)} came",
            where="records",
            code="wrong-count",
        )
    if merkle.root(merkle.leaf_hashes(lines)).hex() != batch.root:
        raise InvalidError(
            "the records do not hash to the statement's root",
            where="records",
            remedy="send exactly the bytes that the statement was made over, in their order",
            code="wrong-root",
        )
    _check_batch(batch, records)
    ids = [bytes.fromhex(r.id.replace("-", "")) for r in records]
    if len(set(ids)) != len(ids):
        first = {each: i for i, each in reversed([*enumerate(ids)])}
        double = next(i for i, each in enumerate(ids) if first[each] != i)
        raise InvalidError(
            f"record id {records[double].id} is twice in the batch",
            where=f"records[{double}]",
            code="duplicate-record",
        )
    return _Found(ids, *_sums(records))


def _check_batch(batch: Batch, records: list[Record]) -> None:
    """Check that the statement says of its records what they say themselves."""

    def differs(what: str) -> InvalidError:
        return InvalidError(
            f"the statement's {what} is not that of its records", where="statement", code="wrong-summary"
        )

    if tuple(sorted({r.deployment for r in records})) != batch.deployments:
        raise differs("deployments")
    if tuple(sorted({r.factors for r in records if r.factors is not UNSET})) != batch.factors:
        raise differs("factors")
    if min([r.started_us for r in records]) != batch.first_us:
        raise differs("first_us")
    if max([r.ended_us for r in records]) != batch.last_us:
        raise differs("last_us")
    if sum_records(records) != batch.totals:
        raise differs("totals")


def _check_time(name: str, value: int, now_us: int, limits: Limits) -> None:
    if value > now_us + limits.max_future_us:
        raise RefusedError(
            f"{name} {value} is {(value - now_us) // 1_000_000} s ahead of the ledger's clock",
            where="statement",
            remedy="set the clock; times are Unix microseconds",
            code="time-in-future",
        )
    if value < limits.min_time_us:
        raise RefusedError(
            f"{name} {value} is before 2020",
            where="statement",
            remedy="set the clock; times are Unix microseconds",
            code="time-too-old",
        )


def _sums(
    records: list[Record],
) -> tuple[dict[tuple[str, str], int], dict[tuple[int, str, str], list[int]]]:
    """Count records by (tenant, deployment), and sum them by (hour, tenant, deployment)."""
    groups: dict[tuple[int, str, str], list[Record]] = {}
    for r in records:
        key = (r.started_us // US_PER_HOUR, r.tenant if r.tenant is not UNSET else "", r.deployment)
        group = groups.get(key)
        if group is None:
            groups[key] = [r]
        else:
            group.append(r)
    slices: dict[tuple[str, str], int] = {}
    for (_, tenant, deployment), group in groups.items():
        slices[tenant, deployment] = slices.get((tenant, deployment), 0) + len(group)
    return slices, {key: rollup_sums(group) for key, group in groups.items()}


def rollup_sums(records: list[Record]) -> list[int]:
    """The sums of a roll-up row over ``records``, in the order of ``ROLLUP_SUMS``."""
    usages = [r.usage for r in records]
    cached = [v for u in usages if (v := u.cached_input_tokens) is not UNSET]
    reasoning = [v for u in usages if (v := u.reasoning_tokens) is not UNSET]
    energies = [e for r in records if (e := r.energy) is not UNSET]
    methods = [e.method for e in energies]
    carbon = [v for r in records if (v := r.carbon_ng) is not UNSET]
    market = [v for r in records if (v := r.carbon_market_ng) is not UNSET]
    embodied = [v for r in records if (v := r.embodied_ng) is not UNSET]
    water = [v for r in records if (v := r.water_nl) is not UNSET]
    return [
        len(records),
        sum([u.input_tokens for u in usages]),
        sum([u.output_tokens for u in usages]),
        len(cached),
        sum(cached),
        len(reasoning),
        sum(reasoning),
        methods.count("measured"),
        methods.count("modelled"),
        methods.count("estimated"),
        sum([e.energy_uj for e in energies]),
        sum([e.energy_uj if (v := e.low_uj) is UNSET else v for e in energies]),
        sum([e.energy_uj if (v := e.high_uj) is UNSET else v for e in energies]),
        len(carbon),
        sum(carbon),
        len(market),
        sum(market),
        len(embodied),
        sum(embodied),
        len(water),
        sum(water),
    ]
