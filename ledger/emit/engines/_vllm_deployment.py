"""Owns the deployment of a vLLM engine: what its configuration, weights, adapters and workers say it is.

Field semantics, from vllm/config: ``served_model_name`` is what clients ask for, or else ``model``, which may
be a path; ``quantization`` is None for weights as they are, where ``dtype`` tells their type. The attention
backend is chosen in each worker for each layer, and nowhere reported: see ``_vllm_workers``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from ledger.core.records import Adapter, Deployment, Speculative
from ledger.emit._digest_cache import file_state
from ledger.emit.engines._vllm_workers import attention_backends
from ledger.emit.model_identity import find_model, identified
from ledger.energy.host_power import host_power

__all__ = ["Deployments", "deployment_of"]

_MAX_SLUG, _MAX_NAME = 64, 256


def deployment_of(
    config: Any,
    *,
    provider: str | None = None,
    region: str | None = None,
    site: str | None = None,
) -> Deployment:
    """Describe a vLLM engine, but for its weights and adapters.

    Args:
        config: the engine's ``VllmConfig``.
        provider: who serves it.
        region: where, as a grid or cloud region.
        site: where, as a place.
    """
    import vllm

    model, parallel = config.model_config, config.parallel_config
    device, power_mw = _device(config)
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    return Deployment(
        model=_model_name(model),
        version=_name(model.revision) if model.revision else UNSET,
        engine="vllm",
        engine_version=_name(vllm.__version__),
        quantization=_slug(model.quantization or str(model.dtype).removeprefix("torch.")),
        attention=_attention(config),
        speculative=_speculative(config.speculative_config),
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        accelerator=_name(device) if device else UNSET,
        accelerators=tensor * pipeline,
        power_mw=power_mw,
        provider=provider or UNSET,
        region=region or UNSET,
        site=site or UNSET,
    )


class _Loaded(NamedTuple):
    """An adapter as it was loaded: its files' state, where that can change, and itself as a model."""

    state: tuple[str, ...]
    alone: Callable[[], Deployment]


class Deployments:
    """The deployments of one engine: its model, and its model with each adapter that a request named.

    Weights are hashed on threads of their own; see ``model_identity``. Used by one thread.

    Args:
        deployment: of the model itself.
        model: the model's folder or file, None if it is not on this machine.
    """

    def __init__(self, deployment: Deployment, model: Path | None) -> None:
        self._deployment, self._model = deployment, model
        self._base = identified(deployment, model)
        self._adapters: dict[tuple[str, str, int], _Loaded] = {}
        self._made: dict[tuple[int, int], tuple[Deployment, Deployment, Deployment]] = {}

    def __call__(self, lora: Any) -> Deployment:
        """The deployment that serves requests with ``lora``, a ``LoRARequest`` or None."""
        base = self._base()
        if lora is None:
            return base
        adapter = self._adapter(lora)()
        made = self._made.get((id(base), id(adapter)))
        if made is None:
            each = Adapter(name=adapter.model, weights=adapter.weights)
            # Both parts are kept with what they make, so that no other object can get their ids.
            made = (base, adapter, msgspec.structs.replace(base, adapters=(each,)))
            self._made[id(base), id(adapter)] = made
        return made[2]

    def weights_changed(self, *, reread: bool = False) -> None:
        """The engine replaced the model's weights: those that it was started with are not stated any more.

        Args:
            reread: it read them from the model's files again, which may be others by now.
        """
        bare = msgspec.structs.replace(self._deployment, weights=UNSET)
        self._base = identified(self._deployment, self._model, wait_s=0) if reread else lambda: bare
        self._made.clear()

    def _adapter(self, lora: Any) -> Callable[[], Deployment]:
        """The adapter as if it were a model of its own."""
        # An adapter that is unloaded and loaded anew gets another number. One that is loaded in place keeps
        # it, and vLLM reads its files whenever it is used; those of the others it does not read again.
        key = (lora.lora_name, lora.lora_path, lora.lora_int_id)
        where: Path | None = None
        state: tuple[str, ...] = ()
        if getattr(lora, "load_inplace", False):
            where = find_model(lora.lora_path)
            state = _files_state(where)
        known = self._adapters.get(key)
        if known is None or known.state != state:
            alone = Deployment(model=_name(lora.lora_name), engine="vllm")
            where = where or find_model(lora.lora_path)
            if known is not None:
                self._made.clear()  # of it, what was made with the adapter as it was
            known = self._adapters[key] = _Loaded(state, identified(alone, where, wait_s=0))
        return known.alone


def _files_state(folder: Path | None) -> tuple[str, ...]:
    """What tells one content of an adapter's folder from another, without reading it."""
    if folder is None:
        return ()
    try:
        return (str(folder), *(file_state(each) for each in sorted(folder.iterdir())))
    except OSError:  # being replaced at this moment
        return (str(folder),)


def _model_name(model: Any) -> str:
    """What it is served as; of a path, only the last part: where it lies is nobody's business."""
    served = model.served_model_name or model.model
    name = str(served if isinstance(served, str) else served[0])
    return _name(Path(name).name if name.startswith(("/", ".", "~")) else name)


def _device(config: Any) -> tuple[str | None, int | UnsetType]:
    """The device's name, and its rated power in milliwatts where it is this host's CPUs."""
    from vllm.platforms import current_platform

    if config.device_config.device_type == "cpu":
        host = host_power()
        return host.cpu, host.rated_mw
    try:
        return current_platform.get_device_name(), UNSET
    except Exception:  # drivers fail in many ways, and some platforms give no name
        return config.device_config.device_type, UNSET


def _attention(config: Any) -> str | UnsetType:
    """What the workers chose, or else what the configuration asks for."""
    chosen = attention_backends()
    if chosen:
        return _slug("~".join(chosen))
    asked = config.attention_config.backend
    return UNSET if asked is None else _slug(asked.name)


def _speculative(config: Any) -> Speculative | UnsetType:
    if config is None:
        return UNSET
    drafter = getattr(config, "model", None)
    return Speculative(
        method=_slug(config.method or "draft_model"),
        model=_name(Path(drafter).name if drafter.startswith(("/", ".", "~")) else drafter)
        if drafter
        else UNSET,
        tokens=config.num_speculative_tokens or UNSET,
    )


def _name(text: str) -> str:
    return text[:_MAX_NAME]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._:~-]", "-", str(text))[:_MAX_SLUG].lstrip("._:~-") or "unknown"
