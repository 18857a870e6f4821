"""Outbox rows say which ids they take, and when they were committed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.add_column(sa.Column("id_keys", sa.LargeBinary(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("committed_at_us", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.drop_column("committed_at_us")
        batch_op.drop_column("id_keys")
