"""Child processes of the demo: started with a log file, watched while they are waited for, always stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from ledger.core.errors import UnavailableError

__all__ = ["Child", "free_port", "is_answering", "running"]

_STOP_SECONDS = 20
"""Longer than a service needs to answer what it has begun."""
_POLL_SECONDS = 0.1
_TAIL_LINES = 8
_ANSWER_SECONDS = 2


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_answering(url: str) -> bool:
    """Whether ``GET url`` answers with success."""
    import urllib3

    try:
        return urllib3.request("GET", url, retries=False, timeout=_ANSWER_SECONDS).status == HTTPStatus.OK
    except urllib3.exceptions.HTTPError:
        return False


@dataclass(frozen=True)
class Child:
    """A running child; ``log`` has what it wrote."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise if it has ended.

        Raises:
            UnavailableError: with the end of its log.
        """
        code = self.process.poll()
        if code is not None:
            raise UnavailableError(
                f"{self.name} ended with code {code}:\n{self.tail()}",
                where=str(self.log),
                remedy="read its log; what it says last is shown above",
                code="child-ended",
            )

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until ``ready`` says so.

        Raises:
            UnavailableError: the child ended, or is not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"{self.name} was not ready within {timeout_s:g} s:\n{self.tail()}",
                    where=str(self.log),
                    remedy="read its log; on a busy machine, run it again",
                    code="child-slow",
                )
            time.sleep(_POLL_SECONDS)

    def tail(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:])

    def stop(self) -> None:
        """Ask it to end; end it if it does not."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextmanager
def running(
    name: str, command: Sequence[str], log: Path, *, environment: Mapping[str, str], cwd: Path | None = None
) -> Iterator[Child]:
    """Run ``command`` while the block runs. Its output goes to ``log``; ``environment`` is added to ours."""
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own programs
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            cwd=cwd,
            # Ctrl-C is for us alone: children are stopped in order, so that nothing is lost.
            start_new_session=True,
        )
    child = Child(name, process, log)
    try:
        with _terminated_as_interrupt():
            yield child
    finally:
        child.stop()


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that children are stopped."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
