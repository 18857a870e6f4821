"""With greenlets in place of threads just so many requests pass as the budget has, or they are refused with words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

from tollkeeper import greenlets, remote
from tollkeeper.errors import GreenletsRefused
from tollkeeper.wsgi import Middleware

ROOT: Final = Path(__file__).parents[2]
LATE: Final = """
from tollkeeper import remote
toll = remote.Tollkeeper("http://127.0.0.1:9", key="ok_x", timeout_s=0.2)
def app(environ, start_response): raise AssertionError("it passed")
gated = toll.wsgi_middleware(app)
from gevent import monkey
monkey.patch_all()
environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.url_scheme": "http", "HTTP_AUTHORIZATION": "Bearer x"}
print(gated(environ, lambda status, headers: print(status))[0].decode())
toll.admit("x", "GET", "/")
"""
IN_PART: Final = """
from gevent import monkey
monkey.patch_all(thread=False)
from tollkeeper import remote
remote.Tollkeeper("http://127.0.0.1:9", key="ok_x")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def test_of_60_greenlets_20_pass_in_process(tmp_path: Path) -> None:
    """They are settled while others wait, and each is booked."""
    done = run("-m", "tests.stacks.greenlet_app", str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {
        "statuses": {"200": 20, "402": 40},
        "rows": {"200": 20, "402": 40},
        "ok": True,
    }


def test_threads_that_become_greenlets_after_the_start_are_refused() -> None:
    """A lock of the system would stop all greenlets: 503 from the middleware, an error from the client."""
    done = run("-c", LATE)
    status, _, body = done.stdout.partition("\n")
    assert status.startswith("503"), done.stderr[-3000:]
    assert json.loads(body)["code"] == "greenlets_refused"
    assert "before all other imports" in json.loads(body)["detail"]
    assert "GreenletsRefused: gevent has replaced" in done.stderr


def test_sockets_without_threads_are_refused() -> None:
    done = run("-c", IN_PART)
    assert done.returncode == 1
    assert "but not _thread, threading" in done.stderr
    assert "without arguments" in done.stderr


def test_eventlet_is_refused_at_the_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    patched = SimpleNamespace(is_monkey_patched=lambda module: module == "thread")
    monkeypatch.setitem(sys.modules, "eventlet.patcher", patched)
    with pytest.raises(GreenletsRefused, match=r"eventlet.*Use gevent.*gthread.*tollkeeper\.remote"):
        remote.Tollkeeper("http://127.0.0.1:9", key="ok_x")
    with pytest.raises(GreenletsRefused):
        Middleware(lambda environ, start_response: [], SimpleNamespace())  # type: ignore[arg-type]


def test_gevent_that_replaced_nothing_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gevent.monkey", SimpleNamespace(is_module_patched=lambda module: False))
    greenlets.check()
