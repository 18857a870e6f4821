"""`ETag` of usage: the same tag is the same answer, found without a query; nothing booked since is ever missed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest

from tests.http.conftest import OPERATOR_KEY, Api
from tollkeeper.api.usage_answer import usage_response
from tollkeeper.api.usage_tag import is_named, usage_tag
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.installation import Installation
from tollkeeper.testing import unique
from tollkeeper.usage.freshness import Freshness


def send(api: Api, account: str, **fields: Any) -> None:
    event = {"id": unique("e"), "time": datetime.now(UTC).isoformat(), "account": account, "cost_nanos": 1}
    assert api("POST", "/tk/v1/events", event | fields).json()["accepted"] == 1


def asked(
    api: Api,
    account: str,
    tag: str | None = None,
    query: str = "",
    method: str = "GET",
    key: str = OPERATOR_KEY,
) -> httpx.Response:
    headers = {} if tag is None else {"If-None-Match": tag}
    return api(method, f"/tk/v1/usage?account={account}{query}", headers=headers, key=key)


@pytest.mark.parametrize(
    "query", ["", "&granularity=hour&from=2026-01-01", "&group_by=model&format=csv", "&limit=0"]
)
def test_what_has_not_changed_is_304_without_a_query_until_the_next_event(
    api: Api, account: str, query: str, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open buckets too: what is booked now is in the next answer, whatever was said before."""
    send(api, account)
    tags = [asked(api, account, query=query).headers["etag"]]
    for number in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(installation.store, "report", None)
            found = asked(api, account, tags[-1], query)
            assert (found.status_code, found.content, found.headers["etag"]) == (304, b"", tags[-1])
            assert found.headers["cache-control"] == "no-store"
            assert found.headers["x-as-of"].endswith("Z")
            head = asked(api, account, tags[-1], query, "HEAD")
            assert (head.status_code, head.content) == (304, b"")
        send(api, account)
        changed = asked(api, account, tags[-1], query)
        assert changed.status_code == 200
        if "limit=0" in query:
            assert changed.json()["totals"]["requests"] == number + 2
        tags.append(changed.headers["etag"])
        assert asked(api, account, query=query, method="HEAD").headers["etag"] == tags[-1]
    assert len(set(tags)) == 4


def test_another_accounts_event_changes_nothing(api: Api, account: str) -> None:
    other = unique("other")
    assert api("PUT", f"/tk/v1/accounts/{other}", {"name": "O"}).status_code == 201
    send(api, account)
    tag = asked(api, account).headers["etag"]
    send(api, other)
    assert asked(api, account, tag).status_code == 304


def test_a_correction_and_a_settlement_change_the_answer(
    api: Api, account: str, issue: Callable[..., tuple[str, str]]
) -> None:
    _, secret = issue()
    path = f"/v1/{account}"
    assert api("PUT", f"/tk/v1/routes/{unique('r')}", {"method": "POST", "path": path}).status_code == 201
    send(api, account, id=f"e-{account}")
    tag = asked(api, account).headers["etag"]
    amended = api("POST", f"/tk/v1/events/e-{account}/amend", {"correction_id": unique("c"), "cost_nanos": 9})
    assert amended.status_code == 200
    found = asked(api, account, tag)
    assert (found.status_code, found.json()["totals"]["cost_nanos"]) == (200, "9")
    tag = found.headers["etag"]
    hold = api("POST", "/tk/v1/authorize", {"key": secret, "method": "POST", "path": path}).json()["hold_id"]
    # What is held is no usage.
    assert asked(api, account, tag).status_code == 304
    assert api("POST", "/tk/v1/settle", {"hold_id": hold}).status_code == 200
    assert asked(api, account, tag).json()["totals"]["requests"] == 2


def test_no_two_callers_share_a_tag(api: Api, account: str, issue: Callable[..., tuple[str, str]]) -> None:
    """Although each is told the same: who guesses a tag learns nothing by it."""
    key_id, consumption = issue()
    _, management = issue(role="management")
    _, another = issue(role="management")
    send(api, account, key_id=key_id)
    callers = (OPERATOR_KEY, management, another, consumption)
    tags = [asked(api, account, key=key).headers["etag"] for key in callers]
    assert len(set(tags)) == 4
    for key, own in zip(callers, tags, strict=True):
        for tag in tags:
            assert asked(api, account, tag, key=key).status_code == (304 if tag == own else 200)


def test_an_answer_that_may_lack_something_has_no_tag(
    api: Api, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(api, account)
    tag = asked(api, account).headers["etag"]
    monkeypatch.setattr(Freshness, "lacks_nothing", lambda freshness: False)
    for named in (tag, "*"):
        found = asked(api, account, named)
        assert (found.status_code, found.json()["complete"], "etag" in found.headers) == (200, False, False)


def test_the_tag_is_about_the_form_and_the_question(api: Api, account: str) -> None:
    send(api, account)
    queries = ("", "&format=csv", "&limit=5", "&status=0", "&to=2027-01-01", "&measures=requests")
    assert len({asked(api, account, query=query).headers["etag"] for query in queries}) == len(queries)


def test_a_range_that_moves_on_is_another_answer() -> None:
    query = UsageQuery(account_id="a", from_us=0, to_us=3_600_000_000)
    report = UsageReport(rows=[], totals={"requests": 1}, row_count=0, as_of_us=5, complete=True)
    caller = ("operator", None, None)

    def tag(query: UsageQuery, report: UsageReport) -> str | None:
        return usage_tag(query, usage_response(query, report), form="json", caller=caller)

    first = tag(query, report)
    assert first is not None
    assert tag(query, msgspec.structs.replace(report, as_of_us=6)) == first
    assert tag(msgspec.structs.replace(query, to_us=7_200_000_000), report) != first
    assert tag(query, msgspec.structs.replace(report, totals={"requests": 2})) != first
    assert tag(query, msgspec.structs.replace(report, complete=False)) is None


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ('W/"a"', True),
        ('"a"', True),
        ('"x", W/"a" , "y"', True),
        ("*", True),
        ("", False),
        ("a", False),
        ('"A"', False),
        ('"a', False),
        ('w/"a"', False),
        ('"aa"', False),
        ('W/""', False),
    ],
)
def test_the_header_names_tags(header: str, named: bool) -> None:
    assert is_named(header, 'W/"a"') is named
