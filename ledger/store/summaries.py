"""Answers questions over the store: groups, exact totals, percentiles; each at a cost that is known before.

Roll-ups answer what they can: whole hours, dimensions of time, tenant and deployment. For the rest records
are read, a bounded number of them. Figures are as they were logged: corrections are views of an export.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET
from sqlalchemy import ColumnElement, Connection, and_, func, select

from ledger.core.errors import InvalidError
from ledger.core.records import Deployment, Record, decode_deployment
from ledger.store import queries
from ledger.store.tables import ROLLUP_SUMS, BatchSlice, Rollup, StatementRow, table

__all__ = [
    "DIMENSIONS",
    "MAX_RECORDS",
    "MAX_ROLLUPS",
    "RECORD_DIMENSIONS",
    "Summary",
    "SummaryQuestion",
    "summarise",
]

MAX_ROLLUPS = 200_000
"""Rows of roll-ups that one question may add up: half a second."""
MAX_RECORDS = 100_000
"""Records in the batches that one question may read: some seconds, on one of the service's threads."""
MAX_BATCHES = 500
"""Batches that one tenant's question may read, in which others' records may lie too."""
MAX_SPAN_US = 400 * 86_400_000_000
_HOUR_US = 3_600_000_000
_PERCENTILES = (50, 90, 95, 99)

_DEPLOYMENT = (
    "model", "version", "engine", "engine_version", "quantization", "accelerator", "provider", "region",
    "site",
)  # fmt: skip
_TIMES: Mapping[str, Callable[[int], str]] = {
    "hour": lambda hour: datetime.fromtimestamp(hour * 3600, UTC).strftime("%Y-%m-%dT%H:00:00Z"),
    "day": lambda hour: datetime.fromtimestamp(hour * 3600, UTC).strftime("%Y-%m-%d"),
    "month": lambda hour: datetime.fromtimestamp(hour * 3600, UTC).strftime("%Y-%m"),
}
_OF_RECORDS: Mapping[str, Callable[[queries.Found], str | None]] = {
    "issuer": lambda found: found.issuer,
    "finish_reason": lambda found: _given(found.record.finish_reason),
    "method": lambda found: None if found.record.energy is UNSET else found.record.energy.method,
    "currency": lambda found: _given(found.record.currency),
}
RECORD_DIMENSIONS = tuple(_OF_RECORDS)
"""Dimensions that only the records themselves tell."""
DIMENSIONS = (*_TIMES, "tenant", "deployment", *_DEPLOYMENT, *RECORD_DIMENSIONS)
_INTENSITIES = ("energy_uj", "carbon_ng", "carbon_market_ng", "embodied_ng", "water_nl")
_COUNTS = {
    "carbon_ng": "carbon_records",
    "carbon_market_ng": "carbon_market_records",
    "embodied_ng": "embodied_records",
    "water_nl": "water_records",
}


@dataclass(frozen=True)
class SummaryQuestion:
    """What is asked. ``where`` has values by dimension, of which a record must have one; None is absence."""

    from_us: int
    to_us: int
    by: Sequence[str] = ()
    where: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    percentiles: bool = False
    limit: int = 1000


@dataclass(frozen=True)
class Summary:
    """Rows ordered by their keys. ``source`` is what they were made of: roll-ups or records."""

    rows: list[dict[str, Any]]
    source: str
    truncated: bool


def summarise(connection: Connection, question: SummaryQuestion, *, tenant: str | None = None) -> Summary:
    """Answer ``question`` over one snapshot.

    Args:
        connection: the snapshot.
        question: what is asked.
        tenant: the only tenant whose records may be looked at, if that is given.

    Raises:
        InvalidError: ``bad-parameter``, or ``query-too-large``: nothing was read but a count.
    """
    _check(question)
    documents = _deployments(connection)
    wanted = _wanted_deployments(documents, question.where)
    from_records = (
        question.percentiles
        or any(name in _OF_RECORDS for name in (*question.by, *question.where))
        or question.from_us % _HOUR_US
        or question.to_us % _HOUR_US
    )
    groups = (_record_groups if from_records else _rollup_groups)(
        connection, question, tenant, documents, wanted
    )
    keys = sorted(groups, key=lambda key: tuple((part is not None, part or "") for part in key))
    rows = [dict(zip(question.by, key, strict=True)) | _row(groups[key]) for key in keys[: question.limit]]
    return Summary(rows, "records" if from_records else "rollups", len(keys) > question.limit)


def _check(question: SummaryQuestion) -> None:
    for name in (*question.by, *question.where):
        if name not in DIMENSIONS:
            raise InvalidError(
                f"cannot group by or filter on {name[:40]!r}",
                where="query",
                remedy=f"use {', '.join(DIMENSIONS)}",
                code="bad-parameter",
            )
    if not 0 < question.to_us - question.from_us <= MAX_SPAN_US:
        raise InvalidError(
            "the period is empty, or longer than 400 days",
            where="from_us, to_us",
            remedy="ask for a shorter period; an export answers for any",
            code="bad-parameter",
        )


@dataclass
class _Group:
    sums: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    costs: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    values: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


_Key = tuple[str | None, ...]


def _deployments(connection: Connection) -> dict[str, Deployment]:
    return {
        row.digest: decode_deployment(bytes(row.body)) for row in queries.documents(connection, "deployment")
    }


def _wanted_deployments(
    documents: Mapping[str, Deployment], where: Mapping[str, Sequence[str | None]]
) -> set[str] | None:
    """Digests that the conditions on deployments leave; None if there are none."""
    conditions = {name: set(values) for name, values in where.items() if name in (*_DEPLOYMENT, "deployment")}
    if not conditions:
        return None
    return {
        digest
        for digest, deployment in documents.items()
        if all(
            (digest if name == "deployment" else _given(getattr(deployment, name))) in values
            for name, values in conditions.items()
        )
    }


def _key(
    question: SummaryQuestion,
    hour: int,
    tenant: str | None,
    digest: str,
    documents: Mapping[str, Deployment],
    found: queries.Found | None = None,
) -> _Key | None:
    """The group's key; None if a condition on time, tenant or the record leaves it out."""

    def value(name: str) -> str | None:
        if name in _TIMES:
            return _TIMES[name](hour)
        if name == "tenant":
            return tenant
        if name == "deployment":
            return digest
        if name in _OF_RECORDS:
            assert found is not None  # noqa: S101 - such questions read records
            return _OF_RECORDS[name](found)
        deployment = documents.get(digest)
        return None if deployment is None else _given(getattr(deployment, name))

    for name, values in question.where.items():
        if (name in _TIMES or name == "tenant" or name in _OF_RECORDS) and value(name) not in values:
            return None
    return tuple(value(name) for name in question.by)


# --- roll-ups --------------------------------------------------------------------------------------------


def _rollup_groups(
    connection: Connection,
    question: SummaryQuestion,
    tenant: str | None,
    documents: Mapping[str, Deployment],
    wanted: set[str] | None,
) -> dict[_Key, _Group]:
    rows = table(Rollup)
    conditions: list[ColumnElement[bool]] = [
        rows.c.hour >= question.from_us // _HOUR_US,
        rows.c.hour < question.to_us // _HOUR_US,
    ]
    tenants = [each or "" for each in question.where.get("tenant", ())] if tenant is None else [tenant]
    if tenants:
        conditions.append(rows.c.tenant.in_(tenants))
    if wanted is not None:
        if not wanted:
            return {}
        conditions.append(rows.c.deployment.in_(sorted(wanted)))
    count = connection.execute(select(func.count()).select_from(rows).where(and_(*conditions))).scalar_one()
    if count > MAX_ROLLUPS:
        raise _too_large(f"it would add up {count:,} roll-ups, more than {MAX_ROLLUPS:,}")
    groups: dict[_Key, _Group] = {}
    for row in connection.execute(select(rows).where(and_(*conditions))):
        key = _key(question, row.hour, row.tenant or None, row.deployment, documents)
        if key is None:
            continue
        sums = groups.setdefault(key, _Group()).sums
        for name, value in zip(ROLLUP_SUMS, msgspec.json.decode(row.sums, type=list[int]), strict=True):
            sums[name] += value
    return groups


# --- records ---------------------------------------------------------------------------------------------


def _record_groups(
    connection: Connection,
    question: SummaryQuestion,
    tenant: str | None,
    documents: Mapping[str, Deployment],
    wanted: set[str] | None,
) -> dict[_Key, _Group]:
    if wanted is not None and not wanted:
        return {}
    tenants = question.where.get("tenant", ())
    only = tenant if tenant is not None else tenants[0] if len(tenants) == 1 and tenants[0] else None
    digest = next(iter(wanted)) if wanted is not None and len(wanted) == 1 else None
    batches, slices = table(StatementRow), table(BatchSlice)
    conditions: list[ColumnElement[bool]] = [
        batches.c.kind == "batch",
        batches.c.last_us >= question.from_us,
        batches.c.first_us < question.to_us,
    ]
    of_slice = [slices.c.leaf_index == batches.c.leaf_index]
    of_slice += [slices.c.tenant == only] if only is not None else []
    of_slice += [slices.c.deployment == digest] if digest is not None else []
    if len(of_slice) > 1:
        conditions.append(select(slices.c.leaf_index).where(and_(*of_slice)).exists())
    _check_cost(connection, conditions, tenant)
    groups: dict[_Key, _Group] = {}
    chosen = queries.RecordFilter(
        from_us=question.from_us, to_us=question.to_us, tenant=only, deployment=digest
    )
    for found in queries.iterate_records(connection, chosen):
        record = found.record
        if wanted is not None and record.deployment not in wanted:
            continue
        hour = record.started_us // _HOUR_US
        key = _key(question, hour, _given(record.tenant), record.deployment, documents, found)
        if key is not None:
            _add(groups.setdefault(key, _Group()), record, question.percentiles)
    return groups


def _check_cost(
    connection: Connection, conditions: Sequence[ColumnElement[bool]], tenant: str | None
) -> None:
    batches, own = table(StatementRow), table(BatchSlice).alias("own")
    most = 0
    if tenant is None:
        query = select(func.sum(batches.c.record_count)).where(and_(*conditions))
        records = int(connection.execute(query).scalar_one() or 0)
    else:
        # Of its own records alone: what others logged into the same batches must not show in the answer.
        joined = own.join(batches, batches.c.leaf_index == own.c.leaf_index)
        query = (
            select(func.sum(own.c.records), func.count(own.c.leaf_index.distinct()))
            .select_from(joined)
            .where(own.c.tenant == tenant, *conditions)
        )
        found, most = connection.execute(query).one()
        records = int(found or 0)
    if records > MAX_RECORDS:
        raise _too_large(f"it would read {records:,} records, more than {MAX_RECORDS:,}")
    if most > MAX_BATCHES:
        raise _too_large(f"it would read {most:,} batches, more than {MAX_BATCHES:,}")


def _add(group: _Group, record: Record, percentiles: bool) -> None:
    sums, usage, energy = group.sums, record.usage, record.energy
    tokens = usage.input_tokens + usage.output_tokens
    sums["records"] += 1
    sums["input_tokens"] += usage.input_tokens
    sums["output_tokens"] += usage.output_tokens
    for name, count in (
        ("cached_input_tokens", "cached_input_records"),
        ("reasoning_tokens", "reasoning_records"),
    ):
        value = getattr(usage, name)
        if value is not UNSET:
            sums[name] += value
            sums[count] += 1
    if energy is not UNSET:
        sums[f"{energy.method}_records"] += 1
        sums["energy_uj"] += energy.energy_uj
        sums["energy_low_uj"] += energy.energy_uj if energy.low_uj is UNSET else energy.low_uj
        sums["energy_high_uj"] += energy.energy_uj if energy.high_uj is UNSET else energy.high_uj
        sums["energy_uj_tokens"] += tokens
    for name, count in _COUNTS.items():
        value = getattr(record, name)
        if value is not UNSET:
            sums[name] += value
            sums[count] += 1
            sums[f"{name}_tokens"] += tokens
    if record.cost_nano is not UNSET and record.currency is not UNSET:
        group.costs[record.currency] += record.cost_nano
        sums["cost_records"] += 1
    if percentiles:
        values = group.values
        values["duration_us"].append(record.ended_us - record.started_us)
        values["input_tokens"].append(usage.input_tokens)
        values["output_tokens"].append(usage.output_tokens)
        if record.first_token_us is not UNSET:
            values["first_token_us"].append(record.first_token_us - record.started_us)
        if energy is not UNSET:
            values["energy_uj"].append(energy.energy_uj)


# --- rows ------------------------------------------------------------------------------------------------


def _row(group: _Group) -> dict[str, Any]:
    sums = group.sums
    row: dict[str, Any] = queries.present_sums({name: sums.get(name, 0) for name in ROLLUP_SUMS})
    tokens = row["input_tokens"] + row["output_tokens"]
    energy_records = sum(row[f"{method}_records"] for method in ("measured", "modelled", "estimated"))
    for name in _INTENSITIES:
        having = energy_records if name == "energy_uj" else row[_COUNTS[name]]
        # Roll-ups do not say how many tokens the records have that state a figure, unless all do.
        below = sums.get(f"{name}_tokens") or (tokens if having == row["records"] else 0)
        if name in row and below:
            row[f"{name}_per_1k_tokens"] = _rounded(1000 * row[name], below)
        if name in row and having:
            row[f"{name}_per_request"] = _rounded(row[name], having)
    if group.costs:
        row["cost_nano"] = dict(sorted(group.costs.items()))
        row["cost_records"] = sums["cost_records"]
    for name, values in group.values.items():
        values.sort()
        for level in _PERCENTILES:
            row[f"{name}_p{level}"] = values[max(0, -(-len(values) * level // 100) - 1)]
    return row


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _given(value: Any) -> Any:
    return None if value is UNSET else value


def _too_large(what: str) -> InvalidError:
    return InvalidError(
        what,
        where="query",
        remedy="ask for a shorter period, one tenant or one model; or ask an export, which answers for any",
        code="query-too-large",
    )
