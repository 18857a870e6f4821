"""
What an app tells about its admitted request, and asks for it, over ASGI and WSGI alike.

A request is booked once. Whatever is set before its response ends is booked with it; what is set later is booked when
`settle_later` was called, and otherwise refused where it is set.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, Protocol, TypeVar, overload

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.extensions import Extension
from tollkeeper.domain.requests import HOLD_S_MAX, NO_USAGE, Outcome, Usage
from tollkeeper.errors import BadParameter, HoldEnded, Unavailable

if TYPE_CHECKING:
    from tollkeeper.installation import Installation

STATE_KEY: Final = "tollkeeper"
"""In `scope["state"]` of ASGI."""
ENVIRON_KEY: Final = "tollkeeper.metering"
"""In the environ of WSGI, where PEP 3333 keeps names with a dot for what is no text."""
NOT_STATED: Final = "usage_not_stated"
"""The error type of a request whose usage was to be stated later and was not, in its time."""

_LOCK: Final = threading.Lock()
"""Of the endings of all requests: each takes some µs at most."""

T = TypeVar("T")


class Denied(Exception):
    """
    The gate refuses what a request asked for with `expect`.

    Let go by the handler, it becomes the response that the middleware gives to such a refusal, in the words of the
    provider whose API this is. Caught, the request may ask for less, or answer by itself; it is booked as refused
    then, unless it states usage.

    Attributes:
        denial: Why, with the limit or budget at fault and the largest amount that would fit.
        reason: Of the denial, e.g. `budget_exhausted`.
        status: The HTTP status of the reason.
    """

    def __init__(self, denial: Denial) -> None:
        super().__init__(denial.message)
        self.denial = denial
        self.reason = denial.reason
        self.status = denial.status


class RequestGate(Protocol):
    """What a request under way asks of its gate. The forms with `_sync` are for threads, and block."""

    async def expect(self, admission: Any, expected: Usage, tags: Mapping[str, str]) -> Denial | None: ...
    def expect_sync(self, admission: Any, expected: Usage, tags: Mapping[str, str]) -> Denial | None: ...
    async def extend(self, admission: Any, more: Usage) -> Extension: ...
    def extend_sync(self, admission: Any, more: Usage) -> Extension: ...

    def settle_late(self, admission: Any, outcome: Outcome) -> None:
        """Book a request after its response, without waiting; called in any thread."""

    def void_late(self, admission: Any) -> None:
        """Void a request after its response, without waiting; called in any thread."""


class Ending(NamedTuple):
    """How a request ends with its response: at once, or, `later`, with this *outcome* unless it states another."""

    kind: Literal["settle", "later", "deny", "void"]
    outcome: Outcome
    timeout_s: int | None = None


class _Stated(Generic[T]):
    """An attribute that must be set before the request is booked."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._slot = "_" + name

    @overload
    def __get__(self, of: None, owner: type) -> _Stated[T]: ...
    @overload
    def __get__(self, of: _Metering, owner: type) -> T: ...
    def __get__(self, of: _Metering | None, owner: type) -> _Stated[T] | T:
        return self if of is None else getattr(of, self._slot)

    def __set__(self, of: _Metering, value: T) -> None:
        of.check_open()
        setattr(of, self._slot, value)


class _Metering:
    """What both kinds have: the values that a request states, and its one ending."""

    __slots__ = (
        "_cache",
        "_denial",
        "_error_type",
        "_estimated",
        "_gate",
        "_is_stated",
        "_later_s",
        "_model",
        "_outcome",
        "_phase",
        "_tags",
        "_usage",
        "_void",
        "admission",
    )
    cache = _Stated[str]()
    """`hit`, `miss` or `none`."""
    error_type = _Stated[str]()
    estimated = _Stated[bool]()
    """The cost given is an estimate: the job goes on, a correction brings the actual one."""

    def __init__(self, admission: Any, gate: RequestGate) -> None:
        self.admission = admission
        self._gate = gate
        self._usage = NO_USAGE
        self._cache = ""
        self._error_type = ""
        self._estimated = False
        self._tags: dict[str, str] = dict(admission.tags)
        self._void = False
        self._phase: Literal["open", "later", "ended"] = "open"
        self._later_s: int | None = None
        self._is_stated = False
        self._denial: Denial | None = None
        self._model = ""
        self._outcome = _NO_OUTCOME

    # -- what is stated -------------------------------------------------------------------------------

    @property
    def usage(self) -> Usage:
        """
        What the request used: model, tokens, quantities, cost. What is set last counts.

        After the response, with `settle_later`, setting it books the request. Setting it raises `HoldEnded` when the
        request is booked already.
        """
        return self._usage

    @usage.setter
    def usage(self, usage: Usage) -> None:
        with _LOCK:
            if self._phase != "later":
                self.check_open()
                self._usage = usage
                self._is_stated = True
                return
            self._phase = "ended"
            before, self._usage = self._usage, usage
            outcome = self._outcome._replace(
                usage=usage,
                error_type=self._error_type,
                cache=self._cache,  # type: ignore[arg-type]
                tags=self._tags,
                estimated=self._estimated,
            )
        try:
            self._gate.settle_late(self.admission, outcome)
        except Unavailable:
            # Nothing was booked: it may be stated again.
            self._usage, self._phase = before, "later"
            raise

    @property
    def void(self) -> bool:
        """Whether the request should not count at all."""
        return self._void

    @void.setter
    def void(self, void: bool) -> None:
        with _LOCK:
            if self._phase != "later" or not void:
                self.check_open()
                self._void = void
                return
            self._phase = "ended"
        try:
            self._gate.void_late(self.admission)
        except Unavailable:
            self._phase = "later"
            raise
        self._void = True

    @property
    def tags(self) -> Mapping[str, str]:
        """Those of the request's event: a dict until it is booked."""
        return MappingProxyType(self._tags) if self._phase == "ended" else self._tags

    @tags.setter
    def tags(self, tags: Mapping[str, str]) -> None:
        self.check_open()
        self._tags = dict(tags)

    @property
    def denial(self) -> Denial | None:
        """Why the gate refused what the request asked for last, with `expect`; None when it did not."""
        return self._denial

    # -- its ending -----------------------------------------------------------------------------------

    def settle_later(self, timeout_s: int | None = None) -> None:
        """
        Book the request when its usage is set after the response, by a background task, in any thread.

        If it is not set within *timeout_s* seconds of the end of the response, the request is booked with what was
        stated by then and the error type `usage_not_stated`; so it is when the process ends first, after its next
        start. A usage that is set after this call and before the response ends is booked with the response.

        Args:
            timeout_s: The setting `hold_s` unless given; at most 7 days.

        Raises:
            HoldEnded: The response has ended.
        """
        if timeout_s is not None and not 1 <= timeout_s <= HOLD_S_MAX:
            raise BadParameter(
                f"timeout_s must be from 1 to {HOLD_S_MAX} seconds, not {timeout_s}", field="timeout_s"
            )
        with _LOCK:
            if self._phase != "open":
                raise self._too_late()
            self._later_s = timeout_s or 0
            self._is_stated = False

    def end(self, status: int, started_ns: int, bytes_out: int) -> Ending:
        """End the request with its response, for the middleware: nothing more can be set, unless it ends later."""
        with _LOCK:
            outcome = outcome_of(self, status, started_ns, bytes_out)
            if self._void:
                self._phase = "ended"
                return Ending("void", outcome)
            if self._denial is not None and not is_used(outcome.usage):
                self._phase = "ended"
                return Ending("deny", outcome)
            if self._later_s is None or self._is_stated:
                self._phase = "ended"
                return Ending("settle", outcome)
            self._phase = "later"
            self._outcome = outcome
            unstated = outcome._replace(error_type=outcome.error_type or NOT_STATED)
            return Ending("later", unstated, self._later_s or None)

    @property
    def asked_model(self) -> str:
        """The model of the last `expect`."""
        return self._model

    def check_open(self) -> None:
        """Raise `HoldEnded` when the request is booked."""
        if self._phase == "ended":
            raise self._too_late()

    def _too_late(self) -> HoldEnded:
        if self._later_s is not None:
            return HoldEnded(f"Request {self.admission.id} is booked: its usage was stated before.")
        return HoldEnded(
            f"Request {self.admission.id} was booked when its response ended: what is set now would be lost. To state "
            f"usage after the response, call metering.settle_later() before it ends."
        )

    # -- what it asks for -----------------------------------------------------------------------------

    def _may_ask(self) -> None:
        if self._phase != "open":
            raise HoldEnded(
                f"Request {self.admission.id}: its response has ended, so it can hold nothing more."
            )

    def _noted(self, denial: Denial | None, expected: Usage) -> None:
        self._denial, self._model = denial, expected.model
        if denial is not None:
            raise Denied(denial)

    def _expect(self, expected: Usage) -> None:
        self._may_ask()
        self._noted(self._gate.expect_sync(self.admission, expected, self._tags), expected)

    def _extend(self, more: Usage) -> Extension:
        self._may_extend()
        return self._gate.extend_sync(self.admission, more)

    def _may_extend(self) -> None:
        self._may_ask()
        if self._denial is not None:
            raise Denied(self._denial)


class Metering(_Metering):
    """
    The metering of an ASGI request or WebSocket: `scope["state"]["tollkeeper"]`.

    Set *usage* (model, tokens, cost) before the response ends; set *void* for a request that should not
    count at all. A dialect with headers for usage sends the values that are set when the response
    starts.
    """

    __slots__ = ()

    def expect(self, expected: Usage) -> Coroutine[Any, Any, None]:
        """
        Hold *expected* in place of what the request holds: its real model and the most that it may use in all.

        The old hold counts until the new one does, in one step. A request that is refused may ask again.

        Args:
            expected: Without a model it has the one of the hold. Tags that are set count.

        Raises:
            Denied: It does not fit, or its model has no price (setting `unknown_price`): nothing has changed.
            HoldEnded: The response has ended.
        """
        _on_a_loop("expect")
        return self._expect_async(expected)

    async def _expect_async(self, expected: Usage) -> None:
        self._may_ask()
        self._noted(await self._gate.expect(self.admission, expected, self._tags), expected)

    def expect_sync(self, expected: Usage) -> None:
        """`expect` in a thread, such as a handler that is no coroutine."""
        _in_a_thread("expect")
        self._expect(expected)

    def extend(self, more: Usage) -> Coroutine[Any, Any, Extension]:
        """
        Hold *more* in addition, or as much of it as is left: `granted`, which may be none. True when it is all.

        So a stream goes on to the last token that is paid for; `denial` is the reason to give then. The hold is of a
        request that goes on: that less is granted does not refuse it.

        Raises:
            Denied: The request was refused by `expect`.
            HoldEnded: The response has ended.
        """
        _on_a_loop("extend")
        return self._extend_async(more)

    async def _extend_async(self, more: Usage) -> Extension:
        self._may_extend()
        return await self._gate.extend(self.admission, more)

    def extend_sync(self, more: Usage) -> Extension:
        """`extend` in a thread."""
        _in_a_thread("extend")
        return self._extend(more)


class WsgiMetering(_Metering):
    """The metering of a WSGI request: `environ["tollkeeper.metering"]`. As `Metering`, without `await`."""

    __slots__ = ()

    def expect(self, expected: Usage) -> None:
        """See `Metering.expect`."""
        self._expect(expected)

    def extend(self, more: Usage) -> Extension:
        """See `Metering.extend`."""
        return self._extend(more)

    expect_sync = expect
    extend_sync = extend


class HasInstallation(Protocol):
    """The installation that a middleware uses, such as `embedded.Tollkeeper`."""

    @property
    def installation(self) -> Installation:
        """The installation that decides and books."""


_NO_OUTCOME: Final = Outcome()


def is_used(usage: Usage) -> bool:
    """Return whether *usage* states that something was used."""
    return bool(usage.tokens or usage.quantities or usage.cost_nanos or usage.credits)


def outcome_of(metering: _Metering, status: int, started_ns: int, bytes_out: int) -> Outcome:
    """
    Return what an admitted request used, as of now.

    Args:
        started_ns: When the app was called, by `time.perf_counter_ns`.
    """
    return Outcome(
        status,
        metering._usage,
        metering._error_type,
        (time.perf_counter_ns() - started_ns) // 1000,
        bytes_out,
        metering._cache,  # type: ignore[arg-type]
        metering._tags,
        metering._estimated,
    )


def _is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _on_a_loop(name: str) -> None:
    if not _is_on_a_loop():
        raise RuntimeError(f"There is no event loop in this thread: call metering.{name}_sync(…).")


def _in_a_thread(name: str) -> None:
    if _is_on_a_loop():
        raise RuntimeError(f"An event loop runs in this thread: call await metering.{name}(…).")
