"""Tenants of keys and issuers, invitations, retention, legal holds, particulars of administrative acts"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision: str = "0003"
down_revision: str | Sequence[str] | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("api_key", sa.Column("tenant", sa.String(), nullable=True))
    op.create_table(
        "issuer_tenant",
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("issuer"),
    )
    op.create_index("ix_issuer_tenant_tenant", "issuer_tenant", ["tenant"], unique=False)
    op.create_table(
        "invite",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=True),
        sa.Column("created_s", BIG, autoincrement=False, nullable=False),
        sa.Column("expires_s", BIG, autoincrement=False, nullable=False),
        sa.Column("used_s", BIG, autoincrement=False, nullable=True),
        sa.Column("kid", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("token_sha256"),
    )
    op.create_table(
        "retention_policy",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("keep_days", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "kind"),
    )
    op.create_table(
        "legal_hold",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=True),
        sa.Column("from_us", BIG, autoincrement=False, nullable=True),
        sa.Column("to_us", BIG, autoincrement=False, nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("placed_s", BIG, autoincrement=False, nullable=False),
        sa.Column("lifted_s", BIG, autoincrement=False, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "admin_act",
        sa.Column("leaf_index", BIG, autoincrement=False, nullable=False),
        sa.Column("detail", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("leaf_index"),
    )


def downgrade() -> None:
    op.drop_table("admin_act")
    op.drop_table("legal_hold")
    op.drop_table("retention_policy")
    op.drop_table("invite")
    op.drop_index("ix_issuer_tenant_tenant", "issuer_tenant")
    op.drop_table("issuer_tenant")
    with op.batch_alter_table("api_key") as batch:
        batch.drop_column("tenant")
