"""
One table for each of the kinds of `domain.catalog`, plus the versions of plans.

An entry's reference to another (`account`, `project`, …) is a column `<field>_id`, to a plan `plan_slug`;
an instant is `<field>_us`, microseconds since the Unix epoch; nested parts are JSON text. `created_at_us`
and `updated_at_us` are the store's own. References are checked by the manage service under the
catalog's write lock, not by foreign keys: a declaration may set up entries that name each other.

The primary key of what belongs to an account begins with the account, so that the tables also shard.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from tollkeeper.adapters.sql.metadata import id_type, metadata


def _account_id(*, nullable: bool = False, **options: Any) -> sa.Column[Any]:
    return sa.Column("account_id", id_type(), nullable=nullable, **options)


def _id(name: str, *, nullable: bool = False, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, id_type(), nullable=nullable, **options)


def _text(name: str, length: int | None = None, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Text() if length is None else sa.String(length), nullable=nullable)


def _integer(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _boolean(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean(create_constraint=False), nullable=False)


def _stamps() -> tuple[sa.Column[Any], sa.Column[Any]]:
    return _integer("created_at_us"), _integer("updated_at_us")


def _table(name: str, *parts: Any) -> sa.Table:
    return sa.Table(name, metadata, *parts, *_stamps())


accounts: Final = _table(
    "accounts",
    _id("id", primary_key=True),
    _text("name", 256),
    _id("plan_slug", nullable=True),
    _text("time_zone", 64),
    _boolean("active"),
    _integer("keyless_credit_at_us", nullable=True),
    _integer("sessions_reset_at_us", nullable=True),
    _text("retention", 16, nullable=True),
    _text("metadata"),
)

projects: Final = _table(
    "projects",
    _account_id(primary_key=True),
    _id("id", primary_key=True),
    _text("name", 256),
)

plans: Final = _table(
    "plans",
    _id("slug", primary_key=True),
    _text("name", 256),
    _text("limits"),
    _text("budgets"),
    _text("layers", nullable=True),
    _text("models", nullable=True),
    _integer("price_nanos"),
    _boolean("sellable"),
    _text("metadata"),
    _integer("version"),
)

plan_versions: Final = sa.Table(
    "plan_versions",
    metadata,
    _id("slug", primary_key=True),
    sa.Column("version", sa.BigInteger(), primary_key=True, autoincrement=False),
    _text("body"),
    _integer("created_at_us"),
)
"""Every version that a plan ever had, as JSON. Rows stay when the plan is deleted."""

subscriptions: Final = _table(
    "subscriptions",
    _account_id(primary_key=True),
    _id("id", primary_key=True),
    _id("plan_slug", index=True),
    _integer("started_at_us"),
    _integer("expires_at_us", nullable=True),
    _text("status", 16),
)

keys: Final = _table(
    "keys",
    _account_id(primary_key=True),
    # Unique by itself as well: a meter event may name its key alone.
    _id("id", primary_key=True, unique=True),
    _id("project_id", nullable=True),
    _text("name", 256),
    _text("role", 16),
    _text("type", 16),
    _text("profile", 64),
    _id("subscription_id", nullable=True),
    _id("plan_slug", nullable=True),
    _text("limits", nullable=True),
    _text("models", nullable=True),
    _text("state", 16),
    _integer("expires_at_us", nullable=True),
    _text("metadata"),
    # A lookup compares hashes, never secrets: what its timing tells is useless to a guesser.
    sa.Column("secret_sha256", id_type(64), nullable=False, unique=True),
    _text("shown_prefix", 64, nullable=True),
    _integer("last_used_at_us", nullable=True),
    _integer("revoked_at_us", nullable=True),
    _id("lineage_id"),
    _id("replaced_by", nullable=True),
    sa.Column("state_by", sa.String(16), nullable=False, server_default="operator"),
    _integer("expires_latest_us", nullable=True),
    _id("made_by", nullable=True),
)
"""Rows are never removed: a deleted key is a tombstone that keeps its id and its hash taken."""

budgets: Final = _table(
    "budgets",
    _account_id(primary_key=True),
    _id("id", primary_key=True),
    _id("project_id", nullable=True),
    _id("key_id", nullable=True),
    _integer("amount"),
    _text("unit", 64),
    _text("period", 32),
    _text("time_zone", 64, nullable=True),
    _text("week_start", 16),
    _integer("anchor_at_us", nullable=True),
    _text("match", nullable=True),
    _text("per", nullable=True),
)

grants: Final = _table(
    "grants",
    _account_id(primary_key=True),
    _id("id", primary_key=True),
    _integer("amount_nanos"),
    _text("source", 16),
    _integer("priority"),
    _integer("expires_at_us", nullable=True),
    _text("note", 256),
    # The ledger's own two: NULL until the grant is posted to the account's balance, and until it is revoked.
    _integer("remaining_nanos", nullable=True),
    _integer("revoked_at_us", nullable=True),
)

routes: Final = _table(
    "routes",
    _id("id", primary_key=True),
    _text("method", 16),
    _text("path"),
    _text("event_kind", 64),
    _integer("credits"),
    _integer("price_nanos"),
    _boolean("free"),
    _text("bucket", nullable=True),
    _text("surface"),
    _text("layer"),
    _text("policy"),
    _text("profile", nullable=True),
)

models: Final = _table(
    "models",
    sa.Column("id", id_type(256), primary_key=True),
    _text("is", 256),
)

prices: Final = _table(
    "prices",
    _id("id", primary_key=True),
    _text("model", 256),
    _account_id(nullable=True, index=True),
    _integer("effective_at_us"),
    _integer("prompt_nanos_per_million"),
    _integer("cached_prompt_nanos_per_million", nullable=True),
    _integer("completion_nanos_per_million"),
    _integer("reasoning_nanos_per_million", nullable=True),
    _integer("request_nanos"),
    sa.Column("variant", sa.String(64), nullable=False, server_default=""),
    _text("factor", 16, nullable=True),
    _integer("cache_write_nanos_per_million", nullable=True),
    _integer("cache_write_1h_nanos_per_million", nullable=True),
    _integer("audio_prompt_nanos_per_million", nullable=True),
    _integer("audio_cached_prompt_nanos_per_million", nullable=True),
    _integer("image_prompt_nanos_per_million", nullable=True),
    _integer("audio_completion_nanos_per_million", nullable=True),
    _integer("image_completion_nanos_per_million", nullable=True),
    sa.Column("tiers", sa.Text(), nullable=False, server_default="[]"),
    sa.Column("rates", sa.Text(), nullable=False, server_default="{}"),
)

markups: Final = _table(
    "markups",
    _id("id", primary_key=True),
    _account_id(nullable=True, index=True),
    _id("plan_slug", nullable=True, index=True),
    _text("model", 256),
    _integer("effective_at_us"),
    _text("factor", 16),
    _integer("request_nanos"),
)

webhooks: Final = _table(
    "webhooks",
    _account_id(primary_key=True),
    _id("id", primary_key=True),
    _id("project_id", nullable=True),
    _text("url"),
    _text("thresholds"),
    _text("actions"),
)
"""Without their secrets: those are made from `created_at_us` (see `domain.webhooks.secret_of`)."""

catalog_log: Final = sa.Table(
    "catalog_log",
    metadata,
    sa.Column(
        "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True
    ),
    _integer("at_us"),
    _text("actor", 160),
    _account_id(nullable=True),
    _text("kind", 32),
    sa.Column("entry_id", id_type(256), nullable=False),
    _text("action", 16),
    _text("fields"),
    _text("unit", 64, nullable=True),
    sa.Index("ix_catalog_log_account_id_seq", "account_id", "seq"),
    sa.Index("ix_catalog_log_entry_id_seq", "entry_id", "seq"),
    sqlite_autoincrement=True,
)
"""The audit log (`audit.AuditLine`). AUTOINCREMENT: a place in it is never given twice."""
