"""Owns trust policies: known logs, known witnesses, and which of them must have signed (C2SP tlog-policy).

A policy is a text of lines: ``log``, ``witness``, ``group`` and one ``quorum``. Names in it are opaque bytes;
they are kept as text in which each byte is one character (Latin-1).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ledger.core.checkpoint import Checkpoint, open_checkpoint
from ledger.core.cosignature import verify_cosignature
from ledger.core.errors import CorruptError, InvalidError
from ledger.core.log_keys import public_of_log_key
from ledger.core.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_ML_DSA_44,
    Note,
    VerifierKey,
    keys_by_id,
    parse_note,
    parse_vkey,
)

__all__ = ["KnownLog", "Policy", "Witness", "check_witnessed", "cosigned_by", "parse_policy", "quorum_of"]

MAX_POLICY_BYTES = 1 << 20
MAX_NAMES = 256
"""Logs, witnesses and groups; the specification asks for 32 of each."""
NONE = "none"
_COSIGNATURES = (COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44)
_ALLOWED = frozenset({0x09, 0x0A, *range(0x20, 0x7F), *range(0x80, 0x100)})


@dataclass(frozen=True)
class KnownLog:
    """A log line. ``url`` is the log's base address, if given."""

    key: VerifierKey
    url: str | None = None


@dataclass(frozen=True)
class Witness:
    """A witness line. ``url`` is its submission prefix, if given."""

    name: str
    key: VerifierKey
    url: str | None = None


@dataclass(frozen=True)
class _Group:
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Policy:
    """A parsed policy.

    Args:
        logs: in the order of their lines.
        witnesses: likewise.
        groups: by name; members are defined before their group.
        quorum: the witness or group that must have witnessed, or ``none``.
    """

    logs: tuple[KnownLog, ...]
    witnesses: tuple[Witness, ...]
    groups: Mapping[str, _Group]
    quorum: str

    def log_keys(self, origin: str) -> tuple[VerifierKey, ...]:
        """All keys of the log with this name."""
        return tuple(log.key for log in self.logs if log.key.name == origin)

    def satisfied_by(self, names: Collection[str]) -> bool:
        """Whether the witnesses of these (policy) names are a quorum."""
        if self.quorum == NONE:
            return True
        witnessed = set(names)
        for name, group in self.groups.items():  # members come before their group
            if sum(member in witnessed for member in group.members) >= group.threshold:
                witnessed.add(name)
        return self.quorum in witnessed


def quorum_of(keys: Collection[VerifierKey], count: int) -> Policy:
    """Return the policy that ``count`` of the witnesses with these keys must have cosigned.

    Raises:
        InvalidError: there are not so many, or a key makes no cosignatures.
    """
    names = tuple(dict.fromkeys(key.name for key in keys))
    if not 1 <= count <= len(names):
        raise InvalidError(
            f"A quorum of {count} cannot be asked of {len(names)} witnesses",
            where="quorum",
            remedy="pass the keys of more witnesses, or a smaller quorum",
            code="bad-parameter",
        )
    for key in keys:
        if key.sig_type not in _COSIGNATURES:
            raise InvalidError(
                "makes no cosignatures", where=f"verifier key {key.name}", remedy="pass a witness's key"
            )
    group = f"{count} of {len(names)}"  # no name of a key: it has spaces
    return Policy((), tuple(Witness(key.name, key) for key in keys), {group: _Group(count, names)}, group)


def parse_policy(data: bytes) -> Policy:
    """Return the policy that a file's bytes spell.

    Raises:
        InvalidError: it does not follow the specification; ``where`` names the line.
    """
    if len(data) > MAX_POLICY_BYTES:
        raise _bad(f"it has {len(data)} bytes, more than {MAX_POLICY_BYTES}", 0)
    if set(data) - _ALLOWED:
        raise _bad("it has control characters other than tab and newline", 0)
    if data and not data.endswith(b"\n"):
        raise _bad("its last line does not end with a newline", data.count(b"\n") + 1)
    reading = _Reading()
    for number, line in enumerate(data.split(b"\n"), start=1):
        words = line.replace(b"\t", b" ").split(b" ")
        reading.read([word.decode("latin-1") for word in words if word], number)
    return reading.policy(data.count(b"\n") + 1)


class _Reading:
    """A policy so far."""

    def __init__(self) -> None:
        self._logs: list[KnownLog] = []
        self._witnesses: list[Witness] = []
        self._groups: dict[str, _Group] = {}
        self._names: set[str] = set()
        self._members: set[str] = set()
        self._quorum: str | None = None

    def read(self, words: list[str], number: int) -> None:
        if not words or words[0].startswith("#"):
            return
        keyword, *rest = words
        if keyword == "log" and len(rest) in (1, 2):
            self._log(rest, number)
        elif keyword == "witness" and len(rest) in (2, 3):
            self._witness(rest, number)
        elif keyword == "group" and len(rest) >= 3:
            self._group(rest, number)
        elif keyword == "quorum" and len(rest) == 1:
            if self._quorum is not None:
                raise _bad("the quorum is given twice", number)
            if rest[0] != NONE and rest[0] not in self._names:
                raise _bad(f"{_shown(rest[0])} is not defined above", number)
            self._quorum = rest[0]
        else:
            raise _bad(f"{_shown(keyword)} with {len(rest)} values is no line of a policy", number)

    def policy(self, last: int) -> Policy:
        if self._quorum is None:
            raise _bad("it has no quorum line", last)
        return Policy(tuple(self._logs), tuple(self._witnesses), self._groups, self._quorum)

    def _log(self, words: list[str], number: int) -> None:
        key = _key(words[0], number)
        try:
            public_of_log_key(key)
        except InvalidError as error:
            raise _bad(f"{key.name}: {error.what}", number) from None
        if any(log.key.public_key == key.public_key for log in self._logs):
            raise _bad("another log line has this public key", number)
        if len(self._logs) >= MAX_NAMES:
            raise _bad(f"it has more than {MAX_NAMES} logs", number)
        self._logs.append(KnownLog(key, words[1] if len(words) > 1 else None))

    def _witness(self, words: list[str], number: int) -> None:
        key = _key(words[1], number)
        if key.sig_type not in _COSIGNATURES:
            raise _bad(f"the key of {key.name} makes no cosignatures", number)
        if any(witness.key.public_key == key.public_key for witness in self._witnesses):
            raise _bad("another witness line has this public key", number)
        self._define(words[0], number)
        self._witnesses.append(Witness(words[0], key, words[2] if len(words) > 2 else None))

    def _group(self, words: list[str], number: int) -> None:
        name, threshold, *members = words
        for member in members:
            if member not in self._names:
                raise _bad(f"{_shown(member)} is not defined above", number)
            if member in self._members:
                raise _bad(f"{_shown(member)} is a member already", number)
            self._members.add(member)
        if threshold == "any":
            least = 1
        elif threshold == "all":
            least = len(members)
        elif threshold.isascii() and threshold.isdecimal() and len(threshold) <= 4 and threshold[0] != "0":
            least = int(threshold)
        else:
            least = 0
        if not 1 <= least <= len(members):
            raise _bad(f"{_shown(threshold)} of {len(members)} members is no threshold", number)
        self._define(name, number)
        self._groups[name] = _Group(least, tuple(members))

    def _define(self, name: str, number: int) -> None:
        if name == NONE or name in self._names:
            raise _bad(f"the name {_shown(name)} is taken", number)
        if len(self._names) >= MAX_NAMES:
            raise _bad(f"it has more than {MAX_NAMES} witnesses and groups", number)
        self._names.add(name)


def cosigned_by(note: Note, policy: Policy) -> dict[str, int]:
    """The witnesses of ``policy`` that cosigned, by their names in it, each with its latest timestamp (s).

    Raises:
        CorruptError: a cosignature by a known key does not verify.
    """
    by_key = {(each.key.name, each.key.key_id): each for each in policy.witnesses}
    keys_by_id(each.key for each in policy.witnesses)  # two that could be mixed up are refused
    found: dict[str, int] = {}
    for signature in note.signatures:
        witness = by_key.get((signature.name, signature.key_id))
        if witness is not None:
            seconds = verify_cosignature(note.text, signature, witness.key)
            found[witness.name] = max(seconds, found.get(witness.name, 0))
    return found


def check_witnessed(data: bytes, policy: Policy) -> tuple[Checkpoint, dict[str, int]]:
    """Return the checkpoint of a note that a log of the policy signed and a quorum cosigned, and who did.

    Raises:
        CorruptError: no known log signed it, a known signature does not verify, or there is no quorum
            (code ``quorum-missed``).
    """
    note = parse_note(data)
    keys = policy.log_keys(note.text.partition("\n")[0])
    if not keys:
        raise CorruptError(
            "the policy names no such log",
            where=note.text.partition("\n")[0][:80],
            remedy="add a `log` line with its verifier key, got from the log's operator by another way",
            code="other-log",
        )
    checkpoint = open_checkpoint(data, keys)
    witnessed = cosigned_by(note, policy)
    if not policy.satisfied_by(witnessed):
        raise CorruptError(
            f"{len(witnessed)} witnesses of the policy cosigned, which is not its quorum",
            where=f"checkpoint of size {checkpoint.size}",
            remedy="ask the log for a checkpoint with more cosignatures",
            code="quorum-missed",
        )
    return checkpoint, witnessed


def _key(text: str, number: int) -> VerifierKey:
    try:
        return parse_vkey(text.encode("latin-1").decode())
    except (InvalidError, UnicodeDecodeError) as error:
        why = error.what if isinstance(error, InvalidError) else "its key is not UTF-8"
        raise _bad(why, number) from None


def _shown(word: str) -> str:
    return repr(word[:80])


def _bad(what: str, number: int) -> InvalidError:
    return InvalidError(
        what,
        where=f"policy, line {number}" if number else "policy",
        remedy="write the policy as C2SP tlog-policy says",
        code="bad-policy",
    )
