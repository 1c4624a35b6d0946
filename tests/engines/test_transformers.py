"""The transformers hook against the real library: what it records is what ``generate`` did."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec import UNSET

from ledger.core.records import Adapter, Deployment, Speculative
from ledger.emit import Recorder
from ledger.emit.engines import transformers as hook
from ledger.emit.engines._transformers_batching import watch_batching
from ledger.emit.model_identity import weights_of
from tests.engines.logged import Logged, new_recorder
from tests.engines.smollm2 import smollm2, tiny_llama, tiny_lora

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

GREEDY = {"do_sample": False}
SAMPLED = {"do_sample": True, "temperature": 5.0, "top_k": 0}


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    torch.set_num_threads(1)
    hf.utils.logging.set_verbosity_error()


@pytest.fixture(scope="module")
def tokenizer():
    return hf.AutoTokenizer.from_pretrained(smollm2(), padding_side="left")


@pytest.fixture(scope="module")
def loaded():
    """SmolLM2 itself."""
    return hf.AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32)


@pytest.fixture(scope="module")
def tiny():
    """Random weights: greedy answers repeat themselves, sampled ones end anywhere."""
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_pretrained(tiny_llama())


@pytest.fixture
def recorder(tmp_path: Path):
    with new_recorder(tmp_path / "spool") as made:
        yield made


@pytest.fixture
def model(tiny, recorder):
    yield hook.attach(tiny, recorder)
    hook.detach(tiny)


@pytest.fixture
def real(loaded, recorder):
    yield hook.attach(loaded, recorder)
    hook.detach(loaded)


def read(recorder: Recorder) -> Logged:
    """Everything that was recorded."""
    assert recorder.close(30)
    assert recorder.status().dropped == 0
    return Logged(Path(recorder._spool.directory))


def chat(tokenizer, text: str) -> str:
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )


def test_a_plain_answer(real, recorder, tokenizer) -> None:
    inputs = tokenizer(chat(tokenizer, "What is the capital of France?"), return_tensors="pt")
    request = hook.Request(tenant="customer-1", request_id="r-1")
    before = time.time_ns() // 1000
    out = real.generate(**inputs, **GREEDY, max_new_tokens=48, tallystick=request)
    after = time.time_ns() // 1000
    answer = out[0, inputs.input_ids.shape[1] :].tolist()
    assert "Paris" in tokenizer.decode(answer)
    log = read(recorder)
    record = log.one()
    assert [record.id] == request.record_ids
    assert record.usage.input_tokens == inputs.input_ids.shape[1]
    assert record.usage.output_tokens == len(answer)
    assert record.finish_reason == "stop"
    assert answer[-1] == tokenizer.eos_token_id
    assert before <= record.started_us < record.first_token_us < record.ended_us <= after
    assert log.opens(record, inputs.input_ids[0].tolist(), answer, tenant="customer-1")
    assert log.is_request(record, "r-1", tenant="customer-1")


def test_the_answer_is_the_same_as_without_the_hook(tiny, recorder, tokenizer) -> None:
    inputs = tokenizer(["one", "two three"], return_tensors="pt", padding=True)
    torch.manual_seed(1)
    expected = tiny.generate(**inputs, **SAMPLED, max_new_tokens=40)
    hook.attach(tiny, recorder)
    torch.manual_seed(1)
    assert tiny.generate(**inputs, **SAMPLED, max_new_tokens=40).equal(expected)
    hook.detach(tiny)
    assert "generate" not in vars(tiny)


def test_a_batch_left_padded_with_sequences_that_end_apart(model, recorder, tokenizer) -> None:
    prompts = ["a", "a longer prompt than that", "and one more"]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    assert (inputs.attention_mask == 0).any()
    requests = [hook.Request(request_id=f"r-{at}") for at in range(3)]
    # Half of all tokens end a sequence, so that they end apart; the pad token is one of them.
    eos = list(range(0, 49152, 2))
    torch.manual_seed(3)
    out = model.generate(
        **inputs, **SAMPLED, max_new_tokens=30, eos_token_id=eos, pad_token_id=2, tallystick=requests
    )
    width = inputs.input_ids.shape[1]
    log = read(recorder)
    by_id = log.by_id()
    lengths = set()
    for at, request in enumerate(requests):
        record = by_id[request.record_ids[0]]
        row = out[at, width:].tolist()
        end = next(n for n, token in enumerate(row) if token % 2 == 0) + 1
        lengths.add(end)
        assert set(row[end:]) <= {2}  # filled up
        assert record.usage.output_tokens == end
        assert record.finish_reason == "stop"
        prompt = tokenizer(prompts[at]).input_ids
        assert record.usage.input_tokens == len(prompt)
        assert log.opens(record, prompt, row[:end])
        assert log.is_request(record, f"r-{at}")
        assert record.first_token_us <= record.ended_us
    assert len(lengths) > 1
    ends = sorted((record.usage.output_tokens, record.ended_us) for record in by_id.values())
    assert [end for _, end in ends] == sorted(end for _, end in ends)  # who ends first has ended first


def test_padding_without_a_mask_is_found_as_transformers_finds_it(model, recorder, tokenizer) -> None:
    ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    model.generate(ids, **GREEDY, max_new_tokens=3, pad_token_id=0, eos_token_id=9)
    log = read(recorder)
    assert [record.usage.input_tokens for record in log.records] == [3, 5]
    assert log.opens(log.records[0], [5, 6, 7], out_of(model, ids, 0, pad_token_id=0, eos_token_id=9))


def out_of(model, ids, row: int, **more) -> list[int]:
    hook.detach(model)
    return model.generate(ids, **GREEDY, max_new_tokens=3, **more)[row, ids.shape[1] :].tolist()


def test_a_length_limit_is_the_finish_reason(model, recorder, tokenizer) -> None:
    inputs = tokenizer("x y z", return_tensors="pt")
    model.generate(**inputs, **GREEDY, max_new_tokens=7, eos_token_id=None)
    model.generate(**inputs, **GREEDY, max_length=inputs.input_ids.shape[1] + 4, eos_token_id=None)
    model.generate(**inputs, **GREEDY, eos_token_id=None)  # transformers' own default: 20
    config = hf.GenerationConfig(max_new_tokens=5, eos_token_id=None, return_dict_in_generate=True)
    model.generate(**inputs, generation_config=config)
    log = read(recorder)
    assert [record.usage.output_tokens for record in log.records] == [7, 4, 20, 5]
    assert {record.finish_reason for record in log.records} == {"length"}


def test_several_sequences_of_one_prompt(model, recorder, tokenizer) -> None:
    inputs = tokenizer(["p", "q r"], return_tensors="pt", padding=True)
    requests = [hook.Request(), hook.Request()]
    out = model.generate(
        **inputs, **SAMPLED, num_return_sequences=3, max_new_tokens=6, eos_token_id=None, tallystick=requests
    )
    log = read(recorder)
    by_id = log.by_id()
    assert len(by_id) == 6
    for at, record_id in enumerate([*requests[0].record_ids, *requests[1].record_ids]):
        prompt = tokenizer(["p", "q r"][at // 3]).input_ids
        assert log.opens(by_id[record_id], prompt, out[at, inputs.input_ids.shape[1] :].tolist())


def test_beams_record_what_is_returned(model, recorder, tokenizer) -> None:
    inputs = tokenizer(["p", "q r"], return_tensors="pt", padding=True)
    out = model.generate(**inputs, num_beams=4, num_return_sequences=2, max_new_tokens=8, **GREEDY)
    log = read(recorder)
    assert len(log.records) == 4
    for record, row in zip(log.records, out[:, inputs.input_ids.shape[1] :].tolist(), strict=True):
        tokens = row[: row.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in row else row
        assert record.usage.output_tokens == len(tokens)
        prompt = tokenizer(["p", "q r"][log.records.index(record) // 2]).input_ids
        assert log.opens(record, prompt, tokens)


def test_a_stream_is_recorded_as_it_was_streamed(real, recorder, tokenizer) -> None:
    inputs = tokenizer(chat(tokenizer, "Count to five."), return_tensors="pt")
    streamer = hf.TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    kwargs = {**inputs, **GREEDY, "max_new_tokens": 24, "streamer": streamer}
    thread = threading.Thread(target=real.generate, kwargs=kwargs)
    thread.start()
    text = "".join(streamer)
    thread.join()
    hook.detach(real)
    expected = real.generate(**inputs, **GREEDY, max_new_tokens=24)[0, inputs.input_ids.shape[1] :].tolist()
    assert text == tokenizer.decode(expected, skip_special_tokens=True)
    log = read(recorder)
    assert log.opens(log.one(), inputs.input_ids[0].tolist(), expected)


def test_a_client_that_is_gone_ends_the_generation_as_an_abort(model, recorder, tokenizer) -> None:
    inputs = tokenizer("x", return_tensors="pt")
    seen: list[int] = []
    request = hook.Request(should_stop=lambda: seen.append(1) or len(seen) >= 5)
    out = model.generate(**inputs, **GREEDY, max_new_tokens=500, eos_token_id=None, tallystick=request)
    log = read(recorder)
    record = log.one()
    assert record.finish_reason == "abort"
    assert record.usage.output_tokens == 5
    assert log.opens(record, inputs.input_ids[0].tolist(), out[0, 1:].tolist())


class Breaks(hf.generation.BaseStreamer):
    """A client that breaks off: the prompt, then some tokens, then an error."""

    def __init__(self, after: int, error: BaseException) -> None:
        self.left, self.error, self.tokens = after + 1, error, []

    def put(self, value):
        if self.left == 0:
            raise self.error
        self.left -= 1
        self.tokens.append(value.tolist())

    def end(self):
        pass


@pytest.mark.parametrize(
    ("error", "reason"), [(BrokenPipeError(), "abort"), (RuntimeError("out of memory"), "error")]
)
def test_a_generation_left_by_an_exception_has_the_tokens_made_so_far(
    model, recorder, tokenizer, error, reason
) -> None:
    inputs = tokenizer("x", return_tensors="pt")
    streamer = Breaks(6, error)
    with pytest.raises(type(error)):
        model.generate(**inputs, **GREEDY, max_new_tokens=50, eos_token_id=None, streamer=streamer)
    log = read(recorder)
    record = log.one()
    assert record.finish_reason == reason
    shown = [token for each in streamer.tokens[1:] for token in each]
    assert record.usage.output_tokens == len(shown) + 1 == 7  # made, and not shown
    hook.detach(model)
    expected = model.generate(**inputs, **GREEDY, max_new_tokens=7, eos_token_id=None)[0, 1:].tolist()
    assert expected[:6] == shown
    assert log.opens(record, inputs.input_ids[0].tolist(), expected)


def test_what_is_refused_is_not_recorded(model, recorder, tokenizer) -> None:
    with pytest.raises(ValueError, match="not used by the model"):
        model.generate(**tokenizer("x", return_tensors="pt"), max_new_tokens=3, nonsense=1)
    with pytest.raises(BrokenPipeError):
        model.generate(**tokenizer("x", return_tensors="pt"), streamer=Breaks(-1, BrokenPipeError()))
    assert read(recorder).records == []


def test_own_criteria_and_stop_strings_end_a_sequence_where_they_say(model, recorder, tokenizer) -> None:
    inputs = tokenizer(["a b c", "d"], return_tensors="pt", padding=True)
    width = inputs.input_ids.shape[1]

    class AfterThree(hf.StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([input_ids.shape[1] - width >= 3, False])

    eos = tokenizer.eos_token_id
    out = model.generate(
        **inputs,
        **GREEDY,
        max_new_tokens=6,
        pad_token_id=eos,
        eos_token_id=eos,
        stopping_criteria=[AfterThree()],
    )
    assert out[0, width + 3 :].tolist() == [eos] * 3
    word = tokenizer.decode(out[1, width : width + 2])
    model.generate(
        **inputs, **GREEDY, max_new_tokens=6, pad_token_id=eos, stop_strings=[word], tokenizer=tokenizer
    )
    log = read(recorder)
    assert [record.usage.output_tokens for record in log.records[:2]] == [3, 6]
    assert [record.finish_reason for record in log.records[:2]] == ["stop", "length"]
    assert log.opens(log.records[0], tokenizer("a b c").input_ids, out[0, width : width + 3].tolist())
    assert log.records[3].usage.output_tokens == 2
    assert log.records[3].finish_reason == "stop"


def test_embeddings_have_a_length_and_no_commitment(model, recorder, tokenizer) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    embeds = model.get_input_embeddings()(ids)
    out = model.generate(inputs_embeds=embeds, **GREEDY, max_new_tokens=4, eos_token_id=None)
    both = model.generate(ids, inputs_embeds=embeds, **GREEDY, max_new_tokens=4, eos_token_id=None)
    log = read(recorder)
    assert out.shape[1] == 4
    assert both.shape[1] == 8
    for record in log.records:
        assert record.usage.input_tokens == 4
        assert record.usage.output_tokens == 4
        assert log.opens(record, None, out[0].tolist())


def test_a_cache_that_is_passed_counts_as_cached(model, recorder) -> None:
    first = torch.tensor([[5, 6, 7, 8]])
    cache = hf.DynamicCache(config=model.config)
    out = model.generate(first, past_key_values=cache, **GREEDY, max_new_tokens=3, eos_token_id=None)
    longer = torch.cat([out, torch.tensor([[9, 10]])], dim=1)
    model.generate(longer, past_key_values=cache, **GREEDY, max_new_tokens=3, eos_token_id=None)
    log = read(recorder)
    assert [record.usage.cached_input_tokens for record in log.records] == [0, 6]
    assert [record.usage.input_tokens for record in log.records] == [4, 9]


def test_assisted_generation_counts_what_was_accepted(model, recorder, tokenizer) -> None:
    prompt = tokenizer("one two three one two three one two three one two", return_tensors="pt")
    steps = 0
    forward = type(model).forward

    def counted(*args, **kwargs):
        nonlocal steps
        steps += 1
        return forward(model, *args, **kwargs)

    model.forward = counted
    try:
        out = model.generate(
            **prompt, **GREEDY, max_new_tokens=32, eos_token_id=None, prompt_lookup_num_tokens=4
        )
    finally:
        del model.forward
    log = read(recorder)
    record = log.one()
    tokens = out[0, prompt.input_ids.shape[1] :].tolist()
    assert log.opens(record, prompt.input_ids[0].tolist(), tokens)
    assert record.usage.accepted_tokens == len(tokens) - steps
    assert record.usage.accepted_tokens > 0
    assert record.usage.drafted_tokens is UNSET
    assert log.deployment(record).speculative == Speculative(method="prompt_lookup", tokens=4)


def test_an_assistant_model_is_named(model, recorder, tokenizer) -> None:
    assistant = hf.AutoModelForCausalLM.from_pretrained(tiny_llama())
    prompt = tokenizer("a b c", return_tensors="pt")
    model.generate(**prompt, **GREEDY, max_new_tokens=16, eos_token_id=None, assistant_model=assistant)
    model.generate(**prompt, **GREEDY, max_new_tokens=4, eos_token_id=None)
    log = read(recorder)
    assisted, plain = log.records
    assert assisted.usage.output_tokens == 16
    assert assisted.usage.accepted_tokens >= 8  # it is the same model
    assert log.deployment(assisted).speculative.method == "draft_model"
    assert log.deployment(assisted).speculative.model == "tiny-llama"
    assert log.deployment(plain).speculative is UNSET
    assert plain.usage.accepted_tokens is UNSET


def test_an_encoder_decoder_answers_without_its_start_token(recorder) -> None:
    torch.manual_seed(0)
    config = hf.T5Config(
        d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=100, decoder_start_token_id=0
    )
    model = hook.attach(hf.T5ForConditionalGeneration(config).eval(), recorder)
    ids = torch.tensor([[11, 12, 13, 1], [14, 1, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    out = model.generate(ids, attention_mask=mask, **GREEDY, max_new_tokens=5, eos_token_id=None)
    model.generate(
        ids[:1], decoder_input_ids=torch.tensor([[0, 7]]), **GREEDY, max_new_tokens=5, eos_token_id=None
    )
    log = read(recorder)
    assert [record.usage.input_tokens for record in log.records] == [4, 2, 4]
    assert log.opens(log.records[0], [11, 12, 13, 1], out[0, 1:].tolist())
    assert log.opens(log.records[1], [14, 1], out[1, 1:].tolist())
    assert [record.usage.output_tokens for record in log.records] == [5, 5, 5]


def test_a_pipeline_is_recorded(loaded, recorder, tokenizer) -> None:
    pipe = hf.pipeline("text-generation", model=loaded, tokenizer=tokenizer)
    hook.attach(pipe, recorder)
    request = hook.Request(tenant="t-1")
    try:
        single = pipe("The sky is", max_new_tokens=6, do_sample=False, tallystick=request)
        batch = pipe(["a b", "c d e f"], batch_size=2, max_new_tokens=4, do_sample=False)
    finally:
        hook.detach(pipe)
    log = read(recorder)
    assert len(log.records) == 3
    assert len(batch) == 2
    text = single[0]["generated_text"]
    record = log.by_id()[request.record_ids[0]]
    prompt = tokenizer("The sky is").input_ids
    answer = loaded.generate(torch.tensor([prompt]), **GREEDY, max_new_tokens=6)[0, len(prompt) :].tolist()
    assert text == "The sky is" + tokenizer.decode(answer)
    assert log.opens(record, prompt, answer, tenant="t-1")
    assert [each.usage.input_tokens for each in log.records[1:]] == [2, 4]


def test_threads_overlap_and_each_has_its_own_record(model, recorder) -> None:
    outs: dict[int, list[int]] = {}
    requests = {at: hook.Request() for at in range(16)}

    def run(at: int) -> None:
        ids = torch.tensor([[at + 10] * (at + 1)])
        out = model.generate(ids, **GREEDY, max_new_tokens=5 + at, eos_token_id=None, tallystick=requests[at])
        outs[at] = out[0, at + 1 :].tolist()

    threads = [threading.Thread(target=run, args=(at,)) for at in requests]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    log = read(recorder)
    by_id = log.by_id()
    assert len(by_id) == 16
    for at, request in requests.items():
        assert log.opens(by_id[request.record_ids[0]], [at + 10] * (at + 1), outs[at])


def test_the_deployment_says_what_the_model_is(model, recorder) -> None:
    model.generate(torch.tensor([[1, 2]]), max_new_tokens=2)
    log = read(recorder)
    deployment = log.deployment(log.one())
    assert deployment.model == "tiny-llama"
    assert deployment.engine == "transformers"
    assert deployment.engine_version == hf.__version__
    assert deployment.weights == weights_of(tiny_llama())
    assert deployment.quantization == "float32"
    assert deployment.attention == "sdpa"
    assert deployment.power_mw > 0


def test_adapters_are_named_as_they_are_switched(recorder) -> None:
    peft = pytest.importorskip("peft")
    base = hf.AutoModelForCausalLM.from_pretrained(tiny_llama())
    tuned = peft.PeftModel.from_pretrained(base, tiny_lora(), adapter_name="tuned")
    hook.attach(tuned, recorder, deployment=hook.deployment_of(tuned, adapters={"tuned": tiny_lora()}))
    ids = torch.tensor([[11, 12, 13]])
    kwargs = {"input_ids": ids, **GREEDY, "max_new_tokens": 4, "eos_token_id": None}
    out = tuned.generate(**kwargs)
    with tuned.disable_adapter():
        plain = tuned.generate(**kwargs)
    log = read(recorder)
    first, second = log.records
    assert log.deployment(first).adapters == (Adapter(name="tuned", weights=weights_of(tiny_lora())),)
    assert log.deployment(second).adapters is UNSET
    assert log.deployment(first).weights == log.deployment(second).weights == weights_of(tiny_llama())
    assert log.opens(first, ids[0].tolist(), out[0, 3:].tolist())
    assert log.opens(second, ids[0].tolist(), plain[0, 3:].tolist())


def test_quantization_is_named_by_scheme_and_bits() -> None:
    from ledger.emit.engines._transformers_deployment import _quantization

    class Config:
        quantization_config = None

    for scheme, name in (
        (hf.BitsAndBytesConfig(load_in_8bit=True), "bitsandbytes-int8"),
        (hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), "bitsandbytes-nf4"),
        (hf.GPTQConfig(bits=4), "gptq-int4"),
        (hf.AwqConfig(bits=4), "awq-int4"),
        ({"quant_method": "fp8"}, "fp8"),
    ):
        Config.quantization_config = scheme
        assert _quantization(Config, None) == name


def small_cache():
    """Else the cache takes nine tenths of the machine's memory."""
    return hf.ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=64)


def test_continuous_batching_is_recorded(model, recorder, tokenizer) -> None:
    prompts = [tokenizer(text).input_ids for text in ("a b c", "d", "e f g h i j")]
    config = hf.GenerationConfig(max_new_tokens=9, do_sample=False, eos_token_id=-1)
    outputs = model.generate_batch(
        prompts, generation_config=config, continuous_batching_config=small_cache()
    )
    log = read(recorder)
    assert len(log.records) == len(outputs) == 3
    for at, (name, output) in enumerate(outputs.items()):
        assert output.timestamps is None  # as without the hook
        record = next(each for each in log.records if log.is_request(each, name))
        assert record.usage.output_tokens == len(output.generated_tokens) == 9
        assert record.finish_reason == "length"
        assert record.started_us < record.first_token_us < record.ended_us
        assert log.opens(record, prompts[at], output.generated_tokens)


def test_a_cancelled_request_of_a_batch_is_an_abort(model, recorder) -> None:
    config = hf.GenerationConfig(max_new_tokens=1000, do_sample=False, eos_token_id=-1)
    batching = model.continuous_batching_context_manager(config, continuous_batching_config=small_cache())
    with batching as manager:
        name = manager.add_request([1, 2, 3], streaming=True)
        shown = 0
        for output in manager.request_id_iter(name):
            shown = len(output.generated_tokens)
            if shown >= 5:
                manager.cancel_request(name)
                break
        # Is finished before the manager stops.
        other = manager.add_request([4], max_new_tokens=5)
    log = read(recorder)
    reasons = {each.finish_reason: each for each in log.records}
    assert len(log.records) == 2
    assert log.is_request(reasons["abort"], name)
    assert shown <= reasons["abort"].usage.output_tokens < 1000
    assert log.is_request(reasons["length"], other)
    assert reasons["length"].usage.output_tokens == 5


def test_a_request_that_starts_anew_for_lack_of_memory_is_recorded_whole(recorder) -> None:
    """transformers gives it another state under its id, with the tokens so far in the prompt."""
    requests = pytest.importorskip("transformers.generation.continuous_batching.requests")
    scheduler = SimpleNamespace(active_requests={}, waiting_requests={})
    manager = SimpleNamespace(
        input_queue=SimpleNamespace(put=lambda state: None),
        output_router=SimpleNamespace(deliver=lambda output: None, deliver_batch=lambda outputs: None),
        cancel_request=lambda name: None,
        stop=lambda: None,
        batch_processor=SimpleNamespace(scheduler=scheduler),
    )
    deployment = Deployment(model="m", engine="transformers")
    watch_batching(lambda: manager, recorder, lambda: deployment)()
    anew = {}
    for name in ("cancelled", "finished"):
        state = requests.RequestState(
            request_id=name, initial_tokens=[1, 2, 3], max_new_tokens=9, eos_token_id=13
        )
        manager.input_queue.put(state)
        state._status = requests.RequestStatus.DECODING
        state.update_and_check_completion(11, None)
        state.update_and_check_completion(12, None)
        anew[name] = scheduler.active_requests[name] = state.create_equivalent_initial_request()
        anew[name]._status = requests.RequestStatus.DECODING
    time.sleep(0.05)
    for state in anew.values():
        state.update_and_check_completion(13, None)
    manager.cancel_request("cancelled")
    manager.output_router.deliver(anew["finished"].to_generation_output())
    log = read(recorder)
    assert len(log.records) == 2
    for name, reason in (("cancelled", "abort"), ("finished", "stop")):
        record = next(each for each in log.records if log.is_request(each, name))
        assert record.finish_reason == reason
        assert (record.usage.input_tokens, record.usage.output_tokens) == (3, 3)
        assert log.opens(record, [1, 2, 3], [11, 12, 13])
        assert record.ended_us - record.first_token_us >= 50_000
