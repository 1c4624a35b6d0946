"""Calls to typed addresses reach no internal host: by literal, name, rebinding, redirect or proxy."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import outgoing
from ledger.core.errors import InvalidError, RefusedError
from ledger.http_call import Limits, call
from ledger.outgoing import PUBLIC_ONLY, Reach, check_url, is_internal, parse_reach, send

LIMITS = Limits(connect_s=2, read_s=2, total_s=5, body_bytes=1000, problem_bytes=1000)

INTERNAL = [
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.5.5", "192.168.1.1", "169.254.169.254",
    "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "2002:7f00:1::", "2002:a00:1::1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "64:ff9b:1:a00:0:100:101:101",
    "::ffff:0:127.0.0.1", "100::1", "2001:db8::1",
    "2001:0:53aa:64c:0:0:80ff:fffe",
]  # fmt: skip
PUBLIC = ["93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::101:101", "::ffff:1.1.1.1"]


@pytest.mark.parametrize("address", INTERNAL)
def test_internal_addresses(address: str) -> None:
    assert is_internal(ip_address(address))
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(RefusedError) as caught:
        check_url(f"https://{host}/x?token=secret")
    assert caught.value.code == "internal-address"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert not is_internal(ip_address(address))
    check_url(f"https://{f'[{address}]' if ':' in address else address}/x")


@given(st.ip_addresses(v=4))
def test_every_way_to_write_an_ipv4_address_is_judged_alike(address: Any) -> None:
    value = int(address)
    for embedded in (
        0xFFFF << 32 | value,
        0x0064FF9B << 96 | value,
        0x2002 << 112 | value << 80,
    ):
        if is_internal(address):
            assert is_internal(ip_address(embedded.to_bytes(16, "big")))


@pytest.mark.parametrize(
    "url",
    [
        "", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "//example.com", "https://",
        "https:///x", "https://user:pw@example.com/", "https://example.com@evil.example/",
        "https://example.com/#x", "https://example.com:0/", "https://example.com:99999/",
        "https://exa mple.com/", "https://example.com/\r\nHost: x", "https://example.com\\@x/",
        "https://ex\u00e4mple.com/", "https://[::1/", "https://" + "a" * 3000,
    ],
)  # fmt: skip
def test_unusable_urls(url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_url(url)
    assert caught.value.code == "bad-url"


@given(st.text(max_size=60), st.sampled_from(["", "https://", "http://", "https://a/"]))
def test_any_text_is_refused_or_parsed(text: str, before: str) -> None:
    try:
        parts = check_url(before + text)
    except (InvalidError, RefusedError):
        return
    assert parts.scheme == "https"
    assert parts.hostname


@pytest.mark.parametrize("host", ["localhost", "x.localhost", "metadata.google.internal", "printer.local"])
def test_names_of_this_network(host: str) -> None:
    with pytest.raises(RefusedError):
        check_url(f"https://{host}/")


def test_plain_http_only_to_allowed_hosts() -> None:
    with pytest.raises(RefusedError) as caught:
        check_url("http://example.com/hook")
    assert "https" in caught.value.remedy
    check_url("http://example.com/hook", parse_reach("example.com"))
    check_url("http://10.2.3.4/hook", parse_reach("10.2.0.0/16"))
    with pytest.raises(RefusedError):
        check_url("http://10.3.3.4/hook", parse_reach("10.2.0.0/16"))
    with pytest.raises(RefusedError):
        check_url("https://witness.internal:99/", parse_reach("witness.internal:8443"))


def test_reach() -> None:
    reach = parse_reach(" witness.internal:8443 , 10.2.0.0/16,Hook.Internal, ::1 ,fd00::/8,127.0.0.1")
    assert reach.names == {("witness.internal", 8443), ("hook.internal", None)}
    assert [str(each) for each in reach.networks] == ["10.2.0.0/16", "::1/128", "fd00::/8", "127.0.0.1/32"]
    assert parse_reach("") == PUBLIC_ONLY == Reach()
    assert outgoing.reach_from_environment({"TALLYSTICK_INTERNAL_HOSTS": "a.internal"}) == parse_reach(
        "a.internal"
    )
    for bad in ("https://x/", "a b/c", "x:y", "10.0.0.1/8", "u@h", ",".join(["h"] * 300)):
        with pytest.raises(InvalidError) as caught:
            parse_reach(bad)
        assert caught.value.code == "bad-reach"


# --- with a real server ---------------------------------------------------------------------------------


class _Server(HTTPServer):
    asked: list[str]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        server.asked.append(self.path)
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest/meta-data")
        else:
            self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    made = _Server(("127.0.0.1", 0), _Handler)
    made.asked = []
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def test_allowed_internal_host_is_reached(server: _Server) -> None:
    port = server.server_port
    for reach, host in (
        (f"127.0.0.1:{port}", "127.0.0.1"),
        ("127.0.0.0/8", "127.0.0.1"),
        ("localhost", "localhost"),
    ):
        answer = send("GET", f"http://{host}:{port}/x", LIMITS, reach=parse_reach(reach))
        assert (answer.status, answer.body) == (200, b"ok")
    with pytest.raises(RefusedError):
        send("GET", f"http://127.0.0.1:{port}/x", LIMITS)
    assert server.asked == ["/x"] * 3


def _resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let every name resolve to the first of ``answers``, then to the next, and so on."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        try:
            ip_address(str(host))
        except ValueError:
            asked.append(str(host))
            found = answers[min(len(asked), len(answers)) - 1]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]
        return real(host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


def test_name_of_an_internal_address_is_refused(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    _resolve_to(monkeypatch, ["127.0.0.1"])
    for host in ("rebound.example.com", "2130706433", "0x7f.1"):
        with pytest.raises(RefusedError) as caught:
            send("GET", f"https://{host}:{server.server_port}/x", LIMITS)
        assert caught.value.code == "internal-address"
    assert server.asked == []


def test_name_is_resolved_once_for_a_connection(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebinding: what was judged is what is connected to, and a later connection is judged anew."""
    asked = _resolve_to(monkeypatch, ["127.0.0.1"], ["10.255.255.1"])
    reach = parse_reach("127.0.0.0/8,hook.example.com")
    answer = send("GET", f"http://hook.example.com:{server.server_port}/x", LIMITS, reach=reach)
    assert answer.status == 200
    assert asked == ["hook.example.com"]
    with pytest.raises(RefusedError):
        send("GET", "https://other.example.com/x", LIMITS, reach=reach)


def test_only_the_public_ones_of_a_names_addresses_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolve_to(monkeypatch, ["10.0.0.1", "192.0.2.1", "127.0.0.1", "93.184.216.34"])
    tried: list[Any] = []

    def connect(address: Any, *_: Any, **__: Any) -> Any:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("ledger.http_call.create_connection", connect)
    with pytest.raises(ConnectionError):
        send("GET", "https://mixed.example.com/", LIMITS)
    assert tried == [("93.184.216.34", 443)]


def test_redirects_are_not_followed(server: _Server) -> None:
    reach = parse_reach("127.0.0.1")
    answer = send("GET", f"http://127.0.0.1:{server.server_port}/redirect", LIMITS, reach=reach)
    assert answer.status == 302
    assert server.asked == ["/redirect"]


def test_no_proxy_is_used(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve the name itself, past the judgement."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
    _resolve_to(monkeypatch, ["10.0.0.1"])
    with pytest.raises(RefusedError):
        send("GET", "https://behind-proxy.example.com/", LIMITS)
    assert server.asked == []


def test_pool_is_reused(server: _Server) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    pool = outgoing.open_pool(url, parse_reach("127.0.0.1"), connections=2)
    for _ in range(3):
        assert call(pool, "GET", f"{url}/again", LIMITS, headers={}).body == b"ok"
    pool.clear()
