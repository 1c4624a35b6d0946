"""Owns what the doctor asks the ledger: whether it answers, is the right one, lets us in, has our time."""

from __future__ import annotations

import contextlib
import email.utils
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ledger.core.checkpoint import open_checkpoint
from ledger.core.errors import InvalidError, TallystickError
from ledger.core.log_keys import parse_log_keys
from ledger.emit.client import Client, Reply
from ledger.emit.survey import Survey

__all__ = [
    "Found",
    "Ledger",
    "Outcome",
    "Setup",
    "check_api_key",
    "check_clock",
    "check_ledger",
    "check_log_key",
]

Outcome: TypeAlias = Literal["ok", "warning", "failed"]
Found: TypeAlias = Iterator[tuple[Outcome, str, str]]
"""Outcome, what was found, what to do."""

_MAX_AHEAD_S = 300
"""What the ledger allows by default: TALLYSTICK_MAX_CLOCK_SKEW_S."""
_NOTICEABLE_S = 10


@dataclass(frozen=True)
class Setup:
    """What a recorder would take from its arguments and environment.

    ``key`` is the signing key's file if it is not the spool's own; ``limit_bytes`` the spool's limit.
    """

    spool: Path
    url: str | None
    log_key: str | None
    api_key: str | None
    key: Path | None
    limit_bytes: int = 4 << 30


class Ledger:
    """Answers of the ledger, asked once each."""

    def __init__(self, setup: Setup) -> None:
        self._answers: dict[str, Reply | str] = {}
        self.client: Client | None = None
        self.refusal = ""
        if setup.url is not None:
            try:
                self.client = Client(setup.url, setup.api_key)
            except InvalidError as error:
                self.refusal = error.what

    def get(self, path: str) -> Reply | str:
        """The answer to ``GET path``, or why there is none."""
        if path not in self._answers:
            self._answers[path] = self._ask(path)
        return self._answers[path]

    def _ask(self, path: str) -> Reply | str:
        if self.client is None:
            return self.refusal or "no ledger is named"
        try:
            return self.client.get(path)
        except TallystickError as error:
            return error.what


@dataclass(frozen=True)
class Case:
    """What checks look at. ``found`` is None where there is no readable spool."""

    setup: Setup
    ledger: Ledger
    found: Survey | None


def check_ledger(case: Case) -> Found:
    """Whether the ledger answers."""
    setup, ledger = case.setup, case.ledger
    if setup.url is None:
        yield "warning", "no ledger is named: statements stay in the spool", "set TALLYSTICK_URL"
        return
    answer = ledger.get("/checkpoint")
    if isinstance(answer, str):
        yield (
            "failed",
            f"{setup.url}: {answer}",
            "check the address, the network and that the service runs; statements wait meanwhile",
        )
        return
    if answer.status != 200:
        yield (
            "failed",
            f"{setup.url}/checkpoint answers with status {answer.status}",
            "check that the address is that of a Tallystick ledger",
        )
        return
    yield "ok", f"{setup.url} answers", ""
    if ledger.client is not None and ledger.client.plain_text and setup.api_key:
        yield "warning", "the API key goes there without encryption", "use https"


def check_log_key(case: Case) -> Found:
    """Whether it is the log whose key is pinned."""
    setup, ledger = case.setup, case.ledger
    if not setup.log_key:
        yield (
            "warning",
            "no log key is set: receipts are not checked, and the spool keeps every statement",
            "set TALLYSTICK_LOG_KEY to the log's vkey file",
        )
        return
    text = setup.log_key
    try:
        if "+" not in text:
            text = Path(text).read_text("utf-8")
        vkeys = parse_log_keys(text)
        vkey = vkeys[0]
    except (OSError, ValueError):
        yield "failed", f"{setup.log_key} cannot be read", "name the log's vkey file"
        return
    except TallystickError as error:
        yield "failed", f"{setup.log_key}: {error.what}", "name the log's vkey file"
        return
    answer = ledger.get("/checkpoint")
    if isinstance(answer, str) or answer.status != 200:
        yield "warning", f"the key is of {vkey.name}; the ledger showed nothing to check it with", ""
        return
    try:
        size = open_checkpoint(answer.body, vkeys).size
    except TallystickError as error:
        yield (
            "failed",
            f"the ledger's checkpoint does not verify with the key of {vkey.name}: {error.what}",
            "set the URL and the key of the same log; if they are, ask the ledger's operator",
        )
        return
    yield "ok", f"the ledger's checkpoint of {size} leaves verifies with the key of {vkey.name}", ""


def check_api_key(case: Case) -> Found:
    """Whether the API key lets us register statements."""
    setup, ledger = case.setup, case.ledger
    if ledger.client is None:
        return
    try:  # an empty body is refused after the key was checked, and logs nothing
        reply = ledger.client.post("/entries", b"", media_type="application/cose")
    except TallystickError:
        return  # told by the check of the ledger
    if reply.status == 401:
        yield (
            "failed",
            "the ledger does not know the API key" if setup.api_key else "no API key is set",
            "set TALLYSTICK_API_KEY to a key of scope emit: tallystick api-keys create",
        )
    elif reply.status == 403:
        yield (
            "failed",
            "the API key is not of scope emit",
            "make one that is: tallystick api-keys create --scope emit",
        )
    elif reply.status >= 500:
        yield "warning", f"the ledger answers with status {reply.status}", "see the service's log"
    else:
        yield "ok", "the API key may register statements", ""


def check_clock(case: Case) -> Found:
    """Whether this clock agrees with the ledger's."""
    answer = case.ledger.get("/healthz")
    now_s = time.time()
    if not isinstance(answer, str) and (date := answer.headers.get("date")):
        with contextlib.suppress(ValueError, TypeError):
            ahead_s = now_s - email.utils.parsedate_to_datetime(date).timestamp()
            if ahead_s > _MAX_AHEAD_S:
                yield (
                    "failed",
                    f"this clock is {ahead_s:.0f} s ahead of the ledger's, which refuses such statements",
                    "set the clock, here or there; statements wait until the ledger's clock has caught up",
                )
            elif abs(ahead_s) > _NOTICEABLE_S:
                way = "ahead of" if ahead_s > 0 else "behind"
                yield (
                    "warning",
                    f"this clock is {abs(ahead_s):.0f} s {way} the ledger's",
                    "let a time service set both clocks",
                )
            else:
                yield "ok", "this clock and the ledger's agree within 10 s", ""
            return
    yield "warning", "this clock cannot be compared with the ledger's", "see what the ledger's checks say"
