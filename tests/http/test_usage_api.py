"""The usage query over HTTP: its parameters, its pages, its totals, JSON and CSV."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.http.conftest import Api
from tollkeeper.api.usage_answer import csv_pieces
from tollkeeper.api.usage_params import UsageScope, parse_usage_query
from tollkeeper.domain.events import TIME_MIN_US
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.usage import DIMENSIONS, MEASURES, UsageQuery
from tollkeeper.errors import BadParameter, NotFound
from tollkeeper.testing import unique

NOW = datetime(2026, 2, 1, 10, 20, 30, tzinfo=UTC)
JANUARY = "from=2026-01-01&to=2026-02-01"


@pytest.fixture(scope="module")
def busy(api: Api) -> str:
    """An account with 60 events on three days, in two models, with two tags."""
    account = unique("busy")
    assert api("PUT", f"/tk/v1/accounts/{account}", {"name": "Busy"}).status_code == 201
    events = [
        {
            "id": f"busy-{index}",
            "time": f"2026-01-{10 + index % 3:02d}T{index % 24:02d}:00:00Z",
            "account": account,
            "model": "gpt-4o" if index % 2 else "gpt-4o-mini",
            "status": 429 if index % 10 == 0 else 200,
            "cost_nanos": 1000 + index,
            "tags": {"team": ["=cmd|' /C calc'!A0", "plain, with a comma"][index % 2]},
        }
        for index in range(60)
    ]
    assert api("POST", "/tk/v1/events", events).json()["accepted"] == 60
    return account


def ask(api: Api, account: str, query: str = "") -> dict[str, Any]:
    found = api("GET", f"/tk/v1/usage?account={account}&{JANUARY}{query}")
    assert found.status_code == 200, found.text
    answer: dict[str, Any] = found.json()
    return answer


def test_totals_are_the_sum_of_any_grouping(api: Api, busy: str) -> None:
    """To the nano, whatever is asked for, and money as text."""
    cost = sum(1000 + index for index in range(60))
    for query in (
        "",
        "&group_by=model",
        "&group_by=status,model",
        "&group_by=tag.team",
        "&granularity=hour",
        "&granularity=day&group_by=model",
        "&granularity=week&time_zone=Asia/Kolkata&week_start=sunday",
    ):
        found = ask(api, busy, query)
        assert found["totals"]["requests"] == sum(row["requests"] for row in found["rows"]) == 60
        assert found["totals"]["cost_nanos"] == str(cost)
        assert sum(int(row["cost_nanos"]) for row in found["rows"]) == cost
        assert found["complete"] is True
        assert found["as_of"].endswith("Z")


def test_filters_pick_events(api: Api, busy: str) -> None:
    assert ask(api, busy, "&model=gpt-4o")["totals"]["requests"] == 30
    assert ask(api, busy, "&model=gpt-4o,gpt-4o-mini")["totals"]["requests"] == 60
    assert ask(api, busy, "&model=gpt-4o&model=gpt-4o-mini")["totals"]["requests"] == 60
    assert ask(api, busy, "&status=429")["totals"]["requests"] == 6
    assert ask(api, busy, "&tag.team=plain\\,%20with%20a%20comma")["totals"]["requests"] == 30
    assert ask(api, busy, "&key=")["totals"]["requests"] == 60
    assert ask(api, busy, "&key=none")["rows"] == []


def test_pages_join_to_the_whole_answer(api: Api, busy: str) -> None:
    query = "&granularity=hour&group_by=model&sort=-requests,time"
    whole = ask(api, busy, query)
    rows: list[Any] = []
    offset: int | None = 0
    while offset is not None:
        page = ask(api, busy, f"{query}&limit=7&offset={offset}")
        assert page["totals"] == whole["totals"]
        assert page["row_count"] == whole["row_count"]
        rows += page["rows"]
        offset = page["next_offset"]
    assert rows == whole["rows"]
    only_totals = ask(api, busy, f"{query}&limit=0")
    assert (only_totals["rows"], only_totals["next_offset"]) == ([], None)


def test_an_answer_contains_the_event_that_was_just_acknowledged(api: Api, account: str) -> None:
    for index in range(5):
        event = {"id": f"e{index}", "time": "2026-01-31T00:00:00Z", "account": account, "cost_nanos": 1}
        assert api("POST", "/tk/v1/events", event).json()["accepted"] == 1
        assert ask(api, account)["totals"]["requests"] == index + 1


def test_the_default_range_has_what_happens_now(api: Api, account: str, installation: Any) -> None:
    """An event may carry a time that is minutes ahead, as its sender's clock is."""
    now = installation.clock.now()
    event = {"id": "now", "time": now.isoformat(), "account": account, "cost_nanos": 1}
    assert api("POST", "/tk/v1/events", event).json()["accepted"] == 1
    assert api("GET", f"/tk/v1/usage?account={account}").json()["totals"]["requests"] == 1


def test_csv_has_the_same_rows_and_nothing_to_execute(api: Api, busy: str) -> None:
    """A tag is text from the sender of requests: a spreadsheet must not run it."""
    query = (
        f"/tk/v1/usage?account={busy}&{JANUARY}&group_by=tag.team,model&measures=requests,cost_nanos,kinds"
    )
    found = api("GET", f"{query}&format=csv")
    assert found.headers["content-type"].startswith("text/csv")
    assert found.headers["x-row-count"] == "2"
    rows = list(csv.DictReader(io.StringIO(found.text)))
    expected = api("GET", query).json()["rows"]
    assert [row["tag:team"] for row in rows] == ["'=cmd|' /C calc'!A0", "plain, with a comma"]
    assert [row["cost_nanos"] for row in rows] == [row["cost_nanos"] for row in expected]
    assert rows[0]["kinds"] == '{"request":30}'


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_begins_like_a_formula(begin: str) -> None:
    """Header cells too; numbers stay numbers, negative ones as well."""
    query = UsageQuery(account_id="a", from_us=0, to_us=1, group_by=(f"tag:{begin}", "model"))
    rows = [{f"tag:{begin}": f"{begin}1+1", "model": begin, "cost_nanos": -5}]
    header, row = csv.reader(io.StringIO("".join(csv_pieces(query, rows)), newline=""))
    assert row[:2] == [f"'{begin}1+1", f"'{begin}"]
    assert row[query.measures.index("cost_nanos") + 2] == "-5"
    assert header[0] == f"tag:{begin}"


def test_csv_comes_in_pieces(busy: str) -> None:
    query = UsageQuery(account_id="a", from_us=0, to_us=1, measures=("requests",))
    pieces = list(csv_pieces(query, [{"requests": index} for index in range(1201)]))
    assert len(pieces) == 4
    assert "".join(pieces).split() == ["requests", *(str(index) for index in range(1201))]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("frm=2026-01-01", "frm"),
        ("Model=gpt-4o", "Model"),
        ("tag.=x", "tag."),
        ("from=yesterday", "from"),
        ("from=2026-01-01T00:00:00", "from"),
        ("from=2026-01-01T00:00:00+02:00", "from"),
        ("from=2026-13-01", "from"),
        ("from=2026-01-02&to=2026-01-01", "from"),
        ("from=2026-01-01&from=2026-01-02", "from"),
        ("granularity=year", "granularity"),
        ("time_zone=Mars/Base", "time_zone"),
        ("time_zone=../../etc/passwd", "time_zone"),
        ("time_zone=America", "time_zone"),
        ("time_zone=right/UTC&granularity=day", "time_zone"),
        ("time_zone=localtime&granularity=day", "time_zone"),
        ("week_start=1", "week_start"),
        ("group_by=colour", "group_by"),
        ("group_by=model,model", "group_by"),
        ("measures=money", "measures"),
        ("sort=tokens&measures=requests", "sort"),
        ("status=ok", "status"),
        ("limit=-1", "limit"),
        ("limit=50001", "limit"),
        ("limit=1e3", "limit"),
        ("offset=x", "offset"),
        ("model=%00", "model"),
        ("format=xml", "format"),
        ("format=json&format=csv", "format"),
    ],
)
def test_a_bad_parameter_is_named(api: Api, account: str, query: str, field: str) -> None:
    """What is unknown is an error, never ignored: an ignored filter gives a wrong number."""
    refused = api("GET", f"/tk/v1/usage?account={account}&{query}")
    assert refused.status_code == 400, refused.text
    assert (refused.json()["code"], refused.json()["field"]) == ("bad_parameter", field)
    assert field in refused.json()["detail"]


def test_a_plus_that_became_a_space_is_explained(api: Api, account: str) -> None:
    refused = api("GET", f"/tk/v1/usage?account={account}&from=2026-01-01T00:00:00+02:00")
    assert "%2B" in refused.json()["detail"]


def test_a_query_that_is_no_text_is_refused(api: Api) -> None:
    assert api("GET", "/tk/v1/usage?model=%ff").json()["code"] == "bad_input"
    assert api("GET", "/tk/v1/usage?" + "&".join(["model=a"] * 201)).json()["code"] == "bad_input"


def test_a_range_of_all_time_is_answered(api: Api, busy: str) -> None:
    found = api("GET", f"/tk/v1/usage?account={busy}&from=0001-01-01&to=9999-12-31&granularity=month")
    assert found.json()["totals"]["requests"] == 60


def test_an_unknown_account_is_not_an_empty_one(api: Api) -> None:
    """Zero usage of a mistyped account would look like good news."""
    assert api("GET", "/tk/v1/usage?account=nobody").status_code == 404


def test_the_operator_asks_about_all_or_some_accounts(api: Api, busy: str, account: str) -> None:
    found = api("GET", f"/tk/v1/usage?{JANUARY}&group_by=account&account={busy},{account}").json()
    assert [row["account"] for row in found["rows"]] == [busy]
    everybody = api("GET", f"/tk/v1/usage?{JANUARY}&group_by=account").json()
    assert busy in [row["account"] for row in everybody["rows"]]


def test_every_measure_and_dimension_can_be_asked_for(api: Api, busy: str) -> None:
    found = ask(api, busy, f"&measures={','.join(MEASURES)}&group_by=model&limit=1")
    assert set(found["rows"][0]) == {"model", *MEASURES}
    for name in DIMENSIONS:
        assert ask(api, busy, f"&group_by={name}")["totals"]["requests"] == 60


class TestParameters:
    """`parse_usage_query`, which the command line uses too."""

    def test_the_default_is_everything_in_whole_hours(self) -> None:
        query = parse_usage_query([], now=NOW)
        assert query.to_us == to_us(datetime(2026, 2, 1, 11, tzinfo=UTC))
        assert query.from_us == TIME_MIN_US

    def test_the_default_range_reaches_clocks_that_are_ahead(self) -> None:
        query = parse_usage_query([], now=datetime(2026, 2, 1, 10, 58, tzinfo=UTC))
        assert query.to_us == to_us(datetime(2026, 2, 1, 12, tzinfo=UTC))

    def test_a_date_is_midnight_in_the_time_zone(self) -> None:
        params = {"from": "2026-07-01", "to": "2026-08-01", "time_zone": "Europe/Berlin"}
        query = parse_usage_query(params.items(), now=NOW)
        assert query.from_us == to_us(datetime(2026, 6, 30, 22, tzinfo=UTC))

    def test_one_account_is_a_scope_and_several_are_a_filter(self) -> None:
        assert parse_usage_query([("account", "a")], now=NOW).account_id == "a"
        query = parse_usage_query([("account", "a"), ("account", "b")], now=NOW)
        assert (query.account_id, query.filters) == (None, {"account": ("a", "b")})

    def test_a_scope_cannot_be_left(self) -> None:
        scope = UsageScope("a", "k1")
        query = parse_usage_query([("account", "a"), ("key", "k1")], scope=scope, now=NOW)
        assert (query.account_id, query.filters) == ("a", {"key": ("k1",)})
        assert parse_usage_query([], scope=scope, now=NOW).filters == {"key": ("k1",)}
        for params in ([("account", "b")], [("account", "a,b")], [("key", "k1,k2")], [("key", "")]):
            with pytest.raises(NotFound):
                parse_usage_query(params, scope=scope, now=NOW)

    def test_lists_take_commas_repeats_and_escapes(self) -> None:
        params = [("group_by", "model,tag.team"), ("group_by", "key"), ("tag:team", "a\\,b,c"), ("model", "")]
        query = parse_usage_query(params, now=NOW)
        assert query.group_by == ("model", "tag:team", "key")
        assert query.filters == {"tag:team": ("a,b", "c"), "model": ("",)}

    def test_a_range_at_the_ends_of_time_is_no_crash(self) -> None:
        query = parse_usage_query([("to", "0001-01-02")], now=NOW)
        assert query.to_us - query.from_us == 1
        for name in ("from", "to"):
            params = [(name, "0001-01-01"), ("time_zone", "Asia/Kolkata")]
            with pytest.raises(BadParameter) as refused:
                parse_usage_query(params, now=NOW)
            assert refused.value.field == name
