"""EU AI Act, Article 53(1)(a) and Annex XI, section 1: what the log can say of a general-purpose AI model.

Regulation (EU) 2024/1689. Items of the Model Documentation Form are those of the transparency chapter of the
General-Purpose AI Code of Practice (10 July 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from ledger.export.reports import figures as fig
from ledger.export.reports.deployed import deployment_table
from ledger.export.reports.document import Figure, Section
from ledger.export.reports.facts import Facts
from ledger.export.reports.inputs import Asked, Inputs
from ledger.export.reports.tables import breakdown, stated_words

__all__ = ["INPUTS", "STANDARD", "TITLE", "build"]

TITLE = "General-purpose AI model: documentation of energy and use"
STANDARD = (
    "Regulation (EU) 2024/1689 (Artificial Intelligence Act), Article 53(1)(a) and Annex XI, section 1; "
    "General-Purpose AI Code of Practice, Model Documentation Form"
)
_XI = "Annex XI, section 1, point"
_FORM = "Model Documentation Form"
_GENERAL = f"{_FORM}: general information"
_ENERGY = f"{_XI} 2(e); {_FORM}: energy consumption (during training and inference)"
_COMPUTE = f"{_XI} 2(d); {_FORM}: computational resources (during training)"
INPUTS: Mapping[str, Asked] = {
    "provider": Asked("the provider's legal name", None, _GENERAL),
    "model_name": Asked("the model's name and its versions", None, _GENERAL),
    "model_dependencies": Asked("the models that it was made from, or none", None, _GENERAL),
    "union_release": Asked("date of release on the Union market", None, _GENERAL),
    "tasks": Asked("the tasks that the model is to perform, and in which systems", None, f"{_XI} 1(a)"),
    "acceptable_use": Asked("the acceptable use policies", None, f"{_XI} 1(b)"),
    "release": Asked("date of release and methods of distribution", None, f"{_XI} 1(c)"),
    "architecture": Asked("architecture and number of parameters", None, f"{_XI} 1(d)"),
    "modality": Asked("modality and format of inputs and outputs", None, f"{_XI} 1(e)"),
    "licence": Asked("the licence", None, f"{_XI} 1(f)"),
    "technical_means": Asked("technical means needed to integrate the model", None, f"{_XI} 2(a)"),
    "design": Asked("design specifications and training process", None, f"{_XI} 2(b)"),
    "data": Asked("data for training, testing and validation", None, f"{_XI} 2(c)"),
    "training_time": Asked("training time", None, _COMPUTE),
    "training_compute_method": Asked("how the computation of training was measured", None, _COMPUTE),
    "training_energy_method": Asked("how the energy of training was measured", None, _ENERGY),
    "inference_method": Asked(
        "the task and hardware behind the benchmarked computation for inference", None, _ENERGY
    ),
    "training_compute_flop": Asked("amount of computation used for training", "FLOP", _COMPUTE),
    "training_energy_mwh": Asked("amount of energy used for training", "MWh", _ENERGY),
    "inference_compute_flop": Asked("benchmarked amount of computation used for inference", "FLOP", _ENERGY),
}
_UJ_PER_WH = 3_600_000_000
_METHODS = {
    "measured": "by counters of the hardware",
    "modelled": "by a model fed with the run's own times and hardware",
    "estimated": "from tables",
}


def build(facts: Facts, inputs: Inputs) -> tuple[Section, ...]:
    """The report's sections."""
    words = {name: asked for name, asked in INPUTS.items() if asked.unit is None}
    return (
        Section(
            title="What this report covers",
            reference="Regulation (EU) 2024/1689, Article 53(1)(a)",
            text=(
                "Annex XI asks for a model's documentation. The log fills in what it recorded: which model "
                "with which weights generated, on what, and the energy of that. The rest is the provider's.",
                "Recorded inference is that of the scope, not all inference of the model anywhere. Annex XI "
                "asks for the energy of the model; the form for the energy of training and, for inference, a "
                "benchmarked computation: recorded energy of inference answers the annex, not that item.",
            ),
            figures=(
                fig.count(facts.total(), "records", "Recorded generations", "requests"),
                fig.count(facts.total(), "input_tokens", "Input tokens", "tokens"),
                fig.count(facts.total(), "output_tokens", "Output tokens", "tokens"),
            ),
        ),
        _consumption(facts, inputs),
        Section(
            title="Computational resources",
            reference=_COMPUTE,
            figures=(
                fig.asked(inputs, "training_compute_flop", INPUTS["training_compute_flop"]),
                fig.asked(inputs, "inference_compute_flop", INPUTS["inference_compute_flop"]),
            ),
        ),
        Section(
            title="Identity of the model as deployed",
            reference=f"{_FORM}: general information (model name, model authenticity); {_XI} 2(a)",
            text=("The weights' digest shows which model it was: whoever has the weights can compute it.",),
            tables=(deployment_table(facts),),
        ),
        Section(
            title="Stated by the provider",
            reference="Annex XI, section 1, points 1 and 2",
            tables=(stated_words(inputs, words, name="stated", title="Documentation"),),
        ),
    )


def _consumption(facts: Facts, inputs: Inputs) -> Section:
    row = facts.total()
    models = [each["model"] for each in facts.rows("model")]
    by_method = {each["method"]: each for each in facts.rows("method")}
    return Section(
        title="Energy consumption of the model",
        reference=_ENERGY,
        text=(
            "Energy of the IT equipment, without the site's overhead. Known (measured) and estimated energy "
            "are told apart; ranges are those that the records state.",
        ),
        figures=(
            fig.total(row, fig.ENERGY_MWH, name="inference_energy", label="Energy of inference"),
            *(
                fig.total(
                    by_method.get(method, {"records": 0}),
                    fig.ENERGY_MWH,
                    name=f"inference_energy_{method}",
                    label=f"Energy of inference, of which {method}, {how}",
                    over=f"the {method} records of the scope",
                    why=f"the scope has no {method} record",
                )
                for method, how in _METHODS.items()
            ),
            fig.per(row, fig.ENERGY_MWH, "Wh", _UJ_PER_WH, by="tokens", name="energy_per_1k_tokens"),
            fig.per(row, fig.ENERGY_MWH, "Wh", _UJ_PER_WH, by="requests", name="energy_per_request"),
            fig.asked(inputs, "training_energy_mwh", INPUTS["training_energy_mwh"]),
            _sum(fig.sum_of([row], fig.ENERGY_MWH), inputs, len(models)),
        ),
        tables=(
            breakdown(
                facts, "model", "version", name="by_model", title="Energy by model", heading="Model",
                measures=("records", "tokens", fig.ENERGY_MWH), chart="energy",
            ),
            breakdown(
                facts, "accelerator", "quantization", name="by_hardware",
                title="Energy by accelerator and quantization", heading="Accelerator, quantization",
                measures=("records", "tokens", fig.ENERGY_MWH), chart="energy",
            ),
            breakdown(
                facts, "method", "energy_source", name="by_source", title="How the energy is known",
                heading="Method and source", measures=("records", fig.ENERGY_MWH), none="unknown",
            ),
        ),
    )  # fmt: skip


def _sum(inference: fig.Sum | None, inputs: Inputs, models: int) -> Figure:
    name, label = "energy_of_model", "Energy of the model: training and recorded inference"
    training = inputs.number("training_energy_mwh", INPUTS["training_energy_mwh"].what)
    if models > 1:
        return fig.stated(
            name, label, "MWh", None, both=True, reference=_ENERGY,
            derivation="inference_energy + inputs: training_energy_mwh",
            why=f"the scope has {models} models: choose one with --where model=...",
        )  # fmt: skip
    parts: dict[str, fig.Sum | Fraction | None] = {
        "inference_energy": inference,
        "inputs: training_energy_mwh": training,
    }
    return fig.added(name, label, "MWh", parts, places=fig.ENERGY_MWH.places, reference=_ENERGY)
