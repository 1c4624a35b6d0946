"""A GGUF of random weights with SmolLM2's tokenizer, for tests that count tokens and do not read them."""

from __future__ import annotations

from pathlib import Path

from tests.engines.smollm2 import MODELS, gguf

_SIZES = {
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.rope.dimension_count": 32,
    "llama.attention.key_length": 32,
    "llama.attention.value_length": 32,
    "general.file_type": 0,
}


def tiny_gguf() -> Path:
    """The file, made once: two layers, thirty times smaller in work than SmolLM2."""
    path = MODELS / "tiny-llama.gguf"
    if not path.exists():
        MODELS.mkdir(exist_ok=True)
        begun = path.with_suffix(".begun")
        _write(begun)
        begun.replace(path)
    return path


def _write(path: Path) -> None:
    import numpy as np
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    source = GGUFReader(gguf())
    writer = GGUFWriter(path, "llama")
    for name, field in source.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind, value = field.types[0], _SIZES.get(name, field.contents())
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kind, inner)
    random = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> None:
        values = np.ones(shape) if len(shape) == 1 else random.normal(0, 0.1, shape)
        writer.add_tensor(name, values.astype(np.float32))

    width, inner, heads, shared = 64, 128, 64, 32
    tensor("token_embd.weight", len(source.fields["tokenizer.ggml.tokens"].contents()), width)
    tensor("output_norm.weight", width)
    for layer in range(2):
        name = f"blk.{layer}"
        tensor(f"{name}.attn_norm.weight", width)
        tensor(f"{name}.ffn_norm.weight", width)
        tensor(f"{name}.attn_q.weight", heads, width)
        tensor(f"{name}.attn_k.weight", shared, width)
        tensor(f"{name}.attn_v.weight", shared, width)
        tensor(f"{name}.attn_output.weight", width, heads)
        tensor(f"{name}.ffn_gate.weight", inner, width)
        tensor(f"{name}.ffn_up.weight", inner, width)
        tensor(f"{name}.ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
