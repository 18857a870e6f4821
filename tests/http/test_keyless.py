"""
Requests without a key, of a signed-in user or of the account itself: the same pools, limits and refusals as those of
keys, through `authorize`, the library and both middlewares.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final

import pytest

from tests.http.conftest import OPERATOR_KEY, Api
from tollkeeper import Admission, Denial, Outcome, Tollkeeper, Usage, testing
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.catalog.entry_writer import KEYLESS_CREDIT_AHEAD_S
from tollkeeper.domain.catalog import (
    Account,
    Budget,
    Grant,
    Key,
    Limit,
    Plan,
    PlanBudget,
    Project,
    Route,
    Subscription,
)
from tollkeeper.errors import BadParameter, Conflict
from tollkeeper.http.app import build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.installation import Installation
from tollkeeper.testing import ManualClock, set_up, unique, verify

USD: Final = 10**9
SCAN: Final = ("POST", "/v1/scans")
LONG_AGO: Final = testing.NOON - timedelta(days=300)


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore
) -> Iterator[Installation]:
    directory = tmp_path_factory.mktemp("keyless")
    with testing.installation(directory, clock=ManualClock(), store=usage_store) as site:
        ensure_operator_key(site, OPERATOR_KEY)
        set_up(
            site,
            Route(id="scan", method="POST", path="/v1/scans", bucket="scans", profile="regsn"),
            Route(id="ping", method="GET", path="/v1/ping", price_nanos=100),
        )
        yield site


@pytest.fixture(scope="module")
def api(site: Installation) -> Iterator[Api]:
    app = build_app(site)
    yield Api(app)
    app.close()


@pytest.fixture
def toll(site: Installation) -> Tollkeeper:
    return Tollkeeper(site)


def clock_of(site: Installation) -> ManualClock:
    assert isinstance(site.clock, ManualClock)
    return site.clock


def scan_cost(nanos: int) -> Usage:
    return Usage(cost_nanos=nanos)


def ui_event(site: Installation, account: str, nanos: int) -> dict[str, Any]:
    return {
        "id": unique("event"),
        "time": site.clock.now().isoformat(),
        "account": account,
        "method": "POST",
        "route": "/v1/scans",
        "kind": "scan",
        "cost_nanos": nanos,
    }


def credit_account(site: Installation, **fields: Any) -> tuple[str, str]:
    """An account with a grant of 1.00 and a RegSn key that draws on it: its id and the secret."""
    account, key_id = unique("acct"), unique("key")
    secrets = set_up(
        site,
        Account(id=account, name="Acme", **fields),
        Key(id=key_id, account=account, type="credit", profile="regsn"),
        Grant(id="welcome", account=account, amount_nanos=USD),
    )
    return account, secrets[key_id]


def authorize(api: Api, **body: Any) -> Any:
    return api("POST", "/tk/v1/authorize", {"method": "POST", "path": "/v1/scans", **body})


# -- credit -----------------------------------------------------------------------------------------------


def test_events_of_the_ui_spend_the_credit_that_keys_draw_on(
    api: Api, site: Installation, toll: Tollkeeper
) -> None:
    """P3: grant 1.00, a UI event of 1.00, and an API scan of 0.50 is refused; a UI scan is too."""
    account, secret = credit_account(site, keyless_credit_at=LONG_AGO)
    assert toll.record([ui_event(site, account, USD)]).accepted == 1
    denied = authorize(api, key=secret, profile="regsn", cost_nanos=USD // 2)
    assert (denied.status_code, denied.json()["code"]) == (402, "budget_exhausted")
    found = authorize(api, account=account, cost_nanos=USD // 2)
    assert (found.status_code, found.json()["code"]) == (402, "credit_exhausted")
    balance = api("GET", f"/tk/v1/accounts/{account}/balance").json()
    assert (balance["balance_nanos"], balance["spent_nanos"]) == ("0", str(USD))
    assert verify(site).ok


def test_without_the_word_of_the_account_events_of_the_ui_draw_on_no_credit(
    site: Installation, toll: Tollkeeper
) -> None:
    account, secret = credit_account(site)
    toll.record([ui_event(site, account, USD)])
    assert isinstance(toll.admit(secret, *SCAN, scan_cost(USD // 2)), Admission)
    assert isinstance(toll.admit("", *SCAN, scan_cost(2 * USD), account=account), Admission)
    assert verify(site).ok


def test_the_balance_shows_what_open_requests_without_a_key_hold(api: Api, site: Installation) -> None:
    account = unique("acct")
    set_up(
        site,
        Account(id=account, name="Acme", keyless_credit_at=LONG_AGO),
        Grant(id="welcome", account=account, amount_nanos=USD),
    )
    held = authorize(api, account=account, cost_nanos=USD // 4)
    assert (held.status_code, held.json()["key_id"]) == (200, "")
    balance = api("GET", f"/tk/v1/accounts/{account}/balance").json()
    assert (balance["held_nanos"], balance["available_nanos"]) == (str(USD // 4), str(USD - USD // 4))


def test_credit_is_drawn_on_from_the_instant_that_was_set_and_not_before(
    site: Installation, toll: Tollkeeper
) -> None:
    """An account that exists gets the instant ahead of time, so that no event is on both sides of it."""
    clock = clock_of(site)
    account, secret = credit_account(site)
    toll.record([ui_event(site, account, USD)])
    begins = clock.now() + timedelta(seconds=KEYLESS_CREDIT_AHEAD_S + 60)
    with pytest.raises(Conflict, match="keyless_credit_at"):
        site.manage.put(Account(id=account, name="Acme", keyless_credit_at=clock.now()))
    site.manage.put(Account(id=account, name="Acme", keyless_credit_at=begins))
    before = toll.admit("", *SCAN, scan_cost(5 * USD), account=account)
    assert isinstance(before, Admission)
    clock.advance(seconds=KEYLESS_CREDIT_AHEAD_S + 60)
    after = toll.admit("", *SCAN, scan_cost(USD), account=account)
    assert isinstance(after, Admission)
    refused = toll.admit(secret, *SCAN, scan_cost(1))
    assert isinstance(refused, Denial)
    assert refused.reason == "credit_exhausted"
    # Of a request that was admitted before.
    toll.settle(before, Outcome(usage=scan_cost(5 * USD)), wait=True)
    toll.settle(after, Outcome(usage=scan_cost(USD)), wait=True)
    assert site.balances.of(account).book.spent_nanos == USD
    assert verify(site).ok
    with pytest.raises(Conflict, match="keeps it"):
        site.manage.put(Account(id=account, name="Acme"))


# -- pools ------------------------------------------------------------------------------------------------


@pytest.mark.drawn(2)
@pytest.mark.parametrize("pool", ["budget", "plan per account", "subscription", "credit"])
def test_keyed_and_keyless_requests_race_for_one_pool_and_exactly_it_is_spent(
    site: Installation, toll: Tollkeeper, pool: str
) -> None:
    """Eight threads ask for 100 units of a pool of 60, half of them with a key: exactly 60 are admitted."""
    account, key_id, plan = unique("acct"), unique("key"), unique("plan")
    subscription = Subscription(id="s1", account=account, plan=plan, started_at=LONG_AGO)
    per = "account" if pool == "plan per account" else "subscription"
    entries = {
        "budget": [Budget(id="pool", account=account, amount=60), Account(id=account, name="Acme")],
        "plan per account": [
            Plan(slug=plan, budgets=[PlanBudget(name="pool", amount=60, per=per)]),
            Account(id=account, name="Acme", plan=plan),
        ],
        "subscription": [
            Plan(slug=plan, budgets=[PlanBudget(name="pool", amount=60, per=per)]),
            Account(id=account, name="Acme"),
            subscription,
        ],
        "credit": [
            Account(id=account, name="Acme", keyless_credit_at=LONG_AGO),
            Grant(id="g", account=account, amount_nanos=60),
        ],
    }[pool]
    key = Key(
        id=key_id,
        account=account,
        profile="regsn",
        type="credit" if pool == "credit" else "subscription",
        subscription="s1" if pool == "subscription" else None,
    )
    secret = set_up(site, *entries, key)[key_id]
    token = site.sessions.issue(account, "ada")
    admitted: list[Admission] = []
    denied: list[Denial] = []
    turns = itertools.count()

    def ask() -> None:
        while (turn := next(turns)) < 100:
            who = [(secret, {}), ("", {"account": account}), ("", {"session": token}), (secret, {})][turn % 4]
            found = toll.admit(who[0], *SCAN, scan_cost(1), **who[1])
            (admitted if isinstance(found, Admission) else denied).append(found)  # type: ignore[arg-type]

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(admitted), len(denied)) == (60, 40)
    assert {found.status for found in denied} == {402}
    assert {admission.key_id for admission in admitted} == {"", key_id}
    for admission in admitted:
        toll.settle(admission, Outcome(usage=scan_cost(1)))
    assert verify(site).ok
    assert isinstance(toll.admit("", *SCAN, scan_cost(1), account=account), Denial)


def test_a_restart_finds_the_hold_of_a_request_without_a_key(
    tmp_path: Any, usage_store: ClickHouseUsageStore
) -> None:
    account, clock = unique("acct"), ManualClock()

    def opened() -> Any:
        return testing.installation(tmp_path, clock=clock, store=usage_store)

    with opened() as site:
        set_up(
            site,
            Account(id=account, name="Acme", keyless_credit_at=LONG_AGO),
            Project(id="web", account=account),
            Grant(id="g", account=account, amount_nanos=60),
            Route(id="ping", method="GET", path="/v1/ping", price_nanos=40),
        )
        ensure_operator_key(site, OPERATOR_KEY)
        app = build_app(site)
        body = {"account": account, "user": "ada", "project": "web", "method": "GET", "path": "/v1/ping"}
        hold = Api(app)("POST", "/tk/v1/authorize", {**body, "id": "h1"}).json()
        again = Api(app)("POST", "/tk/v1/authorize", {**body, "id": "h1"}).json()
        other = Api(app)("POST", "/tk/v1/authorize", {**body, "id": "h1", "user": "bob"})
        assert (hold["hold_id"], again["hold_id"], other.status_code) == ("h1", "h1", 409)
        app.close()
    with opened() as site:
        app = build_app(site)
        api = Api(app)
        assert api("POST", "/tk/v1/authorize", {**body, "id": "h2"}).status_code == 402
        settled = api("POST", "/tk/v1/settle", {"hold_id": "h1"})
        assert (settled.status_code, settled.json()["cost_nanos"]) == (200, "40")
        assert site.balances.of(account).book.spent_nanos == 40
        assert verify(site).ok
        app.close()


def test_limits_per_key_count_each_user_and_the_account_itself_apart(
    site: Installation, toll: Tollkeeper
) -> None:
    account, plan = unique("acct"), unique("plan")
    limits = [Limit(name="rpm", amount=2), Limit(name="all", amount=5, per="account")]
    set_up(site, Plan(slug=plan, limits=limits), Account(id=account, name="Acme", plan=plan))

    def ask(**who: str) -> str:
        found = toll.admit("", "GET", "/v1/ping", **who)
        if isinstance(found, Denial):
            return found.limit
        toll.settle(found)
        return ""

    ada = {"session": site.sessions.issue(account, "ada")}
    bob = {"account": account, "user": "bob"}
    assert [ask(**ada), ask(**ada), ask(**ada)] == ["", "", "rpm"]
    assert ask(account=account, user="ada") == "rpm", "the same user, however the request names her"
    assert [ask(**bob), ask(**bob), ask(**bob)] == ["", "", "rpm"]
    assert [ask(account=account), ask(account=account)] == ["", "all"], "five requests of the account"


def test_a_plan_without_a_layer_or_a_model_holds_without_a_key_too(
    site: Installation, toll: Tollkeeper
) -> None:
    account, plan = unique("acct"), unique("plan")
    set_up(site, Plan(slug=plan, models=["small*"]), Account(id=account, name="Acme", plan=plan))
    denied = toll.admit("", "GET", "/v1/ping", Usage(model="large", cost_nanos=1), account=account)
    assert isinstance(denied, Denial)
    assert denied.reason == "model_not_allowed"


# -- who may --------------------------------------------------------------------------------------------


def test_a_session_admits_for_its_own_account_and_shows_as_none(api: Api, site: Installation) -> None:
    """RegSn's `authorize` with a session in `key`, as its caller sent it; usage by key has it under `(none)`."""
    account, _ = credit_account(site)
    token = site.sessions.issue(account, "ada")
    for body in (
        {"key": token, "profile": "regsn"},
        {"key": token, "answer_as": "regsn"},
        {"session": token},
    ):
        found = authorize(api, cost_nanos=10, **body)
        assert (found.status_code, found.json()["account"], found.json()["key_id"]) == (200, account, "")
        api(
            "POST",
            "/tk/v1/settle",
            {"hold_id": found.json()["hold_id"], "account": account, "cost_nanos": 10},
        )
    clock_of(site).advance(seconds=1)
    shown = api("GET", "/regsn/v1/usage?group_by=key", key=token).json()
    assert [(bucket["key"], bucket["request_count"]) for bucket in shown["buckets"]] == [("(none)", 3)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda site, account: site.sessions.issue(account, "ada", ttl_s=60), "expired"),
        (lambda site, account: site.sessions.issue(account, "ada")[:-8] + "AAAAAAAA", "not valid"),
        (lambda site, account: site.sessions.issue("nobody", "ada"), "not valid"),
        (lambda site, account: "a.b.c", "not valid"),
    ],
    ids=["expired", "forged", "unknown account", "no token"],
)
def test_a_session_that_is_not_good_is_refused_with_words(
    api: Api, site: Installation, toll: Tollkeeper, make: Callable[..., str], words: str
) -> None:
    account, _ = credit_account(site)
    token = make(site, account)
    clock_of(site).advance(seconds=120)
    for found in (
        authorize(api, session=token),
        authorize(api, key=token, profile="regsn"),
        authorize(api, key=token, answer_as="regsn"),
    ):
        assert found.status_code == 401
        assert words in found.json()["detail"]
    refused = toll.admit("", *SCAN, session=token)
    assert isinstance(refused, Denial)
    assert refused.status == 401


def test_suspended_accounts_and_ended_sessions_are_refused_at_once(
    api: Api, site: Installation, toll: Tollkeeper
) -> None:
    account, _ = credit_account(site)
    token = site.sessions.issue(account, "ada")
    assert isinstance(toll.admit("", *SCAN, session=token), Admission)
    api("PUT", f"/tk/v1/accounts/{account}", {"name": "Acme", "active": False})
    refused = toll.admit("", *SCAN, session=token)
    by_name = toll.admit("", *SCAN, account=account)
    assert isinstance(refused, Denial)
    assert isinstance(by_name, Denial)
    assert (refused.status, by_name.status) == (401, 403)
    assert "not active" in refused.message
    assert "not active" in by_name.message
    clock_of(site).advance(seconds=5)
    now = clock_of(site).now().isoformat()
    api("PUT", f"/tk/v1/accounts/{account}", {"name": "Acme", "sessions_reset_at": now})
    ended = toll.admit("", *SCAN, session=token)
    assert isinstance(ended, Denial)
    assert ended.reason == "session_expired"
    assert api("GET", "/regsn/v1/usage", key=token).status_code == 401, "the usage endpoint refuses it too"
    assert isinstance(toll.admit("", *SCAN, session=site.sessions.issue(account, "ada")), Admission)


def test_a_customer_names_no_account_and_a_key_is_no_session(api: Api, site: Installation) -> None:
    """Only the operator calls `authorize`; of what a customer sends, nothing but its own credential says who pays."""
    account, secret = credit_account(site)
    other, _ = credit_account(site)
    for key in (secret, site.sessions.issue(account, "ada"), "mk_" + "x" * 32):
        assert authorize_as(api, key, account=other).status_code in (401, 403)
    assert authorize(api, session=secret).status_code == 401
    assert authorize(api, key=site.sessions.issue(account, "ada")).status_code == 401, (
        "native knows no sessions"
    )
    native = authorize(api, key=site.sessions.issue(account, "ada"), sessions=True)
    assert (native.status_code, native.json()["account"]) == (200, account)


def authorize_as(api: Api, key: str, **body: Any) -> Any:
    return api("POST", "/tk/v1/authorize", {"method": "POST", "path": "/v1/scans", **body}, key=key)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "key"),
        ({"key": "tk_x", "account": "a"}, "account"),
        ({"session": "a.b.c", "account": "a"}, "account"),
        ({"key": "tk_x", "session": "a.b.c"}, "session"),
        ({"key": "tk_x", "user": "ada"}, "user"),
        ({"session": "a.b.c", "user": "ada"}, "user"),
        ({"key": "tk_x", "project": "web"}, "project"),
        ({"account": "a", "other_keys": ["tk_x"]}, "other_keys"),
    ],
    ids=str,
)
def test_a_request_names_one_caller(api: Api, body: dict[str, Any], field: str) -> None:
    found = authorize(api, **body)
    assert (found.status_code, found.json()["field"]) == (400, field)


def test_the_library_wants_one_caller(toll: Tollkeeper) -> None:
    for who in ({"user": "ada"}, {"session": "a.b.c", "account": "x"}, {"session": "a.b.c", "user": "x"}):
        with pytest.raises(BadParameter):
            toll.admit("", *SCAN, **who)
    with pytest.raises(BadParameter):
        toll.admit("tk_x", *SCAN, account="acme")
    unknown = toll.admit("", *SCAN, account="nobody-here")
    assert isinstance(unknown, Denial)
    assert (unknown.status, "nobody-here" in unknown.message) == (403, True)


# -- middleware ---------------------------------------------------------------------------------------------


def call_asgi(toll: Tollkeeper, headers: dict[str, str], **options: Any) -> tuple[int, dict[bytes, bytes]]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/scans", "query_string": b"", "headers": raw}
    asyncio.run(toll.middleware(app, **options)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def call_wsgi(toll: Tollkeeper, headers: dict[str, str], **options: Any) -> tuple[int, dict[bytes, bytes]]:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"ok"]

    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/v1/scans", "wsgi.input": io.BytesIO()}
    environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    answered: list[Any] = []
    body = toll.wsgi_middleware(app, **options)(environ, lambda *of: answered.extend(of))  # type: ignore[arg-type,func-returns-value]
    list(body)
    return int(answered[0][:3]), {name.lower().encode(): value.encode() for name, value in answered[1]}


@pytest.mark.parametrize("call", [call_asgi, call_wsgi], ids=["asgi", "wsgi"])
def test_the_middleware_admits_sessions_where_the_vendor_does(
    site: Installation, toll: Tollkeeper, call: Callable[..., Any]
) -> None:
    account, _ = credit_account(site)
    set_up(site, Budget(id="pool", account=account, amount=25, unit="requests"))
    token = site.sessions.issue(account, "ada")
    bearer = {"Authorization": f"Bearer {token}"}
    status, headers = call(toll, bearer, profile="regsn")
    assert status == 200
    assert b"x-request-id" in headers
    assert call(toll, bearer, profile="cheapestinference")[0] == 401, "its API takes keys only"
    assert call(toll, bearer, profile="native")[0] == 401
    assert call(toll, bearer, profile="regsn", sessions=False)[0] == 401
    # Two credentials of ours that differ.
    both = {**bearer, "X-API-Key": site.manage.issue_key(Key(id=unique("k"), account=account)).secret}
    status, _ = call(toll, both, profile="native", sessions=True)
    assert status == 401
    set_up(site, Route(id=unique("r"), method="POST", path="/v1/scans", profile="native"))
    assert call(toll, bearer, profile="native", sessions=True)[0] == 200


@pytest.mark.parametrize("call", [call_asgi, call_wsgi], ids=["asgi", "wsgi"])
def test_a_spent_pool_is_refused_in_the_vendors_words_for_a_session(
    site: Installation, toll: Tollkeeper, call: Callable[..., Any]
) -> None:
    account, _ = credit_account(site)
    set_up(site, Budget(id="pool", account=account, amount=1, unit="requests"))
    bearer = {"Authorization": f"Bearer {site.sessions.issue(account, 'ada')}"}
    assert [call(toll, bearer, profile="regsn")[0] for _ in range(2)] == [200, 402]
