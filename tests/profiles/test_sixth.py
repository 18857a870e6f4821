"""
A sixth profile is one file: the one that docs/profiles.md shows, put among the modules of the package or
brought by another package, is found, configured, served and metered like the five.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.conftest import Install
from tollkeeper import profiles
from tollkeeper.catalog.declaration import parse_declaration
from tollkeeper.domain.catalog import Account, Key, Limit, Route
from tollkeeper.embedded import Tollkeeper
from tollkeeper.errors import BadParameter, Conflict
from tollkeeper.http.app import build_app
from tollkeeper.installation import Installation
from tollkeeper.profiles import load, names
from tollkeeper.profiles.base import Call
from tollkeeper.testing import NOON, set_up, unique

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "profiles.md").read_text()
FIVE: Final = ("anylayer", "cheapestinference", "regpilot", "regsn", "shoal")


def source() -> str:
    """Return the module of the page."""
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "PROFILE = " in code]
    return str(found)


def forget() -> None:
    for remembered in (
        profiles.names,
        profiles.load,
        profiles._modules,
        profiles._brought,
        profiles._webhook_profiles,
    ):
        remembered.cache_clear()
    for module in ("tollkeeper.profiles.tally", "tollkeeper_tally"):
        sys.modules.pop(module, None)
    vars(profiles).pop("tally", None)


@pytest.fixture
def as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example is a file among the modules of the package."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "tally.py").write_text(source())
    monkeypatch.setattr(profiles, "__path__", [*profiles.__path__, str(tmp_path / "modules")])
    forget()
    yield
    monkeypatch.undo()
    forget()


Bring = Callable[..., None]


@pytest.fixture
def bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bring]:
    """Install a package that brings a profile."""

    def bring(name: str = "tally", code: str = "", names_it: str = "tollkeeper_tally:PROFILE") -> None:
        site = tmp_path / "packages"
        about = site / "tollkeeper_tally-1.0.dist-info"
        about.mkdir(parents=True)
        (site / "tollkeeper_tally.py").write_text(code or source())
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tollkeeper-tally\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[tollkeeper.profiles]\n{name} = {names_it}\n")
        monkeypatch.syspath_prepend(str(site))
        forget()

    yield bring
    monkeypatch.undo()
    forget()


def asked(app: Any, method: str, path: str, key: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://toll") as client:
            return await client.request(method, path, headers={"X-Tally-Key": key})

    return asyncio.run(ask())


def tally_serves_and_meters(install: Install) -> None:
    """Assert that an installation speaks the example, as far as the page says what it does."""
    site = install(root_profile="tally", profile_settings='{"tally": {"unknown_key_status": 404}}')
    account, key_id = unique("acct"), unique("key")
    key = Key(id=key_id, account=account, profile="tally", limits=[Limit(name="rpm", amount=3)])
    (route,) = parse_declaration(load("tally").catalog)
    assert isinstance(route, Route)
    secret = set_up(site, Account(id=account, name="Acme"), key, route)[key_id]
    assert secret.startswith("tally_")
    assert len(secret) == len("tally_") + 32
    app = build_app(site)
    try:
        for base in ("", "/tally"):
            found = asked(app, "GET", f"{base}/count", secret)
            assert (found.status_code, found.json()) == (200, {"count": 0})
            found = asked(app, "GET", f"{base}/count", "other")
            assert (found.status_code, found.json()) == (404, {"error": "unknown key"})
            assert asked(app, "GET", f"{base}/other", secret).status_code == 404
            assert asked(app, "POST", f"{base}/count", secret).status_code == 405
        metered = Tollkeeper(site).middleware(_hello)
        found = asked(metered, "GET", "/any", secret)
        assert (found.status_code, found.headers["x-left-rpm"]) == (200, "0")
        found = asked(metered, "GET", "/any", secret)
        assert (found.status_code, found.json()) == (429, {"error": "rate_limited"})
        found = asked(app, "GET", "/count", secret)
        assert (found.status_code, found.json()) == (429, {"error": "rate_limited"})
        assert int(found.headers["retry-after"]) == 60
    finally:
        app.close()


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.mark.usefixtures("as_a_module")
def test_a_file_among_the_modules_is_a_profile(install: Install) -> None:
    assert names() == tuple(sorted((*FIVE, "tally")))
    tally_serves_and_meters(install)


def test_a_package_brings_a_profile(install: Install, bring: Bring) -> None:
    bring()
    assert names() == tuple(sorted((*FIVE, "tally")))
    tally_serves_and_meters(install)


@pytest.mark.usefixtures("as_a_module")
def test_it_words_an_unexpected_failure() -> None:
    call = Call("GET", "/count", {}, {}, b"", {}, NOON, "req_1")
    assert load("tally").failed(call, ValueError()).status == 500


@pytest.mark.usefixtures("as_a_module")
def test_its_settings_are_checked(install: Install) -> None:
    with pytest.raises(
        BadParameter, match="unknown_key_status of profile tally cannot be 500: it must be one of 401, 404"
    ):
        install(profile_settings='{"tally": {"unknown_key_status": 500}}')


def test_what_a_package_brings_must_be_a_profile(install: Install, bring: Bring) -> None:
    bring(code="class Half:\n    name = 'tally'\nPROFILE = Half()\n")
    with pytest.raises(BadParameter) as caught:
        build_app(install())
    assert str(caught.value) == (
        "profile 'tally', which tollkeeper_tally:PROFILE brings, is none: it has no key_prefix, settings, "
        "setting_types, endpoints, catalog, refusals_count, credential, not_found, failed, refused, metered_headers"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"code": "import nothing_like_it"}, "cannot be imported: ModuleNotFoundError"),
        ({"names_it": "tollkeeper_tally:OTHER"}, "cannot be imported: AttributeError"),
        ({"name": "tk"}, "cannot have that name"),
        ({"name": "healthz"}, "cannot have that name"),
        ({"name": "a-b"}, "cannot have that name"),
        ({"name": "count"}, "calls itself 'tally': name both alike"),
    ],
)
def test_a_profile_that_cannot_be_used_is_an_error_at_start(
    install: Install, bring: Bring, options: dict[str, str], said: str
) -> None:
    bring(**options)
    with pytest.raises(BadParameter, match=said):
        build_app(install())


def test_a_package_cannot_take_the_name_of_one_of_ours(bring: Bring) -> None:
    shoal = load("shoal")
    bring(name="shoal")
    assert names() == FIVE
    assert load("shoal") is shoal


def test_the_keys_of_a_profile_that_is_gone_make_no_new_ones(
    install: Install, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring()
    site: Installation = install()
    account, key_id = unique("acct"), unique("key")
    set_up(site, Account(id=account, name="Acme"), Key(id=key_id, account=account, profile="tally"))
    monkeypatch.undo()
    forget()
    with pytest.raises(Conflict, match=r"profile tally of key .* is not installed"):
        site.manage.rotate_key(account, key_id, 0)
    with pytest.raises(BadParameter, match="profile must be one of native, anylayer"):
        set_up(site, Key(id=unique("key"), account=account, profile="tally"))


def test_telling_the_names_imports_no_profile() -> None:
    """Start-up pays for what it serves only."""
    code = (
        "import sys, tollkeeper.installation, tollkeeper.profiles as p; found = p.names();"
        "print(*found, [n for n in found if f'tollkeeper.profiles.{n}' in sys.modules])"
    )
    answered = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert answered.stdout.split() == [*FIVE, "[]"]


def test_every_profile_has_its_line_on_the_page() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| .* \| `(\w+_)…` \|$", PAGE, re.MULTILINE)
    assert sorted(rows) == [(name, load(name).key_prefix) for name in names()]


def test_the_declarations_of_the_page_are_accepted() -> None:
    found = [toml for toml in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL) if "entry-points" not in toml]
    assert found
    for toml in found:
        assert parse_declaration(toml)
