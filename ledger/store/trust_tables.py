"""The tables of trust and tenants: who may enrol, whose issuer is whose, what is kept, what an act was about.

None is evidence. What an administrator did is in the log (``admin``, ``key`` and ``erasure`` statements);
these say what is in force now.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Integer, LargeBinary
from sqlmodel import Field, SQLModel

__all__ = ["AdminAct", "Invite", "IssuerTenant", "LegalHold", "RetentionPolicy"]

_Big = BigInteger().with_variant(Integer, "sqlite")


def _big(**options: Any) -> Any:
    return Field(sa_column=Column(_Big, autoincrement=False, **options))


class IssuerTenant(SQLModel, table=True):
    """An issuer that logs records of one tenant alone. Those without a row log records of any."""

    __tablename__ = "issuer_tenant"

    issuer: str = Field(primary_key=True)
    tenant: str = Field(index=True)


class Invite(SQLModel, table=True):
    """A one-time token that lets its holder register one key of one issuer. The token is not stored.

    ``used_s`` and ``kid`` say when and for which key it was used; a token is used once.
    """

    __tablename__ = "invite"

    id: str = Field(primary_key=True)
    token_sha256: bytes = Field(sa_column=Column(LargeBinary, nullable=False, unique=True))
    issuer: str
    tenant: str | None = Field(default=None)
    created_s: int = _big(nullable=False)
    expires_s: int = _big(nullable=False)
    used_s: int | None = _big(nullable=True)
    kid: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))


class RetentionPolicy(SQLModel, table=True):
    """How many days something of a kind is kept for a tenant; tenant '' is everybody without a row."""

    __tablename__ = "retention_policy"

    tenant: str = Field(primary_key=True)
    kind: str = Field(primary_key=True)
    keep_days: int


class LegalHold(SQLModel, table=True):
    """Records that may not be erased while this is in force. An absent tenant or time is every one."""

    __tablename__ = "legal_hold"

    id: str = Field(primary_key=True)
    tenant: str | None = Field(default=None)
    from_us: int | None = _big(nullable=True)
    to_us: int | None = _big(nullable=True)
    reason: str
    placed_s: int = _big(nullable=False)
    lifted_s: int | None = _big(nullable=True)


class AdminAct(SQLModel, table=True):
    """The particulars of an ``admin`` or ``key`` statement: salted canonical JSON whose SHA-256 it signs."""

    __tablename__ = "admin_act"

    leaf_index: int = _big(primary_key=True)
    detail: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
