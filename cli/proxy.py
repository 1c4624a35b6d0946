"""``tallystick proxy``: record what the server behind it generates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.options import Json

if TYPE_CHECKING:
    from ledger.core.records import Deployment
    from ledger.emit.proxy.serve import Options
    from ledger.emit.recorder import Recorder

__all__ = ["EXAMPLES", "proxy"]

EXAMPLES = (
    "tallystick proxy --upstream http://127.0.0.1:8000",
    "tallystick proxy --upstream http://127.0.0.1:8000 --port 8080 --wait 120",
    "tallystick proxy --upstream https://api.openai.com --deployment openai.toml",
    "tallystick proxy --upstream http://10.0.0.7:30000 --model Qwen3-8B --engine sglang --region DE",
)


def proxy(
    upstream: Annotated[
        str, typer.Option(metavar="URL", help="The server behind. Only this one is ever spoken to.")
    ],
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Address to listen on. On others than this, use --certificate and --key."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 8080,
    deployment: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML or JSON file that says what generates. Else the server is asked.",
            envvar="TALLYSTICK_DEPLOYMENT",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model's name, if not as the server says.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="What serves it: vllm, sglang, tgi, llama.cpp, or another name.")
    ] = None,
    model_version: Annotated[str | None, typer.Option(help="The model's version.")] = None,
    provider: Annotated[str | None, typer.Option(help="Who serves it.")] = None,
    region: Annotated[str | None, typer.Option(help="Where, as a grid or cloud region.")] = None,
    site: Annotated[str | None, typer.Option(help="Where, as a place.")] = None,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Wait so long for the server to come up.")
    ] = 0.0,
    upstream_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="API key to ask the server with what it is; not for clients."),
    ] = None,
    upstream_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM file of the authorities of an https upstream's certificate."),
    ] = None,
    tenant_header: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Request header that names the tenant. Set it only if a gateway in front controls it.",
            envvar="TALLYSTICK_TENANT_HEADER",
        ),
    ] = None,
    parent_header: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Request header with the id of the record that caused the request; likewise.",
            envvar="TALLYSTICK_PARENT_HEADER",
        ),
    ] = None,
    ask_usage: Annotated[
        bool, typer.Option(help="Ask for the usage of streams. Some old servers refuse stream_options.")
    ] = True,
    ask_ids: Annotated[
        bool, typer.Option(help="Ask for token ids, of engines that are known to show them.")
    ] = True,
    connect_timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Time to connect to the server behind.")
    ] = 10.0,
    silence_timeout: Annotated[
        float,
        typer.Option(
            min=1, metavar="SECONDS", help="Time between two pieces of an answer, and to the first."
        ),
    ] = 600.0,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Largest body of a request, in megabytes.")] = 256,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM certificate, to serve HTTPS.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM key of --certificate.")] = None,
    log_level: Annotated[
        Literal["error", "warning", "info", "debug"], typer.Option(help="How much to log, to stderr.")
    ] = "info",
    json: Json = False,
) -> None:
    """Record what an OpenAI-compatible server generates, with no change to that server.

    Clients speak to this address instead of the server's. Requests and answers pass as they are; each answer
    names its record in the header x-tallystick-record. Where records go is read from the environment
    (TALLYSTICK_URL, TALLYSTICK_API_KEY, TALLYSTICK_LOG_KEY, TALLYSTICK_SPOOL). With TALLYSTICK_BUDGETS=open
    or closed, the ledger's budgets are asked before each generation, and one without room is answered 429. It
    serves until it is told to stop (Ctrl-C, SIGTERM); then running requests are finished, and the last
    records sent.

    Exit codes: 0 stopped (records that could not be sent wait in the spool), 2 it could not serve.

    With --json: url, upstream, issuer, public_key, deployment; written before it listens.
    GET /.tallystick/healthz tells when it does.
    """
    import logging

    from cli.output import note
    from ledger.core.errors import InvalidError
    from ledger.emit.deployment_file import read_deployments
    from ledger.emit.proxy.detect import Found, detect, overridden
    from ledger.emit.proxy.forward import Limits, checked_upstream
    from ledger.emit.proxy.serve import Options, serve

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    if (certificate is None) != (key is None):
        raise InvalidError(
            "certificate and key belong together", remedy="give --certificate and --key", code="bad-setting"
        )
    _check_pem(certificate, key, upstream_ca)
    upstream = checked_upstream(upstream)
    found = Found(None)
    if deployment is not None:
        found = Found(read_deployments(deployment))
    elif model is None or engine is None:
        api_key = upstream_key_file.read_text().strip() if upstream_key_file else None
        found = detect(
            upstream, api_key=api_key, wait_s=wait, ca_file=str(upstream_ca) if upstream_ca else None
        )
    known = overridden(
        found.deployments,
        model=model,
        engine=engine,
        version=model_version,
        provider=provider,
        region=region,
        site=site,
    )
    options = Options(
        upstream=upstream,
        host=host,
        port=port,
        limits=Limits(connect_timeout, silence_timeout, max_body_mb << 20),
        ca_file=str(upstream_ca) if upstream_ca else None,
        tenant_header=tenant_header,
        parent_header=parent_header,
        ask_usage=ask_usage,
        ask_ids=ask_ids,
        certificate=None if certificate is None or key is None else (certificate, key),
        log_level=log_level,
    )
    delivered = serve(
        options,
        known,
        model_file=found.model_file,
        ready=lambda recorder: _tell(recorder, options, known.default, json),
    )
    if not delivered:
        note("some records wait in the spool: the next start sends them, or `tallystick spool flush`")


def _check_pem(certificate: Path | None, key: Path | None, authorities: Path | None) -> None:
    """Read the PEM files now, where it can be said which of them is wrong."""
    import ssl

    from ledger.core.errors import InvalidError

    try:
        if certificate is not None and key is not None:
            where = f"--certificate {certificate} --key {key}"
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
        if authorities is not None:
            where = f"--upstream-ca {authorities}"
            ssl.create_default_context(cafile=authorities)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InvalidError(
            f"cannot be used: {str(getattr(error, 'strerror', None) or error).lower()}",
            where=where,
            remedy="name PEM files that this user may read: a certificate and its own key, without password",
            code="bad-setting",
        ) from None


def _tell(recorder: Recorder, options: Options, deployment: Deployment, json: bool) -> None:
    """Say what listens where, before it does."""
    from cli.output import note, print_json

    scheme = "http" if options.certificate is None else "https"
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"{scheme}://{host}:{options.port}"
    if json:
        told = {
            "url": url,
            "upstream": options.upstream,
            "issuer": recorder.issuer,
            "public_key": recorder.public_key.to_pem().decode(),
            "deployment": deployment,
        }
        print_json(told)
        return
    note(f"recording {deployment.model} on {deployment.engine} as issuer {recorder.issuer}")
    note(f"{url} passes requests on to {options.upstream}; stop with Ctrl-C")
