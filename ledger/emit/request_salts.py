"""Opens the commitments to callers' request ids, for the tenant whose requests they are.

A record holds a salted hash of the caller's request id. With the salt, who knows the ids finds the record of
each; who does not, can only guess. Salts derive from the recorder's secrets: they are made where those are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from msgspec import UNSET

from ledger.core.commitments import record_salt
from ledger.core.errors import InvalidError
from ledger.core.records import Record
from ledger.emit.identity import NO_TENANT, Tenants, load_secret
from ledger.emit.survey import read_head_of

__all__ = ["request_salts"]


def request_salts(directory: Path) -> Callable[[str, Record], bytes | None]:
    """A function from an issuer and one of its records to the salt of the record's request commitment.

    It gives None for what the spool in ``directory`` cannot open: another issuer's record, or one of a tenant
    whose secret was dropped. Nothing is made or written.

    Raises:
        InvalidError: there is no spool, or it has no secret.
    """
    issuer = read_head_of(directory).issuer
    secret = directory / "issuer.secret"
    if not secret.is_file():
        raise InvalidError(
            "the spool has no secret to open commitments with",
            where=str(secret),
            remedy="name the spool of the recorder that made the records",
            code="bad-secret",
        )
    with contextlib.closing(Tenants(directory / "tenants", load_secret(secret))) as tenants:
        keys = {
            tenants.pseudonym(name) if name != NO_TENANT else name: key
            for name, key in tenants.keys(tenants.names()).items()
        }

    def salt(of: str, record: Record) -> bytes | None:
        key = keys.get(NO_TENANT if record.tenant is UNSET else record.tenant)
        return None if of != issuer or key is None else record_salt(key, record.id, "request")

    return salt
