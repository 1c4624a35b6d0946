"""Small forms that the vector files share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ledger.core.errors import TallystickError
from ledger.core.statements import Batch, SignedStatement
from ledger.schemas.vector_log import SampleLog


def dump(value: dict[str, Any]) -> bytes:
    """A vector file's bytes."""
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def hexes(hashes: Sequence[bytes]) -> list[str]:
    """Hashes as hex."""
    return [each.hex() for each in hashes]


def refusal(decode: Callable[[bytes], object], data: bytes) -> str | None:
    """The code of the error that ``decode`` raises for ``data``, None if it does not."""
    try:
        decode(data)
    except TallystickError as error:
        return error.code
    return None


def batch_of(log: SampleLog) -> tuple[int, SignedStatement]:
    """The log\'s batch statement with its leaf index."""
    return next((i, s) for i, s in enumerate(log.statements) if isinstance(s.payload, Batch))


def batch_payload(statement: SignedStatement) -> Batch:
    """The payload of the batch statement."""
    assert isinstance(statement.payload, Batch)  # noqa: S101 - the caller has found it by that
    return statement.payload
