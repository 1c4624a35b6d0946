"""Owns estimates for models behind an API, from the package `ecologits` (extra ``estimates``), in integers.

EcoLogits (https://ecologits.ai, methodology of LLM inference) estimates a request's energy from the model's
size, the tokens it made and the latency: a regression over measured GPUs and the server around them, both
divided by a batch of 64, times the provider's PUE. Records hold energy **without** PUE, since the factor set
brings it; so this asks the package for PUE 1, and ``provider_factor_set`` carries the provider's own. Their
product is what the package itself answers.
"""

from __future__ import annotations

import importlib.metadata
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from msgspec import UNSET, UnsetType

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.records import Energy, FactorSet, FactorSource
from ledger.energy.factors import UJ_PER_KWH

__all__ = ["PROVIDERS", "Estimate", "estimate_request", "provider_factor_set"]

PROVIDERS = {
    "anthropic": "anthropic",
    "azure": "openai",
    "azure_openai": "openai",
    "cohere": "cohere",
    "gemini": "google_genai",
    "google": "google_genai",
    "google_genai": "google_genai",
    "huggingface": "huggingface_hub",
    "huggingface_hub": "huggingface_hub",
    "mistral": "mistralai",
    "mistralai": "mistralai",
    "openai": "openai",
    "vertex_ai": "google_genai",
}
"""Names of providers as gateways use them, and as the package does. Only who runs the very same models."""

_ASKED_TOKENS = 1000
_US_PER_S = 1_000_000
_NG_PER_KG = 1_000_000_000_000
_UG_PER_KG = 1_000_000_000
_UL_PER_L = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """What one request took, without the site's overhead.

    Attributes:
        energy: of servers and GPUs, method ``estimated``, with the package's own range.
        busy_us: machine time of this request alone: the package's generation latency over its batch of 64.
            Pass it to ``Recorder.record`` beside ``energy``, so that the embodied share is counted.
        embodied_ng: CO2e of the hardware's making, the middle of the package's range.
        embodied_low_ng: its low end.
        embodied_high_ng: its high end.
    """

    energy: Energy
    busy_us: int
    embodied_ng: int
    embodied_low_ng: int
    embodied_high_ng: int


def estimate_request(
    provider: str, model: str, *, output_tokens: int, latency_us: int | None = None
) -> Estimate | None:
    """Estimate a request from what a caller of an API sees.

    Args:
        provider: a key of ``PROVIDERS``.
        model: as the provider names it; ``provider/model`` is understood too.
        output_tokens: tokens made, reasoning included.
        latency_us: of the whole request. The package caps its own estimate of the time by it.

    Returns:
        None where the package does not know the model: nothing is guessed from similar names.

    Raises:
        InvalidError: an argument is negative, or a figure passes 2^53 - 1.
        UnavailableError: the package is not installed.
    """
    if output_tokens < 0 or (latency_us is not None and latency_us < 0):
        raise InvalidError("tokens and times cannot be negative", code="bad-power")
    found = _rates(provider, model)
    if found is None:
        return None
    source, ends = found
    latency_s = None if latency_us is None else Fraction(latency_us, _US_PER_S)
    seconds = [end.seconds(output_tokens, latency_s) for end in ends]
    energies = [end.energy_uj(output_tokens, s) for end, s in zip(ends, seconds, strict=True)]
    embodied = [end.embodied_ng_per_s * s for end, s in zip(ends, seconds, strict=True)]
    low, high = min(energies), max(energies)
    embodied_low, embodied_high = min(embodied), max(embodied)
    return Estimate(
        energy=Energy(
            energy_uj=_half_up((low + high) / 2),
            low_uj=math.floor(low),
            high_uj=_checked(math.ceil(high)),
            method="estimated",
            source=source,
        ),
        busy_us=_half_up(sum(seconds, Fraction()) / len(seconds) * _US_PER_S),
        embodied_ng=_half_up((embodied_low + embodied_high) / 2),
        embodied_low_ng=math.floor(embodied_low),
        embodied_high_ng=_checked(math.ceil(embodied_high)),
    )


@dataclass(frozen=True)
class _End:
    """One end of what a model may be, in the package's own terms: everything is linear in tokens and time.

    Seconds are of generation; those that ``seconds`` returns are divided by the package's batch.
    """

    gpu_uj_per_token: Fraction
    server_uj_per_s: Fraction
    s_per_token: Fraction
    first_token_s: Fraction
    batch: int
    embodied_ng_per_s: Fraction

    def seconds(self, tokens: int, latency_s: Fraction | None) -> Fraction:
        own = tokens * self.s_per_token + self.first_token_s
        return (own if latency_s is None else min(own, latency_s)) / self.batch

    def energy_uj(self, tokens: int, seconds: Fraction) -> Fraction:
        return tokens * self.gpu_uj_per_token + seconds * self.server_uj_per_s


def provider_factor_set(provider: str, *, model: str | None = None, zone: str | None = None) -> FactorSet:
    """The factors that the package takes for a provider: PUE, site water, its main country's electricity mix.

    Where the package gives PUE as a range, the middle is ``pue_milli``, and the range is carried by that of
    the intensity: their product is the package's. Site water is the middle of its range.

    Args:
        provider: a key of ``PROVIDERS``.
        model: brings in the embodied share for this model's hardware.
        zone: ISO 3166-1 alpha-3 code of the electricity mix, if not the package's choice.

    Raises:
        InvalidError: provider, model or zone is not known to the package.
        UnavailableError: the package is not installed.
    """
    tracing = _package()
    name = PROVIDERS.get(provider)
    settings = tracing.PROVIDER_CONFIG_MAP.get(name)
    if settings is None:
        raise _unknown("provider", provider, sorted(PROVIDERS), code="unknown-provider")
    where = zone or settings.datacenter_location
    mix = tracing.electricity_mixes.find_electricity_mix(zone=where)
    if mix is None:
        raise _unknown("zone", where, ["ISO 3166-1 alpha-3 codes", "WOR"], code="unknown-zone")
    pue_low, pue_high = _range(settings.datacenter_pue)
    wue_low, wue_high = _range(settings.datacenter_wue)
    pue_milli = _half_up((pue_low + pue_high) / 2 * 1000)
    intensity = _exact(mix.gwp) * _UG_PER_KG
    ranged = pue_low != pue_high
    embodied: int | UnsetType = UNSET
    if model is not None:
        rates = _rates(provider, model)
        if rates is None:
            raise _unknown("model", model, [f"the package's models of {name}"], code="unknown-model")
        embodied = _half_up(sum((end.embodied_ng_per_s for end in rates[1]), Fraction()) / len(rates[1]))

    def source(factor: str, text: str) -> FactorSource:
        return FactorSource(factor=factor, source=f"EcoLogits, {text}", version=_version())

    spread = f" x PUE {_plain(pue_low)} to {_plain(pue_high)} over its middle"
    sources = [
        source("pue_milli", f"provider {name}, {_plain(pue_low)} to {_plain(pue_high)}"),
        source("intensity_ug_per_kwh", f"electricity mix {where} (gwp)"),
        *(
            source(f"intensity_{end}_ug_per_kwh", f"electricity mix {where} (gwp){spread}")
            for end in (("low", "high") if ranged else ())
        ),
        source(
            "water_ul_per_kwh", f"provider {name}, middle of {_plain(wue_low)} to {_plain(wue_high)} l/kWh"
        ),
        source("source_water_ul_per_kwh", f"electricity mix {where} (wue)"),
    ]
    if embodied is not UNSET:
        sources.append(source("embodied_ng_per_s", f"hardware for {name}/{model}, over 3 years"))
    return FactorSet(
        name=f"ecologits-{name}-{where}",
        version=_version(),
        region=where,
        pue_milli=pue_milli,
        intensity_ug_per_kwh=_half_up(intensity),
        intensity_low_ug_per_kwh=math.floor(intensity * pue_low * 1000 / pue_milli) if ranged else UNSET,
        intensity_high_ug_per_kwh=math.ceil(intensity * pue_high * 1000 / pue_milli) if ranged else UNSET,
        water_ul_per_kwh=_half_up((wue_low + wue_high) / 2 * _UL_PER_L),
        source_water_ul_per_kwh=_half_up(_exact(mix.wue) * _UL_PER_L),
        embodied_ng_per_s=embodied,
        sources=tuple(sources),
    )


# --- the package -----------------------------------------------------------------------------------------


def _package() -> Any:
    try:
        from ecologits.tracers import utils
    except ImportError as error:
        raise UnavailableError(
            f"the package ecologits cannot be imported: {error}",
            remedy="pip install 'tallystick[estimates]'",
            code="missing-package",
        ) from None
    return utils


def _version() -> str:
    return importlib.metadata.version("ecologits")


@lru_cache(maxsize=1024)  # names come from callers
def _rates(provider: str, model: str) -> tuple[str, list[_End]] | None:
    """The source to cite, and both ends of the model; None if the package does not know it.

    The package is asked once for a thousand tokens: asking it for each request takes half a millisecond.
    """
    name = PROVIDERS.get(provider)
    if name is None:
        return None
    models = _package().models
    entry = models.find_model(provider=name, model_name=model)
    if entry is None and "/" in model:
        entry = models.find_model(provider=name, model_name=model.rpartition("/")[2])
    if entry is None:
        return None
    from ecologits.impacts.llm import compute_llm_impacts_dag

    parameters = entry.architecture.parameters
    total = _ends(getattr(parameters, "total", parameters))
    active = _ends(getattr(parameters, "active", parameters))
    tps = None if entry.deployment is None else entry.deployment.tps
    ttft = None if entry.deployment is None else entry.deployment.ttft
    ends = []
    for some, every in dict.fromkeys(zip(active, total, strict=True)):
        run: dict[str, Any] = compute_llm_impacts_dag(
            model_active_parameter_count=float(some),
            model_total_parameter_count=float(every),
            output_token_count=_ASKED_TOKENS,
            request_latency=math.inf,
            if_electricity_mix_adpe=0,
            if_electricity_mix_pe=0,
            if_electricity_mix_gwp=0,
            if_electricity_mix_wue=0,
            datacenter_pue=1,
            datacenter_wue=0,
            tps=tps,
            ttft=ttft,
        )
        latency, first, batch = Fraction(run["generation_latency"]), Fraction(ttft or 0), run["batch_size"]
        gpus_kwh = run["gpu_required_count"] * Fraction(run["gpu_energy"])
        ends.append(
            _End(
                gpu_uj_per_token=gpus_kwh * UJ_PER_KWH / _ASKED_TOKENS,
                server_uj_per_s=Fraction(run["server_energy"]) * UJ_PER_KWH * batch / latency,
                s_per_token=(latency - first) / _ASKED_TOKENS,
                first_token_s=first,
                batch=batch,
                embodied_ng_per_s=Fraction(run["server_gpu_embodied_gwp"])
                * _NG_PER_KG
                / run["server_lifetime"],
            )
        )
    return f"EcoLogits {_version()}: {name}/{entry.name}, without PUE"[:256], ends


def _ends(value: Any) -> tuple[float, float]:
    return (value.min, value.max) if hasattr(value, "min") else (value, value)


def _range(value: Any) -> tuple[Fraction, Fraction]:
    low, high = _ends(value)
    return _exact(low), _exact(high)


# --- numbers ---------------------------------------------------------------------------------------------


def _exact(value: float) -> Fraction:
    """The decimal that was written, not the binary number next to it."""
    return Fraction(str(value))


def _half_up(value: Fraction) -> int:
    return _checked(math.floor(value + Fraction(1, 2)))


def _checked(value: int) -> int:
    if value > MAX_SAFE_INTEGER:
        raise InvalidError(
            "an estimate passes 2^53 - 1", remedy="check the token count", code="figure-too-large"
        )
    return value


def _plain(value: Fraction) -> str:
    return f"{float(value):g}"


def _unknown(what: str, value: str, known: list[str], *, code: str) -> InvalidError:
    return InvalidError(
        f"EcoLogits {_version()} does not know this {what}",
        where=value[:200],
        remedy=f"use one of: {', '.join(known)}",
        code=code,
    )
