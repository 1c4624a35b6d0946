"""What engines that cannot run here show, and what they are asked for: shapes taken from their sources.

vLLM 0.32 (vllm/entrypoints/openai/*/protocol.py, serving.py), SGLang 0.5.23 (srt/entrypoints/openai/*,
http_server.py, managers/tokenizer_manager.py), TGI 3.3.7 (router/src/lib.rs, server.rs).
"""

from __future__ import annotations

import http.server
import json
import threading
import time
from contextlib import contextmanager

import pytest
from msgspec import UNSET

from ledger.core.errors import InvalidError
from ledger.core.records import Adapter, Deployment, Energy, Speculative, Usage, Weights
from ledger.core.statements import FactorsStatement
from ledger.emit.deployment_file import Deployments, decode_deployments, read_deployments, recorder_of
from ledger.emit.engines import sglang, tgi
from ledger.emit.engines._openai import model_name, read_answer
from ledger.emit.engines._openai_answer import Answer
from ledger.emit.engines._routes import wire_of
from ledger.emit.engines._wire import Asking, hide, with_additions
from ledger.emit.proxy.detect import Found, detect, overridden
from ledger.emit.spool import Spool

CHAT = "/v1/chat/completions"


def asked(path, engine, body, **how):
    """The request as the server gets it, and what is hidden from the client."""
    wire = wire_of(path, engine)
    more, added = wire.ask(body, Asking(engine, **how))
    return json.loads(with_additions(json.dumps(body).encode(), body, more)), added


def shown(path, engine, body, *answers, streamed=False):
    """What the answer to a request came to, and what of it the client sees."""
    wire = wire_of(path, engine)
    _, added = wire.ask(body, Asking(engine))
    answer = Answer(wire.read(body).choices)
    seen = []
    for each in answers:
        wire.feed(answer, each, streamed=streamed)
        seen.append(hide(each, added, streamed=streamed))
    return answer, seen


# --- vLLM ------------------------------------------------------------------------------------------------


def test_vllm_is_asked_for_ids_and_usage():
    body, _ = asked(CHAT, "vllm", {"messages": [], "stream": True})
    assert body == {
        "messages": [],
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    assert asked(CHAT, "vllm", {"messages": []}, ids=False)[0] == {"messages": []}
    assert asked("/v1/responses", "vllm", {"input": "Hi", "stream": True})[0] == {
        "input": "Hi",
        "stream": True,
    }
    assert asked(CHAT, "vllm", {"return_token_ids": False, "n": 1})[0] == {"return_token_ids": True, "n": 1}


def test_a_vllm_stream():
    def chunk(**choice):
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "model": "m",
            "choices": [{"index": 0, "logprobs": None, "finish_reason": None, **choice}],
        }

    first = chunk(delta={"role": "assistant", "content": ""}) | {"prompt_token_ids": [1, 2, 3]}
    tokens = chunk(delta={"content": "Hi"}, token_ids=[5])
    last = chunk(delta={"content": ""}, token_ids=[6], finish_reason="stop", stop_reason=None)
    usage = {
        "id": "chatcmpl-1",
        "model": "m",
        "choices": [],
        "usage": {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2},
    }
    answer, seen = shown(CHAT, "vllm", {"stream": True}, first, tokens, last, usage, streamed=True)
    assert answer.counts() == Usage(input_tokens=3, output_tokens=2)
    assert (answer.prompt_ids(), answer.output_ids(2), answer.finish_reason) == ([1, 2, 3], [5, 6], "stop")
    assert seen == [
        chunk(delta={"role": "assistant", "content": ""}),
        chunk(delta={"content": "Hi"}),
        chunk(delta={"content": ""}, finish_reason="stop", stop_reason=None),
        None,
    ]


# --- SGLang ----------------------------------------------------------------------------------------------


def test_sglang_is_asked_by_its_own_names():
    body, _ = asked(CHAT, "sglang", {"messages": [], "stream": True})
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert body["return_output_ids_in_sglext"] is body["return_input_ids_in_sglext"] is True
    assert "return_token_ids" not in body  # which a chat stream refuses
    assert asked("/v1/completions", "sglang", {"prompt": "a"})[0] == {"return_token_ids": True, "prompt": "a"}


def test_an_sglang_chat_stream():
    usage = {"prompt_tokens": 3, "total_tokens": 4, "completion_tokens": 1, "prompt_tokens_details": None}
    chunk = {
        "id": "1",
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}],
    }
    finish = {"id": "1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "matched_stop": 2}]}
    ids = {"id": "1", "choices": [], "model": "m", "sglext": {"input_ids": [1, 2, 3], "output_ids": [[5, 6]]}}
    end = {"id": "1", "choices": [], "model": "m", "usage": usage | {"completion_tokens": 2}}
    answer, seen = shown(
        CHAT, "sglang", {"stream": True}, chunk | {"usage": usage}, finish, ids, end, streamed=True
    )
    assert answer.counts() == Usage(input_tokens=3, output_tokens=2)
    assert (answer.prompt_ids(), answer.output_ids(2)) == ([1, 2, 3], [5, 6])
    assert seen == [chunk, finish, None, None]
    broken_off, _ = shown(CHAT, "sglang", {"stream": True}, chunk | {"usage": usage}, streamed=True)
    assert broken_off.counts() == Usage(input_tokens=3, output_tokens=1)
    kept = ids | {"sglext": {"routed_experts": "x", "output_ids": [[5]]}}
    _, seen = shown(CHAT, "sglang", {"stream": True}, kept, streamed=True)
    assert seen == [ids | {"sglext": {"routed_experts": "x"}}]


def test_an_sglang_chat_of_several_choices():
    choices = [{"index": i, "message": {"content": "x"}, "finish_reason": "stop"} for i in range(2)]
    usage = {"prompt_tokens": 3, "completion_tokens": 3, "reasoning_tokens": 1, "prompt_tokens_details": None}
    body = {"choices": choices, "usage": usage}
    extension = {"sglext": {"input_ids": [1, 2, 3], "output_ids": [[5, 6], [7]]}}
    answer, seen = shown(CHAT, "sglang", {"n": 2}, body | extension)
    assert answer.counts() == Usage(input_tokens=3, output_tokens=3, reasoning_tokens=1)
    assert answer.output_ids(3) == [5, 6, 7]
    assert seen == [body]


def meta(tokens, reason=None, **more):
    about = {"id": "r", "finish_reason": reason, "prompt_tokens": 3, "completion_tokens": tokens}
    return about | {"cached_tokens": 1, "reasoning_tokens": 0, "weight_version": "default"} | more


def test_sglangs_own_route():
    request = {"text": "Hi", "sampling_params": {"n": 1}}
    body, _ = asked("/generate", "sglang", request)
    assert body == request | {"return_prompt_token_ids": True}
    reply = {"text": "ab", "output_ids": [5, 6], "meta_info": meta(2, {"type": "length", "length": 2})}
    answer, seen = shown("/generate", "sglang", request, reply | {"prompt_token_ids": [1, 2, 3]})
    assert answer.counts() == Usage(
        input_tokens=3, output_tokens=2, cached_input_tokens=1, reasoning_tokens=0
    )
    assert (answer.output_ids(2), answer.prompt_ids(), answer.output_text()) == ([5, 6], [1, 2, 3], "ab")
    assert (answer.finish_reason, answer.request_id) == ("length", "r")
    assert seen == [reply]


@pytest.mark.parametrize("increments", [False, True])
def test_sglangs_own_stream_repeats_itself_or_not(increments):
    parts = [("a", [5], "ab", [5, 6]), ("bc", [6, 7], "abc", [5, 6, 7])][0:1]
    rows = [("a", [5]), ("b", [6, 7])] if increments else [("a", [5]), ("ab", [5, 6, 7])]
    chunks = [
        {"text": text, "output_ids": ids, "meta_info": meta(count, reason)}
        for (text, ids), count, reason in zip(
            rows, (1, 3), (None, {"type": "stop", "matched": 2}), strict=True
        )
    ]
    assert parts
    answer, _ = shown("/generate", "sglang", {"text": "Hi", "stream": True}, *chunks, streamed=True)
    assert (answer.output_text(), answer.output_ids(3)) == ("ab", [5, 6, 7])
    assert answer.counts().output_tokens == 3
    assert answer.finish_reason == "stop"


def test_sglangs_batches_are_lists():
    request = {"text": ["Hi", "Ho"], "sampling_params": {"n": 2}}
    rows = [
        {
            "text": "x",
            "output_ids": [i],
            "prompt_token_ids": [1, 2, 3],
            "meta_info": meta(1, {"type": "stop"}),
        }
        for i in range(4)
    ]
    answer, _ = shown("/generate", "sglang", request, read_answer(json.dumps(rows).encode()))
    assert answer.counts() == Usage(
        input_tokens=6, output_tokens=4, cached_input_tokens=2, reasoning_tokens=0
    )
    assert answer.prompt_ids() == [1, 2, 3, 1, 2, 3]
    assert answer.output_ids(4) == [0, 1, 2, 3]


def test_sglangs_deployment():
    info = {
        "model_path": "/models/q",
        "served_model_name": "Qwen3-8B",
        "revision": None,
        "version": "0.5.23",
        "tp_size": 2,
        "pp_size": 1,
        "quantization": "fp8",
        "attention_backend": "flashinfer",
        "speculative_algorithm": "EAGLE",
        "speculative_draft_model_path": "draft",
        "speculative_num_draft_tokens": 4,
    }
    assert sglang.deployment_of(info) == Deployment(
        model="Qwen3-8B",
        engine="sglang",
        engine_version="0.5.23",
        quantization="fp8",
        attention="flashinfer",
        speculative=Speculative(method="eagle", model="draft", tokens=4),
        tensor_parallel=2,
        pipeline_parallel=1,
    )
    assert sglang.deployment_of({"version": "1"}) is None


# --- TGI -------------------------------------------------------------------------------------------------


def token(number, text, *, special=False):
    return {"id": number, "text": text, "logprob": -0.5, "special": special}


def test_tgi_is_asked_for_details():
    assert asked("/generate", "tgi", {"inputs": "Hi"})[0] == {"inputs": "Hi", "parameters": {"details": True}}
    given = {"inputs": "Hi", "parameters": {"details": True, "seed": 1}}
    body, added = asked("/generate", "tgi", given)
    assert body == given
    assert not added
    body, _ = asked("/generate_stream", "tgi", {"inputs": "Hi", "parameters": {"seed": 1}})
    assert body["parameters"] == {"seed": 1, "details": True}


@pytest.mark.parametrize("path", ["/generate", "/"])
def test_a_tgi_answer(path):
    details = {
        "finish_reason": "eos_token",
        "generated_tokens": 2,
        "seed": None,
        "prefill": [],
        "tokens": [token(5, "Hi"), token(2, "</s>", special=True)],
    }
    reply = {"generated_text": "Hi", "details": details}
    wire = wire_of(path, "tgi")
    body = read_answer(json.dumps(reply if path == "/generate" else [reply]).encode())
    answer = Answer()
    wire.headers(answer, {b"x-prompt-tokens": b"7", b"x-generated-tokens": b"2"})
    wire.feed(answer, body)
    assert answer.counts() == Usage(input_tokens=7, output_tokens=2)
    assert (answer.output_ids(2), answer.output_text(), answer.finish_reason) == ([5, 2], "Hi", "stop")
    if path == "/generate":
        _, seen = shown(path, "tgi", {"inputs": "Hi"}, reply)
        assert seen == [{"generated_text": "Hi"}]


def test_a_tgi_stream():
    first = {"index": 1, "token": token(5, "Hi"), "generated_text": None, "details": None}
    last = {"index": 2, "token": token(2, "</s>", special=True), "generated_text": "Hi"}
    details = {"finish_reason": "stop_sequence", "generated_tokens": 2, "seed": None, "input_length": 7}
    answer, seen = shown(
        "/generate_stream", "tgi", {"inputs": "Hi"}, first, last | {"details": details}, streamed=True
    )
    assert answer.counts() == Usage(input_tokens=7, output_tokens=2)
    assert (answer.output_ids(2), answer.output_text(), answer.finish_reason) == ([5, 2], "Hi", "stop")
    assert seen == [first, last | {"details": None}]
    broken_off, _ = shown("/generate_stream", "tgi", {"inputs": "Hi"}, first, streamed=True)
    assert (broken_off.counts(), broken_off.shown_ids, broken_off.finish_reason) == (None, 1, None)


def test_a_tgi_error():
    error = {"error": "Request failed during generation", "error_type": "generation"}
    answer, _ = shown("/generate_stream", "tgi", {"inputs": "Hi"}, error, streamed=True)
    assert answer.failed
    assert not answer.has_output


def test_tgis_deployment():
    info = {
        "model_id": "bigscience/bloom",
        "model_sha": "e" * 40,
        "version": "3.3.7",
        "router": "text-generation-router",
    }
    assert tgi.deployment_of(info) == Deployment(
        model="bigscience/bloom",
        engine="tgi",
        engine_version="3.3.7",
        weights=Weights(method="hub-revision", digest="e" * 40),
    )
    assert tgi.deployment_of(info | {"model_sha": None}).weights is UNSET
    assert tgi.deployment_of({"model_id": "x"}) is None


# --- paths -----------------------------------------------------------------------------------------------


def test_an_engines_own_routes_are_read_only_where_it_is_known():
    for path in ("/generate", "/generate_stream", "/completion", "/"):
        assert wire_of(path) is None
        assert wire_of(path, "vllm") is None
    assert wire_of("/v1/completions", "llama.cpp") is wire_of("/v1/completions")
    assert wire_of("/completions", "llama.cpp") is not wire_of("/completions")


# --- what is behind --------------------------------------------------------------------------------------


@contextmanager
def telling(**paths):
    """A server that answers some paths with JSON, others with 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = paths.get(self.path.strip("/").replace("/", "_"))
            data = b"" if found is None else found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_vllm_and_its_adapters_are_found():
    rows = [
        {
            "id": "llama",
            "object": "model",
            "owned_by": "vllm",
            "root": "meta-llama/Llama-3.1-8B",
            "parent": None,
        },
        {"id": "support", "object": "model", "owned_by": "vllm", "root": "/loras/support", "parent": "llama"},
    ]
    with telling(v1_models={"object": "list", "data": rows}, version={"version": "0.32.0"}) as url:
        found = detect(url).deployments
    assert found.default == Deployment(model="llama", engine="vllm", engine_version="0.32.0")
    assert found.models == {
        "support": Deployment(
            model="llama", engine="vllm", engine_version="0.32.0", adapters=(Adapter(name="support"),)
        )
    }


def test_sglang_of_two_ages_and_tgi_are_found():
    info = {"model_path": "q", "tp_size": 1, "version": "0.4.9"}
    for name in ("server_info", "get_server_info"):
        with telling(**{name: info}) as url:
            assert detect(url).deployments.default.engine == "sglang"
    with telling(info={"model_id": "m", "router": "text-generation-router", "version": "3.3.7"}) as url:
        assert detect(url).deployments.default.engine == "tgi"


def test_where_a_model_lies_is_nobodys_business():
    """Deployments are published in the log."""
    rows = [{"id": "/srv/secret-project/llama/", "owned_by": "vllm"}]
    told = [
        {"v1_models": {"data": rows}, "version": {"version": "0.32.0"}},
        {"server_info": {"model_path": "/srv/secret-project/llama", "tp_size": 1}},
        {"info": {"model_id": "./secret-project/llama", "router": "text-generation-router"}},
    ]
    for paths in told:
        with telling(**paths) as url:
            assert detect(url).deployments.default.model == "llama"
    assert model_name("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"
    assert [model_name(each) for each in ("/", "", None, 7)] == [None] * 4


@pytest.mark.parametrize(
    "paths",
    [
        {},
        {"v1_models": {"data": [{"id": "gpt-4o", "owned_by": "system"}]}},
        {"v1_models": b"[" * 9999, "version": b"\xff", "props": [1], "info": {"model_id": 7}},
        {"info": {"model_id": "m" * 300, "router": "text-generation-router"}},
        {"v1_models": {"data": [{"id": "x" * 300, "owned_by": "vllm"}]}, "version": {"version": "1"}},
        {"server_info": {"model_path": "q", "tp_size": 1, "quantization": "not a slug!"}},
    ],
)
def test_servers_that_do_not_tell_what_they_are(paths):
    with telling(**paths) as url:
        assert detect(url) == Found(None)


def test_what_the_operator_states_goes_first():
    found = Deployments(
        Deployment(model="m", engine="vllm"),
        {"l": Deployment(model="m", engine="vllm", adapters=(Adapter("l"),))},
    )
    known = overridden(found, model="other", region="DE", version="2")
    assert known.default == Deployment(model="other", engine="vllm", region="DE", version="2")
    assert known.models["l"] == Deployment(model="m", engine="vllm", adapters=(Adapter("l"),), region="DE")
    assert overridden(None, model="m", engine="mine").default == Deployment(model="m", engine="mine")
    with pytest.raises(InvalidError, match="--model and --engine"):
        overridden(None, model="m")
    with pytest.raises(InvalidError, match="engine"):
        overridden(None, model="m", engine="not a slug!")


# --- deployment files ------------------------------------------------------------------------------------


def test_a_deployment_file_in_both_forms(tmp_path):
    text = (
        'model = "m"\nengine = "vllm"\nregion = "DE"\nweights = { method = "hub-revision", digest = "%s" }\n'
        '[models."lora"]\nadapters = [{ name = "l" }]\n[models.other]\nmodel = "o"\n' % ("e" * 40)
    )
    (tmp_path / "d.toml").write_text(text)
    known = read_deployments(tmp_path / "d.toml")
    weights = Weights(method="hub-revision", digest="e" * 40)
    assert known.default == Deployment(model="m", engine="vllm", region="DE", weights=weights)
    assert known.models["lora"] == Deployment(
        model="m", engine="vllm", region="DE", weights=weights, adapters=(Adapter(name="l"),)
    )
    assert known.models["other"] == Deployment(model="o", engine="vllm", region="DE")  # other weights
    as_json = {
        "model": "m",
        "engine": "vllm",
        "region": "DE",
        "weights": {"method": "hub-revision", "digest": "e" * 40},
        "models": {"lora": {"adapters": [{"name": "l"}]}, "other": {"model": "o"}},
    }
    assert decode_deployments(json.dumps(as_json).encode()) == known


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[",
        b"{",
        b"[]",
        b"\xff",
        b'model = "m"',
        b'{"model": "m", "engine": "not a slug!"}',
        b'{"model": "m", "engine": "e", "moddel": "x"}',
        b'{"model": "m", "engine": "e", "models": []}',
        b'{"model": "m", "engine": "e", "models": {"a": 1}}',
        b'{"model": "m", "engine": "e", "power_mw": 1.5}',
        b'{"a":' * 5000,
        b'model = "' + b"x" * (1 << 20) + b'"',
    ],
)
def test_a_deployment_file_that_is_none(data):
    with pytest.raises(InvalidError, match="is no deployment"):
        decode_deployments(data, where="d.toml")


def test_a_deployment_file_that_is_not_there(tmp_path):
    with pytest.raises(InvalidError, match="cannot be read"):
        read_deployments(tmp_path / "d.toml")


ENERGY = Energy(energy_uj=3_600_000, method="measured", source="x")


def test_factors_are_those_of_the_environment_and_else_the_worlds(tmp_path, monkeypatch):
    """The proxy and the middleware are set up without code."""
    known = Deployments(Deployment(model="m", engine="e"))
    record = {"usage": Usage(input_tokens=1, output_tokens=1), "energy": ENERGY}
    now = time.time_ns() // 1000
    for named, region in (("", "world"), ("FRA", "FRA")):
        monkeypatch.setenv("TALLYSTICK_FACTORS", named)
        spool = tmp_path / f"spool-{named}"
        with recorder_of(known, spool=spool) as recorder:
            recorder.record(**record, started_us=now, ended_us=now)
        payloads = [Spool(spool).load(seq).statement.payload for seq in Spool(spool).waiting()]
        (factors,) = [each.factors for each in payloads if isinstance(each, FactorsStatement)]
        assert factors.region == region
