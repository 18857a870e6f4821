"""One reader of credentials serves the API, the hot endpoints and the middleware."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tollkeeper import Tollkeeper
from tollkeeper.domain.catalog import Account, Key, Route
from tollkeeper.errors import BadParameter
from tollkeeper.http.credentials import SECRET_CHARS_MAX, SECRETS_MAX, Ambiguous, credentials, the_known
from tollkeeper.installation import Installation
from tollkeeper.testing import set_up, unique

LONGEST = b"k" * SECRET_CHARS_MAX


@pytest.mark.parametrize(
    ("headers", "found", "found_bare"),
    [
        ([], [], []),
        ([(b"authorization", b"Bearer tk_1")], ["tk_1"], ["tk_1"]),
        ([(b"authorization", b"bearer  tk_1 ")], ["tk_1"], ["tk_1"]),
        ([(b"x-api-key", b" tk_1 ")], ["tk_1"], ["tk_1"]),
        ([(b"api-key", b"tk_1")], ["tk_1"], ["tk_1"]),
        ([(b"x-goog-api-key", b"tk_1")], ["tk_1"], ["tk_1"]),
        ([(b"x-api-key", b"tk_1"), (b"authorization", b"Bearer tk_1")], ["tk_1"], ["tk_1"]),
        ([(b"x-api-key", b"tk_2"), (b"authorization", b"Bearer tk_1")], ["tk_1", "tk_2"], ["tk_1", "tk_2"]),
        ([(b"authorization", b"Bearer tk_1"), (b"x-api-key", b"tk_2")], ["tk_1", "tk_2"], ["tk_1", "tk_2"]),
        ([(b"authorization", b"tk_1")], [], ["tk_1"]),
        ([(b"authorization", b"Basic dXNlcg==")], [], []),
        ([(b"authorization", b"Basic dXNlcg=="), (b"x-api-key", b"tk_2")], ["tk_2"], ["tk_2"]),
        ([(b"x-api-key", b"tk_2"), (b"authorization", b"Basic dXNlcg==")], ["tk_2"], ["tk_2"]),
        ([(b"authorization", b"Bearer "), (b"x-api-key", b"tk_2")], ["tk_2"], ["tk_2"]),
        ([(b"authorization", b"Bearer " + LONGEST)], [LONGEST.decode()], [LONGEST.decode()]),
        ([(b"authorization", b"Bearer " + LONGEST + b"k")], [], []),
        ([(b"x-api-key", LONGEST + b"k")], [], []),
    ],
)
def test_a_credential_is_read_alike_at_every_door(
    headers: list[tuple[bytes, bytes]], found: list[str], found_bare: list[str]
) -> None:
    """Only a provider's own API takes a key without a scheme; nothing else differs between the doors."""
    assert credentials(headers) == found
    assert credentials(headers, bare=True) == found_bare


def test_one_request_cannot_have_many_keys_looked_up() -> None:
    headers = [(b"x-api-key", f"tk_{number}".encode()) for number in range(100)]
    found = credentials([*headers, (b"authorization", b"Bearer tk_good")])
    assert (len(found), found[0]) == (SECRETS_MAX, "tk_good")


def test_of_several_credentials_the_known_one_counts_and_two_are_none() -> None:
    assert the_known([], lambda secret: True) == ""
    assert the_known(["a", "b"], lambda secret: secret == "b") == "b"
    assert the_known(["a", "b"], lambda secret: False) == "a"
    with pytest.raises(Ambiguous):
        the_known(["a", "b", "c"], lambda secret: secret != "a")


# -- in a query -----------------------------------------------------------------------------------------------


class InQuery:
    """A native API behind both middlewares, called with a query; `seen` are the queries that reached it."""

    def __init__(self, site: Installation) -> None:
        self.toll = Tollkeeper(site)
        account = unique("acct")
        keys = [Key(id=unique("key"), account=account) for _ in range(2)]
        route = Route(id=unique("route"), method="GET", path="/v1")
        secrets = set_up(site, Account(id=account, name="Acme"), route, *keys)
        self.secret, self.other = (secrets[key.id] for key in keys)
        self.seen: list[str] = []

    def asgi(self, query: str, headers: dict[str, str], **options: Any) -> int:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.seen.append(scope["query_string"].decode())
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "GET", "path": "/v1", "headers": raw}
        asyncio.run(
            self.toll.middleware(app, **options)(
                {**scope, "query_string": query.encode()}, receive_nothing, send
            )
        )
        return int(sent[0]["status"])

    def wsgi(self, query: str, headers: dict[str, str], **options: Any) -> int:
        def app(environ: Any, start_response: Any) -> list[bytes]:
            self.seen.append(environ["QUERY_STRING"])
            start_response("200 OK", [])
            return [b""]

        statuses: list[str] = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/v1", "QUERY_STRING": query}
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}

        def start_response(status: str, told: Any, exc_info: Any = None) -> Any:
            statuses.append(status)

        list(self.toll.wsgi_middleware(app, **options)(environ, start_response))
        return int(statuses[0][:3])


async def receive_nothing() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


@pytest.mark.parametrize("interface", ["asgi", "wsgi"])
def test_a_query_carries_a_key_only_where_a_parameter_is_named_and_the_app_never_sees_it(
    site: Installation, interface: str
) -> None:
    place = InQuery(site)
    call = getattr(place, interface)
    query = f"a=1&key={place.secret}&b=%3D"
    assert call(query, {}) == 401
    assert call(query, {}, key_parameter="token") == 401
    assert call(query, {}, key_parameter="key") == 200
    assert call(f"%6Bey={place.secret}&a=1", {}, key_parameter="key") == 200, "the name may be encoded"
    assert place.seen == ["a=1&b=%3D", "a=1"]
    assert call("key=nothing", {"x-api-key": place.secret}, key_parameter="key") == 200, (
        "the known one counts"
    )
    assert call(f"key={place.other}", {"x-api-key": place.secret}, key_parameter="key") == 401, "two keys"
    assert call("&".join(["x=1"] * 300 + [f"key={place.secret}"]), {}, key_parameter="key") == 401
    assert call("key=&key", {}, key_parameter="key") == 401


@pytest.mark.parametrize("interface", ["asgi", "wsgi"])
def test_no_vendor_takes_keys_from_a_query(site: Installation, interface: str) -> None:
    with pytest.raises(BadParameter, match="key_parameter"):
        getattr(InQuery(site), interface)("", {}, profile="regsn", key_parameter="key")
