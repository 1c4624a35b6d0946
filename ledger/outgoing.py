"""Owns calls to addresses that somebody typed: webhooks, witnesses, key sets. They reach no internal host.

Whoever may name a URL that this process calls could otherwise have it call what only this process can reach:
a cloud's metadata service, a database's port, another service on this host (server-side request forgery). So
a name is resolved once, each address is judged, and the connection goes to that very address: a name that
points elsewhere a moment later changes nothing. Redirects are never followed, and no proxy is used, since a
proxy would resolve the name again.

What is internal follows the IANA special-purpose address registries (RFC 6890, RFC 8190), seen through
addresses that embed another one (IPv4-mapped, 6to4, Teredo, NAT64). An operator lets names or networks of its
own pass with a ``Reach``; plain ``http`` goes to those alone.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import SplitResult, urlsplit

from ledger.core.errors import InvalidError, RefusedError

if TYPE_CHECKING:
    from urllib3 import PoolManager

    from ledger.http_call import Answer, Limits

__all__ = [
    "PUBLIC_ONLY",
    "REACH_VARIABLE",
    "Reach",
    "check_url",
    "open_pool",
    "parse_reach",
    "reach_from_environment",
    "send",
]

REACH_VARIABLE = "TALLYSTICK_INTERNAL_HOSTS"
"""What ``reach_from_environment`` reads."""

_Address: TypeAlias = IPv4Address | IPv6Address
_Network: TypeAlias = IPv4Network | IPv6Network

_MAX_URL = 2_048
_MAX_ALLOWED = 256
_PORTS = {"http": 80, "https": 443}

_NAT64 = IPv6Network("64:ff9b::/96")
# Global by the registries, and yet never a stranger's: what clouds answer on inside a virtual machine.
_CLOUD = (IPv4Network("168.63.129.16/32"),)
# Newer than some tables of Python's own: shared address space, benchmarking, documentation, site-local, and
# translation within a network, where the IPv4 address may stand in any place.
_SPECIAL: tuple[_Network, ...] = (
    IPv4Network("0.0.0.0/8"),
    IPv4Network("100.64.0.0/10"),
    IPv4Network("192.0.0.0/24"),
    IPv4Network("198.18.0.0/15"),
    IPv4Network("240.0.0.0/4"),
    IPv6Network("::ffff:0:0:0/96"),
    IPv6Network("64:ff9b:1::/48"),
    IPv6Network("100::/64"),
    IPv6Network("2001::/23"),
    IPv6Network("2001:db8::/32"),
    IPv6Network("3fff::/20"),
    IPv6Network("5f00::/16"),
    IPv6Network("fec0::/10"),
)


@dataclass(frozen=True)
class Reach:
    """Which internal hosts may be reached: names (lower case) with a port or with any, and networks."""

    names: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[_Network, ...] = ()

    def allows_name(self, host: str, port: int) -> bool:
        """Whether the operator named this host."""
        return (host, None) in self.names or (host, port) in self.names

    def allows_address(self, address: _Address) -> bool:
        """Whether the operator named a network that holds this address."""
        return any(address.version == each.version and address in each for each in self.networks)


PUBLIC_ONLY = Reach()
"""No internal host at all."""


def parse_reach(text: str) -> Reach:
    """The internal hosts of a list such as ``witness.internal:8443, 10.2.0.0/16``, separated by commas.

    Raises:
        InvalidError: ``bad-reach``: an entry is neither a host name, with or without a port, nor a network.
    """
    names: set[tuple[str, int | None]] = set()
    networks: list[_Network] = []
    entries = [part for each in text.split(",") if (part := each.strip())]
    if len(entries) > _MAX_ALLOWED:
        raise InvalidError(f"more than {_MAX_ALLOWED} internal hosts", where="reach", code="bad-reach")
    for entry in entries:
        try:
            networks.append(ipaddress.ip_network(entry.strip("[]")))
            continue
        except ValueError:
            pass
        try:
            parts = urlsplit(f"//{entry}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.path or parts.query or parts.fragment or "@" in entry:
            raise InvalidError(
                f"{entry[:80]!r} is neither a host nor a network",
                where="reach",
                remedy="use names, with a port if only that one is meant, or networks: 10.2.0.0/16",
                code="bad-reach",
            )
        names.add((host, port))
    return Reach(frozenset(names), tuple(networks))


def reach_from_environment(environment: Mapping[str, str] | None = None) -> Reach:
    """What the operator allows in ``TALLYSTICK_INTERNAL_HOSTS``; nothing internal where it is not set.

    Raises:
        InvalidError: ``bad-reach``.
    """
    environment = os.environ if environment is None else environment
    return parse_reach(environment.get(REACH_VARIABLE, ""))


def check_url(url: str, reach: Reach = PUBLIC_ONLY) -> SplitResult:
    """Check what can be told of ``url`` before its name is resolved: to be done where it is configured.

    Returns:
        Its parts.

    Raises:
        InvalidError: ``bad-url``: no URL that can be called.
        RefusedError: ``internal-address``: plain http, or an address, that ``reach`` does not allow.
    """
    parts, host, port = _split(url)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if reach.allows_name(host, port):
        return parts
    if address is not None:
        _check_address(address, reach, url)
    elif host == "localhost" or host.endswith((".localhost", ".internal", ".local")):
        raise _internal(f"{host} is a name of this host or network", url)
    if parts.scheme == "http" and not (address is not None and reach.allows_address(address)):
        raise RefusedError(
            "plain http would show and let change what is sent",
            where=_shown(url),
            remedy="use https, or name the host among the internal ones that are allowed",
            code="internal-address",
        )
    return parts


def open_pool(url: str, reach: Reach = PUBLIC_ONLY, connections: int = 1) -> PoolManager:
    """Connections to the server of ``url`` and to no other, for ``http_call.call``.

    Each new connection resolves the name again and judges every address anew.

    Raises:
        InvalidError, RefusedError: see ``check_url``. A call on the pool raises RefusedError
            (``internal-address``) where the name leads to internal addresses alone.
    """
    from ledger import http_call

    check_url(url, reach)
    _, host, port = _split(url)

    def judge(found: str) -> None:
        if not reach.allows_name(host, port):
            _check_address(ipaddress.ip_address(found.partition("%")[0]), reach, url)

    return http_call.open_direct_pool(judge, connections)


def send(
    method: str,
    url: str,
    limits: Limits,
    *,
    reach: Reach = PUBLIC_ONLY,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """Make one call, bounded in size and time, on a connection of its own.

    Raises:
        InvalidError: ``bad-url``.
        RefusedError: ``internal-address``.
        ConnectionError: no answer, or a broken one.
        UnavailableError: ``too-large`` or ``too-slow``.
    """
    from ledger import http_call

    pool = open_pool(url, reach)
    try:
        return http_call.call(pool, method, url, limits, headers=headers or {}, body=body)
    finally:
        pool.clear()


def is_internal(address: _Address) -> bool:
    """Whether an address is none that the public internet routes to a stranger."""
    if isinstance(address, IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return is_internal(inner)
    elif any(address in each for each in _CLOUD):
        return True
    return (
        not address.is_global
        or address.is_multicast
        or address.is_reserved
        or any(address.version == each.version and address in each for each in _SPECIAL)
    )


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that packets to ``address`` would reach in the end."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or int(address) >> 32 == 0:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _check_address(address: _Address, reach: Reach, url: str) -> None:
    inner = _embedded(address) if isinstance(address, IPv6Address) else None
    if is_internal(address) and not (
        reach.allows_address(address) or (inner is not None and reach.allows_address(inner))
    ):
        raise _internal(f"{address} is an internal address", url)


def _split(url: str) -> tuple[SplitResult, str, int]:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
        usable = (
            len(url) <= _MAX_URL
            and url.isascii()
            and url.isprintable()
            and not set(url) & set(' "<>\\^`{|}')
            and parts.scheme in _PORTS
            and bool(host)
            and port != 0
            and "@" not in parts.netloc
            and not parts.fragment
        )
    except ValueError:
        usable = False
    if not usable:
        raise InvalidError(
            "is not a URL that can be called",
            where=_shown(url),
            remedy="use https://host/path, without a user, password or fragment",
            code="bad-url",
        )
    return parts, host, port or _PORTS[parts.scheme]


def _internal(what: str, url: str) -> RefusedError:
    return RefusedError(
        f"{what}, which is not allowed to be called",
        where=_shown(url),
        remedy="use a public address, or name this host among the internal ones that are allowed",
        code="internal-address",
    )


def _shown(url: str) -> str:
    """A URL for a message: without its query, which may hold a secret, and without a user."""
    return ascii(url.partition("?")[0].rpartition("@")[2])[1:-1][:200]
