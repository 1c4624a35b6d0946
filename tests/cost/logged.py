"""A log of a provider's models over some days, in a real ledger, with its books; and its export."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ledger.core.keys import PrivateKey, PublicKey, generate_key
from ledger.core.price_books import PriceBook, Rate
from ledger.core.records import Deployment, Energy, Quality, Record, Usage, document_digest
from ledger.core.statements import SignedStatement
from ledger.cost.prices import make_price_book
from ledger.cost.rating import Rater
from ledger.export.parquet import export_parquet
from ledger.store import Limits, Sequencer, migrate, open_store, prepare_statement
from ledger.store.append import create_log
from tests.build import ORIGIN, Issuer, make_record

DAY_US = 86_400_000_000
FIRST_US = 1_790_553_600_000_000
"""2026-09-28T00:00:00Z."""
DAYS = 5
MINI, LARGE, OWN = "gpt-4o-mini", "gpt-4o", "SmolLM2-135M-Instruct"

OLD = make_price_book(
    [
        Rate(
            model=MINI,
            provider="openai",
            aliases=("gpt-4o-mini-2024-*",),
            input_nano_per_mtok=150_000_000,
            cached_input_nano_per_mtok=75_000_000,
            output_nano_per_mtok=600_000_000,
        ),
        Rate(
            model=MINI,
            provider="openai",
            tier="batch",
            input_nano_per_mtok=75_000_000,
            output_nano_per_mtok=300_000_000,
        ),
        Rate(
            model=LARGE,
            provider="openai",
            input_nano_per_mtok=2_500_000_000,
            cached_input_nano_per_mtok=1_250_000_000,
            output_nano_per_mtok=10_000_000_000,
            reasoning_nano_per_mtok=9_999_999_999,
            request_nano=1_001,
        ),
        Rate(
            model=LARGE,
            provider="openai",
            above_input_tokens=128_000,
            input_nano_per_mtok=5_000_000_000,
            output_nano_per_mtok=15_000_000_000,
        ),
    ],
    name="contract",
    version="1",
    currency="USD",
    source="made up for tests",
)
NEW = make_price_book(
    [
        Rate(
            model=MINI,
            provider="openai",
            aliases=("gpt-4o-mini-2024-*",),
            input_nano_per_mtok=100_000_000,
            cached_input_nano_per_mtok=33_333_333,
            output_nano_per_mtok=500_000_001,
        )
    ],
    name="contract",
    version="2",
    currency="USD",
    source="made up for tests",
    valid_from_us=FIRST_US + 3 * DAY_US,
)

DEPLOYMENTS = {
    MINI: Deployment(model=MINI, version="gpt-4o-mini-2024-07-18", engine="openai-api", provider="openai"),
    LARGE: Deployment(model=LARGE, engine="openai-api", provider="openai"),
    OWN: Deployment(model=OWN, engine="llama.cpp", site="Halle 2", accelerator="CPU"),
}


@dataclass(frozen=True)
class Logged:
    """What was logged, and where its export is."""

    export: Path
    records: tuple[Record, ...]
    log_key: PrivateKey


def random_records(chance: Random, count: int, rater: Rater | None) -> list[Record]:
    """Records of all three deployments; ``rater`` gives those that it knows a cost."""
    made = []
    for n in range(count):
        model = chance.choice([MINI, MINI, LARGE, OWN])
        deployment = DEPLOYMENTS[model]
        digest = document_digest(deployment)
        inputs = chance.choice([chance.randrange(1, 5000), chance.randrange(100_000, 200_000)])
        outputs = chance.randrange(0, 4000)
        usage = Usage(
            input_tokens=inputs,
            output_tokens=outputs,
            **({"cached_input_tokens": chance.randrange(0, inputs)} if chance.random() < 0.5 else {}),
            **({"reasoning_tokens": chance.randrange(0, outputs + 1)} if model == LARGE else {}),
        )
        started = FIRST_US + chance.randrange(DAYS * DAY_US - 10_000_000)
        if chance.random() < 0.02:  # over midnight
            started = FIRST_US + chance.randrange(1, DAYS) * DAY_US - 20_000
        cost = None if rater is None else rater.rate(deployment, digest, usage, started)
        fields = {} if cost is None else {"cost_nano": cost[0], "currency": cost[1].currency}
        if chance.random() < 0.01:
            fields["quality"] = {"usage_estimated": Quality(scale=0, value=1)}
        if model == OWN:
            fields["energy"] = Energy(
                energy_uj=chance.randrange(10**6, 10**9), method="measured", source="rapl"
            )
        made.append(
            make_record(
                digest,
                n=n,
                started_us=started,
                ended_us=started + chance.randrange(50_000, 9_000_000),
                usage=usage,
                **fields,
            )
        )
    return made


def log_and_export(
    folder: Path,
    batches: Sequence[Sequence[Record]],
    books: Sequence[PriceBook] = (),
    *,
    published: bool = True,
) -> Logged:
    """Put batches into a fresh ledger and export it; batches name ``books`` as those of their costs."""
    store = open_store(folder / "ledger.db")
    migrate(store)
    key = generate_key()
    create_log(store, key, ORIGIN)
    sequencer = Sequencer(store, key)
    sequencer.start()
    issuer = Issuer(name="proxy.example.com/1")

    def key_of(name: str, kid: bytes) -> PublicKey:
        assert kid == issuer.key.public.kid
        return issuer.key.public

    def log(statement: SignedStatement, lines: bytes | None = None) -> None:
        prepared = prepare_statement(
            statement.entry, lines, key_of=key_of, now_us=time.time_ns() // 1000, limits=Limits()
        )
        sequencer.submit(prepared).result(30)

    try:
        sequencer.add_key(issuer.name, issuer.key.public).result(30)
        for deployment in DEPLOYMENTS.values():
            log(issuer.deployment(deployment))
        for book in books if published else ():
            log(issuer.prices(book))
        digests = {"prices": tuple(sorted(map(document_digest, books)))} if books else {}
        for records in batches:
            sealed = issuer.batch(records, **digests)
            log(sealed.statement, sealed.lines)
        export_parquet(store, folder / "export", log_key=key)
    finally:
        sequencer.stop()
        store.close()
    return Logged(folder / "export", tuple(r for batch in batches for r in batch), key)
