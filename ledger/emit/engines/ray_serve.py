"""Owns the hook for Ray Serve, LLM apps included: recording in its HTTP proxies. Two lines to adopt::

    export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=ledger.emit.engines.ray_serve.middlewares
    export TALLYSTICK_DEPLOYMENT=/etc/tallystick/deployment.toml

Ray Serve calls the function that the variable names when a node's HTTP proxy starts, and puts the Starlette
middlewares that it returns in front of every app (ray/serve/_private/http_util.py of Ray 2.60). The variables
must be set where Ray is started on each node.
"""

from __future__ import annotations

from typing import Any

from ledger.emit.engines.asgi import RecordingMiddleware

__all__ = ["middlewares"]


def middlewares() -> list[Any]:
    """What Ray Serve's HTTP proxy shall put in front of its apps: the recording of OpenAI-compatible ones.

    The recorder is made of TALLYSTICK_... at the first generation, and closed when the process ends.
    """
    from starlette.middleware import Middleware

    return [Middleware(RecordingMiddleware)]
