"""Owns the deployment of a Hugging Face transformers model: what its config, adapters and device say it is.

Read from ``PreTrainedConfig`` (``_name_or_path``, ``_commit_hash``, ``quantization_config``,
``_attn_implementation``), from the model (``dtype``, ``device``, ``hf_device_map``, ``tp_size``) and from
``peft_config``, as of transformers 5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from ledger.core.records import Adapter, Deployment, Speculative, Weights
from ledger.emit.model_identity import find_model, hub_revision, identified, weights_of
from ledger.energy.host_power import HostPower, host_power

__all__ = ["active_adapters", "deployment_of", "variant"]

_is_commit = re.compile("[0-9a-f]{40}").fullmatch
_SLUG_BYTES = 64


def deployment_of(
    model: Any,
    *,
    name: str | None = None,
    version: str | None = None,
    engine: str = "transformers",
    engine_version: str | None = None,
    host: HostPower | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    provider: str | None = None,
    region: str | None = None,
    site: str | None = None,
    wait_s: float | None = 5.0,
    digest_cache: Path | None = None,
) -> Callable[[], Deployment]:
    """Describe a model; return a function that gives it, with the weights' digest once that is known.

    Args:
        model: a ``PreTrainedModel``, a ``PeftModel`` or a pipeline.
        name: the model's name; what it was loaded by (the last part of a path) if absent.
        version: its version; the hub's commit if absent.
        engine: what runs it.
        engine_version: version of that; that of transformers if absent.
        host: the hardware if the model is on CPUs; this host's if absent.
        adapters: folders of the weights of adapters, by the adapters' names.
        provider: who serves it.
        region: where, as a grid or cloud region.
        site: where, as a place.
        wait_s: how long to wait for the digest; see ``ledger.emit.model_identity.identified``.
        digest_cache: the file that remembers digests.
    """
    model = getattr(model, "model", model) if hasattr(model, "preprocess") else model  # a pipeline
    config = model.config
    source = str(getattr(config, "_name_or_path", "") or "")
    commit = getattr(config, "_commit_hash", None)
    commit = commit if isinstance(commit, str) and _is_commit(commit) else None
    where = find_model(source, commit) if source else None
    fallback = hub_revision(where) if where is not None else None
    if fallback is None and commit is not None:
        fallback = Weights(method="hub-revision", digest=commit)
    said = version or commit or (fallback.digest if fallback is not None else None)
    deployment = Deployment(
        model=name or _model_name(source, where) or type(model).__name__,
        version=said or UNSET,
        engine=engine,
        engine_version=engine_version or _version("transformers") or UNSET,
        weights=fallback or UNSET,
        adapters=_adapters(model, adapters or {}, digest_cache) or UNSET,
        quantization=_quantization(config, model) or UNSET,
        attention=_slug(getattr(config, "_attn_implementation", None)) or UNSET,
        tensor_parallel=_tensor_parallel(model) or UNSET,
        provider=provider or UNSET,
        region=region or UNSET,
        site=site or UNSET,
        **_hardware(model, host),
    )
    return identified(deployment, where, wait_s=wait_s, cache=digest_cache)


def variant(base: Deployment, adapters: tuple[str, ...], speculative: Speculative | None) -> Deployment:
    """The deployment with other adapters active than when it was described, or with speculative decoding."""
    known = {each.name: each for each in (base.adapters or ())}
    active = tuple(known.get(name) or Adapter(name=name) for name in adapters)
    return msgspec.structs.replace(
        base, adapters=active or UNSET, speculative=base.speculative if speculative is None else speculative
    )


def active_adapters(model: Any) -> tuple[str, ...]:
    """Names of the adapters that are on now."""
    if not getattr(model, "peft_config", None):
        return ()
    found = getattr(model, "active_adapters", None)  # a list in peft, a method in transformers
    try:
        found = found() if callable(found) else found
    except ValueError:  # transformers: no adapter is loaded
        return ()
    # Switching them off leaves their names: the layers know. The first one speaks for all.
    layer = next((each for each in model.modules() if hasattr(each, "merged_adapters")), None)
    if getattr(layer, "disable_adapters", False) is True:
        return ()
    return tuple(str(each) for each in found or ())


def _model_name(source: str, where: Path | None) -> str:
    """A hub's name as it is; of a path the last part, or the hub's name if it is in the hub's cache."""
    if where is None or not Path(source).exists():
        return source[:256]
    for folder in (where.resolve(), *where.resolve().parents):
        if folder.name.startswith("models--"):
            return folder.name.removeprefix("models--").replace("--", "/")
    return where.resolve().name


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _slug(value: object) -> str | None:
    text = re.sub(r"[^A-Za-z0-9._:~-]+", "-", str(value)).strip("-._:~")[:_SLUG_BYTES] if value else ""
    return text or None


def _quantization(config: Any, model: Any) -> str | None:
    """The scheme with its bits where it states them, else the type of the weights (``bfloat16``)."""
    scheme = getattr(config, "quantization_config", None)
    if scheme is None:
        dtype = getattr(model, "dtype", None)
        return None if dtype is None else _slug(str(dtype).removeprefix("torch."))
    if not isinstance(scheme, Mapping):
        scheme = scheme.to_dict()
    method = str(getattr(scheme.get("quant_method"), "value", scheme.get("quant_method")) or "unknown")
    if scheme.get("load_in_8bit"):
        return f"{method}-int8"
    if scheme.get("load_in_4bit"):
        return _slug(f"{method}-{scheme.get('bnb_4bit_quant_type') or 'int4'}")
    bits = scheme.get("bits") or scheme.get("w_bit") or scheme.get("nbits")
    if isinstance(bits, int):
        return _slug(f"{method}-int{bits}")
    kind = scheme.get("quant_type") or scheme.get("weights") or scheme.get("format")
    return _slug(f"{method}-{kind}" if isinstance(kind, str) else method)


def _adapters(model: Any, folders: Mapping[str, str | Path], cache: Path | None) -> tuple[Adapter, ...]:
    return tuple(
        Adapter(
            name=name,
            weights=weights_of(folders[name], cache=cache) if name in folders else UNSET,
        )
        for name in active_adapters(model)
    )


def _tensor_parallel(model: Any) -> int | None:
    size = getattr(model, "tp_size", None)
    return size if isinstance(size, int) and size > 1 else None


def _hardware(model: Any, host: HostPower | None) -> dict[str, Any]:
    """Name, number and rated power of what the model is on."""
    device = getattr(model, "device", None)
    kind = getattr(device, "type", "cpu")
    if kind == "cpu":
        found = host or host_power()
        return {"accelerator": found.cpu, "power_mw": found.rated_mw}
    spread = {
        str(each)
        for each in (getattr(model, "hf_device_map", None) or {}).values()
        if str(each) not in ("cpu", "disk")
    }
    count = max(len(spread), _tensor_parallel(model) or 1)
    name = kind
    if kind == "cuda":
        import torch

        name = torch.cuda.get_device_name(device)
    return {"accelerator": name, "accelerators": count}
