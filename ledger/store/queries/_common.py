"""What all queries share: the error for what is not there."""

from __future__ import annotations

from ledger.core.errors import InvalidError

__all__ = [
    "not_found",
]


def not_found(what: str, where: str, code: str = "not-found") -> InvalidError:
    """The error for something that the log does not have."""
    return InvalidError(what, where=where, code=code)
