"""Owns the asking for room: one call before a generation, which a ledger's budgets allow or refuse.

Off unless it is asked for. A ledger that does not answer in time lets requests pass (``open``) or holds them
back (``closed``), as the setting says; for some seconds it is then not asked again, so that no request waits
for a ledger that is away. What was allowed is settled by the generation's record.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

from ledger.core.errors import InvalidError
from ledger.emit._complaints import Complaints

__all__ = [
    "NOT_ASKED",
    "VARIABLE",
    "BudgetRefusal",
    "Budgets",
    "WhenUnreachable",
    "budgets_from_environment",
    "refusal_body",
]

VARIABLE = "TALLYSTICK_BUDGETS"
"""``off``, ``open`` or ``closed``."""

WhenUnreachable: TypeAlias = Literal["open", "closed"]

_logger = logging.getLogger("tallystick.emit")

_CONNECT_S, _TOTAL_S = 1.0, 2.0
"""A request waits this long for the ledger, and no longer."""
_PAUSE_S = 5.0
"""How long a ledger that did not answer is not asked."""
_UNFIT = (400, 413, 422)
"""What the ledger answers to a question that is none, as a client's own words may make it."""
_RETRY_S = 5
_CONNECTIONS = 8
_MAX_BYTES = 256 * 1024
_DEFAULT_OUTPUT_TOKENS = 1_024
_SDK_WAITS_S = 60
"""OpenAI's clients obey a Retry-After up to a minute; for a longer one they would ask again at once."""


@dataclass(frozen=True)
class BudgetRefusal:
    """Why a request may not go on.

    Attributes:
        status: for the client: 429, or 503 where the ledger could not be asked.
        message: for the client.
        budget: the one without room; None where the ledger could not be asked.
        retry_after_s: when to ask again; None if the request alone is larger than the budget.
    """

    status: int
    message: str
    budget: str | None
    retry_after_s: int | None

    @property
    def headers(self) -> dict[str, str]:
        """What tells clients when to ask again; OpenAI's, not to try at once."""
        found = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        if self.retry_after_s is None or self.retry_after_s > _SDK_WAITS_S:
            found["x-should-retry"] = "false"
        return found


NOT_ASKED = BudgetRefusal(503, "budgets cannot be checked now; try again in a moment", None, _RETRY_S)
"""Where the ledger could not be asked, and nothing may pass then."""


def refusal_body(refusal: BudgetRefusal) -> dict[str, Any]:
    """The body of the answer, in the form that OpenAI's clients expect."""
    kind = "insufficient_quota" if refusal.status == 429 else "budget_unavailable"
    return {"error": {"message": refusal.message, "type": kind, "param": None, "code": kind}}


class Budgets:
    """Asks one ledger. Safe to use from any thread and event loop.

    ``_pause_until`` is only ever set to a time; a race there asks once too often.

    Args:
        url: the ledger.
        api_key: with scope ``emit``.
        when_unreachable: ``open`` lets requests pass then, ``closed`` refuses them.
        pseudonym: turns a tenant's name into what records say of it.
        output_tokens: reserved for a request that states no limit of its own.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        when_unreachable: WhenUnreachable,
        pseudonym: Callable[[str], str] = str,
        output_tokens: int = _DEFAULT_OUTPUT_TOKENS,
    ) -> None:
        from ledger.emit.client import Client

        if when_unreachable not in ("open", "closed"):
            raise InvalidError(
                f"{str(when_unreachable)[:20]!r} is neither open nor closed",
                where=VARIABLE,
                code="bad-setting",
            )
        Client(url, api_key)  # refuses unusable ones
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._closed = when_unreachable == "closed"
        self._pseudonym = pseudonym
        self._output_tokens = output_tokens
        self._pause_until = 0.0
        self._lock = threading.Lock()  # guards the making of the two below
        self._pool: Any = None
        self._threads: ThreadPoolExecutor | None = None
        self._complaints = Complaints("budgets")

    def reserve(
        self,
        record: str,
        *,
        tenant: str | None = None,
        model: str | None = None,
        input_tokens: int = 0,
        output_tokens: int | None = None,
        choices: int = 1,
        cost_nano: int | None = None,
        currency: str | None = None,
    ) -> BudgetRefusal | None:
        """Ask for room for one generation. Blocks, for two seconds at most.

        Args:
            record: id that the generation's record will have.
            tenant: who it is for, as the recorder is told.
            model: as its deployment names it.
            input_tokens: of the prompt, or an estimate,
            output_tokens: at most, of each choice; None if the request states no limit.
            choices: how many answers are asked for.
            cost_nano: what it will cost at most, if that is known, in billionths
            currency: of this.

        Returns:
            None if it may go on, else why not.
        """
        if time.monotonic() < self._pause_until:
            return self._unreachable("it did not answer a moment ago")
        try:
            return self._judge(
                *self._post(
                    "/budgets/check",
                    _check(
                        record,
                        None if tenant is None else self._pseudonym(tenant),
                        model,
                        input_tokens
                        + (self._output_tokens if output_tokens is None else output_tokens) * choices,
                        cost_nano,
                        currency,
                    ),
                )
            )
        except InvalidError as error:  # of this request: the others are asked for as before
            return self._unreachable(str(error))
        except Exception as error:
            self._pause_until = time.monotonic() + _PAUSE_S
            return self._unreachable(str(error))

    async def areserve(self, record: str, **wanted: Any) -> BudgetRefusal | None:
        """Likewise, for an event loop."""
        return await asyncio.get_running_loop().run_in_executor(
            self._executor(), lambda: self.reserve(record, **wanted)
        )

    def release(self, record: str) -> None:
        """Give back what was reserved for a request that generated nothing. Returns at once."""

        def send() -> None:
            try:
                self._post("/budgets/release", {"records": [record]})
            except Exception as error:  # the reservation ends by itself
                self._complaints.say(f"a reservation could not be released: {error}")

        if time.monotonic() >= self._pause_until:
            self._executor().submit(send)

    def close(self) -> None:
        """Send what is to be released, and close the connections."""
        with self._lock:
            threads, pool, self._threads, self._pool = self._threads, self._pool, None, None
        if threads is not None:
            threads.shutdown()
        if pool is not None:
            pool.clear()

    # --- one call ------------------------------------------------------------------------------------

    def _post(self, path: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        from ledger import http_call

        with self._lock:
            if self._pool is None:
                self._pool = http_call.open_pool(self._url, _CONNECTIONS)
            pool = self._pool
        limits = http_call.Limits(_CONNECT_S, _TOTAL_S, _TOTAL_S, _MAX_BYTES, _MAX_BYTES)
        answer = http_call.call(
            pool, "POST", self._url + path, limits, headers=self._headers, body=msgspec.json.encode(body)
        )
        return answer.status, answer.body

    def _judge(self, status: int, body: bytes) -> BudgetRefusal | None:
        if status in _UNFIT:
            raise InvalidError(f"it answered {status}: {body[:200]!r}", code="schema")
        if status != 200:
            raise ConnectionError(f"it answered {status}: {body[:200]!r}")
        found = msgspec.json.decode(body)
        if not isinstance(found, dict) or not isinstance(found.get("allowed"), bool):
            raise ConnectionError("it answered something else than a decision")
        if found["allowed"]:
            return None
        wait = found.get("retry_after_s")
        return BudgetRefusal(
            429,
            str(found.get("message") or "a budget is used up")[:600],
            str(found.get("refused_by") or "")[:64],
            wait if type(wait) is int and wait > 0 else None,
        )

    def _unreachable(self, reason: str) -> BudgetRefusal | None:
        passes = "held back" if self._closed else "let pass"
        self._complaints.say(f"the ledger cannot be asked, so requests are {passes}: {reason}")
        if not self._closed:
            return None
        return NOT_ASKED

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="tallystick-budgets")
            return self._threads


def _check(
    record: str,
    tenant: str | None,
    model: str | None,
    tokens: int,
    cost_nano: int | None,
    currency: str | None,
) -> dict[str, Any]:
    wanted: dict[str, Any] = {"tokens": tokens}
    if cost_nano is not None and currency is not None:
        wanted |= {"cost_nano": cost_nano, "currency": currency}
    body: dict[str, Any] = {"record": record, "model": _named(model), "estimate": wanted}
    return body if tenant is None else body | {"tenant": tenant}


def _named(model: str | None) -> str:
    """As the ledger takes it: a client may name anything."""
    return (model or "").replace("\0", "").encode(errors="replace").decode()[:256]


def budgets_from_environment(
    *, pseudonym: Callable[[str], str] = str, environment: Mapping[str, str] | None = None
) -> Budgets | None:
    """What TALLYSTICK_BUDGETS asks for, of the ledger in TALLYSTICK_URL; None where it is off or not set.

    Raises:
        InvalidError: it is none of off, open and closed, or no ledger is named.
    """
    environment = os.environ if environment is None else environment
    mode = environment.get(VARIABLE, "").strip() or "off"
    if mode == "off":
        return None
    url = environment.get("TALLYSTICK_URL")
    if mode not in ("open", "closed") or not url:
        raise InvalidError(
            f"budgets are to be {mode[:20]!r}" if url else "budgets need a ledger to ask",
            where=VARIABLE if url else "TALLYSTICK_URL",
            remedy="use off, open (requests pass when the ledger is away) or closed (they do not)"
            if url
            else "name the ledger",
            code="bad-setting",
        )
    return Budgets(
        url,
        environment.get("TALLYSTICK_API_KEY") or None,
        when_unreachable="open" if mode == "open" else "closed",
        pseudonym=pseudonym,
    )
