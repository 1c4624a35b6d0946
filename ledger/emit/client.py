"""Owns the HTTP side of sending: one request, bounded in time and size, and what its answer means.

``Client.post`` does the I/O; ``judge`` decides. Redirects are not followed: a statement goes to the ledger
that was named, and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ledger import __version__
from ledger.core.errors import InvalidError, UnavailableError

if TYPE_CHECKING:
    import urllib3

__all__ = ["Accepted", "Client", "Refused", "Reply", "Retry", "judge"]

_CONNECT_S = 5.0
_READ_S = 30.0
_TOTAL_S = 60.0
"""A ledger that answers one byte at a time is a ledger that does not answer."""
MAX_REPLY_BYTES = 256 * 1024
"""A receipt has under 3 kB, a problem document hardly more."""
MAX_RETRY_AFTER_S = 600.0
_FUTURE_S = 30.0
"""Pause after a statement whose time the ledger's clock has not reached: it will, or a clock is set."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_RETRY_STATUSES = frozenset({408, 409, 421, 423, 425, 429})
# A conflict that sending again cannot solve: somebody else wrote to this issuer's chain, or an id came twice.
_FINAL_CONFLICTS = frozenset({"seq-reused", "wrong-prev", "seq-gap", "duplicate-record"})


@dataclass(frozen=True)
class Reply:
    """An HTTP answer. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Accepted:
    """The ledger has the statement and gave this receipt, not verified yet."""

    receipt: bytes


@dataclass(frozen=True)
class Retry:
    """Sending again later can succeed. ``after_s`` is the ledger's wish, if it named one."""

    reason: str
    after_s: float | None = None


@dataclass(frozen=True)
class Refused:
    """Sending the same again cannot succeed until somebody acts on ``reason``; ``code`` names the problem."""

    reason: str
    code: str = ""


class Client:
    """Sends to one ledger over one kept-alive connection. Used by one thread at a time.

    Args:
        url: the ledger's base URL.
        api_key: with scope ``emit``.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:  # such as a bracket without its pair
            parts = urlsplit("")
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or "@" in parts.netloc
            or parts.query
            or parts.fragment
        ):
            raise InvalidError(
                "the URL of the ledger is not usable",
                remedy="use one such as https://ledger.example.com, and pass the API key apart from it",
                code="bad-url",
            )
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise InvalidError("the API key has characters that no key has", code="bad-api-key")
        self.url = url.rstrip("/")
        self.plain_text = parts.scheme == "http" and parts.hostname not in _LOOPBACK
        self._api_key = api_key
        self._pool: urllib3.PoolManager | None = None

    def post(self, path: str, body: bytes, *, media_type: str, encoding: str | None = None) -> Reply:
        """Send ``body`` and return the answer, whatever its status.

        Raises:
            UnavailableError: no answer, or not within time and size.
        """
        headers = {"Content-Type": media_type}
        if encoding is not None:
            headers["Content-Encoding"] = encoding
        return self._request("POST", path, headers, body)

    def get(self, path: str) -> Reply:
        """Fetch ``path``.

        Raises:
            UnavailableError: no answer, or not within time and size.
        """
        return self._request("GET", path, {}, None)

    def _request(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Reply:
        from ledger import http_call  # which imports urllib3: not before something is sent

        headers["Accept"] = "application/cose, application/problem+json"
        headers["User-Agent"] = f"tallystick/{__version__}"
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        if self._pool is None:
            self._pool = http_call.open_pool(self.url)
        limits = http_call.Limits(_CONNECT_S, _READ_S, _TOTAL_S, MAX_REPLY_BYTES, MAX_REPLY_BYTES)
        try:
            answer = http_call.call(self._pool, method, self.url + path, limits, headers=headers, body=body)
        except ConnectionError as error:
            raise UnavailableError(
                f"the ledger cannot be reached: {error}",
                where=self.url,
                remedy="nothing to do if it comes back; statements wait in the spool",
                code="ledger-unreachable",
            ) from None
        return Reply(answer.status, answer.headers, answer.body)

    def close(self) -> None:
        """Close the connection. The next request opens another."""
        if self._pool is not None:
            self._pool.clear()
            self._pool = None


def judge(reply: Reply, *, now_s: float) -> Accepted | Retry | Refused:
    """Decide what an answer to a sent statement means."""
    if reply.status in (200, 201):
        return Accepted(reply.body)
    code, text = _problem(reply)
    reason = f"the ledger answered {reply.status}: {text}" if text else f"the ledger answered {reply.status}"
    if reply.status >= 500 or (reply.status in _RETRY_STATUSES and code not in _FINAL_CONFLICTS):
        return Retry(reason, _retry_after(reply.headers.get("retry-after", ""), now_s))
    if code == "time-in-future":
        return Retry(reason, _FUTURE_S)
    return Refused(reason, code)


def _problem(reply: Reply) -> tuple[str, str]:
    """Code and text of a problem document (RFC 9457); empty if the answer is something else."""
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(document, dict):
        return "", ""
    code = str(document.get("type", "")).rpartition("/")[2]
    text = str(document.get("detail") or document.get("title") or "")
    remedy = document.get("remedy")
    if remedy:
        text += f" ({remedy})"
    return code, f"{code}: {text}"[:600] if code else text[:600]


def _retry_after(value: str, now_s: float) -> float | None:
    """Seconds of a Retry-After header (RFC 9110 section 10.2.3), within a bound."""
    import email.utils

    value = value.strip()
    if value.isascii() and value.isdigit() and len(value) < 10:
        return min(float(value), MAX_RETRY_AFTER_S)
    try:
        when = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError):
        return None
    return min(max(0.0, when - now_s), MAX_RETRY_AFTER_S)
