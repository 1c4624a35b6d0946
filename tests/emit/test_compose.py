from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from ledger.core.commitments import Opening, commit_request, record_salt, token_bytes, verify_opening
from ledger.core.errors import InvalidError
from ledger.core.records import (
    Adapter,
    Commitment,
    Deployment,
    Energy,
    Quality,
    Record,
    Usage,
    decode_record,
    document_digest,
)
from ledger.emit.compose import Composer, Report, checked_deployment
from ledger.emit.identity import NO_TENANT, Tenants
from ledger.emit.ids import RecordIds
from ledger.energy.factors import default_factor_set, figures
from tests.build import make_deployment, make_factor_set

SECRET = bytes(range(32))
NOW_US = time.time_ns() // 1000


def make_report(**changes: Any) -> Report:
    fields: dict[str, Any] = dict.fromkeys(Report._fields)
    fields |= {
        "id": RecordIds().new(),
        "usage": Usage(input_tokens=3, output_tokens=2),
        "started_us": NOW_US - 5000,
        "ended_us": NOW_US,
    }
    return Report(**(fields | changes))


class Rig:
    def __init__(self, tmp_path: Path, **options: Any) -> None:
        self.tenants = Tenants(tmp_path / "tenants", SECRET)
        defaults: dict[str, Any] = {"deployment": make_deployment(power_mw=UNSET), "factors": None}
        self.composer = Composer(tenants=self.tenants, **(defaults | options))

    def compose(self, **changes: Any) -> Record:
        report = make_report(**changes)
        self.composer.prepare([report])
        composed = self.composer.compose(report, NOW_US)
        assert decode_record(composed.line) == composed.record
        return composed.record

    def salt(self, tenant: str, record: Record, purpose: str) -> bytes:
        return record_salt(self.tenants.keys([tenant])[tenant], record.id, purpose)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_what_is_not_known_is_absent(rig: Rig) -> None:
    record = rig.compose()
    assert {name for name in record.__struct_fields__ if getattr(record, name) is not UNSET} == {
        "id",
        "deployment",
        "started_us",
        "ended_us",
        "usage",
    }


def test_all_fields_are_taken_over(rig: Rig) -> None:
    parent = RecordIds().new()
    energy = Energy(energy_uj=10, method="measured", source="meter", low_uj=9, high_uj=11)
    other = make_deployment(model="other")
    record = rig.compose(
        first_token_us=NOW_US - 100,
        finish_reason="length",
        tenant="acme-7",
        deployment=other,
        parent=parent,
        energy=energy,
        quality={"bleu": Quality(value=412, scale=3)},
        cost_nano=7,
        currency="EUR",
    )
    assert record.first_token_us == NOW_US - 100
    assert record.finish_reason == "length"
    assert record.tenant == "acme-7"
    assert record.deployment == document_digest(other)
    assert record.parent == parent
    assert record.energy == energy
    assert record.quality == {"bleu": Quality(value=412, scale=3)}
    assert (record.cost_nano, record.currency) == (7, "EUR")


def test_commitments_open_with_the_issuers_secrets(rig: Rig) -> None:
    record = rig.compose(input_ids=[5, 6, 7], output_text="Paris", request_id="req-1", tenant="t")
    assert isinstance(record.input, Commitment)
    assert isinstance(record.output, Commitment)
    shown = Opening("tokens", rig.salt("t", record, "input"), token_bytes([5, 6, 7]))
    verify_opening(bytes.fromhex(record.input.digest), shown)
    shown = Opening("text", rig.salt("t", record, "output"), b"Paris")
    verify_opening(bytes.fromhex(record.output.digest), shown)
    assert record.request == commit_request("req-1", rig.salt("t", record, "request")).hex()


def test_records_without_a_tenant_have_a_secret_of_their_own(rig: Rig) -> None:
    record = rig.compose(input_ids=[1])
    assert record.tenant is UNSET
    assert isinstance(record.input, Commitment)
    shown = Opening("tokens", rig.salt(NO_TENANT, record, "input"), token_bytes([1]))
    verify_opening(bytes.fromhex(record.input.digest), shown)


def test_ids_are_preferred_to_text_and_an_empty_answer_is_committed(rig: Rig) -> None:
    record = rig.compose(input_ids=[1], input_text="one", output_ids=[])
    assert isinstance(record.input, Commitment)
    assert record.input.of == "tokens"
    assert isinstance(record.output, Commitment)


@pytest.mark.parametrize("name", ["jane@example.com", "Jane Doe", "ж", "-x", "x" * 65])
def test_what_is_no_pseudonym_gets_one(rig: Rig, name: str) -> None:
    record = rig.compose(tenant=name)
    assert isinstance(record.tenant, str)
    assert record.tenant.startswith("p-")
    assert name not in record.tenant
    assert record.tenant == rig.compose(tenant=name).tenant
    assert rig.tenants.forget(name)
    assert record.tenant != rig.compose(tenant=name).tenant


@pytest.mark.parametrize(
    ("given", "expected"),
    [("stop", "stop"), ("FINISH_LENGTH", "finish_length"), ("tool calls", "tool_calls"), ("", UNSET),
     ("12", UNSET), ("x" * 40, "x" * 32)],
)  # fmt: skip
def test_finish_reasons_get_one_form(rig: Rig, given: str, expected: str) -> None:
    assert rig.compose(finish_reason=given).finish_reason == expected


def test_carbon_comes_from_the_factor_set(tmp_path: Path) -> None:
    factors = default_factor_set(embodied_ng_per_s=400)
    energy = Energy(energy_uj=2_000_000, method="modelled", source="x", low_uj=1, high_uj=3_000_000)
    record = Rig(tmp_path, factors=factors).compose(energy=energy, busy_us=5_000_000)
    expected = figures(energy, factors, 5_000_000)
    assert record.factors == document_digest(factors)
    assert (record.carbon_ng, record.carbon_low_ng, record.carbon_high_ng) == (
        expected.carbon_ng,
        expected.carbon_low_ng,
        expected.carbon_high_ng,
    )
    assert (record.embodied_ng, record.water_nl) == (2000, expected.water_nl)


def test_the_hardware_share_needs_machine_time(tmp_path: Path) -> None:
    factors = make_factor_set(embodied_ng_per_s=400)
    energy = Energy(energy_uj=2_000_000, method="modelled", source="x")
    record = Rig(tmp_path, factors=factors).compose(energy=energy)
    assert record.carbon_ng is not UNSET
    assert record.embodied_ng is UNSET


def test_without_energy_there_is_no_carbon_and_no_factor_set(tmp_path: Path) -> None:
    record = Rig(tmp_path, factors=make_factor_set()).compose()
    assert record.energy is UNSET
    assert record.factors is UNSET


def test_machine_time_and_rated_power_give_a_modelled_energy(tmp_path: Path) -> None:
    deployment = make_deployment(power_mw=300_000, accelerators=2)
    record = Rig(tmp_path, deployment=deployment).compose(busy_us=1_000_000)
    assert isinstance(record.energy, Energy)
    assert (record.energy.energy_uj, record.energy.method) == (600_000_000, "modelled")
    assert Rig(tmp_path, deployment=deployment).compose().energy is UNSET


@pytest.mark.parametrize(
    "changes",
    [
        {"usage": Usage(input_tokens=-1, output_tokens=0)},
        {"usage": Usage(input_tokens="3", output_tokens=0)},  # type: ignore[arg-type]
        {"usage": None},
        {"usage": Usage(input_tokens=1, output_tokens=0, cached_input_tokens=2)},
        {"started_us": 5},
        {"started_us": NOW_US + 1},
        {"ended_us": NOW_US + 3_600_000_000},
        {"started_us": 1.5},
        {"started_us": "now"},
        {"first_token_us": NOW_US + 1},
        {"input_ids": [-1]},
        {"input_ids": [2**32]},
        {"input_ids": "text"},
        {"output_text": 5},
        {"output_text": "\ud800"},
        {"request_id": "\ud800"},
        {"cost_nano": 5},
        {"currency": "eur", "cost_nano": 5},
        {"parent": "not-an-id"},
        {"energy": Energy(energy_uj=5, method="measured", source="x", low_uj=6)},
        {"energy": Energy(energy_uj=5, method="guessed", source="x")},  # type: ignore[arg-type]
        {"quality": {"a b": Quality(value=1, scale=0)}},
        {"deployment": make_deployment(model="")},
        {"tenant": 7},
        {"tenant": ["a"]},
        {"tenant": "x" * 2000},
        {"usage": Usage(input_tokens=2**53, output_tokens=0)},
    ],
)
def test_what_cannot_be_a_valid_record_is_refused_alone(rig: Rig, changes: dict[str, Any]) -> None:
    with pytest.raises((InvalidError, TypeError, ValueError, AttributeError)):
        rig.compose(**changes)
    rig.compose()


def test_no_deployment_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="no deployment is known"):
        Rig(tmp_path, deployment=None).compose()


def test_a_deployment_that_no_statement_could_carry_is_refused() -> None:
    """Each value is in bounds, all of them are not: a chain would wait for ever for such a statement."""
    adapters = tuple(Adapter(name=f"{n:02}" + "\N{GRINNING FACE}" * 248) for n in range(64))
    with pytest.raises(InvalidError, match="more than 60000"):
        checked_deployment(Deployment(model="m", engine="e", adapters=adapters))
    assert checked_deployment(Deployment(model="m", engine="e", adapters=adapters[:32]))
