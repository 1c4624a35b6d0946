"""Owns the service's settings: one frozen value, read once from the environment or given by the caller.

Every field is documented beside it; its environment variable is ``TALLYSTICK_`` and the name in capitals.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ledger.core.errors import InvalidError

__all__ = ["ENVIRONMENT_PREFIX", "Settings", "settings_from_environment"]

ENVIRONMENT_PREFIX = "TALLYSTICK_"
_MIB = 1 << 20


def _setting(default: int | bool | str, text: str, *, least: int = 0, most: int | None = None) -> Any:
    return field(default=default, metadata={"text": text, "least": least, "most": most})


@dataclass(frozen=True)
class Settings:
    """What an operator may choose. Defaults suit one machine with a few gigabytes of memory."""

    max_entry_bytes: int = _setting(
        _MIB, "Largest body of POST /entries. A statement has at most 65,535 bytes; receipts may ride along."
    )
    max_batch_wire_bytes: int = _setting(
        16 * _MIB, "Largest body of POST /batches as sent, compressed or not."
    )
    max_batch_bytes: int = _setting(
        32 * _MIB,
        "Largest batch once decompressed: 4,096 records of 8 kB. Real ones have 500 to 1,000 bytes each.",
    )
    max_json_bytes: int = _setting(64 * 1024, "Largest JSON body of the administrative endpoints.")
    max_buffered_bytes: int = _setting(
        256 * _MIB, "Bytes of request bodies held at once; past it, callers are asked to come back later."
    )
    body_timeout_s: int = _setting(30, "Longest time that a caller may take to send a body.", least=1)
    prepare_processes: int = _setting(
        0,
        "Processes that check statements, each with 100 MB of memory; 0 checks them on threads. `tallystick "
        "serve` starts one for each core but the first, at most 4, where this is not set.",
        most=64,
    )
    prepare_threads: int = _setting(
        2, "Threads that check statements where no processes do.", least=1, most=64
    )
    read_threads: int = _setting(
        8, "Threads that run queries, each with a connection of its own.", least=1, most=12
    )
    api_key_cache_s: int = _setting(
        5,
        "How long a checked API key is remembered: the time after which a revoked one stops working.",
        most=300,
    )
    max_clock_skew_s: int = _setting(
        300, "How far in the future a statement's or record's time may lie, for clocks that differ."
    )
    limit_concurrency: int = _setting(
        512, "Connections served at once; further ones are answered 503 at once.", least=1
    )
    keep_alive_s: int = _setting(30, "How long an idle connection is kept.", least=1)
    shutdown_s: int = _setting(
        30, "How long running requests may finish after a stop was asked for.", least=1
    )
    requests_per_s: int = _setting(
        0,
        "Requests that one tenant, or one API key without a tenant, may make in a second on average, in "
        "each process; ten seconds' worth may come at once. 0 is any number.",
    )
    body_bytes_per_s: int = _setting(
        0, "Bytes of bodies that one tenant, or one API key without a tenant, may send in a second; likewise."
    )
    public_log: bool = _setting(
        True,
        "Whether everybody may read tiles, entries and metrics. They show statements, and so the sums of "
        "every batch; if false, they need a key of scope `read` that is not bound to a tenant.",
    )
    identity_file: str = _setting(
        "",
        "JSON file of the providers whose workload tokens (OpenID Connect, JWT) are taken; empty for none.",
    )
    witness_policy: str = _setting(
        "",
        "Policy file (C2SP tlog-policy) with the witnesses to be asked for cosignatures and their quorum; "
        "empty for none. `tallystick serve` takes `witnesses.policy` in the ledger's folder.",
    )
    witness_interval_ms: int = _setting(
        1_000, "Time between two rounds of asking the witnesses about the newest checkpoint.", least=10
    )
    witness_timeout_s: int = _setting(10, "How long one witness may take to answer.", least=1)
    publish_unwitnessed: bool = _setting(
        False,
        "Whether GET /checkpoint gives the newest checkpoint before a quorum of witnesses cosigned it. "
        "Registration waits for witnesses in neither case.",
    )
    budget_webhook: str = _setting(
        "",
        "Address to which alerts of budgets are posted, as JSON; empty for none. Internal hosts are called "
        "only if `TALLYSTICK_INTERNAL_HOSTS` allows them.",
    )
    docs: bool = _setting(True, "Whether GET /docs shows the API reference.")
    log_requests: bool = _setting(
        False, "Whether each request is logged: method, path, status, problem, time."
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least, most = each.metadata["least"], each.metadata["most"]
            if isinstance(value, int) and (value < least or (most is not None and value > most)):
                bounds = f"at least {least}" if most is None else f"from {least} to {most}"
                raise InvalidError(
                    f"setting {each.name} is {value}",
                    where=ENVIRONMENT_PREFIX + each.name.upper(),
                    remedy=f"use a number {bounds}",
                    code="bad-setting",
                )


_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


def settings_from_environment(environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Settings from ``TALLYSTICK_*``; ``overrides`` that are not None win.

    Raises:
        InvalidError: a variable is not of its setting's form.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    for each in fields(Settings):
        name = ENVIRONMENT_PREFIX + each.name.upper()
        text = environment.get(name)
        if text is not None:
            values[each.name] = _parse(name, text.strip(), getattr(Settings, each.name))
    values |= {name: value for name, value in overrides.items() if value is not None}
    return Settings(**values)


def _parse(name: str, text: str, default: int | bool | str) -> int | bool | str:
    if isinstance(default, str):
        return text
    boolean = isinstance(default, bool)
    if boolean and text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    if not boolean and text.isascii() and text.isdigit():
        return int(text)
    raise InvalidError(
        f"{name} is {text[:40]!r}",
        where=name,
        remedy="use true or false" if boolean else "use a whole number",
        code="bad-setting",
    )
