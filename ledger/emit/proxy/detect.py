"""Owns the finding out of what an upstream server is: its engine, model and settings, as it tells itself.

Asked are llama.cpp's ``/props``, SGLang's ``/server_info`` (``/get_server_info`` before 0.5), TGI's
``/info``, vLLM's ``/version``, and ``/v1/models``, where vLLM tells of adapters. What a server says of itself
is not proven by it: a deployment file states more, and takes precedence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import urllib3

from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.records import Adapter, Deployment
from ledger.emit.compose import checked_deployment
from ledger.emit.deployment_file import Deployments
from ledger.emit.engines import llama_server, sglang, tgi
from ledger.emit.engines._openai import Body, mapping, model_name, read_json, text_or_none

__all__ = ["Found", "detect", "overridden"]

_TIMEOUT_S = 5.0
_MAX_BYTES = 4 << 20
_MAX_MODELS = 1000
_RETRY_S = 0.5
_NAME_CHARS = 256


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        deployments: what the server generates with; None if it does not tell.
        model_file: of the weights, if they are on this machine.
    """

    deployments: Deployments | None
    model_file: Path | None = None


def detect(
    upstream: str, *, api_key: str | None = None, wait_s: float = 0.0, ca_file: str | None = None
) -> Found:
    """Ask a server what it is.

    Args:
        upstream: its URL.
        api_key: for a server that answers nobody without one.
        wait_s: how long to wait for a server that is not up yet.
        ca_file: see ``Forwarder``.

    Raises:
        UnavailableError: it cannot be reached.
    """
    headers = {"accept": "application/json"} | ({"authorization": f"Bearer {api_key}"} if api_key else {})
    with urllib3.PoolManager(
        headers=headers, timeout=_TIMEOUT_S, retries=False, ca_certs=ca_file, cert_reqs="CERT_REQUIRED"
    ) as http:

        def ask(path: str) -> Body:
            return _ask(http, upstream + path)

        deadline = time.monotonic() + wait_s
        while True:
            try:
                return _found(ask)
            except urllib3.exceptions.HTTPError as error:
                if time.monotonic() < deadline:
                    time.sleep(_RETRY_S)
                    continue
                raise UnavailableError(
                    f"the upstream server cannot be reached ({type(error).__name__})",
                    where=upstream,
                    remedy="start it first, wait for it with --wait, or state --model and --engine",
                    code="unreachable",
                ) from None


def _ask(http: urllib3.PoolManager, url: str) -> Body:
    """A JSON object that the server answers with, or an empty one."""
    response = http.request("GET", url, redirect=False, preload_content=False)
    try:
        if response.status != 200:
            if response.status == 503:  # llama.cpp and others, while they load the model
                raise urllib3.exceptions.HTTPError("loading")
            return {}
        data = response.read(_MAX_BYTES + 1)
        return (read_json(data) or {}) if len(data) <= _MAX_BYTES else {}
    finally:
        response.close()


def _found(ask: Callable[[str], Body]) -> Found:
    models = ask("/v1/models")
    props = ask("/props")
    try:
        if (known := llama_server.deployment_of(props)) is not None:
            return Found(_named(known, models), llama_server.model_file(props))
        info = ask("/server_info") or ask("/get_server_info")
        known = sglang.deployment_of(info) or tgi.deployment_of(ask("/info"))
        if known is None:
            known = _vllm(models, ask("/version"))
        return Found(None if known is None else _named(known, models))
    except (InvalidError, msgspec.MsgspecError):  # a name too long, or the like
        return Found(None)


def _rows(models: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    data = models.get("data")
    rows = [mapping(each) for each in data[:_MAX_MODELS]] if isinstance(data, list) else []
    return [
        row for row in rows if (name := text_or_none(row.get("id"))) is not None and len(name) <= _NAME_CHARS
    ]


def _vllm(models: Mapping[str, Any], version: Mapping[str, Any]) -> Deployment | None:
    """vLLM tells little: its version, and the names of its model and adapters, the model first."""
    rows = _rows(models)
    said = text_or_none(version.get("version"))
    if not rows or said is None or rows[0].get("owned_by") != "vllm":
        return None
    model = model_name(rows[0]["id"]) or "unknown"
    return Deployment(model=model, engine="vllm", engine_version=said)


def _named(known: Deployment, models: Mapping[str, Any]) -> Deployments:
    """The deployments by the names that the server gives its models: adapters are told of by ``parent``."""
    by_name: dict[str, Deployment] = {}
    for row in _rows(models):
        name = str(row["id"])
        if row.get("parent"):
            by_name[name] = msgspec.structs.replace(known, adapters=(Adapter(name=name),))
    return Deployments(checked_deployment(known), by_name)


def overridden(
    found: Deployments | None,
    *,
    model: str | None = None,
    engine: str | None = None,
    version: str | None = None,
    provider: str | None = None,
    region: str | None = None,
    site: str | None = None,
) -> Deployments:
    """What was found, with what the operator states.

    Raises:
        InvalidError: neither tells the model and the engine, or a value has not its form.
    """
    stated = {
        name: value
        for name, value in (
            ("model", model),
            ("engine", engine),
            ("version", version),
            ("provider", provider),
            ("region", region),
            ("site", site),
        )
        if value is not None
    }
    if found is not None:
        shared = {name: value for name, value in stated.items() if name not in ("model", "version")}
        models = {name: msgspec.structs.replace(each, **shared) for name, each in found.models.items()}
        return Deployments(checked_deployment(msgspec.structs.replace(found.default, **stated)), models)
    if model is None or engine is None:
        raise InvalidError(
            "the upstream server does not tell what it is",
            remedy="state --model and --engine, or name a --deployment file",
            code="no-deployment",
        )
    return Deployments(
        checked_deployment(msgspec.structs.replace(Deployment(model=model, engine=engine), **stated))
    )
