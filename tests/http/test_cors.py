"""Pages of the origins that the operator names may call the server; preflights need no key and count nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.conftest import Install
from tests.http.conftest import Api
from tollkeeper import testing
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.catalog import Account, Key
from tollkeeper.errors import BadParameter
from tollkeeper.http.app import build_app
from tollkeeper.http.cors import Cors

PAGE = "https://app.example.com"
ASKS = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "GET",
    "Access-Control-Request-Headers": "authorization",
}
Open = Callable[[str], Api]


@pytest.fixture
def served(install: Install) -> Iterator[Open]:
    apps = []

    def opened(origins: str) -> Api:
        apps.append(build_app(install(cors_origins=origins)))
        return Api(apps[-1])

    yield opened
    for app in apps:
        app.close()


def preflight(api: Api, path: str, **headers: str) -> httpx.Response:
    return api("OPTIONS", path, key=None, headers={**ASKS, **headers})


@pytest.mark.drawn(5)
@pytest.mark.parametrize(
    "path",
    ["/tk/v1/usage", "/tk/v1/authorize", "/regsn/v1/usage", "/cheapestinference/api/plans", "/nowhere"],
)
@pytest.mark.parametrize("origins", [PAGE, f"http://localhost:3000, {PAGE}", "*"])
def test_a_preflight_of_a_known_origin_is_answered(served: Open, path: str, origins: str) -> None:
    answer = preflight(served(origins), path)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == ("*" if origins == "*" else PAGE)
    assert answer.headers["access-control-allow-headers"] == "authorization"
    assert "GET" in answer.headers["access-control-allow-methods"]
    assert ("Origin" in answer.headers["vary"]) == (origins != "*")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "https://app.example.com.evil", "HTTPS://APP.example.com"]
)
def test_another_origin_is_told_nothing(served: Open, origin: str) -> None:
    api = served(PAGE)
    for answer in (
        preflight(api, "/tk/v1/usage", Origin=origin),
        api("GET", "/healthz", headers={"Origin": origin}),
    ):
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["vary"] == "Origin"


def test_refusals_and_answers_can_be_read_by_the_page(served: Open) -> None:
    api = served(PAGE)
    for path, key, status in (
        ("/healthz", None, 200),
        ("/tk/v1/usage", "tk_wrong", 401),
        ("/regsn/v1/usage", "x", 401),
    ):
        answer = api("GET", path, key=key, headers={"Origin": PAGE})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["access-control-expose-headers"] == "*"
    posted = api("POST", "/tk/v1/authorize", {}, key="tk_wrong", headers={"Origin": PAGE})
    assert (posted.status_code, posted.headers["access-control-allow-origin"]) == (401, PAGE)


def test_without_the_setting_nothing_changes(served: Open) -> None:
    api = served("")
    assert preflight(api, "/regsn/v1/usage").status_code in (404, 405)
    assert "vary" not in api("GET", "/healthz", headers={"Origin": PAGE}).headers


def test_an_options_call_that_is_no_preflight_is_as_before(served: Open) -> None:
    api = served(PAGE)
    assert api("OPTIONS", "/regsn/v1/usage", key=None, headers={"Origin": PAGE}).status_code in (404, 405)


@pytest.mark.parametrize(
    "origins", ["app.example.com", "https://a.example/", "https://", "ftp://a.example", "https://*.a.example"]
)
def test_what_is_no_origin_is_refused(origins: str) -> None:
    with pytest.raises(BadParameter, match="no origin"):
        Cors(origins)


@pytest.mark.parametrize(
    "path", ["/healthz", "/tk/v1/usage?account=x", "/tk/v1/openapi.json", "/shoal/v1/nothing", "/nowhere"]
)
def test_head_is_get_without_the_body(usage_store: ClickHouseUsageStore, install: Install, path: str) -> None:
    app = build_app(install())
    try:
        api = Api(app)
        get, head = api("GET", path, key=None), api("HEAD", path, key=None)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-length"] == str(len(get.content))
        assert head.headers["content-type"] == get.headers["content-type"]
    finally:
        app.close()


def test_head_of_a_dialects_usage_answers_as_get(install: Install) -> None:
    site = install()
    account = testing.unique("acct")
    key = Key(id=testing.unique("key"), account=account, profile="regsn")
    secret = testing.set_up(site, Account(id=account, name="Acme"), key)[key.id]
    app = build_app(site)
    try:
        api = Api(app)
        get, head = (api(method, "/regsn/v1/usage", key=secret) for method in ("GET", "HEAD"))
        assert (get.status_code, head.status_code, head.content) == (200, 200, b"")
        assert head.headers["content-length"] == str(len(get.content))
    finally:
        app.close()
