"""The calls of a client in both forms, so that one test covers both."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import pytest

from tollkeeper.remote import Tollkeeper


class Calls(Protocol):
    """`admit`, `settle`, `void`, `usage` and `events` of one client."""

    def __init__(self, toll: Tollkeeper) -> None: ...
    def admit(self, *args: Any, **kwargs: Any) -> Any: ...
    def settle(self, *args: Any, **kwargs: Any) -> Any: ...
    def void(self, *args: Any, **kwargs: Any) -> Any: ...
    def usage(self, *args: Any, **kwargs: Any) -> Any: ...
    def events(self, *args: Any, **kwargs: Any) -> Any: ...


class Sync:
    """The calls of a thread."""

    def __init__(self, toll: Tollkeeper) -> None:
        self.admit = toll.admit
        self.settle = toll.settle
        self.void = toll.void
        self.usage = toll.usage
        self.events = toll.events
        self.close = toll.close


class Async:
    """The calls of an event loop, all in one loop."""

    def __init__(self, toll: Tollkeeper) -> None:
        self._toll = toll
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._toll, name + "_async")
        return lambda *args, **kwargs: self._runner.run(call(*args, **kwargs))

    def close(self) -> None:
        self._runner.run(self._toll.aclose())
        self._runner.close()


both = pytest.mark.parametrize("form", [Sync, Async], ids=["sync", "async"])
