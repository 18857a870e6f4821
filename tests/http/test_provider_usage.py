"""A provider's usage object at every door: events, authorize and settle, amendments, the library. M5 of the cases."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from tests.http.conftest import OPERATOR_KEY, Api
from tollkeeper import Outcome, testing, usage_from
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.clock import SystemClock
from tollkeeper.domain.meter import UNKNOWN_ROUTE, admitted_record
from tollkeeper.domain.requests import Usage
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.installation import Installation

M5: Final = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "prompt_tokens_details": {"cached_tokens": 1920},
    "completion_tokens_details": {"reasoning_tokens": 192},
}
CLAUDE: Final = {
    "input_tokens": 12,
    "cache_creation_input_tokens": 10_000,
    "cache_creation": {"ephemeral_5m_input_tokens": 4000, "ephemeral_1h_input_tokens": 6000},
    "cache_read_input_tokens": 20_000,
    "output_tokens": 350,
}
GEMINI: Final = {
    "promptTokenCount": 19_208,
    "candidatesTokenCount": 200,
    "totalTokenCount": 19_408,
    "promptTokensDetails": [
        {"modality": "TEXT", "tokenCount": 8},
        {"modality": "AUDIO", "tokenCount": 19_200},
    ],
}
CASES: Final = [
    ("gpt-5-mini", M5, "openai", "669500", 2306),
    ("gpt-5-mini", M5, None, "669500", 2306),
    ("claude-sonnet-4-5-20250929", CLAUDE, "anthropic", "62286000", 30_362),
    ("gemini-2.5-flash", GEMINI, "gemini", "19702400", 19_408),
    ("us.amazon.nova-pro-v1:0", {"inputTokens": 1000, "outputTokens": 100}, "bedrock", "1120000", 1100),
]


@pytest.fixture(scope="module")
def installation(
    tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore
) -> Iterator[Installation]:
    """One that admits requests to unknown routes."""
    directory = tmp_path_factory.mktemp("provider-usage")
    options: dict[str, Any] = {"unknown_route": "allow"}
    with testing.installation(directory, clock=SystemClock(), store=usage_store, **options) as opened:
        ensure_operator_key(opened, OPERATOR_KEY)
        yield opened


def event_of(account: str, **fields: Any) -> dict[str, Any]:
    return {"id": f"ev-{uuid.uuid4().hex}", "time": "2026-03-01T09:30:00Z", "account": account, **fields}


def without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


@pytest.mark.parametrize(("model", "usage", "usage_of", "cost", "tokens"), CASES)
def test_an_event_costs_what_its_providers_usage_object_says(
    api: Api, account: str, model: str, usage: Any, usage_of: str | None, cost: str, tokens: int
) -> None:
    event = event_of(account, **without_none({"model": model, "usage": usage, "usage_of": usage_of}))
    taken = api("POST", "/tk/v1/events", event).json()
    assert (taken["accepted"], taken["errors"]) == (1, [])
    found = api("GET", f"/tk/v1/events/{event['id']}?account={account}").json()
    assert (found["cost_nanos"], found["cost_state"], found["model"]) == (cost, "priced", model)
    query = f"/tk/v1/usage?account={account}&from=2026-01-01&measures=tokens,cost_nanos"
    assert api("GET", query).json()["totals"] == {"tokens": tokens, "cost_nanos": cost}
    # The same again is the same event; read by its fields it is the same too.
    again = api("POST", "/tk/v1/events", {**event, "usage_of": None}).json()
    assert (again["accepted"], again["duplicates"]) == (0, 1)


@pytest.mark.parametrize(("model", "usage", "usage_of", "cost", "tokens"), CASES)
def test_a_settled_hold_costs_what_its_providers_usage_object_says(
    api: Api,
    issue: Callable[..., tuple[str, str]],
    model: str,
    usage: Any,
    usage_of: str | None,
    cost: str,
    tokens: int,
) -> None:
    _, secret = issue()
    stated = without_none({"usage": usage, "usage_of": usage_of})
    held = api(
        "POST", "/tk/v1/authorize", {"key": secret, "path": "/v1/chat/completions", "model": model, **stated}
    ).json()
    assert held["held_tokens"] == tokens
    settled = api("POST", "/tk/v1/settle", {"hold_id": held["hold_id"], **stated})
    assert settled.status_code == 200, settled.text
    assert (settled.json()["cost_nanos"], settled.json()["tokens"]) == (cost, tokens)
    again = api("POST", "/tk/v1/settle", {"hold_id": held["hold_id"], **stated}).json()
    assert (again["replayed"], again["cost_nanos"]) == (True, cost)


def test_the_model_of_the_hold_stands_over_the_one_that_the_response_names(
    api: Api, issue: Callable[..., tuple[str, str]], account: str
) -> None:
    """A response says `gpt-4o-2024-08-06` where the deployment is another seller's, at another price."""
    _, secret = issue()
    request = {"key": secret, "path": "/v1/chat/completions"}
    response = {"model": "gpt-5-mini-2025-08-07", "usage": M5}
    models = []
    for model in ("azure/gpt-5-mini", ""):
        held = api("POST", "/tk/v1/authorize", {**request, "model": model}).json()["hold_id"]
        settled = api("POST", "/tk/v1/settle", {"hold_id": held, "usage": response}).json()
        assert settled["cost_nanos"] == "669500"
        models.append(api("GET", f"/tk/v1/events/{settled['event_id']}?account={account}").json()["model"])
    assert models == ["azure/gpt-5-mini", "gpt-5-mini-2025-08-07"]


def test_an_amendment_takes_the_usage_object(api: Api, account: str) -> None:
    """In place of all counts that were booked, those of classes that it does not name too."""
    event = event_of(account, model="gemini-2.5-flash", usage=GEMINI)
    assert api("POST", "/tk/v1/events", event).json()["accepted"] == 1
    path = f"/tk/v1/events/{event['id']}/amend?account={account}"
    amended = api("POST", path, {"model": "gpt-5-mini", "usage": M5}).json()["event"]
    assert amended["tokens"] == {"prompt": 86, "cached_prompt": 1920, "completion": 108, "reasoning": 192}
    assert "quantities" not in amended
    assert amended["cost_nanos"] == "669500"


BAD: Final = [
    ({"usage": M5, "tokens": {"prompt": 1}}, "tokens", "not both"),
    ({"usage_of": "openai"}, "usage", "required"),
    ({"usage": M5, "usage_of": "opanai"}, "usage_of", "did you mean openai"),
    ({"usage": {"completion_tokens": 3}}, "usage", "prompt_tokens is missing"),
    ({"usage": {"prompt_tokens": "x", "completion_tokens": 3}}, "usage.prompt_tokens", "must be a number"),
    ({"tokens": M5}, "tokens.prompt_tokens", "as usage"),
    ({"tokens": {"prompt": 1, "cached": 2}}, "tokens.cached", "tokens.cached_prompt"),
    (M5, "prompt_tokens", "as usage"),
    ({"usage": CLAUDE | {"server_tool_use": {"web_search_requests": 1}}, "quantities": {"searches": 1}},
     "quantities.searches", "by usage too"),
    ({"service_tier": "flex"}, "service_tier", '"variant": "flex"'),
    ({"seconds": 61.5}, "seconds", "write it in quantities"),
    ({"cache_write_tokens": 5}, "cache_write_tokens", "write it in quantities"),
    ({"quantity": {"seconds": 1}}, "quantity", "write quantities"),
    ({"cost_usd": 0.1}, "cost_usd", '"cost": "0.0123"'),
    ({"credits": 0.25}, "credits", '"quantities": {"credits": "0.25"}'),
    ({"quantities": {"prompt_tokens": 5}}, "quantities.prompt_tokens", "write tokens.prompt"),
    ({"quantities": {"seconds": "1", "cached_prompt_tokens": "5"}}, "quantities.cached_prompt_tokens",
     "write tokens.cached_prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "field", "words"), BAD)
def test_what_cannot_be_counted_is_refused_with_its_field(
    api: Api,
    account: str,
    issue: Callable[..., tuple[str, str]],
    fields: dict[str, Any],
    field: str,
    words: str,
) -> None:
    """Inclusive counts under our names would be charged twice; whoever sends them is told which form is which."""
    good = event_of(account, cost_nanos=1)
    for body, media_type in (
        (json.dumps([event_of(account, **fields), good]), "application/json"),
        ("\n".join(map(json.dumps, (event_of(account, **fields), good))), "application/x-ndjson"),
    ):
        answer = api("POST", "/tk/v1/events", content=body, headers={"Content-Type": media_type}).json()
        assert answer["accepted"] + answer["duplicates"] == 1
        (error,) = answer["errors"]
        assert error["field"] == field
        assert words in error["reason"]
    _, secret = issue()
    held = api("POST", "/tk/v1/authorize", {"key": secret, "path": "/v1/x"}).json()["hold_id"]
    refused = api("POST", "/tk/v1/settle", {"hold_id": held, **fields})
    assert (refused.status_code, refused.json()["field"]) == (400, field)
    assert words in refused.json()["detail"]


def test_an_unknown_field_of_a_request_is_answered_with_the_fields_there_are(
    api: Api, issue: Callable[..., tuple[str, str]]
) -> None:
    _, secret = issue()
    refused = api("POST", "/tk/v1/authorize", {"key": secret, "path": "/v1/x", "modell": "m"})
    assert (refused.status_code, refused.json()["field"]) == (400, "modell")
    assert (
        "the fields are key, other_keys, sessions, session, account, user, project, method, path"
        in refused.json()["detail"]
    )


def test_a_batch_of_provider_bodies_and_plain_events_is_taken_whole(api: Api, account: str) -> None:
    """More lines than the fast way reads in a piece, of which some must go the exact way."""
    events = [event_of(account, model="gpt-5-mini", tokens={"prompt": 1}) for _ in range(5000)]
    for index in range(0, 5000, 500):
        events[index] = event_of(account, model="gpt-5-mini", usage=M5)
    body = "\n".join(map(json.dumps, events))
    answer = api(
        "POST", "/tk/v1/events", content=body, headers={"Content-Type": "application/x-ndjson"}
    ).json()
    assert (answer["accepted"], answer["errors"]) == (5000, [])
    query = f"/tk/v1/usage?account={account}&from=2026-01-01&measures=tokens"
    assert api("GET", query).json()["totals"]["tokens"] == 4990 + 10 * 2306


def test_an_alias_is_priced_as_what_it_stands_for_and_reported_as_it_was_sent(api: Api, account: str) -> None:
    alias = f"{account}/chat:1"
    path = f"/tk/v1/models/{alias.replace('/', '%2F')}"
    assert api("PUT", path, {"is": "azure/gpt-5-mini"}).status_code == 201
    assert api("GET", path).json() == {"id": alias, "is": "azure/gpt-5-mini"}
    assert api("POST", "/tk/v1/events", event_of(account, model=alias, usage=M5)).json()["accepted"] == 1
    rows = api("GET", f"/tk/v1/usage?account={account}&from=2026-01-01&group_by=model").json()["rows"]
    assert [(row["model"], row["cost_nanos"]) for row in rows] == [(alias, "669500")]
    found = api("GET", f"/tk/v1/prices/show?name={alias.replace('/', '%2F')}").json()
    assert (found["seller"], found["model"]) == ("azure", "gpt-5-mini")


def test_what_came_before_its_alias_is_priced_when_it_comes(api: Api, account: str) -> None:
    alias = f"{account}-late"
    event = event_of(account, model=alias, usage=M5)
    assert api("POST", "/tk/v1/events", event).json()["accepted"] == 1
    path = f"/tk/v1/events/{event['id']}?account={account}"
    assert api("GET", path).json()["cost_state"] == "unpriced"
    assert api("PUT", f"/tk/v1/models/{alias}", {"is": "gpt-5-mini"}).status_code == 201
    found = api("GET", path).json()
    assert (found["cost_state"], found["cost_nanos"]) == ("priced", "669500")


def test_the_price_of_a_name_over_http(api: Api, account: str) -> None:
    found = api("GET", "/tk/v1/prices/show?name=claude-sonnet-4-5&at=2026-03-01").json()
    assert (found["seller"], found["rates"]["cache_write_1h_tokens"]) == ("anthropic", "6000000000")
    none = api("GET", "/tk/v1/prices/show?name=gpt-4oo").json()
    assert none["model"] is None
    assert "openai/gpt-4o" in none["nearest"]
    assert api("GET", "/tk/v1/prices/show").json()["field"] == "name"
    assert api("GET", "/tk/v1/prices/show?name=x&account=nobody").status_code == 404
    listed = api("GET", "/tk/v1/prices/built-in?seller=anthropic").json()["items"]
    assert {"claude-sonnet-4-5", "claude-3-haiku"} <= {entry["model"] for entry in listed}


def test_a_preview_over_http_is_of_the_span_and_account_that_it_names(api: Api, account: str) -> None:
    event = event_of(account, model="gpt-5-mini", usage=M5)
    voided = event_of(account, model="gpt-5-mini", usage=M5)
    for each in (event, voided):
        assert api("POST", "/tk/v1/events", each).json()["accepted"] == 1
    assert api("POST", f"/tk/v1/events/{voided['id']}/void?account={account}", {}).status_code == 200
    file = '[[prices]]\nid = "x"\nmodel = "gpt-5-mini"\nprompt_nanos_per_million = 1000000000\n'
    toml = {"Content-Type": "application/toml"}
    path = f"/tk/v1/prices/preview?account={account}"
    (row,) = api("POST", path, content=file, headers=toml).json()["rows"]
    assert (row["events"], row["cost_nanos"], row["new_cost_nanos"]) == (1, "669500", "2006000")
    late = api("POST", f"{path}&from=2026-03-02", content=file, headers=toml).json()
    assert (late["rows"], late["totals"]["events"]) == ([], 0)
    assert api("GET", f"/tk/v1/events/{event['id']}?account={account}").json()["cost_nanos"] == "669500"


def test_the_library_takes_the_usage_object() -> None:
    """Its own model is that of the hold; else the response's."""
    outcome = Outcome(usage=usage_from("openai", {"model": "gpt-5-mini", "usage": M5}))
    asked: list[str] = []

    def price_of(model: str, *at: object) -> None:
        asked.append(model)

    for expected_model in ("azure/gpt-5-mini", ""):
        record = admitted_record(
            price_of, "a", "", "", 0, 0, "id", UNKNOWN_ROUTE, "POST", "/", 0, expected_model, {}, outcome
        )
        assert record.tokens == 2306
    assert asked == ["azure/gpt-5-mini", "gpt-5-mini"]
    assert outcome.usage == Usage(86, 1920, 108, 192, response_model="gpt-5-mini")
