"""JSON Schemas (draft 2020-12) of every JSON document, made from the structs that read and write them."""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any

import msgspec

from ledger.core import export_layout, price_books, records, settlement, statements
from ledger.export.reports import document, inputs
from ledger.schemas.descriptions import FIELDS

__all__ = ["json_schemas"]

_CANONICAL = (
    "The bytes are canonical JSON (RFC 8785): sorted keys, no white space; numbers are integers within "
    "2^53 - 1. What is unknown is absent, never null or zero."
)
_CANONICAL_ONLY = "The bytes are canonical JSON (RFC 8785)."
DOCUMENTS: dict[str, tuple[type[msgspec.Struct], str]] = {
    "record.schema.json": (
        records.Record,
        "Beyond this schema: started_us <= first_token_us <= ended_us; cost_nano and currency come together; "
        "low_uj <= energy_uj <= high_uj; cached_input_tokens <= input_tokens; at most 16,384 bytes.",
    ),
    "deployment.schema.json": (records.Deployment, ""),
    "factors.schema.json": (records.FactorSet, ""),
    "prices.schema.json": (
        price_books.PriceBook,
        "Beyond this schema: rates are sorted by provider, model, region, tier and above_input_tokens "
        "(absent before present, text by code point) and unique in these; no name stands for two of them.",
    ),
    "export-manifest.schema.json": (export_layout.Manifest, ""),
    "report.schema.json": (
        document.Report,
        "Beyond this schema: a figure has either a value or a gap; a row has as many cells as columns; a "
        "cell is null where it is unknown. A COSE_Sign1 beside it signs its bytes.",
    ),
    "report-inputs.schema.json": (
        inputs.InputsFile,
        "At most 1 MiB. The names are those that a report asks for.",
    ),
    **{
        f"settlement/{name}.schema.json": (
            line,
            "A line of a settlement bundle, whose first line is `tallystick-settlement/1`.",
        )
        for name, line in (
            ("header", settlement.SettlementHeader),
            ("leaf", settlement.SettlementLeaf),
            ("record", settlement.SettlementRecord),
            ("total", settlement.SettlementTotal),
            ("seal", settlement.Seal),
        )
    },
    "settlement/contents.schema.json": (
        settlement.SettlementContents,
        "The payload of the COSE_Sign1 in a settlement's seal. A part is its lines with their newlines.",
    ),
    **{
        f"statements/{kind.__struct_config__.tag}.schema.json": (
            kind,
            "This is the payload of a COSE_Sign1; see tallystick.cddl. A statement has at most 65,535 bytes.",
        )
        for kind in (
            statements.Batch,
            statements.DeploymentStatement,
            statements.FactorsStatement,
            statements.PricesStatement,
            statements.Evaluation,
            statements.Correction,
            statements.Heartbeat,
            statements.IssuerKey,
            statements.Acknowledgement,
            statements.Erasure,
            statements.Admin,
        )
    },
}
"""Path below ``schemas/`` -> the struct and the rules that a schema cannot state."""
_BY_HAND = frozenset({"report-inputs.schema.json"})
"""Documents that people write: any JSON will do."""
_NULLABLE = frozenset({"report.schema.json"})


def json_schemas() -> dict[str, bytes]:
    """The schema files by path."""
    return {path: _schema(path, struct, rules) for path, (struct, rules) in DOCUMENTS.items()}


def _schema(path: str, struct: type[msgspec.Struct], rules: str) -> bytes:
    _, components = msgspec.json.schema_components([struct], ref_template="#/$defs/{name}")
    module = sys.modules[struct.__module__]
    for name, component in components.items():
        config = getattr(module, name, struct).__struct_config__
        _complete(name, component, always=not config.omit_defaults)
    root = components.pop(struct.__name__)
    form = "" if path in _BY_HAND else _CANONICAL_ONLY if path in _NULLABLE else _CANONICAL
    root["description"] = " ".join(filter(None, (root["description"], rules, form)))
    document: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:tallystick:schema:v1:{path.removesuffix('.schema.json').replace('/', ':')}",
        **root,
    }
    if components:
        document["$defs"] = dict(sorted(components.items()))
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _complete(name: str, component: dict[str, Any], *, always: bool) -> None:
    """Add the descriptions, and require what the encoder writes ``always``, defaults too."""
    component["description"] = _plain(component["description"])
    required = set(component.get("required", ()))
    for field, schema in component["properties"].items():
        if "default" in schema:
            del schema["default"]
            required |= {field} if always else set()
        schema["description"] = FIELDS[name][field]
        _plain_patterns(schema)
    component["properties"] = dict(sorted(component["properties"].items()))
    component["required"] = sorted(required)


def _plain_patterns(schema: Any) -> None:
    """Drop what patterns say for Python alone: in JSON Schema ``$`` never matches before a newline."""
    if isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            schema["pattern"] = schema["pattern"].replace(r"(?!\n)$", "$")
        for each in schema.values():
            _plain_patterns(each)


def _plain(docstring: str) -> str:
    """A docstring as running text."""
    return " ".join(inspect.cleandoc(docstring).replace("``", "`").split())
