"""The vLLM plugin with ``LLM(...)``: what is logged is what vLLM returned to an unsuspecting script."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.emit.model_identity import weights_of
from tests.engines.real_ledger import Ledger, serving
from tests.engines.smollm2 import tiny_llama, tiny_lora
from tests.engines.vllm_server import environment

pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with serving(tmp_path_factory.mktemp("offline"), "vllm-offline") as running:
        yield running


@pytest.fixture(scope="module")
def seen(ledger: Ledger, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What vLLM told the script."""
    script = Path(__file__).with_name("vllm_offline.py")
    told = tmp_path_factory.mktemp("told") / "told.json"
    run = subprocess.run(
        [sys.executable, str(script), str(tiny_llama()), str(tiny_lora()), str(told)],
        env=environment(ledger) | {"TALLYSTICK_TENANT_FIELD": "team", "TALLYSTICK_PARENT_FIELD": "cause"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout[-8000:]
    answers: list[dict[str, Any]] = json.loads(told.read_text())
    return answers


@pytest.fixture(scope="module")
def pairs(ledger: Ledger, seen: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What vLLM told, with the record of it."""
    records = ledger.records()  # the script has ended: whatever it was to log is logged
    assert len(records) == len(seen)
    by_request = ledger.by_request(records, [each["request"] for each in seen])
    found = []
    for each in seen:
        (record,) = [
            record
            for record in by_request[each["request"]]
            if ledger.opens(record, "output", each["output_ids"])
        ]
        found.append((each, record))
    assert len({record["id"] for _, record in found}) == len(seen)
    return found


Pairs = list[tuple[dict[str, Any], dict[str, Any]]]


def test_counts_reasons_and_ids_are_vllms(ledger: Ledger, pairs: Pairs) -> None:
    for each, record in pairs:
        usage = record["usage"]
        assert usage["input_tokens"] == len(each["input_ids"])
        assert usage["output_tokens"] == len(each["output_ids"])
        assert ledger.opens(record, "input", each["input_ids"])
        assert not ledger.opens(record, "input", [*each["input_ids"], 1])
        assert record["finish_reason"] == each["reason"]
    assert {each["reason"] for each, _ in pairs} == {"stop", "length", "abort"}


def test_cached_tokens_are_vllms(pairs: Pairs) -> None:
    # Of several samples, vLLM tells one number; the records have each sample's own.
    single = [
        (each, record)
        for each, record in pairs
        if [e["request"] for e, _ in pairs].count(each["request"]) == 1
    ]
    assert [record["usage"]["cached_input_tokens"] for _, record in single] == [
        e["cached"] for e, _ in single
    ]
    assert max(e["cached"] for e, _ in single) > 100


def test_times_are_in_order_and_of_now(pairs: Pairs) -> None:
    for _, record in pairs:
        assert record["started_us"] <= record["first_token_us"] <= record["ended_us"]
    started = [record["started_us"] for _, record in pairs]
    assert max(started) - min(started) < 280_000_000
    longest = max(pairs[:40], key=lambda pair: len(pair[0]["output_ids"]))[1]
    assert longest["ended_us"] > longest["first_token_us"]


def test_the_deployment_is_described(ledger: Ledger, pairs: Pairs) -> None:
    plain = [record for each, record in pairs if "lora" not in each]
    deployment = ledger.deployment(plain[0])
    assert {record["deployment"] for record in plain} == {plain[0]["deployment"]}
    assert deployment["model"] == "tiny-llama"
    assert deployment["engine"] == "vllm"
    assert deployment["engine_version"].startswith("0.")
    assert deployment["attention"] == "CPU_ATTN"
    assert deployment["quantization"] == "float32"
    assert (deployment["tensor_parallel"], deployment["pipeline_parallel"]) == (1, 1)
    assert deployment["weights"]["digest"] == weights_of(tiny_llama()).digest
    assert "adapters" not in deployment


def test_an_adapter_makes_another_deployment(ledger: Ledger, pairs: Pairs) -> None:
    adapted = [record for each, record in pairs if "lora" in each]
    deployment = ledger.deployment(adapted[-1])
    (adapter,) = deployment["adapters"]
    assert adapter == {
        "name": "arithmetic",
        "weights": {"method": "openssf-model-signing", "digest": weights_of(tiny_lora()).digest},
    }
    base = ledger.deployment(pairs[0][1])
    assert {k: v for k, v in deployment.items() if k != "adapters"} == base


@pytest.mark.parametrize("field", ["tenant", "parent"])
def test_tenant_and_parent_are_what_the_caller_named(pairs: Pairs, field: str) -> None:
    assert [record.get(field) for _, record in pairs] == [each.get(field) for each, _ in pairs]


def test_nothing_happens_unless_a_ledger_is_named() -> None:
    code = (
        "import sys; from ledger.emit.engines import vllm as plugin; plugin.register(); plugin.register();"
        "print(sum(type(each).__module__ == plugin.__name__ for each in sys.meta_path))"
    )
    bare = {k: v for k, v in environment().items() if not k.startswith("TALLYSTICK_")}
    for more, finders in ({}, "0"), ({"TALLYSTICK_URL": "http://127.0.0.1:1"}, "1"):
        run = subprocess.run([sys.executable, "-c", code], env=bare | more, capture_output=True, text=True)
        assert run.stdout.strip() == finders, run.stderr
