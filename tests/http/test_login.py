"""Logins at the page: a cookie that stands for a key, as long as the key is good, and for nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.http.conftest import OPERATOR_KEY, Api, World
from tollkeeper import testing
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.adapters.sql.logins import logins as login_rows
from tollkeeper.catalog.logins import PER_KEY_MAX
from tollkeeper.domain.keys import hash_secret
from tollkeeper.domain.logins import csrf_of
from tollkeeper.http.app import App, build_app
from tollkeeper.http.auth import FAILURES_MAX
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.installation import Installation

LOGIN = "/tk/v1/login"


class Browser(NamedTuple):
    """A browser that is logged in: it sends its cookie, and with changes the token."""

    api: Api
    secret: str
    csrf: str

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        csrf: str | None = None,
        headers: dict[str, str] | None = None,
        key: str | None = None,
    ) -> httpx.Response:
        sent = {"Cookie": f"tk_login={self.secret}", "X-CSRF-Token": self.csrf if csrf is None else csrf}
        return self.api(method, path, body, key=key, headers={**sent, **(headers or {})})


def log_in(api: Api, key: str, **options: Any) -> httpx.Response:
    return api("POST", LOGIN, {"key": key}, key=None, **options)


def browser(api: Api, key: str) -> Browser:
    answer = log_in(api, key)
    assert answer.status_code == 200, answer.text
    return Browser(api, secret_of(answer), answer.json()["csrf"])


def secret_of(answer: httpx.Response) -> str:
    found = re.match(r"tk_login=(tl_[A-Za-z0-9]{32});", answer.headers["set-cookie"])
    assert found, answer.headers["set-cookie"]
    return found[1]


def test_a_key_becomes_a_cookie_that_no_script_reads(api: Api, world: World) -> None:
    answer = log_in(api, world.a.management_key)
    secret = secret_of(answer)
    assert answer.headers["set-cookie"] == f"tk_login={secret}; Max-Age=43200; HttpOnly; SameSite=Strict"
    assert answer.headers["cache-control"] == "no-store"
    said = answer.json()
    assert said.pop("expires_at").endswith("Z")
    assert said == {
        "role": "management",
        "account": world.a.account,
        "key": world.a.management_id,
        "csrf": csrf_of(secret),
    }
    # The cookie is in no body, and the token tells nothing of it.
    assert secret not in answer.text
    shown = Browser(api, secret, "")("GET", LOGIN)
    assert shown.json() == answer.json()
    assert "set-cookie" not in shown.headers


@pytest.mark.parametrize("role", ["operator", "management", "consumption"])
def test_a_login_may_do_what_its_key_may(api: Api, world: World, role: str) -> None:
    """Every role sees the same of usage by its cookie as by its key, and may do no more."""
    a, b = world
    key = {"operator": OPERATOR_KEY, "management": a.management_key, "consumption": a.consumption_key}[role]
    page = browser(api, key)
    for path in (
        f"/tk/v1/usage?account={a.account}&from=2026-01-01",
        f"/tk/v1/usage?account={b.account}&from=2026-01-01",
        f"/tk/v1/keys/{a.consumption_id}/state",
        f"/tk/v1/keys/{b.consumption_id}/state",
        "/tk/v1/accounts",
        "/tk/v1/audit",
    ):
        by_cookie, by_key = page("GET", path), api("GET", path, key=key)
        assert by_cookie.status_code == by_key.status_code, path
        if by_key.status_code == 200 and "usage" not in path:
            assert by_cookie.json() == by_key.json()
    assert page("GET", LOGIN).json()["role"] == role


def test_a_change_needs_the_token_and_the_token_of_this_login(api: Api, world: World) -> None:
    page, other = browser(api, OPERATOR_KEY), browser(api, OPERATOR_KEY)
    path = f"/tk/v1/projects/p?account={world.a.account}"
    for csrf in ("", "x", other.csrf, page.csrf.upper(), hash_secret(page.secret)):
        for method, at, body in (
            ("PUT", path, {"name": "n"}),
            ("DELETE", path, None),
            ("POST", "/tk/v1/keys", {"account": world.a.account}),
            ("POST", "/tk/v1/authorize", {}),
            ("POST", "/tk/v1/events", []),
            ("POST", "/tk/v1/verify", None),
            ("DELETE", LOGIN, None),
        ):
            answer = page(method, at, body, csrf=csrf)
            assert answer.status_code == 403, (method, at, csrf)
            assert "X-CSRF-Token" in answer.json()["detail"]
    assert api("GET", path).status_code == 404
    assert page("GET", LOGIN).status_code == 200
    assert page("PUT", path, {"name": "n"}).status_code == 201
    assert page("POST", "/tk/v1/authorize", {}).status_code == 400
    # HEAD changes nothing; nor does GET, by which nobody logs out.
    assert page("HEAD", LOGIN, csrf="").status_code == 200
    assert page("GET", f"{LOGIN}?_method=DELETE").status_code == 400
    assert page("GET", LOGIN, headers={"X-HTTP-Method-Override": "DELETE"}).status_code == 200
    assert page("GET", LOGIN).status_code == 200


def test_a_login_that_was_ended_is_good_for_nothing(api: Api, installation: Installation) -> None:
    page = browser(api, OPERATOR_KEY)
    assert page("GET", "/tk/v1/accounts").status_code == 200
    ended = page("DELETE", LOGIN)
    assert (ended.status_code, ended.json()) == (200, {"ended": True})
    assert ended.headers["set-cookie"] == "tk_login=; Max-Age=0; HttpOnly; SameSite=Strict"
    for method, path in (("GET", LOGIN), ("GET", "/tk/v1/accounts"), ("POST", "/tk/v1/authorize")):
        assert page(method, path).status_code == 401
    with installation.engine.connect() as tx:
        rows = [
            row for row in tx.execute(login_rows.select()) if row.secret_sha256 == hash_secret(page.secret)
        ]
    assert rows == []
    # A second time it is the same, and nobody needs to be logged in.
    assert page("DELETE", LOGIN).json() == {"ended": False}
    assert api("DELETE", LOGIN, key=None).json() == {"ended": False}


def test_only_hashes_are_stored(api: Api, installation: Installation, world: World) -> None:
    key = world.a.management_key
    page = browser(api, key)
    with installation.engine.connect() as tx:
        rows = [tuple(row) for row in tx.execute(login_rows.select())]
    assert (hash_secret(page.secret), hash_secret(key), world.a.account) in [row[:3] for row in rows]
    assert not any(secret in str(rows) for secret in (page.secret, key, page.csrf, OPERATOR_KEY))


def test_a_login_ends_with_its_key(api: Api, account: str, issue: Callable[..., tuple[str, str]]) -> None:
    for end in (
        lambda id_: api("POST", f"/tk/v1/keys/{id_}/state", {"state": "revoked"}),
        lambda id_: api("POST", f"/tk/v1/keys/{id_}/state", {"state": "inactive"}),
        lambda id_: api("DELETE", f"/tk/v1/keys/{id_}"),
        lambda id_: api("POST", f"/tk/v1/keys/{id_}/rotate", {"overlap_s": 0}),
    ):
        key_id, secret = issue(role="management")
        page = browser(api, secret)
        assert page("GET", LOGIN).status_code == 200
        assert end(key_id).status_code in (200, 201)
        for path in (LOGIN, "/tk/v1/keys", "/tk/v1/usage?from=2026-01-01"):
            assert page("GET", path).status_code == 401, path
        assert page("POST", "/tk/v1/keys", {}).status_code == 401
        assert log_in(api, secret).status_code == 401


def test_a_login_stays_with_a_rotated_key_as_long_as_it_is_good(
    api: Api, issue: Callable[..., tuple[str, str]]
) -> None:
    key_id, secret = issue()
    page = browser(api, secret)
    assert api("POST", f"/tk/v1/keys/{key_id}/rotate", {"overlap_s": 3600}).status_code == 201
    shown = page("GET", LOGIN)
    assert (shown.status_code, shown.json()["key"]) == (200, key_id)


def test_a_login_of_a_suspended_account_may_nothing(
    api: Api, account: str, issue: Callable[..., tuple[str, str]]
) -> None:
    _, secret = issue()
    page = browser(api, secret)
    assert api("PUT", f"/tk/v1/accounts/{account}", {"name": "Test", "active": False}).status_code == 200
    assert page("GET", LOGIN).status_code == 403
    assert page("GET", "/tk/v1/usage?from=2026-01-01").status_code == 403
    assert log_in(api, secret).status_code == 403


def test_the_key_in_a_header_counts_and_the_cookie_does_not(api: Api, world: World) -> None:
    """Even a key that is not good: a program that states one must not act as another by a cookie of the machine."""
    page = browser(api, OPERATOR_KEY)
    for name in ("Authorization", "X-API-Key", "Api-Key", "X-Goog-Api-Key"):
        key = world.a.consumption_key
        value = f"Bearer {key}" if name == "Authorization" else key
        seen = page("GET", "/tk/v1/usage?from=2026-01-01&group_by=key", headers={name: value})
        assert {row["key"] for row in seen.json()["rows"]} <= {world.a.consumption_id}
        assert page("GET", "/tk/v1/accounts", headers={name: value}).status_code == 403
        bad = value.replace(key, "garbage")
        assert page("GET", "/tk/v1/accounts", headers={name: bad}).status_code == 401
    # A key in a header is no cookie, so it needs no token.
    created = page("POST", "/tk/v1/authorize", {}, csrf="", key=OPERATOR_KEY)
    assert created.status_code == 400
    # What a proxy adds by itself is no key of ours.
    assert page("GET", "/tk/v1/accounts", headers={"Authorization": "Basic eDp5"}).status_code == 200


def test_two_logins_in_one_request_are_refused(api: Api, world: World) -> None:
    """A page of a neighbouring host may set a cookie here: nobody can say whom the request is for."""
    mine, theirs = browser(api, world.a.management_key), browser(api, world.b.management_key)
    both = [
        f"tk_login={mine.secret}; tk_login={theirs.secret}",
        f"tk_login={theirs.secret};tk_login={mine.secret}",
    ]
    for cookie in both:
        assert mine("GET", LOGIN, headers={"Cookie": cookie}).status_code == 401
        assert mine("GET", "/tk/v1/keys", headers={"Cookie": cookie}).status_code == 401
    for cookie in (
        f"tk_login={mine.secret}; tk_login={mine.secret}",
        f'a=b; tk_login="{mine.secret}"; tk_login=garbage; c',
        f"tk_login=tl_{'A' * 32}; tk_login={mine.secret}",
        f"xtk_login={theirs.secret}; tk_login={mine.secret}; TK_LOGIN={theirs.secret}",
    ):
        shown = mine("GET", LOGIN, headers={"Cookie": cookie})
        assert (shown.status_code, shown.json().get("account")) == (200, world.a.account), cookie


@pytest.mark.parametrize(
    "value",
    ["", "tl_", "garbage", "tl_" + "x" * 500, OPERATOR_KEY, "tl_é", "' OR 1=1 --", "\x7f", "=", "a=b"],
)
def test_a_cookie_that_is_no_login_is_refused(api: Api, value: str) -> None:
    """Also a key: it would be one that a script could set, and that is sent without a token."""
    headers: Any = {"Cookie": f"tk_login={value}".encode("latin-1")}
    assert api("GET", "/tk/v1/accounts", key=None, headers=headers).status_code == 401
    assert api("GET", LOGIN, key=None, headers=headers).status_code == 401


def test_a_login_counts_in_tk_v1_only(api: Api, world: World) -> None:
    """Not at a vendor's endpoints, the metrics, or as a key that a caller states."""
    page = browser(api, OPERATOR_KEY)
    customer = browser(api, world.a.management_key)
    for path in ("/metrics", "/anylayer/v1/usage", "/shoal/v1/usage", "/cheapestinference/v1/usage"):
        for each in (page, customer):
            with_cookie, without = each("GET", path), api("GET", path, key=None)
            assert with_cookie.status_code == without.status_code, path
            assert with_cookie.status_code in (401, 403, 404), path
    for secret in (page.secret, customer.secret):
        assert api("GET", "/tk/v1/accounts", key=secret).status_code == 401
        assert log_in(api, secret).status_code == 401
    refused = api("POST", "/tk/v1/authorize", {"key": customer.secret, "path": "/x"})
    assert refused.json()["code"] == "key_unknown"


@pytest.mark.parametrize("site", ["cross-site", "same-site", "garbage"])
def test_a_login_counts_for_the_page_itself(api: Api, site: str) -> None:
    """A page of a neighbouring host sends a `SameSite=Strict` cookie too; browsers say whose page asks."""
    page = browser(api, OPERATOR_KEY)
    headers = {"Sec-Fetch-Site": site}
    assert page("GET", "/tk/v1/accounts", headers=headers).status_code == 403
    assert page("POST", "/tk/v1/authorize", {}, headers=headers).status_code == 403
    assert page("GET", LOGIN, headers=headers).status_code == 403
    assert page("DELETE", LOGIN, headers=headers).status_code == 403
    assert log_in(api, OPERATOR_KEY, headers=headers).status_code == 403
    # With a key it is an API call, from wherever.
    assert page("GET", "/tk/v1/accounts", headers=headers, key=OPERATOR_KEY).status_code == 200
    for own in ("same-origin", "none"):
        assert page("GET", "/tk/v1/accounts", headers={"Sec-Fetch-Site": own}).status_code == 200


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_no_form_of_another_page_logs_a_browser_in(api: Api, media_type: str) -> None:
    """It would make the browser show somebody else's account; a form cannot send JSON, `fetch` asks before."""
    headers = {"Content-Type": media_type} if media_type else {}
    answer = api("POST", LOGIN, key=None, content=f'{{"key":"{OPERATOR_KEY}"}}', headers=headers)
    assert answer.status_code == 415
    assert "set-cookie" not in answer.headers


def test_a_key_that_is_not_good_is_told_by_no_word(api: Api, world: World) -> None:
    for key in (
        "garbage",
        "ok_0123456789garbage0123456789",
        world.a.revoked_key,
        "tl_" + "A" * 32,
        "ключ",
        "x" * 512,
    ):
        answer = log_in(api, key)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert "set-cookie" not in answer.headers
        assert key not in answer.text
    for body in ({}, {"key": ""}, {"key": 5}, {"key": OPERATOR_KEY, "x": 1}, {"key": "x" * 513}, [], "x"):
        answer = api("POST", LOGIN, body, key=None)
        assert answer.status_code == 400, body
        assert OPERATOR_KEY not in answer.text
    assert api("POST", LOGIN, {"key": "x" * 5_000}, key=None).status_code == 413
    # A pasted key may have a line end.
    assert log_in(api, f" {world.a.management_key}\n").status_code == 200


def test_keys_that_fail_at_the_login_are_throttled(api: Api) -> None:
    peer = "198.51.100.7"
    found = [log_in(api, f"mk_garbage{n}", peer=peer).status_code for n in range(FAILURES_MAX + 2)]
    assert found == [401] * FAILURES_MAX + [429] * 2
    # Those that are good are served from there all the same, and others are counted by themselves.
    assert log_in(api, OPERATOR_KEY, peer=peer).status_code == 200
    assert log_in(api, "mk_garbage").status_code == 401
    # One count for all credentials: cookies too.
    assert api("GET", LOGIN, key=None, peer=peer, headers={"Cookie": "tk_login=tl_x"}).status_code == 429
    assert (
        api("GET", "/tk/v1/accounts", key=None, peer=peer, headers={"Cookie": "tk_login=tl_x"}).status_code
        == 429
    )
    # Who is not logged in and shows nothing has not failed.
    assert api("GET", LOGIN, key=None, peer=peer).status_code == 401


@pytest.mark.parametrize(
    ("headers", "secure"),
    [
        ({}, False),
        ({"Origin": "https://toll.example"}, True),
        ({"Origin": "http://localhost:8080"}, False),
        ({"Origin": "http://localhost:8080", "X-Forwarded-Proto": "https"}, False),
        ({"X-Forwarded-Proto": "https"}, True),
        ({"X-Forwarded-Proto": "http, https"}, True),
        ({"X-Forwarded-Proto": "https, http"}, False),
        ({"Forwarded": 'for=192.0.2.1; proto="https"'}, True),
        ({"Forwarded": "for=192.0.2.1;proto=https, for=10.0.0.1;proto=http"}, False),
    ],
)
def test_over_https_the_cookie_takes_no_other_way(api: Api, headers: dict[str, str], secure: bool) -> None:
    answer = log_in(api, OPERATOR_KEY, headers=headers)
    assert answer.headers["set-cookie"].endswith("; Secure") == secure


def test_a_browser_has_one_login(api: Api) -> None:
    first = browser(api, OPERATOR_KEY)
    again = log_in(api, OPERATOR_KEY, headers={"Cookie": f"tk_login={first.secret}"})
    assert again.status_code == 200
    assert first("GET", LOGIN).status_code == 401
    assert Browser(api, secret_of(again), "")("GET", LOGIN).status_code == 200
    # A key that is not good ends nothing.
    other = browser(api, OPERATOR_KEY)
    log_in(api, "garbage", headers={"Cookie": f"tk_login={other.secret}"})
    assert other("GET", LOGIN).status_code == 200


def test_a_key_has_so_many_logins_and_the_oldest_makes_room(
    api: Api, issue: Callable[..., tuple[str, str]], installation: Installation
) -> None:
    _, secret = issue()
    _, other_key = issue()
    other = browser(api, other_key)
    pages = [browser(api, secret) for _ in range(PER_KEY_MAX + 3)]
    good = [page("GET", LOGIN).status_code for page in pages]
    assert good == [401] * 3 + [200] * PER_KEY_MAX
    assert other("GET", LOGIN).status_code == 200


def test_a_login_needs_no_read_once_it_was_seen(
    api: Api, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page asks every few seconds; and one that was ended is not good from memory."""
    page = browser(api, OPERATOR_KEY)
    assert page("GET", LOGIN).status_code == 200
    reads: list[str] = []
    find = installation.logins._store.find
    monkeypatch.setattr(installation.logins._store, "find", lambda hash_: reads.append(hash_) or find(hash_))
    assert [page("GET", LOGIN).status_code for _ in range(5)] == [200] * 5
    assert reads == []


def test_no_secret_of_a_login_is_in_any_log(api: Api, world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    page = browser(api, world.a.management_key)
    page("GET", "/tk/v1/keys")
    page("PUT", "/tk/v1/projects/logged", {})
    page("DELETE", LOGIN)
    log_in(api, "mk_not_a_key_at_all")
    said = "".join(f"{record.getMessage()}{vars(record)}" for record in caplog.records)
    for secret in (
        page.secret,
        page.csrf,
        world.a.management_key,
        "mk_not_a_key_at_all",
        hash_secret(page.secret),
    ):
        assert secret not in said
    (line,) = [record for record in caplog.records if record.getMessage() == "tollkeeper.http.login"]
    assert (line.role, line.account, line.key) == ("management", world.a.account, world.a.management_id)


class Later(NamedTuple):
    """A server whose clock the test sets."""

    api: Api
    clock: Any
    installation: Installation


@pytest.fixture
def later(tmp_path: Path, usage_store: ClickHouseUsageStore) -> Iterator[Later]:
    clock = testing.ManualClock()
    with testing.installation(tmp_path, clock=clock, store=usage_store, login_hours=2) as installation:
        ensure_operator_key(installation, OPERATOR_KEY)
        app = build_app(installation)
        yield Later(Api(app), clock, installation)
        app.close()


def test_a_login_ends_after_its_hours_and_is_removed(later: Later) -> None:
    page = browser(later.api, OPERATOR_KEY)
    assert log_in(later.api, OPERATOR_KEY).headers["set-cookie"].split("; ")[1] == "Max-Age=7200"
    later.clock.advance(seconds=7_200, us=-1)
    assert page("GET", LOGIN).status_code == 200
    later.clock.advance(us=1)
    assert page("GET", LOGIN).status_code == 401
    assert page("GET", "/tk/v1/accounts").status_code == 401
    later.installation.logins.purge()
    with later.installation.engine.connect() as tx:
        assert tx.execute(login_rows.select()).all() == []


def test_a_login_ends_when_its_key_expires(later: Later) -> None:
    api = later.api
    assert api("PUT", "/tk/v1/accounts/acme", {"name": "Acme"}).status_code == 201
    ends_at = (later.clock.now() + timedelta(minutes=30)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    made = api("POST", "/tk/v1/keys", {"account": "acme", "type": "credit", "expires_at": ends_at}).json()
    answer = log_in(api, made["secret"])
    assert answer.json()["expires_at"] == ends_at
    assert answer.headers["set-cookie"].split("; ")[1] == "Max-Age=1800"
    page = Browser(api, secret_of(answer), "")
    later.clock.advance(seconds=1_800)
    assert page("GET", LOGIN).status_code == 401


def test_logins_outlive_a_restart_and_end_with_a_replaced_operator_key(
    tmp_path: Path, usage_store: ClickHouseUsageStore
) -> None:
    def served(operator_key: str) -> tuple[int, int]:
        with testing.installation(tmp_path, clock=clock, store=usage_store) as installation:
            ensure_operator_key(installation, operator_key)
            app = build_app(installation)
            api = Api(app)
            if not pages:
                pages.append(browser(api, operator_key))
            page = pages[0]._replace(api=api)
            statuses = page("GET", LOGIN).status_code, page("GET", "/tk/v1/accounts").status_code
            installation.logins.purge()
            with installation.engine.connect() as tx:
                rows.append(len(tx.execute(login_rows.select()).all()))
            app.close()
        return statuses

    clock = testing.ManualClock()
    pages: list[Browser] = []
    rows: list[int] = []
    assert served(OPERATOR_KEY) == (200, 200)
    assert served(OPERATOR_KEY) == (200, 200)
    assert served(OPERATOR_KEY + "x") == (401, 401)
    assert rows == [1, 1, 0]


def test_the_app_has_no_door_for_a_cookie_over_a_websocket(api: Api) -> None:
    import asyncio

    async def handshake(app: App) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "websocket",
            "path": "/tk/v1/usage",
            "headers": [(b"cookie", f"tk_login={page.secret}".encode())],
            "extensions": {"websocket.http.response": {}},
        }
        await app(scope, receive, send)
        return sent

    page = browser(api, OPERATOR_KEY)
    assert asyncio.run(handshake(api.app))[0]["status"] == 404
