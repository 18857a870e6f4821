"""Access logs by format: each says the same of the same request, and a line that does not fit is never misread."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.effort import effort
from tests.meter.test_access_log import checked
from tollkeeper.domain.events import parse_time_us
from tollkeeper.errors import BadParameter
from tollkeeper.meter.access_log import AccessLog
from tollkeeper.meter.decode import Decoded
from tollkeeper.meter.log_recognition import recognised

NOW_US: Final = parse_time_us("2026-12-01T00:00:00Z")
START: Final = '203.0.113.7 - - [20/Nov/2026:10:00:00 +0000] "GET /v1/items?a=b HTTP/1.1" 200 512'
COMBINED: Final = START + ' "-" "curl/8.5.0"'
VHOST: Final = "api.example.com:443 " + COMBINED
NGINX: Final = '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent'
APACHE: Final = r"%h %l %u %t \"%r\" %>s %b"
ALB: Final = (
    "https 2026-11-20T10:00:00.000000Z app/lb/50dc6c495c0c9188 203.0.113.7:2817 10.0.0.1:80 0.004 0.020 0.007 200 "
    '200 34 512 "GET https://api.example.com:443/v1/items?a=b HTTP/1.1" "curl/8.5.0" ECDHE TLSv1.2 arn:aws:x "Root=1" '
    '"api.example.com" "arn:aws:acm:x" 0 2026-11-20T10:00:00.000000Z "forward" "-" "-" "10.0.0.1:80" "200" "-" "-"'
)
IIS: Final = (
    "#Software: Microsoft Internet Information Services 10.0\r\n#Version: 1.0\r\n#Date: 2026-11-20 00:00:00\r\n"
    "#Fields: date time s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username c-ip cs(User-Agent) sc-status "
    "sc-bytes time-taken\r\n"
    "2026-11-20 10:00:00 10.0.0.1 GET /v1/items a=b 443 - 203.0.113.7 curl/8.5.0+(x) 200 512 31\r\n"
)
CLOUDFRONT: Final = (
    "#Version: 1.0\n#Fields: date time x-edge-location sc-bytes c-ip cs-method cs(Host) cs-uri-stem sc-status "
    "cs(User-Agent) cs-uri-query time-taken\n"
    "2026-11-20\t10:00:00\tLAX1\t512\t203.0.113.7\tGET\td1.cloudfront.net\t/v1/items\t200\tcurl%20x\ta=b\t0.031\n"
)
CADDY: Final = json.dumps(
    {
        "level": "info",
        "ts": 1795168800.0,
        "logger": "http.log.access",
        "request": {"remote_ip": "203.0.113.7", "method": "GET", "uri": "/v1/items?a=b"},
        "duration": 0.031,
        "size": 512,
        "status": 200,
    }
)
NGINX_JSON: Final = json.dumps(
    {
        "time_iso8601": "2026-11-20T10:00:00+00:00",
        "remote_addr": "203.0.113.7",
        "request": "GET /v1/items?a=b HTTP/1.1",
        "status": "200",
        "body_bytes_sent": "512",
        "request_time": "0.031",
    }
)
TRAEFIK: Final = json.dumps(
    {
        "ClientHost": "203.0.113.7",
        "Duration": 31000000,
        "DownstreamContentSize": 512,
        "DownstreamStatus": 200,
        "RequestMethod": "GET",
        "RequestPath": "/v1/items?a=b",
        "StartUTC": "2026-11-20T10:00:00Z",
    }
)
OWN_JSON: Final = json.dumps(
    {
        "when": 1795168800000,
        "http": {"verb": "GET", "url": "https://api.example.com/v1/items?a=b"},
        "code": 200,
        "sent": 512,
        "took": 31,
        "from": "203.0.113.7",
    }
)
OWN_MAP: Final = {
    "time_ms": "when",
    "method": "http.verb",
    "route": "http.url",
    "status": "code",
    "bytes_out": "sent",
    "latency_ms": "took",
    "client": "from",
}
SAID: Final = {
    "occurred_at_us": 1_795_168_800_000_000,
    "account": "acme",
    "method": "GET",
    "route": "/v1/items",
    "kind": "request",
    "status": 200,
    "bytes_out": 512,
    "tags": [("client", "203.0.113.7")],
}


def decode(form: str, body: str | bytes, **options: Any) -> Decoded:
    log = AccessLog(format=form, account="acme", **options)
    return checked(log.decode(body.encode() if isinstance(body, str) else body, now_us=NOW_US))


def rows(form: str, body: str, **options: Any) -> list[dict[str, Any]]:
    decoded = decode(form, body, **options)
    assert not decoded.rejections, decoded.rejections
    listed = decoded.columns.to_pylist()
    return [{k: v for k, v in row.items() if v is not None and k != "id"} for row in listed]


def reason_of(form: str, body: str | bytes, **options: Any) -> str:
    (rejection,) = decode(form, body, **options).rejections
    return rejection.reason


@pytest.mark.parametrize(
    ("form", "body", "latency_us"),
    [
        ("common", START, None),
        ("combined", COMBINED, None),
        ("nginx-main", COMBINED + ' "198.51.100.4, 10.0.0.2"', None),
        ("nginx-main", COMBINED + ' "-"', None),
        ("vhost-combined", VHOST, None),
        ("vhost-combined", "[2001:db8::1]:443 " + COMBINED, None),
        (NGINX + ' "$http_user_agent" $request_time', START + ' "x y" 0.031', 31_000),
        (NGINX + " $upstream_response_time rt=$request_time", START + " 0.001, 0.002 rt=0.031", 31_000),
        (NGINX + " ${request_time}s", START + " 0.031s", 31_000),
        (
            "[$msec] $remote_addr $request_method $request_uri $status $bytes_sent",
            "[1795168800.000] 203.0.113.7 GET /v1/items?a=b 200 512",
            None,
        ),
        (
            '$time_iso8601|$remote_addr|"$request_method $uri $server_protocol"|$status|$bytes_sent',
            '2026-11-20T10:00:00+00:00|203.0.113.7|"GET /v1/items HTTP/2.0"|200|512',
            None,
        ),
        (APACHE, START, None),
        (APACHE + " %D", START + " 31044", 31_044),
        (APACHE + " %T", START + " 2", 2_000_000),
        (APACHE + " %{ms}T %T", START + " 31 0", 31_000),
        (APACHE + ' %I %O "%{X-Forwarded-For}i" %D', START + ' 90 700 "a, b" 31000', 31_000),
        (
            "%{%Y-%m-%dT%H:%M:%S%z}t %a %m %U%q %>s %B",
            "2026-11-20T11:00:00+0100 203.0.113.7 GET /v1/items?a=b 200 512",
            None,
        ),
        ("alb", ALB, 31_000),
        ("w3c", IIS, 31_000),
        ("w3c", CLOUDFRONT, 31_000),
        ("json", CADDY, 31_000),
        ("json", CADDY.replace("0.031", '"31ms"'), 31_000),
        ("json", NGINX_JSON, 31_000),
        ("json", TRAEFIK, 31_000),
    ],
)
def test_every_format_says_the_same_of_the_same_request(form: str, body: str, latency_us: int | None) -> None:
    expected = SAID if latency_us is None else {**SAID, "latency_us": latency_us}
    assert rows(form, body, client_field="host") == [expected]


def test_json_of_other_names_is_read_by_a_field_map() -> None:
    assert rows("json", OWN_JSON, field_map=OWN_MAP) == [{**SAID, "latency_us": 31_000}]
    assert "time" in reason_of("json", OWN_JSON)
    # A name that is wrong loses nothing silently.
    assert "kode" in reason_of("json", OWN_JSON, field_map={**OWN_MAP, "status": "kode"})
    # Seconds are not milliseconds.
    seconds = {"time": "when", **{k: v for k, v in OWN_MAP.items() if k != "time_ms"}}
    assert "future" in reason_of("json", OWN_JSON, field_map=seconds)


def test_a_field_map_names_the_customer_in_any_format() -> None:
    line = COMBINED + ' "k-7" team-a'
    form = NGINX + ' "$http_referer" "$http_user_agent" "$http_x_key" $http_x_team'
    (row,) = rows(form, line, field_map={"key_id": "http_x_key", "tags.team": "http_x_team"})
    assert (row["key_id"], row["tags"]) == ("k-7", [("team", "team-a")])
    (row,) = rows("w3c", IIS, field_map={"tags.port": "s-port"})
    assert row["tags"] == [("port", "443")]


# --- Never misread --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "route", "status"),
    [
        (START + ' "-" "Mozilla/5.0 (X "raw" Y)"', "/v1/items", 200),
        (START + ' "http://x/?q="a"" "b"', "/v1/items", 200),
        (COMBINED.replace("/v1/items", '/say"hi"'), '/say"hi"', 200),
    ],
)
def test_an_unescaped_quote_is_read_where_it_changes_nothing(line: str, route: str, status: int) -> None:
    (row,) = rows("combined", line)
    assert (row["route"], row["status"], row["bytes_out"]) == (route, status, 512)


@pytest.mark.parametrize(
    "request_line",
    ['GET /a" 404 9 "-" "x HTTP/1.1', 'GET /free HTTP/1.1" 200 0 "-" "-', 'GET /a" 200 5 "b" "c HTTP/1.1'],
)
def test_a_request_that_looks_like_the_rest_of_a_line_is_rejected(request_line: str) -> None:
    """It has two readings with different status and path; whoever sent it chooses none of them."""
    line = COMBINED.replace("GET /v1/items?a=b HTTP/1.1", request_line)
    assert "more than one way" in reason_of("combined", line)


WORDS: Final = st.text(st.sampled_from('ab "\\/ 0123[]-'), max_size=12)


@settings(max_examples=effort(40, 600), deadline=None)
@given(WORDS, WORDS, WORDS)
@example('x" 200 5 "', "-", "-")
@example("/a", '" "', '" 1 "')
def test_a_raw_line_is_read_right_or_rejected(path: str, referer: str, agent: str) -> None:
    """Of a server that escapes nothing: any reading that is given is the true one."""
    line = f'h - - [20/Nov/2026:10:00:00 +0000] "GET /{path}? HTTP/1.1" 200 512 "{referer}" "{agent}"'
    for row in decode("combined", line).columns.to_pylist():
        assert (row["status"], row["bytes_out"]) == (200, 512)
        assert row["route"] == f"/{path}"


@pytest.mark.parametrize(
    "line",
    [
        VHOST,
        "api.example.com " + COMBINED,
        "web-1 | " + COMBINED,
        "Nov 20 10:00:00 web nginx: " + COMBINED,
        "2026-11-20T10:00:00Z web " + COMBINED,
    ],
)
def test_the_words_of_a_prefix_are_not_taken_for_client_and_user(line: str) -> None:
    assert "not in Combined Log Format" in reason_of("combined", line, client_field="host")


def test_stray_quotes_cost_little() -> None:
    """A line of many quotes has readings beyond number: it is given up, soon."""
    line = COMBINED.replace("curl", '" "' * 10_000)
    assert decode("combined", "\n".join([line] * 20)).count == 20


@pytest.mark.parametrize(
    "form",
    [
        f"log_format main '{NGINX}';",
        f"log_format  main escape=default '{NGINX[:30]}'\n    '{NGINX[30:]}';\n",
        f"'{NGINX[:30]}' '{NGINX[30:]}'",
        'LogFormat "%h %l %u %t \\"%r\\" %>s %b" common',
        'logformat "%h %l %u %t \\"%r\\" %>s %b"',
    ],
)
def test_a_directive_is_read_as_it_stands_in_the_servers_file(form: str) -> None:
    decoded = AccessLog(format=form, account="x", client_field="host").decode(START.encode(), now_us=NOW_US)
    (row,) = decoded.columns.to_pylist()
    assert (row["route"], row["status"], row["bytes_out"]) == ("/v1/items", 200, 512)
    assert dict(row["tags"]) == {"client": "203.0.113.7"}


@pytest.mark.parametrize("form", ["%h %{c}a", "%{c}a %h", "%a %{c}a"])
def test_the_proxy_is_not_the_client(form: str) -> None:
    hosts = {"%h": "203.0.113.7", "%a": "203.0.113.7", "%{c}a": "10.0.0.1"}
    line = " ".join(hosts[part] for part in form.split(" ")) + START.removeprefix("203.0.113.7 - -")
    log = AccessLog(format=form + ' %t "%r" %>s %b', account="x", client_field="host")
    (row,) = log.decode(line.encode(), now_us=NOW_US).columns.to_pylist()
    assert dict(row["tags"]) == {"client": "203.0.113.7"}


def test_the_case_of_a_w3c_directive_has_no_meaning() -> None:
    """Passed over, it would leave the fields of before, and the lines after it would be misread."""
    body = (
        b"#Fields: date time cs-method cs-uri-stem sc-status time-taken\n2026-11-20 10:00:00 GET /a 200 300\n"
        b"#fields: date time cs-method cs-uri-stem time-taken sc-status\n2026-11-20 10:00:00 GET /a 300 200\n"
    )
    rows = AccessLog(format="w3c", account="x").decode(body, now_us=NOW_US).columns.to_pylist()
    assert [(row["status"], row["latency_us"]) for row in rows] == [(200, 300_000)] * 2


def test_w3c_fields_may_change_and_must_be_there() -> None:
    changed = IIS + "#Fields: date time cs-uri-stem sc-status time-taken\n2026-11-20 10:00:01 /b 404 1500\n"
    assert [row["route"] for row in rows("w3c", changed)] == ["/v1/items", "/b"]
    assert "#Fields:" in reason_of("w3c", "2026-11-20 10:00:01 /b 404 1500")
    assert "2 fields" in reason_of("w3c", "#Fields: date time cs-uri-stem\n2026-11-20 10:00:01")
    assert "date" in reason_of("w3c", "#Fields: time cs-uri-stem\n10:00:01 /a")
    log = AccessLog(format="w3c", account="acme")
    head, _, line = IIS.rpartition("#Fields")[0], "", IIS.splitlines(keepends=True)
    assert head
    assert log.decode("".join(line[:4]).encode(), now_us=NOW_US).count == 0
    assert len(log.decode(line[4].encode(), now_us=NOW_US).columns) == 1


def test_a_request_that_the_balancer_could_not_pass_on_has_no_latency() -> None:
    (row,) = rows("alb", ALB.replace("0.004 0.020 0.007", "-1 -1 -1").replace("GET https", "- https"))
    assert "latency_us" not in row
    assert "method" not in row
    grown = ALB + ' "a field of tomorrow" TID_1'
    assert rows("alb", grown) == rows("alb", ALB)


@pytest.mark.parametrize(
    ("form", "match"),
    [
        ("nginx", "is no format"),
        ("$remote_addr $request", "time"),
        ("$time_local $status", "request"),
        ("%t %U%m", "text between"),
        ("%{%H:%M}t %r", "offset"),
        ("%h 100% %t %r", "%%"),
        ("$time_local$request", "text between"),
    ],
)
def test_a_format_that_cannot_be_read_with_certainty_is_refused(form: str, match: str) -> None:
    with pytest.raises(BadParameter, match=match):
        AccessLog(format=form, account="acme")


@pytest.mark.parametrize(
    ("form", "field_map", "match"),
    [
        ("json", {"latency": "d"}, "latency_s"),
        ("combined", {"status": "x"}, "cannot be mapped"),
        (NGINX, {"key_id": "http_x"}, "no http_x"),
        ("json", {"tags.": "x"}, "tags"),
    ],
)
def test_a_field_map_that_says_nothing_here_is_refused(
    form: str, field_map: dict[str, str], match: str
) -> None:
    with pytest.raises(BadParameter, match=match):
        AccessLog(format=form, account="acme", field_map=field_map)


# --- Ids ------------------------------------------------------------------------------------------------------


def ids(body: str, source: str | None = None) -> list[str]:
    listed: list[str] = decode("combined", body, source=source).columns.column("id").to_pylist()
    return listed


def test_sources_tell_equal_lines_apart_and_copies_stay_one() -> None:
    body = f"{COMBINED}\n{COMBINED}\n"
    assert len({*ids(body), *ids(body, "web-1"), *ids(body, "web-2")}) == 6
    assert ids(body, "web-1") == ids(body.replace("\n", "\r\n"), "web-1")
    # A source is no part of a line.
    assert ids("b" + COMBINED, "a") != ids(COMBINED, "ab")


# --- Recognition ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "option"),
    [
        (START, "--log-format common"),
        (COMBINED, "--log-format combined"),
        (COMBINED + ' "-"', "--log-format nginx-main"),
        (VHOST, "--log-format vhost-combined"),
        (IIS, "--log-format w3c"),
        (ALB, "--log-format alb"),
        (CADDY, "--log-format json"),
        (NGINX_JSON, "--log-format json"),
        (OWN_JSON, "--log-format json --field-map …"),
        (COMBINED + " 0.031", "--log-format '…'"),
        ('{"id":"a","time":"x","account":"b"}', "--format jsonl"),
        ("time,account,requests\n2026-11-20,a,1", "--format csv"),
    ],
)
def test_a_file_is_recognised_by_its_lines(body: str, option: str) -> None:
    found = recognised(body.encode().split(b"\n"), NOW_US)
    assert found is not None
    assert found.option == option


@pytest.mark.parametrize("body", ["", "hello", "\0\xff", "{", "[1]", '{"id": 1, "account": "a"}'])
def test_other_files_are_not_recognised(body: str) -> None:
    assert recognised(body.encode().split(b"\n"), NOW_US) is None
