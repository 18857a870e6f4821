"""What every `WebhookStore` promises, on each SQL engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.engines import ENGINES, SHARED_ENGINES, empty_tables, fresh_engine
from tollkeeper.adapters.sql.catalog_store import SqlCatalogStore
from tollkeeper.adapters.sql.webhook_tables import webhook_deliveries
from tollkeeper.adapters.sql.webhooks import SqlWebhooks
from tollkeeper.domain.catalog import Actions, Webhook
from tollkeeper.domain.webhooks import StoredWebhook, WebhookMessage
from tollkeeper.errors import Unavailable
from tollkeeper.ports import WebhookStore

NOW_US = 1_750_000_000_000_000
HOOK = Webhook(
    id="w", account="acme", url="https://a.example", thresholds=[50, 90], actions=Actions(notify_admins=90)
)


@pytest.fixture(params=ENGINES, scope="module")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    with fresh_engine(request.param, tmp_path_factory.mktemp("webhooks")) as engine:
        yield engine


@pytest.fixture
def store(engine: sa.Engine) -> WebhookStore:
    empty_tables(engine)
    return SqlWebhooks(engine)


def put(engine: sa.Engine, *hooks: Webhook, now_us: int = NOW_US) -> None:
    catalog = SqlCatalogStore(engine)
    for hook in hooks:
        catalog.put(hook, now_us)


def message(threshold: int = 50, *, account: str = "acme", **fields: object) -> WebhookMessage:
    made = WebhookMessage(
        account_id=account,
        webhook_id="w",
        counter_id="budget:b",
        period_start_us=NOW_US - 5,
        period_end_us=NOW_US + 5,
        threshold=threshold,
        id=f"evt-{account}-{threshold}-{fields.get('period_start_us', '')}",
        body='{"ä": "🚀"}',
        disables_keys=False,
        due_at_us=NOW_US,
    )
    return made._replace(**fields)  # type: ignore[arg-type]


def test_a_webhook_is_read_with_when_it_was_made(store: WebhookStore, engine: sa.Engine) -> None:
    """Changed, it is as old as before: its secret stays."""
    put(engine, HOOK)
    changed = Webhook(id="w", account="acme", url="https://b.example")
    put(engine, changed, now_us=NOW_US + 9)
    other = Webhook(id="w", account="other", project="p", url="https://c.example")
    put(engine, other, now_us=NOW_US + 1)
    found = sorted(store.hooks(), key=lambda hook: hook.created_at_us)
    assert found == [StoredWebhook(changed, NOW_US), StoredWebhook(other, NOW_US + 1)]
    assert store.hook("acme", "w") == found[0]
    assert store.hook("acme", "none") is None


def test_a_message_is_new_once(store: WebhookStore) -> None:
    assert store.add([message(50), message(90)]) == [message(50), message(90)]
    assert store.add([message(90), message(100)]) == [message(100)]
    assert store.add([]) == []
    # Of the same threshold under another id, as if two made it at once.
    assert store.add([message(50, id="evt-other")]) == []
    assert {m.threshold for m in store.due(NOW_US, limit=10)} == {50, 90, 100}


def test_many_are_stored_at_once(store: WebhookStore) -> None:
    many = [message(50, period_start_us=NOW_US - at) for at in range(333)]
    assert store.add(many) == many
    assert store.add(many) == []
    assert len(store.due(NOW_US, limit=1000)) == 333


def test_what_is_due_comes_the_longest_due_first(store: WebhookStore) -> None:
    store.add([message(50, due_at_us=NOW_US), message(75, due_at_us=NOW_US - 1), message(90)])
    store.add([message(50, account="bcme", due_at_us=NOW_US - 2), message(100, due_at_us=NOW_US + 1)])
    found = [(m.account_id, m.threshold) for m in store.due(NOW_US, limit=10)]
    assert found == [("bcme", 50), ("acme", 75), ("acme", 50), ("acme", 90)]
    assert [m.account_id for m in store.due(NOW_US, limit=1)] == ["bcme"]
    assert {m.account_id for m in store.due(NOW_US, limit=10, but_accounts={"acme", "x"})} == {"bcme"}


def test_what_failed_is_due_later_and_what_ended_never(store: WebhookStore) -> None:
    store.add([message(50), message(75), message(90)])
    store.postpone(message(50).id, attempts=2, due_at_us=NOW_US + 60)
    store.ended(message(75).id, "delivered", attempts=1)
    store.ended(message(90).id, "failed", attempts=6)
    assert store.due(NOW_US + 59, limit=10) == []
    assert store.due(NOW_US + 60, limit=10) == [message(50, attempts=2, due_at_us=NOW_US + 60)]
    assert store.add([message(75), message(90)]) == []


def test_keys_are_to_be_disabled_until_they_are(store: WebhookStore) -> None:
    """Whether the message has been sent by then is another matter."""
    asked = message(100, disables_keys=True)
    store.add([message(50), asked])
    store.ended(asked.id, "delivered", attempts=1)
    assert [m.id for m in store.disabling()] == [asked.id]
    store.disabled(asked.id)
    assert store.disabling() == []


def test_only_what_is_over_is_purged(store: WebhookStore, engine: sa.Engine) -> None:
    put(engine, HOOK)
    for threshold, end_us in ((50, NOW_US - 1), (75, NOW_US), (90, NOW_US - 1)):
        store.add([message(threshold, period_end_us=end_us)])
    store.add([message(50, account="gone")])
    store.ended(message(50).id, "delivered", attempts=1)
    store.ended(message(75).id, "failed", attempts=6)
    store.purge(NOW_US)
    with engine.connect() as connection:
        kept = connection.execute(sa.select(webhook_deliveries.c.account_id, webhook_deliveries.c.threshold))
        # 90 is not sent yet; that of the account without this webhook will never be.
        assert sorted(map(tuple, kept)) == [("acme", 75), ("acme", 90)]


def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    store = SqlWebhooks(sa.create_engine(f"sqlite:///{tmp_path / 'none' / 'x.db'}"))
    for call in (store.hooks, store.disabling, lambda: store.add([message()]), lambda: store.purge(0)):
        with pytest.raises(Unavailable):
            call()


@pytest.mark.parametrize("name", SHARED_ENGINES)
def test_of_many_at_once_one_has_a_new_message(name: str, tmp_path: Path) -> None:
    """Two processes that see the same crossing tell it once."""
    messages = [message(threshold) for threshold in range(1, 21)]
    with fresh_engine(name, tmp_path) as engine:
        start = threading.Barrier(6)
        found: list[str] = []

        def add() -> None:
            mine = SqlWebhooks(engine)
            start.wait()
            found.extend(m.id for m in mine.add(messages))

        threads = [threading.Thread(target=add) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == sorted(m.id for m in messages)
