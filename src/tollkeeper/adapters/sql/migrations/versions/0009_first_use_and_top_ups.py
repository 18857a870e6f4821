"""
Periods of budgets that open with the first use, top-ups of budgets, and budgets in their account's time zone.

Budgets that state UTC go on in UTC.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "opened_periods",
        sa.Column("account_id", sa.String(128), nullable=False),
        sa.Column("counter_id", sa.String(512), nullable=False),
        sa.Column("period", sa.String(16), nullable=False),
        sa.Column("start_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("end_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "account_id", "counter_id", "period", "start_us", name=op.f("pk_opened_periods")
        ),
    )
    op.create_table(
        "top_ups",
        sa.Column("account_id", sa.String(128), nullable=False),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("counter_id", sa.String(512), nullable=False),
        sa.Column("budget", sa.String(128), nullable=False),
        sa.Column("unit", sa.String(64), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("until_used", sa.Boolean(), nullable=False),
        sa.Column("posted_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "id", name=op.f("pk_top_ups")),
    )
    op.create_index("ix_top_ups_account_id_counter_id", "top_ups", ["account_id", "counter_id"])
    op.create_table(
        "own_amounts",
        sa.Column("account_id", sa.String(128), nullable=False),
        sa.Column("counter_id", sa.String(512), nullable=False),
        sa.Column("from_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "counter_id", "from_us", name=op.f("pk_own_amounts")),
    )
    with op.batch_alter_table("budgets", schema=None) as batch_op:
        batch_op.alter_column("time_zone", existing_type=sa.String(64), nullable=True)
        batch_op.alter_column("period", existing_type=sa.String(16), type_=sa.String(32))


def downgrade() -> None:
    op.execute("UPDATE budgets SET time_zone = 'UTC' WHERE time_zone IS NULL")
    with op.batch_alter_table("budgets", schema=None) as batch_op:
        batch_op.alter_column("period", existing_type=sa.String(32), type_=sa.String(16))
        batch_op.alter_column("time_zone", existing_type=sa.String(64), nullable=False)
    op.drop_table("own_amounts")
    op.drop_index("ix_top_ups_account_id_counter_id", table_name="top_ups")
    op.drop_table("top_ups")
    op.drop_table("opened_periods")
