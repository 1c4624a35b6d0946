"""Finds out what is to be audited: a service, a database, a ledger's folder or an export."""

from __future__ import annotations

from pathlib import Path

from ledger.audit.database import PostgresSource, SqliteSource
from ledger.audit.export import ExportSource
from ledger.audit.http import UrlSource
from ledger.audit.sources import Source
from ledger.core.errors import InvalidError
from ledger.core.export_layout import MANIFEST_FILE

__all__ = ["open_source"]

_DATABASE_FILE = "ledger.db"
_SQLITE_URL = "sqlite:///"


def open_source(target: str | Path, *, api_key: str | None = None) -> Source | ExportSource:
    """The source that ``target`` names. Nothing is read yet.

    Args:
        target: the URL of a service (http, https) or a database (postgresql, sqlite), the path of a SQLite
            file, of a folder that ``tallystick init`` made, or of an export.
        api_key: of scope ``read``, for a service.

    Raises:
        InvalidError: it is none of these.
    """
    text = str(target)
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if scheme in ("http", "https"):
        return UrlSource(text, api_key=api_key)
    if scheme.startswith("postgresql"):
        return PostgresSource(text)
    if scheme and not text.startswith(_SQLITE_URL):
        raise InvalidError(
            f"cannot audit what {scheme}:// names",
            where=text.rsplit("@", maxsplit=1)[-1],
            remedy="name a service (https), a database (postgresql, sqlite), a folder or an export",
            code="bad-target",
        )
    path = Path(text.removeprefix(_SQLITE_URL))
    if path.is_file():
        return SqliteSource(path)
    if (path / MANIFEST_FILE).exists():
        return ExportSource(path)
    if (path / _DATABASE_FILE).exists():
        return SqliteSource(path / _DATABASE_FILE)
    raise InvalidError(
        "there is neither a database nor an export",
        where=text,
        remedy="name a ledger's folder or database, an export, or the URL of a service",
        code="no-such-file",
    )
