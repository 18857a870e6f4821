"""Usage queries over HTTP: no kind of call waits behind them, one account has few at once, and callers may hang up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.http.conftest import OPERATOR_KEY, Api
from tollkeeper.callers import CALLER, gone
from tollkeeper.domain.catalog import Key, Route
from tollkeeper.errors import QueryTooLarge, QueryTooSlow
from tollkeeper.http.app import build_app
from tollkeeper.installation import Installation
from tollkeeper.profiles import load, names
from tollkeeper.profiles.base import Call, failure
from tollkeeper.testing import unique
from tollkeeper.usage import query_turns
from tollkeeper.usage.query_turns import OF_ACCOUNT


class Hanging:
    """A usage store whose reports run until they are released or stopped."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.stopped = threading.Event()
        self.under_way = 0
        self.changed = threading.Condition()

    def report(self, *_: Any) -> Any:
        caller = CALLER.get()
        assert caller is not None
        with caller.stopping(self._stop):
            with self.changed:
                self.under_way += 1
                self.changed.notify_all()
            assert self.let_go.wait(60)
        raise gone()

    def _stop(self) -> None:
        self.stopped.set()
        self.let_go.set()

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.under_way >= count, 60)


@pytest.fixture
def hanging(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    found = Hanging()
    monkeypatch.setattr(installation.store, "report", found.report)
    yield found
    found.let_go.set()


def new_account(api: Api) -> str:
    account = unique("acct")
    assert api("PUT", f"/tk/v1/accounts/{account}", {"name": "Test"}).status_code == 201
    return account


def key_of(api: Api, account: str, **fields: Any) -> str:
    return str(api("POST", "/tk/v1/keys", {"account": account, **fields}).json()["secret"])


def test_no_other_call_waits_behind_usage_queries(
    api: Api,
    hanging: Hanging,
    issue: Callable[..., tuple[str, str]],
    account: str,
    installation: Installation,
) -> None:
    """Forty queries of twenty accounts that never end, and every other kind of call is answered."""
    management = key_of(api, account, role="management")
    key_id, secret = issue()
    installation.manage.put(Route(id=unique("route"), method="POST", path=f"/v1/{account}"))
    keys = [key_of(api, new_account(api), role="management") for _ in range(12)]
    with ThreadPoolExecutor(24) as callers:
        asked = [callers.submit(api, "GET", "/tk/v1/usage", key=key) for key in keys for _ in range(2)]
        hanging.wait_for(24)
        request = {"key": secret, "method": "POST", "path": f"/v1/{account}"}
        held = [api("POST", "/tk/v1/authorize", request | {"id": unique("hold")}) for _ in range(2)]
        held.append(api("POST", "/tk/v1/authorize", request))
        assert [answer.status_code for answer in held] == [200, 200, 200]
        ids = [answer.json()["hold_id"] for answer in held]
        assert api("POST", "/tk/v1/void", {"hold_id": ids[0]}).status_code == 200
        assert api("POST", "/tk/v1/settle", {"hold_id": ids[1]}).status_code == 200
        assert api("POST", "/tk/v1/settle", {"hold_id": ids[1]}).json()["replayed"] is True
        assert api("GET", f"/tk/v1/keys/{key_id}/state", key=management).status_code == 200
        assert api("GET", "/tk/v1/accounts").status_code == 200
        assert api("GET", f"/tk/v1/events/{ids[1]}").status_code == 200
        assert api("GET", "/readyz").json() == {"ready": True, "reasons": [], "warnings": []}
        assert api("GET", "/metrics").status_code == 200
        assert not any(call.done() for call in asked)
        hanging.let_go.set()
        assert {call.result().status_code for call in asked} == {503}


def test_one_account_has_few_queries_at_once(
    api: Api, hanging: Hanging, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_turns, "OF_ACCOUNT", OF_ACCOUNT._replace(wait_s=0.0))
    key = key_of(api, account, role="management")
    other = key_of(api, new_account(api), role="management")
    with ThreadPoolExecutor(3) as callers:
        asked = [callers.submit(api, "GET", "/tk/v1/usage", key=key) for _ in range(2)]
        hanging.wait_for(2)
        refused = api("GET", "/tk/v1/usage?granularity=day", key=key)
        assert refused.status_code == 429, refused.text
        assert refused.json()["code"] == "too_many_queries"
        assert refused.json()["retryable"] is True
        assert int(refused.headers["Retry-After"]) >= 1
        asked.append(callers.submit(api, "GET", "/tk/v1/usage", key=other))
        hanging.wait_for(3)
        hanging.let_go.set()
        assert {call.result().status_code for call in asked} == {503}


@pytest.mark.parametrize("as_profile", [False, True])
def test_a_caller_that_hangs_up_stops_its_query(
    api: Api, hanging: Hanging, account: str, installation: Installation, as_profile: bool
) -> None:
    secret = OPERATOR_KEY
    path = "/tk/v1/usage"
    if as_profile:
        installation.manage.put(Route(id=unique("route"), method="*", path=f"/v1/{account}"))
        made = installation.manage.issue_key(Key(id=unique("key"), account=account, profile="shoal"))
        assert made.secret is not None
        secret, path = made.secret, "/shoal/v1/usage"

    async def ask() -> list[Any]:
        sent: list[Any] = []
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await asyncio.to_thread(hanging.wait_for, 1)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(b"authorization", b"Bearer " + secret.encode())], "client": ("10.9.9.9", 1),
            "server": ("toll", 80), "scheme": "http", "http_version": "1.1", "root_path": "",
            "asgi": {"version": "3.0"},
        }  # fmt: skip
        await api.app(scope, receive, send)
        return sent

    asyncio.run(ask())
    assert hanging.stopped.is_set()


def test_a_server_that_stops_waits_for_no_query(installation: Installation, hanging: Hanging) -> None:
    app = build_app(installation)
    stopping = Api(app)
    with ThreadPoolExecutor(1) as callers:
        asked = callers.submit(stopping, "GET", "/tk/v1/usage")
        hanging.wait_for(1)
        app.executors.stop_queries()
        assert asked.result().status_code == 503
    assert hanging.stopped.is_set()
    # One that comes meanwhile, on a connection that is open still, does not begin.
    assert stopping("GET", "/tk/v1/usage").status_code == 503
    assert hanging.under_way == 1
    app.close()


@pytest.mark.parametrize("name", names())
def test_profiles_word_the_bounds_of_queries(name: str) -> None:
    from tollkeeper.clock import SystemClock
    from tollkeeper.errors import TooManyQueries

    profile = load(name)
    call = Call("GET", "/", {}, {}, b"", {}, SystemClock().now(), "req_1", profile.settings)
    too_many = failure(profile, call, TooManyQueries("Two run already.", retry_after_s=1))
    assert too_many.status == 429
    assert too_many.body
    assert failure(profile, call, QueryTooLarge("Take a shorter range.")).status == 400
    assert failure(profile, call, QueryTooSlow("Took too long.")).status >= 500
