"""A service is audited over HTTP: soundly, without permission for records, and while it lies."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from ledger.audit import AuditReport, audit, open_source
from ledger.audit.http import UrlSource
from ledger.core.errors import InvalidError, UnavailableError
from ledger.service import Settings, create_api_key, create_app
from ledger.store import Store, open_store
from tests.audit.conftest import Log

PATHS = ["/tile/0/", "/tile/entries/", "/entries/7/records", "/entries/7"]
Change = Callable[[str, int, bytes], tuple[int, bytes]]


class Liar:
    """An ASGI app that passes on what another app answers, changed by ``change(path, status, body)``."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.change: Change = lambda path, status, body: (status, body)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, body = 0, b""

        async def gather(message: Any) -> None:
            nonlocal status, body
            status = message.get("status", status)
            body += message.get("body", b"")

        await self.app(scope, receive, gather)
        status, body = self.change(scope["path"], status, body)
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def serving(app: Any) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


class Service:
    """A running service that can be made to lie."""

    def __init__(self, url: str, liar: Liar, store: Store, log: Log) -> None:
        self.url, self.liar, self.log = url, liar, log
        self.token = create_api_key(store, "auditor", ["read"])

    def audit(self, change: Change | None = None, *, token: str | None = "", **options: Any) -> AuditReport:
        self.liar.change = change or (lambda path, status, body: (status, body))
        source = open_source(self.url, api_key=self.token if token == "" else token)
        return audit(source, self.log.vkey, **options)


@pytest.fixture(scope="module")
def service(log: Log, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    store = open_store(log.copy(tmp_path_factory.mktemp("service") / "ledger.db"))
    liar = Liar(create_app(store, log.log_key, Settings()))
    with serving(liar) as url:
        yield Service(url, liar, store, log)
    store.close()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_service_is_sound(service: Service, log: Log) -> None:
    seen: list[tuple[int, int]] = []
    report = service.audit(progress=lambda done, size: seen.append((done, size)))
    assert report.findings == report.gaps == ()
    assert report.verdict == "sound"
    assert report.source == service.url
    assert report.counts.records == 20
    assert seen[-1] == (report.checkpoint.size, report.checkpoint.size)
    assert report.note == log.checkpoints[report.checkpoint.size]
    assert service.audit(known_checkpoints=list(log.checkpoints.values())).verdict == "sound"


@pytest.mark.parametrize("token", [None, "tsk_0123456789ab_wrong"])
def test_without_permission_it_is_unknown(token: str | None, service: Service) -> None:
    report = service.audit(token=token)
    assert report.findings == ()
    assert report.verdict == "unknown"
    assert "records" in [each.where for each in report.gaps]


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/tile/0/000.p/", "tile/0/000.p/"),
        ("/tile/entries/000.p/", "entry "),
        ("/entries/7/records", "records of entry 7"),
        ("/entries/7", "receipt of entry 7"),
    ],
)
def test_a_lie_is_found_and_named(path: str, where: str, service: Service) -> None:
    for at in (3, 10, 50, 77, -1, -20):

        def change(asked: str, status: int, body: bytes, at: int = at) -> tuple[int, bytes]:
            lies = asked.startswith(path) and (not path[-1].isdigit() or asked == path)
            return status, flipped(body, at % len(body)) if lies else body

        report = service.audit(change)
        if report.verdict == "unknown":  # an entry's length was changed: the bundle cannot be read
            assert "bundle" in report.gaps[0].why
            continue
        assert report.verdict == "refuted", at
        assert any(each.where.startswith(where) for each in report.findings), report.findings


def test_a_lying_checkpoint(service: Service, log: Log) -> None:
    for at in range(0, 200, 9):

        def change(path: str, status: int, body: bytes, at: int = at) -> tuple[int, bytes]:
            return status, flipped(body, at % len(body)) if path == "/checkpoint" else body

        report = service.audit(change)
        assert report.verdict == "refuted"
        assert report.findings[0].code == "no-checkpoint"


def test_an_older_checkpoint_is_a_rollback(service: Service, log: Log) -> None:
    older = log.checkpoints[min(log.checkpoints)]

    def change(path: str, status: int, body: bytes) -> tuple[int, bytes]:
        return status, older if path == "/checkpoint" else body

    report = service.audit(change, known_checkpoints=[log.checkpoints[max(log.checkpoints)]])
    assert [each.code for each in report.findings] == ["rolled-back"]


@pytest.mark.parametrize("status", [302, 403, 404, 410, 500])
@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_given_is_not_called_sound(path: str, status: int, service: Service) -> None:
    def change(asked: str, before: int, body: bytes) -> tuple[int, bytes]:
        return (status, b"x" * 40_000) if asked.startswith(path) else (before, body)

    report = service.audit(change)
    assert report.verdict == ("refuted" if (path, status) == ("/tile/0/", 404) else "unknown")


@pytest.mark.parametrize(
    "path", ["/tile/0/", "/tile/entries/", "/entries/7/records", "/entries/7", "/checkpoint"]
)
def test_endless_answers_are_cut(path: str, service: Service) -> None:
    def change(asked: str, status: int, body: bytes) -> tuple[int, bytes]:
        return status, bytes(20_000_000) if asked.startswith(path) else body

    if path == "/checkpoint":
        with pytest.raises(UnavailableError, match="longer than"):
            service.audit(change)
        return
    report = service.audit(change)
    assert report.verdict == "unknown"
    assert any("longer than" in each.why for each in report.gaps)


def test_records_beyond_their_share_of_memory_come_one_at_a_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple[int, str]] = []
    fetch = UrlSource._records

    def seen(source: UrlSource, index: int, limit: int) -> bytes:
        block = fetch(source, index, limit)
        fetched.append((index, threading.current_thread().name))
        return block

    monkeypatch.setattr(UrlSource, "_records", seen)
    monkeypatch.setattr("ledger.audit.http._AHEAD_BYTES", 32 * 100)
    report = service.audit()
    assert report.verdict == "sound"
    assert report.counts.records == 20
    assert {thread for _, thread in fetched} == {threading.current_thread().name}
    assert [index for index, _ in fetched] == sorted({index for index, _ in fetched})


def test_a_busy_service_is_asked_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.audit.http._BACKOFF_S", 0.001)
    asked: dict[str, int] = {}

    def change(path: str, status: int, body: bytes) -> tuple[int, bytes]:
        asked[path] = asked.get(path, 0) + 1
        return (503, b"") if asked[path] == 1 else (status, body)

    assert service.audit(change).verdict == "sound"


def test_what_cannot_be_a_service() -> None:
    for url in ("ftp://x", "http://", "https://example.com/?a=b"):
        with pytest.raises(InvalidError):
            UrlSource(url)
    with pytest.raises(InvalidError):
        UrlSource("https://example.com", api_key="a b")
    with pytest.raises(InvalidError) as refused:
        UrlSource("https://user:secret@example.com/log/")
    assert "secret" not in str(refused.value)
    assert UrlSource("https://example.com/log/").name == "https://example.com/log"


def test_nobody_answers(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.audit.http._BACKOFF_S", 0.001)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        audit(UrlSource("http://127.0.0.1:1"), log.vkey)


def test_targets(log: Log, tmp_path: Path) -> None:
    log.copy(tmp_path / "ledger.db")
    for target in (tmp_path, tmp_path / "ledger.db", f"sqlite:///{tmp_path / 'ledger.db'}"):
        assert audit(open_source(target), log.vkey).verdict == "sound"
    for target in (tmp_path / "nothing", "mysql://x", tmp_path.parent / "nowhere.db"):
        with pytest.raises(InvalidError):
            open_source(target)
