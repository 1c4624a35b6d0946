"""The service's log lines: text for people, or one JSON object a line for collectors.

No line has a query, a header or a body: keys and personal data are in those. Fields of JSON lines are named
as in OpenTelemetry's semantic conventions where it has a name.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any, Literal, TypeAlias

import uvicorn.config

__all__ = ["JsonLines", "LogFormat", "log_config"]

LogFormat: TypeAlias = Literal["text", "json"]
FIELDS = "tallystick"
"""The attribute of a log record that holds its fields: ``logger.info(..., extra={FIELDS: {...}})``."""


class JsonLines(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, and its own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception.stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_config(level: str, form: LogFormat) -> dict[str, Any]:
    """Configuration of ``logging`` for uvicorn's lines and ours."""
    base = uvicorn.config.LOGGING_CONFIG
    ours = {"handlers": ["default"], "level": level.upper(), "propagate": False}
    formatters = base["formatters"]
    if form == "json":
        formatters = {name: {"()": "ledger.service.logs.JsonLines"} for name in formatters}
    return {**base, "formatters": formatters, "loggers": {**base["loggers"], "ledger": ours}}
