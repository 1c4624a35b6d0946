"""The plugin's attaching, without vLLM. What it records: ``tests/engines``."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from ledger.core.errors import UnavailableError
from ledger.emit.engines import vllm as plugin
from tests.emit.conftest import eventually


@pytest.fixture
def engine_class() -> Any:
    class Engine:
        def __init__(self) -> None:
            self.served = True

    plugin._record_engines(Engine)
    return Engine


def test_an_engine_is_recorded_once_there_is_a_recorder(
    engine_class: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is full when the server starts, and is not for ever."""
    attached: list[Any] = []
    failures = [UnavailableError("the spool cannot be opened: No space left on device")] * 3

    def recorder() -> str:
        if failures:
            raise failures.pop()
        return "recorder"

    monkeypatch.setattr(plugin, "_TRY_AGAIN_S", 0.01)
    monkeypatch.setattr(plugin, "_process_recorder", recorder)
    monkeypatch.setattr(plugin, "attach", lambda engine, made, **_: attached.append((engine, made)))
    engine = engine_class()
    assert engine.served
    assert eventually(lambda: attached == [(engine, "recorder")])
    assert "serves without records until" in caplog.text
    time.sleep(0.05)
    assert len(attached) == 1


def test_what_cannot_be_recorded_at_all_is_served(
    engine_class: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plugin, "_process_recorder", lambda: 1 // 0)
    assert engine_class().served
    assert "vLLM serves without records: " in caplog.text
    assert "tallystick-attach" not in {thread.name for thread in threading.enumerate()}


def test_an_engine_that_is_gone_is_not_waited_for(engine_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise UnavailableError("no room")

    monkeypatch.setattr(plugin, "_TRY_AGAIN_S", 0.01)
    monkeypatch.setattr(plugin, "_process_recorder", full)
    engine = engine_class()
    del engine
    assert eventually(lambda: "tallystick-attach" not in {thread.name for thread in threading.enumerate()})
