"""DeepSpeed Inference for real, where it is installed: it builds from source, so the lock leaves it out."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledger.emit.engines import deepspeed as hook
from tests.engines.logged import Logged, new_recorder
from tests.engines.smollm2 import tiny_llama

deepspeed = pytest.importorskip("deepspeed")
import torch  # noqa: E402
import transformers  # noqa: E402


def test_an_inference_engine_is_recorded_as_transformers_is(tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama())
    engine = deepspeed.init_inference(model, dtype=torch.float32, replace_with_kernel_inject=False)
    own = engine.generate
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with new_recorder(tmp_path / "spool") as recorder:
        assert hook.attach(engine, recorder) is engine
        out = engine.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
        again = engine.generate(input_ids=ids[:1], max_new_tokens=6, do_sample=False, eos_token_id=None)
        with pytest.raises(NotImplementedError, match="num_beams"):
            engine.generate(ids, num_beams=2)
    hook.transformers.detach(engine)
    assert engine.generate == own
    log = Logged(tmp_path / "spool")
    assert len(log.records) == 3
    for record, row in zip(log.records, [*out.tolist(), *again.tolist()], strict=True):
        assert log.opens(record, row[:3], row[3:])
        assert log.deployment(record).engine == "deepspeed"
        assert log.deployment(record).engine_version == deepspeed.__version__
