"""Writes the parts of the documentation that repeat the code: ``python docs/generate.py``.

A page names a part between two comments, ``<!-- generated: NAME -->`` and ``<!-- end -->``; what stands
between them is replaced. A test fails when a page differs from what this writes.
"""

from __future__ import annotations

import inspect
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import msgspec.inspect as mi

DOCS = Path(__file__).parent
_REGION = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MAX_SAFE = 2**53 - 1
_SLUG = "^[A-Za-z0-9][A-Za-z0-9._:~-]*$"
_CHAIN = ("issued_us", "kind", "prev", "seq", "version")
"""Fields that every statement has: described once."""


def render(text: str) -> str:
    """The page with its generated parts made anew."""
    return _REGION.sub(lambda match: f"{match[1]}\n{REGIONS[match[2]]().strip()}\n\n{match[3]}", text)


def pages() -> list[Path]:
    """The pages that have generated parts."""
    return [page for page in sorted(DOCS.rglob("*.md")) if _REGION.search(page.read_text(encoding="utf-8"))]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(each.replace('|', chr(92) + '|') for each in line)} |\n" for line in lines)


# --- documents: structs of records, statements and the export's manifest -----------------------------------


def _anchor(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _type(of: mi.Type) -> str:
    """The type of a field in words."""
    match of:
        case mi.Metadata(type=mi.StrType(pattern=None) as inner, extra_json_schema={"pattern": str(pattern)}):
            return _text(inner.min_length, inner.max_length, pattern)
        case mi.Metadata(type=inner):
            return _type(inner)
        case mi.UnionType(types=types):
            return " or ".join(_type(each) for each in types if not isinstance(each, mi.CustomType))
        case mi.IntType(ge=low, le=high, lt=below):
            if below is not None:
                high = below - 1
            if low is None and high is None:
                return "integer"
            if high == _MAX_SAFE:
                return "integer" if low == 0 else "integer, may be negative"
            return f"integer from {low} to {high}"
        case mi.StrType(min_length=low, max_length=high, pattern=pattern):
            return _text(low, high, pattern)
        case mi.LiteralType(values=values):
            return " or ".join(f"`{value}`" for value in values)
        case mi.NoneType():
            return "null"
        case mi.StructType(cls=cls):
            return _anchor(cls.__name__)
        case mi.DictType(value_type=value):
            return f"object: name to {_type(value)}"
        case mi.VarTupleType(item_type=item, min_length=low, max_length=high):
            span = "" if high is None else f" ({low or 0} to {high} of them)"
            return f"array of {_type(item)}{span}"
    raise TypeError(of)


def _text(low: int | None, high: int | None, pattern: str | None) -> str:
    """The type of a text in words, by its lengths and pattern."""
    if (low, high) == (64, 64):
        return "64 hex digits"
    if (low, high) == (36, 36):
        return "UUIDv7"
    if high is None:
        return "text"
    span = f"{low} to {high}" if low else f"up to {high}"
    pattern = pattern and pattern.replace(r"(?!\n)", "")
    if pattern == _SLUG:
        return f"slug, {span}"
    return f"text, {span}" + (f", `{pattern}`" if pattern else "")


def fields_of(struct: type, *, only: Iterable[str] = (), without: Iterable[str] = ()) -> str:
    """The fields of one struct, in the order in which they are written."""
    from ledger.schemas.descriptions import FIELDS

    info = mi.type_info(struct)
    if not isinstance(info, mi.StructType):
        raise TypeError(struct)
    described = FIELDS[struct.__name__]
    written = not struct.__struct_config__.omit_defaults  # type: ignore[attr-defined]
    rows = [
        # A field with a plain default is always written; only those that default to UNSET can be absent.
        (
            each.encode_name,
            _type(each.type),
            "yes" if each.required or (written and _has_default(each)) else "",
        )
        for each in info.fields
    ]
    if info.tag_field is not None:
        rows.append((info.tag_field, "text" if only else f"`{info.tag}`", "yes"))
    chosen = [row for row in sorted(rows) if row[0] not in without and (not only or row[0] in only)]
    return table(
        ("field", "type", "required", "meaning"),
        ((f"`{name}`", kind, required, described[name]) for name, kind, required in chosen),
    )


def _has_default(field: mi.Field) -> bool:
    return field.default not in (msgspec.UNSET, msgspec.NODEFAULT)


def _structs(*structs: type, without: Iterable[str] = ()) -> str:
    return "\n".join(
        f"### {struct.__name__}\n\n{_sentences(struct)}\n\n{fields_of(struct, without=without)}"
        for struct in structs
    )


def _sentences(thing: Any) -> str:
    """A docstring as Markdown."""
    return inspect.cleandoc(thing.__doc__ or "").replace("``", "`")


def record_structs() -> str:
    """Records and their parts."""
    from ledger.core import records as r

    return _structs(r.Record, r.Usage, r.Commitment, r.Energy, r.Quality)


def document_structs() -> str:
    """Deployments, factor sets, price books and their parts."""
    from ledger.core import price_books as p
    from ledger.core import records as r

    return _structs(
        r.Deployment, r.Weights, r.Adapter, r.Speculative, r.FactorSet, r.FactorSource, p.PriceBook, p.Rate
    )


def statement_chain() -> str:
    """The fields that all statements have."""
    from ledger.core.statements import Heartbeat

    return fields_of(Heartbeat, only=_CHAIN)


def statement_structs() -> str:
    """The payloads of statements, by kind, without what all have."""
    from ledger.core import statements as s

    kinds = (
        s.Batch, s.DeploymentStatement, s.FactorsStatement, s.PricesStatement, s.Evaluation, s.Correction,
        s.Heartbeat, s.IssuerKey, s.Acknowledgement, s.Erasure, s.Admin,
    )  # fmt: skip
    parts = [
        f"### Kind {_tag(kind)}\n\n{_sentences(kind)}\n\n{fields_of(kind, without=_CHAIN)}" for kind in kinds
    ]
    return "\n".join([*parts, _structs(s.Totals)])


def _tag(kind: Any) -> str:
    return str(kind.__struct_config__.tag)


def manifest_structs() -> str:
    """The manifest of an export."""
    from ledger.core import export_layout as e

    return _structs(e.Manifest, e.ManifestFile, e.Scope)


# --- exports, database, settings, problems ---------------------------------------------------------------


def report_kinds() -> str:
    """The kinds of reports."""
    from ledger.export.reports.make import KINDS, kind_of

    found = [kind_of(name) for name in KINDS]
    return table(("kind", "title", "follows"), ((f"`{k.name}`", k.title, k.standard) for k in found))


def report_inputs() -> str:
    """What each kind of report asks the inputs file for."""
    from ledger.export.reports.make import KINDS, kind_of

    parts = []
    for kind in map(kind_of, KINDS):
        rows = [
            (f"`{name}`", asked.unit or "words", asked.what, asked.reference, "" if asked.needed else "no")
            for name, asked in kind.inputs.items()
        ]
        head = ("name", "unit", "what", "asked by", "gap without it")
        parts.append(f"### Inputs of {kind.name}\n\n{table(head, rows) if rows else 'None.'}")
    return "\n\n".join(parts)


def report_structs() -> str:
    """A report and its parts."""
    from ledger.export.reports import document as d

    return _structs(d.Report, d.Scope, d.UsedFactors, d.Section, d.Figure, d.Table, d.Column)


def input_structs() -> str:
    """The inputs file."""
    from ledger.export.reports.inputs import InputsFile, Stated

    return _structs(InputsFile, Stated)


def _columns(columns: Iterable[Any]) -> str:
    return table(
        ("column", "type", "null", "meaning"),
        ((f"`{c.name}`", f"`{c.type}`", "may be" if c.nullable else "", c.description) for c in columns),
    )


def record_columns() -> str:
    """Columns of an export's records."""
    from ledger.core.export_layout import RECORD_COLUMNS

    return _columns(RECORD_COLUMNS)


def statement_columns() -> str:
    """Columns of an export's statements."""
    from ledger.core.export_layout import STATEMENT_COLUMNS

    return _columns(STATEMENT_COLUMNS)


def database_tables() -> str:
    """Tables of the database."""
    from sqlmodel import SQLModel

    from ledger.store import tables

    models = [each for each in vars(tables).values() if isinstance(each, type) and issubclass(each, SQLModel)]
    parts = []
    for model in models:
        found = getattr(model, "__table__", None)
        if found is None:
            continue
        rows = [
            (
                f"`{column.name}`",
                _sql_type(column),
                "may be" if column.nullable else "",
                "primary" if column.primary_key else "unique" if _is_unique(found, column) else "",
            )
            for column in found.columns
        ]
        body = table(("column", "type", "null", "key"), rows)
        parts.append(f"### {found.name}\n\n{_sentences(model)}\n\n{body}")
    return "\n".join(parts)


def rollup_sums() -> str:
    """What a roll-up sums, in order."""
    from ledger.store.tables import ROLLUP_SUMS

    return ", ".join(f"`{name}`" for name in ROLLUP_SUMS) + "."


def _sql_type(column: Any) -> str:
    name = type(column.type).__name__
    return {
        "LargeBinary": "bytes",
        "BigInteger": "64-bit integer",
        "Integer": "integer",
        "AutoString": "text",
        "Text": "text",
    }[name]


def _is_unique(found: Any, column: Any) -> bool:
    from sqlalchemy import UniqueConstraint

    return column.unique or any(
        isinstance(each, UniqueConstraint) and list(each.columns) == [column] for each in found.constraints
    )


def settings() -> str:
    """Settings of the service."""
    from dataclasses import fields

    from ledger.service.settings import ENVIRONMENT_PREFIX, Settings

    def bounds(of: Any) -> str:
        least, most = of.metadata["least"], of.metadata["most"]
        if isinstance(of.default, bool):
            return "true or false"
        if isinstance(of.default, str):
            return "text"
        return f"at least {least:,}" if most is None else f"{least:,} to {most:,}"

    return table(
        ("variable", "default", "range", "meaning"),
        (
            (
                f"`{ENVIRONMENT_PREFIX}{each.name.upper()}`",
                f"{each.default:,}" if type(each.default) is int else str(each.default).lower(),
                bounds(each),
                each.metadata["text"],
            )
            for each in fields(Settings)
        ),
    )


def problems() -> str:
    """Problem types that the service answers with."""
    from ledger.service._problem_table import TABLE

    return _problems(TABLE)


def local_problems() -> str:
    """Problem types of the other parts."""
    from ledger.service._local_problem_table import LOCAL_TABLE

    return _problems(LOCAL_TABLE)


def _problems(rows: Iterable[tuple[str, int, str, str, str]]) -> str:
    return "\n".join(
        f"### {code}\n\n{status}, {title}. {explanation} {remedy}\n"
        for code, status, title, explanation, remedy in sorted(rows)
    )


# --- API -------------------------------------------------------------------------------------------------


def api() -> str:
    """Every operation of the service."""
    from ledger.core.keys import generate_key
    from ledger.service import create_app
    from ledger.store import migrate, open_store
    from ledger.store.append import create_log

    with tempfile.TemporaryDirectory() as directory:
        store = open_store(Path(directory) / "ledger.db")
        try:
            migrate(store)
            key = generate_key()
            create_log(store, key, "log.example.com")
            app = create_app(store, key)
            return _describe(app.openapi(), _scopes_by_operation(app))
        finally:
            store.close()


def _routes(routes: Iterable[Any]) -> Iterable[Any]:
    """All routes, those of included routers too."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        yield from _routes(inner.routes) if inner is not None else [route]


def _scopes_by_operation(app: Any) -> dict[str, tuple[str, ...]]:
    """Which scopes each operation asks for, from its dependencies."""
    scopes: dict[str, tuple[str, ...]] = {}
    for route in _routes(app.routes):
        name = getattr(route, "operation_id", None)
        if name is None:
            continue
        for each in route.dependant.dependencies:
            if each.call is not None and each.call.__name__ == "check_key":
                scopes[name] = inspect.getclosurevars(each.call).nonlocals["scopes"]
    return scopes


def _describe(document: dict[str, Any], scopes: dict[str, tuple[str, ...]]) -> str:
    overview, details = [], []
    shared = _shared_problems(document, scopes)
    for tag in document["tags"]:
        operations = [
            (path, method, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if tag["name"] in operation.get("tags", ())
        ]
        details.append(f"## {tag['name'].capitalize()}\n\n{tag['description']}\n")
        for path, method, operation in operations:
            needed = scopes.get(operation["operationId"], ())
            who = " or ".join(f"`{scope}`" for scope in needed) or "public"
            heading = f"{method.upper()} {path}"
            link = f"[`{heading}`](#{re.sub(r'[^a-z0-9_ -]', '', heading.lower()).replace(' ', '-')})"
            overview.append((link, who, operation["summary"]))
            details.append(_operation(heading, who, operation, shared))
    text = f"Any operation that needs a key can answer with {_links(shared)}. These are not repeated below.\n"
    return "\n".join([table(("operation", "key", ""), overview), text, *details])


def _problems_of(operation: dict[str, Any]) -> set[str]:
    failed = [each for status, each in operation["responses"].items() if not status.startswith("2")]
    return {code for each in failed for code in re.findall(r"`([a-z0-9-]+)`:", each["description"])}


def _shared_problems(document: dict[str, Any], names: Iterable[str]) -> set[str]:
    """The problems that all operations of these names have."""
    operations = [each for methods in document["paths"].values() for each in methods.values()]
    return set.intersection(*(_problems_of(each) for each in operations if each["operationId"] in set(names)))


def _links(codes: Iterable[str]) -> str:
    return ", ".join(f"[{code}](problems.md#{code})" for code in sorted(codes))


def _operation(heading: str, who: str, operation: dict[str, Any], known: set[str]) -> str:
    key = "Public." if who == "public" else f"Needs a key with {who}."
    lines = [f"### {heading}", "", f"{operation.get('description', '')} {key}".strip(), ""]
    parameters = operation.get("parameters", ())
    if parameters:
        rows = [
            (f"`{each['name']}`", each["in"], _schema(each["schema"]), each.get("description", ""))
            for each in parameters
        ]
        lines += [table(("parameter", "in", "type", "meaning"), rows)]
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        text = content.get("schema", {}).get("description", "")
        lines += [f"Body `{media_type}`: {text.split(chr(10))[0]}", ""]
        members = content.get("schema", {}).get("properties", {})
        if members:
            required = content["schema"].get("required", ())
            rows = [
                (f"`{name}`", "yes" if name in required else "", each.get("description", ""))
                for name, each in members.items()
            ]
            lines += [table(("member", "required", "meaning"), rows)]
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            media_types = " or ".join(f"`{each}`" for each in answer.get("content", {}))
            lines += [f"{status} {media_types}: {answer['description']}", ""]
    if codes := _problems_of(operation) - known:
        lines += [f"Problems: {_links(codes)}.", ""]
    return "\n".join(lines)


def _schema(schema: dict[str, Any]) -> str:
    kinds = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    schema = {**schema, **kinds[0]}
    text = str(schema.get("type", ""))
    if text == "array":
        choice = " or ".join(f"`{value}`" for value in schema["items"].get("enum", ()))
        return f"{choice}, repeatable"
    low, high = schema.get("minimum"), schema.get("maximum")
    if high is not None and high < 2**53 - 1:
        text += f", {low} to {high:,}"
    if schema.get("default") is not None:
        text += f", default {schema['default']}"
    return text


REGIONS: dict[str, Callable[[], str]] = {
    "records": record_structs,
    "documents": document_structs,
    "statement-chain": statement_chain,
    "statements": statement_structs,
    "manifest": manifest_structs,
    "record-columns": record_columns,
    "statement-columns": statement_columns,
    "database": database_tables,
    "rollup-sums": rollup_sums,
    "settings": settings,
    "problems": problems,
    "local-problems": local_problems,
    "api": api,
    "report-kinds": report_kinds,
    "report-structs": report_structs,
    "report-inputs": report_inputs,
    "report-input-structs": input_structs,
}


def main() -> int:
    """Write every page."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        made = render(text)
        if made != text:
            page.write_text(made, encoding="utf-8")
            sys.stdout.write(f"{page.relative_to(DOCS.parent)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
