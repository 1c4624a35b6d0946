"""A real ledger for engine tests: its service, an issuer that it knows, what that issuer's records hide."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3

from ledger.core.commitments import Opening, commit_request, record_salt, token_bytes, verify_opening
from ledger.core.errors import TallystickError
from ledger.core.keys import generate_key
from ledger.emit.identity import NO_TENANT, Tenants, load_secret
from ledger.keyfiles import save_private_key
from tests.emit.real_service import RealService, running_service


@dataclass
class Ledger:
    """A ledger that is being served, and one issuer's folder: what an engine's environment needs to name."""

    service: RealService
    spool: Path
    issuer: str
    key: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "TALLYSTICK_URL": self.service.url,
            "TALLYSTICK_API_KEY": self.service.admin_key,
            "TALLYSTICK_LOG_KEY": str(self.service.folder / "log.vkey"),
            "TALLYSTICK_SPOOL": str(self.spool),
            "TALLYSTICK_ISSUER": self.issuer,
            "TALLYSTICK_KEY": str(self.key),
        }

    def records(self) -> list[dict[str, Any]]:
        """All records of this issuer that were logged, in the order of the log."""
        found, cursor = [], ""
        while True:
            page = self.service.get(f"/records?limit=1000&issuer={self.issuer}{cursor}")
            found += [each["record"] for each in page["records"]]
            if not page.get("next"):
                return found
            cursor = "&cursor=" + page["next"]

    def wait_for(self, count: int, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """Wait until at least ``count`` records are logged; return all there are a second later."""
        deadline = time.monotonic() + timeout_s
        while len(self.records()) < count and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1.5)  # what comes too much comes too
        return self.records()

    def deployment(self, record: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self.service.get(f"/deployments/{record['deployment']}")
        return answer["deployment"]

    def by_request(
        self, records: Sequence[dict[str, Any]], requests: Sequence[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """The records of each request id, by their salted hashes; each record must be of one of them."""
        found: dict[str, list[dict[str, Any]]] = {each: [] for each in requests}
        left = dict.fromkeys(requests)
        for record in records:
            salt = self.salt(record, "request")
            # Most requests have one record: look among those without one first.
            for request in (*left, *requests):
                if commit_request(request, salt).hex() == record["request"]:
                    found[request].append(record)
                    left.pop(request, None)
                    break
            else:
                raise AssertionError(f"the record {record['id']} is of no known request")
        return found

    def salt(self, record: dict[str, Any], purpose: str) -> bytes:
        secret = load_secret(self.spool / "issuer.secret")
        with contextlib.closing(Tenants(self.spool / "tenants", secret)) as tenants:
            names = tenants.names()
            by_pseudonym = {tenants.pseudonym(name): name for name in names if name != NO_TENANT}
            tenant = by_pseudonym[record["tenant"]] if "tenant" in record else NO_TENANT
            return record_salt(tenants.keys([tenant])[tenant], record["id"], purpose)

    def opens(self, record: dict[str, Any], purpose: str, tokens: Sequence[int]) -> bool:
        """Whether the commitment to the input or output is one to exactly these token ids."""
        commitment = record[purpose]
        opening = Opening("tokens", self.salt(record, purpose), token_bytes(list(tokens)))
        try:
            verify_opening(bytes.fromhex(commitment["digest"]), opening)
        except TallystickError:
            return False
        return bool(commitment["of"] == "tokens")


@contextlib.contextmanager
def serving(folder: Path, name: str) -> Iterator[Ledger]:
    """Serve a new ledger in ``folder`` that knows the issuer ``tests.example/NAME``."""
    with running_service(folder / "data") as service:
        issuer, key = f"tests.example/{name}", generate_key("ed25519")
        save_private_key(folder / "issuer.pem", key)
        answer = urllib3.request(
            "POST",
            service.url + "/issuers",
            headers={"Authorization": f"Bearer {service.admin_key}"},
            json={"issuer": issuer, "public_key_pem": key.public.to_pem().decode()},
        )
        assert answer.status in (200, 201), answer.data
        yield Ledger(service, folder / "spool", issuer, folder / "issuer.pem")
