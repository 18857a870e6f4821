"""Webhooks and their deliveries in SQL: `ports.WebhookStore`, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from tollkeeper.adapters.sql.catalog_tables import webhooks
from tollkeeper.adapters.sql.webhook_tables import webhook_deliveries as deliveries
from tollkeeper.domain.catalog import Actions, Webhook
from tollkeeper.domain.webhooks import StoredWebhook, WebhookMessage
from tollkeeper.errors import Unavailable

_ROWS: Final = 50
"""Rows of one statement: both engines bound its parameters."""
_COLUMNS: Final = tuple(deliveries.c[name] for name in WebhookMessage._fields)


class SqlWebhooks:
    """See `ports.WebhookStore`; *engine* has the tables."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._insert = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert

    def hooks(self) -> list[StoredWebhook]:
        with self._transaction("read") as tx:
            return [_stored(row) for row in tx.execute(sa.select(webhooks))]

    def hook(self, account_id: str, webhook_id: str) -> StoredWebhook | None:
        here = sa.and_(webhooks.c.account_id == account_id, webhooks.c.id == webhook_id)
        with self._transaction("read") as tx:
            row = tx.execute(sa.select(webhooks).where(here)).one_or_none()
        return None if row is None else _stored(row)

    def add(self, messages: Sequence[WebhookMessage]) -> list[WebhookMessage]:
        new: set[str] = set()
        with self._transaction("written") as tx:
            for first in range(0, len(messages), _ROWS):
                rows = [{**m._asdict(), "state": "due"} for m in messages[first : first + _ROWS]]
                insert = self._insert(deliveries).values(rows).on_conflict_do_nothing()
                new.update(tx.execute(insert.returning(deliveries.c.id)).scalars())
        return [message for message in messages if message.id in new]

    def due(self, now_us: int, *, limit: int, but_accounts: Collection[str] = ()) -> list[WebhookMessage]:
        return self._messages(
            sa.select(*_COLUMNS)
            .where(
                deliveries.c.state == "due",
                deliveries.c.due_at_us <= now_us,
                deliveries.c.account_id.not_in(but_accounts),
            )
            .order_by(deliveries.c.due_at_us, deliveries.c.threshold, deliveries.c.id)
            .limit(limit)
        )

    def postpone(self, message_id: str, *, attempts: int, due_at_us: int) -> None:
        self._update(message_id, attempts=attempts, due_at_us=due_at_us)

    def ended(self, message_id: str, outcome: Literal["delivered", "failed"], *, attempts: int) -> None:
        self._update(message_id, attempts=attempts, state=outcome)

    def disabling(self) -> list[WebhookMessage]:
        return self._messages(sa.select(*_COLUMNS).where(deliveries.c.disables_keys))

    def disabled(self, message_id: str) -> None:
        self._update(message_id, disables_keys=False)

    def purge(self, before_us: int) -> None:
        whose = sa.and_(
            webhooks.c.account_id == deliveries.c.account_id, webhooks.c.id == deliveries.c.webhook_id
        )
        orphan = ~sa.exists().where(whose)
        over = sa.and_(deliveries.c.period_end_us < before_us, deliveries.c.state != "due")
        with self._transaction("written") as tx:
            tx.execute(sa.delete(deliveries).where(sa.or_(orphan, over)))

    def _messages(self, query: sa.Select[Any]) -> list[WebhookMessage]:
        with self._transaction("read") as tx:
            return [WebhookMessage(*row) for row in tx.execute(query)]

    def _update(self, message_id: str, **values: Any) -> None:
        with self._transaction("written") as tx:
            tx.execute(sa.update(deliveries).where(deliveries.c.id == message_id).values(values))

    @contextmanager
    def _transaction(self, done: str) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as tx:
                yield tx
        except SQLAlchemyError as exc:
            raise Unavailable(f"The webhooks cannot be {done} now.", cause=str(exc)) from exc


def _stored(row: Any) -> StoredWebhook:
    entry = Webhook(
        id=row.id,
        account=row.account_id,
        project=row.project_id,
        url=row.url,
        thresholds=msgspec.json.decode(row.thresholds, type=list[int]),
        actions=msgspec.json.decode(row.actions, type=Actions),
    )
    return StoredWebhook(entry, int(row.created_at_us))
