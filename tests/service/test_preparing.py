"""Checking on processes beside the service: the same answers, whole errors, and what if one dies."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from ledger.core.errors import InvalidError, RefusedError, TallystickError, UnavailableError
from ledger.service.batches import split_batch
from ledger.service.preparing import Job, Preparer
from ledger.store import Limits
from tests.build import Issuer, Ledger, make_deployment, make_records

LIMIT = 1 << 20


@pytest.fixture
def preparer(ledger: Ledger) -> Iterator[Preparer]:
    preparer = Preparer(ledger.store, Limits(), threads=1, processes=1)
    preparer.start()
    yield preparer
    preparer.stop()


def check(preparer: Preparer, body: bytes) -> object:
    return asyncio.run(preparer.prepare(Job(body, False, LIMIT, split_batch)))


def test_a_process_prepares_what_a_thread_prepares(ledger: Ledger, preparer: Preparer) -> None:
    here = Preparer(ledger.store, Limits(), threads=1, processes=0)
    batch = ledger.issuer.batch(make_records(7, make_deployment()), advance=False)
    assert check(preparer, batch.body) == check(here, batch.body)
    here.stop()


def test_errors_arrive_whole(ledger: Ledger, preparer: Preparer) -> None:
    stranger = Issuer("stranger.example.com")
    for body, kind, code in (
        (stranger.batch(make_records(1, make_deployment())).body, RefusedError, "unknown-issuer"),
        (b"\x80", InvalidError, "malformed-batch"),
    ):
        with pytest.raises(kind) as caught:
            check(preparer, body)
        assert caught.value.code == code
        assert caught.value.what
        assert caught.value.what in str(caught.value)


def test_a_process_that_dies_is_replaced(ledger: Ledger, preparer: Preparer) -> None:
    (victim,) = preparer._executor._processes  # type: ignore[attr-defined]
    os.kill(victim, signal.SIGKILL)
    body = ledger.issuer.batch(make_records(2, make_deployment()), advance=False).body
    deadline = time.monotonic() + 20
    refusals = []
    while time.monotonic() < deadline:
        try:
            check(preparer, body)
        except TallystickError as error:
            refusals.append(error)
        else:
            break
    else:
        pytest.fail("the process was not replaced")
    assert all(isinstance(error, UnavailableError) for error in refusals)


def test_signals_to_the_group_do_not_cut_off_a_process(ledger: Ledger, preparer: Preparer) -> None:
    (process,) = preparer._executor._processes  # type: ignore[attr-defined]
    for each in (signal.SIGINT, signal.SIGTERM):
        os.kill(process, each)
    check(preparer, ledger.issuer.batch(make_records(2, make_deployment()), advance=False).body)
    assert list(preparer._executor._processes) == [process]  # type: ignore[attr-defined]
