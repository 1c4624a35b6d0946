"""A ledger's folder: where its database, keys and published checkpoint are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ledger.core.errors import InvalidError

if TYPE_CHECKING:
    from ledger.store import Sequencer, Store

__all__ = ["DATABASE_VARIABLE", "POLICY_FILE", "Folder", "ask_witnesses", "open_folder"]

DATABASE_VARIABLE = "TALLYSTICK_DATABASE"
"""URL of the database, if it is not in the folder. Never an option: it may hold a password."""
POLICY_FILE = "witnesses.policy"
"""In a ledger's folder: the witnesses to be asked."""
_POLICY_VARIABLE = "TALLYSTICK_WITNESS_POLICY"


@dataclass(frozen=True)
class Folder:
    """What ``tallystick init`` makes."""

    path: Path

    @property
    def database(self) -> str:
        """Path or URL of the database."""
        return os.environ.get(DATABASE_VARIABLE) or str(self.path / "ledger.db")

    @property
    def log_key(self) -> Path:
        """The log's private key, mode 0600."""
        return self.path / "keys" / "log.pem"

    @property
    def vkey(self) -> Path:
        """The log's verifier key, to publish."""
        return self.path / "log.vkey"

    @property
    def admin_key(self) -> Path:
        """An API key of scope admin, mode 0600."""
        return self.path / "admin.key"

    @property
    def published(self) -> Path:
        """The checkpoint last published, outside the database."""
        return self.path / "published.checkpoint"

    @property
    def policy(self) -> Path | None:
        """The policy with the witnesses that are to be asked; None if there is none."""
        named = os.environ.get(_POLICY_VARIABLE)
        path = Path(named) if named else self.path / POLICY_FILE
        return path if named or path.is_file() else None

    def waits_for_quorum(self) -> bool:
        """Whether nothing is published before a quorum of witnesses cosigned it, as the service is told.

        Raises:
            InvalidError: the policy, or a setting of the service, is not usable.
        """
        if self.policy is None:
            return False
        from ledger.core.policy import NONE
        from ledger.service.settings import settings_from_environment
        from ledger.service.witnessing import load_policy

        at_once = settings_from_environment().publish_unwitnessed
        return not at_once and load_policy(self.policy).quorum != NONE

    def open(self) -> Store:
        """Open the database."""
        from ledger.store import open_store

        return open_store(self.database)

    @contextmanager
    def sequencer(self, store: Store) -> Iterator[Sequencer]:
        """What appends to the log while the block runs; a service may go on appending beside it."""
        from ledger.signers import load_signer
        from ledger.store import Sequencer

        old = self.log_key.with_name("log-old.pem")  # the one before, while it still signs checkpoints
        sequencer = Sequencer(
            store,
            load_signer(self.log_key),
            beside=[load_signer(old)] if old.is_file() else [],
            published=self.published,
        )
        if self.policy is not None:
            ask_witnesses(store, self.policy)
        sequencer.start()
        try:
            yield sequencer
        finally:
            sequencer.stop()

    def check_seen(self, store: Store) -> None:
        """For what signs without a sequencer: compare with the published checkpoint, ask the witnesses.

        Raises:
            CorruptError: somebody has seen more of the log, or another history: signing would fork it.
        """
        from ledger.store.log_keys import log_verifier_keys
        from ledger.store.startup import check_consistent

        with store.read() as connection:
            keys = log_verifier_keys(connection)
        check_consistent(store, keys, self.published)
        if self.policy is not None:
            ask_witnesses(store, self.policy)


def ask_witnesses(store: Store, policy: Path, *, strict: bool = False) -> None:
    """Have the witnesses of a policy say that they saw no more of the log than is in ``store``.

    Args:
        store: the log's.
        policy: the policy's file.
        strict: whether each witness must answer; else those that do not are logged.

    Raises:
        CorruptError: one saw more, or another history.
        TallystickError: with ``strict``: one does not answer.
    """
    from ledger.outgoing import reach_from_environment
    from ledger.service.witnessing import Witnessing, load_policy
    from ledger.store.log_keys import log_verifier_keys

    with store.read() as connection:
        keys = log_verifier_keys(connection)
    asking = Witnessing(store, load_policy(policy), keys, reach=reach_from_environment())
    asking.check_before_start(strict=strict)


def open_folder(path: Path, *, or_url: bool = False) -> Folder:
    """The ledger in ``path``.

    Args:
        path: the folder.
        or_url: whether a service's URL would have done.

    Raises:
        InvalidError: there is none.
    """
    folder = Folder(path)
    if not folder.log_key.is_file() or ("://" not in folder.database and not Path(folder.database).is_file()):
        raise InvalidError(
            "is not a ledger's folder",
            where=str(path),
            remedy="name the folder that `tallystick init` made"
            + (", or the URL of a service (http://...)" if or_url else ""),
            code="no-ledger",
        )
    return folder
