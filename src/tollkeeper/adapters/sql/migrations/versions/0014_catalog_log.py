"""The audit log of the catalog."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def _id_type(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length=length).with_variant(sa.String(length=length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "catalog_log",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(160), nullable=False),
        sa.Column("account_id", _id_type(128), nullable=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("entry_id", _id_type(256), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("fields", sa.Text(), nullable=False),
        sa.Column("unit", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_catalog_log")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_catalog_log_account_id_seq", "catalog_log", ["account_id", "seq"])
    op.create_index("ix_catalog_log_entry_id_seq", "catalog_log", ["entry_id", "seq"])


def downgrade() -> None:
    op.drop_table("catalog_log")
