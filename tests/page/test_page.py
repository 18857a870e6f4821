"""The page in a real browser: its login, its numbers, and what must never happen in it."""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal

import httpx
import pytest

from tests.page.browser import Tab
from tests.page.conftest import HOSTILE, OPERATOR_KEY, Served
from tollkeeper.http.page import built_files

Open = Callable[..., Tab]
VIEWS = ("", "?view=accounts", "?view=account&id=page-acme", "?view=keys", "?view=explore", "?view=audit")
WRONG_KEY_WORDS = "not known"
GZIP_BYTES_MAX = 80_000


def test_the_page_is_as_small_as_it_must_be() -> None:
    """All files together, as a browser loads them: each view opens at once, over a telephone too."""
    sizes = {path: len(gzip.compress(file.body, mtime=0)) for path, file in built_files().items()}
    assert sum(sizes.values()) <= GZIP_BYTES_MAX, sizes


def test_a_key_is_pasted_once_and_no_script_can_read_what_stands_for_it(tab: Open, served: Served) -> None:
    page = tab()
    page.log_in(served.keys["page-acme-admin"])
    assert page.page("url") == served.url
    (cookie,) = page.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("tk_login", True, "Strict")
    assert (cookie["path"], cookie["domain"], cookie["secure"]) == ("/tk/v1", "127.0.0.1", False)
    stored = page.page(
        "evaluate", "JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage}])"
    )
    assert cookie["value"] not in stored
    assert served.keys["page-acme-admin"] not in stored
    assert served.keys["page-acme-admin"] not in page.page("content")
    # Reloaded, the page is logged in as before.
    page.page("reload")
    page.wait_for("#main")


def test_a_wrong_key_is_refused_in_words(tab: Open) -> None:
    page = tab()
    page.go()
    page.fill("input[type=password]", "mk_wrong")
    page.press("Enter")
    page.wait_for("[role=alert]")
    assert WRONG_KEY_WORDS in page.text("[role=alert]")
    assert page.cookies() == []


def test_logged_out_the_cookie_is_good_for_nothing(tab: Open, served: Served) -> None:
    page, thief = tab(), tab()
    page.log_in(served.keys["page-acme-admin"])
    (cookie,) = page.cookies()
    page.click("button:has-text('Log out')")
    page.wait_for("input[type=password]")
    assert page.cookies() == []
    thief.go()
    asked = "fetch('tk/v1/keys', {credentials: 'same-origin'}).then((answer) => answer.status)"
    assert thief.page("evaluate", asked) == 401
    sent = httpx.get(f"{served.url}tk/v1/keys", headers={"Cookie": f"tk_login={cookie['value']}"})
    assert sent.status_code == 401
    thief.report()


def test_the_numbers_are_those_of_the_api_and_plain_sums_of_the_events(tab: Open, served: Served) -> None:
    """To the last nano, by two ways that share no code with the page."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for event in served.events:
        if event["key_id"] == "page-acme-live":
            tokens = event["tokens"]["prompt"] + event["tokens"]["completion"]
            for at, amount in enumerate((int(event["cost_nanos"]), 1, tokens)):
                sums[event["model"]][at] += amount
    page = tab()
    page.log_in(served.keys["page-acme-admin"])
    shown = {row[0][0]: [exact for _, exact in row[1:4]] for row in page.table("Models and endpoints")}
    assert shown == {
        model: [_money(cost), f"{requests:,}", f"{tokens:,}"]
        for model, (cost, requests, tokens) in sums.items()
    }
    query = "usage?from=2026-01-01&group_by=model&measures=cost_nanos,requests,tokens"
    by_api = served.api(query, served.keys["page-acme-admin"])
    assert {
        row["model"]: [int(row["cost_nanos"]), row["requests"], row["tokens"]] for row in by_api["rows"]
    } == sums


def test_every_request_is_listed_once_with_its_cost(tab: Open, served: Served) -> None:
    """Newest first, over the pages of the server; the sheet of one adds up to what was booked."""
    mine = [event for event in served.events if event["key_id"] == "page-acme-live"]
    page = tab()
    page.log_in(served.keys["page-acme-admin"])
    page.show("?view=requests")
    for listed_count in (100, 150, len(mine)):
        page.click("button:has-text('Older requests')")
        page.wait_for(f"table.events tbody tr:nth-child({listed_count})")
    listed = page.table("Requests")
    assert [(row[3][0], Decimal(row[5][0]) * 10**9) for row in listed] == [
        (event["model"], int(event["cost_nanos"])) for event in mine
    ]
    page.click("[data-row]")
    page.wait_for("dialog")
    assert _money(int(mine[0]["cost_nanos"])) in page.text("dialog")


def test_two_accounts_see_nothing_of_each_other(tab: Open, served: Served) -> None:
    mine, theirs = tab(), tab()
    for page, own, foreign in ((mine, "page-acme", "page-other"), (theirs, "page-other", "page-acme")):
        page.log_in(served.keys[f"{own}-admin"])
        for view in ("", "?view=keys", "?view=audit"):
            page.show(view)
            assert f"{foreign}-" not in page.text(), view
            assert not any(f"{foreign}-" in path for _, path, _ in page.answers()), view
            assert f"{own}-" in page.text(), view
    # A pasted link to what is another's: there is no such thing.
    mine.show("?view=account&id=page-other")
    assert "Other Ltd" not in mine.text()
    mine.report()


def test_hostile_names_are_text(tab: Open, served: Served) -> None:
    """Names of accounts, keys, models and tags come from customers and from what they call."""
    page = tab()
    page.log_in(OPERATOR_KEY)
    for view in VIEWS:
        page.show(view)
        assert (
            page.page("evaluate", "document.querySelectorAll('img, [onerror], script:not([src])').length")
            == 0
        )
        if view:
            assert HOSTILE in page.text(), view


@pytest.mark.parametrize(
    ("who", "theme"),
    [("operator", "light"), ("operator", "dark"), ("page-acme-admin", "light"), ("page-acme-live", "dark")],
)
def test_a_screen_reader_and_every_eye_can_use_it(tab: Open, served: Served, who: str, theme: str) -> None:
    """No finding of axe-core: on the form, and on the first view of each role."""
    page = tab(colorScheme=theme)
    if who == "operator":
        page.go()
        page.wait_for("input[type=password]")
        assert page.axe() == []
    page.log_in(OPERATOR_KEY if who == "operator" else served.keys[who])
    page.settle()
    assert page.axe() == []


def _money(nanos: int) -> str:
    """Exact, with at least two places: as the page writes it beside a rounded amount."""
    whole, rest = divmod(nanos, 1_000_000_000)
    return f"{whole:,}.{f'{rest:09d}'.rstrip('0').ljust(2, '0')}"
