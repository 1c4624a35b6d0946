"""Speaks to a service over HTTP: the key, time-outs, bounded answers, problem documents as our errors."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec
import urllib3

from ledger.core.errors import InvalidError, RefusedError, TallystickError, UnavailableError

__all__ = ["Client", "read_api_key"]

_TIMEOUT = urllib3.Timeout(connect=5, read=60)
_MAX_BYTES = 64 << 20
"""Larger than any answer: a page of records is a few megabytes."""
_KINDS: dict[int, type[TallystickError]] = {403: RefusedError, 409: RefusedError}


def read_api_key(file: Path | None) -> str | None:
    """The API key: from ``file`` (mode 0600), else from TALLYSTICK_API_KEY, else none."""
    if file is None:
        return os.environ.get("TALLYSTICK_API_KEY") or None
    from ledger.keyfiles import read_private

    return read_private(file).decode("utf-8", "replace").strip()


class Client:
    """A service at a base URL. Requests are retried where that is safe (GET)."""

    def __init__(self, url: str, api_key: str | None) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:  # such as a bracket without its pair
            parts = urlsplit("")
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.username is not None
            or parts.query
        ):
            raise InvalidError(
                f"{url[:200]!r} is not the URL of a service",
                remedy="write it like http://127.0.0.1:8090",
                code="bad-url",
            )
        if api_key is not None and parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise RefusedError(
                "an API key would travel in the clear",
                where=url,
                remedy="use https, or reach the service on this machine (127.0.0.1)",
                code="insecure",
            )
        self._base = url.rstrip("/")
        self._headers = {"User-Agent": "tallystick-cli"} | (
            {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        )
        self._pool = urllib3.PoolManager(
            timeout=_TIMEOUT, retries=urllib3.Retry(2, redirect=0, backoff_factor=0.2)
        )

    def get(self, path: str, query: dict[str, Any] | None = None) -> bytes:
        """The body of ``GET path``; members of ``query`` that are None are left out, lists are repeated."""
        given = {name: value for name, value in (query or {}).items() if value is not None}
        if given:
            path += "?" + urlencode(given, doseq=True)
        return self._request("GET", path, None)

    def get_json(self, path: str, query: dict[str, Any] | None = None) -> Any:
        """The JSON that ``GET path`` answers."""
        return self._decode(self.get(path, query), path)

    def post_json(self, path: str, body: Any) -> Any:
        """The JSON that ``POST path`` answers to a JSON body."""
        return self._decode(self._request("POST", path, msgspec.json.encode(body)), path)

    def _decode(self, data: bytes, path: str) -> Any:
        try:
            return msgspec.json.decode(data) if data else None
        except msgspec.DecodeError:
            raise InvalidError(
                "the answer is not JSON",
                where=self._base + path,
                remedy="check that the URL is a Tallystick service",
            ) from None

    def _request(self, method: str, path: str, body: bytes | None) -> bytes:
        headers = self._headers | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            answer = self._pool.request(
                method, self._base + path, body=body, headers=headers, preload_content=False
            )
            data = answer.read(_MAX_BYTES + 1)
            answer.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise UnavailableError(
                f"the service does not answer: {_reason(error)}",
                where=self._base,
                remedy="check the URL and that the service runs (`tallystick serve DIR`)",
                code="unreachable",
            ) from None
        if len(data) > _MAX_BYTES:
            raise InvalidError(f"the answer has more than {_MAX_BYTES} bytes", where=self._base + path)
        if answer.status >= 300:
            raise _problem(answer.status, data, self._base + path)
        return data


def _reason(error: urllib3.exceptions.HTTPError) -> str:
    cause = getattr(error, "reason", None) or error
    return str(cause).rpartition(": ")[2]


def _problem(status: int, data: bytes, url: str) -> TallystickError:
    try:
        problem = msgspec.json.decode(data)
    except msgspec.DecodeError:
        problem = None
    problem = problem if isinstance(problem, dict) else {}
    kind = _KINDS.get(status, InvalidError if status < 500 else UnavailableError)
    remedy = str(problem.get("remedy") or "")
    if status in (401, 403):
        remedy = "set TALLYSTICK_API_KEY or pass --api-key-file, with a key of the scope that this needs"
    return kind(
        str(problem.get("detail") or problem.get("title") or f"the service answered with status {status}"),
        where=str(problem.get("where") or url),
        remedy=remedy,
        code=str(problem.get("type", "")).rpartition("/")[2] or f"http-{status}",
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
