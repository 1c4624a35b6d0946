"""Child processes: waited for, told about when they die, always stopped."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from cli.children import Child, free_port, is_answering, running
from ledger.core.errors import UnavailableError

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
DYING = [sys.executable, "-c", "import sys; sys.exit('the disk is on fire')"]
SERVER = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_child_is_stopped_when_the_block_ends(tmp_path: Path) -> None:
    with running("sleeper", SLEEPER, tmp_path / "log", environment={}) as child:
        child.wait_until(lambda: "up" in child.tail(), 30)
        assert is_alive(child.process.pid)
    assert child.process.returncode == -signal.SIGTERM


def test_a_child_is_stopped_when_the_block_fails(tmp_path: Path) -> None:
    seen: list[Child] = []
    sleeper = running("sleeper", SLEEPER, tmp_path / "log", environment={})
    with pytest.raises(KeyboardInterrupt), sleeper as child:  # noqa: PT012
        seen.append(child)
        raise KeyboardInterrupt
    assert not is_alive(seen[0].process.pid)


def test_a_dead_child_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    oven = running("the oven", DYING, tmp_path / "oven.log", environment={})
    with pytest.raises(UnavailableError) as caught, oven as child:
        child.wait_until(lambda: False, 30)
    assert "the oven ended with code 1" in caught.value.what
    assert "the disk is on fire" in caught.value.what
    assert caught.value.where == str(tmp_path / "oven.log")


def test_a_slow_child_is_given_up(tmp_path: Path) -> None:
    sleeper = running("sleeper", SLEEPER, tmp_path / "log", environment={})
    with pytest.raises(UnavailableError, match="was not ready within"), sleeper as child:
        child.wait_until(lambda: False, 0.3)
    assert not is_alive(child.process.pid)


def test_sigterm_stops_the_children_too(tmp_path: Path) -> None:
    seen: list[Child] = []
    sleeper = running("sleeper", SLEEPER, tmp_path / "log", environment={})
    with pytest.raises(KeyboardInterrupt), sleeper as child:  # noqa: PT012
        seen.append(child)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        child.wait_until(lambda: False, 30)
    assert not is_alive(seen[0].process.pid)


def test_is_answering(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    assert not is_answering(url)
    command = [*SERVER, "--directory", str(tmp_path), str(port)]
    with running("web", command, tmp_path / "log", environment={}) as child:
        child.wait_until(lambda: is_answering(url), 30)
        assert not is_answering(f"{url}missing")
