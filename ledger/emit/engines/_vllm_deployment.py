"""Owns the deployment of a vLLM engine: what its configuration, weights, adapters and workers say it is.

Field semantics, from vllm/config: ``served_model_name`` is what clients ask for, or else ``model``, which may
be a path; ``quantization`` is None for weights as they are, where ``dtype`` tells their type. The attention
backend is chosen in each worker for each layer, and nowhere reported: see ``_vllm_workers``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ledger.core.records import Adapter, Deployment, Speculative
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


class Deployments:
    """The deployments of one engine: its model, and its model with each adapter that a request named.

    Weights are hashed on threads of their own; see ``model_identity``. Used by one thread.

    Args:
        deployment: of the model itself.
        model: the model's folder or file, None if it is not on this machine.
    """

    def __init__(self, deployment: Deployment, model: Path | None) -> None:
        self._base = identified(deployment, model)
        self._adapters: dict[tuple[str, str], Callable[[], Deployment]] = {}
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

    def _adapter(self, lora: Any) -> Callable[[], Deployment]:
        """The adapter as if it were a model of its own."""
        key = (lora.lora_name, lora.lora_path)
        known = self._adapters.get(key)
        if known is None:
            alone = Deployment(model=_name(lora.lora_name), engine="vllm")
            known = self._adapters[key] = identified(alone, find_model(lora.lora_path), wait_s=0)
        return known


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
