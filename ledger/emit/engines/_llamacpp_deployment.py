"""Owns the deployment of a llama.cpp engine: what its model file, parameters and host say it is."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from msgspec import UNSET

from ledger.core.records import Adapter, Deployment, Speculative, Weights
from ledger.emit.engines.gguf import quantization_of, read_metadata
from ledger.emit.model_identity import file_digest, identified
from ledger.energy.host_power import HostPower, host_power

__all__ = ["deployment_of"]

_FLASH_ATTENTION = {-1: "flash_attn:auto", 0: "flash_attn:off", 1: "flash_attn:on"}
"""As the engine's option says it. With ``auto`` the engine decides by the backend and does not report."""
_SPECULATIVE_PREFIX = "COMMON_SPECULATIVE_TYPE_"


def deployment_of(
    source: Any,
    *,
    model: str | None = None,
    version: str | None = None,
    host: HostPower | None = None,
    provider: str | None = None,
    region: str | None = None,
    site: str | None = None,
    digest_cache: Path | None = None,
) -> Deployment:
    """Describe a llama.cpp engine.

    Args:
        source: the ``xllamacpp.CommonParams`` that the server was made with, or the path of the model file
            (then adapters, speculative decoding and attention are not stated).
        model: the model's name; ``general.name`` of the file's metadata, or else the file's name, if absent.
        version: the model's version; ``general.version`` of the metadata if absent.
        host: the hardware; this host's CPUs if absent. Its power is that of the hardware threads that this
            host sees, which in a virtual machine is a part of the package.
        provider: who serves it.
        region: where, as a grid or cloud region.
        site: where, as a place.
        digest_cache: the file that remembers digests; see ``ledger.emit.model_identity``.
    """
    params = None if isinstance(source, (str, Path)) else source
    path = Path(source if params is None else params.model.path)
    known = read_metadata(path)
    host = host or host_power()
    said_version = version or known.get("general.version")
    deployment = Deployment(
        model=model or str(known.get("general.name") or path.stem),
        version=str(said_version) if said_version else UNSET,
        engine="llama.cpp",
        engine_version=_engine_version() or UNSET,
        adapters=UNSET if params is None else _adapters(params, digest_cache) or UNSET,
        quantization=quantization_of(known) or UNSET,
        attention=UNSET if params is None else _FLASH_ATTENTION.get(int(params.flash_attn_type), UNSET),
        speculative=UNSET if params is None else _speculative(params) or UNSET,
        accelerator=host.cpu,
        power_mw=host.rated_mw,
        provider=provider or UNSET,
        region=region or UNSET,
        site=site or UNSET,
    )
    return identified(deployment, path, wait_s=None, cache=digest_cache)()


def _engine_version() -> str | None:
    """The last part of xllamacpp's version is llama.cpp's build number."""
    try:
        return f"xllamacpp-{metadata.version('xllamacpp')}"
    except metadata.PackageNotFoundError:
        return None


def _adapters(params: Any, cache: Path | None) -> tuple[Adapter, ...]:
    paths = [Path(each.path) for each in params.lora_adapters or ()]
    return tuple(
        Adapter(name=path.stem, weights=Weights(method="file", digest=file_digest(path, cache=cache)))
        for path in paths
    )


def _speculative(params: Any) -> Speculative | None:
    kinds = [each.name.removeprefix(_SPECULATIVE_PREFIX).lower() for each in params.speculative.types]
    kinds = [kind for kind in kinds if kind != "none"]
    if not kinds:
        return None
    drafter = params.speculative.draft.mparams.path
    return Speculative(
        method="~".join(kinds),
        model=Path(drafter).stem if drafter else UNSET,
        tokens=params.speculative.draft.n_max if drafter else UNSET,
    )
