"""Checks the records of one batch against its statement, and computes what the tables say of them.

Pure: bytes in, facts and findings out. This is where an audit spends its time, so it works on columns of the
whole batch and touches each record as few times as possible.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from operator import sub
from struct import Struct
from typing import Any, NamedTuple, TypeAlias

from msgspec import UNSET, UnsetType
from msgspec.structs import asdict

from ledger import zstd
from ledger.audit.report import Findings
from ledger.audit.tables import SUMS
from ledger.core import merkle
from ledger.core.erased import ERASED_MARK, erased_hash, line_hashes
from ledger.core.errors import TallystickError
from ledger.core.records import MAX_RECORD_BYTES, Record, decode_record_lines
from ledger.core.statements import MAX_BATCH_RECORDS, Batch, Totals
from ledger.native import parsing as _native

__all__ = ["BatchFacts", "check_records", "check_root", "unpack_block"]

Key: TypeAlias = tuple[int, str, str]
"""Of a roll-up row: hour, tenant, deployment."""

_US_PER_HOUR = 3_600_000_000
_MAX_BLOCK_BYTES = MAX_BATCH_RECORDS * (MAX_RECORD_BYTES + 1)
_RESTORE = "keep this copy as evidence and restore a good one"
_WORTH_SUMMING = 32
"""Records a group: below that, what a sum costs a group outweighs what it costs a record."""


@dataclass(frozen=True)
class BatchFacts:
    """What follows from a batch's records.

    Args:
        ids: their ids as 16 bytes each, in order.
        rollups: (hour, tenant, deployment) -> sums, in the order of ``tables.SUMS``; no tenant is ''.
        positions: where the records are that were not erased; None where none was.
        erased: positions of those that were.
    """

    ids: tuple[bytes, ...]
    rollups: dict[Key, list[int]]
    positions: tuple[int, ...] | None = None
    erased: tuple[int, ...] = ()


def unpack_block(block: Any, digest: Any, where: str, findings: Findings) -> bytes | None:
    """Decompress a stored record block; None, and a finding, if that cannot be done."""
    if not isinstance(block, bytes):
        what = "the batch's records are gone" if block is None else "is not bytes"
        findings.add("records-missing", f"{where}.records", what, _RESTORE)
        return None
    if sha256(block).digest() != digest:
        findings.add(
            "row-differs",
            f"{where}.records_sha256",
            "is not the SHA-256 of the records beside it",
            _RESTORE,
        )
    try:
        lines = zstd.decompress_bounded(block, _MAX_BLOCK_BYTES)
    except zstd.ZstdError as error:
        findings.add("records-changed", f"{where}.records", f"cannot be decompressed: {error}", _RESTORE)
        return None
    if lines is None:
        findings.add(
            "records-changed", f"{where}.records", f"holds more than {_MAX_BLOCK_BYTES} bytes", _RESTORE
        )
    return lines


def check_records(lines: bytes, batch: Batch | None, where: str, findings: Findings) -> BatchFacts | None:
    """Check a batch's records; None, and a finding, if they cannot be read as records.

    Args:
        lines: the records, each ended by a newline.
        batch: what the statement says of them; None if the statement cannot be read.
        where: the place of the records.
        findings: where contradictions go.
    """
    if ERASED_MARK in lines:
        return _check_with_erased(lines, batch, where, findings)
    try:
        found = _read(lines, where)
    except TallystickError as error:
        findings.add_error(error, error.where or where, code="bad-record")
        return None
    if found is None:
        findings.add("wrong-count", where, "there are no records", _RESTORE)
        return None
    findings.counts.records += len(found.ids)
    if batch is not None:
        _check_root(found.root, batch, where, findings)
        _compare(batch, _summary(found), where, findings)
    return BatchFacts(found.ids, found.rollups)


def _check_with_erased(
    lines: bytes, batch: Batch | None, where: str, findings: Findings
) -> BatchFacts | None:
    """Check a batch of which some records were erased: the rest, and that the hashes make the root."""
    parts = _split(lines, where, findings)
    if parts is None:
        return None
    erased = tuple(at for at, line in enumerate(parts) if erased_hash(line) is not None)
    gone = set(erased)
    present = tuple(at for at in range(len(parts)) if at not in gone)
    found = None
    if present:
        try:
            found = _read(b"".join([parts[at] + b"\n" for at in present]), where)
        except TallystickError as error:
            findings.add_error(error, error.where or where, code="bad-record")
            return None
    findings.counts.records += len(present)
    if batch is not None:
        if len(parts) != batch.count:
            what = f"the statement counts {batch.count} records, but there are lines of {len(parts)}"
            findings.add("wrong-count", where, what, _RESTORE)
        _check_root(merkle.root(line_hashes(parts)), batch, where, findings)
        if found is not None:
            _compare_rest(batch, _summary(found), where, findings)
    return BatchFacts(
        found.ids if found else (), found.rollups if found else {}, positions=present, erased=erased
    )


def _compare_rest(batch: Batch, summary: dict[str, Any], where: str, findings: Findings) -> None:
    """What is left of a batch cannot be more than the statement says of all of it."""
    totals, stated = asdict(summary["totals"]), asdict(batch.totals)
    too_much = [name for name, value in totals.items() if value is not UNSET and value > (stated[name] or 0)]
    too_much += [
        name for name in ("deployments", "factors") if not set(summary[name]) <= set(getattr(batch, name))
    ]
    if summary["first_us"] < batch.first_us or summary["last_us"] > batch.last_us:
        too_much.append("period")
    for name in too_much:
        findings.add(
            "wrong-summary",
            where,
            f"what is left of the records has more {name} than the statement",
            _RESTORE,
        )


def check_root(lines: bytes, batch: Batch | None, where: str, findings: Findings) -> tuple[int, ...] | None:
    """Check that a batch's records are those that the issuer signed, without looking into them.

    Returns:
        Positions of those that were erased; None, and a finding, if the lines cannot be told apart.
    """
    parts = _split(lines, where, findings)
    if parts is None:
        return None
    erased: tuple[int, ...] = ()
    if ERASED_MARK in lines:
        erased = tuple(at for at, line in enumerate(parts) if erased_hash(line) is not None)
    findings.counts.records += len(parts) - len(erased)
    if batch is not None:
        if len(parts) != batch.count:
            what = f"the statement counts {batch.count} records, but there are {len(parts)}"
            findings.add("wrong-count", where, what, _RESTORE)
        hashes = line_hashes(parts) if erased else merkle.leaf_hashes(parts)
        _check_root(merkle.root(hashes), batch, where, findings)
    return erased


def _split(lines: bytes, where: str, findings: Findings) -> list[bytes] | None:
    """The lines; None, and a finding, if they are not whole or more than a batch has.

    A few kilobytes unpack to 64 million empty lines: no list of those is made.
    """
    parts = lines.split(b"\n", MAX_BATCH_RECORDS)
    rest = parts.pop()
    if b"\n" in rest:
        findings.add("wrong-count", where, f"there are more than {MAX_BATCH_RECORDS} records", _RESTORE)
        return None
    if rest:
        findings.add("bad-record", where, "the last record is not ended by a newline", _RESTORE)
        return None
    return parts


def _check_root(root: bytes, batch: Batch, where: str, findings: Findings) -> None:
    if root.hex() != batch.root:
        findings.add(
            "records-changed",
            where,
            "the records are not those that the issuer signed: they do not hash to the statement's root",
            _RESTORE,
        )


class _Found(NamedTuple):
    """What there is to know of a batch's records, in the order of ``_native.batch_facts``."""

    ids: tuple[bytes, ...]
    first_us: int
    last_us: int
    factors: tuple[str, ...]
    rollups: dict[Key, list[int]]
    root: bytes


def _read(lines: bytes, where: str) -> _Found | None:
    """Read records; None if there are none.

    Raises:
        TallystickError: they are not canonical records that hold.
    """
    if _native is not None and (facts := _native.batch_facts(lines)) is not None:
        ids, first_us, last_us, factors, rollups, root = facts
        if root is None:  # the processor does not hash; hashlib does
            root = merkle.root(merkle.leaf_hashes(lines.split(b"\n")[:-1]))
        return _Found(ids, first_us, last_us, factors, rollups, root)
    records, parts = decode_record_lines(lines, where=where)
    if not records:
        return None
    groups = _group(records)
    if len(records) >= _WORTH_SUMMING * len(groups):
        rollups = {key: _sum_group(group) for key, group in groups.items()}
    else:
        rollups = _sum_small_groups(groups)
    packed = bytes.fromhex("".join([r.id for r in records]).replace("-", ""))
    return _Found(
        _cut_ids(len(records))(packed),
        min([r.started_us for r in records]),
        max([r.ended_us for r in records]),
        tuple(sorted({r.factors for r in records if r.factors is not UNSET})),
        rollups,
        merkle.root(merkle.leaf_hashes(parts)),
    )


@lru_cache(maxsize=8)
def _cut_ids(count: int) -> Callable[[bytes], tuple[bytes, ...]]:
    """Cuts ``count`` ids of 16 bytes apart, in one call."""
    return Struct("16s" * count).unpack


def _group(records: list[Record]) -> dict[Key, list[Record]]:
    """The records by (hour, tenant, deployment)."""
    started = [r.started_us for r in records]
    hour = min(started) // _US_PER_HOUR
    if hour == max(started) // _US_PER_HOUR:
        by_two: dict[tuple[Any, str], list[Record]] = defaultdict(list)
        for r in records:
            by_two[r.tenant, r.deployment].append(r)
        return {(hour, "" if t is UNSET else t, d): group for (t, d), group in by_two.items()}
    groups: dict[Key, list[Record]] = defaultdict(list)
    for r in records:
        tenant = "" if r.tenant is UNSET else r.tenant
        groups[r.started_us // _US_PER_HOUR, tenant, r.deployment].append(r)
    return groups


def _sum_group(records: list[Record]) -> list[int]:
    """The sums of ``tables.SUMS`` over ``records``."""
    usages = [r.usage for r in records]
    cached = [u.cached_input_tokens for u in usages if u.cached_input_tokens is not UNSET]
    reasoning = [u.reasoning_tokens for u in usages if u.reasoning_tokens is not UNSET]
    energies = [r.energy for r in records if r.energy is not UNSET]
    methods = [e.method for e in energies]
    carbon = [r.carbon_ng for r in records if r.carbon_ng is not UNSET]
    market = [r.carbon_market_ng for r in records if r.carbon_market_ng is not UNSET]
    embodied = [r.embodied_ng for r in records if r.embodied_ng is not UNSET]
    water = [r.water_nl for r in records if r.water_nl is not UNSET]
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
        sum([e.energy_uj if e.low_uj is UNSET else e.low_uj for e in energies]),
        sum([e.energy_uj if e.high_uj is UNSET else e.high_uj for e in energies]),
        len(carbon),
        sum(carbon),
        len(market),
        sum(market),
        len(embodied),
        sum(embodied),
        len(water),
        sum(water),
    ]


def _sum_small_groups(groups: dict[Key, list[Record]]) -> dict[Key, list[int]]:
    """The same for many small groups: one running sum over all, and its differences at their ends."""
    records = [r for group in groups.values() for r in group]
    ends = list(accumulate(map(len, groups.values())))
    nothing = [0] * len(ends)

    def sums(values: list[Any]) -> list[int]:
        running = list(accumulate(values, initial=0))
        reached = [running[end] for end in ends]
        return list(map(sub, reached, [0, *reached[:-1]]))

    def known(values: list[Any]) -> tuple[list[int], list[int]]:
        """How many values are known, and their sum."""
        present = [value for value in values if value is not UNSET]
        if not present:
            return nothing, nothing
        if len(present) == len(values):
            return counts, sums(values)
        return sums([value is not UNSET for value in values]), sums([0 if v is UNSET else v for v in values])

    counts = list(map(len, groups.values()))
    usages = [r.usage for r in records]
    energies = [r.energy for r in records]
    methods = [None if e is UNSET else e.method for e in energies]
    figures = [0 if e is UNSET else e.energy_uj for e in energies]
    lows = [0 if e is UNSET else e.energy_uj if e.low_uj is UNSET else e.low_uj for e in energies]
    highs = [0 if e is UNSET else e.energy_uj if e.high_uj is UNSET else e.high_uj for e in energies]
    columns = [
        counts,
        sums([u.input_tokens for u in usages]),
        sums([u.output_tokens for u in usages]),
        *known([u.cached_input_tokens for u in usages]),
        *known([u.reasoning_tokens for u in usages]),
        *(
            sums([m == method for m in methods]) if method in methods else nothing
            for method in ("measured", "modelled", "estimated")
        ),
        sums(figures),
        sums(lows),
        sums(highs),
        *known([r.carbon_ng for r in records]),
        *known([r.carbon_market_ng for r in records]),
        *known([r.embodied_ng for r in records]),
        *known([r.water_nl for r in records]),
    ]
    return dict(zip(groups, map(list, zip(*columns, strict=True)), strict=True))


def _summary(found: _Found) -> dict[str, Any]:
    """What a statement about these records must say, but for the root."""
    total = dict(zip(SUMS, map(sum, zip(*found.rollups.values(), strict=True)), strict=True))
    total["energy_records"] = sum(total[f"{m}_records"] for m in ("measured", "modelled", "estimated"))

    def known(name: str, records_name: str) -> int | UnsetType:
        return total[name] if total[records_name] else UNSET

    return {
        "count": len(found.ids),
        "first_us": found.first_us,
        "last_us": found.last_us,
        "deployments": tuple(sorted({deployment for _, _, deployment in found.rollups})),
        "factors": found.factors,
        "totals": Totals(
            input_tokens=total["input_tokens"],
            output_tokens=total["output_tokens"],
            cached_input_tokens=known("cached_input_tokens", "cached_input_records"),
            reasoning_tokens=known("reasoning_tokens", "reasoning_records"),
            energy_uj=known("energy_uj", "energy_records"),
            carbon_ng=known("carbon_ng", "carbon_records"),
            carbon_market_ng=known("carbon_market_ng", "carbon_market_records"),
            embodied_ng=known("embodied_ng", "embodied_records"),
            water_nl=known("water_nl", "water_records"),
        ),
    }


def _compare(batch: Batch, summary: dict[str, Any], where: str, findings: Findings) -> None:
    for name, right in summary.items():
        stated = getattr(batch, name)
        if stated != right:
            code = "wrong-count" if name == "count" else "wrong-summary"
            findings.add(
                code,
                where,
                f"the statement's {name} is not that of its records: {_text(stated)}, not {_text(right)}",
                _RESTORE,
            )


def _text(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
