"""The real service as a process of its own, over a folder that ``tallystick init`` makes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3

from cli.init import init_folder
from ledger.emit import Recorder


@dataclass
class RealService:
    """A ledger's folder and the process that serves it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_key(self) -> str:
        return (self.folder / "admin.key").read_text().strip()

    @property
    def options(self) -> dict[str, Any]:
        """What a recorder needs to send here."""
        return {"url": self.url, "api_key": self.admin_key, "log_key": self.folder / "log.vkey"}

    def start(self) -> None:
        log = (self.folder / "service.log").open("ab")
        command = [sys.executable, "-m", "cli", "serve", str(self.folder), "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 120  # of a busy machine
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "service.log").read_text()[-3000:]
            try:
                if urllib3.request("GET", f"{self.url}/healthz", retries=False).status == 200:
                    return
            except urllib3.exceptions.HTTPError:
                pass
            time.sleep(0.05)
        raise AssertionError("the service did not start")

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(60)

    def get(self, path: str) -> Any:
        answer = urllib3.request(
            "GET", self.url + path, headers={"Authorization": f"Bearer {self.admin_key}"}, retries=False
        )
        assert answer.status == 200, answer.data
        return answer.json()

    def register(self, recorder: Recorder) -> None:
        answer = urllib3.request(
            "POST",
            self.url + "/issuers",
            headers={"Authorization": f"Bearer {self.admin_key}"},
            json={"issuer": recorder.issuer, "public_key_pem": recorder.public_key.to_pem().decode()},
        )
        assert answer.status in (200, 201), answer.data


@contextlib.contextmanager
def running_service(folder: Path) -> Iterator[RealService]:
    """Make a ledger in ``folder`` and serve it."""
    init_folder(folder, "log.example.com/emitter-tests")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        service = RealService(folder, probe.getsockname()[1])
    service.start()
    try:
        yield service
    finally:
        service.stop()
