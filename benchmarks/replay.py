"""Replays production traffic a hundred times as fast through real recorders into a service on PostgreSQL.

    python -m benchmarks.replay TRACE.csv [TRACE.csv ...] [--speed 100] [--seconds 30]

The traces are CSV with the columns TIMESTAMP, ContextTokens and GeneratedTokens, as the Azure LLM inference
traces of 2023 are (https://github.com/Azure/AzurePublicDataset). Each request is recorded when it would have
ended, by one of four recorders. Back-pressure is whatever would make a recorder wait or drop: records
dropped, answers 503, a queue that does not drain.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import urllib3

from benchmarks._databases import benchmark_postgres, ledger_in
from benchmarks.ingest import Running
from benchmarks.workload import DEPLOYMENT
from ledger.core.records import Usage
from ledger.emit import Recorder

RECORDERS = 4
SPEED = 100
_PAUSE_S = 0.05


def read_traces(paths: Iterable[Path]) -> list[tuple[float, int, int]]:
    """(seconds since the first request, input tokens, output tokens), in order of time."""
    rows = []
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
                rows.append((at, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    rows.sort()
    return [(at - rows[0][0], given, made) for at, given, made in rows]


def _play(
    recorder: Recorder, requests: list[tuple[float, int, int]], speed: float, begun: float, late: list[float]
) -> None:
    for at, given, made in requests:
        due = begun + at / speed
        now = time.perf_counter()
        if due > now:
            time.sleep(due - now)
        else:
            late.append(now - due)
        ended = time.time_ns() // 1000
        recorder.record(
            usage=Usage(input_tokens=given, output_tokens=made),
            started_us=ended - 900_000,
            first_token_us=ended - 800_000,
            ended_us=ended,
            input_ids=range(given),
            output_ids=range(made),
            finish_reason="stop",
            tenant=f"tenant-{given % 40}",
        )


def run(paths: Iterable[Path] = (), speed: float = SPEED, seconds: float | None = None) -> dict[str, Any]:
    """Figures of one replay; of none where there is no trace."""
    requests = read_traces(paths or [Path(each) for each in os.environ.get("TALLYSTICK_TRACES", "").split()])
    if seconds is not None:
        requests = [each for each in requests if each[0] <= seconds * speed]
    if not requests:
        return {"requests": 0, "dropped": 0, "not_logged": 0, "problems": 0}
    with benchmark_postgres() as server, tempfile.TemporaryDirectory() as name:
        with ledger_in(server.create_migrated()):
            service = Running(Path(name) / "ledger", [])
        url = f"http://127.0.0.1:{service.port}"
        headers = {"Authorization": f"Bearer {service.token}"}
        recorders, late, waiting, commit = [], [], [0], threading.Event()
        try:
            for n in range(RECORDERS):
                recorder = Recorder(
                    spool=Path(name) / f"spool-{n}",
                    issuer=f"gpu-{n}.replay.example",
                    deployment=DEPLOYMENT,
                    url=url,
                    api_key=service.token,
                    log_key=Path(name) / "ledger" / "log.vkey",
                )
                key = {"issuer": recorder.issuer, "public_key_pem": recorder.public_key.to_pem().decode()}
                answer = urllib3.request("POST", f"{url}/issuers", headers=headers, json=key)
                if answer.status not in (200, 201):
                    raise RuntimeError(answer.data)
                recorders.append(recorder)
            begun = time.perf_counter()
            players = [
                threading.Thread(target=_play, args=(each, requests[n::RECORDERS], speed, begun, late))
                for n, each in enumerate(recorders)
            ]

            def watch() -> None:
                while not commit.wait(_PAUSE_S):
                    waiting.append(sum(each.status().queued for each in recorders))

            watcher = threading.Thread(target=watch)
            for thread in (*players, watcher):
                thread.start()
            for thread in players:
                thread.join()
            played = time.perf_counter() - begun
            sent = all(each.flush(60) for each in recorders)
            drained = time.perf_counter() - begun - played
            commit.set()
            watcher.join()
            dropped = sum(each.status().dropped for each in recorders)
            metrics = urllib3.request("GET", f"{url}/metrics").data.decode()
            for each in recorders:
                each.close(30)
        finally:
            service.stop()
    refused = [line for line in metrics.splitlines() if line.startswith("tallystick_problems_total")]
    logged = next(
        float(line.split()[1])
        for line in metrics.splitlines()
        if line.startswith("tallystick_records_total ")
    )
    return {
        "requests": len(requests),
        "seconds": played,
        "due_seconds": requests[-1][0] / speed,
        "records_per_s": len(requests) / played,
        "late_p99_ms": 1000 * sorted(late)[len(late) * 99 // 100] if late else 0.0,
        "waiting_most": max(waiting),
        "drain_s": drained,
        "dropped": dropped,
        "not_logged": len(requests) - int(logged) if sent else -1,
        "problems": sum(float(line.split()[1]) for line in refused),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Replay traces into a ledger.")
    parser.add_argument("trace", type=Path, nargs="+")
    parser.add_argument("--speed", type=float, default=SPEED)
    parser.add_argument("--seconds", type=float, help="stop after so many seconds")
    given = parser.parse_args()
    for label, value in run(given.trace, given.speed, given.seconds).items():
        print(f"{label:16} {value:12.2f}", file=sys.stdout)
