"""Owns what vLLM's workers tell the frontend about themselves: the attention backends that they chose.

A worker chooses a backend for each layer when it builds the model (``vllm/v1/attention/selector.py``), by the
device, the types and the layer's form; no message of vLLM's carries the choice. The plugin is loaded in the
workers too, so there it writes each backend's name into a folder that the environment names, which the
processes of one engine share. Workers on other machines do not: then the configuration's word stands.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["attention_backends", "forget", "open_folder", "tell_attention"]

_VARIABLE = "TALLYSTICK_VLLM_WORKERS"
"""Set by the first process of an engine for its children; not for users."""
_is_name = re.compile("[A-Za-z0-9_]+").fullmatch


def open_folder() -> None:
    """Make the folder that this process and its children share, unless a parent did.

    Raises:
        OSError: there is no room for it. Then backends are not told.
    """
    if _VARIABLE in os.environ:
        return
    folder, owner = tempfile.mkdtemp(prefix="tallystick-vllm-"), os.getpid()
    os.environ[_VARIABLE] = folder

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)


def tell_attention(selector: Any) -> None:
    """Have ``vllm.v1.attention.selector`` tell of its choices."""
    original = selector._cached_get_attn_backend

    @functools.wraps(original)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        backend = original(*args, **kwargs)
        try:
            name = backend.get_name()
            if _is_name(name):
                (Path(os.environ[_VARIABLE]) / name).touch()
        except Exception:  # noqa: S110 - not known, then
            pass
        return backend

    selector._cached_get_attn_backend = chosen


def attention_backends() -> list[str]:
    """Names of all backends that workers chose, sorted; empty if they did not tell."""
    folder = os.environ.get(_VARIABLE)
    if folder is None:
        return []
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def forget() -> None:
    """Another engine begins in this process: what the workers of an earlier one chose is not its own."""
    folder = os.environ.get(_VARIABLE)
    for name in attention_backends():
        with contextlib.suppress(OSError):
            (Path(folder or "") / name).unlink()
