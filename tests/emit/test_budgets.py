"""Budgets on the wire: the proxy before a real ledger, with OpenAI's client; and a ledger that is away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import urllib3

from ledger.core.errors import InvalidError
from ledger.emit.budgets import Budgets, budgets_from_environment
from ledger.emit.deployment_file import Deployments
from ledger.emit.engines._budgeting import output_limit
from ledger.emit.proxy.serve import Options, create_app
from tests.build import make_deployment
from tests.emit.conftest import MakeRecorder
from tests.emit.real_service import RealService, running_service
from tests.emit.wire import answering, eventually, free_port, serving

openai = pytest.importorskip("openai")

CHAT: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
USAGE = {"prompt_tokens": 12, "completion_tokens": 40, "total_tokens": 52}


class Upstream:
    """An OpenAI-compatible server that always answers the same. ``fails``: with an error instead."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails = False
        self._lock = threading.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        with self._lock:
            self.asked += 1
        body = json.dumps(
            {
                "id": "c-1",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": "Paris."},
                    }
                ],
                "usage": USAGE,
            }
            if not self.fails
            else {"error": {"message": "out of memory"}}
        ).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 500 if self.fails else 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealService]:
    with running_service(tmp_path_factory.mktemp("ledger") / "data") as running:
        yield running


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def proxy(
    service: RealService, upstream: Upstream, make_recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    for limit in ("_CONNECT_S", "_TOTAL_S"):  # a busy machine's ledger is late, not away
        monkeypatch.setattr(f"ledger.emit.budgets.{limit}", 30.0)
    recorder = make_recorder(issuer=f"tests.example/{time.time_ns()}", **service.options)
    service.register(recorder)
    budgets = Budgets(service.url, service.admin_key, when_unreachable="closed", pseudonym=recorder.pseudonym)
    with serving(upstream, lifespan="off") as behind:
        options = Options(upstream=behind, tenant_header="x-tenant")
        with serving(create_app(options, Deployments(make_deployment(), {}), recorder, budgets)) as url:
            yield url
        budgets.close()
        assert recorder.flush(30)


def put(service: RealService, **fields: Any) -> None:
    answer = urllib3.request(
        "POST",
        f"{service.url}/budgets",
        headers={"Authorization": f"Bearer {service.admin_key}"},
        json={"measure": "tokens", "window": "month"} | fields,
    )
    assert answer.status == 200, answer.data


def standing(service: RealService, name: str) -> dict[str, Any]:
    (found,) = [each for each in service.get("/budgets")["budgets"] if each["name"] == name]
    return dict(found["standings"][0])


def client(proxy: str, tenant: str, **options: Any) -> Any:
    return openai.OpenAI(
        base_url=f"{proxy}/v1", api_key="any", default_headers={"x-tenant": tenant}, **options
    )


def test_clients_at_once_never_use_more_than_the_budget(
    proxy: str, service: RealService, upstream: Upstream
) -> None:
    """60 requests of 16 clients; each reserves more than its 52 tokens, and the record settles it."""
    put(service, name="threads", tenant="threads", limit=1_000)
    outcomes: list[int] = []

    def ask(_: int) -> None:
        with client(proxy, "threads", max_retries=0) as made:
            try:
                made.chat.completions.create(model="m", messages=CHAT, max_tokens=60)
                outcomes.append(200)
            except openai.RateLimitError as error:
                outcomes.append(error.status_code)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(60)))
    assert set(outcomes) == {200, 429}
    assert upstream.asked == outcomes.count(200), "what was refused never reached the model"
    eventually(lambda: not standing(service, "threads")["reserved"])
    found = standing(service, "threads")
    assert (found["used"], found["records"]) == (52 * outcomes.count(200), outcomes.count(200))
    assert found["used"] <= 1_000

    while True:  # one after the other, until the last that fits
        eventually(lambda: not standing(service, "threads")["reserved"])
        try:
            ask_again = client(proxy, "threads", max_retries=0)
            ask_again.chat.completions.create(model="m", messages=CHAT, max_tokens=60)
        except openai.RateLimitError:
            break
    assert 1_000 - 2 * 60 < standing(service, "threads")["used"] <= 1_000


def test_a_refusal_is_what_openai_clients_understand(
    proxy: str, service: RealService, upstream: Upstream
) -> None:
    put(service, name="small", tenant="small", limit=10)
    with client(proxy, "small") as made, pytest.raises(openai.RateLimitError) as refused:
        made.chat.completions.create(model="m", messages=CHAT, max_tokens=60)
    error = refused.value
    assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
    assert "the request alone is larger than the budget" in error.message
    assert upstream.asked == 0
    assert error.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in error.response.headers

    put(service, name="used-up", tenant="used", limit=52)
    with client(proxy, "used", max_retries=0) as made:
        made.chat.completions.create(model="m", messages=CHAT, max_tokens=1)
        eventually(lambda: standing(service, "used-up")["used"] == 52)
        with pytest.raises(openai.RateLimitError) as refused:
            made.chat.completions.create(model="m", messages=CHAT, max_tokens=1)
    ends = standing(service, "used-up")["window_end_s"]
    assert abs(int(refused.value.response.headers["retry-after"]) - (ends - time.time())) < 30


def test_what_generates_nothing_gives_its_room_back(
    proxy: str, service: RealService, upstream: Upstream
) -> None:
    put(service, name="failing", tenant="failing", limit=100)
    upstream.fails = True
    with client(proxy, "failing", max_retries=0) as made:
        for _ in range(5):
            with pytest.raises(openai.InternalServerError):
                made.chat.completions.create(model="m", messages=CHAT, max_tokens=60)
            eventually(lambda: not standing(service, "failing")["reserved"])


def test_a_tenant_that_is_no_pseudonym_is_known_by_its_own(
    proxy: str, service: RealService, make_recorder: MakeRecorder
) -> None:
    put(service, name="each", tenant="*", limit=100, model="SmolLM2-135M-Instruct")
    with client(proxy, "jane@example.com", max_retries=0) as made:
        made.chat.completions.create(model="m", messages=CHAT, max_tokens=60)
        eventually(
            lambda: any(
                each["tenant"].startswith("p-") and each["used"] == 52
                for budget in service.get("/budgets")["budgets"]
                if budget["name"] == "each"
                for each in budget["standings"]
            )
        )
        with pytest.raises(openai.RateLimitError):
            made.chat.completions.create(model="m", messages=CHAT, max_tokens=60)


# --- a ledger that is away ------------------------------------------------------------------------------

RECORD = "0199c6f2-7b1c-7000-8000-9f1d2c3b4a59"


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", b"junk"])
def test_open_lets_pass_and_closed_holds_back(answer: bytes | None) -> None:
    def outcomes(url: str) -> list[Any]:
        made = [Budgets(url, "k", when_unreachable=mode) for mode in ("open", "closed")]  # type: ignore[arg-type]
        return [each.reserve(RECORD, tenant="t", model="m") for each in made]

    if answer is None:
        passed, held = outcomes(f"http://127.0.0.1:{free_port()}")
    else:
        with answering(answer) as (url, _):
            passed, held = outcomes(url)
    assert passed is None
    assert (held.status, held.retry_after_s) == (503, 5)


def test_a_ledger_that_is_away_is_not_asked_by_each_request() -> None:
    hold = threading.Event()
    with answering(b"", hold=hold) as (url, requests):
        budgets = Budgets(url, None, when_unreachable="closed")
        begun = time.monotonic()
        for _ in range(50):
            assert budgets.reserve(RECORD) is not None
        assert time.monotonic() - begun < 20
        assert len(requests) == 1
        hold.set()


def test_a_question_that_is_none_stops_no_other(service: RealService) -> None:
    """A client that names a model of its own making must not have the others pass unasked."""
    allowed = b'{"allowed": true}'
    answers = [
        b"HTTP/1.1 %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (status, len(body), body)
        for status, body in ((b"422 Unprocessable Content", b"{}"), (b"200 OK", allowed))
    ]
    with answering(*answers) as (url, asked):
        budgets = Budgets(url, None, when_unreachable="closed")
        assert budgets.reserve("r-1", model="odd") is not None
        assert budgets.reserve("r-2", model="m") is None
        assert len(asked) == 2
        budgets.close()
    real = Budgets(service.url, service.admin_key, when_unreachable="closed")
    assert real.reserve("01890a5d-ac96-774b-bcce-b302099a8057", model="m\0\udcff", input_tokens=1) is None
    real.close()


@pytest.mark.parametrize("body", [b"[]", b'{"allowed": 1}', b'{"allowed": "no"}', b"\xff", b"{" * 10_000])
def test_odd_decisions_are_none(body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
    with answering(head + body) as (url, _):
        held = Budgets(url, None, when_unreachable="closed").reserve(RECORD)
    assert held is not None
    assert held.status == 503


def test_the_setting() -> None:
    assert budgets_from_environment(environment={}) is None
    assert budgets_from_environment(environment={"TALLYSTICK_BUDGETS": "off"}) is None
    made = budgets_from_environment(
        environment={"TALLYSTICK_BUDGETS": "open", "TALLYSTICK_URL": "http://127.0.0.1:1"}
    )
    assert made is not None
    for wrong in (
        {"TALLYSTICK_BUDGETS": "yes", "TALLYSTICK_URL": "http://127.0.0.1:1"},
        {"TALLYSTICK_BUDGETS": "closed"},
    ):
        with pytest.raises(InvalidError):
            budgets_from_environment(environment=wrong)


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"parameters": {"max_new_tokens": 9}}, 9),
        ({"max_tokens": "5"}, None),
        ({"max_tokens": -1, "n_predict": 3}, 3),
        ({}, None),
    ],
)
def test_what_a_request_may_generate(body: dict[str, Any], limit: int | None) -> None:
    assert output_limit(body) == limit
