"""First tables"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

# Frozen copies of the column types as they were: a migration does not follow later code.
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision: str = "0001"
down_revision: str | Sequence[str] | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("created_s", BIG, autoincrement=False, nullable=False),
        sa.Column("revoked_s", BIG, autoincrement=False, nullable=True),
        sa.Column("check_sha256", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("token_sha256"),
    )
    op.create_table(
        "batch_slice",
        sa.Column("leaf_index", BIG, autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("deployment", sa.String(), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("leaf_index", "tenant", "deployment"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_batch_slice_deployment", "batch_slice", ["deployment", "leaf_index"], unique=False)
    op.create_index("ix_batch_slice_tenant", "batch_slice", ["tenant", "leaf_index"], unique=False)

    op.create_table(
        "checkpoint",
        sa.Column("size", BIG, autoincrement=False, nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("size"),
    )
    op.create_table(
        "document",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("leaf_index", BIG, autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("model", sa.String(), nullable=True),
        sa.Column("version", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index("ix_document_model", "document", ["model"], unique=False)

    op.create_table(
        "issuer",
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("next_seq", BIG, autoincrement=False, nullable=False),
        sa.Column("last_leaf", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("issuer"),
    )
    op.create_table(
        "log_head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("size", BIG, autoincrement=False, nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("checkpoint", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "record_index",
        sa.Column("id", sa.LargeBinary(), nullable=False),
        sa.Column("place", BIG, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "rollup",
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("deployment", sa.String(), nullable=False),
        sa.Column("sums", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "tenant", "deployment"),
    )
    op.create_table(
        "statement",
        sa.Column("leaf_index", BIG, autoincrement=False, nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("seq", BIG, autoincrement=False, nullable=False),
        sa.Column("entry", sa.LargeBinary(), nullable=False),
        sa.Column("tree_size", BIG, autoincrement=False, nullable=False),
        sa.Column("registered_s", BIG, autoincrement=False, nullable=False),
        sa.Column("receipt_signature", sa.LargeBinary(), nullable=False),
        sa.Column("record_count", sa.Integer(), nullable=False),
        sa.Column("first_us", BIG, autoincrement=False, nullable=True),
        sa.Column("last_us", BIG, autoincrement=False, nullable=True),
        sa.Column("records_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("records", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("leaf_index"),
        sa.UniqueConstraint("issuer", "seq", name="uq_statement_issuer_seq"),
        sa.UniqueConstraint("leaf_hash", name="uq_statement_leaf_hash"),
    )
    op.create_index("ix_statement_last_us", "statement", ["last_us"], unique=False)

    op.create_table(
        "tile",
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("idx", BIG, autoincrement=False, nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "idx"),
    )
    op.create_table(
        "issuer_key",
        sa.Column("kid", sa.LargeBinary(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("alg", sa.Integer(), nullable=False),
        sa.Column("cose_key", sa.LargeBinary(), nullable=False),
        sa.Column("added_leaf", BIG, autoincrement=False, nullable=False),
        sa.Column("revoked_leaf", BIG, autoincrement=False, nullable=True),
        sa.ForeignKeyConstraint(
            ["issuer"],
            ["issuer.issuer"],
        ),
        sa.PrimaryKeyConstraint("kid"),
    )
    op.create_index("ix_issuer_key_issuer", "issuer_key", ["issuer"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_issuer_key_issuer", "issuer_key")

    op.drop_table("issuer_key")
    op.drop_table("tile")
    op.drop_index("ix_statement_last_us", "statement")

    op.drop_table("statement")
    op.drop_table("rollup")
    op.drop_table("record_index")
    op.drop_table("log_head")
    op.drop_table("issuer")
    op.drop_index("ix_document_model", "document")

    op.drop_table("document")
    op.drop_table("checkpoint")
    op.drop_index("ix_batch_slice_tenant", "batch_slice")
    op.drop_index("ix_batch_slice_deployment", "batch_slice")

    op.drop_table("batch_slice")
    op.drop_table("api_key")
