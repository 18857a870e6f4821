"""
The calls between the admission of a request and its ending: other amounts held, or an ending that comes later.

Each states the whole amount that is wanted, or from where on more is, so that a repeat changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tollkeeper.domain.decisions import Amounts, Denial
from tollkeeper.domain.events import parse_time_us
from tollkeeper.domain.extensions import Extension, plus
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.errors import Unavailable
from tollkeeper.remote import messages
from tollkeeper.remote.admission import Admission
from tollkeeper.remote.connections import Answer
from tollkeeper.remote.messages import Refused

Call = Callable[[str, bytes], Answer]
AsyncCall = Callable[[str, bytes], Awaitable[Answer]]
Away = Callable[[Unavailable], Denial]


class HoldCalls:
    """
    What the metering of a request asks of a server. Those without `_async` are for threads.

    Args:
        call, call_async: Post a body to a path, with repeats. Raise Unavailable.
        away: Returns the denial while the server is away.
        hold_s: Seconds that a hold lasts from each change on; by the server's setting if None.
    """

    def __init__(self, call: Call, call_async: AsyncCall, away: Away, hold_s: int | None) -> None:
        self._call = call
        self._call_async = call_async
        self._away = away
        self._hold_s = hold_s

    def expect(self, admission: Admission, expected: Usage, tags: Mapping[str, str]) -> Denial | None:
        """
        Hold *expected* in place of what a request holds, or return why it is refused.

        Raises:
            HoldEnded, HoldUnknown: It was ended, or has expired.
        """
        body = messages.expect_body(admission, expected, tags, self._hold_s)
        try:
            return _expected(admission, expected, tags, self._call(messages.EXPECT, body))
        except Unavailable as exc:
            return self._away(exc)

    async def expect_async(
        self, admission: Admission, expected: Usage, tags: Mapping[str, str]
    ) -> Denial | None:
        """`expect` for an event loop."""
        body = messages.expect_body(admission, expected, tags, self._hold_s)
        try:
            return _expected(admission, expected, tags, await self._call_async(messages.EXPECT, body))
        except Unavailable as exc:
            return self._away(exc)

    def extend(self, admission: Admission, more: Usage) -> Extension:
        """Hold as much of *more* as fits in addition. Raises HoldEnded, HoldUnknown."""
        body = messages.extend_body(admission, more, self._hold_s)
        try:
            return _extended(admission, more, self._call(messages.EXPECT, body))
        except Unavailable as exc:
            return Extension(denial=self._away(exc))

    async def extend_async(self, admission: Admission, more: Usage) -> Extension:
        """`extend` for an event loop."""
        body = messages.extend_body(admission, more, self._hold_s)
        try:
            return _extended(admission, more, await self._call_async(messages.EXPECT, body))
        except Unavailable as exc:
            return Extension(denial=self._away(exc))

    def settle_at_expiry(self, admission: Admission, outcome: Outcome, later_s: int) -> None:
        """Have *outcome* booked in *later_s* seconds, unless the hold is settled before."""
        body = settle_body(admission, outcome, later_s=later_s)
        messages.settled(self._call(messages.SETTLE, body))

    async def settle_at_expiry_async(self, admission: Admission, outcome: Outcome, later_s: int) -> None:
        """`settle_at_expiry` for an event loop."""
        body = settle_body(admission, outcome, later_s=later_s)
        messages.settled(await self._call_async(messages.SETTLE, body))

    def preview_headers(self, admission: Admission, outcome: Outcome) -> Mapping[str, str]:
        """Return the headers that the admission's dialect has for a request that ended now with *outcome*."""
        body = settle_body(admission, outcome, preview=True)
        return messages.settled(self._call(messages.SETTLE, body)).headers

    async def preview_headers_async(self, admission: Admission, outcome: Outcome) -> Mapping[str, str]:
        """`preview_headers` for an event loop."""
        body = settle_body(admission, outcome, preview=True)
        return messages.settled(await self._call_async(messages.SETTLE, body)).headers


def settle_body(
    admission: Admission, outcome: Outcome, *, preview: bool = False, later_s: int | None = None
) -> bytes:
    """Return the body of a settle: see `messages.settle_body`."""
    at = admission.id, admission.account_id, admission.expected
    return messages.settle_body(*at, outcome, preview=preview, later_s=later_s)


def _expected(
    admission: Admission, expected: Usage, tags: Mapping[str, str], answer: Answer
) -> Denial | None:
    said = messages.expected(answer)
    if isinstance(said, Refused):
        admission.refused = said
        return said.denial
    admission.expected = expected._replace(
        model=expected.model or admission.expected.model,
        variant=expected.variant or admission.expected.variant,
    )
    admission.tags = dict(tags)
    _take(admission, said)
    return None


def _extended(admission: Admission, more: Usage, answer: Answer) -> Extension:
    said = messages.expected(answer)
    if isinstance(said, Refused):
        return Extension(denial=said.denial)
    extension = messages.extension_of(said, more)
    if said.granted is not None:
        admission.expected = plus(admission.expected, extension.granted)
    _take(admission, said)
    return extension


def _take(admission: Admission, said: Any) -> None:
    admission.amounts = Amounts(1, said.held_tokens, int(said.held_nanos), said.held_credits)
    admission.expires_at_us = parse_time_us(said.expires_at)
