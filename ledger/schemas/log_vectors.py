"""Test vectors of what is signed or in a tree: statements, receipts, checkpoints, proofs, tiles, exports."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from msgspec import structs

from ledger.core import cose, merkle, tiles
from ledger.core.checkpoint import parse_checkpoint_text
from ledger.core.cosignature import cosign_ed25519
from ledger.core.errors import TallystickError
from ledger.core.export_layout import STATEMENTS_FILE, Manifest, ManifestFile, Scope, sign_manifest
from ledger.core.keys import PrivateKey
from ledger.core.note import COSIGNATURE_ED25519, Note, VerifierKey, format_note, format_vkey, parse_note
from ledger.core.statements import (
    Heartbeat,
    SignedStatement,
    decode_statement,
    sign_statement,
    transparent_statement,
    verify_statement,
)
from ledger.core.tlog_proof import TlogProof, format_tlog_proof
from ledger.schemas._vector_forms import batch_of, dump, hexes, refusal
from ledger.schemas.vector_keys import seed_of, seeded_key
from ledger.schemas.vector_log import CUSTOMER, ISSUER, ORIGIN, START_US, SampleLog

__all__ = [
    "checkpoints_vectors",
    "export_vectors",
    "keys_vectors",
    "ml_dsa_44_vector",
    "proofs_vectors",
    "receipts_vectors",
    "statements_vectors",
    "tiles_vectors",
]

WITNESS = "witness.example.net/w1"


def keys_vectors(log: SampleLog) -> dict[str, Any]:
    """``keys.json``."""
    named = [
        ("log", ORIGIN, log.key),
        ("issuer", ISSUER, log.keys[ISSUER]),
        ("customer", CUSTOMER, log.keys[CUSTOMER]),
        ("ml-dsa-44", ISSUER, seeded_key("ml-dsa-44", "ml-dsa-44")),
    ]
    return {
        "about": "Keys from public seeds. kid = SHA-256 of the COSE_Key's required members (RFC 9679).",
        "keys": [_key(label, name, key) for label, name, key in named],
    }


def _key(label: str, name: str, key: PrivateKey) -> dict[str, Any]:
    members = key.public.to_cose_key()
    # RFC 9679: kty and the curve's members; AKP keys also count alg as required (RFC 9964).
    required = {k: v for k, v in members.items() if k != 2 and (k != 3 or members[1] == 7)}
    return {
        "name": name,
        "algorithm": key.public.name,
        "alg": key.public.alg,
        "seed": seed_of(label).hex(),
        "public_key": key.public.raw_bytes().hex(),
        "cose_key": cose.encode_cbor(members).hex(),
        "thumbprint_input": cose.encode_cbor(required).hex(),
        "kid": key.public.kid.hex(),
    }


def _statement(statement: SignedStatement) -> dict[str, Any]:
    message = statement.message
    payload = message.payload
    assert payload is not None  # noqa: S101 - statements carry their payload
    return {
        "kind": statement.kind,
        "issuer": statement.issuer,
        "subject": statement.subject,
        "kid": statement.kid.hex(),
        "payload": payload.decode(),
        "protected": message.protected.hex(),
        "sig_structure": cose.encode_cbor(["Signature1", message.protected, b"", payload]).hex(),
        "signature": message.signature.hex(),
        "entry": statement.entry.hex(),
        "leaf_hash": statement.leaf_hash.hex(),
    }


def statements_vectors(log: SampleLog) -> dict[str, Any]:
    """``statements.json``."""
    entry = log.statements[4].entry
    tampered = [
        ("trailing byte", entry + b"\0", None),
        ("indefinite array", b"\xd2\x9f" + entry[2:] + b"\xff", None),
        ("without the tag", entry[1:], None),
        ("signature changed", entry[:-1] + bytes([entry[-1] ^ 1]), log.keys[ISSUER]),
        ("payload changed", entry.replace(b'"dropped":1', b'"dropped":0', 1), log.keys[ISSUER]),
        ("issuer changed", entry.replace(b"gpu-7", b"gpu-8", 1), log.keys[ISSUER]),
    ]
    rejected = []
    for name, data, key in tampered:

        def check(data: bytes, key: PrivateKey | None = key) -> None:
            statement = decode_statement(data)
            if key is not None:
                verify_statement(statement, key.public)

        rejected.append({"name": name, "entry": data.hex(), "code": refusal(check, data)})
    return {
        "about": "One statement of each kind: the leaves of a log, in order, in chains by issuer. "
        "leaf_hash = SHA-256(0x00 || entry). Keys are in keys.json.",
        "statements": [_statement(each) for each in log.statements],
        "rejected": rejected,
    }


def receipts_vectors(log: SampleLog) -> dict[str, Any]:
    """``receipts.json``."""
    size = len(log.statements)
    found = []
    for index, tree_size in [*((i, size) for i in range(size)), (4, 5), (4, 8)]:
        leaves = log.leaf_hashes[:tree_size]
        receipt = log.receipt(index, tree_size)
        found.append(
            {
                "leaf_index": index,
                "tree_size": tree_size,
                "leaf_hash": leaves[index].hex(),
                "registered_s": log.registered_s(index),
                "path": hexes(merkle.inclusion_path(leaves, index)),
                "root": merkle.root(leaves).hex(),
                "receipt": receipt.hex(),
            }
        )
    index, batch = batch_of(log)
    return {
        "about": "Receipts (RFC 9942) of the statements in statements.json. The detached payload is the root "
        "that the path leads to; the signer is the log. The last two are receipts of smaller trees.",
        "receipts": found,
        "transparent_statement": {
            "leaf_index": index,
            "bytes": transparent_statement(batch, [log.receipt(index, size)]).hex(),
        },
    }


def checkpoints_vectors(log: SampleLog) -> dict[str, Any]:
    """``checkpoints.json``."""
    witness = seeded_key("witness")
    vkey = VerifierKey.of(WITNESS, COSIGNATURE_ED25519, witness.public.raw_bytes())
    timestamp_s = START_US // 1_000_000 + 120
    size = len(log.statements)
    note = parse_note(log.checkpoint(size))
    cosignature = cosign_ed25519(note.text, WITNESS, witness.raw, timestamp_s)  # type: ignore[arg-type]
    return {
        "about": "Checkpoints (C2SP tlog-checkpoint) of the log, and one with a witness's cosignature "
        "(C2SP tlog-cosignature). All notes are text, newlines included.",
        "log_vkey": format_vkey(log.verifier_key),
        "checkpoints": [
            {"size": n, "root": merkle.root(log.leaf_hashes[:n]).hex(), "note": log.checkpoint(n).decode()}
            for n in (1, 5, 8, size)
        ],
        "cosigned": {
            "witness_vkey": format_vkey(vkey),
            "witness_seed": seed_of("witness").hex(),
            "timestamp_s": timestamp_s,
            "note": format_note(Note(note.text, (*note.signatures, cosignature))).decode(),
        },
    }


def proofs_vectors(log: SampleLog) -> dict[str, Any]:
    """``proofs.json``."""
    leaves = log.leaf_hashes
    size = len(leaves)
    index, _ = batch_of(log)
    note = log.checkpoint(size)
    proof = TlogProof(index, tuple(merkle.inclusion_path(leaves, index)), note)
    root = parse_checkpoint_text(parse_note(note).text).root
    return {
        "about": "Proofs over the leaf hashes of statements.json (RFC 6962, section 2.1), and a proof file "
        "(C2SP tlog-proof), which is text.",
        "root": root.hex(),
        "tlog_proof": format_tlog_proof(proof).decode(),
        "consistency": [
            {
                "old_size": old,
                "new_size": new,
                "old_root": merkle.root(leaves[:old]).hex(),
                "new_root": merkle.root(leaves[:new]).hex(),
                "path": hexes(merkle.consistency_path(leaves[:new], old)),
            }
            for old, new in ((1, size), (4, 8), (5, 8), (6, size), (8, size), (size - 1, size), (size, size))
        ],
    }


def tiles_vectors(log: SampleLog) -> dict[str, Any]:
    """``tiles.json``."""
    leaves = log.leaf_hashes
    bundle = tiles.encode_bundle([each.entry for each in log.statements])
    return {
        "about": "The log as static files (C2SP tlog-tiles): its only tile and its only entry bundle. The "
        "tiles of a made-up tree follow: leaf i is the decimal number i.",
        "tile": {"path": tiles.tile_path(0, 0, len(leaves)), "bytes": b"".join(leaves).hex()},
        "bundle": {"path": tiles.entries_path(0, len(leaves)), "bytes": bundle.hex()},
        "paths": [
            {"level": level, "index": index, "width": width, "path": tiles.tile_path(level, index, width)}
            for level, index, width in ((0, 0, 256), (0, 1_234_067, 256), (2, 999, 1), (5, 1_000, 255))
        ],
        "made_up_tree": _made_up_tree(300),
    }


def _made_up_tree(size: int) -> dict[str, Any]:
    leaves = [merkle.leaf_hash(str(i).encode()) for i in range(size)]
    made = tiles.append_tiles(0, leaves, {})
    return {
        "size": size,
        "root": merkle.root(leaves).hex(),
        "tiles": [
            {
                "path": tiles.tile_path(level, index, len(data) // 32),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            for (level, index), data in sorted(made.items())
        ],
    }


def export_vectors(log: SampleLog) -> dict[str, Any]:
    """``export.json``."""
    file = ManifestFile(path=STATEMENTS_FILE, bytes=12_345, sha256="cd" * 32, rows=len(log.statements))
    manifest = Manifest(
        origin=ORIGIN,
        checkpoint=log.checkpoint(len(log.statements)).decode(),
        created_us=START_US + 200_000_000,
        software="tallystick",
        scope=Scope(statements="all", to_us=START_US),
        records=0,
        statements=len(log.statements),
        files=(file,),
    )
    data, signature = sign_manifest(manifest, log.key)
    return {
        "about": "The manifest of an export and its signature by the log (COSE_Sign1, detached payload: the "
        "bytes of manifest.json). The file that it lists does not exist.",
        "manifest": data.decode(),
        "signature": signature.hex(),
    }


def ml_dsa_44_vector(previous: bytes | None) -> bytes:
    """A statement by an ML-DSA-44 key: the one that is there while it says what it should and verifies."""
    key = seeded_key("ml-dsa-44", "ml-dsa-44")
    payload = Heartbeat(seq=0, issued_us=START_US, dropped=0)
    statement = sign_statement(payload, issuer=ISSUER, key=key)
    if previous is not None:
        try:
            kept = decode_statement(bytes.fromhex(json.loads(previous)["statement"]["entry"]))
            verify_statement(kept, key.public)
            if structs.astuple(kept.payload) == structs.astuple(payload) and kept.issuer == ISSUER:
                statement = kept
        except (TallystickError, ValueError, KeyError, TypeError):
            pass
    return dump(
        {
            "about": "A statement signed with ML-DSA-44 (RFC 9964), randomised: verify only. "
            "The key is in keys.json.",
            "statement": _statement(statement),
        }
    )
