"""A small ledger over real HTTP that makes the real checks and fails on demand.

The end-to-end tests run against the real service. This one is for what that must never do: answer wrongly,
cut connections, lie in receipts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import msgspec

from ledger import zstd
from ledger.core import cose, merkle
from ledger.core.chain import ChainHead, next_head
from ledger.core.errors import InvalidError, RefusedError, TallystickError
from ledger.core.keys import PublicKey, generate_key
from ledger.core.note import ED25519, VerifierKey, format_vkey
from ledger.core.receipts import issue_receipt
from ledger.core.records import Record, decode_record_lines, document_digest
from ledger.core.statements import (
    Batch,
    DeploymentStatement,
    FactorsStatement,
    PricesStatement,
    SignedStatement,
    decode_statement,
    sum_records,
    verify_statement,
)

Fault = Callable[[int, str], str | None]
"""Gets the number of the request and its path; returns the name of a fault or None."""


class LedgerDouble:
    """Start with ``with``. ``fault`` may be set at any time."""

    def __init__(self, origin: str = "double.example/log", api_key: str = "emit-key") -> None:
        self.origin = origin
        self.api_key = api_key
        self.log_key = generate_key()
        self.keys: dict[str, PublicKey] = {}
        self.revoked: set[bytes] = set()
        self.open_to_all = True
        self.fault: Fault = lambda number, path: None
        self.requests = 0
        self.seen: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.heads: dict[str, ChainHead] = {}
        self.statements: list[SignedStatement] = []
        self.records: dict[str, Record] = {}
        self.documents: set[str] = set()
        self.leaves: list[bytes] = []
        self.receipts: dict[bytes, bytes] = {}

    def forget(self) -> None:
        """Become an empty ledger with the same keys."""
        with self.lock:
            for each in (
                self.heads,
                self.statements,
                self.records,
                self.documents,
                self.leaves,
                self.receipts,
            ):
                each.clear()

    @property
    def vkey(self) -> str:
        return format_vkey(VerifierKey.of(self.origin, ED25519, self.log_key.public.raw_bytes()))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def dropped(self) -> int:
        """What issuers said they lost."""
        return sum(getattr(each.payload, "dropped", 0) for each in self.statements)

    def __enter__(self) -> LedgerDouble:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                double.handle(self)

            def do_GET(self) -> None:
                double.handle(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *args: None  # type: ignore[method-assign]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        with self.lock:
            number = self.requests
            self.requests += 1
            self.seen.append((request.command, request.path))
        fault = self.fault(number, request.path) or ""
        if fault == "cut":
            request.close_connection = True
            request.connection.close()
            return
        if fault == "redirect":
            self.answer(request, 307, b"", {"Location": self.url + "/elsewhere"})
            return
        if fault.startswith("status-"):
            _, status, *rest = fault.split("-", 2)
            code = rest[0] if rest else "internal"
            self.answer(request, int(status), problem(int(status), code, "as asked"), {"Retry-After": "0"})
            return
        try:
            status, receipt = self.register(request, body)
        except TallystickError as error:
            status = 409 if isinstance(error, RefusedError) else 422
            status = {"unknown-issuer": 403, "revoked-key": 403, "wrong-key": 401, "not-found": 404}.get(
                error.code, status
            )
            self.answer(request, status, problem(status, error.code, error.what), {})
            return
        if fault == "cut-after":
            request.close_connection = True
            request.connection.close()
            return
        if fault == "slow":
            time.sleep(0.3)
        if fault == "huge":
            receipt = receipt + bytes(1 << 20)
        if fault == "garbage":
            receipt = b"<html>It works!</html>"
        if fault.startswith("flip-"):
            at = int(fault[5:]) % len(receipt)
            receipt = receipt[:at] + bytes([receipt[at] ^ 1]) + receipt[at + 1 :]
        if fault == "half":
            request.send_response(201)
            request.send_header("Content-Length", str(len(receipt)))
            request.end_headers()
            request.wfile.write(receipt[: len(receipt) // 2])
            request.close_connection = True
            return
        self.answer(request, status, receipt, {})

    def answer(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]
    ) -> None:
        request.send_response(status)
        for name, value in {"Content-Type": "application/cose", **headers}.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def register(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        if request.headers.get("Authorization") != f"Bearer {self.api_key}":
            raise InvalidError("wrong API key", code="wrong-key")
        if request.command == "GET" and request.path.endswith("/keys"):
            return 200, self.describe(unquote(request.path.split("/")[2]))
        if request.command == "GET":
            leaf = bytes.fromhex(request.path.rpartition("/")[2])
            with self.lock:
                if leaf not in self.receipts:
                    raise InvalidError("no such entry", code="not-found")
                return 200, self.receipts[leaf]
        records: bytes | None = None
        if request.path == "/batches":
            assert request.headers["Content-Type"] == "application/vnd.tallystick.batch+cbor"
            assert request.headers["Content-Encoding"] == "zstd"
            plain = zstd.decompress_bounded(body, 32 << 20)
            assert plain is not None
            entry, records = cose.decode_cbor(plain, where="body", max_bytes=32 << 20)
        else:
            assert request.path == "/entries"
            assert request.headers["Content-Type"] == "application/cose"
            entry = body
        statement = decode_statement(entry)
        with self.lock:
            return self.log(statement, records)

    def describe(self, issuer: str) -> bytes:
        with self.lock:
            if issuer not in self.keys and not self.open_to_all:
                raise InvalidError("no such issuer", code="not-found")
            head = self.heads.get(issuer, ChainHead())
            found: dict[str, Any] = {"issuer": issuer, "next_seq": head.next_seq}
            if head.last_leaf is not None:
                found["last_leaf"] = head.last_leaf.hex()
            key = self.keys.get(issuer)
            found["keys"] = [] if key is None else [{"kid": key.kid.hex(), "added_leaf": 1}]
            return msgspec.json.encode(found)

    def log(self, statement: SignedStatement, records: bytes | None) -> tuple[int, bytes]:
        leaf = statement.leaf_hash
        if leaf in self.receipts:
            return 200, self.receipts[leaf]
        if statement.issuer not in self.keys and not self.open_to_all:
            raise RefusedError("unknown issuer", code="unknown-issuer")
        if statement.kid in self.revoked:
            raise RefusedError("the key is revoked", code="revoked-key")
        if statement.issuer in self.keys:
            verify_statement(statement, self.keys[statement.issuer])
        head = next_head(self.heads.get(statement.issuer, ChainHead()), statement)
        payload = statement.payload
        if isinstance(payload, Batch):
            assert records is not None
            decoded, lines = decode_record_lines(records)
            assert payload.count == len(decoded)
            assert merkle.root([merkle.leaf_hash(line) for line in lines]).hex() == payload.root
            assert sum_records(decoded) == payload.totals
            assert {r.deployment for r in decoded} == set(payload.deployments) <= self.documents
            assert set(payload.factors) <= self.documents
            assert set(payload.prices or ()) <= self.documents
            for record in decoded:
                if record.id in self.records:
                    raise RefusedError(f"record {record.id} came twice", code="duplicate-record")
            self.records.update((record.id, record) for record in decoded)
        elif isinstance(payload, DeploymentStatement):
            self.documents.add(document_digest(payload.deployment))
        elif isinstance(payload, FactorsStatement):
            self.documents.add(document_digest(payload.factors))
        elif isinstance(payload, PricesStatement):
            self.documents.add(document_digest(payload.prices))
        self.heads[statement.issuer] = head
        self.statements.append(statement)
        self.leaves.append(leaf)
        index, size = len(self.leaves) - 1, len(self.leaves)
        self.receipts[leaf], _ = issue_receipt(
            origin=self.origin,
            subject=statement.subject,
            registered_s=int(time.time()),
            tree_size=size,
            leaf_index=index,
            path=merkle.inclusion_path(self.leaves, index),
            root=merkle.root(self.leaves),
            key=self.log_key,
        )
        return 201, self.receipts[leaf]


def problem(status: int, code: str, detail: str) -> bytes:
    return msgspec.json.encode(
        {"type": f"/problems/{code}", "title": code, "status": status, "detail": detail, "remedy": "act"}
    )
