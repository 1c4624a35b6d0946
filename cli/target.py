"""What TARGET names: a ledger's folder on this machine, or the URL of a service. Both answer alike.

Answers have the shapes of the HTTP API, so that ``--json`` shows the same for a folder and for a URL.
"""

from __future__ import annotations

import base64
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ledger.core.errors import InvalidError

if TYPE_CHECKING:
    from cli.client import Client
    from cli.folder import Folder
    from ledger.core.keys import PublicKey
    from ledger.store import Sequencer

__all__ = ["Ledger", "LocalLedger", "RemoteLedger", "is_url", "open_ledger"]


_PLACE_DIGITS = len(str(2**63))


class Ledger(Protocol):
    """What commands ask of a ledger."""

    def records(self, query: dict[str, Any]) -> dict[str, Any]:
        """A page of records: ``records`` and, if there is more, ``next``."""

    def record(self, record_id: str) -> dict[str, Any]:
        """One record, where it is, and what was said later about it."""

    def record_proof(self, record_id: str) -> dict[str, Any]:
        """What proves one record."""

    def statement(self, entry: str) -> bytes:
        """A statement's bytes."""

    def receipt(self, entry: str) -> bytes:
        """A statement's receipt."""

    def rollups(self, by: list[str], query: dict[str, Any]) -> list[dict[str, Any]]:
        """Sums by dimensions."""

    def models(self) -> dict[str, str]:
        """Model names by deployment digest."""

    def issuers(self) -> list[dict[str, Any]]:
        """Issuers and their keys."""

    def add_issuer(self, issuer: str, key: PublicKey, tenant: str | None = None) -> dict[str, Any]:
        """Register a key, a new issuer's for one tenant's records alone if named; the log signs it."""

    def invite(self, issuer: str, tenant: str | None, valid_s: int) -> dict[str, Any]:
        """Make a one-time token with which a key of the issuer is enrolled."""

    def acts(self) -> list[dict[str, Any]]:
        """What administrators did, in the order of the log."""

    def revoke_key(self, issuer: str, kid: str, reason: str | None) -> dict[str, Any]:
        """Revoke a key; the log signs that it did."""


def is_url(target: str) -> bool:
    """Whether ``target`` is meant as a URL."""
    return "://" in target


def open_ledger(target: str, api_key_file: Path | None = None) -> Ledger:
    """The ledger that ``target`` names."""
    if is_url(target):
        from cli.client import Client, read_api_key

        return RemoteLedger(Client(target, read_api_key(api_key_file)))
    from cli.folder import open_folder

    return LocalLedger(open_folder(Path(target), or_url=True))


class LocalLedger:
    """A ledger in a folder of this machine."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._store = folder.open()

    def records(self, query: dict[str, Any]) -> dict[str, Any]:
        """See ``Ledger``."""
        from ledger.store import queries

        query = dict(query)
        limit, cursor = query.pop("limit", 100), query.pop("cursor", None)
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < _PLACE_DIGITS):
            raise InvalidError(
                f"{cursor[:40]!r} is not a cursor", remedy="pass `next` of an earlier page", code="bad-cursor"
            )
        with self._store.read() as connection:
            found, after = queries.records(
                connection,
                queries.RecordFilter(**query),
                after=None if cursor is None else int(cursor),
                limit=limit,
            )
        page: dict[str, Any] = {"records": [_place(each) for each in found]}
        return page if after is None else page | {"next": str(after)}

    def record(self, record_id: str) -> dict[str, Any]:
        """See ``Ledger``."""
        from ledger.store import queries
        from ledger.store.later import described, later_of

        with self._store.read() as connection:
            found = queries.record_by_id(connection, record_id)
            return _place(found) | described(later_of(connection, found))

    def record_proof(self, record_id: str) -> dict[str, Any]:
        """See ``Ledger``."""
        from ledger.store import queries

        with self._store.read() as connection:
            proof = queries.record_proof(connection, record_id)
            checkpoint = queries.log_head(connection).checkpoint
        return {
            "record": base64.b64encode(proof.found.line).decode(),
            "leaf_index": proof.found.leaf_index,
            "position": proof.found.position,
            "path": [each.hex() for each in proof.path],
            "statement": base64.b64encode(proof.entry).decode(),
            "receipt": base64.b64encode(proof.receipt).decode(),
            "checkpoint": checkpoint,
        }

    def statement(self, entry: str) -> bytes:
        """See ``Ledger``."""
        from ledger.store import queries

        with self._store.read() as connection:
            return queries.statement(connection, queries.resolve_entry(connection, entry)).entry

    def receipt(self, entry: str) -> bytes:
        """See ``Ledger``."""
        from ledger.store import queries

        with self._store.read() as connection:
            return queries.receipt(connection, queries.resolve_entry(connection, entry))

    def rollups(self, by: list[str], query: dict[str, Any]) -> list[dict[str, Any]]:
        """See ``Ledger``."""
        from ledger.store import queries

        with self._store.read() as connection:
            return queries.rollups(connection, by, **query)

    def models(self) -> dict[str, str]:
        """See ``Ledger``."""
        from ledger.store import queries

        with self._store.read() as connection:
            return {row.digest: row.model or "" for row in queries.documents(connection, "deployment")}

    def issuers(self) -> list[dict[str, Any]]:
        """See ``Ledger``."""
        from ledger.core.cose import encode_cbor
        from ledger.store import queries

        with self._store.read() as connection:
            return [
                {
                    "issuer": info.issuer,
                    "next_seq": info.next_seq,
                    **({} if info.last_leaf is None else {"last_leaf": info.last_leaf.hex()}),
                    "keys": [
                        {
                            "kid": key.kid.hex(),
                            "algorithm": key.public.name,
                            "cose_key": encode_cbor(key.public.to_cose_key()).hex(),
                            "added_leaf": key.added_leaf,
                            **({} if key.revoked_leaf is None else {"revoked_leaf": key.revoked_leaf}),
                        }
                        for key in info.keys
                    ],
                }
                for info in queries.issuers(connection)
            ]

    def add_issuer(self, issuer: str, key: PublicKey, tenant: str | None = None) -> dict[str, Any]:
        """See ``Ledger``."""
        with self._sequencer() as sequencer:
            known = any(each["issuer"] == issuer for each in self.issuers())
            registration = sequencer.add_key(issuer, key, rotate=known, tenant=tenant).result()
        return {"issuer": issuer, "kid": key.kid.hex(), "leaf_index": registration.leaf_index}

    def revoke_key(self, issuer: str, kid: str, reason: str | None) -> dict[str, Any]:
        """See ``Ledger``."""
        from ledger.store import queries

        with self._store.read() as connection:
            found = queries.issuer_key(connection, bytes.fromhex(kid))
        if found is None or found.issuer != issuer:
            raise InvalidError(
                f"issuer {issuer} has no key {kid}", remedy="see `tallystick issuers list`", code="not-found"
            )
        with self._sequencer() as sequencer:
            registration = sequencer.revoke_key(issuer, found.public, reason=reason).result()
        return {"issuer": issuer, "kid": kid, "leaf_index": registration.leaf_index}

    def _sequencer(self) -> AbstractContextManager[Sequencer]:
        return self._folder.sequencer(self._store)

    def invite(self, issuer: str, tenant: str | None, valid_s: int) -> dict[str, Any]:
        """See ``Ledger``."""
        from ledger.store.enrolment import new_invite

        token, info, statement = new_invite(issuer, tenant=tenant, valid_s=valid_s)
        with self._sequencer() as sequencer:
            sequencer.log_own(statement).result()
        given: dict[str, Any] = {"id": info.id, "token": token, "issuer": issuer, "expires_s": info.expires_s}
        return given if tenant is None else given | {"tenant": tenant}

    def acts(self) -> list[dict[str, Any]]:
        """See ``Ledger``."""
        from ledger.store import acts

        with self._store.read() as connection:
            found = acts.acts(connection)
        return [{name: value for name, value in vars(act).items() if value is not None} for act in found]


def _place(found: Any) -> dict[str, Any]:
    import msgspec

    return {
        "leaf_index": found.leaf_index,
        "position": found.position,
        "issuer": found.issuer,
        "record": msgspec.json.decode(found.line),
    }


class RemoteLedger:
    """A ledger behind a service."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def records(self, query: dict[str, Any]) -> dict[str, Any]:
        """See ``Ledger``."""
        page: dict[str, Any] = self._client.get_json("/records", query)
        return page

    def record(self, record_id: str) -> dict[str, Any]:
        """See ``Ledger``."""
        found: dict[str, Any] = self._client.get_json(f"/records/{_segment(record_id)}")
        return found

    def record_proof(self, record_id: str) -> dict[str, Any]:
        """See ``Ledger``."""
        proof: dict[str, Any] = self._client.get_json(f"/records/{_segment(record_id)}/proof")
        return proof

    def statement(self, entry: str) -> bytes:
        """See ``Ledger``."""
        return self._client.get(f"/entries/{_segment(entry)}/statement")

    def receipt(self, entry: str) -> bytes:
        """See ``Ledger``."""
        return self._client.get(f"/entries/{_segment(entry)}")

    def rollups(self, by: list[str], query: dict[str, Any]) -> list[dict[str, Any]]:
        """See ``Ledger``."""
        rows: list[dict[str, Any]] = self._client.get_json("/rollups", {"by": by, **query})["rows"]
        return rows

    def models(self) -> dict[str, str]:
        """See ``Ledger``."""
        found = self._client.get_json("/deployments")
        return {each["digest"]: each.get("model", "") for each in found["deployments"]}

    def issuers(self) -> list[dict[str, Any]]:
        """See ``Ledger``."""
        found: list[dict[str, Any]] = self._client.get_json("/issuers")["issuers"]
        return found

    def invite(self, issuer: str, tenant: str | None, valid_s: int) -> dict[str, Any]:
        """See ``Ledger``."""
        body = {"issuer": issuer, "valid_s": valid_s} | ({} if tenant is None else {"tenant": tenant})
        invited: dict[str, Any] = self._client.post_json("/invitations", body)
        return invited

    def acts(self) -> list[dict[str, Any]]:
        """See ``Ledger``."""
        found: list[dict[str, Any]] = []
        while page := self._client.get_json(
            "/acts", {"after": found[-1]["leaf_index"] if found else -1, "limit": 1_000}
        )["acts"]:
            found += page
        return found

    def add_issuer(self, issuer: str, key: PublicKey, tenant: str | None = None) -> dict[str, Any]:
        """See ``Ledger``."""
        body = {"issuer": issuer, "public_key_pem": key.to_pem().decode("ascii")}
        body |= {} if tenant is None else {"tenant": tenant}
        added: dict[str, Any] = self._client.post_json("/issuers", body)
        return added

    def revoke_key(self, issuer: str, kid: str, reason: str | None) -> dict[str, Any]:
        """See ``Ledger``."""
        path = f"/issuers/{_segment(issuer)}/keys/{_segment(kid)}/revoke"
        revoked: dict[str, Any] = self._client.post_json(path, {} if reason is None else {"reason": reason})
        return revoked


def _segment(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")
