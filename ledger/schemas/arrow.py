"""The columns of an export's Parquet files as JSON. The layout itself is ``ledger.core.export_layout``."""

from __future__ import annotations

import json
from dataclasses import asdict

from ledger.core.export_layout import RECORD_COLUMNS, RECORDS_GLOB, STATEMENT_COLUMNS, STATEMENTS_FILE

__all__ = ["arrow_schemas"]


def arrow_schemas() -> dict[str, bytes]:
    """The Arrow schema files by path."""
    document = {
        "description": "Columns of an export's Parquet files, in order; types are named as Arrow names them. "
        "Null where the record does not have the field. The partition column day is in the path only.",
        "files": [
            {"path": RECORDS_GLOB, "partitions": ["day"], "sorted_by": ["leaf_index", "position"]}
            | {"columns": [asdict(each) for each in RECORD_COLUMNS]},
            {"path": STATEMENTS_FILE, "partitions": [], "sorted_by": ["leaf_index"]}
            | {"columns": [asdict(each) for each in STATEMENT_COLUMNS]},
        ],
    }
    return {"export.arrow.json": json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"}
