"""A month of traffic, made up but of a real shape, logged through the real emitter into a real ledger.

    python -m benchmarks.sample sample-data --records 2000000

Five models at three sites, forty tenants, one recorder a site. Arrivals follow the hours and days of a week;
lengths follow the quantiles of the Azure LLM inference traces of 2023 (conversation and code; Patel et al.,
Splitwise, ISCA 2024; CC-BY 4.0), which are facts about them, not the traces. Energy is measured at one site,
modelled at the second, estimated at the third. The records' times are in the month that is asked for; the log
has them when they are made, so all are late, and the completeness of a report says so.

The same seed gives the same traffic; ids and salts are random, as always.
"""

from __future__ import annotations

import argparse
import bisect
import calendar
import contextlib
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from msgspec import UNSET

from cli.children import free_port
from cli.init import init_folder
from ledger.core.keys import generate_key
from ledger.core.records import (
    Deployment,
    Energy,
    FactorSet,
    FactorSource,
    Method,
    Quality,
    Usage,
    Weights,
)
from ledger.emit import Recorder
from ledger.keyfiles import load_private_key, save_private_key
from ledger.store import Sequencer, open_store

ORIGIN = "log.sample.example/tallystick"
TENANTS = 40
_QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_CONVERSATION = (
    (2, 29, 181, 207, 396, 1020, 1189, 2734, 4083, 4142, 14050),
    (7, 16, 41, 54, 85, 129, 395, 424, 451, 601, 1000),
)
_CODE = (
    (3, 17, 75, 147, 578, 1469, 2744, 5186, 7302, 7436, 7437),
    (6, 6, 6, 7, 9, 13, 24, 55, 90, 249, 1899),
)
_HOURS = (3, 2, 2, 2, 2, 3, 5, 8, 11, 13, 14, 14, 13, 14, 15, 14, 13, 11, 9, 8, 7, 6, 5, 4)
_WEEKDAYS = (10, 11, 11, 11, 9, 5, 4)
_HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Model:
    """A model: what a token of it takes and costs."""

    name: str
    quantization: str | None
    prefill_uj: int
    decode_uj: int
    input_nano: int
    output_nano: int
    lengths: tuple[tuple[int, ...], tuple[int, ...]]
    share: int


MODELS = (
    Model("Sample-8B-Instruct", "awq", 9_000, 410_000, 120, 400, _CONVERSATION, 40),
    Model("Sample-32B-Chat", None, 29_000, 1_500_000, 400, 1_200, _CONVERSATION, 25),
    Model("Sample-70B-Chat", "fp8", 52_000, 2_900_000, 700, 2_100, _CONVERSATION, 12),
    Model("Sample-Coder-14B", "gptq", 15_000, 700_000, 200, 700, _CODE, 18),
    Model("Sample-Reasoner-120B", "int4", 41_000, 2_400_000, 900, 3_600, _CONVERSATION, 5),
)


@dataclass(frozen=True)
class Site:
    """A site: its grid, its overhead, and how its energy is known."""

    name: str
    region: str
    method: Method
    source: str
    accelerator: str
    pue_milli: int
    grid: tuple[int, int, int]
    market: int | None
    water: int | None
    share: int


SITES = (
    Site("Oslo 1", "no-2", "measured", "NVML", "H100 SXM", 1_080, (26, 22, 33), 0, None, 5),
    Site(
        "Frankfurt 2",
        "de",
        "modelled",
        "rated power, busy time",
        "A100 80GB",
        1_310,
        (344, 300, 390),
        120,
        1_800,
        3,
    ),
    Site("Virginia 1", "us-va", "estimated", "roofline", "L40S", 1_420, (322, 260, 380), None, 2_100, 2),
)


def factor_set(site: Site) -> FactorSet:
    """The factors of a site; figures of a sample, and marked so."""
    low, high = site.grid[1], site.grid[2]
    return FactorSet(
        name=f"sample {site.region}",
        version="2026.1",
        region=site.region,
        pue_milli=site.pue_milli,
        intensity_ug_per_kwh=site.grid[0] * 1_000_000,
        intensity_low_ug_per_kwh=low * 1_000_000,
        intensity_high_ug_per_kwh=high * 1_000_000,
        market_ug_per_kwh=UNSET if site.market is None else site.market * 1_000_000,
        water_ul_per_kwh=UNSET if site.water is None else site.water * 1_000,
        embodied_ng_per_s=2_400_000,
        sources=(FactorSource(factor="intensity_ug_per_kwh", source="made up for a sample", year=2026),),
    )


def deployment(model: Model, site: Site) -> Deployment:
    """What serves a model at a site."""
    digest = random.Random(model.name).randbytes(32).hex()
    return Deployment(
        model=model.name,
        engine="vllm",
        engine_version="0.32.0",
        weights=Weights(method="openssf-model-signing", digest=digest),
        quantization=UNSET if model.quantization is None else model.quantization,
        attention="flash_attention_3",
        accelerator=site.accelerator,
        accelerators=4 if "70B" in model.name or "120B" in model.name else 1,
        region=site.region,
        site=site.name,
    )


def _drawn(table: tuple[int, ...], chance: random.Random) -> int:
    """A length from its quantiles, linear in between."""
    at = chance.random()
    right = max(1, bisect.bisect_left(_QUANTILES, at))
    low, high = _QUANTILES[right - 1], _QUANTILES[right]
    return round(table[right - 1] + (table[right] - table[right - 1]) * (at - low) / (high - low))


def _times(count: int, year: int, month: int, chance: random.Random) -> Iterator[int]:
    """``count`` times of arrival in order, Unix microseconds."""
    begin = int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1_000_000
    hours = 24 * calendar.monthrange(year, month)[1]
    first = calendar.weekday(year, month, 1)
    weights = [_HOURS[h % 24] * _WEEKDAYS[(first + h // 24) % 7] for h in range(hours)]
    whole, done, given = sum(weights), 0, 0
    for hour, weight in enumerate(weights):
        done += weight
        share = count * done // whole - given
        given += share
        yield from sorted(begin + hour * _HOUR_US + chance.randrange(_HOUR_US) for _ in range(share))


def write_sample(folder: Path, records: int, *, year: int, month: int, seed: int = 1) -> dict[str, object]:
    """Serve a new ledger in ``folder`` and record a month into it.

    Returns:
        What was written, with the totals that were recorded, as the sample itself counted them.
    """
    init_folder(folder, ORIGIN)
    keys = {}
    store = open_store(folder / "ledger.db")
    sequencer = Sequencer(
        store, load_private_key(folder / "keys" / "log.pem"), published=folder / "published.checkpoint"
    )
    sequencer.start()
    for site in SITES:
        issuer = f"{site.region}.sample.example/vllm"
        keys[site.name] = key = generate_key()
        save_private_key(folder / "keys" / f"{site.region}.pem", key)
        sequencer.add_key(issuer, key.public).result()
    sequencer.stop()
    store.close()
    port = free_port()
    command = [sys.executable, "-m", "cli", "serve", str(folder), "--port", str(port)]
    service = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = time.monotonic()
    try:
        _wait_for(port)
        recorders = {
            site.name: Recorder(
                f"http://127.0.0.1:{port}",
                api_key=(folder / "admin.key").read_text().strip(),
                log_key=folder / "log.vkey",
                spool=folder / "spools" / site.region,
                issuer=f"{site.region}.sample.example/vllm",
                key=keys[site.name],
                factors=factor_set(site),
                when_full="block",
            )
            for site in SITES
        }
        told = _record(recorders, records, year, month, random.Random(seed))
        for recorder in recorders.values():
            if not recorder.flush(600):
                raise RuntimeError(f"the ledger did not take everything: {recorder.status()}")
            recorder.close(60)
    finally:
        service.terminate()
        service.wait(60)
    return {**told, "seconds": round(time.monotonic() - begun)}


def _wait_for(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError("the service did not start")


def _record(
    recorders: dict[str, Recorder], count: int, year: int, month: int, chance: random.Random
) -> dict[str, object]:
    deployments = {(m.name, s.name): deployment(m, s) for m in MODELS for s in SITES}
    tenants = [f"t-{n:02d}" for n in range(TENANTS)]
    popularity = [1 / (n + 1) for n in range(TENANTS)]
    models = chance.choices(MODELS, [m.share for m in MODELS], k=4096)
    sites = chance.choices(SITES, [s.share for s in SITES], k=4096)
    customers = chance.choices(tenants, popularity, k=4096)
    totals = {"records": 0, "input_tokens": 0, "output_tokens": 0, "energy_uj": 0, "cost_nano": 0}
    for n, started_us in enumerate(_times(count, year, month, chance)):
        pick = chance.randrange(1 << 36)
        model, site, tenant = models[pick & 4095], sites[pick >> 12 & 4095], customers[pick >> 24]
        prompt, output = _drawn(model.lengths[0], chance), _drawn(model.lengths[1], chance)
        cached = prompt // 2 if pick % 5 == 0 else 0
        energy_uj = model.prefill_uj * (prompt - cached) + model.decode_uj * output
        spread = {"measured": 20, "modelled": 4, "estimated": 2}[site.method]
        took_us = 20_000 + 90 * prompt + 14_000 * output
        cost = model.input_nano * prompt + model.output_nano * output
        at = pick & 0xFFFF
        recorders[site.name].record(
            usage=Usage(input_tokens=prompt, output_tokens=output, cached_input_tokens=cached),
            started_us=started_us,
            first_token_us=started_us + 20_000 + 90 * prompt,
            ended_us=started_us + took_us,
            busy_us=took_us // 12,
            input_ids=range(at, at + prompt),
            output_ids=range(at + 7, at + 7 + output),
            finish_reason="length" if output >= 1000 else "abort" if pick % 97 == 0 else "stop",
            request_id=f"req-{n}",
            tenant=tenant,
            deployment=deployments[model.name, site.name],
            energy=Energy(
                energy_uj=energy_uj,
                method=site.method,
                source=site.source,
                low_uj=energy_uj - energy_uj // spread,
                high_uj=energy_uj + energy_uj // spread,
            ),
            quality={"helpfulness": Quality(value=chance.randrange(60, 100), scale=2)}
            if pick % 50 == 0
            else None,
            cost_nano=cost,
            currency="EUR",
        )
        if n % 50_000 == 0:
            print(f"\r{n:,} of {count:,} records", end="", file=sys.stderr, flush=True)
        totals["records"] += 1
        totals["input_tokens"] += prompt
        totals["output_tokens"] += output
        totals["energy_uj"] += energy_uj
        totals["cost_nano"] += cost
    print(file=sys.stderr)
    return dict(totals)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a month of sample traffic into a new ledger.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--month", default="2026-10", help="YYYY-MM, in the past")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    year, month = map(int, given.month.split("-"))
    told = write_sample(given.folder, given.records, year=year, month=month, seed=given.seed)
    (given.folder / "sample.json").write_text(json.dumps(told, indent=2) + "\n")
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
