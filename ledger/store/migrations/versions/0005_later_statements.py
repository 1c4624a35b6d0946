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
    subject = _SUBJECT[op.get_bind().dialect.name]
    op.execute(
        f"CREATE INDEX ix_statement_later ON statement (({subject})) "
        "WHERE kind IN ('correction', 'evaluation')"
    )


def downgrade() -> None:
    op.execute("DROP INDEX ix_statement_later")
