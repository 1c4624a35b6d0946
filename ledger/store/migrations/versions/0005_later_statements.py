"""Find what was said later about records: an index of corrections and evaluations by their subject"""

from collections.abc import Sequence

from alembic import op

revision: str = "0005"
down_revision: str | Sequence[str] | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


# The statement's subject in its own bytes: from ``tallystick:`` on, as ledger.store.later asks for it.
_SUBJECT = {
    "sqlite": "substr(entry, instr(entry, x'74616c6c79737469636b3a'), 86)",
    "postgresql": "substr(entry, pg_catalog.\"position\"(entry, '\\x74616c6c79737469636b3a'::bytea), 86)",
}


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    index = (
        f"ix_statement_later ON statement (({_SUBJECT[dialect]})) WHERE kind IN ('correction', 'evaluation')"
    )
    if dialect != "postgresql":
        op.execute(f"CREATE INDEX {index}")
        return
    # Replicas append while it is built. What a build that was cut off left is invalid, and goes first.
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX IF EXISTS ix_statement_later")
        op.execute(f"CREATE INDEX CONCURRENTLY {index}")


def downgrade() -> None:
    op.execute("DROP INDEX ix_statement_later")
