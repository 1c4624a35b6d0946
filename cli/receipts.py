"""``tallystick receipt``: fetch what proves a record or a statement, and check it offline."""

from __future__ import annotations

import base64
from typing import Any

__all__ = ["check_record_proof"]


def check_record_proof(proof: dict[str, Any], vkey: str) -> None:
    """Temporary."""
    from ledger.core import merkle
    from ledger.core.keys import public_from_ed25519
    from ledger.core.note import parse_vkey
    from ledger.core.receipts import decode_receipt, verify_receipt
    from ledger.core.statements import decode_statement

    statement = decode_statement(base64.b64decode(proof["statement"]))
    payload: Any = statement.payload
    path = [bytes.fromhex(each) for each in proof["path"]]
    line = base64.b64decode(proof["record"])
    root = merkle.root_from_inclusion(merkle.leaf_hash(line), proof["position"], payload.count, path)
    assert root.hex() == payload.root
    key = parse_vkey(vkey)
    verify_receipt(
        decode_receipt(base64.b64decode(proof["receipt"])),
        statement.leaf_hash,
        public_from_ed25519(key.public_key),
    )
