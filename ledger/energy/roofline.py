"""Owns energy without meters for models that one runs oneself: a roofline of the accelerator, with a range.

A roofline (Williams, Waterman and Patterson, CACM 52(4), 2009) says how long work takes at least: as long as
its arithmetic at peak speed, or as its memory traffic at peak bandwidth, whichever is longer. For a
transformer with N_a active and N_t total parameters of w bytes, batch B, and k bytes of keys and values for
each token of context c (Pope et al., arXiv:2211.05102, sections 2 and 3)::

    prefill of a token   t_p = 2 N_a / F                                             compute-bound
    decoding a token     t_d = max(w N(B) / M, 2 N_a B / F) / B  +  k c / M          bandwidth-bound
    weights that a step of B tokens reads   N(B) = N_t (1 - (1 - N_a / N_t)^B)       N_t if dense

    energy = overhead x power x (t_p uncached input + sum of t_d over output)

F is the peak in FLOP/s, M the bandwidth, power the board's rating; how many boards share the work cancels
out. ``overhead`` is how much more than that was measured on real engines: the share of the rated power drawn,
over the share of the roofline's speed reached (see ``OVERHEAD_MILLI``).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.core.errors import InvalidError
from ledger.core.records import Energy
from ledger.energy.accelerators import Accelerator
from ledger.energy.estimation import estimate_from_power

__all__ = [
    "BATCHES",
    "OVERHEAD_MILLI",
    "POWER_SHARE_MILLI",
    "WEIGHT_MILLIBITS",
    "ModelSize",
    "Roofline",
    "weight_millibits",
]

OVERHEAD_MILLI = (700, 2200, 7000)
"""Low, middle and high. From the ML.ENERGY Benchmark v3.0 (arXiv:2505.06371; data of December 2025): over 336
configurations of vLLM, models of 8e9 to 671e9 parameters on H100 and B200, the median is 2.2, the 5th to 95th
percentile 1.0 to 4.5. The range holds 441 of its 450 text configurations; beyond it lie mixtures of experts,
most of them in batches of a thousand and more."""

POWER_SHARE_MILLI = (290, 740, 1000)
"""Of the rated power, while serving: least, median, and the rating. Same measurements (most: 0.99)."""

BATCHES = (1, 32, 256)
"""Where the batch is not known: the fewest, the usual, the most generations at once."""

WEIGHT_MILLIBITS: dict[str, int] = {
    "fp32": 32_000, "float32": 32_000, "f32": 32_000,
    "fp16": 16_000, "float16": 16_000, "f16": 16_000, "bf16": 16_000, "bfloat16": 16_000,
    "fp8": 8_000, "int8": 8_000, "w8a8": 8_000, "q8_0": 8_500,
    "int4": 4_250, "gptq": 4_250, "awq": 4_250, "w4a16": 4_250, "mxfp4": 4_250, "nvfp4": 4_500, "nf4": 4_130,
    "q6_k": 6_563, "q5_k_m": 5_690, "q5_k_s": 5_540, "q5_0": 5_500,
    "q4_k_m": 4_850, "q4_k_s": 4_580, "q4_0": 4_500, "q3_k_m": 3_910, "q2_k": 2_630,
}  # fmt: skip
"""Thousandths of a bit for each weight, scales included. 4-bit schemes: 16 bits of scale for 64 weights; the
K-quants mix blocks, as the quantize tool of llama.cpp lists them for Llama 3."""

_KV_BYTES_8B = 131_072
_PARAMS_8B = 8_000_000_000
_FJ_PER_UJ = 1_000_000_000
_FJ_PER_MJ = 1_000_000_000_000
_GIGA = 1_000_000_000
_8_BIT_MILLIBITS = 8_500


@dataclass(frozen=True)
class ModelSize:
    """What the energy of a model depends on.

    Attributes:
        parameters: all of them.
        active_parameters: that one token uses; absent, all (a dense model).
        weight_millibits: thousandths of a bit for each; see ``weight_millibits``.
        kv_bytes_per_token: keys and values of one token, all layers. Absent, a rule of thumb: 128 KiB for 8e9
            active parameters (Llama 3.1 8B), growing with the cube root; within a factor of 1.5 for Llama 3.1
            and Qwen3, too high for latent attention, too low without grouped queries.
    """

    parameters: int
    active_parameters: int | None = None
    weight_millibits: int = 16_000
    kv_bytes_per_token: int | None = None


class Roofline:
    """Estimates for one model on one kind of accelerator. Immutable: safe to share between threads.

    Args:
        accelerator: from ``accelerators``, or stated.
        model: its size.
        batch: how many generations share a step, on average; None where not known.

    Raises:
        InvalidError: a size is not positive, or more parameters are active than there are.
    """

    def __init__(self, accelerator: Accelerator, model: ModelSize, *, batch: int | None = None) -> None:
        active = model.parameters if model.active_parameters is None else model.active_parameters
        sizes = (active, model.weight_millibits, accelerator.gflops_16, accelerator.gflops_8)
        more = (accelerator.gbytes_per_s, accelerator.power_mw, 1 if batch is None else batch)
        if min(*sizes, *more) <= 0 or active > model.parameters or (model.kv_bytes_per_token or 0) < 0:
            raise InvalidError(
                "sizes must be positive, and no more parameters active than there are",
                where=f"{model} batch={batch}",
                code="bad-power",
            )
        self.accelerator = accelerator
        batches = BATCHES if batch is None else (batch, batch, batch)
        small = model.weight_millibits <= _8_BIT_MILLIBITS and model.weight_millibits >= 8_000
        flops = (accelerator.gflops_8 if small else accelerator.gflops_16) * _GIGA
        bandwidth = accelerator.gbytes_per_s * _GIGA
        kv_bytes = model.kv_bytes_per_token
        if kv_bytes is None:
            kv_bytes = _cube_root(_KV_BYTES_8B**3 * active // _PARAMS_8B)
        joule = accelerator.power_mw * _FJ_PER_MJ  # mW times s is mJ
        # Most energy for a token is with the fewest that share a step.
        self._rates = tuple(
            _Rates(
                prefill=_scaled(joule * Fraction(2 * active, flops), overhead),
                decode=_scaled(joule * _decode_s(model, active, flops, bandwidth, each), overhead),
                context=_scaled(joule * Fraction(kv_bytes, bandwidth), overhead),
            )
            for overhead, each in zip(OVERHEAD_MILLI, sorted(batches, reverse=True), strict=True)
        )
        shared = "batch unknown" if batch is None else f"batch {batch}"
        self._source = (
            f"roofline: {accelerator.name} ({accelerator.source}), {_billions(model.parameters)} parameters, "
            f"{_billions(active)} active, {model.weight_millibits / 1000:g} bit, {shared}"
        )[:256]

    def estimate(self, *, input_tokens: int, output_tokens: int, cached_input_tokens: int = 0) -> Energy:
        """Energy of one generation from its tokens alone; method ``estimated``. Of the boards, without host.

        Raises:
            InvalidError: a count is negative, more is cached than there was, or the energy passes 2^53 - 1.
        """
        if min(input_tokens, output_tokens, cached_input_tokens) < 0 or cached_input_tokens > input_tokens:
            raise InvalidError("token counts do not fit each other", code="bad-power")
        context = output_tokens * input_tokens + output_tokens * (output_tokens - 1) // 2
        low, middle, high = (
            (input_tokens - cached_input_tokens) * rates.prefill
            + output_tokens * rates.decode
            + context * rates.context
            for rates in self._rates
        )
        high_uj = -(-high // _FJ_PER_UJ)
        if high_uj > MAX_SAFE_INTEGER:
            raise InvalidError("the energy passes 2^53 - 1 microjoules", code="figure-too-large")
        return Energy(
            energy_uj=(2 * middle + _FJ_PER_UJ) // (2 * _FJ_PER_UJ),
            low_uj=low // _FJ_PER_UJ,
            high_uj=high_uj,
            method="estimated",
            source=self._source,
        )

    def model(self, *, busy_us: int, accelerators: int = 1) -> Energy:
        """Energy of one generation from its machine time; method ``modelled``, with a far narrower range.

        Args:
            busy_us: of this generation alone, other generations' shares taken out.
            accelerators: how many were busy with it.

        Raises:
            InvalidError: an argument is negative, or the energy passes 2^53 - 1.
        """
        rated_mw = self.accelerator.power_mw * accelerators
        low, middle, _ = POWER_SHARE_MILLI
        return estimate_from_power(
            busy_us=busy_us,
            low_mw=rated_mw * low // 1000,
            idle_mw=rated_mw * low // 1000,
            power_mw=rated_mw,
            utilisation_milli=(middle - low) * 1000 // (1000 - low),
            source=f"while serving: {accelerators} x {self.accelerator.name}, {self.accelerator.source}",
            method="modelled",
        )


def weight_millibits(quantization: str | None) -> int:
    """Thousandths of a bit for each weight, by the name that engines give a scheme; none is 16 bit.

    Raises:
        InvalidError: the scheme is not in the table: state the bits.
    """
    if quantization is None:
        return 16_000
    found = WEIGHT_MILLIBITS.get(quantization.lower())
    if found is None:
        raise InvalidError(
            "the table of quantizations does not have this one",
            where=quantization[:64],
            remedy="state ModelSize.weight_millibits: file size times 8,000 over parameters",
            code="unknown-model",
        )
    return found


@dataclass(frozen=True)
class _Rates:
    """Femtojoules: of an uncached input token, of an output token, of an output token for each before it."""

    prefill: int
    decode: int
    context: int


def _decode_s(model: ModelSize, active: int, flops: int, bandwidth: int, batch: int) -> Fraction:
    """Seconds of one output token: its share of a step, without reading the context."""
    if active == model.parameters:
        read = Fraction(model.parameters)
    else:  # the share of experts that nobody of the batch uses shrinks with each; fixed point keeps it small
        unused = round((1 - active / model.parameters) ** batch * _GIGA)
        read = Fraction(model.parameters * (_GIGA - unused), _GIGA)
    weights_s = read * model.weight_millibits / 8000 / bandwidth
    arithmetic_s = Fraction(2 * active * batch, flops)
    return max(weights_s, arithmetic_s) / batch


def _scaled(femtojoules: Fraction, overhead_milli: int) -> int:
    """Times the overhead, rounded outwards at the ends."""
    value = femtojoules * overhead_milli / 1000
    if overhead_milli == OVERHEAD_MILLI[0]:
        return floor(value)
    return ceil(value) if overhead_milli == OVERHEAD_MILLI[-1] else round(value)


def _cube_root(value: int) -> int:
    """Rounded down."""
    low, high = 0, 1 << (value.bit_length() // 3 + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**3 <= value else (low, middle - 1)
    return low


def _billions(count: int) -> str:
    return f"{count / _GIGA:.3g}e9"
