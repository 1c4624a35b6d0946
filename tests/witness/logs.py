"""A small log of made-up leaves for witness tests, with the forks and lies that witnesses must refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from ledger.core.checkpoint import Checkpoint
from ledger.core.keys import PrivateKey, generate_key
from ledger.core.log_keys import log_verifier_key, sign_tree_head
from ledger.core.merkle import consistency_path, leaf_hash, root
from ledger.core.note import VerifierKey
from ledger.witness.wire import AddCheckpoint, format_request

ORIGIN = "log.example.com/witnessed"


@dataclass
class MadeLog:
    """A log whose leaf ``n`` is a hash of its name and ``n``; from ``forks_at`` on, of another name."""

    origin: str = ORIGIN
    key: PrivateKey = field(default_factory=generate_key)
    forks_at: int | None = None

    @property
    def vkey(self) -> VerifierKey:
        return log_verifier_key(self.origin, self.key.public)

    def fork(self, at: int) -> MadeLog:
        return MadeLog(self.origin, self.key, at)

    def leaves(self, size: int) -> list[bytes]:
        fork = size if self.forks_at is None else self.forks_at
        return [
            leaf_hash(sha256(f"{'fork' if n >= fork else 'log'} {n}".encode()).digest()) for n in range(size)
        ]

    def tree(self, size: int) -> Checkpoint:
        return Checkpoint(self.origin, size, root(self.leaves(size)))

    def note(self, size: int, *, keys: Sequence[PrivateKey] = ()) -> bytes:
        return sign_tree_head(self.tree(size), keys or (self.key,), 1_700_000_000)

    def prove(self, old: int, new: int) -> tuple[bytes, ...]:
        return tuple(consistency_path(self.leaves(new), old)) if 0 < old < new else ()

    def request(self, old: int, new: int) -> bytes:
        return format_request(AddCheckpoint(old, self.prove(old, new), self.note(new)))
