"""The vLLM plugin in vLLM's OpenAI server: five hundred conversations at once, some left by their clients."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from ledger.audit import audit
from ledger.audit.database import SqliteSource
from tests.engines.conversations import Client, Conversation, conversations, send_at_once
from tests.engines.real_ledger import Ledger, serving
from tests.engines.smollm2 import tiny_llama
from tests.engines.vllm_server import VllmServer, serving_vllm

pytest.importorskip("vllm")

COUNT = 500


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with serving(tmp_path_factory.mktemp("serve"), "vllm-serve") as running:
        yield running


@pytest.fixture(scope="module")
def server(ledger: Ledger, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    with serving_vllm(tmp_path_factory.mktemp("vllm"), tiny_llama(), ledger) as running:
        yield running


Burst = list[tuple[Conversation, dict[str, Any]]]


@pytest.fixture(scope="module")
def burst(server: VllmServer, ledger: Ledger) -> Burst:
    """Each conversation with the record of it."""
    sent = conversations(COUNT, "test-model")
    send_at_once(server.url, sent)
    records = ledger.wait_for(COUNT)
    assert len(records) == COUNT
    found = ledger.by_request(records, [one.engine_id for one in sent])
    assert Counter(len(each) for each in found.values()) == {1: COUNT}
    return [(one, found[one.engine_id][0]) for one in sent]


def test_answered_conversations_have_vllms_counts(burst: Burst) -> None:
    answered = [(one, record) for one, record in burst if one.leaves_after is None]
    assert len(answered) == 350
    assert {one.status for one, _ in answered} == {200}
    for one, record in answered:
        assert one.usage is not None
        usage = record["usage"]
        assert usage["input_tokens"] == one.usage["prompt_tokens"]
        assert usage["output_tokens"] == one.usage["completion_tokens"]
        assert record["finish_reason"] == one.reason


def test_answered_conversations_open_to_their_token_ids(burst: Burst, ledger: Ledger) -> None:
    for one, record in burst:
        if one.leaves_after is None:
            assert one.prompt_ids
            assert ledger.opens(record, "input", one.prompt_ids)
            assert ledger.opens(record, "output", one.output_ids)
            assert not ledger.opens(record, "output", [*one.output_ids, 7])


def test_conversations_that_were_left_have_the_tokens_made_so_far(burst: Burst, ledger: Ledger) -> None:
    left = [(one, record) for one, record in burst if one.leaves_after is not None]
    assert len(left) == 150
    assert {record["finish_reason"] for _, record in left} == {"abort"}
    for one, record in left:
        made = record["usage"]["output_tokens"]
        assert len(one.output_ids) <= made < one.body["max_tokens"]
        assert ledger.opens(record, "output", one.body["allowed_token_ids"] * made)
        if one.prompt_ids is not None:
            assert ledger.opens(record, "input", one.prompt_ids)
    assert sum(one.prompt_ids is not None for one, _ in left) >= 70


def test_totals_are_those_of_vllms_metrics(burst: Burst, server: VllmServer) -> None:
    records = [record for _, record in burst]
    begun = [record for record in records if "first_token_us" in record]
    # vLLM counts a prompt when its first token is there.
    assert sum(each["usage"]["input_tokens"] for each in begun) == server.counter("vllm:prompt_tokens_total")
    made = sum(each["usage"]["output_tokens"] for each in records)
    assert made == server.counter("vllm:generation_tokens_total")
    for reason in ("stop", "length"):
        ended = sum(each["finish_reason"] == reason for each in records)
        assert ended == server.counter("vllm:request_success_total", finished_reason=reason)


def test_times_are_in_order(burst: Burst) -> None:
    for _, record in burst:
        first = record.get("first_token_us", record["started_us"])
        assert record["started_us"] <= first <= record["ended_us"]
    # Five hundred at once wait for one another.
    waits = [each["first_token_us"] - each["started_us"] for _, each in burst if "first_token_us" in each]
    assert max(waits) > 10 * min(waits)


def test_a_server_that_is_told_to_end_loses_no_record(
    burst: Burst, server: VllmServer, ledger: Ledger
) -> None:
    """Last: the server is gone afterwards."""
    sent = [one for one in conversations(40, "test-model", seed=2) if one.leaves_after and one.body["stream"]]
    for one in sent:
        one.leaves_after = None
    client = Client(server.url, sent)
    deadline = time.monotonic() + 60
    while any(len(one.output_ids) < 5 for one in sent) and time.monotonic() < deadline:
        time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    # vLLM sometimes waits for connections that it does not serve any more, with or without this plugin.
    time.sleep(3)
    client.leave()
    server.process.wait(90)
    records = ledger.wait_for(COUNT + len(sent), timeout_s=20)
    found = ledger.by_request(records[COUNT:], [one.engine_id for one in sent])
    for one in sent:
        (record,) = found[one.engine_id]
        made = record["usage"]["output_tokens"]
        assert made >= len(one.output_ids) >= 5
        assert record["finish_reason"] in ("abort", "length")
        assert ledger.opens(record, "output", one.body["allowed_token_ids"] * made)
    vkey = (ledger.service.folder / "log.vkey").read_text().strip()
    report = audit(SqliteSource(ledger.service.folder / "ledger.db"), vkey)
    assert report.verdict == "sound", report.findings
