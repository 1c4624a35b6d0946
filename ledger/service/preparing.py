"""Checks statements away from the event loop: on threads, or on processes beside this one.

Checking is most of the work of registering a batch, and pure computing. Threads share one interpreter lock
with the event loop and the sequencer; a process has its own, which on two cores takes in a third more.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

from ledger.core.errors import UnavailableError
from ledger.core.keys import PublicKey
from ledger.service.bodies import decompress
from ledger.store import Limits, Prepared, Store, open_store, prepare_statement, queries

__all__ = ["IssuerKeys", "Job", "Preparer", "Split"]

Split: TypeAlias = Callable[[bytes], tuple[bytes, bytes | None]]
"""Cuts a body into the statement and, for a batch, its records. A module's function, so that it travels."""

_MAX_CACHED_KEYS = 4096


@dataclass(frozen=True)
class Job:
    """A body to check."""

    body: bytes
    compressed: bool
    max_bytes: int
    split: Split


class IssuerKeys:
    """Looks issuers' keys up and remembers them: keys never change.

    Filled by the checking threads; a dict's single operations need no lock, and what is lost to a race is
    only looked up again. Whether a key was revoked is decided in the appending transaction, after known
    statements are recognised: a resend gives the same receipt for ever.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[bytes, tuple[str, PublicKey]] = {}

    def get(self, issuer: str, kid: bytes) -> PublicKey:
        """The key that verifies ``issuer``'s statements signed with ``kid``.

        Raises:
            RefusedError: unknown issuer, or another issuer's key.
        """
        known = self._known.get(kid)
        if known is not None and known[0] == issuer:
            return known[1]
        with self._store.read() as connection:
            info = queries.issuer_key(connection, kid)
            if info is None or info.issuer != issuer:
                return queries.usable_key(connection, issuer, kid)  # raises: it words the refusal
        if len(self._known) >= _MAX_CACHED_KEYS:
            self._known.clear()
        self._known[kid] = (issuer, info.public)
        return info.public


def _check(job: Job, keys: IssuerKeys, limits: Limits) -> Prepared:
    body = decompress(job.body, max_bytes=job.max_bytes) if job.compressed else job.body
    entry, records = job.split(body)
    return prepare_statement(entry, records, key_of=keys.get, now_us=time.time_ns() // 1000, limits=limits)


class Preparer:
    """Runs the checks. ``_executor`` is replaced, on the event loop, when a process of it died.

    Args:
        store: where issuers' keys are.
        limits: what the ledger accepts.
        threads: how many threads check, where no processes do.
        processes: how many processes check; 0 for threads in this one.
    """

    def __init__(self, store: Store, limits: Limits, *, threads: int, processes: int) -> None:
        self._store = store
        self._limits = limits
        self._threads = threads
        self._processes = processes
        self._keys = IssuerKeys(store)
        self._executor = self._make()

    def _make(self) -> Executor:
        if not self._processes:
            return ThreadPoolExecutor(self._threads, thread_name_prefix="tallystick-prepare")
        url = self._store.engine.url.render_as_string(hide_password=False)
        # Never forked: the parent has threads, locks and open databases.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._processes, context, _begin_worker, (url, self._limits))

    def start(self) -> None:
        """Start the processes now, so that no request waits for them. Blocks."""
        if self._processes:
            for future in [self._executor.submit(os.getpid) for _ in range(self._processes)]:
                future.result()

    def stop(self) -> None:
        """Stop. Nothing may be waiting."""
        self._executor.shutdown()

    async def prepare(self, job: Job) -> Prepared:
        """Check ``job``.

        Raises:
            TallystickError: the statement is refused, or (``overloaded``) the checking process died.
        """
        loop = asyncio.get_running_loop()
        executor = self._executor
        if not self._processes:
            return await loop.run_in_executor(executor, _check, job, self._keys, self._limits)
        try:
            return await loop.run_in_executor(executor, _check_in_worker, job)
        except BrokenExecutor:
            if self._executor is executor:  # the first to notice
                self._executor = self._make()
            raise UnavailableError(
                "the process that checked the statement died",
                remedy="nothing was logged; send it again",
                code="overloaded",
            ) from None


# --- in a checking process -------------------------------------------------------------------------------

_worker: tuple[IssuerKeys, Limits] | None = None


def _begin_worker(url: str, limits: Limits) -> None:
    global _worker  # noqa: PLW0603 - what an executor's initializer can leave behind for its tasks
    # Stopping is the parent's to order: a signal to the whole group must not cut off what it still finishes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = (IssuerKeys(open_store(url)), limits)
    gc.collect()
    gc.freeze()


def _die_with_parent() -> None:
    """End when the parent does, however it does: nobody else would end us after a kill."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        with contextlib.suppress(OSError):
            parent.join()
        os._exit(0)


def _check_in_worker(job: Job) -> Prepared:
    assert _worker is not None  # noqa: S101 - the initializer ran first
    keys, limits = _worker
    return _check(job, keys, limits)
