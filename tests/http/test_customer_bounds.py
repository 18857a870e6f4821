"""
Nothing that a customer makes or changes is freer than what it has.

Each test spends with every key that the customer has, through every door, and counts what is admitted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.http.conftest import Api
from tollkeeper import testing
from tollkeeper.domain.decisions import Denial
from tollkeeper.installation import Installation

PRICE = 1_000_000
Issue = Callable[..., tuple[str, str]]
TOMORROW, LATER = "2190-01-01T00:00:00Z", "2191-01-01T00:00:00Z"


@pytest.fixture(autouse=True, scope="module")
def route(api: Api) -> None:
    body = {"method": "POST", "path": "/bounds/spend", "price_nanos": str(PRICE)}
    assert api("PUT", "/tk/v1/routes/bounds", body).status_code in (200, 201)


@pytest.fixture
def spend(api: Api) -> Callable[..., int]:
    """Asks with each secret, up to *times* each; returns how often the gate said yes."""

    def spend(*secrets: str, times: int = 6) -> int:
        asked = {"method": "POST", "path": "/bounds/spend"}
        return sum(
            api("POST", "/tk/v1/authorize", {"key": secret, **asked}).status_code == 200
            for secret in secrets
            for _ in range(times)
        )

    return spend


def plan_of(api: Api, account: str, **fields: Any) -> str:
    """Put the account on a plan of its own."""
    slug = f"plan-{account}"
    assert api("PUT", f"/tk/v1/plans/{slug}", fields).status_code == 201
    assert api("PUT", f"/tk/v1/accounts/{account}", {"name": "Test", "plan": slug}).status_code == 200
    return slug


def session(api: Api, account: str) -> str:
    token: str = api("POST", "/tk/v1/sessions", {"account": account, "user": "ada"}).json()["token"]
    return token


def denial(api: Api, secret: str) -> tuple[int, str]:
    found = api("POST", "/tk/v1/authorize", {"key": secret, "method": "POST", "path": "/bounds/spend"})
    return found.status_code, found.json().get("code", "")


# -- new keys and projects ---------------------------------------------------------------------------


def test_prepaid_credit_stays_the_bound(
    api: Api, account: str, issue: Issue, spend: Callable[..., int]
) -> None:
    """A key of type `subscription` on a plan without a budget would never touch the balance."""
    plan_of(api, account, limits=[{"name": "rpm", "amount": 1000}])
    api("POST", "/tk/v1/grants", {"account": account, "amount_nanos": str(3 * PRICE)})
    _, secret = issue(type="credit")
    management = issue(role="management")[1]
    refused = api("POST", "/tk/v1/keys", {"type": "subscription"}, key=management)
    assert (refused.status_code, "credit" in refused.json()["detail"]) == (403, True)
    assert api("POST", "/tk/v1/keys", {}, key=management).status_code == 403
    more = api("POST", "/tk/v1/keys", {"type": "credit"}, key=management).json()["secret"]
    assert spend(secret, more) == 3


def test_a_subscription_with_a_budget_in_money_bounds_a_key_beside_credit(
    api: Api, account: str, issue: Issue, spend: Callable[..., int]
) -> None:
    """What is bounded is permitted: the pool of a subscription cannot be multiplied by making keys."""
    slug = f"pool-{account}"
    api("PUT", f"/tk/v1/plans/{slug}", {"budgets": [{"name": "pool", "amount": str(2 * PRICE)}]})
    api("POST", "/tk/v1/grants", {"account": account, "amount_nanos": str(3 * PRICE)})
    started = {"id": "s", "account": account, "plan": slug, "started_at": "2026-01-01T00:00:00Z"}
    api("POST", "/tk/v1/subscriptions", started)
    management = issue(role="management")[1]
    made = [api("POST", "/tk/v1/keys", {"subscription": "s"}, key=management).json() for _ in range(3)]
    assert spend(*(key["secret"] for key in made)) == 2
    # Moved away from the pool, it would be under no plan.
    path = f"/tk/v1/keys/{made[0]['entry']['id']}"
    assert api("PUT", path, {"name": "freer"}, key=management).status_code == 403


def test_projects_multiply_no_budget(api: Api, account: str, issue: Issue, spend: Callable[..., int]) -> None:
    """A budget per project counts each project, and what has none as one more."""
    plan_of(api, account, budgets=[{"name": "each", "amount": 2, "unit": "requests", "per": "project"}])
    management = issue(role="management")[1]
    for name in ("p1", "p2", "p3"):
        refused = api("PUT", f"/tk/v1/projects/{name}", {}, key=management)
        assert (refused.status_code, "each" in refused.json()["detail"]) == (403, True)
    assert api("POST", "/tk/v1/projects", {"id": "p1"}, key=management).status_code == 403
    made = [api("POST", "/tk/v1/keys", {}, key=management).json()["secret"] for _ in range(3)]
    assert spend(*made) == 2
    api("PUT", f"/tk/v1/projects/p?account={account}", {})
    own = api("POST", "/tk/v1/keys", {"project": "p"}, key=management).json()["secret"]
    assert spend(own) == 2
    assert api("PUT", "/tk/v1/projects/p", {"name": "as it is"}, key=management).status_code == 200
    budget = {"account": account, "amount": 100, "unit": "requests"}
    api("PUT", f"/tk/v1/budgets/all?account={account}", budget)
    assert api("PUT", "/tk/v1/projects/p1", {}, key=management).status_code == 201


@pytest.mark.parametrize("per", ["key", "subscription"])
def test_keys_multiply_no_budget(
    api: Api, account: str, issue: Issue, spend: Callable[..., int], per: str
) -> None:
    """A budget per key, or per subscription where there is none, counts each key alone."""
    plan_of(api, account, budgets=[{"name": "each", "amount": 2, "unit": "requests", "per": per}])
    secret, management = issue()[1], issue(role="management")[1]
    assert api("POST", "/tk/v1/keys", {}, key=management).status_code == 403
    assert spend(secret) == 2


def test_a_key_is_not_made_or_moved_beside_a_budget(api: Api, account: str, issue: Issue) -> None:
    """A budget of one project or key bounds what the account has: a key outside would be in none."""
    plan_of(api, account, limits=[{"name": "rpm", "amount": 1000}])
    for name in ("in", "out"):
        api("PUT", f"/tk/v1/projects/{name}?account={account}", {})
    body = {"account": account, "project": "in", "amount": 2, "unit": "requests"}
    api("PUT", f"/tk/v1/budgets/b?account={account}", body)
    key_id, management = issue(project="in")[0], issue(role="management")[1]
    for fields in ({}, {"project": "out"}):
        assert api("POST", "/tk/v1/keys", fields, key=management).status_code == 403
        assert api("PUT", f"/tk/v1/keys/{key_id}", fields, key=management).status_code == 403
    assert api("POST", "/tk/v1/keys", {"project": "in"}, key=management).status_code == 201
    assert api("PUT", f"/tk/v1/keys/{key_id}", {"project": "in", "name": "x"}, key=management).is_success


def test_a_key_ends_no_later_than_the_key_that_made_it(api: Api, account: str, issue: Issue) -> None:
    """A trial's management key makes trial keys."""
    plan_of(api, account, limits=[{"name": "rpm", "amount": 1000}])
    management = issue(role="management", expires_at=TOMORROW)[1]
    made = api("POST", "/tk/v1/keys", {}, key=management).json()["entry"]
    assert made["expires_at"].startswith("2190-01-01")
    assert api("POST", "/tk/v1/keys", {"expires_at": LATER}, key=management).status_code == 403
    path = f"/tk/v1/keys/{made['id']}"
    for fields in ({}, {"expires_at": None}):
        assert api("PUT", path, fields, key=management).json()["entry"]["expires_at"].startswith("2190")
    assert api("PUT", path, {"expires_at": LATER}, key=management).status_code == 403


def test_a_dashboard_session_makes_bounded_keys(api: Api, account: str, spend: Callable[..., int]) -> None:
    """Without a plan, a RegSn key draws on the account's balance, which is empty."""
    made = api("POST", "/regsn/v1/keys", {"name": "mine"}, key=session(api, account))
    assert made.status_code == 201
    assert spend(made.json()["key"]) == 0
    api("POST", "/tk/v1/grants", {"account": account, "amount_nanos": str(2 * PRICE)})
    assert spend(made.json()["key"]) == 2


def test_a_key_that_makes_keys_passes_on_its_bounds(
    api: Api, account: str, issue: Issue, spend: Callable[..., int], installation: Installation
) -> None:
    """Limits, budgets and end of an AnyLayer key hold for it and all that it makes, and theirs, together."""
    # Making three keys counts three requests.
    limit = {"name": "own", "amount": 3 + 3 + 2, "window": "300d"}
    key_id, secret = issue(profile="anylayer", limits=[limit], expires_at=TOMORROW)
    budget = {"account": account, "key": key_id, "amount": 3, "unit": "requests", "period": "total"}
    assert api("PUT", f"/tk/v1/budgets/b?account={account}", budget).status_code == 201
    secrets = [secret]
    for asked in ({}, {"rateLimit": 1000}, {"expiry": LATER}):
        body = {"name": "child", **asked, "permissions": ["admin"]}
        made = api("POST", "/anylayer/v1/developer/keys", body, key=secrets[-1]).json()
        secrets.append(made["apiKey"])
        shown = api("GET", f"/tk/v1/keys/{made['keyId']}").json()
        assert shown["expires_at"].startswith("2190-01-01")
    assert spend(*reversed(secrets)) == 3
    # Raised, its own limit still holds: calls that the budget refused count in it too.
    assert api("PUT", f"/tk/v1/budgets/b?account={account}", {**budget, "amount": 100}).status_code == 200
    assert spend(*secrets) == 0
    # The operator ends the key: what it made ends with it.
    api("POST", f"/tk/v1/keys/{key_id}/state", {"state": "revoked"})
    refused = [installation.gate.compiled_key(each) for each in secrets]
    assert [one.reason for one in refused if isinstance(one, Denial)] == ["key_revoked"] * 4


# -- the operator's word -----------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["native", "cheapestinference"])
def test_what_the_operator_made_inactive_stays_so(
    api: Api, account: str, issue: Issue, spend: Callable[..., int], profile: str
) -> None:
    """Neither the state, nor a PUT, a rotation or a profile's own endpoint brings it back."""
    plan_of(api, account, limits=[{"name": "rpm", "amount": 1000}])
    (key_id, secret), management = issue(profile=profile), issue(role="management")[1]
    path = f"/tk/v1/keys/{key_id}"
    # Its own word it may take back.
    for state in ("inactive", "active", "inactive"):
        assert api("POST", f"{path}/state", {"state": state}, key=management).status_code == 200
    # The operator's counts from then on, though the state was that already.
    api("POST", f"{path}/state", {"state": "inactive"})
    refused = api("POST", f"{path}/state", {"state": "active"}, key=management)
    assert (refused.status_code, "provider" in refused.json()["detail"]) == (403, True)
    assert api("PUT", path, {"state": "active"}, key=management).status_code == 403
    assert api("PUT", path, {"name": "renamed"}, key=management).json()["entry"]["state"] == "inactive"
    if profile == "cheapestinference":
        patched = api("PATCH", f"/cheapestinference/api/keys/{key_id}", {"isActive": True}, key=management)
        assert patched.status_code == 403
    rotated = api("POST", f"{path}/rotate", {"overlap_s": 86400}, key=management).json()
    assert rotated["entry"]["state"] == "inactive"
    successor = f"/tk/v1/keys/{rotated['entry']['id']}/state"
    assert api("POST", successor, {"state": "active"}, key=management).status_code == 403
    assert spend(secret, rotated["secret"]) == 0
    assert api("DELETE", path, key=management).status_code == 200
    again = api("POST", "/tk/v1/keys", {"id": key_id}, key=management)
    assert again.status_code in (403, 409), "the id stays taken"
    assert api("POST", successor, {"state": "active"}).status_code == 200
    assert spend(rotated["secret"], times=1) == 1


def test_a_customer_shortens_but_never_lengthens_what_the_operator_set(
    api: Api, account: str, issue: Issue
) -> None:
    """A trial ends, whatever is left out."""
    plan_of(api, account, limits=[{"name": "rpm", "amount": 1000}])
    key_id, management = issue(expires_at=TOMORROW)[0], issue(role="management")[1]
    path = f"/tk/v1/keys/{key_id}"
    assert api("PUT", path, {}, key=management).json()["entry"]["expires_at"].startswith("2190")
    assert api("PUT", path, {"expires_at": LATER}, key=management).status_code == 403
    shorter = api("PUT", path, {"expires_at": "2100-01-01T00:00:00Z"}, key=management).json()["entry"]
    assert shorter["expires_at"].startswith("2100")
    # Back up to the operator's, which it still is.
    assert api("PUT", path, {"expires_at": TOMORROW}, key=management).status_code == 200
    assert api("PUT", path, {"expires_at": None}, key=management).json()["entry"]["expires_at"]
    made = api("POST", f"{path}/rotate", {"overlap_s": 60}, key=management).json()["entry"]
    assert made["expires_at"].startswith("2190")
    assert api("PUT", f"/tk/v1/keys/{made['id']}", {"expires_at": LATER}, key=management).status_code == 403
    own = api("POST", "/tk/v1/keys", {"expires_at": TOMORROW}, key=management).json()["entry"]["id"]
    assert api("PUT", f"/tk/v1/keys/{own}", {"expires_at": LATER}, key=management).status_code == 200
    # What the operator sets binds from then on.
    api("PUT", f"/tk/v1/keys/{own}", {"account": account, "expires_at": TOMORROW})
    assert api("PUT", f"/tk/v1/keys/{own}", {"expires_at": LATER}, key=management).status_code == 403


def test_keys_of_a_canceled_subscription_end_and_come_back(api: Api, account: str, issue: Issue) -> None:
    """Canceled with an end it runs to that end; without one it is over."""
    slug = f"plan-{account}"
    api("PUT", f"/tk/v1/plans/{slug}", {"limits": [{"name": "rpm", "amount": 1000}]})
    body = {"account": account, "plan": slug, "started_at": "2026-01-01T00:00:00Z"}
    path = f"/tk/v1/subscriptions/s?account={account}"
    assert api("PUT", path, body).status_code == 201
    secrets = [issue(subscription="s", type=kind)[1] for kind in ("subscription", "credit")]
    api("POST", "/tk/v1/grants", {"account": account, "amount_nanos": str(100 * PRICE)})
    for fields, expected in (
        ({}, (200, "")),
        ({"status": "canceled"}, (401, "key_expired")),
        ({"status": "canceled", "expires_at": TOMORROW}, (200, "")),
        ({"status": "active", "expires_at": "2026-02-01T00:00:00Z"}, (401, "key_expired")),
        ({"status": "active"}, (200, "")),
    ):
        assert api("PUT", path, {**body, **fields}).is_success
        assert [denial(api, secret) for secret in secrets] == [expected] * 2
    api("PUT", path, {**body, "status": "canceled"})
    told = api("POST", "/tk/v1/authorize", {"key": secrets[0], "method": "POST", "path": "/bounds/spend"})
    assert "subscription" in told.json()["detail"]


def test_a_suspended_account_gets_no_keys(api: Api, account: str, issue: Issue) -> None:
    """Its management key and sessions end with it."""
    management, token = issue(role="management")[1], session(api, account)
    api("PUT", f"/tk/v1/accounts/{account}", {"name": "Test", "active": False})
    assert api("POST", "/tk/v1/keys", {"type": "credit"}, key=management).status_code == 403
    assert api("POST", "/regsn/v1/keys", {"name": "x"}, key=token).status_code in (401, 403)


# -- management keys are not metered -----------------------------------------------------------------


def test_a_management_key_is_never_charged(api: Api, account: str, issue: Issue) -> None:
    """It makes no requests: no credit, no events, no holds, and `verify` agrees."""
    refused = api("POST", "/tk/v1/keys", {"account": account, "role": "management", "type": "credit"})
    assert (refused.status_code, refused.json()["field"]) == (400, "type")
    key_id, management = issue(role="management")
    event = {"id": "e1", "time": "2026-01-31T00:00:00Z", "key_id": key_id, "cost_nanos": 5}
    for key in (management, None):
        sent = {} if key is None else {"key": key}
        found = api("POST", "/tk/v1/events", event, **sent).json()
        assert (found["accepted"], found["errors"][0]["code"]) == (0, "unknown_key")
    assert denial(api, management) == (401, "key_unknown")


def test_stored_events_of_a_management_key_stay_verifiable(
    api: Api, account: str, issue: Issue, installation: Installation
) -> None:
    """An older version let it be of type `credit` and charged its events: charging and verifying ask the same."""
    key_id = issue(type="credit")[0]
    event = {"id": "e1", "time": "2026-01-31T00:00:00Z", "key_id": key_id, "cost_nanos": 5}
    assert api("POST", "/tk/v1/events", event).json()["accepted"] == 1
    stored = installation.manage.stored_key(account, key_id)
    management = msgspec.structs.replace(stored.entry, role="management")
    installation.catalog.put(management, installation.clock.now_us())
    installation.directory.forget(account)
    assert testing.verify(installation).ok
    # What is not metered any more can still be taken out.
    assert api("POST", f"/tk/v1/events/e1/void?account={account}").is_success
    assert testing.verify(installation).ok
