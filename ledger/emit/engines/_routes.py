"""Owns which requests are generations, and how each is read: by path, and by engine where it has its own.

Besides OpenAI's API, some servers (vLLM, llama.cpp) serve Anthropic's, ``/v1/messages``, and some (vLLM) that
of SageMaker, ``/invocations``, whose body tells what is asked for.
"""

from __future__ import annotations

from ledger.emit.engines import llama_server, sglang, tgi
from ledger.emit.engines._openai import kind_of
from ledger.emit.engines._provider_wires import anthropic_wire
from ledger.emit.engines._wire import INVOCATIONS, OPENAI, Wire

__all__ = ["wire_of"]

_NATIVE = {"llama.cpp": llama_server.wire_of, "sglang": sglang.wire_of, "tgi": tgi.wire_of}


def wire_of(path: str, engine: str | None = None) -> Wire | None:
    """How a POST to ``path`` is read; None for what generates nothing that is known here.

    Args:
        path: of the request.
        engine: what answers, by the name that a deployment has.
    """
    native = _NATIVE.get(engine or "")
    found = None if native is None else native(path)
    if found is not None:
        return found
    kind = kind_of(path)
    if kind is not None:
        return OPENAI[kind]
    return INVOCATIONS if path.rstrip("/") == "/invocations" else anthropic_wire(path)
