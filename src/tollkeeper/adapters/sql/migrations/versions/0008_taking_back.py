"""
Money is taken back and given back: when a grant was revoked, and what an account was given beyond what it spent.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("grants", schema=None) as batch_op:
        batch_op.add_column(sa.Column("revoked_at_us", sa.BigInteger(), nullable=True))
    with op.batch_alter_table("pools", schema=None) as batch_op:
        batch_op.add_column(sa.Column("surplus_nanos", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("pools", schema=None) as batch_op:
        batch_op.drop_column("surplus_nanos")
    with op.batch_alter_table("grants", schema=None) as batch_op:
        batch_op.drop_column("revoked_at_us")
