"""Find what was said later about records: an index of corrections and evaluations alone"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | Sequence[str] | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_LATER = sa.text("kind IN ('correction', 'evaluation')")


def upgrade() -> None:
    op.create_index(
        "ix_statement_later", "statement", ["leaf_index"], sqlite_where=_LATER, postgresql_where=_LATER
    )


def downgrade() -> None:
    op.drop_index("ix_statement_later", "statement")
