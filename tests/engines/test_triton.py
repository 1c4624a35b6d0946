"""The Triton hook with the real ``tritonclient``, against a server that speaks as the backends do.

The server answers KServe v2 over HTTP and gRPC. Its outputs have the names, types and shapes of the vLLM
backend (``text_output``, ``num_input_tokens``, ...) and of TensorRT-LLM's ``tensorrt_llm`` model
(``output_ids``, ``sequence_length``).
"""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from msgspec import UNSET

from ledger.core.records import Deployment
from ledger.emit.engines import triton as hook
from tests.engines.logged import Logged, new_recorder

pytest.importorskip("tritonclient.http")
import grpc
import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor

DEPLOYMENT = Deployment(model="m", engine="triton")
METADATA = {
    "vllm": [
        "text_input",
        "stream",
        "return_finish_reason",
        "return_num_input_tokens",
        "return_num_output_tokens",
    ],
    "llmapi": ["text_input", "streaming", "return_finish_reason"],
    "tensorrt_llm": ["input_ids", "input_lengths", "request_output_len", "return_num_output_tokens"],
    "resnet": ["image"],
}
METADATA["late"] = METADATA["vllm"]
ASKED_FOR: list[str] = []
"""Models whose metadata was asked for over HTTP."""


class Http(BaseHTTPRequestHandler):
    """``GET /v2/models/M`` and ``POST /v2/models/M/infer``."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        ASKED_FOR.append(name)
        if ASKED_FOR == ["late"]:
            self.answer(503, {"error": "still loading"})
            return
        inputs = [{"name": each, "datatype": "BYTES", "shape": [1]} for each in METADATA[name]]
        self.answer(
            200, {"name": name, "versions": ["1"], "platform": "python", "inputs": inputs, "outputs": []}
        )

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = int(self.headers.get("Inference-Header-Content-Length", len(body)))
        request, rest = json.loads(body[:head]), body[head:]
        inputs = {}
        for each in request["inputs"]:
            size = each.get("parameters", {}).get("binary_data_size")
            if size is None:
                inputs[each["name"]] = each["data"]
                continue
            raw, rest = rest[:size], rest[size:]
            if each["datatype"] == "BYTES":
                inputs[each["name"]] = [value.decode() for value in deserialize_bytes_tensor(raw)]
            else:
                kind = {"BOOL": bool, "INT32": np.int32, "FP32": np.float32}[each["datatype"]]
                inputs[each["name"]] = np.frombuffer(raw, kind).tolist()
        model = self.path.split("/")[3]
        if inputs.get("text_input") == ["refuse"]:
            self.answer(400, {"error": "refused"})
            return
        outputs = []

        def add(name, datatype, shape, data):
            outputs.append({"name": name, "datatype": datatype, "shape": shape, "data": data})

        if model == "tensorrt_llm":
            ids = [*inputs["input_ids"], 71, 72, 73, 0, 0]
            add("output_ids", "INT32", [1, 1, len(ids)], ids)
            add("sequence_length", "INT32", [1, 1], [len(ids) - 2])
        elif model == "resnet":
            add("classes", "FP32", [1], [0.5])
        else:
            prompts = inputs["text_input"]
            add("text_output", "BYTES", [len(prompts)], [f"{prompt} and more" for prompt in prompts])
            if inputs.get("return_finish_reason"):
                add("finish_reason", "BYTES", [len(prompts)], ["length"] * len(prompts))
            if inputs.get("return_num_input_tokens"):
                add("num_input_tokens", "UINT32", [1], [len(prompts[0].split())])
            if inputs.get("return_num_output_tokens"):
                add("num_output_tokens", "UINT32", [len(prompts)], [2] * len(prompts))
        self.answer(200, {"model_name": model, "model_version": "1", "outputs": outputs})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Grpc(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A decoupled vLLM model: three pieces for each request, then an empty last one."""

    def ModelMetadata(self, request, context):
        response = service_pb2.ModelMetadataResponse(name=request.name)
        for each in METADATA[request.name]:
            response.inputs.add(name=each, datatype="BYTES", shape=[1])
        return response

    def ModelInfer(self, request, context):
        names = [each.name for each in request.inputs]
        prompt = deserialize_bytes_tensor(request.raw_input_contents[names.index("text_input")])[0].decode()
        if prompt == "refuse":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused")
        response = service_pb2.ModelInferResponse(id=request.id, model_name=request.model_name)
        self.add(response, "text_output", "BYTES", (9).to_bytes(4, "little") + b" and more")
        self.add(response, "num_input_tokens", "UINT32", np.uint32(len(prompt.split())).tobytes())
        self.add(response, "num_output_tokens", "UINT32", np.uint32(2).tobytes())
        return response

    def ModelStreamInfer(self, requests, context):
        for request in requests:
            names = [each.name for each in request.inputs]
            prompt = deserialize_bytes_tensor(request.raw_input_contents[names.index("text_input")])[
                0
            ].decode()
            pieces = [" and", " so", " on"]
            for at, piece in enumerate(pieces[: 2 if prompt == "hang" else 3]):
                response = service_pb2.ModelStreamInferResponse()
                inner = response.infer_response
                inner.id, inner.model_name = request.id, request.model_name
                self.add(inner, "text_output", "BYTES", len(piece).to_bytes(4, "little") + piece.encode())
                if "return_finish_reason" in names:
                    reason = b"stop" if at == 2 else b"None"
                    self.add(inner, "finish_reason", "BYTES", len(reason).to_bytes(4, "little") + reason)
                if "return_num_input_tokens" in names:
                    self.add(inner, "num_input_tokens", "UINT32", np.uint32(len(prompt.split())).tobytes())
                if "return_num_output_tokens" in names:
                    self.add(inner, "num_output_tokens", "UINT32", np.uint32(1).tobytes())
                yield response
            if prompt != "hang":
                last = service_pb2.ModelStreamInferResponse()
                last.infer_response.id = request.id
                last.infer_response.parameters["triton_final_response"].bool_param = True
                yield last

    @staticmethod
    def add(response, name, datatype, raw):
        response.outputs.add(name=name, datatype=datatype, shape=[1])
        response.raw_output_contents.append(raw)


@pytest.fixture(scope="module")
def http_address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Http)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def grpc_address() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Grpc(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def recorder(tmp_path: Path):
    with new_recorder(tmp_path / "spool") as made:
        yield made


def read(recorder, *, dropped: int = 0) -> Logged:
    assert recorder.close(30)
    assert recorder.status().dropped == dropped
    return Logged(Path(recorder._spool.directory))


def text_input(module, texts, *, batched=False):
    shape = [len(texts), 1] if batched else [len(texts)]
    made = module.InferInput("text_input", shape, "BYTES")
    made.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object).reshape(shape))
    return made


def test_counts_are_asked_for_where_the_model_tells_them(http_address, recorder) -> None:
    client = hook.attach(over_http.InferenceServerClient(http_address), recorder, deployment=DEPLOYMENT)
    request = hook.Request(tenant="t-1", request_id="r-1")
    result = client.infer("vllm", [text_input(over_http, ["one two"])], tallystick=request)
    assert result.as_numpy("text_output")[0] == "one two and more"
    with pytest.raises(InferenceServerException, match="refused"):
        client.infer("vllm", [text_input(over_http, ["refuse"])])
    log = read(recorder)
    record = log.one()
    assert [record.id] == request.record_ids
    assert (record.usage.input_tokens, record.usage.output_tokens) == (2, 2)
    assert record.finish_reason == "length"
    assert record.input.of == record.output.of == "text"
    assert log.opens_text(record, "one two", " and more", tenant="t-1")
    assert log.is_request(record, "r-1", tenant="t-1")


def test_a_batch_is_a_record_for_each_row(http_address, recorder) -> None:
    client = hook.attach(over_http.InferenceServerClient(http_address), recorder, deployment=DEPLOYMENT)
    client.infer("vllm", [text_input(over_http, ["a b", "c d"], batched=True)])
    log = read(recorder)
    assert len(log.records) == 2
    for record, text in zip(log.records, ["a b", "c d"], strict=True):
        assert log.opens_text(record, text, " and more")


def test_token_ids_are_committed_to_where_they_are_visible(http_address, recorder) -> None:
    client = hook.attach(over_http.InferenceServerClient(http_address), recorder, deployment=DEPLOYMENT)
    ids = over_http.InferInput("input_ids", [1, 4], "INT32")
    ids.set_data_from_numpy(np.array([[5, 6, 7, 8]], dtype=np.int32))
    lengths = over_http.InferInput("input_lengths", [1, 1], "INT32")
    lengths.set_data_from_numpy(np.array([[4]], dtype=np.int32))
    client.infer("tensorrt_llm", [ids, lengths])
    log = read(recorder)
    record = log.one()
    assert (record.usage.input_tokens, record.usage.output_tokens) == (4, 3)
    assert log.opens(record, [5, 6, 7, 8], [71, 72, 73])


def test_a_model_without_counts_needs_a_tokenizer(http_address, recorder, caplog) -> None:
    client = hook.attach(over_http.InferenceServerClient(http_address), recorder, deployment=DEPLOYMENT)
    client.infer("llmapi", [text_input(over_http, ["a b c"])])
    assert "count_tokens" in caplog.text
    hook.attach(client, recorder, deployment=DEPLOYMENT, count_tokens=lambda text: len(text.split()))
    client.infer("llmapi", [text_input(over_http, ["a b c"])])
    image = over_http.InferInput("image", [1], "FP32")
    image.set_data_from_numpy(np.zeros(1, dtype=np.float32))
    assert client.infer("resnet", [image]).as_numpy("classes")[0] == 0.5  # no language model
    log = read(recorder, dropped=1)  # the first, whose tokens nobody told
    record = log.one()
    assert (record.usage.input_tokens, record.usage.output_tokens) == (3, 2)


def test_streams_are_added_up_and_left_ones_are_aborts(grpc_address, recorder) -> None:
    client = hook.attach(over_grpc.InferenceServerClient(grpc_address), recorder, deployment=DEPLOYMENT)
    got: list[object] = []
    ended = threading.Event()

    def callback(result, error):
        assert error is None or "cancel" in str(error).lower()
        got.append(result)
        if len(got) == 6:  # three pieces and the last of one, two of the other
            ended.set()

    client.start_stream(callback)
    whole, left = hook.Request(), hook.Request()
    client.async_stream_infer(
        "vllm", [text_input(over_grpc, ["one two"])], enable_empty_final_response=True, tallystick=whole
    )
    client.async_stream_infer("vllm", [text_input(over_grpc, ["hang"])], tallystick=left)
    assert ended.wait(20)
    client.stop_stream(cancel_requests=True)
    log = read(recorder)
    by_id = log.by_id()
    assert len(by_id) == 2
    first, second = by_id[whole.record_ids[0]], by_id[left.record_ids[0]]
    assert (first.usage.input_tokens, first.usage.output_tokens) == (2, 3)
    assert first.finish_reason == "stop"
    assert first.started_us <= first.first_token_us <= first.ended_us
    assert log.opens_text(first, "one two", " and so on")
    assert (second.usage.input_tokens, second.usage.output_tokens) == (1, 2)
    assert second.finish_reason == "abort"
    assert log.opens_text(second, "hang", " and so")


def test_a_finish_reason_ends_a_stream(grpc_address, recorder) -> None:
    """Without an empty final response, which clients must ask for."""
    client = hook.attach(over_grpc.InferenceServerClient(grpc_address), recorder, deployment=DEPLOYMENT)
    got: list[object] = []
    ended = threading.Event()

    def callback(result, error):
        got.append(result)
        if len(got) == 3:
            ended.set()

    client.start_stream(callback)
    client.async_stream_infer("vllm", [text_input(over_grpc, ["one two"])])
    assert ended.wait(20)
    assert not client.infer.func.__self__._streams
    client.stop_stream()
    assert read(recorder).one().finish_reason == "stop"


def test_an_id_used_anew_ends_what_had_it(grpc_address, recorder) -> None:
    client = hook.attach(over_grpc.InferenceServerClient(grpc_address), recorder, deployment=DEPLOYMENT)
    got: list[object] = []
    first, second = threading.Event(), threading.Event()

    def callback(result, error):
        got.append(result)
        if len(got) >= 2:
            (first if len(got) == 2 else second).set()

    client.start_stream(callback)
    client.async_stream_infer("vllm", [text_input(over_grpc, ["hang"])], request_id="same")
    assert first.wait(20)
    client.async_stream_infer("vllm", [text_input(over_grpc, ["one two"])], request_id="same")
    assert second.wait(20)
    client.stop_stream()
    log = read(recorder)
    assert len(log.records) == 2
    assert log.opens_text(log.records[0], "hang", " and so")
    assert log.records[0].finish_reason is UNSET
    assert log.opens_text(log.records[1], "one two", " and so on")


def test_metadata_that_could_not_be_had_is_asked_for_again(http_address, recorder, monkeypatch) -> None:
    ASKED_FOR.clear()
    client = hook.attach(over_http.InferenceServerClient(http_address), recorder, deployment=DEPLOYMENT)
    client.infer("late", [text_input(over_http, ["one two"])])
    client.infer("late", [text_input(over_http, ["one two"])])
    assert ASKED_FOR == ["late"]  # not at once
    monkeypatch.setattr(hook, "_TRY_AGAIN_S", 0.0)
    client.infer.func.__self__._ask_at.clear()
    client.infer("late", [text_input(over_http, ["one two"])])
    client.infer("late", [text_input(over_http, ["one two"])])
    assert ASKED_FOR == ["late", "late"]
    assert len(read(recorder, dropped=2).records) == 2


def test_answers_that_come_to_a_callback_are_recorded(grpc_address, recorder) -> None:
    client = hook.attach(over_grpc.InferenceServerClient(grpc_address), recorder, deployment=DEPLOYMENT)
    for prompt in ("one two", "refuse"):
        got: list[object] = []
        came = threading.Event()

        def callback(result, error, got=got, came=came):
            got.append(result)
            came.set()

        client.async_infer("vllm", [text_input(over_grpc, [prompt])], callback)
        assert came.wait(20)
        assert (got[0] is None) == (prompt == "refuse")
    log = read(recorder)
    record = log.one()
    assert (record.usage.input_tokens, record.usage.output_tokens) == (2, 2)
    assert log.opens_text(record, "one two", " and more")


def test_answers_that_are_fetched_later_are_recorded(http_address, recorder) -> None:
    client = hook.attach(over_http.InferenceServerClient(http_address), recorder, deployment=DEPLOYMENT)
    request = hook.Request(tenant="t-1")
    handle = client.async_infer("vllm", [text_input(over_http, ["one two"])], tallystick=request)
    assert handle.get_result().as_numpy("text_output")[0] == "one two and more"
    refused = client.async_infer("vllm", [text_input(over_http, ["refuse"])])
    with pytest.raises(InferenceServerException, match="refused"):
        refused.get_result()
    never_fetched = client.async_infer("vllm", [text_input(over_http, ["a b"])])
    del handle, refused, never_fetched
    gc.collect()
    client.close()  # waits for what is under way
    gc.collect()
    log = read(recorder, dropped=1)
    assert log.opens_text(log.one(), "one two", " and more", tenant="t-1")


def test_detach_gives_the_client_back(http_address, recorder) -> None:
    client = over_http.InferenceServerClient(http_address)
    hook.detach(hook.attach(client, recorder, deployment=DEPLOYMENT))
    client.infer("vllm", [text_input(over_http, ["one two"])])
    assert read(recorder).records == []
