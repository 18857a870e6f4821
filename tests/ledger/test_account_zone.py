"""An account's time zone is that of its budgets, its own and its plans', unless they state one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.http.conftest import OPERATOR_KEY
from tests.http.conftest import Api as Caller
from tests.ledger.test_budget_scopes import Api
from tests.ledger.test_first_use_budgets import requests
from tollkeeper.domain.catalog import Account, PlanBudget
from tollkeeper.domain.instants import to_text
from tollkeeper.http.app import build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.testing import commit_all, unique, verify

MIDNIGHT = datetime(2026, 3, 18, 18, 30, tzinfo=UTC)
"""00:00 of 19 March in India."""


@pytest.fixture
def api(site, account, clock) -> Iterator[Api]:
    clock.set(MIDNIGHT - timedelta(minutes=1))
    api = Api(site, account)
    api.put(Account(id=account, name="Acme", time_zone="Asia/Kolkata"))
    api.planned(PlanBudget(name="daily", amount=1, unit="requests", period="day", per="account"))
    api.key("k1")
    yield api
    assert verify(site).ok


def test_a_day_of_a_plan_ends_at_the_accounts_midnight(api, clock):
    """M15: spent at 23:59 IST, free again at 00:00 IST; UTC's midnight is no bound."""
    assert requests(api, 2) == 1
    clock.set(MIDNIGHT - timedelta(microseconds=1))
    assert requests(api, 2) == 0
    clock.set(MIDNIGHT)
    assert requests(api, 2) == 1
    clock.set(datetime(2026, 3, 19, 0, 30, tzinfo=UTC))
    assert requests(api, 2) == 0


def test_the_same_over_http_which_says_when_it_resets(api, clock):
    ensure_operator_key(api.site, OPERATOR_KEY)
    app = build_app(api.site)
    call = Caller(app)
    asked = {"key": api.secrets[f"{api.account}-k1"], "method": "POST", "path": "/chat"}
    assert call("POST", "/tk/v1/authorize", asked).status_code == 200
    refused = call("POST", "/tk/v1/authorize", asked)
    assert (refused.status_code, refused.json()["resets_at"]) == (402, to_text(MIDNIGHT))
    standing = call("GET", f"/tk/v1/keys/{api.account}-k1/state").json()
    assert [(b["name"], b["resets_at"]) for b in standing["budgets"]] == [("daily", to_text(MIDNIGHT))]
    clock.set(MIDNIGHT)
    assert call("POST", "/tk/v1/authorize", asked).status_code == 200
    app.close()


def test_events_count_in_the_accounts_days(api):
    key_id = f"{api.account}-k1"
    for at in (MIDNIGHT - timedelta(seconds=1), MIDNIGHT, MIDNIGHT + timedelta(seconds=60)):
        api.ingest(unique("e"), at, 0, key_id=key_id)
    counter_id = f"plan:{api.plan}/daily:account:{api.account}"
    commit_all(api.site)
    rows = api.site.ledger.counter_rows(api.account)
    days = {start: used for (counter, start), used in rows.items() if counter == counter_id}
    assert list(days.values()) == [1, 2]
    assert max(days) == int(MIDNIGHT.timestamp()) * 10**6


def test_a_changed_zone_counts_again_what_lies_in_its_day(api, clock):
    """Its day in Tokyo began three and a half hours before India's: what was spent since counts in it."""
    clock.set(MIDNIGHT - timedelta(hours=2))
    api.planned(PlanBudget(name="daily", amount=5, unit="requests", period="day", per="account"))
    assert requests(api, 3) == 3
    clock.set(MIDNIGHT + timedelta(minutes=10))
    assert api.used("k1", "daily") == 0
    api.put(Account(id=api.account, name="Acme", time_zone="Asia/Tokyo"))
    assert api.used("k1", "daily") == 3
    assert requests(api, 5) == 2
    api.put(Account(id=api.account, name="Acme", time_zone="Asia/Kolkata"))
    assert api.used("k1", "daily") == 2


def test_a_budget_that_states_a_zone_keeps_it(api, clock):
    api.budget("utc", amount=2, unit="requests", period="day", time_zone="UTC")
    api.budget("theirs", amount=2, unit="requests", period="day")
    assert requests(api, 1) == 1
    clock.set(MIDNIGHT)
    assert (api.used("k1", "utc"), api.used("k1", "theirs")) == (1, 0)


def test_a_restart_and_an_upgrade_change_no_zone(install, account, clock):
    clock.set(MIDNIGHT - timedelta(minutes=1))
    site = install()
    api = Api(site, account)
    api.put(Account(id=account, name="Acme", time_zone="Asia/Kolkata"))
    api.key("k1")
    api.budget(amount=1, unit="requests")
    assert requests(api, 2) == 1
    commit_all(site)
    site.close()
    site = api.site = install()
    assert requests(api, 2) == 0
    clock.set(MIDNIGHT)
    assert requests(api, 2) == 1
    assert verify(site).ok
