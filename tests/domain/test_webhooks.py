"""Which thresholds are crossed, what a message says, how it is signed, and when it is sent again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.catalog import Actions, Budget, Invalid, Webhook
from tollkeeper.domain.entitlements import scope_of_budget
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.money import NANOS_MAX
from tollkeeper.domain.webhooks import (
    RETRY_AFTER_S,
    StoredWebhook,
    crossed,
    headers_of,
    message_of,
    next_due_us,
    secret_of,
)

amounts = st.integers(0, NANOS_MAX)
thresholds = st.sets(st.integers(1, 1000), min_size=1, max_size=20).map(sorted)
ROOT = b"r" * 32
NOW_US = 1_768_557_600_000_000
DAY_US = (NOW_US - NOW_US % 86_400_000_000, NOW_US - NOW_US % 86_400_000_000 + 86_400_000_000)


def hook(**fields: object) -> StoredWebhook:
    values = {"id": "w", "account": "acme", "url": "https://a.example", **fields}
    return StoredWebhook(Webhook(**values), NOW_US)  # type: ignore[arg-type]


SCOPE = scope_of_budget(Budget(id="b", account="acme", project="web", amount=1000, period="day"))


class TestCrossed:
    @given(amounts, amounts, thresholds)
    def test_a_threshold_is_crossed_when_so_many_hundredths_are_used(self, used, amount, thresholds):
        """Whole numbers only: at the size of money a float would tell a neighbour's threshold."""
        found = crossed(used, amount, thresholds)
        if used == 0:
            assert found == []
        elif amount == 0:
            assert found == thresholds
        else:
            assert found == [t for t in thresholds if used * 100 // amount >= t]

    @given(amounts, amounts, amounts, thresholds)
    def test_more_use_never_crosses_less(self, used, more, amount, thresholds):
        assert set(crossed(used, amount, thresholds)) <= set(crossed(used + more, amount, thresholds))

    @given(st.integers(-NANOS_MAX, 0), st.none() | amounts, thresholds)
    def test_nothing_used_crosses_nothing(self, used, amount, thresholds):
        assert crossed(used, amount, thresholds) == []

    @given(amounts, thresholds)
    def test_a_budget_without_a_bound_has_no_thresholds(self, used, thresholds):
        assert crossed(used, None, thresholds) == []

    def test_exactly_at_the_threshold_counts(self):
        assert crossed(499, 1000, [50, 75]) == []
        assert crossed(500, 1000, [50, 75]) == [50]
        assert crossed(1000, 1000, [50, 75, 90, 100]) == [50, 75, 90, 100]


class TestMessage:
    def test_it_has_the_shape_that_the_vendor_plans(self):
        made = message_of(hook(), SCOPE, DAY_US, 900, 90, NOW_US)
        body = json.loads(made.body)
        assert list(body) == ["id", "type", "timestamp", "project_id", "data"]
        assert body["id"] == made.id
        assert (body["type"], body["project_id"]) == ("usage.threshold_reached", "web")
        assert body["timestamp"] == "2026-01-16T10:00:00.000Z"
        assert body["data"] == {
            "account_id": "acme",
            "webhook_id": "w",
            "budget": "b",
            "threshold": 90,
            "unit": "nanos",
            "used": "900",
            "limit": "1000",
            "period": {"start": "2026-01-16T00:00:00.000Z", "end": "2026-01-17T00:00:00.000Z"},
            "actions": [],
        }

    @pytest.mark.parametrize(("threshold", "kind"), [(99, "threshold_reached"), (100, "limit_exceeded")])
    def test_from_100_percent_on_the_limit_is_exceeded(self, threshold, kind):
        made = message_of(hook(), SCOPE, DAY_US, 1000, threshold, NOW_US)
        assert json.loads(made.body)["type"] == f"usage.{kind}"

    def test_it_says_what_is_to_be_done_and_what_was(self):
        told = hook(actions=Actions(notify_admins=90, disable_keys=100))
        said = {}
        for threshold in told.entry.thresholds:
            made = message_of(told, SCOPE, DAY_US, 1000, threshold, NOW_US)
            said[threshold] = json.loads(made.body)["data"]["actions"], made.disables_keys
        assert said == {
            50: ([], False),
            75: ([], False),
            90: (["notify_admins"], False),
            100: (["notify_admins", "disable_keys"], True),
        }

    @given(amounts, amounts, st.integers(NOW_US, NOW_US + 10**12))
    def test_made_again_it_is_the_same_message(self, used, later_used, later_us):
        """So a receiver knows a repeat, however it came about."""
        first = message_of(hook(), SCOPE, DAY_US, used, 50, NOW_US)
        assert message_of(hook(), SCOPE, DAY_US, later_used, 50, later_us).id == first.id

    def test_another_webhook_budget_period_or_threshold_is_another_message(self):
        other = scope_of_budget(Budget(id="c", account="acme", amount=1000, period="day"))
        next_day = (DAY_US[1], DAY_US[1] + 86_400_000_000)
        again = StoredWebhook(hook().entry, NOW_US + 1)
        made = [
            message_of(h, s, p, 1000, t, NOW_US).id
            for h in (hook(), hook(id="v"), hook(account="bcme"), again)
            for s in (SCOPE, other)
            for p in (DAY_US, next_day)
            for t in (50, 75)
        ]
        assert len(set(made)) == len(made) == 32


class TestSignature:
    def test_it_is_that_of_the_standard(self):
        """The reference vector of standardwebhooks.com."""
        headers = headers_of(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            b'{"test": 2432232314}',
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            1_614_265_330 * US_PER_S,
        )
        assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        assert headers["webhook-id"] == "msg_p5jXN8AQM9LWM0D4loKWxJek"
        assert headers["webhook-timestamp"] == "1614265330"

    def test_each_webhook_has_a_secret_of_its_own(self):
        made = {
            secret_of(root, stored)
            for root in (ROOT, b"s" * 32)
            for stored in (hook(), hook(id="v"), hook(account="bcme"), StoredWebhook(hook().entry, 1))
        }
        assert len(made) == 8
        assert all(secret.startswith("whsec_") and len(secret) == 50 for secret in made)

    def test_a_changed_webhook_keeps_its_secret(self):
        assert secret_of(ROOT, hook(url="https://b.example")) == secret_of(ROOT, hook())


def test_a_message_is_sent_again_five_times():
    due = [next_due_us(attempts, NOW_US) for attempts in range(1, 8)]
    assert due == [NOW_US + s * US_PER_S for s in (60, 300, 900, 3600, 21600)] + [None, None]
    assert len(RETRY_AFTER_S) == 5


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("url", "ftp://a.example", "url"),
        ("url", "https://", "url"),
        ("url", "https:///path", "url"),
        ("url", "https://a.example:99999", "url"),
        ("url", "https://a.example:0", "url"),
        ("url", "https://[::1", "url"),
        ("url", "https://user:pass@a.example", "url"),
        ("url", "https://a.example/ x", "url"),
        ("url", "https://a.example/\r\nX: y", "url"),
        ("url", "https://ä.example", "url"),
        ("thresholds", [75, 50], "thresholds"),
        ("thresholds", [50, 50], "thresholds"),
        ("actions", Actions(disable_keys=99), "actions.disable_keys"),
        ("actions", Actions(notify_admins=1), "actions.notify_admins"),
    ],
)
def test_a_rule_that_is_broken_names_its_field(field, value, where):
    with pytest.raises(Invalid) as caught:
        hook(**{field: value}).entry.check()
    assert caught.value.field == where
