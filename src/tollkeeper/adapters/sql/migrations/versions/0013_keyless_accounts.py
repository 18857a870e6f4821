"""Accounts say from when on what has no key draws on credit, and which sessions have ended."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_COLUMNS = ("keyless_credit_at_us", "sessions_reset_at_us")


def upgrade() -> None:
    with op.batch_alter_table("accounts", schema=None) as batch_op:
        for name in _COLUMNS:
            batch_op.add_column(sa.Column(name, sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("accounts", schema=None) as batch_op:
        for name in _COLUMNS:
            batch_op.drop_column(name)
