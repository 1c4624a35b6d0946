"""Owns the plugin for vLLM: each request becomes one record. Two lines to adopt::

    pip install tallystick
    export TALLYSTICK_URL=http://127.0.0.1:8090

vLLM finds it by its entry point (group ``vllm.general_plugins``, name ``tallystick``) and calls ``register``
in each of its processes, for ``vllm serve``, ``LLM``, ``LLMEngine`` and ``AsyncLLM`` alike. It does nothing
unless TALLYSTICK_URL or TALLYSTICK_SPOOL is set. For a ``Recorder`` of your own, call ``attach`` instead.

Written after the source of vLLM 0.32; the seams that it needs (see ``_vllm_requests``) are in 0.20 to 0.33.
Where they are not, it says so in the log and leaves vLLM as it is. Statistics loggers, vLLM's own extension
point for metrics, see no token ids, so the records are made where requests end; vLLM's code is not changed,
only methods of objects in the frontend's process are wrapped.
"""

from __future__ import annotations

import atexit
import functools
import importlib.abc
import importlib.machinery
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from ledger.core.errors import UnavailableError
from ledger.core.records import Deployment
from ledger.emit import Recorder
from ledger.emit.engines import _vllm_workers as workers
from ledger.emit.engines._vllm_deployment import Deployments, deployment_of
from ledger.emit.engines._vllm_requests import SEAMS, Fields, Requests
from ledger.emit.model_identity import find_model
from ledger.energy.site import factors_unless_named

__all__ = ["attach", "deployment_of", "register"]

_logger = logging.getLogger("tallystick.emit")

_TRY_AGAIN_S = 30.0
_RELOAD = "reload_weights"
_LEAVE_WEIGHTS = ("init_", "shutdown_", "get_", "check_", "compute_")
"""How workers' methods begin that name weights and leave them as they are."""
_USER = "user"
_HOOK = "_tallystick"
"""Attribute of an output processor that is recorded."""


def attach(
    engine: Any,
    recorder: Recorder,
    *,
    deployment: Deployment | None = None,
    tenant_field: str | None = None,
    parent_field: str | None = None,
) -> None:
    """Record the requests of one engine from now on.

    Args:
        engine: an ``LLM``, ``LLMEngine`` or ``AsyncLLM``.
        recorder: a ``Recorder``.
        deployment: what the engine is, if ``deployment_of`` its configuration does not say enough.
        tenant_field: key of ``SamplingParams.extra_args`` (over HTTP: ``vllm_xargs``) that names the tenant.
        parent_field: key with the id of the record that caused the request.

    Raises:
        TypeError: it is none of these, or of a version that this hook does not know.
    """
    engine = getattr(engine, "llm_engine", engine)
    processor = getattr(engine, "output_processor", None)
    missing = [name for name in (*SEAMS, "request_states") if not hasattr(processor, name)]
    if missing:
        raise TypeError(f"{type(engine).__name__} cannot be recorded: it has no {', '.join(missing)}")
    if hasattr(processor, _HOOK):
        return
    model = engine.vllm_config.model_config
    deployments = Deployments(
        deployment or deployment_of(engine.vllm_config), find_model(model.model, model.revision)
    )
    fields = Fields(tenant_field, parent_field)
    hook = Requests(processor, recorder, deployments, fields, deployments.weights_changed)
    _watch_weights(engine, deployments)
    setattr(processor, _HOOK, hook)
    _hooks.add(hook)


def _watch_weights(engine: Any, deployments: Deployments) -> None:
    """See what replaces the weights of a running engine: all ways to are calls of its workers by name."""
    original = getattr(engine, "collective_rpc", None)
    if original is None:
        return

    @functools.wraps(original)
    def collective_rpc(method: Any, *args: Any, **kwargs: Any) -> Any:
        passed = [*args[1:], *(value for name, value in kwargs.items() if name != "timeout")]
        if method == _RELOAD and not any(passed):
            deployments.weights_changed(reread=True)
        elif isinstance(method, str) and "weight" in method and not method.startswith(_LEAVE_WEIGHTS):
            deployments.weights_changed()
        return original(method, *args, **kwargs)

    engine.collective_rpc = collective_rpc


def register() -> None:
    """The plugin: have every engine that is made in this process recorded. vLLM calls it.

    Never raises: vLLM does not start where a plugin does.
    """
    try:
        _register()
    except Exception:
        _logger.exception("vLLM serves without records: the plugin could not be set up")


def _register() -> None:
    if not (os.environ.get("TALLYSTICK_URL") or os.environ.get("TALLYSTICK_SPOOL")):
        _logger.debug("vLLM is not recorded: neither TALLYSTICK_URL nor TALLYSTICK_SPOOL is set")
        return
    if _finder in sys.meta_path:
        return
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        _logger.error("vLLM's frontend in Rust loads no plugins: put `tallystick proxy` before it")
    try:
        workers.open_folder()
    except OSError as error:  # such as a full disk, or no folder for temporary files
        _logger.error("records will not name the attention backends that workers choose: %s", error)
    sys.meta_path.insert(0, _finder)
    for name in _PATCHES:
        if name in sys.modules:
            _patch(sys.modules[name])


# --- engines -----------------------------------------------------------------------------------------------

_recorder: Recorder | None = None
_recorder_lock = threading.Lock()  # guards the making of this process's recorder
_hooks: weakref.WeakSet[Requests] = weakref.WeakSet()


def _record_engines(engine_class: Any) -> None:
    """Attach to each engine once it is made; record what is in flight when it is shut down."""
    init = engine_class.__init__

    @functools.wraps(init)
    def recorded_init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            if kwargs.get("client_addresses") is None:  # else its workers run already
                workers.forget()
        except Exception as error:
            _logger.error("records may name attention backends of an earlier engine: %s", error)
        init(self, *args, **kwargs)
        if not _attached(self):
            threading.Thread(
                target=_attach_later, args=(weakref.ref(self),), name="tallystick-attach", daemon=True
            ).start()

    engine_class.__init__ = recorded_init
    shutdown = getattr(engine_class, "shutdown", None)
    if shutdown is None:
        return

    @functools.wraps(shutdown)
    def recorded_shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
        hook = getattr(getattr(self, "output_processor", None), _HOOK, None)
        reason = "error" if hook is not None and getattr(self, "errored", False) else "abort"
        try:
            return shutdown(self, *args, **kwargs)
        finally:  # until here, tokens still arrived
            if hook is not None:
                hook.end_all(reason)

    engine_class.shutdown = recorded_shutdown


def _attached(engine: Any) -> bool:
    """Whether nothing more is to be tried: it is recorded, or cannot be."""
    try:
        attach(
            engine,
            _process_recorder(),
            tenant_field=os.environ.get("TALLYSTICK_TENANT_FIELD"),
            parent_field=os.environ.get("TALLYSTICK_PARENT_FIELD"),
        )
    except UnavailableError as error:  # such as a full disk
        _logger.error("vLLM serves without records until there is a recorder: %s", str(error))
        return False
    except Exception as error:
        _logger.exception("vLLM serves without records: %s", error)
    return True


def _attach_later(engine: weakref.ref[Any]) -> None:
    """Try again until it is recorded, or gone. What it generates until then is in no record."""
    while True:
        time.sleep(_TRY_AGAIN_S)
        alive = engine()
        if alive is None or _attached(alive):
            return
        del alive


def _process_recorder() -> Recorder:
    """This process's recorder, made from the environment when its first engine is there."""
    global _recorder  # noqa: PLW0603 - one for each process
    with _recorder_lock:
        if _recorder is None:
            _recorder = Recorder(factors=factors_unless_named(os.environ))
            # Runs before the recorder is closed, since that was registered earlier.
            atexit.register(_end_all)
            _logger.info("vLLM's requests are recorded by issuer %s", _recorder.issuer)
        return _recorder


def _end_all() -> None:
    for hook in list(_hooks):
        hook.end_all()


def _note_user(request_class: Any) -> None:
    """Pass the ``user`` of an HTTP request on with what it generates, if that is to name the tenant."""
    if os.environ.get("TALLYSTICK_TENANT_FIELD") != _USER:
        return
    original = request_class.to_sampling_params

    @functools.wraps(original)
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = original(self, *args, **kwargs)
        user = getattr(self, _USER, None)
        if user:
            params.extra_args = (params.extra_args or {}) | {_USER: user}
        return params

    request_class.to_sampling_params = to_sampling_params


# --- modules -----------------------------------------------------------------------------------------------
# Importing them at once would slow those of vLLM's processes that never do; so each is patched when it comes.

_PATCHES: dict[str, tuple[str | None, Callable[[Any], None]]] = {
    "vllm.v1.engine.async_llm": ("AsyncLLM", _record_engines),
    "vllm.v1.engine.llm_engine": ("LLMEngine", _record_engines),
    "vllm.v1.attention.selector": (None, workers.tell_attention),
    "vllm.entrypoints.openai.chat_completion.protocol": ("ChatCompletionRequest", _note_user),
    "vllm.entrypoints.openai.completion.protocol": ("CompletionRequest", _note_user),
    "vllm.entrypoints.openai.responses.protocol": ("ResponsesRequest", _note_user),
}
"""Module, the class in it (None: the module itself), and what to do with that."""


def _patch(module: ModuleType) -> None:
    name, patch = _PATCHES[module.__name__]
    try:
        patch(module if name is None else getattr(module, name))
    except Exception as error:  # another version of vLLM
        _logger.error("%s is not as in vLLM 0.20 to 0.33, and not recorded: %s", module.__name__, error)


class _Finder(importlib.abc.MetaPathFinder):
    """Patches the modules of ``_PATCHES`` right after their import."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            _patch(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


_finder = _Finder()
