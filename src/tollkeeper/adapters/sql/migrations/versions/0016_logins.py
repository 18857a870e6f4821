"""Logins of browsers at the page."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def id_type(length: int = 128) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "logins",
        sa.Column("secret_sha256", id_type(64), nullable=False),
        sa.Column("key_sha256", id_type(64), nullable=False),
        sa.Column("account_id", id_type(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("secret_sha256", name=op.f("pk_logins")),
    )
    op.create_index("ix_logins_key_sha256_created_at_us", "logins", ["key_sha256", "created_at_us"])
    op.create_index("ix_logins_created_at_us", "logins", ["created_at_us"])
    op.create_index("ix_logins_expires_at_us", "logins", ["expires_at_us"])


def downgrade() -> None:
    op.drop_table("logins")
