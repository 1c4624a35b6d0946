"""The HTTP service: registration (SCRAPI), the log's read API (tlog-tiles), queries, problems, metrics."""

from __future__ import annotations

from ledger.service.app import create_app
from ledger.service.auth import ApiKeyInfo, create_api_key, list_api_keys, revoke_api_key
from ledger.service.server import serve
from ledger.service.settings import Settings, settings_from_environment

__all__ = [
    "ApiKeyInfo",
    "Settings",
    "create_api_key",
    "create_app",
    "list_api_keys",
    "revoke_api_key",
    "serve",
    "settings_from_environment",
]
