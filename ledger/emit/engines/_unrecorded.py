"""Owns the warning about what is not recorded: answers with token counts, at paths that nothing here reads.

A path's first answers are looked at, as they pass. Bounded: in paths, in answers of each, in bytes of one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from ledger.emit.engines._openai import mapping, read_json, usage_of

__all__ = ["Unrecorded"]

Message: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_MAX_PATHS = 64
"""Paths that are told apart. Some have ids in them, and a client may ask for any."""
_MAX_LOOKS = 8
"""Answers of one path that are looked at: embeddings have usage too, on each, and no output in it."""
_MAX_BYTES = 1 << 20
_OK = 200
_logger = logging.getLogger("tallystick.emit")


class Unrecorded:
    """Looks at answers that are not recorded. Used by one event loop.

    Args:
        about: starts the message.
    """

    def __init__(self, about: str) -> None:
        self._about = about
        self._looks: dict[str, int] = {}

    def watching(self, path: str, send: Send) -> Send:
        """``send``, which looks at what it sends if something may be learnt of it."""
        looks = self._looks.get(path, 0)
        if looks >= _MAX_LOOKS or (not looks and len(self._looks) >= _MAX_PATHS):
            return send
        kept: bytearray | None = None

        async def watched(message: Message) -> None:
            nonlocal kept
            if message["type"] == "http.response.start":
                kept = bytearray() if _may_tell(message) else None
            elif message["type"] == "http.response.body" and kept is not None:
                kept += message.get("body", b"")
                if len(kept) > _MAX_BYTES:
                    kept = None
                elif not message.get("more_body"):
                    self._look(path, kept)
                    kept = None
            await send(message)

        return watched

    def _look(self, path: str, data: bytearray) -> None:
        looks = self._looks.get(path, 0)
        if looks >= _MAX_LOOKS or (not looks and len(self._looks) >= _MAX_PATHS):
            return  # others were faster
        self._looks[path] = looks + 1
        told = mapping(read_json(data)).get("usage")
        usage = usage_of(told)
        if usage is not None and usage.output_tokens:
            self._looks[path] = _MAX_LOOKS
            _logger.error(
                "%s: answers to POST %s count generated tokens, and are not recorded", self._about, path[:200]
            )


def _may_tell(message: Message) -> bool:
    headers = {bytes(name).lower(): bytes(value) for name, value in message.get("headers", ())}
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    packed = headers.get(b"content-encoding", b"identity").lower() != b"identity"
    return message["status"] == _OK and kind == b"application/json" and not packed
