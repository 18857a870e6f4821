"""One server in this process and one browser, for all tests of the page."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import httpx
import pytest

from tests.page.browser import Browser, Tab, check_built, chromium
from tollkeeper import testing
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.clock import SystemClock
from tollkeeper.http.app import App, build_app
from tollkeeper.http.server import ensure_operator_key

OPERATOR_KEY: Final = "ok_operator0123456789abcdefghijklmnop"
HOSTILE: Final = "<img src=x onerror=alert(1)>"
"""A name that a page runs as a script where it writes it as HTML."""


class Served(NamedTuple):
    """The server with its data."""

    url: str
    keys: dict[str, str]
    """Id of a key → its secret."""
    events: list[dict[str, Any]]

    def api(self, path: str, key: str = OPERATOR_KEY) -> Any:
        answer = httpx.get(f"{self.url}tk/v1/{path}", headers={"Authorization": f"Bearer {key}"}, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    check_built()
    chromium()
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("page")
    with testing.installation(directory, clock=SystemClock(), store=usage_store) as installation:
        ensure_operator_key(installation, OPERATOR_KEY)
        app = build_app(installation)
        server = Serving(app)
        try:
            yield _with_data(server.url)
        finally:
            server.stop()
            app.close()


class Serving:
    """The real server in a thread of this process."""

    def __init__(self, app: App) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url: Final = f"http://127.0.0.1:{self._port}/"
        self._app = app
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._up.wait(60)

    async def _serve(self) -> None:
        from granian.constants import HTTPModes
        from granian.server.embed import Server

        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = Server(
            self._app,
            address="127.0.0.1",
            port=self._port,
            interface="asgi",
            http=HTTPModes.http1,
            log_enabled=False,
            websockets=False,
        )
        serving = asyncio.create_task(server.serve())
        while not serving.done():
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            break
        self._up.set()
        await self._stopping.wait()
        server.stop()
        await serving

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(60)


@pytest.fixture
def tab(browser: Browser, served: Served) -> Iterator[Callable[..., Tab]]:
    """Opens tabs; at the end of the test nothing must have gone wrong in any of them."""
    names = (f"{next(_NUMBERS)}" for _ in itertools.count())
    opened: list[Tab] = []

    def open_tab(**options: Any) -> Tab:
        opened.append(Tab(browser, next(names), served.url, **options))
        return opened[-1]

    with ExitStack() as stack:
        yield open_tab
        for each in opened:
            stack.callback(each.close)
        for each in opened:
            assert_nothing_wrong(each)


def assert_nothing_wrong(tab: Tab) -> None:
    """Check that no policy was broken, no other host asked, and nothing is on the console but expected refusals."""
    found = tab.report()
    # Chromium writes each answer from 400 on there. Of nobody logged in, that is how a browser learns it.
    expected = ("the server responded with a status of 401", "tk/v1/login")
    errors = [line for line in found["console"] if not all(part in line for part in expected)]
    assert (found["violations"], found["foreign"], errors) == ([], [], [])


_NUMBERS: Final = itertools.count()


def _with_data(url: str) -> Served:
    """Fill a new installation over HTTP: two accounts, keys, models and tags, some of them with hostile names."""
    with httpx.Client(
        base_url=f"{url}tk/v1/", headers={"Authorization": f"Bearer {OPERATOR_KEY}"}, timeout=60
    ) as client:

        def call(method: str, path: str, body: Any) -> Any:
            answer = client.request(method, path, json=body)
            assert answer.is_success, answer.text
            return answer.json()

        keys = {}
        for account, name in (("page-acme", f"Acme {HOSTILE}"), ("page-other", "Other Ltd")):
            call("PUT", f"accounts/{account}", {"name": name})
            call("PUT", f"projects/{account}-app", {"account": account, "name": HOSTILE})
            call(
                "PUT", f"budgets/{account}-month", {"account": account, "amount": "500.00", "period": "month"}
            )
            for kind, fields in (
                ("admin", {"role": "management"}),
                ("live", {"type": "credit", "name": HOSTILE, "project": f"{account}-app"}),
            ):
                body = {"id": f"{account}-{kind}", "account": account, **fields}
                keys[f"{account}-{kind}"] = call("POST", "keys", body)["secret"]
            call("PUT", f"grants/{account}-gift", {"account": account, "amount": "1000.00"})
        events = [_event(number) for number in range(240)]
        answer = call("POST", "events", events)
        assert answer["accepted"] == len(events), answer
    return Served(url, keys, events)


_MODELS: Final = ("gpt-4o", "claude-sonnet-4", HOSTILE)


def _event(number: int) -> dict[str, Any]:
    """Return an event of the last hours; every third is the other account's."""
    account = "page-other" if number % 3 == 0 else "page-acme"
    return {
        "id": f"event-{number}",
        "time": (datetime.now(UTC) - timedelta(minutes=11 * number)).isoformat(),
        "key_id": f"{account}-live",
        "method": "POST",
        "route": "/v1/chat/completions",
        "model": _MODELS[number % len(_MODELS)] if account == "page-acme" else "gpt-4o",
        "status": 500 if number % 40 == 1 else 200,
        "tokens": {"prompt": 1_000 + number, "completion": 7 * number},
        "cost_nanos": str(12_345_678 * (number + 1)),
        "latency_ms": 100 + number,
        "tags": {"feature": HOSTILE if number % 5 == 0 else "search"},
    }
