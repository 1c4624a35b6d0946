"""Owns the step from what serving code reported to a canonical record: commitments, figures, checks.

Runs on the background thread. A report that cannot become a valid record is refused here, alone, so that it
cannot spoil the batch of the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from ledger.core.canonical import encode_canonical
from ledger.core.commitments import (
    commit_record,
    commit_text,
    pack_ids,
    record_salt,
)
from ledger.core.errors import InvalidError
from ledger.core.records import (
    Commitment,
    Deployment,
    Energy,
    FactorSet,
    Quality,
    Record,
    Usage,
    as_read,
    decode_deployment,
    document_digest,
    encode_record,
)
from ledger.cost.rating import By
from ledger.emit.factor_source import Factors, FactorSource
from ledger.emit.identity import NO_TENANT, Tenants
from ledger.emit.pricing import PriceSource
from ledger.energy.estimation import estimate_from_power
from ledger.energy.factors import figures_at

__all__ = ["Composed", "Composer", "Report", "checked_deployment"]

_T = TypeVar("_T")

_MAX_AHEAD_US = 60_000_000
"""A minute ahead of our clock at most; the ledger allows five, so clocks that differ a little do no harm."""
_MIN_TIME_US = 1_577_836_800_000_000
"""2020, the ledger's bound: a smaller time is a clock that was never set, or another unit."""
_MAX_STEP_US = 7 * 86_400_000_000
"""A clock that is set moves by less than a week; more than that is another unit."""
_NS_PER_US = 1000
_MAX_REASON = 32
_MAX_TENANT = 1024
_MAX_DEPLOYMENT_BYTES = 60_000
"""A statement carries it whole, in 65,535 bytes with its headers and the longest signature."""
_is_reason = re.compile("[a-z][a-z_]{0,31}").fullmatch


class Report(NamedTuple):
    """What ``Recorder.record`` was called with; there it is a plain tuple, which is faster to make."""

    id: str
    usage: Usage
    started_us: int
    ended_us: int
    first_token_us: int | None
    busy_us: int | None
    input_ids: Sequence[int] | None
    output_ids: Sequence[int] | None
    input_text: str | None
    output_text: str | None
    finish_reason: str | None
    request_id: str | None
    tenant: str | None
    deployment: Deployment | None
    parent: str | None
    energy: Energy | None
    quality: dict[str, Quality] | None
    cost_nano: int | None
    currency: str | None
    stamp_ns: int = 0
    """When ``record`` was called, by the steady clock (``time.monotonic_ns``)."""
    reserved: bool = False
    """Whether ``begin`` gave the id."""
    packed: bytes | None = None
    """Both ids, packed; they themselves are None then."""


_TENANT = Report._fields.index("tenant")


class Composed(msgspec.Struct, frozen=True, gc=False):
    """A record, its canonical bytes, and the documents that its batch needs published.

    Out of sight of the garbage collector, like records: hundreds wait in a block.
    """

    record: Record
    line: bytes
    deployment: Deployment
    factors: FactorSet | None = None
    by: By | None = None
    """The price book that gave the cost."""


class Composer:
    """Makes records. Used by one thread.

    Args:
        deployment: for reports that name none.
        factors: turns energy into carbon and water; None records energy alone. A provider of live factors is
            asked at each ``prepare``.
        tenants: gives the keys that salts derive from.
        prices: give records a cost where the report states none.
    """

    def __init__(
        self,
        deployment: Deployment | None,
        factors: Factors | None,
        tenants: Tenants,
        prices: PriceSource | None = None,
    ) -> None:
        self._factors = FactorSource(factors)
        self._prices = prices
        self._deployment = deployment
        self._tenants = tenants
        self._keys: dict[str, bytes] = {}
        self._digests: dict[Deployment, str] = {}

    def prepare(self, reports: Iterable[tuple[Any, ...]]) -> None:
        """Fetch the keys of the tenants in ``reports`` (tuples as ``Report``); ``compose`` needs them.

        Raises:
            OSError: the secret of a new tenant could not be stored.
        """
        self._factors.refresh()
        if self._prices is not None:
            self._prices.refresh()
        given = {tenant for report in reports if isinstance(tenant := report[_TENANT], str)}
        self._keys = self._tenants.keys({name for name in given if len(name) <= _MAX_TENANT} | {NO_TENANT})

    def close(self) -> None:
        """Close the tenants' file."""
        self._tenants.close()

    def compose(
        self, report: Report, now_us: int, began_ns: int | None = None, *, metered: bool = False
    ) -> Composed:
        """Make the record of one report.

        Args:
            report: what serving code said.
            now_us: the wall clock's time.
            began_ns: the steady time when the generation began, where ``Recorder.begin`` told.
            metered: there is a meter: what it does not know is not modelled beside what it measured.

        Raises:
            InvalidError: it cannot become a valid record.
        """
        if began_ns is not None:
            report = _steadied(report, began_ns, now_us)
        if not _MIN_TIME_US <= report.started_us <= report.ended_us <= now_us + _MAX_AHEAD_US:
            raise InvalidError(
                f"{report.started_us} to {report.ended_us} is not a time span of the past",
                where=report.id,
                remedy="pass Unix microseconds",
                code="bad-time",
            )
        deployment = report.deployment or self._deployment
        if deployment is None:
            raise InvalidError(
                "no deployment is known",
                where=report.id,
                remedy="give one to Recorder or to record",
                code="no-deployment",
            )
        digest = self._digests.get(deployment)
        if digest is None:
            digest = self._digests[deployment] = document_digest(checked_deployment(deployment))
        name: object = NO_TENANT if report.tenant is None else report.tenant
        if not isinstance(name, str) or len(name) > _MAX_TENANT:
            raise InvalidError(
                f"the tenant is not a string of at most {_MAX_TENANT} characters",
                where=report.id,
                code="schema",
            )
        key = self._keys[name]
        energy = report.energy
        if energy is None and not metered:
            energy = _modelled(deployment, report.busy_us)
        rates = self._factors.rates
        carbon = None if energy is None or rates is None else figures_at(rates, energy, report.busy_us or 0)
        cost, currency, by = report.cost_nano, report.currency, None
        if self._prices is not None and cost is None and currency is None:
            rated = self._prices.rate(deployment, digest, report.usage, report.started_us)
            if rated is not None:
                cost, by = rated
                currency = by.currency
        packed = report.packed or pack_ids(report.input_ids, report.output_ids)
        given, made, request = commit_record(key, report.id, packed, report.request_id)
        record = Record(
            id=report.id,
            deployment=digest,
            started_us=report.started_us,
            ended_us=report.ended_us,
            usage=report.usage,
            first_token_us=_given(report.first_token_us),
            finish_reason=_plain_reason(report.finish_reason),
            request=_given(request),
            tenant=UNSET if name == NO_TENANT else self._tenants.pseudonym(name),
            factors=UNSET if carbon is None else self._factors.digest,
            input=_commitment(given, report.input_text, key, report.id, "input"),
            output=_commitment(made, report.output_text, key, report.id, "output"),
            energy=_given(energy),
            carbon_ng=UNSET if carbon is None else carbon.carbon_ng,
            carbon_low_ng=UNSET if carbon is None else _given(carbon.carbon_low_ng),
            carbon_high_ng=UNSET if carbon is None else _given(carbon.carbon_high_ng),
            carbon_market_ng=UNSET if carbon is None else _given(carbon.carbon_market_ng),
            # Without the machine time of this generation alone, its share of the hardware is not known.
            embodied_ng=UNSET if carbon is None or report.busy_us is None else _given(carbon.embodied_ng),
            water_nl=UNSET if carbon is None else _given(carbon.water_nl),
            cost_nano=_given(cost),
            currency=_given(currency),
            quality=report.quality or UNSET,
            parent=_given(report.parent),
        )
        try:
            line = encode_record(record)
        except (TypeError, ValueError, OverflowError) as error:  # a value of another type than stated
            raise InvalidError(f"cannot be encoded: {error}", where=report.id, code="schema") from None
        # What a reader would refuse must not be signed.
        record = as_read(record, line, where=report.id)
        return Composed(record, line, deployment, None if carbon is None else self._factors.now, by)


def _steadied(report: Report, began_ns: int, now_us: int) -> Report:
    """The report with times that hold though the wall clock was set while the generation ran, or after it.

    The steady clock knows how long it took. Where the wall clock's times contradict that, its end is believed
    (a clock that was just set is right), unless that is in the future.
    """
    started, first, ended = report.started_us, report.first_token_us, report.ended_us
    took_us = max(0, report.stamp_ns - began_ns) // _NS_PER_US
    if ended > now_us + _MAX_AHEAD_US:
        shift = ended - now_us
        if shift > _MAX_STEP_US:
            return report  # another unit rather than another time
        started, ended = started - shift, now_us
        first = None if first is None else first - shift
    if not 0 <= ended - started <= took_us + _MAX_AHEAD_US:
        if abs(ended - started) > _MAX_STEP_US:
            return report
        before, started = started, ended - took_us
        if first is not None and not started <= first <= ended:
            first += started - before  # read before the clock was set
    if first is not None and not started <= first <= ended:
        first = None  # when it was, nobody can tell any more
    if (started, first, ended) == (report.started_us, report.first_token_us, report.ended_us):
        return report
    return report._replace(started_us=started, first_token_us=first, ended_us=ended)


def checked_deployment(deployment: Deployment) -> Deployment:
    """Return ``deployment`` if every reader accepts it.

    Raises:
        InvalidError: a value has the wrong type or form, or no statement could carry it.
    """
    encoded = encode_canonical(deployment)
    if len(encoded) > _MAX_DEPLOYMENT_BYTES:
        raise InvalidError(
            f"the deployment has {len(encoded)} bytes, more than {_MAX_DEPLOYMENT_BYTES}",
            remedy="name fewer adapters, or shorter",
            code="too-large",
        )
    decode_deployment(encoded)
    return deployment


def _given(value: _T | None) -> _T | UnsetType:
    return UNSET if value is None else value


def _plain_reason(reason: str | None) -> str | UnsetType:
    """The finish reason in the form that records have: lower-case words joined by underscores."""
    if not reason:
        return UNSET
    if _is_reason(reason):
        return reason
    return re.sub("[^a-z]+", "_", reason.lower()).strip("_")[:_MAX_REASON] or UNSET


def _commitment(
    to_ids: str | None, text: str | None, key: bytes, record_id: str, purpose: str
) -> Commitment | UnsetType:
    """The commitment to token ids, or else to text, where there is either."""
    if to_ids is not None:
        return Commitment(digest=to_ids, of="tokens")
    if text is not None:
        return Commitment(digest=commit_text(text, record_salt(key, record_id, purpose)).hex(), of="text")
    return UNSET


def _modelled(deployment: Deployment, busy_us: int | None) -> Energy | None:
    """Energy from the deployment's rated power, where the engine gave machine time but no energy."""
    if busy_us is None or deployment.power_mw is UNSET:
        return None
    count = 1 if deployment.accelerators is UNSET else deployment.accelerators
    return estimate_from_power(
        busy_us=busy_us, power_mw=deployment.power_mw * count, source="rated power of the deployment"
    )
