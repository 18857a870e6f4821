"""Budgets may count a quantity: its unit `quantity.NAME` has up to 49 characters."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("budgets", schema=None) as batch_op:
        batch_op.alter_column(
            "unit", existing_type=sa.String(16), type_=sa.String(64), existing_nullable=False
        )


def downgrade() -> None:
    with op.batch_alter_table("budgets", schema=None) as batch_op:
        batch_op.alter_column(
            "unit", existing_type=sa.String(64), type_=sa.String(16), existing_nullable=False
        )
