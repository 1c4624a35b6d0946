"""Owns how a report is made from an export, and how one is checked: by making it again.

A report is a pure function of the export, its scope and the inputs file; so whoever has those can recompute
every figure, and a difference names the figure that was changed, or shows that the export was.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET

from ledger import __version__
from ledger.core.errors import InvalidError
from ledger.core.keys import PublicKey
from ledger.export.reports.document import Report, Scope, Section
from ledger.export.reports.facts import Facts, open_facts
from ledger.export.reports.figures import partial_in
from ledger.export.reports.inputs import Asked, Inputs, read_inputs

__all__ = ["KINDS", "Difference", "Kind", "compare", "kind_of", "make_report"]

_MODULES = (
    "eu_ai_act_log",
    "eu_ai_act_gpai",
    "sci",
    "esrs_e1",
    "eu_data_centres",
    "ghg_protocol",
    "sb_253",
    "customer_statement",
    "incident",
)
KINDS = tuple(name.replace("_", "-") for name in _MODULES)
"""The kinds of reports, in the order of the documentation: one module of this package each."""


@dataclass(frozen=True)
class Kind:
    """A kind of report. ``build`` makes its sections; ``inputs`` is what it asks the inputs file for."""

    name: str
    title: str
    standard: str
    build: Callable[[Facts, Inputs], tuple[Section, ...]]
    inputs: Mapping[str, Asked]


def kind_of(name: str) -> Kind:
    """The kind ``name``.

    Raises:
        InvalidError: there is none of that name.
    """
    if name not in KINDS:
        raise InvalidError(
            f"there is no report {name!r}", remedy=f"use one of {', '.join(KINDS)}", code="bad-report-kind"
        )
    module = importlib.import_module(f"ledger.export.reports.{name.replace('-', '_')}")
    return Kind(name, module.TITLE, module.STANDARD, module.build, module.INPUTS)


def make_report(
    name: str,
    export: Path,
    *,
    scope: Scope | None = None,
    subject: str,
    inputs: Path | None = None,
    inputs_key: PublicKey | None = None,
) -> Report:
    """Make the report ``name`` from an export.

    Args:
        name: one of ``KINDS``.
        export: the export's folder. It is believed here; the report names it by digest.
        scope: which records; all of the export if absent.
        subject: whom the report is about, or who makes it, in words.
        inputs: a file of what the log cannot know.
        inputs_key: of whoever states the inputs; the signature beside the file is then checked, and told.

    Raises:
        InvalidError: no such report or export, or the inputs file is malformed or not signed by that key.
        CorruptError: the inputs file was changed after it was signed.
    """
    kind = kind_of(name)
    scope = scope or Scope()
    if isinstance(scope.from_us, int) and isinstance(scope.to_us, int) and scope.from_us >= scope.to_us:
        raise InvalidError(
            "the period ends before it begins",
            where="scope",
            remedy="give a beginning that is before the end",
            code="bad-report-scope",
        )
    given = read_inputs(inputs, inputs_key)
    facts = open_facts(export, scope)
    try:
        sections = kind.build(facts, given)
        return Report(
            kind=kind.name,
            title=kind.title,
            standard=kind.standard,
            subject=subject,
            origin=facts.manifest.origin,
            checkpoint=facts.manifest.checkpoint,
            scope=scope,
            export_manifest=facts.manifest_digest,
            software=f"tallystick {__version__}",
            records=facts.total()["records"],
            methods=facts.methods(),
            factors=facts.used_factors(),
            completeness=facts.coverage(),
            gaps=(
                *facts.gaps(),
                *_untold(sections),
                *(f"not stated: {what}" for what in given.missing.values()),
            ),
            inputs=dict(given.used),
            inputs_digest=given.digest,
            inputs_stated_by=given.stated_by or None,
            inputs_signed_by=given.signed_by or UNSET,
            sections=sections,
        )
    finally:
        facts.close()


def _untold(sections: Iterable[Section]) -> Iterator[str]:
    """Figures that the log does not tell, or tells of some records only: what they have in common, once."""
    labels: dict[str, list[str]] = {}
    for figure in (each for section in sections for each in section.figures):
        if figure.basis != "log":  # the missing inputs are told themselves
            continue
        if figure.gap is not UNSET:
            labels.setdefault(figure.gap, []).append(figure.label)
        elif figure.coverage is not UNSET and (partial := partial_in(figure.coverage)):
            labels.setdefault(partial, []).append(figure.label)
    return (f"{'; '.join(of)}: {why}" for why, of in labels.items())


@dataclass(frozen=True)
class Difference:
    """A place where a report does not say what the export yields. None: it is not there at all."""

    where: str
    stated: str | None
    computed: str | None


def compare(stated: Report, computed: Report) -> list[Difference]:
    """Where ``stated`` differs from ``computed``, figure by figure. Equal reports give none.

    The software's version may differ: another version must come to the same figures.
    """
    before, after = dict(_flat(stated)), dict(_flat(computed))
    before.pop("software", None)
    after.pop("software", None)
    return [
        Difference(name, before.get(name), after.get(name))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _flat(report: Report) -> Iterator[tuple[str, str]]:
    """Every stated thing by a path that names it: sets by digest, figures by name, rows by first cell."""
    import msgspec

    data = msgspec.to_builtins(report)
    sections = data.pop("sections")
    for each in data.pop("factors"):
        yield from _leaves(f"factor set {each['digest']}", each)
    yield from _leaves("", data)
    for number, section in enumerate(sections):
        where = f"section {number + 1} ({section['title']})"
        for figure in section.pop("figures", ()):
            yield from _leaves(f"{where}: figure {figure['name']}", figure)
        for table in section.pop("tables", ()):
            rows = table.pop("rows")
            labels = [column["name"] for column in table["columns"]]
            for at, row in enumerate(rows):
                first = f"row {at + 1} ({row[0]})" if row else f"row {at + 1}"
                for label, cell in zip(labels, row, strict=False):
                    yield f"{where}: table {table['name']}, {first}, {label}", str(cell)
            yield f"{where}: table {table['name']}: rows", str(len(rows))
            yield from _leaves(f"{where}: table {table['name']}", table)
        yield from _leaves(where, section)


def _leaves(where: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _leaves(f"{where}: {name}" if where else str(name), each)
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _leaves(f"{where}[{number}]", each)
    else:
        yield where, str(value)
