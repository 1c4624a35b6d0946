"""The ONNX Runtime GenAI hook against the real engine, with a model that its own builder made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec import UNSET

from ledger.emit import Recorder
from ledger.emit.engines import onnxruntime_genai as hook
from ledger.emit.model_identity import weights_of
from tests.engines.logged import Logged, new_recorder
from tests.engines.smollm2 import smollm2

og = pytest.importorskip("onnxruntime_genai")

QUESTION = '[{"role": "user", "content": "What is the capital of France?"}]'


def built(precision: str) -> Path:
    """SmolLM2 as ONNX, made once and kept beside the model that it was made from."""
    source = smollm2()
    folder = source.with_name(f"smollm2-onnx-{precision}")
    if not (folder / "genai_config.json").exists():
        run = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(folder)]
        run += ["-p", precision, "-e", "cpu", "-c", str(folder.with_name("onnx-cache"))]
        done = subprocess.run(run, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
    return folder


@pytest.fixture(scope="module")
def folder() -> Path:
    return built("int4")


@pytest.fixture(scope="module")
def engine(folder):
    return og.Model(str(folder))


@pytest.fixture(scope="module")
def tokenizer(engine):
    return og.Tokenizer(engine)


@pytest.fixture
def recorder(tmp_path: Path):
    with new_recorder(tmp_path / "spool") as made:
        yield made


@pytest.fixture
def model(engine, recorder, folder):
    return hook.attach(engine, recorder, folder)


def params_of(engine, **options):
    params = og.GeneratorParams(engine)
    params.set_search_options(**options)
    return params


def read(recorder: Recorder) -> Logged:
    assert recorder.close(30)
    assert recorder.status().dropped == 0
    return Logged(Path(recorder._spool.directory))


def run(generator) -> list[list[int]]:
    """The loop of a caller; returns what ``get_next_tokens`` showed, step by step."""
    shown = []
    while not generator.is_done():
        generator.generate_next_token()
        shown.append(generator.get_next_tokens().tolist())
    return shown


def test_a_plain_answer(model, recorder, engine, tokenizer, folder) -> None:
    prompt = tokenizer.encode(tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)).tolist()
    request = hook.Request(tenant="t-1", request_id="r-1")
    generator = model.generator(params_of(engine, max_length=len(prompt) + 16, do_sample=False), request)
    generator.append_tokens(prompt)
    shown = [row[0] for row in run(generator)]
    assert "Paris" in tokenizer.decode(shown)
    log = read(recorder)
    record = log.one()
    assert [record.id] == request.record_ids
    assert record.usage.input_tokens == len(prompt)
    assert record.usage.output_tokens == len(shown) == 16
    assert record.usage.cached_input_tokens == 0
    assert record.finish_reason == "length"
    assert record.started_us < record.first_token_us < record.ended_us
    assert log.opens(record, prompt, shown, tenant="t-1")
    assert log.is_request(record, "r-1", tenant="t-1")
    deployment = log.deployment(record)
    assert deployment.engine == "onnxruntime-genai"
    assert deployment.engine_version == og.__version__
    assert deployment.quantization == "int4"
    assert deployment.weights == weights_of(folder)


def ending_with(folder: Path, copy: Path, tokens: list[int]) -> Path:
    """The same model, where other tokens end a sequence."""
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    (copy / "genai_config.json").unlink()
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = tokens
    (copy / "genai_config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize("batch", [1, 2])
def test_the_end_of_a_sequence_is_a_stop_and_counted(
    recorder, engine, tokenizer, folder, tmp_path, batch
) -> None:
    options = {"max_length": 40, "do_sample": False, "batch_size": batch}
    prompts = [tokenizer.encode(text).tolist() for text in ("one two three", "red green blue")[:batch]]
    assert len({len(each) for each in prompts}) == 1
    plain = og.Generator(engine, params_of(engine, **options))
    plain.append_tokens([token for each in prompts for token in each])
    answers = list(zip(*run(plain), strict=True))
    at = next(at for at in range(4, 30) if answers[0][at] not in answers[0][:at])
    other = ending_with(folder, tmp_path / "other-end", [2, answers[0][at]])
    same = og.Model(str(other))
    generator = hook.attach(same, recorder, other).generator(params_of(same, **options))
    generator.append_tokens([token for each in prompts for token in each])
    shown = list(zip(*run(generator), strict=True))
    log = read(recorder)
    for record, prompt, answer, seen in zip(log.records, prompts, answers, shown, strict=True):
        ends = [n + 1 for n, token in enumerate(answer) if token in (2, answers[0][at])]
        end = ends[0] if ends else len(answer)
        assert seen[:end] == answer[:end]
        assert record.finish_reason == ("stop" if ends else "length")
        assert record.usage.output_tokens == end
        assert log.opens(record, prompt, answer[:end])
    assert log.records[0].usage.output_tokens == at + 1


def test_a_second_turn_goes_on_from_the_cache(model, recorder, engine, tokenizer) -> None:
    first, second = tokenizer.encode("The sky is").tolist(), tokenizer.encode(" and the sea is").tolist()
    generator = model.generator(params_of(engine, max_length=200, do_sample=False))
    generator.append_tokens(first)
    turns = []
    for prompt in (None, second):
        if prompt is not None:
            generator.append_tokens(prompt)
        shown = []
        for _ in range(5):
            generator.generate_next_token()
            shown.append(int(generator.get_next_tokens()[0]))
        generator.finish("stop")  # the caller has enough
        turns.append(shown)
    log = read(recorder)
    one, two = log.records
    assert (one.finish_reason, two.finish_reason) == ("stop", "stop")
    assert log.opens(one, first, turns[0])
    whole = [*first, *turns[0], *second]
    assert two.usage.input_tokens == len(whole)
    assert two.usage.cached_input_tokens == len(first) + 5
    assert log.opens(two, whole, turns[1])


def test_a_batch_is_recorded_without_what_fills_it_up(model, recorder, engine, tokenizer) -> None:
    texts = ["Hello", "The sky is blue and the"]
    generator = model.generator(params_of(engine, max_length=20, do_sample=False, batch_size=2))
    generator.append_tokens(tokenizer.encode_batch(texts))
    columns = list(zip(*run(generator), strict=True))
    log = read(recorder)
    assert len(log.records) == 2
    for record, text, column in zip(log.records, texts, columns, strict=True):
        shown = list(column)
        if tokenizer.eos_token_ids[0] in shown:
            shown = shown[: shown.index(tokenizer.eos_token_ids[0]) + 1]
        prompt = tokenizer.encode(text).tolist()
        assert record.usage.input_tokens == len(prompt)
        assert record.usage.cached_input_tokens is UNSET
        assert log.opens(record, prompt, shown)


def test_beams_record_what_is_returned(model, recorder, engine, tokenizer) -> None:
    prompt = tokenizer.encode("The sky is").tolist()
    options = {"max_length": 16, "num_beams": 3, "num_return_sequences": 2}
    generator = model.generator(params_of(engine, **options))
    generator.append_tokens(prompt)
    run(generator)
    rows = [generator.get_sequence(at).tolist()[len(prompt) :] for at in range(2)]
    plain = og.Generator(engine, params_of(engine, **options))
    plain.append_tokens(prompt)
    run(plain)
    assert rows == [plain.get_sequence(at).tolist()[len(prompt) :] for at in range(2)]
    log = read(recorder)
    assert [record.usage.output_tokens for record in log.records] == [len(row) for row in rows]
    for record, row in zip(log.records, rows, strict=True):
        assert log.opens(record, prompt, row)


def test_a_caller_that_leaves_is_an_abort(model, recorder, engine, tokenizer) -> None:
    prompt = tokenizer.encode("x").tolist()

    def begin():
        generator = model.generator(params_of(engine, max_length=200, do_sample=False))
        generator.append_tokens(prompt)
        for _ in range(3):
            generator.generate_next_token()
        return generator

    with begin():
        pass
    gone = begin()
    del gone
    shown: list[int] = []
    request = hook.Request(should_stop=lambda: len(shown) >= 4)
    generator = model.generator(params_of(engine, max_length=200, do_sample=False), request)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
        shown.append(int(generator.get_next_tokens()[0]))
    log = read(recorder)
    assert [record.usage.output_tokens for record in log.records] == [3, 3, 5]
    assert {record.finish_reason for record in log.records} == {"abort"}
    assert log.opens(log.records[2], prompt, shown)


def test_nothing_generated_is_nothing_recorded(model, recorder, engine, tokenizer) -> None:
    generator = model.generator(params_of(engine, max_length=4, do_sample=False))
    with pytest.raises(Exception, match="max length"):
        generator.append_tokens(tokenizer.encode("far too long a prompt for that limit"))
    del generator
    assert read(recorder).records == []
