"""``tallystick budgets``: limits on what tenants and models use, where they stand, and alerts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import ApiKeyFile, Json, Target, command

if TYPE_CHECKING:
    from cli.client import Client

__all__ = ["app"]

app = typer.Typer(help="Set, list and remove budgets; see their alerts.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Of the budget: lower-case letters, digits and . _ -")
]


class Of(StrEnum):
    """What a budget limits."""

    TOKENS = "tokens"
    COST = "cost_nano"
    ENERGY = "energy_uj"
    CARBON = "carbon_ng"


@command(
    app,
    "tallystick budgets set ledger-data acme-day --tenant acme --limit 1000000 --window day",
    "tallystick budgets set ledger-data each --tenant '*' --of cost_nano --currency USD --limit 50000000000",
    "tallystick budgets set http://127.0.0.1:8090 grid --of carbon_ng --limit 9000000000000 --alert-only",
    name="set",
)
def set_(
    target: Target,
    name: Name,
    limit: Annotated[int, typer.Option(min=1, help="How much within the window, in the unit of --of.")],
    of: Annotated[
        Of,
        typer.Option(help="tokens (input and output), or billionths of money, microjoules, nanograms CO2e."),
    ] = Of.TOKENS,
    window: Annotated[
        str, typer.Option(metavar="WINDOW", help="day, month (UTC), or a rolling one such as 24h or 7d.")
    ] = "month",
    tenant: Annotated[
        str | None,
        typer.Option(
            metavar="TENANT",
            help="As records name it; * for each by itself. Without it, the use of all together.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Use of this model alone.")] = None,
    currency: Annotated[
        str | None, typer.Option(metavar="CODE", help="Of cost_nano, such as USD; needed with it.")
    ] = None,
    alert: Annotated[
        list[int] | None,
        typer.Option(metavar="PERCENT", help="Alert there; may be repeated. Default: 80 and 100."),
    ] = None,
    alert_only: Annotated[
        bool, typer.Option("--alert-only", help="Never refuse: only count and alert.")
    ] = False,
    api_key_file: ApiKeyFile = None,
    json: Json = False,
) -> None:
    """Set a budget, or change the one of its name. What was used in its present window counts at once.

    With --json: the budget, as `tallystick budgets list` shows it.
    """
    from cli.output import print_json
    from ledger.cost.budgets import DEFAULT_ALERTS

    wanted = {
        "name": name,
        "measure": of.value,
        "limit": limit,
        "window": window,
        "tenant": tenant,
        "model": model,
        "currency": currency,
        "alerts": list(DEFAULT_ALERTS if alert is None else alert),
        "refuse": not alert_only,
    }
    made = _Budgets(target, api_key_file).set(wanted)
    if json:
        print_json(made)
    else:
        _show([made])


@command(
    app,
    "tallystick budgets list ledger-data",
    "tallystick budgets list http://127.0.0.1:8090 --api-key-file reader.key --json",
    name="list",
)
def list_(target: Target, api_key_file: ApiKeyFile = None, json: Json = False) -> None:
    """List budgets and where they stand in the window of now.

    With --json: budgets, each with name, measure, limit, window, alerts, refuse, and tenant, model and
    currency where it has them; standings, each with tenant, window_start_s, window_end_s, used, reserved,
    records and unknown_records (that do not tell the figure).
    """
    from cli.output import note, print_json

    found = _Budgets(target, api_key_file).all()
    if json:
        print_json({"budgets": found})
    elif found:
        _show(found)
    else:
        note("there are no budgets")


@command(
    app,
    "tallystick budgets show ledger-data acme-day",
)
def show(target: Target, name: Name, api_key_file: ApiKeyFile = None, json: Json = False) -> None:
    """Show one budget and where it stands.

    With --json: the budget, as `tallystick budgets list` shows it.
    """
    from cli.output import print_json
    from ledger.core.errors import InvalidError

    for found in _Budgets(target, api_key_file).all():
        if found["name"] == name:
            if json:
                print_json(found)
            else:
                _show([found])
            return
    raise InvalidError(
        "there is no such budget", where=name[:80], remedy="see `tallystick budgets list`", code="not-found"
    )


@command(
    app,
    "tallystick budgets remove ledger-data acme-day",
)
def remove(target: Target, name: Name, api_key_file: ApiKeyFile = None, json: Json = False) -> None:
    """Remove a budget with its counts and alerts. Records stay as they are.

    With --json: name.
    """
    from cli.output import note, print_json

    _Budgets(target, api_key_file).remove(name)
    if json:
        print_json({"name": name})
    else:
        note(f"removed {name}")


@command(
    app,
    "tallystick budgets alerts ledger-data",
    "tallystick budgets alerts ledger-data --since 2026-02-01 --json",
)
def alerts(
    target: Target,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Noticed at this time or later.")
    ] = None,
    api_key_file: ApiKeyFile = None,
    json: Json = False,
) -> None:
    """List alerts, newest first, each with the record that reached the threshold, or was to be refused.

    With --json: alerts, each with budget, tenant, period_start_s, kind (threshold or refused), percent of a
    threshold, record, used, limit, noticed_s.
    """
    from cli import figures
    from cli.output import note, print_json, table

    since_us = figures.parse_time(since, "--since")
    found = _Budgets(target, api_key_file).alerts((since_us or 0) // 1_000_000)
    if json:
        print_json({"alerts": found})
        return
    if not found:
        note("there are no alerts")
        return
    columns = ("noticed", "budget", "tenant", "what", "used", "limit", "record")
    rows = [
        (
            figures.time(each["noticed_s"] * 1_000_000),
            each["budget"],
            each["tenant"],
            "refused" if each["kind"] == "refused" else f"{each['percent']} %",
            figures.count(each["used"]),
            figures.count(each["limit"]),
            each["record"],
        )
        for each in found
    ]
    table(columns, rows, right=("used", "limit"))


def _show(budgets: list[dict[str, Any]]) -> None:
    from cli import figures
    from cli.output import table

    columns = ("budget", "tenant", "model", "of", "used", "reserved", "limit", "%", "window ends")
    rows = []
    for budget in budgets:
        for at in budget["standings"] or [{}]:
            used = at.get("used", 0)
            ends = at.get("window_end_s")
            rows.append(
                (
                    budget["name"] + ("" if budget["refuse"] else " (alerts only)"),
                    at.get("tenant") or budget.get("tenant") or "",
                    budget.get("model", ""),
                    budget["measure"] + (f" {budget['currency']}" if "currency" in budget else ""),
                    figures.count(used),
                    figures.count(at.get("reserved", 0)),
                    figures.count(budget["limit"]),
                    str(used * 100 // budget["limit"]),
                    budget["window"] if ends is None else figures.time(ends * 1_000_000),
                )
            )
    table(columns, rows, right=("used", "reserved", "limit", "%"))


class _Budgets:
    """The budgets of a ledger in a folder, or behind a service; both answer alike."""

    def __init__(self, target: str, api_key_file: Path | None) -> None:
        from cli.target import is_url

        self._client: Client | None = None
        self._folder: Any = None
        self._store: Any = None
        if is_url(target):
            from cli.client import Client, read_api_key

            self._client = Client(target, read_api_key(api_key_file))
        else:
            from cli.folder import open_folder

            self._folder = open_folder(Path(target))
            self._store = self._folder.open()

    def set(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if self._client is not None:
            made: dict[str, Any] = self._client.post_json("/budgets", wanted)
            return made
        from ledger.cost.budgets import Budget
        from ledger.service.admin import enact_budget

        budget = Budget(**wanted | {"alerts": tuple(wanted["alerts"])})
        with self._folder.sequencer(self._store) as sequencer:
            enact_budget(sequencer, self._store, budget)
        return next(each for each in self.all() if each["name"] == wanted["name"])

    def all(self) -> list[dict[str, Any]]:
        if self._client is not None:
            found: list[dict[str, Any]] = self._client.get_json("/budgets")["budgets"]
            return found
        import time

        from ledger.service.budget_counting import count_now
        from ledger.service.budgets import described

        count_now(self._store)
        with self._store.read() as connection:
            return described(connection, int(time.time()))

    def remove(self, name: str) -> None:
        if self._client is not None:
            from urllib.parse import quote

            self._client.post_json(f"/budgets/{quote(name, safe='')}/remove", {})
            return
        from ledger.service.admin import repeal_budget

        with self._folder.sequencer(self._store) as sequencer:
            repeal_budget(sequencer, self._store, name)

    def alerts(self, since_s: int) -> list[dict[str, Any]]:
        if self._client is not None:
            found: list[dict[str, Any]] = self._client.get_json("/budgets/alerts", {"since_s": since_s})[
                "alerts"
            ]
            return found
        from ledger.service.budget_counting import count_now
        from ledger.service.budgets import described_alert
        from ledger.store import budgets as rows

        count_now(self._store)
        with self._store.read() as connection:
            return [described_alert(each) for each in rows.alerts(connection, since_s=since_s)]
