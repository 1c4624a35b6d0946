"""What administrators do to API keys, with its trail in the log."""

from __future__ import annotations

from collections.abc import Iterable

from ledger.service.auth import new_api_key, revoke
from ledger.store import Sequencer
from ledger.store.acts import administer

__all__ = ["grant_api_key", "withdraw_api_key"]


def grant_api_key(
    sequencer: Sequencer, label: str, scopes: Iterable[str], *, tenant: str | None = None
) -> str:
    """Make an API key, and log that it was made, with which scopes and for which tenant.

    Returns:
        The token. It is not kept: whoever loses it needs a new one.

    Raises:
        InvalidError: no scope, an unknown one, an unusable label or tenant.
    """
    made = new_api_key(label, scopes, tenant=tenant)
    said: dict[str, str | int | None] = {
        "key": made.values["id"],
        "label": label,
        "scopes": made.values["scopes"],
        "tenant": tenant,
        "token_sha256": made.values["token_sha256"].hex(),
    }
    sequencer.log_own(administer("api-key.create", said, made.insert)).result()
    return made.token


def withdraw_api_key(sequencer: Sequencer, key_id: str) -> None:
    """Revoke an API key by its id, and log it.

    Raises:
        InvalidError: there is no such key.
    """
    said = {"revoked_key": key_id[:40]}
    sequencer.log_own(
        administer("api-key.revoke", said, lambda connection: revoke(connection, key_id))
    ).result()
