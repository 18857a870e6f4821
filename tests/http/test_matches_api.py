"""Limits and budgets by model and tag over HTTP: entries, authorize and settle, what a key has left."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.http.conftest import Api
from tollkeeper.domain.requests import Usage
from tollkeeper.embedded import Tollkeeper
from tollkeeper.http.asgi_types import Message, Receive, Scope, Send
from tollkeeper.installation import Installation

UNIT = 1_000_000_000
Issue = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def path(api: Api) -> str:
    """The path of a route of this module."""
    name = f"chat-{uuid.uuid4().hex}"
    assert api("PUT", f"/tk/v1/routes/{name}", {"method": "POST", "path": f"/{name}"}).status_code == 201
    return f"/{name}"


def plan_of(api: Api, **fields: Any) -> str:
    slug = f"plan-{uuid.uuid4().hex}"
    made = api("PUT", f"/tk/v1/plans/{slug}", fields)
    assert made.status_code == 201, made.text
    return slug


def authorized(api: Api, secret: str, path: str, **fields: Any) -> Any:
    return api("POST", "/tk/v1/authorize", {"key": secret, "path": path, **fields})


def test_an_entry_is_taken_as_it_was_answered(api: Api, account: str) -> None:
    match = {"models": ["gpt-4o*"], "tags": {"tier": "free"}, "routes": ["POST /v1/*"]}
    bodies: dict[str, dict[str, Any]] = {
        f"plans/p-{account}": {
            "models": ["gpt-4o*"],
            "limits": [{"name": "a", "amount": 5, "match": match, "per": ["key", "model"]}],
            "budgets": [{"name": "b", "amount": "5000", "match": {"kinds": ["scan"]}, "per": "tag.user"}],
        },
        f"budgets/b-{account}": {
            "account": account,
            "amount": "7000",
            "match": match,
            "per": ["key", "tag.user"],
        },
    }
    for at, body in bodies.items():
        assert api("PUT", f"/tk/v1/{at}", body).status_code == 201
        query = f"?account={account}" if at.startswith("budgets") else ""
        answered = api("GET", f"/tk/v1/{at}{query}").json()
        entry = answered.get("entry", answered)
        for name, value in body.items():
            if name in ("limits", "budgets"):
                assert value[0].items() <= entry[name][0].items()
            else:
                assert entry[name] == value
        again = api("PUT", f"/tk/v1/{at}", entry)
        assert (again.status_code, again.json()["change"]["action"]) == (200, "unchanged")
    bad = api("PUT", f"/tk/v1/budgets/c-{account}", {"account": account, "amount": 1, "per": "user"})
    assert (bad.status_code, bad.json()["field"]) == (400, "per")


def test_a_hundred_requests_of_some_models_per_key(api: Api, account: str, issue: Issue, path: str) -> None:
    limit = {"name": "gpt4o", "amount": 3, "window": "1d", "match": {"models": ["gpt-4o*"]}}
    plan = plan_of(api, limits=[limit])
    key_id, secret = issue(plan=plan)
    for model in ("gpt-4o", "GPT-4o-mini", "gpt-4o"):
        assert authorized(api, secret, path, model=model, cost_nanos=0).status_code == 200
    refused = authorized(api, secret, path, model="gpt-4o", cost_nanos=0)
    assert refused.status_code == 429
    assert refused.json()["match"] == "model gpt-4o*"
    assert "gpt4o (model gpt-4o*)" in refused.json()["detail"]
    assert authorized(api, secret, path, model="o3", cost_nanos=0).status_code == 200
    (limit_state,) = api("GET", f"/tk/v1/keys/{key_id}/state?account={account}").json()["limits"]
    assert (limit_state["match"], limit_state["used"], limit_state["per"]) == ("model gpt-4o*", 3, None)


def test_one_unit_a_day_per_end_user(api: Api, account: str, issue: Issue, path: str) -> None:
    """By authorize and settle, and by events; what is settled elsewhere than held moves."""
    body = {"account": account, "amount": str(UNIT), "period": "day", "per": "tag.user"}
    assert api("PUT", "/tk/v1/budgets/user", body).status_code == 201
    key_id, secret = issue(plan=plan_of(api))

    def left(user: str) -> Any:
        state = api("GET", f"/tk/v1/keys/{key_id}/state?account={account}&tag.user={user}").json()
        return state["budgets"][0]["remaining"]

    held = authorized(api, secret, path, cost_nanos=UNIT, tags={"user": "u1"})
    assert held.status_code == 200
    assert (left("u1"), left("u2")) == ("0", str(UNIT))
    refused = authorized(api, secret, path, cost_nanos=1, tags={"user": "u1"})
    assert (refused.status_code, refused.json()["match"]) == (402, "tag.user = u1")
    settled = api(
        "POST",
        "/tk/v1/settle",
        {"hold_id": held.json()["hold_id"], "cost_nanos": UNIT // 4, "tags": {"user": "u2"}},
    )
    assert settled.status_code == 200, settled.text
    assert (left("u1"), left("u2")) == (str(UNIT), str(UNIT * 3 // 4))
    event = {
        "id": uuid.uuid4().hex, "time": "2026-01-31T09:30:00Z", "account": account, "cost_nanos": UNIT // 2,
        "tags": {"user": "u2"},
    }  # fmt: skip
    assert api("POST", "/tk/v1/events", event).json()["accepted"] == 1
    assert left("u2") == str(UNIT * 3 // 4)  # Of another day.
    (budget,) = api("GET", f"/tk/v1/keys/{key_id}/state?account={account}").json()["budgets"]
    assert (budget["per"], budget["used"], budget["allowed"]) == (["tag.user"], None, str(UNIT))
    bad = api("GET", f"/tk/v1/keys/{key_id}/state?account={account}&tag.=u1")
    assert (bad.status_code, bad.json()["field"]) == (400, "tag.")


def test_a_retry_with_other_tags_is_another_request(api: Api, account: str, issue: Issue, path: str) -> None:
    """The tags decide, so a hold of one end user answers no request of another."""
    _, secret = issue(plan=plan_of(api))
    name = uuid.uuid4().hex
    first = authorized(api, secret, path, id=name, tags={"user": "u1", "team": "a"})
    again = authorized(api, secret, path, id=name, tags={"team": "a", "user": "u1"})
    assert first.json()["hold_id"] == again.json()["hold_id"] == name
    assert authorized(api, secret, path, id=name, tags={"user": "u2"}).status_code == 409


def test_a_key_that_may_use_two_models_only(api: Api, issue: Issue, path: str) -> None:
    _, secret = issue(plan=plan_of(api), models=["gpt-4o-mini", "o3"])
    assert authorized(api, secret, path, model="o3", cost_nanos=0).status_code == 200
    refused = authorized(api, secret, path, model="gpt-4o", cost_nanos=0)
    assert (refused.status_code, refused.json()["code"]) == (403, "model_not_allowed")
    refused = authorized(api, secret, path)
    assert (refused.status_code, refused.json()["code"]) == (403, "model_required")


def test_the_middleware_states_model_and_tags(
    installation: Installation, api: Api, account: str, issue: Issue, path: str
) -> None:
    plan = plan_of(
        api,
        models=["o3"],
        limits=[{"name": "user", "amount": 1, "window": "1d", "per": ["tag.user", "model"]}],
    )
    _, secret = issue(plan=plan)

    def header(scope: Scope, name: bytes) -> str:
        return dict(scope["headers"]).get(name, b"").decode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["tollkeeper"].tags["team"] = "blue"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    gated = Tollkeeper(installation).middleware(
        app,
        expect=lambda scope: Usage(model=header(scope, b"model"), cost_nanos=0),
        tags=lambda scope: {"user": header(scope, b"user")},
    )

    def call(user: str, model: str) -> int:
        sent: list[Message] = []
        scope = {
            "type": "http", "method": "POST", "path": path,
            "headers": [
                (b"authorization", f"Bearer {secret}".encode()),
                (b"user", user.encode()),
                (b"model", model.encode()),
            ],
        }  # fmt: skip

        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            sent.append(message)

        asyncio.run(gated(scope, receive, send))
        return int(sent[0]["status"])

    assert [call("u1", "o3"), call("u1", "O3"), call("u2", "o3"), call("u3", "gpt-4o")] == [
        200,
        429,
        200,
        403,
    ]
    report = api("GET", f"/tk/v1/usage?account={account}&group_by=tag.user,tag.team").json()
    assert {(row["tag:user"], row["tag:team"]) for row in report["rows"]} >= {("u1", "blue"), ("u2", "blue")}
