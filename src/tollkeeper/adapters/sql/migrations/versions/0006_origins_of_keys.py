"""
Keys say whose word their state and expiry are, and which key made them.

Of keys from before that is unknown: it counts as the operator's, so no customer undoes it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("keys", schema=None) as batch_op:
        batch_op.add_column(sa.Column("state_by", sa.String(16), nullable=False, server_default="operator"))
        batch_op.add_column(sa.Column("expires_latest_us", sa.BigInteger(), nullable=True))
        batch_op.add_column(
            sa.Column(
                "made_by",
                sa.String(length=128).with_variant(sa.String(length=128, collation="C"), "postgresql"),
                nullable=True,
            )
        )
    op.execute("UPDATE keys SET expires_latest_us = expires_at_us WHERE replaced_by IS NULL")


def downgrade() -> None:
    with op.batch_alter_table("keys", schema=None) as batch_op:
        batch_op.drop_column("made_by")
        batch_op.drop_column("expires_latest_us")
        batch_op.drop_column("state_by")
