"""Owns the estimate of how many tokens a text has, where nobody counted them: OpenAI's rule of thumb."""

from __future__ import annotations

__all__ = ["tokens_in", "tokens_in_bytes"]

_BYTES_PER_TOKEN = 4
"""Of English text."""


def tokens_in(text: str) -> int:
    """Tokens of a text."""
    return tokens_in_bytes(len(text.encode()))


def tokens_in_bytes(count: int) -> int:
    """Tokens of a text of so many bytes; a part of one is one."""
    return -(-count // _BYTES_PER_TOKEN)
