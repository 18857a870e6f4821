"""
Customers who try: whatever a customer does to its keys, it spends no more than the operator gave it.

The oracle is one number per offer and a set of keys that the operator ended. The customer draws from every door that
it has: management key, dashboard session, keys that make keys, a profile's key endpoints. After each step it spends
with every secret that it ever saw.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run

from tests.effort import effort
from tests.http.conftest import OPERATOR_KEY, Api
from tollkeeper import testing
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.http.app import build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.testing import ManualClock

PRICE = 1_000_000
SPEND = {"method": "POST", "path": "/spend"}
OFFERS: dict[str, tuple[dict[str, Any], int]] = {
    # What the plan says, and how many requests the operator's offer amounts to.
    "prepaid": ({"limits": [{"name": "rpm", "amount": 1000}]}, 4),
    "per-project": ({"budgets": [{"name": "b", "amount": 2, "unit": "requests", "per": "project"}]}, 4),
    "per-key": ({"budgets": [{"name": "b", "amount": 3, "unit": "requests", "per": "key"}]}, 3),
    "pool": ({"budgets": [{"name": "b", "amount": 4, "unit": "requests"}]}, 4),
    "account": ({"budgets": [{"name": "b", "amount": 4, "unit": "requests", "per": "account"}]}, 4),
    "own-limits": ({}, 3),
}
DATES = [None, "2026-03-20T00:00:00Z", "2030-01-01T00:00:00Z"]
"""None, one inside the trial that some offers are, one beyond it."""
TRIAL_ENDS = "2026-04-01T00:00:00Z"


class CustomerModel(RuleBasedStateMachine):
    """One account; what it may spend in all is known beforehand."""

    api: ClassVar[Api]
    numbers: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.secrets: dict[str, str] = {}
        """Key id → secret, of every consumption key that was ever seen."""
        self.ended: set[str] = set()
        self.admitted = 0

    @initialize(offer=st.sampled_from(sorted(OFFERS)))
    def offer(self, offer: str) -> None:
        """The operator's part."""
        plan, self.bound = OFFERS[offer]
        self.account = account = f"a{next(self.numbers)}"
        self.put(f"plans/plan-{account}", **plan)
        on_plan = {} if offer in ("pool", "own-limits") else {"plan": f"plan-{account}"}
        self.put(f"accounts/{account}", name="Acme", **on_plan)
        self.subscription = None
        key: dict[str, Any] = {"profile": "anylayer"}
        if offer == "prepaid":
            self.put("grants/g", account=account, amount_nanos=str(self.bound * PRICE))
            key["type"] = "credit"
        if offer == "per-project":
            self.put("projects/p", account=account)
            key["project"] = "p"
        if offer == "pool":
            self.subscription = "s"
            self.put(
                "subscriptions/s", account=account, plan=f"plan-{account}", started_at="2026-01-01T00:00:00Z"
            )
            key["subscription"] = "s"
        if offer == "own-limits":
            key |= {"limits": [{"name": "own", "amount": 3, "window": "300d"}], "expires_at": TRIAL_ENDS}
        self.issue({"account": account, **key}, OPERATOR_KEY)
        made = self.api("POST", "/tk/v1/keys", {"account": account, "role": "management"})
        self.management = made.json()["secret"]
        token = self.api("POST", "/tk/v1/sessions", {"account": account, "user": "ada", "ttl_s": 80_000})
        self.session = token.json()["token"]

    def put(self, path: str, **fields: Any) -> None:
        query = f"?account={self.account}" if "account" in fields else ""
        assert self.api("PUT", f"/tk/v1/{path}{query}", fields).is_success, path

    def issue(self, body: dict[str, Any], key: str, path: str = "/tk/v1/keys") -> None:
        made = self.api("POST", path, body, key=key)
        assert made.status_code < 500, made.text
        if not made.is_success:
            return
        found = made.json()
        if "entry" in found:
            self.secrets[found["entry"]["id"]] = found["secret"]
        elif "apiKey" in found:
            self.secrets[found["keyId"]] = found["apiKey"]
        else:
            self.secrets[found["id"]] = found["key"]

    def some_key(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.secrets)))

    def manages(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        found = self.api(method, f"/tk/v1/{path}", body, key=self.management)
        assert found.status_code < 500, found.text
        return found

    # -- what the customer tries ----------------------------------------------------------------------

    @rule(data=st.data())
    def makes_a_key(self, data: st.DataObject) -> None:
        fields = {
            "type": data.draw(st.sampled_from(["subscription", "credit"])),
            "project": data.draw(st.sampled_from([None, "p", "p1"])),
            "subscription": data.draw(st.sampled_from([None, "s"])),
            "expires_at": data.draw(st.sampled_from(DATES)),
        }
        self.issue({name: value for name, value in fields.items() if value is not None}, self.management)

    @rule(project=st.sampled_from(["p1", "p2"]))
    def makes_a_project(self, project: str) -> None:
        self.manages("PUT", f"projects/{project}", {})

    @rule(data=st.data())
    def changes_a_key(self, data: st.DataObject) -> None:
        fields: dict[str, Any] = {}
        for name, values in (
            ("name", ["x", "y"]),
            ("project", [None, "p", "p1"]),
            ("subscription", [None, "s"]),
            ("expires_at", DATES),
            ("state", ["active", "inactive"]),
            ("limits", [[]]),
        ):
            if data.draw(st.booleans()):
                fields[name] = data.draw(st.sampled_from(values))
        self.manages("PUT", f"keys/{self.some_key(data)}", fields)

    @rule(data=st.data(), state=st.sampled_from(["active", "active", "inactive"]))
    def sets_a_state(self, data: st.DataObject, state: str) -> None:
        self.manages("POST", f"keys/{self.some_key(data)}/state", {"state": state})

    @rule(data=st.data())
    def rotates_a_key(self, data: st.DataObject) -> None:
        old = self.some_key(data)
        found = self.manages("POST", f"keys/{old}/rotate", {"overlap_s": 86400})
        if found.is_success:
            entry = found.json()["entry"]
            self.secrets[entry["id"]] = found.json()["secret"]
            if old in self.ended:
                self.ended.add(entry["id"])

    @rule(data=st.data(), limit=st.sampled_from([None, 1000]), expiry=st.sampled_from(DATES))
    def has_a_key_make_a_key(self, data: st.DataObject, limit: int | None, expiry: str | None) -> None:
        body = {"name": "child", "permissions": ["admin"], "rateLimit": limit, "expiry": expiry}
        secret = self.secrets[self.some_key(data)]
        self.issue(body, secret, "/anylayer/v1/developer/keys")

    @rule()
    def makes_a_key_in_the_dashboard(self) -> None:
        self.issue({"name": "mine"}, self.session, "/regsn/v1/keys")

    @rule(data=st.data())
    def activates_by_a_profile(self, data: st.DataObject) -> None:
        path = f"/cheapestinference/api/keys/{self.some_key(data)}"
        found = self.api("PATCH", path, {"isActive": True}, key=self.management)
        assert found.status_code < 500, found.text

    # -- what the operator does -----------------------------------------------------------------------

    @precondition(lambda self: len(self.secrets) > len(self.ended))
    @rule(data=st.data())
    def ends_a_key(self, data: st.DataObject) -> None:
        key_id = data.draw(st.sampled_from(sorted(self.secrets.keys() - self.ended)))
        found = self.api("POST", f"/tk/v1/keys/{key_id}/state", {"state": "inactive"})
        if found.is_success:
            self.ended.add(key_id)

    # -- what must hold -------------------------------------------------------------------------------

    @invariant()
    def spends_no_more_than_it_was_given(self) -> None:
        for key_id, secret in self.secrets.items():
            while self.api("POST", "/tk/v1/authorize", {"key": secret, **SPEND}).status_code == 200:
                assert key_id not in self.ended, "a key that the operator ended was admitted"
                self.admitted += 1
                assert self.admitted <= self.bound


@pytest.fixture
def model(tmp_path: Path, usage_store: ClickHouseUsageStore) -> Iterator[type[CustomerModel]]:
    with testing.installation(tmp_path, clock=ManualClock(), store=usage_store) as installation:
        ensure_operator_key(installation, OPERATOR_KEY)
        app = build_app(installation)
        CustomerModel.api = Api(app)
        route = {**SPEND, "price_nanos": str(PRICE)}
        assert CustomerModel.api("PUT", "/tk/v1/routes/spend", route).is_success
        yield CustomerModel
        app.close()


def test_no_customer_frees_itself(model: type[CustomerModel]) -> None:
    """Neither one door nor any sequence of them gives more than the offer."""
    run(
        model,
        settings=settings(
            max_examples=effort(6, 15),
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
