"""The profile that docs/profiles.md shows is a whole one: it serves and refuses as the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from tollkeeper.domain.catalog import Account, Key, Limit, Route
from tollkeeper.http.profiles import ProfileSite
from tollkeeper.installation import Installation
from tollkeeper.profiles import NAMES
from tollkeeper.profiles.base import Call, Metered, Profile, Reply
from tollkeeper.services.declaration import parse_declaration
from tollkeeper.testing import NOON, set_up, unique

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "profiles.md").read_text()


def example() -> Any:
    """Return the profile of the page's module."""
    (source,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "PROFILE = " in code]
    module: dict[str, Any] = {"__name__": "tally"}
    exec(compile(source, "docs/profiles.md", "exec"), module)
    return module["PROFILE"]


def test_the_example_of_the_page_serves_and_refuses(site: Installation) -> None:
    tally: Profile = example()
    (route,) = parse_declaration(tally.catalog)
    assert isinstance(route, Route)
    account, key_id = unique("acct"), unique("key")
    # A name that keys may have: the example itself is not installed.
    tally.name = "native"
    limit = Limit(name="rpm", amount=2)
    secret = set_up(site, Account(id=account, name="Acme"), Key(id=key_id, account=account, limits=[limit]))[
        key_id
    ]
    served = ProfileSite(tally, site.desk(tally))

    def ask(path: str = "/count", *, method: str = "GET", key: str = secret) -> Reply:
        return served.answer(Call(method, path, {}, {"x-tally-key": key}, b"", {}, NOON, "req_1"))

    assert ask() == Reply(200, {"count": 0})
    assert ask(key="other") == Reply(401, {"error": "unknown key"})
    assert ask("/other") == Reply(404, {"error": "no such endpoint"})
    assert ask(method="POST") == Reply(405, {"error": "no such endpoint"})
    stored = site.directory.key(key_id)
    assert stored is not None
    metered = Metered(stored, route, served.desk.standings(stored), NOON, "req_1")
    assert tally.metered_headers(metered) == [("X-Left-rpm", "1")]
    assert ask().status == 200
    refused = ask()
    assert (refused.status, refused.body) == (429, {"error": "rate_limited"})
    assert tally.failed(Call("GET", "/count", {}, {}, b"", {}, NOON, "req_1"), ValueError()).status == 500


def test_every_profile_has_its_line_on_the_page() -> None:
    assert tuple(sorted(re.findall(r"^\| `(\w+)` \| .* \| .* \| `\w+_…` \|$", PAGE, re.MULTILINE))) == NAMES


def test_the_declarations_of_the_page_are_accepted() -> None:
    for source in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL):
        assert parse_declaration(source)
