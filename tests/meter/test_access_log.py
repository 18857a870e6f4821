"""Access logs: the figures of a real one, ids that make repeats harmless, odd lines that servers write."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.effort import effort
from tests.traces import DATA, needs_traces
from tollkeeper.domain.events import parse_time_us
from tollkeeper.domain.instants import from_us
from tollkeeper.meter.access_log import LINE_BYTES_MAX, AccessLog, ClientField
from tollkeeper.meter.decode import Decoded
from tollkeeper.meter.fields import EVENT_SCHEMA

NOW_US = parse_time_us("2026-03-01T00:00:00Z")
LINE = (
    '203.0.113.9 - ann [17/May/2015:10:05:03 +0000] "GET /a/b?q=1 HTTP/1.1" 200 1234 '
    '"http://example.com/" "Mozilla/5.0 (X11)"'
)


def decode(*lines: str | bytes, client_field: ClientField | None = None, common: bool = False) -> Decoded:
    body = b"\n".join(line.encode() if isinstance(line, str) else line for line in lines)
    log = AccessLog(format="common" if common else "combined", account="acme", client_field=client_field)
    return checked(log.decode(body, now_us=NOW_US))


def checked(decoded: Decoded) -> Decoded:
    assert decoded.columns.schema == EVENT_SCHEMA
    decoded.columns.validate(full=True)
    assert decoded.count == len(decoded.columns) + len(decoded.rejections)
    assert len(decoded.indexes) == len(decoded.columns)
    return decoded


def row_of(line: str, **options: Any) -> dict[str, Any]:
    """Return the one row of *line*, without absent values."""
    (row,) = decode(line, **options).columns.to_pylist()
    return {name: value for name, value in row.items() if value is not None}


def rejection_of(line: str | bytes, **options: Any) -> tuple[str, str]:
    (rejection,) = decode(line, **options).rejections
    assert 10 < len(rejection.reason) < 300
    return rejection.field, rejection.code


def with_request(request: str) -> str:
    return LINE.replace("GET /a/b?q=1 HTTP/1.1", request)


# --- The real log -------------------------------------------------------------------------------------------


@needs_traces
def test_a_real_log_gives_its_known_figures() -> None:
    """Counts and bytes by status, method, day and hour, and distinct paths and hosts, to the last one."""
    expected = json.loads((DATA / "expected_totals.json").read_text())["files"]["apache_access.log.gz"]
    body = gzip.decompress((DATA / "apache_access.log.gz").read_bytes())
    decoded = checked(
        AccessLog(format="combined", account="a", client_field="host").decode(body, now_us=NOW_US)
    )
    rows = decoded.columns.to_pylist()
    assert not decoded.rejections
    assert (len(rows), len({row["id"] for row in rows})) == (expected["rows"], expected["rows"])
    assert sum(row["bytes_out"] for row in rows) == expected["totals"]["bytes"]

    def figures(key: Any) -> dict[str, dict[str, int]]:
        counts: Counter[str] = Counter()
        octets: Counter[str] = Counter()
        for row in rows:
            counts[key(row)] += 1
            octets[key(row)] += row["bytes_out"]
        return {name: {"bytes": octets[name], "count": counts[name]} for name in counts}

    def hour(row: dict[str, Any]) -> str:
        return from_us(row["occurred_at_us"]).strftime("%Y-%m-%dT%H")

    assert figures(lambda row: str(row["status"])) == expected["per_status"]
    assert figures(lambda row: row["method"]) == expected["per_method"]
    assert figures(lambda row: hour(row)[:10]) == expected["per_day"]
    assert figures(hour) == expected["per_hour"]
    assert len({row["route"] for row in rows}) == expected["distinct"]["path"]
    assert len({row["tags"][0][1] for row in rows}) == expected["distinct"]["host"]
    by_path, by_host = figures(lambda row: row["route"]), figures(lambda row: row["tags"][0][1])
    assert all(by_path[path] == figure for path, figure in expected["top10_path"])
    assert all(by_host[host] == figure for host, figure in expected["top10_host"])
    first, last = (from_us(at(row["occurred_at_us"] for row in rows)).isoformat() for at in (min, max))
    assert (first, last) == (expected["min_time"], expected["max_time"])


# --- Ids ----------------------------------------------------------------------------------------------------

some_lines = st.lists(
    st.sampled_from([LINE, LINE.replace("200", "404"), with_request("POST /x HTTP/1.1"), "nonsense", ""]),
    max_size=12,
)


@settings(max_examples=effort(20, 100), deadline=None)
@given(some_lines, st.data())
def test_ids_do_not_depend_on_pieces_or_order(lines: list[str], data: st.DataObject) -> None:
    """However a file is cut at line ends, ids are the same; in another order it is the same set of ids."""
    expected = decode(*lines).columns.column("id").to_pylist()
    assert len(set(expected)) == len(expected)
    log = AccessLog(format="combined", account="acme")
    cut = data.draw(st.integers(0, len(lines)))
    ids: list[str] = []
    for piece in (lines[:cut], lines[cut:]):
        body = "".join(line + data.draw(st.sampled_from(["\n", "\r\n"])) for line in piece)
        ids += checked(log.decode(body.encode(), now_us=NOW_US)).columns.column("id").to_pylist()
    assert ids == expected
    shuffled = data.draw(st.permutations(lines))
    assert sorted(decode(*shuffled).columns.column("id").to_pylist()) == sorted(expected)


def test_an_id_is_stable_across_releases() -> None:
    """A file read before an upgrade and again after it must still count once."""
    ids = decode(LINE, LINE).columns.column("id").to_pylist()
    assert ids == ["log-04e4afb83106ff4d51da6b742b20193b", "log-69da801fc195ebf744a21be1b80dc838"]


# --- Lines --------------------------------------------------------------------------------------------------


def test_a_line_becomes_a_row() -> None:
    row = row_of(LINE)
    assert row.pop("id").startswith("log-")
    assert row == {
        "occurred_at_us": parse_time_us("2015-05-17T10:05:03Z"),
        "account": "acme",
        "method": "GET",
        "route": "/a/b",
        "kind": "request",
        "status": 200,
        "bytes_out": 1234,
    }


@pytest.mark.parametrize(
    ("client_field", "tags"),
    [("host", [("client", "203.0.113.9")]), ("user", [("client", "ann")]), ("ident", None), (None, None)],
)
def test_the_client_is_the_field_that_the_provider_names(client_field: Any, tags: Any) -> None:
    assert row_of(LINE, client_field=client_field).get("tags") == tags


def test_the_common_format_ends_with_the_bytes() -> None:
    common = LINE.partition(' "http')[0]
    assert row_of(common, common=True)["bytes_out"] == 1234
    assert rejection_of(common) == ("", "malformed")
    assert rejection_of(LINE, common=True) == ("", "malformed")
    assert "combined format" in decode(LINE, common=True).rejections[0].reason
    assert "common format" in decode(common).rejections[0].reason


@pytest.mark.parametrize(
    ("request_line", "method", "route"),
    [
        ("GET / HTTP/2.0", "GET", "/"),
        ("GET /x HTTP/2", "GET", "/x"),
        ("GET /old", "GET", "/old"),
        ("GET  /two  HTTP/1.1", "GET", "/two"),
        ("OPTIONS * HTTP/1.0", "OPTIONS", "*"),
        ("GET http://example.com/x?y HTTP/1.1", "GET", "/x"),
        ("GET https://[::1]:8443 HTTP/1.1", "GET", "/"),
        ("CONNECT example.com:443 HTTP/2.0", "CONNECT", "example.com:443"),
        ("GET /a b HTTP/1.1", "GET", "/a b"),
        (r"GET /say\"hi\" HTTP/1.1", "GET", r"/say\"hi\""),
        ("GET /a?b=/c?d HTTP/1.1", "GET", "/a"),
        ("-", None, None),
        ("", None, None),
        ("GET", None, None),
        ("GET ?x HTTP/1.1", None, None),
        (r"\x16\x03\x01 \x00", None, None),
        ("M" * 16 + " /x HTTP/1.1", "M" * 16, "/x"),
    ],
)
def test_request_lines_of_all_kinds_count(request_line: str, method: str | None, route: str | None) -> None:
    row = row_of(with_request(request_line))
    assert (row.get("method"), row.get("route")) == (method, route)


def test_paths_too_long_for_a_route_stay_apart() -> None:
    """Real logs have them; they are cut to the bound of a route without becoming one."""
    routes = [row_of(with_request(f"GET /{'x' * 600}{end} HTTP/1.1"))["route"] for end in ("1", "2", "1?q")]
    assert [len(route) for route in routes] == [512] * 3
    assert routes[0] == routes[2] != routes[1]
    assert row_of(with_request(f"GET /{'x' * 511} HTTP/1.1"))["route"] == "/" + "x" * 511


def test_hosts_users_and_times_of_all_kinds() -> None:
    assert row_of(LINE.replace("203.0.113.9", "2001:db8::1"), client_field="host")["tags"] == [
        ("client", "2001:db8::1")
    ]
    assert row_of(LINE.replace("ann", "ann lee [x]"), client_field="user")["tags"] == [
        ("client", "ann lee [x]")
    ]
    shifted = row_of(LINE.replace("10:05:03 +0000", "10:05:03 -0330"))
    assert shifted["occurred_at_us"] == parse_time_us("2015-05-17T10:05:03-03:30")
    assert row_of(LINE.replace(" 1234 ", " - "))["bytes_out"] == 0
    assert "status" not in row_of(LINE.replace(" 200 ", " - "))
    assert row_of(LINE.replace("Mozilla", r"\"Moz\\"))["status"] == 200


def test_bytes_that_are_not_utf8_are_shown_escaped() -> None:
    decoded = decode(LINE.encode().replace(b"/a/b", b"/\xff\xc3\xa9"))
    assert decoded.columns.column("route").to_pylist() == [r"/\xffé"]


@pytest.mark.parametrize(
    ("line", "field", "code"),
    [
        ("nonsense", "", "malformed"),
        (LINE[:-1], "", "malformed"),
        (LINE.replace(" 1234", ""), "", "malformed"),
        (LINE.replace(" 200 ", " 20 "), "", "malformed"),
        (LINE + " extra", "", "malformed"),
        (LINE.replace("[17", "17"), "", "malformed"),
        (LINE + "x" * LINE_BYTES_MAX, "", "malformed"),
        ("\0" * 50, "", "malformed"),
        (with_request("M" * 17 + " /x HTTP/1.1"), "method", "out_of_range"),
        (LINE.replace("ann", "a" * 257), "tags.client", "out_of_range"),
        (LINE.replace("1234", "9" * 18), "bytes_out", "out_of_range"),
        (LINE.replace("1234", "9" * 6000), "bytes_out", "out_of_range"),
        (LINE.replace("17/May", "31/Feb"), "time", "bad_time"),
        (LINE.replace("17/May", "17/Mai"), "time", "bad_time"),
        (LINE.replace("+0000", "+0060"), "time", "bad_time"),
        (LINE.replace("+0000", "+9900"), "time", "bad_time"),
        (LINE.replace("2015", "0000"), "time", "bad_time"),
        (LINE.replace("2015", "1999"), "time", "time_too_old"),
        (LINE.replace("2015", "2027"), "time", "time_in_future"),
    ],
    ids=lambda value: ascii(value)[-40:],
)
def test_a_bad_line_is_rejected_with_its_field_and_sinks_no_other(line: str, field: str, code: str) -> None:
    assert rejection_of(line, client_field="user") == (field, code)
    decoded = decode(LINE, "", line, LINE, client_field="user")
    assert decoded.indexes.tolist() == [0, 2]
    assert [r.index for r in decoded.rejections] == [1]


@settings(max_examples=effort(40, 200), deadline=None)
@given(st.binary(max_size=60), st.integers(0, len(LINE)), st.integers(0, 20))
def test_arbitrary_bytes_are_rejected_not_raised(piece: bytes, at: int, cut: int) -> None:
    line = LINE.encode()
    decode(piece, line[:at] + piece + line[at + cut :], client_field="host")


def test_an_empty_piece_holds_nothing() -> None:
    assert decode().count == decode("", " ", "\r").count == 0
