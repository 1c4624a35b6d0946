"""``tallystick monitor``: follow logs, and raise the alarm where one contradicts itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.errors import CANNOT_TELL, REFUTED, SOUND
from cli.options import ApiKeyFile, Json, LogKey, PolicyFile

if TYPE_CHECKING:
    from ledger.monitor.follow import Depth, Followed
    from ledger.monitor.run import LogReport

__all__ = ["EXAMPLES", "monitor"]

EXAMPLES = (
    "tallystick monitor https://log.example.com --log-key log.vkey --state monitor-data",
    "tallystick monitor --policy trust.policy --state monitor-data --webhook https://alerts.example.com/hook",
    "tallystick monitor https://log.example.com --log-key log.vkey --state monitor-data --once --json",
)


def monitor(
    state: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the monitor's memory; made if it is not there.")
    ],
    url: Annotated[
        list[str] | None,
        typer.Argument(metavar="[URL]...", help="Logs to follow; else those of the policy that have a URL."),
    ] = None,
    log_key: LogKey = None,
    policy: PolicyFile = None,
    depth: Annotated[
        Literal["tree", "entries", "records"],
        typer.Option(help="What to check: growth alone; all new entries and chains; their records too."),
    ] = "entries",
    every: Annotated[int, typer.Option(min=1, metavar="SECONDS", help="Time between two rounds.")] = 60,
    once: Annotated[bool, typer.Option("--once", help="Make one round and end.")] = False,
    max_age: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Alarm if the newest cosignature (without policy: the last growth) is older. 0: never.",
        ),
    ] = 0,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="Where new alarms are sent, as JSON by POST.")
    ] = None,
    metrics_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write metrics there after each round (Prometheus).")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, metavar="PORT", help="Serve metrics on this port of 127.0.0.1."),
    ] = None,
    api_key_file: ApiKeyFile = None,
    json: Json = False,
) -> None:
    """Follow logs: check that each only grows, that its entries and issuers' chains hold, and who cosigned.

    Exit code with --once: 0 all is well, 1 a log contradicts itself, 2 something could not be told (a log
    or witness that does not answer, a missing quorum). Without it, it runs until it is stopped, and the code
    is the worst seen. Contradicting checkpoints are kept under DIR/evidence. The webhook's bearer token is
    read from TALLYSTICK_WEBHOOK_TOKEN; internal hosts from TALLYSTICK_INTERNAL_HOSTS.

    With --json: one document each round: a list of log, url, size, entries, records, seconds, alarms (code,
    what, where, grave, new).
    """
    import os
    import time

    from cli.output import print_json
    from ledger.monitor.run import Monitor, Webhook
    from ledger.outgoing import check_url, reach_from_environment

    reach = reach_from_environment()
    hook = None
    if webhook is not None:
        check_url(webhook, reach)
        hook = Webhook(webhook, reach, os.environ.get("TALLYSTICK_WEBHOOK_TOKEN"))
    logs = _logs(url or [], log_key, policy, depth, api_key_file, max_age)
    running = Monitor(logs, state, hook)
    server = None if metrics_port is None else running.serve_metrics("127.0.0.1", metrics_port)
    worst = SOUND
    try:
        while True:
            reports = running.round()
            worst = _worse(worst, _code(reports))
            if metrics_file is not None:
                running.write_metrics(metrics_file)
            if json:
                print_json([_described(each) for each in reports])
            else:
                _print(reports)
            if once:
                break
            time.sleep(every)
    except KeyboardInterrupt:
        pass
    finally:
        if server is not None:
            server.shutdown()
    raise typer.Exit(worst)


def _logs(
    urls: list[str],
    log_key: str | None,
    policy: Path | None,
    depth: Depth,
    api_key_file: Path | None,
    max_age: int,
) -> list[Followed]:
    from cli.audit import read_trust
    from cli.client import read_api_key
    from ledger.core.errors import InvalidError
    from ledger.core.log_keys import parse_log_keys
    from ledger.core.policy import parse_policy
    from ledger.monitor.follow import Followed
    from ledger.outgoing import reach_from_environment
    from ledger.witness.ask import WitnessClient

    parsed = None if policy is None else parse_policy(policy.read_bytes())
    # For records, or where the log is closed to strangers (TALLYSTICK_PUBLIC_LOG=false).
    api_key = read_api_key(api_key_file) if depth == "records" or api_key_file is not None else None
    reach = reach_from_environment()

    def followed(url: str, keys: Any) -> Followed:
        clients = [] if parsed is None else [each for each in parsed.witnesses if each.url is not None]
        return Followed(
            url.rstrip("/"),
            tuple(keys),
            depth,
            api_key,
            parsed,
            tuple(WitnessClient(each, timeout_s=10, reach=reach) for each in clients),
            max_age,
        )

    if len(urls) == 1 or log_key is not None:
        if len(urls) != 1:
            raise InvalidError(
                "--log-key is about one log",
                where="--log-key",
                remedy="name one URL, or a policy with `log` lines that have URLs",
                code="bad-target",
            )
        return [followed(urls[0], parse_log_keys(read_trust(log_key, policy)[0]))]
    known = [] if parsed is None else [log for log in parsed.logs if log.url is not None]
    found = {log.url: log.key.name for log in known if log.url is not None and (not urls or log.url in urls)}
    if not found or parsed is None or set(urls) - found.keys():
        raise InvalidError(
            "there is no log to follow",
            where="policy",
            remedy="name a URL and --log-key, or a policy with `log` lines that have these URLs",
            code="bad-target",
        )
    if len(found) > 1 and api_key is not None:
        raise InvalidError(
            "an API key is one log's, and would be shown to all of these",
            where="--api-key-file",
            remedy="follow logs that need keys by a monitor each",
            code="bad-target",
        )
    return [followed(url, parsed.log_keys(origin)) for url, origin in found.items()]


def _code(reports: list[LogReport]) -> int:
    alarms = [alarm for each in reports for alarm in each.alarms]
    if any(alarm.grave for alarm in alarms):
        return REFUTED
    return CANNOT_TELL if alarms else SOUND


def _worse(one: int, other: int) -> int:
    order = (SOUND, CANNOT_TELL, REFUTED)
    return max(one, other, key=order.index)


def _described(report: LogReport) -> dict[str, Any]:
    return {
        "log": report.origin,
        "url": report.url,
        "size": report.size,
        "entries": report.entries,
        "records": report.records,
        "seconds": report.seconds,
        "alarms": [
            {
                "code": each.code,
                "what": each.what,
                "where": each.where,
                "grave": each.grave,
                "new": each in report.new,
            }
            for each in report.alarms
        ],
    }


def _print(reports: list[LogReport]) -> None:
    from cli.output import fields, table

    table(
        ("log", "size", "new entries", "alarms"),
        [(each.origin, f"{each.size:,}", f"{each.entries:,}", str(len(each.alarms))) for each in reports],
        right=("size", "new entries", "alarms"),
    )
    fields(
        ("ALARM" if alarm.grave else "notice", f"{each.origin}: {alarm.code}: {alarm.what} ({alarm.where})")
        for each in reports
        for alarm in each.new
    )
