"""The messages of webhooks, sent or due: one row per webhook, budget, period and threshold."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from tollkeeper.adapters.sql.metadata import id_type, metadata

webhook_deliveries: Final = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("account_id", id_type(), primary_key=True),
    sa.Column("webhook_id", id_type(), primary_key=True),
    sa.Column("counter_id", id_type(512), primary_key=True),
    sa.Column("period_start_us", sa.BigInteger(), primary_key=True),
    sa.Column("threshold", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("id", id_type(64), nullable=False, unique=True),
    sa.Column("period_end_us", sa.BigInteger(), nullable=False),
    sa.Column("body", sa.Text(), nullable=False),
    # Raised until the keys are inactive, so that a crash in between leaves none in use.
    sa.Column("disables_keys", sa.Boolean(create_constraint=False), nullable=False),
    # due, delivered or failed.
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer(), nullable=False),
    sa.Column("due_at_us", sa.BigInteger(), nullable=False),
    sa.Index("ix_webhook_deliveries_state_due_at_us", "state", "due_at_us"),
)
"""The primary key keeps a threshold from being reported twice; a row outlives its period by 30 days."""
