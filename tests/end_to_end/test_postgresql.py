"""
The whole server on a real PostgreSQL, over HTTP: what it acknowledged is there once, whatever is killed, cut off or
started twice.
"""

from __future__ import annotations

import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from tests.end_to_end.server import Refused, Server, running_server, start_server
from tests.engines import fresh_url, new_postgresql_server

DECLARATION: Final = b"""
[[plans]]
slug = "pro"
limits = [{ name = "rpm", amount = 100000, window = "1m" }]
[[accounts]]
id = "acme"
name = "Acme"
plan = "pro"
[[budgets]]
id = "total"
account = "acme"
amount = 1_000_000_000
period = "total"
[[accounts]]
id = "small"
name = "Small"
[[budgets]]
id = "hundred"
account = "small"
amount = 1000
period = "total"
[[keys]]
id = "k1"
account = "acme"
[[keys]]
id = "fish"
account = "acme"
profile = "shoal"
[[keys]]
id = "s1"
account = "small"
[[routes]]
id = "everything"
method = "*"
path = "/*"
price_nanos = 10
"""
CLIENTS: Final = 4
TRIES_MAX: Final = 300
AT: Final = "2026-03-18T12:00:00Z"
TERMINATE: Final = sa.text(
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


class Site:
    """A database, a data directory and, once started, the server on them."""

    server: Server

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory
        self.secrets: dict[str, str] = {}

    @property
    def options(self) -> tuple[str, ...]:
        return "--ledger-url", self.url, "--log-level", "error"

    def start(self) -> None:
        self.server = start_server(self.directory, *self.options)

    def declare(self) -> None:
        applied = self.server.call("POST", "/tk/v1/apply", DECLARATION, {"Content-Type": "application/toml"})
        self.secrets = {issued["entry"]["id"]: issued["secret"] for issued in applied["issued"]}

    def authorize(self, id_: str, key: str = "k1") -> dict[str, Any]:
        body = {"key": self.secrets[key], "method": "POST", "path": "/v1/chat", "id": id_}
        return self.server.post("/tk/v1/authorize", body)

    def settle(self, id_: str, cost_nanos: int = 7) -> dict[str, Any]:
        return self.server.post("/tk/v1/settle", {"hold_id": id_, "cost_nanos": cost_nanos})

    def events(self, *ids: str) -> dict[str, Any]:
        rows = [{"id": id_, "time": AT, "key_id": "k1", "cost_nanos": 3, "route": "/bulk"} for id_ in ids]
        return self.server.post("/tk/v1/events", rows)

    def totals(self, account: str, **filters: str) -> tuple[int, int]:
        """Requests and cost as the native usage endpoint has them."""
        more = "".join(f"&{name}={value}" for name, value in filters.items())
        measures = "measures=requests,cost_nanos"
        answer = self.server.call("GET", f"/tk/v1/usage?account={account}&{measures}{more}")
        assert answer["complete"] is True
        return answer["totals"]["requests"], int(answer["totals"]["cost_nanos"])

    def used(self, key: str) -> int:
        """What the one budget over *key* has used."""
        state = self.server.call("GET", f"/tk/v1/keys/{key}/state")
        (budget,) = state["budgets"]
        return int(budget["used"])

    def assert_exact(self) -> None:
        verdict = self.server.call("POST", "/tk/v1/verify")
        assert verdict["ok"], verdict
        assert verdict["differences"] == verdict["store_differences"] == []


@contextmanager
def site_on(url: str, directory: Path) -> Iterator[Site]:
    """Run a declared server; end it in the end however the test left it."""
    site = Site(url, directory)
    site.start()
    try:
        site.declare()
        yield site
    finally:
        site.server.kill()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return fresh_url("postgresql", tmp_path)


@pytest.fixture
def site(url: str, tmp_path: Path) -> Iterator[Site]:
    with site_on(url, tmp_path / "data") as running:
        yield running


def until_answered(call: Callable[[], dict[str, Any]], refusals: list[Refused]) -> dict[str, Any]:
    """Repeat a call while the server is not there or says that it cannot now; it may say nothing else."""
    pause = threading.Event()
    for _ in range(TRIES_MAX):
        try:
            return call()
        except Refused as exc:
            if (exc.status, exc.body["code"], exc.body["retryable"]) != (503, "unavailable", True):
                raise
            refusals.append(exc)
        except (urllib.error.URLError, HTTPException, ConnectionError):
            pass  # Killed, or not there yet: the same call again, with the same ids.
        pause.wait(0.05)
    raise AssertionError(f"no answer in {TRIES_MAX} tries: {refusals[-1:]}")


class Traffic:
    """Clients that authorize, settle, void and send events until they are told to end, repeating each call."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.refusals: list[Refused] = []
        self.settled: list[str] = []
        self.events: list[str] = []
        self._ending = threading.Event()
        self._moved = threading.Condition()
        self._answers = 0
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._clients = [self._pool.submit(self._client, number) for number in range(CLIENTS)]

    def wait_for(self, answers: int) -> None:
        """Return once so many more answers came."""
        with self._moved:
            wanted = self._answers + answers
            assert self._moved.wait_for(lambda: self._answers >= wanted or self._failed(), 120)
        self._raise()

    def end(self) -> None:
        self._ending.set()
        self._pool.shutdown()
        self._raise()

    def _failed(self) -> bool:
        return any(client.done() for client in self._clients)

    def _raise(self) -> None:
        for client in self._clients:
            if client.done():
                client.result()

    def _client(self, number: int) -> None:
        try:
            for step in range(100_000):
                if self._ending.is_set():
                    return
                self._step(f"{number}-{step}", step)
        finally:
            with self._moved:
                self._moved.notify_all()

    def _step(self, name: str, step: int) -> None:
        self._ask(lambda: self.site.authorize(f"hold-{name}"))
        if step % 3:
            self._ask(lambda: self.site.settle(f"hold-{name}"))
            self.settled.append(f"hold-{name}")
        else:
            self._ask(lambda: self.site.server.post("/tk/v1/void", {"hold_id": f"hold-{name}"}))
        ids = [f"event-{name}-{index}" for index in range(20)]
        answer = self._ask(lambda: self.site.events(*ids))
        assert answer["accepted"] + answer["duplicates"] == len(ids), answer
        self.events += ids

    def _ask(self, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        answer = until_answered(call, self.refusals)
        with self._moved:
            self._answers += 1
            self._moved.notify_all()
        return answer

    def assert_all_there_once(self) -> None:
        """Every call was answered in the end, so every sum is known."""
        costs = 7 * len(self.settled) + 3 * len(self.events)
        assert self.site.totals("acme") == (len(self.settled) + len(self.events), costs)
        assert self.site.used("k1") == costs
        self.site.assert_exact()


def ask_shoal(site: Site) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {site.secrets['fish']}"}
    return site.server.call("GET", "/shoal/v1/usage", headers=headers)


def test_every_surface_works_on_postgresql(site: Site) -> None:
    assert site.authorize("h1")["allowed"] is True
    site.settle("h1")
    site.authorize("h2")
    site.server.post("/tk/v1/void", {"hold_id": "h2"})
    assert site.events("e1", "e2", "e3")["accepted"] == 3
    again = site.events("e3", "e4")
    assert (again["accepted"], again["duplicates"]) == (1, 1)
    assert site.totals("acme") == (5, 7 + 4 * 3)
    assert site.totals("acme", route="/bulk") == (4, 12)
    assert site.used("k1") == 19
    before = ask_shoal(site)["data"]["today"]
    site.authorize("h3", key="fish")
    site.settle("h3")
    # The question itself counts, as the vendor's does.
    assert ask_shoal(site)["data"]["today"] - before == 2
    site.assert_exact()


def test_exactly_as_many_pass_as_fit(site: Site) -> None:
    """A budget of 1000 and calls of 10 each, from many clients at once."""

    def attempt(number: int) -> bool:
        try:
            site.authorize(f"race-{number}", key="s1")
        except Refused as exc:
            if exc.status != 402:
                raise
            return False
        site.settle(f"race-{number}", cost_nanos=10)
        return True

    with ThreadPoolExecutor(8) as pool:
        passed = sum(pool.map(attempt, range(160)))
    assert passed == 100
    assert site.totals("small") == (160, 1000)
    assert site.used("s1") == 1000
    site.assert_exact()


@pytest.mark.drawn(1, of="outages")
def test_a_killed_server_goes_on_where_it_ended(site: Site) -> None:
    traffic = Traffic(site)
    try:
        for _ in range(2):
            traffic.wait_for(60)
            site.server.kill()
            site.start()
        traffic.wait_for(20)
    finally:
        traffic.end()
    traffic.assert_all_there_once()


def test_cut_connections_lose_and_double_nothing(site: Site) -> None:
    """All of them at once, in the middle of commits, the one that holds the ownership included."""
    administrator = sa.create_engine(site.url, isolation_level="AUTOCOMMIT")
    traffic = Traffic(site)
    try:
        with administrator.connect() as connection:
            for _ in range(10):
                traffic.wait_for(10)
                assert connection.execute(TERMINATE).scalar_one() >= 1
        traffic.wait_for(20)
    finally:
        traffic.end()
        administrator.dispose()
    traffic.assert_all_there_once()
    site.settle(site.authorize("after")["hold_id"])


@pytest.mark.drawn(1, of="outages")
def test_a_restart_of_postgresql_is_told_and_then_over(tmp_path: Path) -> None:
    database = new_postgresql_server()
    try:
        url = sa.make_url(database.get_uri()).set(drivername="postgresql")
        with site_on(url.render_as_string(hide_password=False), tmp_path / "data") as site:
            traffic = Traffic(site)
            try:
                traffic.wait_for(40)
                database.stop()
                with pytest.raises(Refused) as refused:
                    site.events("while-away")
                assert (refused.value.status, refused.value.body["code"]) == (503, "unavailable")
                assert not is_ready(site)
                database.ensure_postgres_running()
                traffic.wait_for(40)
            finally:
                traffic.end()
            assert traffic.refusals
            assert is_ready(site)
            traffic.assert_all_there_once()
    finally:
        database.cleanup()


@contextmanager
def standing_still(database: Any) -> Iterator[None]:
    """All processes of a database stand still: their connections stay up, and nothing comes from them."""
    postmaster = int(database.get_pid())
    processes = [postmaster, *children_of(postmaster)]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


def children_of(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in found.split()]


@pytest.mark.drawn(1, of="outages")
def test_a_database_that_stands_still_stops_nobody_but_those_who_ask_it(tmp_path: Path) -> None:
    """A stranger's look-up must not stop the probes, nor what needs no database."""
    database = new_postgresql_server()
    try:
        url = sa.make_url(database.get_uri()).set(drivername="postgresql")
        with site_on(url.render_as_string(hide_password=False), tmp_path / "data") as site:
            site.settle(site.authorize("before")["hold_id"])
            with ThreadPoolExecutor(40) as callers:
                with standing_still(database):
                    strangers = [
                        callers.submit(status_of, site, "POST", "/tk/v1/events", f"tk_made_up_{number}")
                        for number in range(20)
                    ]
                    strangers += [
                        callers.submit(status_of, site, "GET", "/shoal/v1/usage", f"tk_made_up_{number}")
                        for number in range(20)
                    ]
                    for _ in range(5):
                        assert status_of(site, "GET", "/healthz") == 200
                    assert not is_ready(site)
                    # The silent connection is given up, and the call answered.
                    assert strangers[0].result() == 503
                assert {stranger.result() for stranger in strangers} <= {401, 503}
            until_answered(lambda: site.settle("before"), [])
            until_answered(lambda: site.events("after"), [])
            assert is_ready(site)
            site.assert_exact()
    finally:
        database.cleanup()


def status_of(site: Site, method: str, path: str, key: str = "") -> int:
    request = urllib.request.Request(
        site.server.url + path,
        data=b"[]" if method == "POST" else None,
        method=method,
        headers={"Authorization": f"Bearer {key}"} if key else {},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        return exc.code


def is_ready(site: Site) -> bool:
    try:
        with urllib.request.urlopen(f"{site.server.url}/readyz", timeout=60) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as exc:
        if exc.code != 503:
            raise
        return False


def test_a_second_server_is_refused_until_the_first_has_ended(site: Site, tmp_path: Path) -> None:
    """Each gate decides from its own memory: two of them would each admit what is left."""
    site.settle(site.authorize("h1")["hold_id"])
    with pytest.raises(AssertionError) as refused:
        start_server(tmp_path / "other", *site.options)
    said = str(refused.value)
    assert f"is in use by tollkeeper process {site.server.process.pid}" in said
    assert "Traceback" not in said
    site.settle(site.authorize("h2")["hold_id"])
    site.server.kill()
    with running_server(site.directory, *site.options) as server:
        site.server = server
        site.settle(site.authorize("h3")["hold_id"])
        assert site.totals("acme") == (3, 21)
        site.assert_exact()
