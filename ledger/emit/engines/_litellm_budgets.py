"""Owns what LiteLLM's proxy reserves before a call: the room, and the id of the record that will settle it.

LiteLLM (1.81) asks its callbacks before it routes a request (``async_pre_call_hook``), and may then copy what
it knows of it for each attempt. So the id travels in the request's metadata, and whichever attempt is first
takes it; what LiteLLM itself answers, or fails before any attempt, gives it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from ledger.emit import Recorder
from ledger.emit.budgets import BudgetRefusal, Budgets, refusal_body
from ledger.emit.engines import _litellm_reading as reading
from ledger.emit.engines._budgeting import output_limit
from ledger.emit.engines._openai import mapping, text_or_none
from ledger.emit.token_estimates import tokens_in

__all__ = ["BudgetExceeded", "Reservations"]

_KEY = "tallystick_reserved"
_PLACES = ("litellm_metadata", "metadata")


class BudgetExceeded(Exception):
    """What LiteLLM's proxy turns into the answer: it reads these attributes.

    Attributes:
        message, type, param, code: of OpenAI's error object.
        status_code: 429, or 503 where the ledger could not be asked.
        headers: of the answer.
    """

    def __init__(self, refusal: BudgetRefusal) -> None:
        super().__init__(refusal.message)
        error = refusal_body(refusal)["error"]
        self.message: str = error["message"]
        self.type: str = error["type"]
        self.code: str = error["code"]
        self.param = None
        self.status_code = refusal.status
        self.headers = dict(refusal.headers)


class Reservations:
    """Reserved calls that no attempt has taken yet, in ``_open``; its single operations need no lock.

    Args:
        recorder: gives ids of records, and takes unused ones back.
        budgets: are asked; None for none.
        tenant: tells who asked, from LiteLLM's ``kwargs``.
    """

    def __init__(
        self,
        recorder: Recorder,
        budgets: Budgets | None,
        tenant: Callable[[Mapping[str, Any]], str | None],
    ) -> None:
        self._recorder = recorder
        self._budgets = budgets
        self._tenant = tenant
        self._open: dict[str, None] = {}

    async def reserve(self, data: MutableMapping[str, Any], call_type: str) -> None:
        """Ask for room for a request of the proxy.

        Raises:
            BudgetExceeded: there is none.
        """
        kind = reading.generates({"call_type": call_type})
        if self._budgets is None or kind is None:
            return
        place = next((name for name in _PLACES if isinstance(data.get(name), dict)), "metadata")
        kwargs = {
            "litellm_params": {"metadata": data.get(place)},
            "messages": data.get("messages"),
            "optional_params": {"tools": data.get("tools")},
            "user": data.get("user"),
        }
        count = data.get("n")
        tenant = self._tenant(kwargs)  # before anything began that would have to end: it may raise
        said = tokens_in(reading.input_text_of(kind, kwargs, data) or "")
        record = self._recorder.begin()
        try:
            refusal = await self._budgets.areserve(
                record,
                tenant=tenant,
                model=text_or_none(data.get("model")),
                input_tokens=said,
                output_tokens=output_limit(data),
                choices=count if type(count) is int and 0 < count <= 128 else 1,
            )
        except BaseException:  # the client went away meanwhile
            self.abandon(record)
            raise
        if refusal is not None:
            self._recorder.abandon(record)
            raise BudgetExceeded(refusal)
        self._open[record] = None
        data.setdefault(place, {})[_KEY] = record

    def take(self, kwargs: Mapping[str, Any]) -> str | None:
        """The id that was reserved for a call, for the first attempt that asks."""
        return self._take(reading.metadata_of(kwargs))

    def drop(self, kwargs: Mapping[str, Any]) -> None:
        """A call came to an end, and no attempt was made."""
        record = self.take(kwargs)
        if record is not None:
            self.abandon(record)

    def drop_request(self, data: Mapping[str, Any]) -> None:
        """Likewise, of a request that failed in the proxy."""
        for name in _PLACES:
            record = self._take(mapping(data.get(name)))
            if record is not None:
                self.abandon(record)

    def abandon(self, record: str) -> None:
        """An attempt generated nothing."""
        self._recorder.abandon(record)
        self._release(record)

    def lose(self, record: str) -> None:
        """An attempt generated what cannot be recorded."""
        self._recorder.lose(record)
        self._release(record)

    def _release(self, record: str) -> None:
        if self._budgets is not None:
            self._budgets.release(record)

    def _take(self, metadata: Mapping[str, Any]) -> str | None:
        record = metadata.get(_KEY)
        if not isinstance(record, str):
            return None
        try:
            del self._open[record]
        except KeyError:  # an attempt before this one took it
            return None
        return record
