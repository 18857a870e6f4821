"""
Tables of the truth about money and of what must still be relayed.

    counters       what each budget period, and each credit balance, was charged: one row per period
    postings       the same charges by hour of booking: the ledger that a counter is the sum of
    pools          per account: what was spent beyond its grants, or given back beyond what was spent
    scopes         which budget counters are in force, and from which period on
    opened_periods when the periods of budgets opened that open with the first use
    top_ups        what was added to budgets, each once
    own_amounts    the amounts of budgets that have top-ups which last, from which period on
    windows        what rate limits had counted, so that a crash does not empty them
    holds          amounts set aside over HTTP, and how those that were not settled ended
    outbox         records on their way to the usage store, and those that cannot be read any more
    progress       one row: the number of the last commit and of the last relay batch, the installation's id
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, String, Table, Text

from tollkeeper.adapters.sql.metadata import metadata

# SQLite numbers rows by itself only in a column of type INTEGER.
_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")

counters = Table(
    "counters",
    metadata,
    Column("account_id", String(128), primary_key=True),
    Column("counter_id", String(512), primary_key=True),
    Column("period_start_us", BigInteger, primary_key=True),
    Column("used", BigInteger, nullable=False),
)

postings = Table(
    "postings",
    metadata,
    Column("account_id", String(128), primary_key=True),
    Column("counter_id", String(512), primary_key=True),
    Column("period_start_us", BigInteger, primary_key=True),
    Column("booked_hour_us", BigInteger, primary_key=True),
    Column("amount", BigInteger, nullable=False),
)

pools = Table(
    "pools",
    metadata,
    Column("account_id", String(128), primary_key=True),
    Column("overdraft_nanos", BigInteger, nullable=False),
    Column("surplus_nanos", BigInteger, nullable=False, server_default="0"),
)

scopes = Table(
    "scopes",
    metadata,
    Column("account_id", String(128), primary_key=True),
    Column("counter_id", String(512), primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("active_from_us", BigInteger, nullable=False),
)

opened_periods = Table(
    "opened_periods",
    metadata,
    Column("account_id", String(128), primary_key=True),
    Column("counter_id", String(512), primary_key=True),
    Column("period", String(16), primary_key=True),
    Column("start_us", BigInteger, primary_key=True, autoincrement=False),
    Column("end_us", BigInteger, nullable=False),
)

top_ups = Table(
    "top_ups",
    metadata,
    Column("account_id", String(128), primary_key=True),
    Column("id", String(128), primary_key=True),
    Column("counter_id", String(512), nullable=False),
    Column("budget", String(128), nullable=False),
    Column("unit", String(64), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("until_used", Boolean, nullable=False),
    Column("posted_at_us", BigInteger, nullable=False),
    Index("ix_top_ups_account_id_counter_id", "account_id", "counter_id"),
)

own_amounts = Table(
    "own_amounts",
    metadata,
    Column("account_id", String(128), primary_key=True),
    Column("counter_id", String(512), primary_key=True),
    Column("from_us", BigInteger, primary_key=True, autoincrement=False),
    Column("amount", BigInteger, nullable=False),
)

windows = Table(
    "windows",
    metadata,
    Column("account_id", String(128), primary_key=True),
    Column("counter_id", String(512), primary_key=True),
    Column("slot_us", BigInteger, primary_key=True),
    Column("used", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
    Index("ix_windows_expires_at_us", "expires_at_us"),
)

holds = Table(
    "holds",
    metadata,
    Column("account_id", String(128), primary_key=True),
    Column("hold_id", String(128), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("ended_at_us", BigInteger),
    Index("ix_holds_state", "state", "ended_at_us"),
    Index("ix_holds_hold_id", "hold_id"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("batch", BigInteger),
    # With the number, so that a repeat after a crash has the token of the first try.
    Column("batch_epoch", String(64)),
    Column("format", String(8), nullable=False),
    Column("record_count", Integer, nullable=False),
    # Why a row cannot be relayed; it is kept for repair, and the rows after it are relayed.
    Column("set_aside_reason", Text),
    Column("payload", LargeBinary, nullable=False),
    # Beside the payload, so that ids are known at start without it, and when it cannot be read.
    Column("id_keys", LargeBinary, nullable=False),
    Column("committed_at_us", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

progress = Table(
    "progress",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("installation_id", String(64), nullable=False),
    Column("commit_seq", BigInteger, nullable=False),
    Column("batch_seq", BigInteger, nullable=False),
    # The epoch of the last batch that was begun; "" if it was begun before there were epochs.
    Column("batch_epoch", String(64), nullable=False),
    # Records of the batches that were delivered, since revision 0004.
    Column("delivered_records", BigInteger, nullable=False),
    # While the usage store may have records that are still to come from here: outbox rows up to this one, and
    # holds that were made no later.
    Column("behind_seq", BigInteger),
    Column("behind_at_us", BigInteger),
)
