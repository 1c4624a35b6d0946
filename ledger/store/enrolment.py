"""Enrolment: how an issuer's key gets into the log without an administrator seeing it.

An invitation is a one-time token: it names the issuer, perhaps the tenant, and the time it runs out; the
store has its SHA-256 only. Who holds it registers a key of its own and proves that it holds the private half,
by a COSE_Sign1 (detached) over ``claim``: the log, the token, the issuer and the key. Using up the token and
logging the key are one transaction, so that of two who come at once one is refused. A workload's token (JWT)
takes the place of the invitation where a rule names an issuer; each of those enrols one key, too.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from ledger.core import cose
from ledger.core.canonical import encode_canonical
from ledger.core.errors import InvalidError, RefusedError, TallystickError
from ledger.core.keys import PrivateKey, PublicKey
from ledger.core.statements import check_issuer_id
from ledger.store._transaction import OwnStatement
from ledger.store.acts import OPERATOR, administer
from ledger.store.tables import table
from ledger.store.tenancy import check_tenant
from ledger.store.trust_tables import Invite

__all__ = [
    "LONGEST_S",
    "InviteInfo",
    "check_proof",
    "claim",
    "find_invite",
    "invites",
    "new_invite",
    "prove",
    "token_id",
    "use_invite",
    "use_token",
    "wrong_invite",
]

LONGEST_S = 30 * 86_400
"""A token that waits longer is forgotten somewhere."""
_TOKEN = re.compile(r"tsi_([0-9a-f]{12})_[A-Za-z0-9_-]{43}").fullmatch
_NOBODY = bytes(32)
_PROOF_LABELS = frozenset({cose.ALG, cose.KID})


@dataclass(frozen=True)
class InviteInfo:
    """An invitation as an administrator sees it: never its token."""

    id: str
    issuer: str
    tenant: str | None
    created_s: int
    expires_s: int
    used_s: int | None
    kid: bytes | None


def new_invite(
    issuer: str, *, tenant: str | None = None, valid_s: int, by: str = OPERATOR
) -> tuple[str, InviteInfo, OwnStatement]:
    """An invitation: its token, which is not kept; what is known of it; the statement that makes it valid.

    Raises:
        InvalidError: an unusable issuer or tenant, or a time that is too long.
    """
    check_issuer_id(issuer)
    if tenant is not None:
        check_tenant(tenant)
    if not 0 < valid_s <= LONGEST_S:
        raise InvalidError(
            f"{valid_s} s is not from 1 to {LONGEST_S}",
            where="valid",
            remedy="an invitation is for a key that is to be registered now",
            code="bad-parameter",
        )
    invite_id = secrets.token_hex(6)
    token = f"tsi_{invite_id}_{secrets.token_urlsafe(32)}"
    now = int(time.time())
    info = InviteInfo(invite_id, issuer, tenant, now, now + valid_s, None, None)

    def put(connection: Connection) -> None:
        connection.execute(
            insert(table(Invite)).values(
                **info.__dict__, token_sha256=hashlib.sha256(token.encode()).digest()
            )
        )

    said = {"invite": invite_id, "issuer": issuer, "tenant": tenant, "expires_s": info.expires_s}
    return token, info, administer("issuer.invite", said, put, by=by)


def invites(connection: Connection) -> list[InviteInfo]:
    """All invitations, oldest first."""
    rows = table(Invite)
    return [_info(row) for row in connection.execute(select(rows).order_by(rows.c.created_s, rows.c.id))]


def find_invite(connection: Connection, token: str) -> InviteInfo:
    """The invitation of ``token``, if it can be used now.

    Raises:
        RefusedError: ``wrong-invite``: malformed, unknown, used or run out; the answer does not tell which.
    """
    match = _TOKEN(token)
    rows = table(Invite)
    row = None
    if match is not None:
        row = connection.execute(select(rows).where(rows.c.id == match[1])).one_or_none()
    digest = hashlib.sha256(token.encode()).digest()
    # Compared in constant time, also where there is no such invitation.
    same = hmac.compare_digest(digest, bytes(row.token_sha256) if row is not None else _NOBODY)
    if row is None or not same or row.used_s is not None or row.expires_s <= int(time.time()):
        raise wrong_invite()
    return _info(row)


def use_invite(info: InviteInfo, key: PublicKey) -> Callable[[Connection], None]:
    """What goes with logging the key: the invitation is used up.

    The deed raises RefusedError: ``wrong-invite`` if it was used or ran out meanwhile.
    """

    def use(connection: Connection) -> None:
        rows, now = table(Invite), int(time.time())
        free = rows.c.id == info.id, rows.c.used_s.is_(None), rows.c.expires_s > now
        if connection.execute(update(rows).where(*free).values(used_s=now, kid=key.kid)).rowcount != 1:
            raise wrong_invite()

    return use


def token_id(token: str) -> str:
    """What a workload's token is called where an invitation's id would stand."""
    return f"jwt-{hashlib.sha256(token.encode()).hexdigest()[:32]}"


def use_token(
    token: str, issuer: str, tenant: str | None, expires_s: int, key: PublicKey
) -> Callable[[Connection], None]:
    """The same for a workload's token, which enrols one key at most: it is noted as a used invitation."""
    digest = hashlib.sha256(token.encode()).digest()

    def use(connection: Connection) -> None:
        now = int(time.time())
        values: dict[str, Any] = {
            "id": token_id(token),
            "token_sha256": digest,
            "issuer": issuer,
            "tenant": tenant,
            "created_s": now,
            "expires_s": expires_s,
            "used_s": now,
            "kid": key.kid,
        }
        rows = table(Invite)
        if connection.execute(select(rows.c.id).where(rows.c.token_sha256 == digest)).one_or_none():
            raise wrong_invite()
        try:
            connection.execute(insert(rows).values(**values))
        except IntegrityError:
            raise wrong_invite() from None

    return use


def wrong_invite() -> RefusedError:
    """The error for a token that enrols nobody. It does not tell why: that would help who guesses."""
    return RefusedError(
        "the invitation is malformed, unknown, used or run out",
        where="token",
        remedy="ask an administrator of this log for another one",
        code="wrong-invite",
    )


# --- proof of possession ---------------------------------------------------------------------------------


def claim(origin: str, token: str, issuer: str, key: PublicKey) -> bytes:
    """What the holder of a key signs to enrol it: good for this log, token, issuer and key alone."""
    return encode_canonical(
        {
            "purpose": "tallystick enrolment v1",
            "log": origin,
            "token_sha256": hashlib.sha256(token.encode()).hexdigest(),
            "issuer": issuer,
            "kid": key.kid.hex(),
        }
    )


def prove(origin: str, token: str, issuer: str, key: PrivateKey) -> bytes:
    """Prove possession of ``key``: a COSE_Sign1 with the claim detached."""
    return cose.encode_sign1(cose.sign1({}, claim(origin, token, issuer, key.public), key, detached=True))


def check_proof(proof: bytes, origin: str, token: str, issuer: str, key: PublicKey) -> None:
    """Check that whoever made ``proof`` holds the private half of ``key``.

    Raises:
        RefusedError: ``bad-proof``: it does not.
    """
    try:
        message = cose.decode_sign1(proof, where="proof")
        if message.payload is not None or message.unprotected or message.header.get(cose.KID) != key.kid:
            raise InvalidError("is not about this key", where="proof")
        payload = claim(origin, token, issuer, key)
        cose.verify_sign1(message, key, payload=payload, understood=_PROOF_LABELS, where="proof")
    except TallystickError as error:
        raise RefusedError(
            f"it is not proven that you hold the key: {error.what}",
            where="proof",
            remedy="sign the claim with the key's private half: `tallystick issuers enrol` does",
            code="bad-proof",
        ) from None


def _info(row: Any) -> InviteInfo:
    kid = None if row.kid is None else bytes(row.kid)
    return InviteInfo(row.id, row.issuer, row.tenant, row.created_s, row.expires_s, row.used_s, kid)
