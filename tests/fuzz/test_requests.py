"""
Requests that no client sends, to every endpoint of our own API and of every profile.

Whatever comes in headers, query, path and body: no 5xx, and of events nothing is lost.
"""

from __future__ import annotations

import gzip
import json
from typing import Any, Final
from urllib.parse import quote, quote_from_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz import examples
from tests.fuzz.asgi import Answer, Caller, Headers
from tests.fuzz.mutations import mutated
from tests.fuzz.test_parsers import ARRAY, NDJSON, lines_in
from tests.http.conftest import OPERATOR_KEY, Api, World

OPERATOR: Final = [(b"authorization", b"Bearer " + OPERATOR_KEY.encode())]
KEY_HEADERS: Final = (b"authorization", b"x-api-key", b"x-regpilot-api-key", b"api-key", b"cookie")


def as_json(**more: bytes) -> Headers:
    return [*OPERATOR, (b"content-type", b"application/json"), *((k.encode(), v) for k, v in more.items())]


# -- events ---------------------------------------------------------------------------------------------


def check_events(answer: Answer, sent: int | None) -> None:
    """Check that the answer accounts for each of the *sent* events, or refuses the call as a whole."""
    assert answer.status in (200, 400, 413, 415), answer.body
    if answer.status == 200:
        told = answer.json
        counted = told["accepted"] + told["duplicates"] + told["rejected"]
        assert len(told["errors"]) == told["rejected"]
        if sent is not None:
            assert counted == sent


@pytest.mark.drawn(1)
@examples(60)
@given(data=st.data())
def test_no_event_of_a_call_is_lost(data: st.DataObject, call: Caller) -> None:
    """accepted + duplicates + rejected = sent, whatever the body has become on its way."""
    ndjson = data.draw(st.booleans())
    body = data.draw(mutated(NDJSON if ndjson else ARRAY))
    media_type = b"application/x-ndjson" if ndjson else b"application/json"
    headers = [*OPERATOR, (b"content-type", media_type)]
    sent = lines_in(body.removeprefix(b"\xef\xbb\xbf")) if ndjson else None
    if data.draw(st.booleans()):
        packed = gzip.compress(body, mtime=0)
        damaged = data.draw(mutated(packed))
        headers.append((b"content-encoding", b"gzip"))
        body, sent = damaged, sent if damaged == packed else None
    cut = data.draw(st.integers(0, len(body)))
    check_events(call("POST", "/tk/v1/events", headers, [body[:cut], body[cut:]]), sent)


@pytest.mark.drawn(1)
def test_an_id_that_no_store_can_hold_sinks_no_other_event(call: Caller, world: World) -> None:
    """PostgreSQL refuses a question about a text with a NUL: the batch was refused as `unavailable`, for ever."""
    good = {"time": "2026-01-31T09:30:00Z", "account": world.a.account, "cost_nanos": 1}
    events: list[dict[str, Any]] = [
        {**good, "id": "nul-1"},
        {**good, "id": "nul-2", "account": "a\0"},
        {**good, "id": "nul-3", "key_id": "k\0"},
        {**good, "id": "nul-4", "project": "p\0"},
        {**good, "id": "nul-5\0", "model": "\0", "route": "\0", "kind": "\0", "tags": {"\0": "\0"}},
    ]
    told = call("POST", "/tk/v1/events", as_json(), json.dumps(events).encode()).json
    assert (told["accepted"], [error["index"] for error in told["errors"]]) == (2, [1, 2, 3])


@pytest.mark.drawn
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("authorize", {"key": "k", "path": "/\0", "id": "\0"}),
        ("settle", {"hold_id": "\0"}),
        ("settle", {"hold_id": "h", "account": "\0"}),
        ("void", {"hold_id": "\0"}),
        ("sessions", {"account": "\0", "user": "\0"}),
        ("keys", {"account": "\0"}),
        ("events/%00/void?account=%00", {}),
        ("events/%00/amend", {"status": 1}),
        ("keys/%00/rotate?account=%00", {}),
        ("keys/%00/state", {"state": "active"}),
    ],
)
def test_a_nul_names_nothing(call: Caller, path: str, body: Any) -> None:
    answer = call("POST", f"/tk/v1/{path}", as_json(), json.dumps(body).encode())
    assert 400 <= answer.status < 500, answer.body


# -- bodies ---------------------------------------------------------------------------------------------


@pytest.mark.drawn(1)
def test_a_body_of_any_depth_is_read_or_refused(call: Caller) -> None:
    """Depth costs stack, and the stack's end must not be our error."""
    for path in ("accounts", "plans", "keys", "sessions", "authorize", "expect", "settle", "void", "events"):
        for depth in (50, 300, 450, 480, 600, 900, 950, 5_000, 200_000):
            for opening, closing in ((b'{"metadata":', b"}"), (b"[", b"]"), (b'{"limits":[', b"]}")):
                body = opening * depth + b"1" + closing * depth
                if len(body) > 64 * 1024:
                    body = body[: 64 * 1024]
                answer = call("POST", f"/tk/v1/{path}", as_json(), body)
                assert answer.status in (200, 400), (path, depth, answer.body)


@pytest.mark.drawn(1)
@examples(100)
@given(data=st.data())
def test_any_body_of_a_decision_is_read_or_refused(data: st.DataObject, call: Caller) -> None:
    good = {
        "key": "tk_x",
        "method": "POST",
        "path": "/v1/x",
        "id": "h",
        "tokens": {"prompt": 1},
        "ttl_s": 60,
        "tags": {"a": "b"},
    }
    path = data.draw(st.sampled_from(("authorize", "expect", "settle", "void")))
    sent = good if path == "authorize" else {"hold_id": "h", "account": "a", "status": 200}
    answer = call("POST", f"/tk/v1/{path}", as_json(), data.draw(mutated(json.dumps(sent).encode())))
    assert 400 <= answer.status < 500, answer.body


@pytest.mark.drawn(1)
@examples(60)
@given(data=st.data())
def test_any_file_is_applied_or_refused(data: st.DataObject, call: Caller) -> None:
    good = b'[[accounts]]\nid = "acme"\nname = "A"\n[[plans]]\nslug = "p"\nlimits = [{ name = "n", amount = 1 }]\n'
    headers = [*OPERATOR, (b"content-type", b"application/toml")]
    answer = call("POST", "/tk/v1/apply?dry_run=true", headers, data.draw(mutated(good)))
    assert answer.status in (200, 400, 409), answer.body


# -- credentials ----------------------------------------------------------------------------------------

odd_values: Final = st.one_of(
    st.binary(max_size=40).map(lambda value: value.translate(None, b"\0\r\n")),
    st.sampled_from(
        (
            b"",
            b" ",
            b"Bearer",
            b"Bearer ",
            b"Bearer  " + OPERATOR_KEY.encode()[:-1],
            b"bearer ok_",
            b"Bearer mk_",
            b"Basic Og==",
            b"Bearer " + b"a" * 100_000,
            b"Bearer \xff\xfe",
            b"Bearer sk_live_\xc3\xa9",
            b"Bearer a.b.c",
            b"Bearer eyJhbGciOiJub25lIn0.e30.",
            b"Bearer " + b"." * 2_000,
            b"Bearer regsn_live_" + b"a" * 32,
            b"zk_prod_x, Bearer y",
        )
    ),
)
headers_of_anybody: Final = st.lists(st.tuples(st.sampled_from(KEY_HEADERS), odd_values), max_size=4)


OPEN: Final = ("/cheapestinference/api/plans",)
"""What that vendor tells everybody."""


def endpoints(api: Api) -> list[tuple[str, str]]:
    """Return method and path of every endpoint of every profile, and of some of our own."""
    own = [
        ("GET", "/tk/v1/usage"),
        ("GET", "/tk/v1/accounts"),
        ("POST", "/tk/v1/events"),
        ("GET", "/metrics"),
    ]
    return own + [
        (endpoint.method, f"/{name}{endpoint.path}")
        for name, site in api.app._profiles.sites.items()
        for endpoint in site.profile.endpoints
    ]


@pytest.mark.drawn(1)
def test_no_odd_credential_is_let_in(call: Caller, api: Api) -> None:
    """Odd bytes, none at all, too many of them, two headers that differ: refused, and by no accident of ours."""
    for method, path in endpoints(api):
        _try_credentials(call, method, path.replace("{", "").replace("}", ""))


def _try_credentials(call: Caller, method: str, path: str) -> None:
    @examples(15)
    @given(headers_of_anybody)
    @example([(b"authorization", b"Bearer \xe9")] * 3)
    def check(headers: Headers) -> None:
        answer = call(method, path, headers)
        if path in OPEN:
            assert answer.status == 200
        else:
            assert answer.status in (401, 403), (method, path, headers, answer.status)

    check()


# -- what a profile is asked ----------------------------------------------------------------------------

NAMES: Final = (
    "period", "projectId", "start", "end", "from", "to", "start_date", "end_date", "startDate", "endDate", "tz",
    "timezone", "granularity", "group_by", "groupBy", "interval", "limit", "offset", "page", "cursor", "after",
    "timeframe", "keyId", "key_id", "model", "format", "days", "include", "sort", "a[]", "", "\0",
)  # fmt: skip
VALUES: Final = (
    "", "0", "-1", "1", "007", "1.5", "1e9", "9" * 40, "9" * 4_000, "nan", "inf", "true", "null", "24h", "7d",
    "30d", "day", "hour", "all", "2026-01-01", "2026-13-45", "0000-00-00", "9999-12-31",
    "10000-01-01", "2026-01-01T00:00:00Z",
    "2026-01-01T00:00:00+99:99", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "253402300800",
    "-62135596801", "Europe/Berlin", "Europe", "../../etc/passwd", "/etc/passwd",
    "UTC\0", "\0", "\ud7ff\ue000\U0010ffff", "é" * 300,
    "' OR 1=1 --", "\\", "%", "{}", "[]", "١٢", "²", " 5 ", "+5", "1_000",
)  # fmt: skip


def _percent_encoded(text: str | bytes) -> str:
    return quote_from_bytes(text) if isinstance(text, bytes) else quote(text, safe="")


texts: Final = st.one_of(st.sampled_from(VALUES), st.text(max_size=12), st.binary(max_size=6))
queries: Final = st.lists(st.tuples(st.sampled_from(NAMES) | st.text(max_size=6), texts), max_size=5).map(
    lambda pairs: "&".join(f"{_percent_encoded(name)}={_percent_encoded(value)}" for name, value in pairs)
)


@pytest.fixture(scope="module")
def secrets(api: Api, world: World) -> dict[str, list[str]]:
    """Return the good credentials of each profile: a consumption key, a management key, a session."""
    account = world.a.account
    made = api("POST", "/tk/v1/sessions", {"account": account, "user": "ada"}).json()
    found = {}
    for name in api.app._profiles.sites:
        key = api("POST", "/tk/v1/keys", {"account": account, "profile": name, "type": "credit"})
        assert key.status_code == 201, key.text
        found[name] = [key.json()["secret"], world.a.management_key, made["token"]]
    return found


@pytest.mark.drawn(1)
def test_every_profile_answers_any_question(call: Caller, api: Api, secrets: dict[str, list[str]]) -> None:
    """Any text under any name, repeated, huge, with NULs, to every endpoint with every credential it takes."""
    for name, site in api.app._profiles.sites.items():
        for endpoint in site.profile.endpoints:
            _try_questions(call, endpoint.method, f"/{name}{endpoint.path}", secrets[name])


def _try_questions(call: Caller, method: str, template: str, secrets: list[str]) -> None:
    @examples(12)
    @given(
        queries,
        st.sampled_from(VALUES),
        st.binary(max_size=20) | st.sampled_from(BODIES),
        st.sampled_from(secrets),
    )
    def check(query: str, placeholder: str, body: bytes, secret: str) -> None:
        segment = quote(placeholder, safe="") or "x"
        path = "/".join(segment if "{" in part else part for part in template.split("/"))
        headers = [(b"authorization", b"Bearer " + secret.encode()), (b"content-type", b"application/json")]
        answer = call(method, f"{path}?{query}", headers, body)
        assert answer.status < 500, (path, query, body, answer.body)
        if answer.body:
            json.loads(answer.body)

    check()


BODIES: Final = (
    b"{}",
    b"[]",
    b"null",
    b'{"name":"x"}',
    b'{"name":"\\ud800"}',
    b'{"name":"\\u0000"}',
    b'{"name":1e400}',
    b'{"name":' + b"9" * 5_000 + b"}",
    b'{"name":"' + b"x" * 60_000 + b'"}',
    b'{"name":"n","label":"l","expiresAt":"9999-12-31T23:59:59-23:59","expires_at":-1,"limits":[[]]}',
    b"[" * 30_000,
    b"x" * 70_000,
)


USAGE_NAMES: Final = (
    "account", "from", "to", "granularity", "time_zone", "week_start", "group_by", "measures", "sort", "limit",
    "offset", "format", "model", "key", "status", "tag.a", "tag.\0",
)  # fmt: skip


@pytest.mark.drawn(1)
@examples(60)
@given(query=queries, data=st.data())
def test_the_usage_question_is_answered_or_refused(query: str, data: st.DataObject, call: Caller) -> None:
    known = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(USAGE_NAMES),
                texts
                | st.sampled_from(("minute", "model,key", "requests,-requests", "tag.x", "latency_ms_p99")),
            ),
            max_size=4,
        )
    )
    more = "&".join(f"{quote(name)}={_percent_encoded(value)}" for name, value in known)
    answer = call("GET", f"/tk/v1/usage?{more}&{query}" if query else f"/tk/v1/usage?{more}", OPERATOR)
    assert answer.status in (200, 400, 404), (more, query, answer.body)
