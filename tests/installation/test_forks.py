"""
A forked process admits and books nothing, says why, never waits, and leaves the stores of its parent alone.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from tollkeeper import Tollkeeper
from tollkeeper.domain.catalog import Account, Budget, Key, Route
from tollkeeper.domain.requests import Outcome
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import Forked
from tollkeeper.gate.gate import Admission
from tollkeeper.http.app import build_app
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.testing import open_installation, set_up, verify

DEADLINE_S = 60
"""Only bounds a run that has failed: a child that waits is ended by the alarm."""


def in_child(call: Callable[[], Any]) -> None:
    """Run *call* in a forked child; fail unless it returns there."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(DEADLINE_S)
            call()
            status = 0
        except BaseException:
            os.write(write, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(status)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0, said or f"the child ended with {status}"


def test_a_child_that_ends_as_programs_do_ends(site):
    """The embedded engine's own end would wait for threads that only the parent has."""
    assert site.store.ready()
    child = os.fork()
    if not child:
        signal.alarm(DEADLINE_S)
        libc = ctypes.CDLL(None)
        # As the interpreter ends in the end: `os._exit` would leave out what could hang.
        libc.exit(7)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert verify(site).ok


@pytest.fixture
def toll(site: Installation, account: str) -> Tollkeeper:
    return Tollkeeper(site)


@pytest.fixture
def secret(site: Installation, account: str) -> str:
    made = set_up(
        site,
        Account(id=account, name="Acme"),
        Key(id=f"{account}-k", account=account),
        Budget(id="b", account=account, amount=100, unit="requests", period="day"),
        Route(id="chat", method="POST", path="/chat", price_nanos=1),
    )
    return made[f"{account}-k"]


def uses(toll: Tollkeeper, secret: str, account: str, admission: Admission) -> dict[str, Callable[[], Any]]:
    site = toll.installation
    manage, holds, gate, ledger = site.manage, site.holds, site.gate, site.ledger
    query = UsageQuery(account_id=account, from_us=0, to_us=site.clock.now_us())
    event = {"id": "e", "account": account, "kind": "request"}
    key = Key(id="late", account=account)
    return {
        "admit": lambda: toll.admit(secret, "POST", "/chat"),
        "admit at once": lambda: holds.admit(secret, "POST", "/chat"),
        "the gate": lambda: gate.admit(secret, "POST", "/chat"),
        "authorize": lambda: holds.authorize(secret, "POST", "/chat", site_usage(), CommitFuture()),
        "settle": lambda: toll.settle(admission, Outcome(), wait=True),
        "settle durably": lambda: asyncio.run(toll.settle_durably(admission)),
        "void": lambda: toll.void(admission),
        "usage": lambda: toll.usage(query),
        "record": lambda: toll.record([event]),
        "issue": lambda: toll.issue_key(key),
        "manage": lambda: manage.list("keys", account=account),
        "verify": toll.verify,
        "rebuild": toll.rebuild,
        "ledger": lambda: ledger.counter(account, "budget:b", 0),
        "middleware": lambda: toll.middleware(lambda *_: None),
        "open": lambda: open_installation(site_directory(site)),
    }


def site_usage() -> Any:
    from tollkeeper.domain.requests import NO_USAGE

    return NO_USAGE


def site_directory(site: Installation) -> str:
    return site.settings.data_dir + "-other"


def test_a_child_is_refused_whatever_it_uses(toll, secret, account):
    admission = toll.admit(secret, "POST", "/chat")
    directory = site_directory(toll.installation)
    calls = uses(toll, secret, account, admission)
    calls["open"] = lambda: open_installation(directory)

    def child() -> None:
        for name, call in calls.items():
            with pytest.raises(Forked, match="after the fork"):
                raise AssertionError(f"{name} gave {call()!r} in the child")
        toll.close()
        toll.close()

    in_child(child)
    toll.settle(admission, Outcome(), wait=True)
    assert isinstance(toll.admit(secret, "POST", "/chat"), Admission)
    assert verify(toll.installation).ok


def test_every_part_of_an_installation_becomes_unusable(site):
    parts = [
        name
        for name, part in vars(site).items()
        if type(part).__module__.startswith("tollkeeper.") and hasattr(part, "__dict__")
    ]
    kept = {name: getattr(site, name) for name in parts if name not in ("settings", "clock")}
    assert {"gate", "holds", "ledger", "catalog", "committer", "relay", "store", "manage"} <= kept.keys()

    def child() -> None:
        for name, part in kept.items():
            with pytest.raises(Forked):
                part.anything  # noqa: B018
            assert name

    in_child(child)


def test_locks_that_are_held_at_the_fork_keep_no_child_waiting(toll, secret, account):
    """The threads that hold them are not in the child, so that nobody would ever release them."""
    site = toll.installation
    gate: Any = site.gate
    committer: Any = site.committer
    relay: Any = site.relay
    held = [
        gate._lock,
        committer._lock,
        relay._lock,
        site.ledger._database._write_lock,
        site.scopes._lock,
    ]
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in held:
            lock.acquire()
        taken.set()
        release.wait()
        for lock in reversed(held):
            lock.release()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()

    def child() -> None:
        for call in (
            lambda: toll.admit(secret, "POST", "/chat"),
            lambda: toll.verify(),
            lambda: toll.manage.list("keys"),
        ):
            with pytest.raises(Forked):
                call()
        toll.close()

    try:
        in_child(child)
    finally:
        release.set()
        holder.join()
    assert isinstance(toll.admit(secret, "POST", "/chat"), Admission)
    assert verify(site).ok


def answer_of(app: Any, path: str, secret: str) -> tuple[int, bytes]:
    """Return status and body of a POST to an ASGI application."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"authorization", f"Bearer {secret}".encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize("profile", [None, "shoal"])
def test_asgi_applications_answer_503_in_a_child(toll, secret, profile):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    metered = toll.middleware(app, exempt={"/healthz"}, profile=profile)
    surface = build_app(toll.installation)

    def child() -> None:
        for asked, path in ((metered, "/chat"), (surface, "/tk/v1/authorize"), (surface, "/tk/v1/usage")):
            status, body = answer_of(asked, path, secret)
            assert status == 503, path
            assert b'"code":"forked"' in body, path
        assert answer_of(metered, "/healthz", "") == (200, b"ok")

    in_child(child)
    surface.close()


def test_a_pool_of_forked_workers_admits_nothing(toll, secret):
    """The parent alone decides: with a budget of 100 no child lets a request pass."""
    context = multiprocessing.get_context("fork")
    answers: Any = context.SimpleQueue()

    def work() -> None:
        try:
            answers.put(type(toll.admit(secret, "POST", "/chat")).__name__)
        except Forked as exc:
            answers.put(exc.code)

    workers = [context.Process(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [answers.get() for _ in workers] == ["forked"] * 3
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert isinstance(toll.admit(secret, "POST", "/chat"), Admission)
    assert verify(toll.installation).ok
