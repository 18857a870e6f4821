"""
Each threshold of each budget is told once to each webhook, whatever happens between a commit and its telling.

Most tests drive the service by hand, so that nothing depends on when a thread runs; some let it run as it does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.alerts.receiver import WAIT_S, Receiver, receiver
from tollkeeper.adapters.sql.webhooks import SqlWebhooks
from tollkeeper.alerts.webhooks import SENDERS, Webhooks
from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import Account, Actions, Budget, Key, Plan, PlanBudget, Project, Route, Webhook
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.domain.webhooks import DeliveryResult
from tollkeeper.errors import BadParameter, Forbidden, NotFound, Unavailable
from tollkeeper.gate.gate import Admission
from tollkeeper.installation import Installation
from tollkeeper.profiles import webhook_headers
from tollkeeper.testing import Faulty, ManualClock, commit_all, set_up

URL = "https://receiver.example/hook"
ROOT = b"the root of the secrets of a test"


class Recorder:
    """A sender that keeps what it is given, and answers what the test wants: 200 if nothing."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, str], bytes]] = []
        self.statuses: list[int] = []

    def send(self, url: str, headers: Any, body: bytes) -> DeliveryResult:
        self.sent.append((url, dict(headers), body))
        status = self.statuses.pop(0) if self.statuses else 200
        return DeliveryResult(status, "" if status == 200 else "failed by the test")

    def close(self) -> None:
        """Nothing is open."""

    def told(self) -> list[tuple[str, int]]:
        """Return webhook and threshold of each message so far."""
        data = [json.loads(body)["data"] for _, _, body in self.sent]
        return [(d["webhook_id"], d["threshold"]) for d in data]


class Hand:
    """The webhooks of an installation, driven by hand."""

    def __init__(self, site: Installation) -> None:
        site.webhooks.close()
        self.site = site
        self.sender = Recorder()
        self.store = SqlWebhooks(site.engine)
        self.service = self.another()
        site.webhooks = self.service

    def another(self) -> Webhooks:
        """Return a started service that runs no thread: what asks for one is heard, and that is all."""
        site = self.site
        service = Webhooks(
            self.store,
            self.sender,
            site.ledger,
            site.directory,
            site.manage,
            site.clock,
            root=ROOT,
            vendor_headers=webhook_headers,
        )
        service._run_thread = lambda: None  # type: ignore[method-assign]
        service.start()
        return service

    def tell(self) -> list[tuple[str, int]]:
        """Compare, send what is due, and return what was sent by this call."""
        before = len(self.sender.sent)
        commit_all(self.site)
        self.service.compare()
        while claimed := self.service.claim():
            for message in claimed:
                self.service.deliver(message)
        return self.sender.told()[before:]


class Shop:
    """An account with two projects, a key in each, and a budget of 100 nanos a day."""

    def __init__(self, site: Installation, account: str) -> None:
        self.site = site
        self.account = account
        self.secrets: dict[str, str] = {}
        self.put(
            Account(id=account, name="Acme"),
            Project(id="web", account=account),
            Project(id="app", account=account),
            Plan(slug=f"{account}-plan"),
            Route(id="chat", method="POST", path="/chat"),
        )
        self.key("web")
        self.key("app")
        self.budget()

    def put(self, *entries: Any) -> None:
        self.secrets.update(set_up(self.site, *entries))

    def key(self, project: str, name: str = "", **fields: Any) -> str:
        key_id = f"{self.account}-{name or project}"
        plan = f"{self.account}-plan"
        self.put(Key(**{"id": key_id, "account": self.account, "project": project, "plan": plan, **fields}))
        return key_id

    def budget(self, id_: str = "day", amount: int = 100, **fields: Any) -> None:
        self.put(Budget(**{"id": id_, "account": self.account, "amount": amount, "period": "day", **fields}))

    def hook(self, id_: str = "w", **fields: Any) -> Webhook:
        hook = Webhook(**{"id": id_, "account": self.account, "url": URL, **fields})
        self.put(hook)
        return hook

    def admit(self, name: str = "web", nanos: int = 0) -> Admission | Denial:
        secret = self.secrets[f"{self.account}-{name}"]
        return self.site.holds.admit(secret, "POST", "/chat", Usage(cost_nanos=nanos))

    def spend(self, nanos: int, name: str = "web") -> None:
        """Book a request; what it costs beyond the budget is overdraft."""
        admission = self.admit(name)
        assert isinstance(admission, Admission), admission
        self.site.holds.settle(admission, Outcome(usage=Usage(cost_nanos=nanos)))

    def state(self, name: str = "web") -> str:
        return self.site.manage.stored_key(self.account, f"{self.account}-{name}").entry.state


@pytest.fixture
def shop(site: Installation, account: str) -> Shop:
    return Shop(site, account)


@pytest.fixture
def hand(site: Installation) -> Hand:
    return Hand(site)


@pytest.fixture
def here() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


def test_each_threshold_is_told_once(hand: Hand, shop: Shop) -> None:
    shop.hook()
    assert hand.tell() == []
    found = []
    for _ in range(10):
        shop.spend(10)
        found += hand.tell()
    assert found == [("w", 50), ("w", 75), ("w", 90), ("w", 100)]
    assert hand.tell() == []


def test_one_charge_that_crosses_several_tells_each(hand: Hand, shop: Shop) -> None:
    shop.hook()
    shop.spend(95)
    assert hand.tell() == [("w", 50), ("w", 75), ("w", 90)]


def test_a_new_period_tells_anew(hand: Hand, shop: Shop, clock: ManualClock) -> None:
    shop.hook(thresholds=[50])
    for _ in range(3):
        shop.spend(60)
        assert hand.tell() == [("w", 50)]
        clock.advance(seconds=86_400)
        assert hand.tell() == []


def test_every_webhook_hears_by_itself(hand: Hand, shop: Shop) -> None:
    shop.hook("a", thresholds=[10])
    shop.hook("b", thresholds=[10, 20], url="https://other.example/")
    shop.spend(20)
    assert sorted(hand.tell()) == [("a", 10), ("b", 10), ("b", 20)]
    urls = {json.loads(body)["data"]["webhook_id"]: url for url, _, body in hand.sender.sent}
    assert urls == {"a": URL, "b": "https://other.example/"}


def test_a_webhook_of_a_project_hears_of_that_project_only(hand: Hand, shop: Shop) -> None:
    shop.budget("web", project="web")
    shop.budget("app", project="app")
    shop.hook(project="app", thresholds=[50])
    shop.spend(60, "web")
    assert hand.tell() == []
    shop.spend(60, "app")
    assert hand.tell() == [("w", 50)]
    body = json.loads(hand.sender.sent[0][2])
    assert (body["project_id"], body["data"]["budget"], body["data"]["used"]) == ("app", "app", "60")


def test_budgets_of_a_plan_are_told_too(hand: Hand, shop: Shop) -> None:
    shop.hook(thresholds=[50])
    budgets = [
        PlanBudget(name="calls", amount=4, unit="requests", per="key"),
        PlanBudget(name="free", amount=None, per="key"),
    ]
    shop.put(Plan(slug=f"{shop.account}-plan", budgets=budgets))
    for _ in range(2):
        shop.spend(1)
    shop.spend(1, "app")
    assert hand.tell() == [("w", 50)]
    data = json.loads(hand.sender.sent[0][2])["data"]
    assert (data["budget"], data["unit"], data["used"], data["limit"]) == ("calls", "requests", "2", "4")


def test_another_accounts_spending_is_none_of_its_business(
    hand: Hand, shop: Shop, site: Installation
) -> None:
    shop.hook()
    other = Shop(site, f"{shop.account}-other")
    other.spend(100)
    assert hand.tell() == []


def test_a_budget_that_is_lowered_crosses(hand: Hand, shop: Shop) -> None:
    shop.hook(thresholds=[50])
    shop.spend(30)
    assert hand.tell() == []
    shop.budget(amount=50)
    assert hand.tell() == [("w", 50)]
    # Raised and crossed again, it has been told.
    shop.budget(amount=100)
    shop.spend(60)
    assert hand.tell() == []


def test_a_webhook_made_in_the_middle_hears_of_this_period_and_of_none_before(
    hand: Hand, shop: Shop, clock: ManualClock
) -> None:
    shop.spend(100)
    clock.advance(seconds=86_400)
    shop.spend(60)
    shop.hook()
    assert hand.tell() == [("w", 50)]


def test_a_webhook_that_is_gone_is_told_nothing_more(hand: Hand, shop: Shop) -> None:
    shop.hook()
    hand.sender.statuses = [500] * 9
    shop.spend(60)
    assert hand.tell() == [("w", 50)]
    shop.site.manage.delete("webhooks", "w", shop.account)
    shop.site.clock.advance(seconds=60)  # type: ignore[attr-defined]
    assert hand.tell() == []
    assert hand.store.due(2**62, limit=10) == []


def test_what_fails_is_sent_again_as_it_was_and_at_last_given_up(
    hand: Hand, shop: Shop, clock: ManualClock
) -> None:
    shop.hook(thresholds=[50])
    hand.sender.statuses = [500, 404, 302, 0, 503, 500]
    shop.spend(50)
    assert len(hand.tell()) == 1
    for after_s in (60, 300, 900, 3_600, 21_600):
        clock.advance(seconds=after_s - 1)
        assert hand.tell() == []
        clock.advance(seconds=1)
        assert hand.tell() == [("w", 50)]
    clock.advance(seconds=7 * 86_400)
    assert hand.tell() == []
    assert len({(body, headers["webhook-id"]) for _, headers, body in hand.sender.sent}) == 1
    # The time of sending is signed, and each is sent at another.
    assert len({headers["webhook-timestamp"] for _, headers, _ in hand.sender.sent}) == 6


def test_after_success_nothing_is_sent_again(hand: Hand, shop: Shop, clock: ManualClock) -> None:
    shop.hook(thresholds=[50])
    hand.sender.statuses = [500, 200]
    shop.spend(50)
    hand.tell()
    for _ in range(20):
        clock.advance(seconds=3_600)
        hand.tell()
    assert len(hand.sender.sent) == 2


def test_a_crossing_that_was_committed_before_a_crash_is_told_after_it(
    install: Callable[..., Installation], account: str, here: Receiver
) -> None:
    """The process died before anybody looked: the ledger has it all."""
    first = install(webhook_allow_private=True)
    hand = Hand(first)
    shop = Shop(first, account)
    shop.hook(url=here.url)
    assert hand.tell() == []
    shop.spend(80)
    commit_all(first)
    first.close()
    install(webhook_allow_private=True)
    assert [here.threshold(), here.threshold()] == [50, 75]


def test_a_message_that_was_stored_before_a_crash_is_sent_after_it(
    install: Callable[..., Installation], account: str, here: Receiver
) -> None:
    first = install(webhook_allow_private=True)
    hand = Hand(first)
    shop = Shop(first, account)
    shop.hook(url=here.url, thresholds=[50])
    shop.spend(80)
    commit_all(first)
    hand.service.compare()
    assert len(hand.store.due(first.clock.now_us(), limit=10)) == 1
    first.close()
    second = install(webhook_allow_private=True)
    assert here.threshold() == 50
    second.close()
    assert here.arrived.empty()


def test_keys_that_were_to_be_disabled_before_a_crash_are_after_it(
    install: Callable[..., Installation], account: str, here: Receiver
) -> None:
    first = install(webhook_allow_private=True)
    hand = Hand(first)
    shop = Shop(first, account)
    shop.hook(url=here.url, thresholds=[100], actions=Actions(disable_keys=100))
    hand.service._store = faulty = Faulty(hand.store, "disabling")
    shop.spend(100)
    commit_all(first)
    faulty.refuse()
    with pytest.raises(Unavailable):
        hand.service.compare()
    assert shop.state() == "active"
    first.close()
    shop.site = install(webhook_allow_private=True)
    assert here.threshold() == 100
    assert shop.state() == "inactive"


@pytest.mark.parametrize(
    ("where", "method"),
    [("ledger", "counter"), ("ledger", "counter_rows"), ("store", "add"), ("store", "hooks")],
)
def test_a_store_that_is_away_delays_and_loses_nothing(
    hand: Hand, shop: Shop, where: str, method: str
) -> None:
    shop.hook()
    target = hand.site.ledger if where == "ledger" else hand.store
    faulty = Faulty(target, method)
    setattr(hand.service, f"_{where}", faulty)
    shop.spend(80)
    commit_all(hand.site)
    if method in ("counter_rows", "hooks"):
        hand.service.changed([shop.account], hooks=method == "hooks")
    faulty.refuse()
    with pytest.raises(Unavailable):
        hand.service.compare()
    setattr(hand.service, f"_{where}", target)
    assert hand.tell() == [("w", 50), ("w", 75)]


def test_a_stored_message_whose_answer_was_lost_is_told_once(hand: Hand, shop: Shop) -> None:
    shop.hook(thresholds=[50])
    hand.service._store = faulty = Faulty(hand.store, "add")
    shop.spend(60)
    commit_all(hand.site)
    faulty.lose_replies()
    with pytest.raises(Unavailable):
        hand.service.compare()
    assert hand.tell() == [("w", 50)]
    assert hand.tell() == []


def test_under_concurrent_traffic_and_comparison_each_is_told_once(hand: Hand, shop: Shop) -> None:
    """Two services on one ledger look at the same counters while six threads spend."""
    shop.budget(amount=600)
    shop.hook(thresholds=[10, 20, 30, 40, 50, 60, 70, 80, 90, 99])
    over = threading.Event()

    def compare(service: Webhooks) -> None:
        while not over.is_set():
            # As after a start: it knows nothing of what it, or the other, stored.
            service.changed([shop.account], hooks=True)
            service.compare()

    spenders = [threading.Thread(target=lambda: [shop.spend(1) for _ in range(99)]) for _ in range(6)]
    watchers = [
        threading.Thread(target=compare, args=(service,)) for service in (hand.service, hand.another())
    ]
    for thread in spenders + watchers:
        thread.start()
    for thread in spenders:
        thread.join()
    over.set()
    for thread in watchers:
        thread.join()
    hand.tell()
    assert sorted(t for _, t in hand.sender.told()) == [10, 20, 30, 40, 50, 60, 70, 80, 90, 99]


def test_without_webhooks_nothing_is_noted_and_nothing_runs(site: Installation, account: str) -> None:
    shop = Shop(site, account)
    shop.spend(100)
    commit_all(site)
    service = site.webhooks
    assert (service._marked, service._accounts, service._thread, service._senders) == (
        set(),
        set(),
        None,
        None,
    )


def test_the_thread_ends_with_the_last_webhook(site: Installation, account: str) -> None:
    shop = Shop(site, account)
    shop.hook()
    thread = site.webhooks._thread
    assert thread is not None
    site.manage.delete("webhooks", "w", account)
    thread.join(WAIT_S)
    assert not thread.is_alive()


class TestDisabling:
    def test_the_keys_that_the_budget_counts_stop(self, hand: Hand, shop: Shop) -> None:
        """At the threshold and not before; the very next request is refused."""
        shop.budget("day", amount=10**9)
        shop.budget("web", project="web", amount=100)
        shop.put(Key(id=f"{shop.account}-mk", account=shop.account, project="web", role="management"))
        shop.hook(thresholds=[50, 80], actions=Actions(disable_keys=80))
        shop.spend(50)
        hand.tell()
        assert shop.state("web") == "active"
        shop.spend(30)
        hand.tell()
        refused = shop.admit("web")
        assert isinstance(refused, Denial)
        assert refused.reason == "key_inactive"
        assert isinstance(shop.admit("app"), Admission)
        assert shop.state("mk") == "active"

    def test_a_budget_of_the_account_stops_all_its_keys(self, hand: Hand, shop: Shop) -> None:
        shop.hook(actions=Actions(disable_keys=100))
        shop.spend(100)
        hand.tell()
        assert (shop.state("web"), shop.state("app")) == ("inactive", "inactive")

    def test_a_key_that_is_activated_again_stays_so(self, hand: Hand, shop: Shop) -> None:
        """It is a decision of the operator; the next period may stop the key again."""
        shop.hook(actions=Actions(disable_keys=100))
        shop.spend(100)
        hand.tell()
        shop.site.manage.set_key_state(shop.account, f"{shop.account}-web", "active")
        hand.tell()
        assert shop.state("web") == "active"

    def test_a_customer_does_not_activate_what_an_alert_stopped(self, hand: Hand, shop: Shop) -> None:
        """Nor does it get round it by making a key inactive before, and active afterwards."""
        customer = Customer(shop.account)
        app, web = f"{shop.account}-app", f"{shop.account}-web"
        shop.site.manage.set_key_state(shop.account, app, "inactive", by=customer)
        shop.hook(actions=Actions(disable_keys=100))
        shop.spend(100)
        hand.tell()
        for key_id in (app, web):
            with pytest.raises(Forbidden):
                shop.site.manage.set_key_state(shop.account, key_id, "active", by=customer)
        assert (shop.state("web"), shop.state("app")) == ("inactive", "inactive")

    def test_a_revoked_key_stays_revoked(self, hand: Hand, shop: Shop) -> None:
        shop.site.manage.set_key_state(shop.account, f"{shop.account}-app", "revoked")
        shop.hook(actions=Actions(disable_keys=100))
        shop.spend(100)
        hand.tell()
        assert (shop.state("web"), shop.state("app")) == ("inactive", "revoked")


class TestSecret:
    def test_a_message_is_signed_with_it(self, hand: Hand, shop: Shop) -> None:
        shop.hook(thresholds=[50])
        shop.spend(50)
        hand.tell()
        _, headers, body = hand.sender.sent[0]
        secret = hand.service.secret(shop.account, "w")
        assert headers["x-regpilot-signature"] == hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        mac = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
        assert headers["webhook-signature"] == f"v1,{mac}"

    def test_it_is_of_nobody_elses_webhook(self, hand: Hand, shop: Shop) -> None:
        shop.hook("a")
        shop.hook("b")
        assert hand.service.secret(shop.account, "a") != hand.service.secret(shop.account, "b")
        with pytest.raises(NotFound):
            hand.service.secret("other", "a")

    def test_a_restart_keeps_it_and_the_disk_and_the_log_have_it_not(
        self,
        install: Callable[..., Installation],
        account: str,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        site = install(webhook_allow_private=True)
        shop = Shop(site, account)
        with receiver() as here:
            shop.hook(url=here.url, thresholds=[50])
            secret = site.webhooks.secret(account, "w")
            shop.spend(50)
            here.next()
        site.close()
        key = secret.removeprefix("whsec_")
        for path in (tmp_path / "data").rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert key.encode() not in content, path
                assert base64.b64decode(key) not in content, path
        assert (tmp_path / "data" / "webhook.secret").stat().st_mode & 0o077 == 0
        told = caplog.text + "".join(repr(vars(record)) for record in caplog.records)
        assert key not in told
        assert "?x=1" not in told, "a URL may have a token of the receiver's"
        assert install().webhooks.secret(account, "w") == secret


class TestRunning:
    """With its own threads, and a receiver that listens."""

    def test_a_crossing_arrives(
        self, install: Callable[..., Installation], account: str, here: Receiver
    ) -> None:
        shop = Shop(install(webhook_allow_private=True), account)
        shop.hook(url=here.url, actions=Actions(notify_admins=90, disable_keys=100))
        shop.spend(60)
        assert json.loads(here.next().body)["data"]["threshold"] == 50
        shop.spend(40)
        found = [json.loads(here.next().body) for _ in range(3)]
        assert [body["data"]["threshold"] for body in found] == [75, 90, 100]
        assert found[2]["type"] == "usage.limit_exceeded"
        # By the time that it is told, it is done.
        assert isinstance(shop.admit(), Denial)
        assert here.arrived.empty()

    def test_what_is_answered_500_comes_again(
        self, install: Callable[..., Installation], account: str, here: Receiver, clock: ManualClock
    ) -> None:
        site = install(webhook_allow_private=True)
        shop = Shop(site, account)
        shop.hook(url=here.url, thresholds=[50])
        here.answer(500)
        postponed = threading.Event()
        store: Any = site.webhooks._store
        postpone = store.postpone

        def tell_of(*args: Any, **kwargs: Any) -> None:
            postpone(*args, **kwargs)
            postponed.set()

        store.postpone = tell_of
        shop.spend(50)
        first = here.next()
        # Only when it is known to have failed does its next attempt have a time.
        assert postponed.wait(WAIT_S)
        clock.advance(seconds=60)
        second = here.next()
        assert (second.body, second.headers["webhook-id"]) == (first.body, first.headers["webhook-id"])

    def test_a_receiver_that_hangs_holds_up_its_own_account_only(
        self, install: Callable[..., Installation], account: str, here: Receiver
    ) -> None:
        site = install(webhook_allow_private=True)
        hanging = Shop(site, account)
        assert SENDERS > 1
        with receiver() as silent:
            silent.answers.put(b"")
            hanging.hook(url=silent.url, thresholds=[10, 20])
            hanging.spend(20)
            silent.next()
            other = Shop(site, f"{account}-other")
            other.hook(url=here.url, thresholds=[50])
            other.spend(50)
            assert json.loads(here.next().body)["data"]["account_id"] == other.account
            assert silent.arrived.empty()
            silent.let_go.set()

    def test_a_private_address_is_refused_unless_a_setting_allows_it(
        self, site: Installation, account: str, here: Receiver
    ) -> None:
        shop = Shop(site, account)
        with pytest.raises(BadParameter, match="https") as caught:
            shop.hook(url=here.url)
        assert caught.value.field == "webhooks[0].url"
        sender = site.webhooks._sender
        assert "refused" in sender.send(here.url.replace("http:", "https:"), {}, b"").reason
        assert "https" in sender.send(here.url, {}, b"").reason
        assert here.arrived.empty()
