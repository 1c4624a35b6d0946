"""What administrators do to API keys and budgets, with its trail in the log."""

from __future__ import annotations

from collections.abc import Iterable

from ledger.cost.budgets import Budget, checked_budget
from ledger.service import budget_counting as counting
from ledger.service.auth import new_api_key, revoke
from ledger.store import Sequencer, Store
from ledger.store.acts import OPERATOR, administer

__all__ = ["enact_budget", "grant_api_key", "repeal_budget", "withdraw_api_key"]


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


def enact_budget(sequencer: Sequencer, store: Store, budget: Budget, *, by: str = OPERATOR) -> Budget:
    """Log that a budget is set, and set it: in this order, and not as one, since counting takes its time.

    Raises:
        InvalidError: ``bad-budget``.
    """
    budget = checked_budget(budget)
    said: dict[str, str | int | None] = {
        "budget": budget.name,
        "measure": budget.measure,
        "limit": str(budget.limit),
        "window": budget.window,
        "currency": budget.currency,
        "tenant": budget.tenant,
        "model": budget.model,
        "alerts": " ".join(map(str, budget.alerts)),
        "refuse": int(budget.refuse),
    }
    sequencer.log_own(administer("budget.set", said, by=by)).result()
    return counting.set_budget(store, budget)


def repeal_budget(sequencer: Sequencer, store: Store, name: str, *, by: str = OPERATOR) -> None:
    """Log that a budget is removed, and remove it, in this order.

    Raises:
        InvalidError: there is none of this name.
    """
    with store.read() as connection:
        if name not in {budget.name for budget in counting.list_budgets(connection)}:
            raise counting.no_budget(name)
    sequencer.log_own(administer("budget.remove", {"budget": name}, by=by)).result()
    counting.remove_budget(store, name)
