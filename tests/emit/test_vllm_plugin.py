"""The plugin's attaching and what it says of weights, without vLLM. What it records: ``tests/engines``."""

from __future__ import annotations

import errno
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import UNSET

from ledger.core.errors import UnavailableError
from ledger.core.records import Deployment
from ledger.emit.engines import vllm as plugin
from ledger.emit.engines._vllm_deployment import Deployments
from ledger.emit.model_identity import weights_of
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


def test_vllm_starts_where_there_is_no_room_for_the_workers_folder(
    engine_class: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("TALLYSTICK_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("TALLYSTICK_VLLM_WORKERS", raising=False)
    monkeypatch.setattr("ledger.emit.engines._vllm_workers.tempfile.mkdtemp", full)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    plugin.register()
    assert plugin._finder in sys.meta_path  # recorded all the same
    assert "No space left on device" in caplog.text
    monkeypatch.setattr(plugin, "attach", lambda *_, **__: None)
    monkeypatch.setattr(plugin, "_process_recorder", lambda: None)
    assert engine_class().served


def test_vllm_starts_where_the_plugin_cannot_be_set_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TALLYSTICK_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("ledger.emit.engines._vllm_workers.open_folder", lambda: 1 // 0)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    plugin.register()
    assert "vLLM serves without records: " in caplog.text


def test_an_engine_starts_where_the_workers_folder_cannot_be_cleared(
    engine_class: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a-folder").mkdir()  # unlink fails
    (tmp_path / "FLASH_ATTN").touch()
    monkeypatch.setenv("TALLYSTICK_VLLM_WORKERS", str(tmp_path))
    monkeypatch.setattr(plugin, "attach", lambda *_, **__: None)
    monkeypatch.setattr(plugin, "_process_recorder", lambda: None)
    assert engine_class().served
    assert not (tmp_path / "FLASH_ATTN").exists()


# --- weights ---------------------------------------------------------------------------------------------


def lora(folder: Path, number: int = 1, *, load_inplace: bool = False) -> Any:
    return SimpleNamespace(
        lora_name="sql", lora_path=str(folder), lora_int_id=number, load_inplace=load_inplace
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"first")
    return folder


def adapter_digest(deployments: Deployments, request: Any) -> Any:
    (adapter,) = deployments(request).adapters
    return adapter.weights


def test_an_adapter_has_the_digest_of_what_was_loaded(folder: Path) -> None:
    deployments = Deployments(Deployment(model="m", engine="vllm"), None)
    first = weights_of(folder)
    assert eventually(lambda: adapter_digest(deployments, lora(folder)) == first)
    kept = deployments(lora(folder))
    (folder / "model.safetensors").write_bytes(b"second")
    second = weights_of(folder)
    assert deployments(lora(folder)) is kept  # the engine has the old one still
    in_place = lora(folder, load_inplace=True)
    assert adapter_digest(deployments, in_place) in (UNSET, second)
    assert eventually(lambda: adapter_digest(deployments, in_place) == second)
    assert deployments(in_place) is deployments(in_place)
    (folder / "model.safetensors").write_bytes(b"the third")
    assert adapter_digest(deployments, in_place) != second
    assert eventually(lambda: adapter_digest(deployments, in_place) == weights_of(folder))


def test_an_adapter_that_was_unloaded_and_loaded_anew_is_another(folder: Path) -> None:
    deployments = Deployments(Deployment(model="m", engine="vllm"), None)
    first = weights_of(folder)
    assert eventually(lambda: adapter_digest(deployments, lora(folder)) == first)
    (folder / "model.safetensors").write_bytes(b"second")
    assert eventually(lambda: adapter_digest(deployments, lora(folder, 2)) == weights_of(folder))


@pytest.mark.parametrize(
    ("call", "digest"),
    [
        (("get_model_inspection",), "first"),
        (("init_weight_transfer_engine", None, (), {"init_info": {}}), "first"),
        (("update_weights", None, (), {"update_info": {}}), "none"),
        (("load_weights_of_step", 30.0), "none"),
        (("reload_weights", 30.0), "second"),
        (("reload_weights", None, (), {"weights_path": "/elsewhere"}), "none"),
    ],
)
def test_weights_that_were_replaced_are_not_stated(folder: Path, call: Any, digest: str) -> None:
    deployments = Deployments(Deployment(model="m", engine="vllm"), folder)
    called: list[Any] = []
    engine = SimpleNamespace(collective_rpc=lambda *args, **_: called.append(args))
    plugin._watch_weights(engine, deployments)
    first = weights_of(folder)
    assert eventually(lambda: deployments(None).weights == first)
    (folder / "model.safetensors").write_bytes(b"second")
    expected = {"first": first, "none": UNSET, "second": weights_of(folder)}[digest]
    engine.collective_rpc(*call)
    assert called == [call]
    assert eventually(lambda: deployments(None).weights == expected)
    assert deployments(None) is deployments(None)
