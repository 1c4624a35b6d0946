"""The tables. Evidence is in ``statement``, ``tile`` and ``checkpoint``; the rest is derived from them.

Each row of a derived table can be computed again from the statements and their records, and the auditor does
so. A statement's records are one compressed block in its row: 180 to 240 bytes a record with all beside
it, where one row per record with three indexes takes 1,126.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    UniqueConstraint,
)
from sqlmodel import Field, SQLModel

from ledger.store import trust_tables, witnessed  # noqa: F401 - one import registers all tables

__all__ = [
    "PLACES_PER_LEAF",
    "ROLLUP_SUMS",
    "ApiKey",
    "BatchSlice",
    "BudgetAlertRow",
    "BudgetHead",
    "BudgetReservation",
    "BudgetRow",
    "BudgetUse",
    "CheckpointRow",
    "Document",
    "Issuer",
    "IssuerKeyRow",
    "LogHead",
    "RecordIndex",
    "Rollup",
    "StatementRow",
    "Tile",
    "table",
]

PLACES_PER_LEAF = 4096
"""``place`` = leaf index * 4096 + position: one integer orders all records of the log."""


# SQLite makes a key its row number only if the type is spelled INTEGER; all its integers have 64 bits.
_Big = BigInteger().with_variant(Integer, "sqlite")


def _big(**options: Any) -> Any:
    return Field(sa_column=Column(_Big, autoincrement=False, **options))


def _blob(**options: Any) -> Any:
    return Field(sa_column=Column(LargeBinary, **options))


class LogHead(SQLModel, table=True):
    """The log as it stands: one row. Appending locks it, so that many replicas make one history."""

    __tablename__ = "log_head"

    id: int = Field(primary_key=True)
    origin: str
    size: int = _big(nullable=False)
    root: bytes = _blob(nullable=False)
    checkpoint: str


class CheckpointRow(SQLModel, table=True):
    """Every checkpoint ever signed, committed together with the tree that it describes."""

    __tablename__ = "checkpoint"

    size: int = _big(primary_key=True)
    note: str


class Tile(SQLModel, table=True):
    """A tile: full, or the rightmost partial one of its level. Narrower ones are its prefixes."""

    __tablename__ = "tile"

    level: int = Field(primary_key=True)
    idx: int = _big(primary_key=True)
    hashes: bytes = _blob(nullable=False)


class StatementRow(SQLModel, table=True):
    """A leaf with what is needed to give its receipt again, and its records as one block.

    ``tree_size``, ``registered_s`` and ``receipt_signature`` are the receipt's; the path comes from the
    tiles. ``records`` is a zstd frame; ``records_sha256`` is over its compressed bytes.

    Corrections and evaluations have one more index, by their subject, which is an expression: see ``later``.
    """

    __tablename__ = "statement"
    __table_args__ = (
        UniqueConstraint("leaf_hash", name="uq_statement_leaf_hash"),
        UniqueConstraint("issuer", "seq", name="uq_statement_issuer_seq"),
        Index("ix_statement_last_us", "last_us"),
    )

    leaf_index: int = _big(primary_key=True)
    leaf_hash: bytes = _blob(nullable=False)
    kind: str
    issuer: str
    seq: int = _big(nullable=False)
    entry: bytes = _blob(nullable=False)
    tree_size: int = _big(nullable=False)
    registered_s: int = _big(nullable=False)
    receipt_signature: bytes = _blob(nullable=False)
    record_count: int = Field(default=0)
    first_us: int | None = _big(nullable=True)
    last_us: int | None = _big(nullable=True)
    records_sha256: bytes | None = _blob(nullable=True)
    records: bytes | None = _blob(nullable=True)


class RecordIndex(SQLModel, table=True):
    """Where each record is, by its id; also what makes ids unique."""

    __tablename__ = "record_index"
    __table_args__ = {"sqlite_with_rowid": False}

    id: bytes = _blob(primary_key=True)
    place: int = _big(nullable=False)


class BatchSlice(SQLModel, table=True):
    """Which batch holds records of which tenant and deployment, and how many. No tenant is ''."""

    __tablename__ = "batch_slice"
    __table_args__ = (
        Index("ix_batch_slice_tenant", "tenant", "leaf_index"),
        Index("ix_batch_slice_deployment", "deployment", "leaf_index"),
        {"sqlite_with_rowid": False},
    )

    leaf_index: int = _big(primary_key=True)
    tenant: str = Field(primary_key=True)
    deployment: str = Field(primary_key=True)
    records: int


class Rollup(SQLModel, table=True):
    """Sums over the records that started within one hour, by tenant and deployment.

    ``sums`` is a JSON array of integers in the order of ``ROLLUP_SUMS``: they may pass 64 bits, and a column
    alone is written much faster than two dozen.
    """

    __tablename__ = "rollup"

    hour: int = Field(primary_key=True)
    tenant: str = Field(primary_key=True)
    deployment: str = Field(primary_key=True)
    sums: str


ROLLUP_SUMS = (
    "records",
    "input_tokens",
    "output_tokens",
    "cached_input_records",
    "cached_input_tokens",
    "reasoning_records",
    "reasoning_tokens",
    "measured_records",
    "modelled_records",
    "estimated_records",
    "energy_uj",
    "energy_low_uj",
    "energy_high_uj",
    "carbon_records",
    "carbon_ng",
    "carbon_market_records",
    "carbon_market_ng",
    "embodied_records",
    "embodied_ng",
    "water_records",
    "water_nl",
)
"""What a roll-up sums. A sum is over the records that have the figure; ``*_records`` say how many those are.

``energy_low_uj`` and ``energy_high_uj`` count a record without a range at its figure.
"""


class Issuer(SQLModel, table=True):
    """An issuer and the head of its chain."""

    __tablename__ = "issuer"

    issuer: str = Field(primary_key=True)
    next_seq: int = _big(nullable=False)
    last_leaf: bytes | None = _blob(nullable=True)


class IssuerKeyRow(SQLModel, table=True):
    """An issuer's key, the leaf that added it and the leaf that revoked it."""

    __tablename__ = "issuer_key"

    kid: bytes = _blob(primary_key=True)
    issuer: str = Field(foreign_key="issuer.issuer", index=True)
    alg: int
    cose_key: bytes = _blob(nullable=False)
    added_leaf: int = _big(nullable=False)
    revoked_leaf: int | None = _big(nullable=True)


class Document(SQLModel, table=True):
    """A deployment or factor set, by digest, with the leaf that published it first."""

    __tablename__ = "document"

    digest: str = Field(primary_key=True)
    kind: str
    leaf_index: int = _big(nullable=False)
    body: bytes = _blob(nullable=False)
    model: str | None = Field(default=None, index=True)
    version: str | None = Field(default=None)


class ApiKey(SQLModel, table=True):
    """An API key. The token is not stored, only its SHA-256. ``check_sha256`` is over the other columns.

    A key with a tenant sees and logs that tenant's records alone.
    """

    __tablename__ = "api_key"

    id: str = Field(primary_key=True)
    token_sha256: bytes = _blob(nullable=False, unique=True)
    scopes: str
    label: str
    created_s: int = _big(nullable=False)
    revoked_s: int | None = _big(nullable=True)
    check_sha256: bytes = _blob(nullable=False)
    tenant: str | None = Field(default=None)


class BudgetRow(SQLModel, table=True):
    """A budget. ``amount`` is its limit, in decimal digits: sums may pass 64 bits.

    ``alerts`` are percentages, a space between them. ``refuse`` is 1 where more is refused at the limit.
    """

    __tablename__ = "budget"

    name: str = Field(primary_key=True)
    measure: str
    currency: str | None = Field(default=None)
    amount: str
    period: str
    tenant: str | None = Field(default=None)
    model: str | None = Field(default=None)
    alerts: str
    refuse: int
    created_s: int = _big(nullable=False)


class BudgetHead(SQLModel, table=True):
    """How far the log was counted for the budgets: one row. Who counts or reserves locks it."""

    __tablename__ = "budget_head"

    id: int = Field(primary_key=True)
    next_leaf: int = _big(nullable=False)


class BudgetUse(SQLModel, table=True):
    """What was used of a budget by one tenant within one bucket of time, and what is reserved there.

    ``used`` is over ``known`` records with ``tokens`` tokens; ``unknown`` records do not tell the figure.
    Amounts are decimal digits.
    """

    __tablename__ = "budget_use"
    __table_args__ = {"sqlite_with_rowid": False}

    budget: str = Field(primary_key=True)
    tenant: str = Field(primary_key=True)
    bucket_s: int = _big(primary_key=True)
    used: str
    reserved: str
    tokens: str
    known: int = _big(nullable=False)
    unknown: int = _big(nullable=False)


class BudgetReservation(SQLModel, table=True):
    """What one request that runs may use, until its record is logged, it is released, or it expires.

    ``shares`` is a JSON array of [budget, tenant, bucket, amount].
    """

    __tablename__ = "budget_reservation"
    __table_args__ = (Index("ix_budget_reservation_expires_s", "expires_s"),)

    id: bytes = _blob(primary_key=True)
    expires_s: int = _big(nullable=False)
    shares: str


class BudgetAlertRow(SQLModel, table=True):
    """That use reached a percentage of a limit, and which record did it; percent 0: a request was refused.

    ``told_s`` is when the webhook took it.
    """

    __tablename__ = "budget_alert"

    budget: str = Field(primary_key=True)
    tenant: str = Field(primary_key=True)
    period_s: int = _big(primary_key=True)
    percent: int = Field(primary_key=True)
    record: bytes = _blob(nullable=False)
    used: str
    amount: str
    at_s: int = _big(nullable=False)
    told_s: int | None = _big(nullable=True)


def table(model: Any) -> Any:
    """The SQLAlchemy table of a model."""
    return model.__table__
