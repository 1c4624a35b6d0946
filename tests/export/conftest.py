"""A small ledger with everything that an export meets, and its export."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec import UNSET

from ledger.core.keys import PrivateKey, PublicKey, generate_key
from ledger.core.records import Commitment, Energy, Quality, Record, Usage, document_digest, record_hash
from ledger.core.statements import Correction, Evaluation, SignedStatement
from ledger.export.parquet import ExportSummary, export_parquet
from ledger.store import Limits, Sequencer, Store, migrate, open_store, prepare_statement
from ledger.store.append import create_log
from tests.build import ORIGIN, START_US, Issuer, make_deployment, make_factor_set, make_record, make_records

DAY_US = 86_400_000_000
MIDNIGHT_US = START_US // DAY_US * DAY_US + DAY_US
"""The first midnight after ``START_US``, which one batch straddles."""
HUGE = 2**53 - 100_001
"""As one record can have and one batch can sum; two of them pass what a float holds exactly."""
CREATED_US = START_US + 30 * DAY_US


@dataclass
class Ledger:
    """A store, its log's key, and what went in: the truth that an export must repeat."""

    store: Store
    key: PrivateKey
    sequencer: Sequencer
    issuers: dict[str, Issuer] = field(default_factory=dict)
    records: list[tuple[int, int, str, Record]] = field(default_factory=list)

    def issuer(self, name: str) -> Issuer:
        """Register an issuer."""
        issuer = self.issuers[name] = Issuer(name=name)
        self.sequencer.add_key(name, issuer.key.public).result()
        return issuer

    def _key_of(self, name: str, kid: bytes) -> PublicKey:
        key = self.issuers[name].key.public
        assert key.kid == kid
        return key

    def log(self, statement: SignedStatement, lines: bytes | None = None) -> int:
        """Append one statement; return its leaf index."""
        prepared = prepare_statement(
            statement.entry, lines, key_of=self._key_of, now_us=time.time_ns() // 1000, limits=Limits()
        )
        return self.sequencer.submit(prepared).result().leaf_index

    def batch(self, issuer: Issuer, records: list[Record]) -> int:
        """Append one batch."""
        sealed = issuer.batch(records)
        leaf = self.log(sealed.statement, sealed.lines)
        self.records += [(leaf, position, issuer.name, record) for position, record in enumerate(records)]
        return leaf


def rich_record(deployment: str, factors: str, *, n: int, started_us: int) -> Record:
    """A record with every field."""
    return make_record(
        deployment,
        n=n,
        salt="rich",
        started_us=started_us,
        usage=Usage(
            input_tokens=HUGE if n == 0 else 700 + n,
            output_tokens=80,
            cached_input_tokens=512,
            reasoning_tokens=33,
            drafted_tokens=100,
            accepted_tokens=71,
        ),
        factors=factors,
        input=Commitment(digest="ab" * 32, of="text"),
        energy=Energy(energy_uj=9_000_000 + n, method="measured", source="nvml"),
        carbon_ng=1_000_000_007 + n,
        carbon_low_ng=900_000_000,
        carbon_high_ng=1_200_000_000,
        carbon_market_ng=0,
        embodied_ng=77,
        water_nl=123_456,
        cost_nano=5_000_000,
        currency="EUR",
        quality={"toxicity": Quality(value=-3, scale=2), "faithfulness": Quality(value=871, scale=3)},
        parent="0199c8a0-0000-7000-8000-00000000000a",
    )


def bare_record(deployment: str, *, n: int, started_us: int) -> Record:
    """A record with nothing that it can do without."""
    absent = ("first_token_us", "finish_reason", "request", "tenant", "input", "output", "energy")
    return make_record(
        deployment,
        n=n,
        salt="bare",
        started_us=started_us,
        usage=Usage(input_tokens=0, output_tokens=1),
        **dict.fromkeys(absent, UNSET),
    )


@pytest.fixture(scope="session")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Two issuers, two deployments, five days, a batch over midnight, a correction, an evaluation."""
    store = open_store(tmp_path_factory.mktemp("ledger") / "ledger.db")
    migrate(store)
    key = generate_key()
    create_log(store, key, ORIGIN)
    sequencer = Sequencer(store, key)
    sequencer.start()
    made = Ledger(store, key, sequencer)
    one, two = made.issuer("gpu-7.example.com/llama"), made.issuer("edge.example.org/qwen")
    small, large = make_deployment(), make_deployment(model="Qwen3-32B", site="Würzburg 2")
    factors = make_factor_set()
    made.log(one.deployment(small))
    made.log(two.deployment(large))
    made.log(two.factors(factors))
    digest, other, figures = document_digest(small), document_digest(large), document_digest(factors)
    made.batch(one, make_records(300, digest))
    made.log(one.heartbeat(dropped=2))
    made.batch(two, [rich_record(other, figures, n=n, started_us=START_US + n) for n in range(40)])
    late = [
        make_record(digest, n=n, started_us=MIDNIGHT_US + (n - 5) * 1_000_000, salt="m") for n in range(9)
    ]
    made.batch(one, late)
    made.batch(one, [bare_record(digest, n=1, started_us=START_US + 2 * DAY_US)])
    huge = Usage(input_tokens=HUGE, output_tokens=3)
    made.batch(one, [make_record(digest, n=2, started_us=START_US + 2 * DAY_US, usage=huge, salt="huge")])
    made.batch(
        two, [make_record(other, n=n, started_us=START_US + (4 - n) * DAY_US, salt="late") for n in range(5)]
    )
    first = made.records[0][3]
    made.log(
        two.sign(
            Correction(
                record=first.id,
                record_hash=record_hash(b"x").hex(),
                reason="meter was miscalibrated",
                carbon_ng=5,
                **two.chain(),
            )
        )
    )
    metrics = {"accuracy": Quality(value=91, scale=2)}
    made.log(two.sign(Evaluation(evaluator="tests", metrics=metrics, deployment=other, **two.chain())))
    yield made
    sequencer.stop()
    store.close()


@pytest.fixture(scope="session")
def export(ledger: Ledger, tmp_path_factory: pytest.TempPathFactory) -> ExportSummary:
    """The whole ledger, exported."""
    target = tmp_path_factory.mktemp("export") / "whole"
    return export_parquet(ledger.store, target, log_key=ledger.key, created_us=CREATED_US)


@pytest.fixture
def own_copy(export: ExportSummary, tmp_path: Path) -> Path:
    """A copy of the export that a test may spoil."""
    import shutil

    return Path(shutil.copytree(export.directory, tmp_path / "copy"))
