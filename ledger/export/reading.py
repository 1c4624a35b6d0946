"""Owns how an export is opened for reading: DuckDB over its Parquet files, with nothing else in reach.

Five views: ``records`` as they were logged; ``statements`` of the log; ``corrections``, the restated figures
of each record; ``records_corrected``, the records with those in place, and ``corrected`` that says so;
``evaluations``, one row for each quality metric that was measured later.

A correction counts where its issuer is the record's own and ``record_hash`` is the record's. Later ones win,
figure by figure; energy is restated whole, and a range of carbon falls with the figure that it belonged to.
"""

# ruff: noqa: S608 - SQL is put together from this module's own names and a quoted path

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger.core.errors import InvalidError, UnavailableError
from ledger.core.export_layout import MANIFEST_FILE, RECORD_COLUMNS, RECORDS_GLOB, STATEMENTS_FILE

if TYPE_CHECKING:
    import duckdb

__all__ = ["VIEWS", "open_export", "run_sql"]

VIEWS = ("records", "records_corrected", "corrections", "evaluations", "statements")

_RESTATED = ("carbon_ng", "carbon_market_ng", "embodied_ng", "water_nl", "cost_nano")
"""Figures that a correction states by themselves; energy comes as one object."""
_ENERGY = {"energy_uj": "energy_uj", "energy_low_uj": "low_uj", "energy_high_uj": "high_uj"}
_ENERGY_WORDS = {"energy_method": "method", "energy_source": "source"}
_DEFAULT_MEMORY = "4GB"


def open_export(
    directory: Path, *, threads: int | None = None, memory: str = _DEFAULT_MEMORY
) -> duckdb.DuckDBPyConnection:
    """A connection that sees the views of one export, and no other file, host or extension.

    Args:
        directory: the export's folder.
        threads: how many of the machine's cores DuckDB may use; all if absent.
        memory: how much memory it may use, as DuckDB spells it; beyond it, it spills to a temporary folder.

    Raises:
        InvalidError: the folder holds no export.
        UnavailableError: DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise UnavailableError(
            "DuckDB is not installed",
            remedy="pip install 'tallystick[reports]'",
            code="missing-package",
        ) from None
    root = directory.resolve()
    if not (root / MANIFEST_FILE).is_file():
        raise InvalidError(
            "is not an export",
            where=str(directory),
            remedy="make one: tallystick export parquet LEDGER OUT",
            code="no-export",
        )
    connection = duckdb.connect(":memory:")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"SET memory_limit = {_quoted(memory)}")
    if threads is not None:
        connection.execute(f"SET threads = {int(threads)}")
    # From here on the connection reaches this folder alone, and cannot be told otherwise.
    connection.execute(f"SET allowed_directories = [{_quoted(f'{root}/')}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    connection.execute(_records_view(root))
    connection.execute(
        f"CREATE VIEW statements AS SELECT * FROM read_parquet({_quoted(str(root / STATEMENTS_FILE))})"
    )
    connection.execute(_corrections_view())
    connection.execute(_EVALUATIONS_VIEW)
    corrected = connection.execute("SELECT count(*) FROM statements WHERE kind = 'correction'").fetchone()
    connection.execute(_corrected_view() if corrected and corrected[0] else _uncorrected_view())
    connection.execute("SET lock_configuration = true")
    return connection


def run_sql(directory: Path, text: str, limit: int) -> tuple[list[str], list[list[Any]], bool]:
    """Answer one query that somebody wrote.

    Returns:
        The columns' names (made different where two are alike), at most ``limit`` rows of plain values
        (integers, floats, text, booleans, lists, objects), and whether there are more rows.

    Raises:
        InvalidError: it is not one query, or DuckDB refuses it.
    """
    with open_export(directory) as connection:
        import duckdb

        try:
            parsed = connection.extract_statements(text)
            if len(parsed) != 1:
                raise InvalidError(
                    f"there are {len(parsed)} statements, not one", where="SQL", code="bad-sql"
                )
            found = connection.execute(parsed[0])
            columns = _different([column[0] for column in found.description or ()])
            rows = found.fetchmany(limit + 1)
        except duckdb.Error as error:
            raise InvalidError(
                str(error).strip(),
                where="SQL",
                remedy=f"the views are {', '.join(VIEWS)}; DESCRIBE one to see its columns",
                code="bad-sql",
            ) from None
    return columns, [[_plain(cell) for cell in row] for row in rows[:limit]], len(rows) > limit


def _different(names: list[str]) -> list[str]:
    made: list[str] = []
    for name in names:
        tried, n = name, 1
        while tried in made:
            n += 1
            tried = f"{name}_{n}"
        made.append(tried)
    return made


def _plain(cell: Any) -> Any:
    if isinstance(cell, bytes):
        return cell.hex()
    if isinstance(cell, datetime | date):
        return cell.isoformat()
    if isinstance(cell, list | tuple):
        return [_plain(each) for each in cell]
    if isinstance(cell, dict):
        return {str(name): _plain(each) for name, each in cell.items()}
    if isinstance(cell, Decimal):
        return str(cell)
    return cell if cell is None or isinstance(cell, bool | int | float | str) else str(cell)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _records_view(root: Path) -> str:
    columns = ", ".join(column.name for column in RECORD_COLUMNS)
    if not any(root.glob(RECORDS_GLOB)):
        empty = ", ".join(f"NULL::{_duck_type(column.type)} AS {column.name}" for column in RECORD_COLUMNS)
        return f"CREATE VIEW records AS SELECT {empty} WHERE false"
    source = f"read_parquet({_quoted(str(root / RECORDS_GLOB))}, hive_partitioning = false)"
    return f"CREATE VIEW records AS SELECT {columns} FROM {source}"


def _duck_type(arrow: str) -> str:
    plain = {"int64": "BIGINT", "int32": "INTEGER", "string": "VARCHAR", "binary": "BLOB"}
    if arrow in plain:
        return plain[arrow]
    if arrow.startswith("timestamp"):
        return "TIMESTAMPTZ"
    return "STRUCT(name VARCHAR, value BIGINT, scale BIGINT)[]"


def _corrections_view() -> str:
    """One row for each corrected record, whether or not the export has it."""
    fields = [f"(payload ->> '$.{name}')::BIGINT AS {name}" for name in _RESTATED]
    fields += [f"(payload ->> '$.energy.{key}')::BIGINT AS {name}" for name, key in _ENERGY.items()]
    fields += [f"payload ->> '$.energy.{key}' AS {name}" for name, key in _ENERGY_WORDS.items()]
    merged = [f"arg_max({name}, leaf_index) AS {name}" for name in _RESTATED]  # skips absent ones
    merged += [
        f"arg_max_null({name}, leaf_index) FILTER (energy_uj IS NOT NULL) AS {name}"
        for name in (*_ENERGY, *_ENERGY_WORDS)
    ]
    return f"""CREATE VIEW corrections AS
        SELECT issuer, record, record_hash, max(leaf_index) AS leaf_index, count(*) AS statements,
               arg_max(reason, leaf_index) AS reason, {", ".join(merged)}
        FROM (SELECT issuer, leaf_index, payload ->> '$.record' AS record,
                     payload ->> '$.record_hash' AS record_hash, payload ->> '$.reason' AS reason,
                     {", ".join(fields)}
              FROM statements WHERE kind = 'correction')
        GROUP BY issuer, record, record_hash"""


# A key of the metrics is a path of JSON Pointer (RFC 6901) here, in which ~ is the one letter to be escaped.
_EVALUATIONS_VIEW = """CREATE VIEW evaluations AS
    SELECT leaf_index, leaf_hash, issuer, evaluator, about, target, metric, value, scale,
           row_number() OVER (PARTITION BY issuer, evaluator, about, target, metric
                              ORDER BY leaf_index DESC) = 1 AS latest
    FROM (SELECT leaf_index, leaf_hash, issuer, payload ->> '$.evaluator' AS evaluator,
                 CASE WHEN payload ->> '$.record' IS NOT NULL THEN 'record'
                      WHEN payload ->> '$.statement' IS NOT NULL THEN 'batch' ELSE 'deployment' END AS about,
                 coalesce(payload ->> '$.record', payload ->> '$.statement', payload ->> '$.deployment')
                     AS target,
                 metric,
                 (payload -> '$.metrics' -> pointer ->> '$.value')::BIGINT AS value,
                 (payload -> '$.metrics' -> pointer ->> '$.scale')::BIGINT AS scale
          FROM (SELECT *, '/' || replace(metric, '~', '~0') AS pointer
                FROM (SELECT *, unnest(json_keys(payload, '$.metrics')) AS metric
                      FROM statements WHERE kind = 'evaluation')))"""


def _uncorrected_view() -> str:
    return "CREATE VIEW records_corrected AS SELECT *, false AS corrected FROM records"


def _corrected_view() -> str:
    figures = []
    for column in RECORD_COLUMNS:
        name = column.name
        if name in _RESTATED:
            figures.append(f"coalesce(c.{name}, r.{name}) AS {name}")
        elif name in _ENERGY or name in _ENERGY_WORDS:
            figures.append(f"CASE WHEN c.energy_uj IS NULL THEN r.{name} ELSE c.{name} END AS {name}")
        elif name in ("carbon_low_ng", "carbon_high_ng"):
            figures.append(f"CASE WHEN c.carbon_ng IS NULL THEN r.{name} END AS {name}")
        else:
            figures.append(f"r.{name}")
    # The hash is computed of the few records that a correction names, not of all.
    return f"""CREATE VIEW records_corrected AS
        WITH held AS (
            SELECT c.* FROM corrections c JOIN records r ON r.id = c.record AND r.issuer = c.issuer
            WHERE c.record_hash = sha256('\\x00'::BLOB || r.record))
        SELECT {", ".join(figures)}, c.record IS NOT NULL AS corrected
        FROM records r LEFT JOIN held c ON c.record = r.id AND c.issuer = r.issuer"""
