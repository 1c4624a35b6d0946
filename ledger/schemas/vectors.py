"""Test vectors for implementers in other languages: what to compute from what, with every step between.

All are deterministic but the ML-DSA-44 signature: the one that is there is kept while it verifies.
"""

from __future__ import annotations

import json
from typing import Any

from ledger.core import commitments, cose, merkle
from ledger.core.canonical import encode_canonical
from ledger.core.records import decode_record, document_digest, encode_record, record_hash
from ledger.core.statements import DeploymentStatement, FactorsStatement, PricesStatement
from ledger.schemas import vector_log
from ledger.schemas._vector_forms import batch_of, batch_payload, dump, hexes, refusal
from ledger.schemas.log_vectors import (
    checkpoints_vectors,
    export_vectors,
    keys_vectors,
    ml_dsa_44_vector,
    proofs_vectors,
    receipts_vectors,
    statements_vectors,
    tiles_vectors,
)
from ledger.schemas.vector_keys import seed_of
from ledger.schemas.vector_log import SampleLog, sample_lines, sample_log

__all__ = ["ML_DSA_44_FILE", "vector_files"]

ML_DSA_44_FILE = "statement-ml-dsa-44.json"


def vector_files(previous_ml_dsa_44: bytes | None = None) -> dict[str, bytes]:
    """The vector files by name.

    Args:
        previous_ml_dsa_44: the present content of ``ML_DSA_44_FILE``, if there is any.
    """
    log = sample_log()
    made = {
        "keys.json": keys_vectors(log),
        "records.json": _records(log),
        "documents.json": _documents(log),
        "statements.json": statements_vectors(log),
        "batch.json": _batch(log),
        "receipts.json": receipts_vectors(log),
        "commitments.json": _commitments(log),
        "checkpoints.json": checkpoints_vectors(log),
        "proofs.json": proofs_vectors(log),
        "tiles.json": tiles_vectors(log),
        "export.json": export_vectors(log),
    }
    files = {name: dump(value) for name, value in made.items()}
    files[ML_DSA_44_FILE] = ml_dsa_44_vector(previous_ml_dsa_44)
    return files


def _records(log: SampleLog) -> dict[str, Any]:
    good = encode_record(log.records[1])
    cases: list[tuple[str, bytes]] = [
        ("white space", good.replace(b'":', b'": ', 1)),
        ("keys not sorted", b"{" + good[1:-1].split(b",", 1)[1] + b"," + good[1:].split(b",", 1)[0] + b"}"),
        ("key twice", good.replace(b'{"carbon_ng"', b'{"carbon_ng":273663,"carbon_ng"', 1)),
        ("unknown field", good.replace(b'{"carbon_ng"', b'{"aaa":1,"carbon_ng"', 1)),
        ("null", good.replace(b"273663", b"null", 1)),
        ("float", good.replace(b"273663", b"273663.0", 1)),
        ("exponent", good.replace(b"273663", b"273663e0", 1)),
        ("minus zero", good.replace(b"273663", b"-0", 1)),
        ("past 2^53 - 1", good.replace(b"273663", b"9007199254740992", 1)),
        ("negative amount", good.replace(b"273663", b"-1", 1)),
        ("escape that is not needed", good.replace(b'"nvml"', b'"\\u006evml"', 1)),
        ("upper-case digest", good.replace(log.records[1].deployment.encode(), b"AB" * 32, 1)),
        ("id is no UUIDv7", good.replace(b"-7001-", b"-4001-", 1)),
        ("ended before it started", good.replace(b'"ended_us":1790000003900000', b'"ended_us":1', 1)),
        (
            "cost without currency",
            good.replace(b'"deployment"', b'"cost_nano":1,"deployment"', 1),
        ),
        ("not UTF-8", good.replace(b"nvml", b"nv\xffl", 1)),
        ("newline at the end", good + b"\n"),
    ]
    rejected = []
    for name, data in cases:
        code = refusal(decode_record, data)
        if code is None or data == good:
            raise AssertionError(f"the case {name!r} is not refused")
        rejected.append({"name": name, "bytes": data.hex(), "code": code})
    return {
        "about": "Records: canonical JSON (RFC 8785) and record hash, SHA-256(0x00 || bytes). "
        "A reader must refuse the rejected ones; code is Tallystick's name of the reason.",
        "records": [
            {
                "json": json.loads(data),
                "bytes": data.hex(),
                "record_hash": record_hash(data).hex(),
            }
            for data in map(encode_record, log.records)
        ],
        "rejected": rejected,
    }


def _documents(log: SampleLog) -> dict[str, Any]:
    found = []
    for statement in log.statements:
        payload = statement.payload
        if isinstance(payload, DeploymentStatement | FactorsStatement | PricesStatement):
            document = getattr(payload, statement.kind)
            data = encode_canonical(document)
            found.append(
                {
                    "kind": statement.kind,
                    "json": json.loads(data),
                    "bytes": data.hex(),
                    "digest": document_digest(document),
                }
            )
    return {"about": "Documents: digest = SHA-256 of the canonical bytes.", "documents": found}


def _batch(log: SampleLog) -> dict[str, Any]:
    index, statement = batch_of(log)
    hashes = [record_hash(encode_record(each)) for each in log.records]
    lines = sample_lines(log)
    return {
        "about": "A batch of three records: root = RFC 6962 tree hash over the record hashes; "
        "body is what POST /batches takes.",
        "leaf_index": index,
        "records": lines.decode(),
        "record_hashes": hexes(hashes),
        "root": merkle.root(hashes).hex(),
        "paths": [hexes(merkle.inclusion_path(hashes, i)) for i in range(len(hashes))],
        "totals": json.loads(encode_canonical(batch_payload(statement).totals)),
        "body": cose.encode_cbor([statement.entry, lines]).hex(),
    }


def _commitments(log: SampleLog) -> dict[str, Any]:
    record = log.records[0]
    key = commitments.tenant_key(seed_of("issuer secret"), seed_of("tenant secret"))
    salts = {p: commitments.record_salt(key, record.id, p) for p in ("input", "output", "request")}
    content = commitments.token_bytes(vector_log.INPUT_TOKENS)
    opening = commitments.Opening("tokens", salts["input"], content)
    text = "Wie heißt die Hauptstadt? " * 12
    chunks = []
    for index in range(3):
        chunk = commitments.open_chunk(opening, index)
        chunks.append(
            {
                "index": index,
                "count": chunk.count,
                "salt": chunk.salt.hex(),
                "content": chunk.content.hex(),
                "path": hexes(chunk.path),
            }
        )
    return {
        "about": "Commitments of the first record in records.json: salts from secrets by HKDF-SHA256, "
        "digests, and openings chunk by chunk.",
        "issuer_secret": seed_of("issuer secret").hex(),
        "tenant_secret": seed_of("tenant secret").hex(),
        "tenant_key": key.hex(),
        "record": record.id,
        "salts": {purpose: salt.hex() for purpose, salt in salts.items()},
        "tokens": [
            {
                "tokens": list(tokens),
                "salt": salt.hex(),
                "digest": commitments.commit_tokens(tokens, salt).hex(),
            }
            for tokens, salt in (
                (vector_log.INPUT_TOKENS, salts["input"]),
                (range(64), salts["output"]),
                ((), salts["input"]),
                ((0, 2**32 - 1), salts["input"]),
            )
        ],
        "text": [
            {"text": each, "salt": salts["input"].hex(), "digest": _text_digest(each, salts["input"])}
            for each in ("", "Guten Tag", text)
        ],
        "request": {
            "request_id": "req-42",
            "salt": salts["request"].hex(),
            "digest": commitments.commit_request("req-42", salts["request"]).hex(),
        },
        "chunks": {"digest": commitments.commit_tokens(vector_log.INPUT_TOKENS, salts["input"]).hex()}
        | {"of": "tokens", "openings": chunks},
    }


def _text_digest(text: str, salt: bytes) -> str:
    return commitments.commit_text(text, salt).hex()
