"""A running app over a small log, with one API key for each scope, and a way to see that nothing changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel import SQLModel
from starlette.testclient import TestClient

from ledger.service import Settings, create_api_key, create_app
from tests.build import Issuer, Ledger, SealedBatch, make_ledger, make_records

BATCH = "application/vnd.tallystick.batch+cbor"
COSE = "application/cose"

SMALL = Settings(
    max_entry_bytes=200_000,
    max_batch_wire_bytes=1_000_000,
    max_batch_bytes=2_000_000,
    max_json_bytes=20_000,
    body_timeout_s=5,
    api_key_cache_s=0,
)


@dataclass
class Harness:
    """A client of a running app and what stands behind it."""

    ledger: Ledger
    client: TestClient
    tokens: dict[str, str]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def issuer(self) -> Issuer:
        return self.ledger.issuer

    def headers(self, scope: str, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[scope]}", **more}

    def get(self, path: str, scope: str | None = "read", **options: Any) -> Any:
        headers = (self.headers(scope) if scope else {}) | options.pop("headers", {})
        return self.client.get(path, headers=headers, **options)

    def post(self, path: str, body: Any, media_type: str, scope: str = "emit", **headers: str) -> Any:
        return self.client.post(
            path, content=body, headers=self.headers(scope, **{"Content-Type": media_type}) | headers
        )

    def send(self, item: Any, **headers: str) -> Any:
        if isinstance(item, SealedBatch):
            return self.post("/batches", item.body, BATCH, **headers)
        return self.post("/entries", item.entry, COSE, **headers)

    def log_batch(self, count: int = 3, **changes: Any) -> SealedBatch:
        """Log a batch of new records."""
        first = self.extra.get("records", 0)
        self.extra["records"] = first + count
        batch = self.issuer.batch(make_records(count, self.ledger.digest, first=first, **changes))
        answer = self.send(batch)
        assert answer.status_code == 201, answer.content
        return batch

    def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table."""
        with self.ledger.store.read() as connection:
            return {
                name: [tuple(row) for row in connection.execute(text(f"SELECT * FROM {name} ORDER BY 1, 2"))]
                for name in SQLModel.metadata.tables
            }


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = make_ledger(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def harness(ledger: Ledger) -> Iterator[Harness]:
    tokens = {scope: create_api_key(ledger.store, scope, [scope]) for scope in ("emit", "read", "admin")}
    app = create_app(ledger.store, ledger.log_key, SMALL)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Harness(ledger, client, tokens)
