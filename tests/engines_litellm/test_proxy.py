"""LiteLLM's proxy as a process of its own, with the two lines of the documentation and a real ledger."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ledger.core.records import Record
from ledger.emit.engines._openai import prompt_text
from tests.engines_litellm.conftest import Ledger
from tests.engines_litellm.upstream import Seen, Upstream

ROOT = Path(__file__).parents[2]
KEY = "sk-tests-only"
MESSAGES = [{"role": "user", "content": "Count from one to fifty."}]
START_S = 120.0
WAIT_S = 20.0
CONFIG = """
model_list:
  - model_name: smollm2
    litellm_params: {{model: openai/smollm2, api_base: "{first}", api_key: any, max_retries: 0}}
  - model_name: backed
    litellm_params: {{model: openai/smollm2, api_base: "{dead}", api_key: any, max_retries: 0}}
litellm_settings:
  callbacks: tallystick_callback.proxy_handler
  fallbacks: [{{backed: [smollm2]}}]
  num_retries: 0
general_settings:
  master_key: {key}
"""


@dataclass
class Proxy:
    """The running proxy, what it calls, and the ledger that its recorder sends to."""

    url: str
    upstream: Upstream
    ledger: Ledger
    log: Path

    def ask(self, path: str = "/chat/completions", **body: Any) -> httpx.Response:
        given = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 8, "temperature": 0} | body
        given = {name: value for name, value in given.items() if value is not None}
        return httpx.post(
            f"{self.url}/v1{path}", json=given, headers={"Authorization": f"Bearer {KEY}"}, timeout=120
        )

    def stream(self, **body: Any) -> Any:
        given = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 8, "temperature": 0, "stream": True}
        return httpx.stream(
            "POST",
            f"{self.url}/v1/chat/completions",
            json=given | body,
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=120,
        )

    def expect(self, count: int, before: int) -> list[Record]:
        """The records after the first ``before``, once there are ``count``."""
        deadline = time.monotonic() + WAIT_S
        while len(found := self.ledger.logged()) < before + count and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)  # if more came, they would be here now
        found = self.ledger.logged()[before:]
        assert len(found) == count, self.log.read_text()[-3000:]
        return found


@pytest.fixture(scope="module")
def proxy(service: Any, engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("proxy")
    ledger = Ledger(
        service, folder / "spool"
    )  # makes the key and the name that the proxy's recorder takes up
    ledger.recorder.close()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "tallystick_callback.py").write_text("from ledger.emit.engines.litellm import proxy_handler\n")
    with Upstream(engine) as upstream:
        config = CONFIG.format(first=upstream.url, dead="http://127.0.0.1:9/v1", key=KEY)
        (folder / "config.yaml").write_text(config)
        log = folder / "proxy.log"
        environment = os.environ | {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "TALLYSTICK_URL": service.url,
            "TALLYSTICK_API_KEY": service.admin_key,
            "TALLYSTICK_LOG_KEY": str(service.folder / "log.vkey"),
            "TALLYSTICK_SPOOL": str(folder / "spool"),
            "TALLYSTICK_BUDGETS": "closed",
        }
        with log.open("wb") as out:
            process = subprocess.Popen(
                [Path(sys.prefix) / "bin/litellm", "--config", "config.yaml"]  # noqa: RUF005
                + ["--host", "127.0.0.1", "--port", str(port)],
                cwd=folder,
                env=environment,
                stdout=out,
                stderr=out,
            )
        running = Proxy(f"http://127.0.0.1:{port}", upstream, ledger, log)
        try:
            deadline = time.monotonic() + START_S
            while True:
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                try:
                    if httpx.get(f"{running.url}/health/liveliness", timeout=5).status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.2)
            yield running
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def before(proxy: Proxy) -> int:
    proxy.upstream.seen.clear()
    return len(proxy.ledger.logged())


def check(record: Record, seen: Seen) -> None:
    assert (record.usage.input_tokens, record.usage.output_tokens) == seen.usage
    assert not record.quality


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    return (json.loads(line[6:]) for line in lines if line.startswith("data: {"))


def test_an_answer_names_its_record(proxy: Proxy, before: int) -> None:
    answer = proxy.ask()
    assert answer.status_code == 200
    (record,) = proxy.expect(1, before)
    (seen,) = proxy.upstream.seen
    check(record, seen)
    told = answer.json()["usage"]
    assert (told["prompt_tokens"], told["completion_tokens"]) == seen.usage
    assert answer.headers["x-tallystick-record"] == record.id
    assert record.finish_reason == "length"
    proxy.ledger.opens(record, "output", seen.choices[0], key_of(proxy))
    proxy.ledger.opens(record, "input", prompt_text("chat", {"messages": MESSAGES}) or "", key_of(proxy))


def key_of(proxy: Proxy) -> str:
    """The tenant of the master key: not its hash, which could be guessed, but what stands for it here."""
    lines = (proxy.ledger.spool / "tenants").read_text().split("\n")
    (name,) = [json.loads(line.split(" ", 1)[1]) for line in lines if ' "key ' in line]
    return str(name)


def test_the_key_becomes_a_pseudonym(proxy: Proxy, before: int) -> None:
    proxy.ask()
    (record,) = proxy.expect(1, before)
    assert isinstance(record.tenant, str)
    assert record.tenant.startswith("p-")
    assert record.tenant not in key_of(proxy)


def test_a_stream_has_the_engines_counts_and_stays_as_it_was(proxy: Proxy, before: int) -> None:
    with proxy.stream() as answer:
        chunks = list(events(answer.iter_lines()))
        named = answer.headers["x-tallystick-record"]
    (record,) = proxy.expect(1, before)
    (seen,) = proxy.upstream.seen
    check(record, seen)
    assert record.id == named
    assert not any(chunk.get("usage") for chunk in chunks)
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == seen.choices[0]
    proxy.ledger.opens(record, "output", text, key_of(proxy))
    assert record.started_us <= record.first_token_us <= record.ended_us


def test_a_client_that_asks_for_usage_gets_it(proxy: Proxy, before: int) -> None:
    with proxy.stream(stream_options={"include_usage": True}) as answer:
        chunks = list(events(answer.iter_lines()))
    (record,) = proxy.expect(1, before)
    check(record, proxy.upstream.seen[0])
    (usage,) = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == proxy.upstream.seen[0].usage


@pytest.mark.parametrize("streamed", [False, True])
def test_tools(proxy: Proxy, before: int, streamed: bool) -> None:
    function = {"name": "paint", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    tools = [{"type": "function", "function": function}]
    if streamed:
        with proxy.stream(tools=tools, max_tokens=30) as answer:
            assert '"paint"' in answer.read().decode()
    else:
        assert '"paint"' in proxy.ask(tools=tools, max_tokens=30).text
    (record,) = proxy.expect(1, before)
    check(record, proxy.upstream.seen[0])
    proxy.ledger.opens(record, "output", proxy.upstream.seen[0].choices[0], key_of(proxy))


def test_several_choices(proxy: Proxy, before: int) -> None:
    answer = proxy.ask(n=3, temperature=1.2)
    assert len(answer.json()["choices"]) == 3
    (record,) = proxy.expect(1, before)
    check(record, proxy.upstream.seen[0])


def test_text_completions(proxy: Proxy, before: int) -> None:
    assert proxy.ask("/completions", prompt="Once upon a time", messages=None).status_code == 200
    (record,) = proxy.expect(1, before)
    check(record, proxy.upstream.seen[0])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("path", ["/messages", "/responses"])
def test_other_apis_of_the_proxy(proxy: Proxy, before: int, path: str, streamed: bool) -> None:
    more = {"input": "Count to ten.", "messages": None, "max_output_tokens": 8, "max_tokens": None}
    answer = proxy.ask(path, stream=streamed, **(more if path == "/responses" else {}))
    assert answer.status_code == 200, answer.text
    (record,) = proxy.expect(1, before)
    (seen,) = proxy.upstream.seen
    assert record.usage.output_tokens == seen.usage[1]


def test_a_client_that_goes_away_is_an_abort(proxy: Proxy, before: int) -> None:
    texts = []
    with proxy.stream(max_tokens=400) as answer:
        for chunk in events(answer.iter_lines()):
            texts.append(chunk["choices"][0]["delta"].get("content") or "")
            if len(texts) == 5:
                break
    (record,) = proxy.expect(1, before)
    assert record.finish_reason == "abort"
    assert record.quality
    (seen,) = proxy.upstream.seen
    assert not seen.whole
    made = sum(bool(choice["delta"].get("content")) for e in seen.events for choice in e.get("choices", ()))
    assert 5 <= record.usage.output_tokens <= made
    assert seen.choices[0].startswith("".join(texts))


def test_what_is_refused_is_no_record(proxy: Proxy, before: int) -> None:
    proxy.upstream.refuse = 1
    answer = proxy.ask()
    assert answer.status_code >= 400
    assert "x-tallystick-record" not in answer.headers
    proxy.expect(0, before)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_fallback_is_one_record(proxy: Proxy, before: int, streamed: bool) -> None:
    if streamed:
        with proxy.stream(model="backed") as answer:
            answer.read()
    else:
        assert proxy.ask(model="backed").status_code == 200
    (record,) = proxy.expect(1, before)
    check(record, proxy.upstream.seen[0])
    assert proxy.ledger.deployment(record)["site"] in proxy.upstream.url


def test_many_clients_some_of_whom_go_away(proxy: Proxy, before: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def one(place: int) -> None:
        if place % 3 == 0:
            assert proxy.ask(seed=place).status_code == 200
            return
        with proxy.stream(seed=place, max_tokens=8 if place % 3 == 1 else 200) as answer:
            for number, _ in enumerate(events(answer.iter_lines())):
                if place % 3 == 2 and number == 3:
                    return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(24)))
    records = proxy.expect(24, before)
    aborted = [each for each in records if each.finish_reason == "abort"]
    assert len(aborted) == 8
    told = sorted(e.usage for e in proxy.upstream.seen if e.whole)
    whole = [each for each in records if each.finish_reason != "abort"]
    assert sorted((e.usage.input_tokens, e.usage.output_tokens) for e in whole) == told


# --- budgets -----------------------------------------------------------------------------------------------


def put(proxy: Proxy, limit: int) -> None:
    answer = httpx.post(
        f"{proxy.ledger.service.url}/budgets",
        headers={"Authorization": f"Bearer {proxy.ledger.service.admin_key}"},
        json={"name": "each", "measure": "tokens", "window": "month", "tenant": "*", "limit": limit},
    )
    assert answer.status_code == 200, answer.text


def standing(proxy: Proxy, tenant: str) -> dict[str, Any]:
    (found,) = proxy.ledger.service.get("/budgets")["budgets"]
    mine = [each for each in found["standings"] if each["tenant"] == tenant]
    return mine[0] if mine else {"used": 0, "reserved": 0}


def settled(proxy: Proxy, tenant: str) -> int:
    """What the tenant has used, once nothing is reserved."""
    deadline = time.monotonic() + WAIT_S
    while (found := standing(proxy, tenant))["reserved"] or not found["used"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return int(found["used"])


@pytest.fixture
def tenant(proxy: Proxy) -> str:
    """Whom records of the key that asks name."""
    before = len(proxy.ledger.logged())
    proxy.ask()
    (record,) = proxy.expect(1, before)
    return str(record.tenant)


@pytest.fixture
def used(proxy: Proxy, tenant: str) -> Iterator[int]:
    """What that tenant has used by now; the budget goes at the end."""
    put(proxy, 10**9)
    yield settled(proxy, tenant)
    url = f"{proxy.ledger.service.url}/budgets/each/remove"
    httpx.post(url, headers={"Authorization": f"Bearer {proxy.ledger.service.admin_key}"})


def test_a_budget_without_room_is_answered_429(proxy: Proxy, used: int) -> None:
    proxy.upstream.seen.clear()
    put(proxy, used)
    answer = proxy.ask()
    assert answer.status_code == 429, answer.text
    error = answer.json()["error"]
    assert error["type"] == "insufficient_quota"
    assert "the budget each allows" in error["message"]
    assert int(answer.headers["retry-after"]) > 0
    with proxy.stream() as streamed:
        assert streamed.status_code == 429
    assert not proxy.upstream.seen, "what was refused never reached the model"


@pytest.mark.parametrize("model", ["smollm2", "backed"])
def test_the_record_settles_what_was_reserved(proxy: Proxy, tenant: str, used: int, model: str) -> None:
    """Also where the first attempt failed and another one answered."""
    put(proxy, used + 10_000)
    before = len(proxy.ledger.logged())
    answer = proxy.ask(model=model)
    assert answer.status_code == 200, answer.text
    (record,) = proxy.expect(1, before)
    assert answer.headers["x-tallystick-record"] == record.id
    assert settled(proxy, tenant) == used + record.usage.input_tokens + record.usage.output_tokens


def test_a_request_that_fails_gives_its_room_back(proxy: Proxy, tenant: str, used: int) -> None:
    put(proxy, used + 10_000)
    assert proxy.ask(model="unknown").status_code >= 400
    assert settled(proxy, tenant) == used
