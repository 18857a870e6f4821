"""Beside a thread that computes, the threads of a decision get Python's lock soon (`server.SWITCH_INTERVAL_S`)."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tollkeeper.http import server


def test_the_server_shortens_the_switch_interval_while_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Python's 5 ms, a decision beside a large batch waits up to 5 ms each time that it needs the lock."""
    while_serving: list[float] = []
    app = SimpleNamespace(close=lambda: while_serving.append(sys.getswitchinterval()))

    def run(serving: Any) -> None:
        while_serving.append(sys.getswitchinterval())
        serving.close()

    monkeypatch.setattr(server, "_check_port", lambda host, port: None)
    monkeypatch.setattr(server, "build_app", lambda installation: app)
    monkeypatch.setattr(server, "freeze_gc", lambda: None)
    monkeypatch.setattr(server, "_return_memory", lambda: None)
    monkeypatch.setattr(server, "_runner", lambda: run)
    before = sys.getswitchinterval()
    server.serve(cast("Any", None))
    assert while_serving == [pytest.approx(server.SWITCH_INTERVAL_S)] * 2
    assert sys.getswitchinterval() == pytest.approx(before)
    assert before > server.SWITCH_INTERVAL_S
