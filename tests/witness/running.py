"""Witnesses that run: in a thread of the test, or as a process of their own that can be killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn

from cli.children import free_port
from ledger.core.keys import generate_key
from ledger.core.note import VerifierKey, format_vkey
from ledger.keyfiles import load_private_key, save_private_key
from ledger.witness.cosigning import Cosigner
from ledger.witness.server import WitnessApp
from ledger.witness.state import WitnessState, create_state


class RunningWitness:
    """A witness with one key of each kind, served from a thread. ``stop`` and ``start`` keep its memory."""

    def __init__(self, folder: Path, name: str, kinds: Sequence[str] = ("ed25519", "ml-dsa-44")) -> None:
        self.folder, self.name, self.port = folder, name, free_port()
        folder.mkdir(parents=True)
        for kind in kinds:
            save_private_key(folder / f"{kind}.pem", generate_key(kind))
        create_state(folder / "witness.db")
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def keys(self) -> tuple[VerifierKey, ...]:
        return self.cosigner.keys

    def start(self) -> None:
        signers = [load_private_key(each) for each in sorted(self.folder.glob("*.pem"))]
        self.cosigner = Cosigner(self.name, signers, WitnessState(self.folder / "witness.db"))
        config = uvicorn.Config(
            WitnessApp(self.cosigner), host="127.0.0.1", port=self.port, log_level="error", lifespan="on"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_for(lambda: self._server.started)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self.cosigner.state.close()

    def know(self, *keys: VerifierKey) -> None:
        self.cosigner.state.add_log(keys[0].name, keys)

    def size(self, origin: str) -> int:
        known = self.cosigner.state.log(origin)
        return 0 if known is None else known.last.size


@contextlib.contextmanager
def running(
    folder: Path, name: str, kinds: Sequence[str] = ("ed25519", "ml-dsa-44")
) -> Iterator[RunningWitness]:
    witness = RunningWitness(folder, name, kinds)
    try:
        yield witness
    finally:
        witness.stop()


def policy_text(*witnesses: RunningWitness, quorum: str = "all", logs: Sequence[VerifierKey] = ()) -> str:
    """A policy with the first key of each witness."""
    lines = [f"log {format_vkey(key)}" for key in logs]
    names = [f"w{number}" for number in range(len(witnesses))]
    lines += [
        f"witness {name} {format_vkey(each.keys[0])} {each.url}"
        for name, each in zip(names, witnesses, strict=True)
    ]
    lines += (
        [f"group all-of-them {quorum} {' '.join(names)}", "quorum all-of-them"] if names else ["quorum none"]
    )
    return "\n".join(lines) + "\n"


class WitnessProcess:
    """``tallystick witness serve``, to be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "cli",
            "witness",
            "serve",
            str(self.folder),
            "--port",
            str(self.port),
        ]
        self.process = subprocess.Popen(
            [*command, "--log-level", "error"], env=os.environ | {"NO_COLOR": "1"}
        )
        wait_for(self.answers, 60)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.url}/healthz", timeout=5).status == 200
        return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def wait_for(condition, seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.02)
