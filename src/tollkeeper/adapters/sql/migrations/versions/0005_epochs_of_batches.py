"""Batches are numbered in epochs, and a ledger that is older than its usage store says until when."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("progress", schema=None) as batch_op:
        batch_op.add_column(sa.Column("batch_epoch", sa.String(64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("behind_seq", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("behind_at_us", sa.BigInteger(), nullable=True))
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.add_column(sa.Column("batch_epoch", sa.String(64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.drop_column("batch_epoch")
    with op.batch_alter_table("progress", schema=None) as batch_op:
        batch_op.drop_column("behind_at_us")
        batch_op.drop_column("behind_seq")
        batch_op.drop_column("batch_epoch")
