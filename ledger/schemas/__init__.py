"""The published contract, for any language: what ``python -m ledger.schemas`` writes into ``schemas/``.

JSON Schema, CDDL, Arrow columns, OpenAPI and test vectors, all made from the code that reads and writes the
formats, so that they cannot differ from it: a test makes them again and compares.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from ledger.schemas.arrow import arrow_schemas
from ledger.schemas.cddl import CDDL
from ledger.schemas.json_schema import json_schemas
from ledger.schemas.vectors import ML_DSA_44_FILE, vector_files

__all__ = ["contract_files", "write_contract"]

_VECTORS = "vectors"


def contract_files(directory: Path) -> dict[str, bytes]:
    """Every file of the contract by its path below ``directory``, where the previous version may be."""
    previous = directory / _VECTORS / ML_DSA_44_FILE
    vectors = vector_files(previous.read_bytes() if previous.exists() else None)
    return {
        **json_schemas(),
        "tallystick.cddl": CDDL.encode(),
        **arrow_schemas(),
        "openapi.json": _openapi(),
        **{f"{_VECTORS}/{name}": data for name, data in vectors.items()},
    }


def write_contract(directory: Path) -> list[str]:
    """Write the contract into ``directory``.

    Returns:
        The paths below ``directory`` of what was not there already.
    """
    changed = []
    for path, data in contract_files(directory).items():
        target = directory / path
        if target.exists() and target.read_bytes() == data:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        changed.append(path)
    return changed


def _openapi() -> bytes:
    """The service's description of itself; it needs a log to serve, so it gets an empty one."""
    from ledger.schemas.vector_keys import seeded_key
    from ledger.schemas.vector_log import ORIGIN
    from ledger.service import create_app
    from ledger.store import migrate, open_store
    from ledger.store.append import create_log

    with tempfile.TemporaryDirectory() as directory:
        store = open_store(Path(directory) / "ledger.db")
        try:
            migrate(store)
            create_log(store, seeded_key("log"), ORIGIN)
            document = create_app(store, seeded_key("log")).openapi()
        finally:
            store.close()
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
