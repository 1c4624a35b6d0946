"""The reference pages: what repeats the code is what the code makes now, and nothing is left out."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from ledger.core import export_layout, price_books, records, statements
from ledger.core.keys import generate_key
from ledger.export.reports import document, inputs
from ledger.service import create_app
from ledger.service.problem_types import PROBLEM_TYPES
from ledger.service.settings import ENVIRONMENT_PREFIX, Settings
from ledger.store import migrate, open_store
from ledger.store.append import create_log

CODE = re.compile("`([a-z0-9-]+)`").findall
ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = generator()
PAGES = GENERATOR.pages()


@pytest.mark.parametrize("path", PAGES, ids=[path.name for path in PAGES])
def test_generated_parts_are_current(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == GENERATOR.render(text), "run `make docs`"


def test_every_generated_part_is_on_a_page() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert set(re.findall(r"<!-- generated: ([a-z-]+) -->", text)) == set(GENERATOR.REGIONS)


# --- formats ---------------------------------------------------------------------------------------------


def structs_of(module: Any) -> list[type[msgspec.Struct]]:
    found = [getattr(module, name) for name in module.__all__]
    return [each for each in found if isinstance(each, type) and issubclass(each, msgspec.Struct)]


@pytest.mark.parametrize(
    ("name", "struct"),
    [
        *(
            ("formats.md", each)
            for module in (records, price_books, statements)
            for each in structs_of(module)
        ),
        *(("exports.md", each) for each in structs_of(export_layout)),
        *(("reports.md", each) for module in (document, inputs) for each in structs_of(module)),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_field_is_documented(name: str, struct: type[msgspec.Struct]) -> None:
    tag = struct.__struct_config__.tag
    heading = struct.__name__ if tag is None else f"Kind {tag}"
    text = page(name)
    section = re.search(rf"^### {heading}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    common = text[text.index("Every payload has these fields") :].split("###")[0] if tag else ""
    missing = [f for f in struct.__struct_fields__ if f"\n| `{f}` |" not in section[1] + common]
    assert missing == []


def test_every_kind_is_in_the_overview() -> None:
    kinds = {each.__struct_config__.tag for each in structs_of(statements)} - {None}
    assert kinds == set(re.findall(r"^\| `([a-z]+)` \| .* \| `tallystick:", page("formats.md"), re.MULTILINE))


def test_every_constant_of_commitments_is_documented() -> None:
    from ledger.core import commitments

    text = page("formats.md")
    for tag in (commitments._CHUNK_TAG.decode(), commitments._DIGEST_TAG.decode(), commitments._SALT_TAG):
        assert f'"{tag}"' in text


# --- problems, settings ----------------------------------------------------------------------------------


def test_every_problem_of_the_service_is_documented() -> None:
    headings = re.findall(r"^### ([a-z0-9-]+)$", page("problems.md"), re.MULTILINE)
    assert set(PROBLEM_TYPES) <= set(headings)


def test_every_code_that_is_raised_is_documented() -> None:
    text = page("problems.md")
    documented = set(re.findall(r"^### ([a-z0-9-]+)$", text, re.MULTILINE))
    documented |= {
        code for line in text.splitlines() if line.startswith("| `") for code in CODE(line.split("|")[1])
    }
    for path in [*(ROOT / "ledger").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        source = path.read_text(encoding="utf-8")
        raised = set(re.findall(r"""\bcode(?:: str)? ?= ?"([a-z0-9-]+)"[,)\s]""", source))
        if path.is_relative_to(ROOT / "ledger" / "audit"):
            raised |= set(re.findall(r"""\.add\(\s*"([a-z-]+)",""", source))
        assert raised <= documented, path.name


def test_every_setting_is_documented() -> None:
    text = page("settings.md")
    for name in Settings.__dataclass_fields__:
        assert f"| `{ENVIRONMENT_PREFIX}{name.upper()}` |" in text


def test_every_variable_that_code_reads_is_documented() -> None:
    text = page("settings.md")
    for path in [*(ROOT / "ledger").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        for name in re.findall(r"\bTALLYSTICK_[A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8")):
            assert f"`{name}`" in text, f"{name} ({path.name})"


# --- API -------------------------------------------------------------------------------------------------


def test_every_route_is_documented(tmp_path: Path) -> None:
    store = open_store(tmp_path / "ledger.db")
    try:
        migrate(store)
        key = generate_key()
        create_log(store, key, "log.example.com")
        routes = list(GENERATOR._routes(create_app(store, key).routes))
    finally:
        store.close()
    text = page("api.md")
    assert len(routes) > 20
    for route in routes:
        path = re.sub(r":[a-z]+}", "}", route.path)
        if not getattr(route, "include_in_schema", False):
            assert f"`{path}`" in text
            continue
        for method in route.methods - {"HEAD"}:
            assert f"\n### {method} {path}\n" in text


# --- dependencies ----------------------------------------------------------------------------------------


def test_the_table_of_dependencies_is_complete() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = [
        *project["project"]["dependencies"],
        *(each for extra in project["project"]["optional-dependencies"].values() for each in extra),
        *(each for group in project["dependency-groups"].values() for each in group),
    ]
    names = {match[0] for each in named if isinstance(each, str) and (match := re.match(r"[\w.-]+", each))}
    names.discard(project["project"]["name"])
    assert names == set(re.findall(r"^\| `([\w.-]+)` \|", page("dependencies.md"), re.MULTILINE))


# --- the threat model, and SQL ---------------------------------------------------------------------------


def test_tests_named_in_the_threat_model_exist() -> None:
    text = (ROOT / "docs" / "explanation" / "threat-model.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w./]+)`", text)
    assert len(named) > 10
    assert [
        each for each in named if not list(ROOT.glob(f"{each}/test_*.py")) and not (ROOT / each).is_file()
    ] == []


def test_queries_in_the_guide_run(tmp_path: Path) -> None:
    import duckdb

    from ledger.core.export_layout import RECORDS_DIR, STATEMENTS_FILE, part_path
    from ledger.export.layout import RECORD_SCHEMA, STATEMENT_SCHEMA

    pq = pytest.importorskip("pyarrow.parquet")
    for path, schema in ((part_path("2026-01-01", 0), RECORD_SCHEMA), (STATEMENTS_FILE, STATEMENT_SCHEMA)):
        (tmp_path / path).parent.mkdir(parents=True)
        pq.write_table(schema.empty_table(), tmp_path / path)
    text = (ROOT / "docs" / "how-to" / "export-and-query.md").read_text(encoding="utf-8")
    queries = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    assert len(queries) > 3
    with duckdb.connect() as connection:
        for query in queries:
            here = query.replace(f"'{RECORDS_DIR}/", f"'{tmp_path}/{RECORDS_DIR}/").replace(
                "'_log/", f"'{tmp_path}/_log/"
            )
            connection.execute(here).fetchall()
