"""
What the tests of every profile start from; a module's `PROFILE` says which one.

`server` is one running server per module and `shared_app` one application in this process: their tests keep
apart by account. `open_app` opens an application of the test's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import Install
from tests.end_to_end.server import Server, running_server
from tests.profiles.places import ADDRESS_HEADER, Client, Fetch, Requests, application, needs_node
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.http.app import App
from tollkeeper.testing import ManualClock, installation, unique

OpenApp = Callable[..., App]


@pytest.fixture(scope="module")
def server_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server of the module has its data."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, server_directory: Path) -> Iterator[Server]:
    """A running server that speaks the profile at the root and under its prefix, with the profile's catalog."""
    profile = request.module.PROFILE
    options = ("--root-profile", profile.name, "--profiles", profile.name)
    with running_server(server_directory, *options, "--client-address-header", ADDRESS_HEADER) as running:
        toml = {"Content-Type": "application/toml"}
        running.call("POST", "/tk/v1/apply", profile.catalog.encode(), toml)
        yield running


@pytest.fixture(params=["root", "prefix"])
def base(request: pytest.FixtureRequest) -> str:
    """The place of the profile: each test can run at both; what a run draws, `pytest_itemcollected` says."""
    return "" if request.param == "root" else f"/{request.module.PROFILE.name}"


@pytest.fixture(scope="session")
def fetch() -> Iterator[Fetch]:
    with Fetch.running() as running:
        yield running


def pytest_itemcollected(item: pytest.Item) -> None:
    """
    Draw the cases of what runs at both places: one, but for the acceptance cases both places and both clients, and
    for a test with parameters of its own each value.
    """
    if "base" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("drawn"):
        alone = len(item.callspec.indices) == 1 and not item.name.startswith("test_case_")  # type: ignore[attr-defined]
        item.add_marker(pytest.mark.drawn(1) if alone else pytest.mark.drawn)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks a server with Python's `requests`, and the acceptance cases with JavaScript's `fetch` too."""
    if "client" in metafunc.fixturenames:
        case = metafunc.function.__name__.startswith("test_case_")
        both = ["requests", pytest.param("fetch", marks=needs_node)]
        metafunc.parametrize("client", both if case else both[:1], indirect=True)


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Client:
    """Who asks the server."""
    if request.param == "requests":
        return Requests()
    found: Fetch = request.getfixturevalue("fetch")
    return found


@pytest.fixture(scope="module")
def shared_clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="module")
def shared_app(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    usage_store: ClickHouseUsageStore,
    shared_clock: ManualClock,
) -> Iterator[App]:
    """An application that speaks the profile as it is by default, by `shared_clock`."""
    profile = request.module.PROFILE
    options = {"root_profile": profile.name, "profiles": profile.name}
    directory = tmp_path_factory.mktemp("local")
    with (
        installation(directory, clock=shared_clock, store=usage_store, **options) as site,
        application(site, profile) as app,
    ):
        yield app


@pytest.fixture
def open_app(request: pytest.FixtureRequest, install: Install) -> Iterator[OpenApp]:
    """Open an application by the clock of the test, with switches of the profile."""
    profile = request.module.PROFILE
    name = profile.name
    with ExitStack() as stack:

        def opened(**switches: object) -> App:
            text = json.dumps({name: switches})
            site = install(unique("data"), root_profile=name, profiles=name, profile_settings=text)
            return stack.enter_context(application(site, profile))

        yield opened
