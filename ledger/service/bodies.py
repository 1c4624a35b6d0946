"""Reads request bodies: never more than allowed, never longer than allowed, decompressed within a bound.

A body is refused by its stated length before a byte of it is read, and by its real length before more than
the limit is held. Compressed bodies (RFC 8878, ``Content-Encoding: zstd``) stop at the output limit, so a
bomb costs its sender as much as us.
"""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from ledger.core.errors import InvalidError
from ledger.service.limits import Budget
from ledger.zstd import ZstdError, decompress_bounded

__all__ = ["content_encoding", "decompress", "read_body", "require_media_type"]


def require_media_type(request: Request, expected: str) -> None:
    """Refuse a body of another media type than ``expected``. Parameters such as ``charset`` are ignored.

    Raises:
        InvalidError: ``unsupported-media-type``.
    """
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found != expected:
        raise InvalidError(
            f"the body has media type {found[:80]!r}" if found else "the body has no media type",
            where="Content-Type",
            remedy=f"send {expected}",
            code="unsupported-media-type",
        )


def content_encoding(request: Request) -> str:
    """The body's encoding: ``identity`` or ``zstd``.

    Raises:
        InvalidError: ``unsupported-encoding``.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "zstd"):
        raise InvalidError(
            f"content encoding {encoding[:40]!r} is not supported",
            where="Content-Encoding",
            remedy="send zstd, or the body as it is",
            code="unsupported-encoding",
        )
    return encoding


async def read_body(request: Request, *, max_bytes: int, timeout_s: float, budget: Budget) -> bytes:
    """Read the whole body. The caller gives its length back to ``budget`` when it lets go of the body.

    Raises:
        InvalidError: ``body-too-large``, ``bad-length``, ``body-timeout`` or ``disconnected``.
        UnavailableError: ``overloaded``: other requests' bodies fill the memory.
    """
    stated = _stated_length(request)
    if stated is not None and stated > max_bytes:
        raise _too_large(max_bytes)
    reserved = max_bytes if stated is None else stated
    budget.take(reserved)
    chunks: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                length += len(chunk)
                if length > max_bytes:
                    raise _too_large(max_bytes)
                chunks.append(chunk)
    except TimeoutError:
        budget.give(reserved)
        raise InvalidError(
            f"the body did not arrive within {timeout_s:g} s",
            remedy="send smaller batches, or over a faster connection",
            code="body-timeout",
        ) from None
    except ClientDisconnect:
        budget.give(reserved)
        raise InvalidError(
            "the connection closed before the body was complete", code="disconnected"
        ) from None
    except BaseException:
        budget.give(reserved)
        raise
    budget.give(reserved - length)
    return b"".join(chunks)


def decompress(data: bytes, *, max_bytes: int) -> bytes:
    """Decompress one zstd frame that fills ``data``.

    Raises:
        InvalidError: ``compressed-bomb`` (more than ``max_bytes`` come out) or ``bad-compression``.
    """
    try:
        result = decompress_bounded(data, max_bytes)
    except (ZstdError, EOFError) as error:
        raise InvalidError(f"the body is not one zstd frame: {error}", code="bad-compression") from None
    if result is None:
        raise InvalidError(
            f"the body has more than {max_bytes} bytes once decompressed",
            remedy="split the batch",
            code="compressed-bomb",
        )
    return result


def _stated_length(request: Request) -> int | None:
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InvalidError("Content-Length is not a length", where="Content-Length", code="bad-length")
    return int(text)


def _too_large(max_bytes: int) -> InvalidError:
    return InvalidError(
        f"the body has more than {max_bytes} bytes",
        remedy="split the batch, or compress it (Content-Encoding: zstd)",
        code="body-too-large",
    )
