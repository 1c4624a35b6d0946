"""Three replicas of one log, a balancer before them, and what goes wrong with them."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.databases import Postgres

START_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Replica:
    """A service process with a folder of its own, started again on the same port whenever it ended."""

    folder: Path
    database: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    kills: int = 0

    @property
    def log(self) -> str:
        """What it ever wrote."""
        return (self.folder / "service.log").read_text()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it, if it does not run. It may end by itself: the database may be down."""
        if self.running:
            return
        environment = os.environ | {
            "TALLYSTICK_DATABASE": self.database,
            "TALLYSTICK_PREPARE_PROCESSES": "0",
        }
        command = [sys.executable, "-m", "cli", "serve", str(self.folder), "--port", str(self.port)]
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)
            self.kills += 1

    def get(self, path: str) -> bytes | None:
        """The body of an answer with status 200; None for any other, or none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            return body if response.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def wait(self) -> None:
        """Until it serves."""
        deadline = time.monotonic() + START_S
        while self.get("/healthz") is None:
            self.start()
            assert time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.1)

    def stop(self) -> None:
        """As an operator would."""
        if self.running:
            assert self.process is not None
            self.process.terminate()
            assert self.process.wait(60) == 0, self.log[-3000:]


def make_replicas(first: Path, database: str, count: int) -> list[Replica]:
    """``first`` is a ledger's folder; the others get its keys."""
    replicas = [Replica(first, database)]
    for n in range(1, count):
        folder = first.with_name(f"{first.name}-{n}")
        shutil.copytree(first / "keys", folder / "keys")
        for name in ("log.vkey", "admin.key"):
            shutil.copy(first / name, folder / name)
        replicas.append(Replica(folder, database))
    return replicas


class Balancer:
    """Sends each connection to a replica that takes it, chosen at random: TCP, as a load balancer may."""

    def __init__(self, replicas: list[Replica], seed: int) -> None:
        self._replicas = replicas
        self._chance = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        for replica in self._chance.sample(self._replicas, len(self._replicas)):
            try:
                server = socket.create_connection(("127.0.0.1", replica.port), timeout=2)
            except OSError:
                continue
            server.settimeout(None)
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()
            server.close()
            break
        client.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            target.sendall(chunk)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@dataclass
class Chaos:
    """What went wrong so far. Replicas that ended come back after a while."""

    replicas: list[Replica]
    postgres: Postgres | None
    chance: random.Random
    restarts: int = 0
    stopped: int = 0

    def run(self, seconds: float) -> None:
        """Do harm for ``seconds``, then leave all replicas running."""
        deadline = time.monotonic() + seconds
        back: dict[int, float] = {}
        while time.monotonic() < deadline:
            pause = time.monotonic() + self.chance.uniform(0.2, 4)
            while time.monotonic() < pause:
                for n, replica in enumerate(self.replicas):
                    if not replica.running and time.monotonic() >= back.get(n, 0):
                        replica.start()
                        back[n] = time.monotonic() + 1
                time.sleep(0.05)
            n = self.chance.randrange(len(self.replicas))
            match self.chance.randrange(10):
                case 0 | 1 if self.postgres is not None:
                    self.restarts += 1
                    self.postgres.restart("immediate")
                case 2:
                    self.pause(self.replicas[n], self.chance.uniform(0.1, 2))
                case 3:  # all of them, as when the machine loses power
                    for replica in self.replicas:
                        replica.kill()
                case _:
                    self.replicas[n].kill()
                    back[n] = time.monotonic() + self.chance.uniform(0, 2)
        for replica in self.replicas:
            replica.start()
        for replica in self.replicas:
            replica.wait()

    def pause(self, replica: Replica, seconds: float) -> None:
        """Stop the process, perhaps within a transaction, and let it go on."""
        if replica.running:
            assert replica.process is not None
            self.stopped += 1
            replica.process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            replica.process.send_signal(signal.SIGCONT)
