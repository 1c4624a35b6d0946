"""What is read from LiteLLM's ``kwargs``, without LiteLLM: ``tests/engines_litellm`` has it for real."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.canonical import MAX_SAFE_INTEGER
from ledger.emit.engines import _litellm_reading as reading

HASH = "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b"
RECORD = "01932c07-6f5c-7e6f-8f3a-6a5b4c3d2e1f"


def of(**metadata: Any) -> dict[str, Any]:
    return {"litellm_params": {"metadata": metadata}}


@pytest.mark.parametrize(
    ("kwargs", "tenant"),
    [
        (of(user_api_key_team_id="team-1", user_api_key_user_id="u", user_api_key_hash=HASH), "team-1"),
        (of(user_api_key_user_id="jane@example.com", user_api_key_hash=HASH), "jane@example.com"),
        (of(user_api_key_user_id="default_user_id", user_api_key_hash=HASH), f"key {HASH}"),
        (of(user_api_key=HASH), f"key {HASH}"),
        ({"litellm_params": {"litellm_metadata": {"user_api_key_team_id": "t"}}}, "t"),
        ({"user": "customer-1"}, "customer-1"),
        ({"optional_params": {"user": "customer-2"}}, "customer-2"),
        ({"litellm_params": {"metadata": None}}, None),
        ({}, None),
    ],
)
def test_who_asked(kwargs: dict[str, Any], tenant: str | None) -> None:
    assert reading.tenant_of(kwargs) == tenant


def test_a_parent_is_a_record() -> None:
    assert reading.parent_of(of(tallystick_parent=RECORD)) == RECORD
    assert reading.parent_of(of(requester_metadata={"tallystick_parent": RECORD})) == RECORD
    assert reading.parent_of(of(tallystick_parent="01932c07")) is None
    assert reading.parent_of(of(tallystick_parent=f"{RECORD}\n")) is None


@pytest.mark.parametrize(
    ("cost", "nano"),
    [
        (0.00384, 3_840_000),
        (0.1 + 0.2, 300_000_000),
        (1.5e-9, 2),
        (2.5e-9, 2),
        (4e-10, None),
        (0.0, None),
        (0, None),
        (3, 3_000_000_000),
        (-1.0, None),
        (None, None),
        (True, None),
        ("0.1", None),
        (float("nan"), None),
        (float("inf"), None),
        (1e300, None),
    ],
)
def test_costs_become_integers(cost: Any, nano: int | None) -> None:
    assert reading.cost_nano(cost) == nano


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_cost_is_an_amount_or_unknown(cost: float) -> None:
    nano = reading.cost_nano(cost)
    assert nano is None or 0 < nano <= MAX_SAFE_INTEGER


def test_times() -> None:
    now = datetime(2026, 11, 23, 12, 0, 0, 250_000)
    assert reading.micros(now) == round(now.timestamp() * 1e6)
    assert reading.micros(1.5) == 1_500_000
    assert [reading.micros(each) for each in (None, "now", float("inf"))] == [None, None, None]


def test_what_generated_is_what_litellm_chose() -> None:
    base = SimpleNamespace(host="bedrock-runtime.us-east-1.amazonaws.com", port=None)
    kwargs = {
        "custom_llm_provider": "bedrock",
        "model": "anthropic.claude-sonnet-4-5",
        "litellm_params": {"api_base": None},
        "additional_args": {"api_base": base},
    }
    made = reading.deployment_of(kwargs, "claude-sonnet-4-5-20250929")
    assert (made.engine, made.region, made.site) == ("bedrock", "us-east-1", base.host)
    assert (made.model, made.version) == ("anthropic.claude-sonnet-4-5", "claude-sonnet-4-5-20250929")


def choice(text: str | None, reason: str | None = "stop", **more: Any) -> SimpleNamespace:
    return SimpleNamespace(message=SimpleNamespace(content=text, **more), finish_reason=reason)


def test_the_text_and_reason_of_an_answer() -> None:
    call = SimpleNamespace(function=SimpleNamespace(name="f", arguments='{"a":1}'))
    answer = SimpleNamespace(
        choices=[choice("One", reasoning_content="Hm. "), choice(None, tool_calls=[call])]
    )
    assert reading.answer_text(answer) == 'Hm. Onef{"a":1}'
    assert reading.finish_reason_of(answer) == "stop"
    mixed = SimpleNamespace(choices=[choice("a"), choice("b", "length")])
    assert reading.finish_reason_of(mixed) == "mixed"
    assert reading.answer_text(SimpleNamespace(choices=[choice("redacted-by-litellm")])) is None
    assert reading.finish_reason_of(SimpleNamespace(choices=[], status="completed")) == "stop"


NAMES = [
    "call_type", "model", "messages", "litellm_params", "metadata", "optional_params", "additional_args",
    "api_base", "user", "tools", "requester_metadata", "tallystick_parent", "user_api_key_team_id", "choices",
    "message", "content", "tool_calls", "function", "usage", "prompt_tokens", "finish_reason", "delta",
]  # fmt: skip
FOREIGN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=15,
)


@given(st.dictionaries(st.sampled_from(NAMES), FOREIGN, max_size=8), FOREIGN)
def test_foreign_values_never_raise(kwargs: dict[str, Any], answer: Any) -> None:
    reading.generates(kwargs)
    reading.deployment_of(kwargs, None)
    reading.tenant_of(kwargs)
    reading.parent_of(kwargs)
    for kind in ("chat", "completions", "responses"):
        reading.input_text_of(kind, kwargs, kwargs)
    reading.answer_text(answer)
    reading.answer_usage(answer)
    reading.finish_reason_of(answer)
    chunks = [answer, kwargs]
    reading.finish_reason_of_stream(chunks)
    reading.usage_was_told(chunks)
    reading.partial_answer(chunks).counts()


# --- failures --------------------------------------------------------------------------------------------


def error(*names: str) -> BaseException:
    """An error with these causes, the first as LiteLLM raises it."""
    made = [type(name, (Exception,), {})() for name in names]
    for one, cause in pairwise(made):
        one.__context__ = cause
    return made[0]


@pytest.mark.parametrize(
    ("names", "unanswered"),
    [
        (["Timeout"], True),
        (["Timeout", "APITimeoutError", "ReadTimeout", "TimeoutError"], True),
        (["Timeout", "APITimeoutError", "ConnectTimeout", "TimeoutError"], False),
        (["Timeout", "PoolTimeout"], False),
        (["InternalServerError", "APIConnectionError", "ConnectError"], False),
        (["InternalServerError", "APIConnectionError", "RemoteProtocolError"], True),
        (["Timeout", "ReadTimeout", "InternalServerError", "ConnectError"], True),  # an earlier attempt's
        (["RateLimitError"], False),
        (["RateLimitError", *["E"] * 100, "Timeout"], False),
    ],
)
def test_which_calls_may_have_generated_unseen(names: list[str], unanswered: bool) -> None:
    assert reading.was_unanswered(error(*names)) is unanswered


@pytest.mark.parametrize("value", [None, "Timeout", 1])
def test_what_is_no_error(value: Any) -> None:
    assert not reading.was_unanswered(value)
