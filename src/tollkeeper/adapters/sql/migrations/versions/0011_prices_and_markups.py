"""
Prices have rates of all token classes and of units, tiers, and variants; mark-ups on prices.

Prices from before have none of these.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_RATES = (
    "cache_write_nanos_per_million",
    "cache_write_1h_nanos_per_million",
    "audio_prompt_nanos_per_million",
    "audio_cached_prompt_nanos_per_million",
    "image_prompt_nanos_per_million",
    "audio_completion_nanos_per_million",
    "image_completion_nanos_per_million",
)


def _id_type() -> sa.types.TypeEngine[str]:
    return sa.String(length=128).with_variant(sa.String(length=128, collation="C"), "postgresql")


def upgrade() -> None:
    with op.batch_alter_table("prices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("variant", sa.String(64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("factor", sa.String(16), nullable=True))
        for name in _RATES:
            batch_op.add_column(sa.Column(name, sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("tiers", sa.Text(), nullable=False, server_default="[]"))
        batch_op.add_column(sa.Column("rates", sa.Text(), nullable=False, server_default="{}"))
    op.create_table(
        "markups",
        sa.Column("id", _id_type(), nullable=False),
        sa.Column("account_id", _id_type(), nullable=True),
        sa.Column("plan_slug", _id_type(), nullable=True),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("effective_at_us", sa.BigInteger(), nullable=False),
        sa.Column("factor", sa.String(16), nullable=False),
        sa.Column("request_nanos", sa.BigInteger(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_markups")),
    )
    with op.batch_alter_table("markups", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_markups_account_id"), ["account_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_markups_plan_slug"), ["plan_slug"], unique=False)


def downgrade() -> None:
    op.drop_table("markups")
    with op.batch_alter_table("prices", schema=None) as batch_op:
        for name in ("rates", "tiers", *reversed(_RATES), "factor", "variant"):
            batch_op.drop_column(name)
