"""``tallystick correction``: restate figures of records; the old ones stay in the log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli.options import ApiKeyFile, Json, command
from cli.spool import LedgerUrl, LogKey, Timeout
from cli.submission import SigningKeyFile, SubmissionSpool

__all__ = ["app"]

app = typer.Typer(help="Restate figures of records; the old ones stay.", no_args_is_help=True)

Energy = Annotated[
    int | None, typer.Option(min=0, help="Energy in microjoules; restated whole, with its range.")
]
Low = Annotated[int | None, typer.Option(min=0, help="Low end of the energy's range, microjoules.")]
High = Annotated[int | None, typer.Option(min=0, help="High end of the energy's range, microjoules.")]
Carbon = Annotated[int | None, typer.Option(min=0, help="Location-based CO2e in nanograms.")]
Market = Annotated[int | None, typer.Option(min=0, help="Market-based CO2e in nanograms.")]
Embodied = Annotated[int | None, typer.Option(min=0, help="Embodied CO2e of the hardware in nanograms.")]
Water = Annotated[int | None, typer.Option(min=0, help="Water in nanolitres.")]
Cost = Annotated[int | None, typer.Option(min=0, help="Cost in billionths of the record's currency.")]


@app.callback()
def correction() -> None:
    """Restate figures of records; the old ones stay."""


@command(
    app,
    "tallystick correction submit --record 01a20a9b-7ea7-77ff-a448-fa57bb0fd68e --energy-uj 1200000 "
    "--reason 'meter was miscalibrated' --spool spool --url https://log.example.com --log-key log.vkey",
    "tallystick correction submit --file restated.csv --spool spool --json",
)
def submit(
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="CSV or JSON with record, reason and figures, instead of the options below."
        ),
    ] = None,
    record: Annotated[str | None, typer.Option(metavar="ID", help="The record's id.")] = None,
    reason: Annotated[str | None, typer.Option(metavar="WORDS", help="Why; everybody reads it.")] = None,
    energy_uj: Energy = None,
    low_uj: Low = None,
    high_uj: High = None,
    method: Annotated[
        Literal["measured", "modelled", "estimated"] | None,
        typer.Option(help="How the restated energy is known; the record's own by default."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Where it comes from; the record's own by default.")
    ] = None,
    carbon_ng: Carbon = None,
    carbon_market_ng: Market = None,
    embodied_ng: Embodied = None,
    water_nl: Water = None,
    cost_nano: Cost = None,
    spool: SubmissionSpool = None,
    url: LedgerUrl = None,
    log_key: LogKey = None,
    api_key_file: ApiKeyFile = None,
    key: SigningKeyFile = None,
    timeout: Timeout = 60.0,
    json: Json = False,
) -> None:
    """Sign corrections of this issuer's own records and log them. Views then show both figures.

    It signs into the spool of the recorder that made the records, which may run meanwhile. Energy is restated
    whole, with its range; what is not named is not changed. Sending the same again changes nothing. Needs an
    API key of scopes emit and read.

    With --json: issuer, new, statements (each leaf_hash, leaf_index, new, record).
    """
    from cli.output import fields, print_json
    from cli.spool import open_client
    from cli.submission import open_submission, send, told
    from ledger.core.errors import InvalidError
    from ledger.emit import corrections

    one: dict[str, Any] = {
        "record": record, "reason": reason, "energy_uj": energy_uj, "low_uj": low_uj, "high_uj": high_uj,
        "method": method, "source": source, "carbon_ng": carbon_ng, "carbon_market_ng": carbon_market_ng,
        "embodied_ng": embodied_ng, "water_nl": water_nl, "cost_nano": cost_nano,
    }  # fmt: skip
    one = {name: value for name, value in one.items() if value is not None}
    if (file is None) is not bool(one):
        raise InvalidError(
            "there must be either --file or --record with figures",
            remedy="see `tallystick correction submit --help`",
            code="bad-correction",
        )
    said = (
        [corrections.restatement(one)]
        if file is None
        else corrections.read_corrections(file.read_bytes(), where=str(file))
    )
    where = open_submission(spool, None, new=False)
    client, log = open_client(url, log_key, api_key_file)
    contents = [
        corrections.correction(each, *corrections.fetch_record(client, each.record, where.issuer))
        for each in said
    ]
    found = told(where, send(where, key, contents, client, log, timeout))
    if json:
        print_json(found)
        return
    count = len(found["statements"])
    fields(
        [("issuer", found["issuer"]), ("corrections", f"{count:,} in the log, {found['new']:,} of them new")]
    )
