"""Budgets"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision: str = "0002"
down_revision: str | Sequence[str] | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "budget",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("measure", sa.String(), nullable=False),
        sa.Column("currency", sa.String(), nullable=True),
        sa.Column("amount", sa.String(), nullable=False),
        sa.Column("period", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=True),
        sa.Column("model", sa.String(), nullable=True),
        sa.Column("alerts", sa.String(), nullable=False),
        sa.Column("refuse", sa.Integer(), nullable=False),
        sa.Column("created_s", BIG, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    head = op.create_table(
        "budget_head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("next_leaf", BIG, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.bulk_insert(head, [{"id": 1, "next_leaf": 0}])
    op.create_table(
        "budget_use",
        sa.Column("budget", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("bucket_s", BIG, autoincrement=False, nullable=False),
        sa.Column("used", sa.String(), nullable=False),
        sa.Column("reserved", sa.String(), nullable=False),
        sa.Column("tokens", sa.String(), nullable=False),
        sa.Column("known", BIG, autoincrement=False, nullable=False),
        sa.Column("unknown", BIG, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("budget", "tenant", "bucket_s"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "budget_reservation",
        sa.Column("id", sa.LargeBinary(), nullable=False),
        sa.Column("expires_s", BIG, autoincrement=False, nullable=False),
        sa.Column("shares", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_budget_reservation_expires_s", "budget_reservation", ["expires_s"], unique=False)
    op.create_table(
        "budget_alert",
        sa.Column("budget", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("period_s", BIG, autoincrement=False, nullable=False),
        sa.Column("percent", sa.Integer(), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.Column("used", sa.String(), nullable=False),
        sa.Column("amount", sa.String(), nullable=False),
        sa.Column("at_s", BIG, autoincrement=False, nullable=False),
        sa.Column("told_s", BIG, autoincrement=False, nullable=True),
        sa.PrimaryKeyConstraint("budget", "tenant", "period_s", "percent"),
    )


def downgrade() -> None:
    op.drop_table("budget_alert")
    op.drop_index("ix_budget_reservation_expires_s", "budget_reservation")

    op.drop_table("budget_reservation")
    op.drop_table("budget_use")
    op.drop_table("budget_head")
    op.drop_table("budget")
