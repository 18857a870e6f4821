"""
The gate as the middleware uses it: one small interface, for an installation of this process or a running server.

`EmbeddedDoor` is the first, `tollkeeper.remote` has the other. Both answer a caller in a profile's words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.errors import BadParameter
from tollkeeper.http.asgi_types import RawHeaders, Scope
from tollkeeper.http.credentials import credential
from tollkeeper.http.denials import denial_body, denial_headers
from tollkeeper.http.executors import Threads
from tollkeeper.http.metered import Dialects, TextHeaders
from tollkeeper.http.problems import PROBLEM_MEDIA_TYPE
from tollkeeper.http.profiles import reply_parts
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.profiles import names

_THREADS: Final = 8
"""For what admission has to read first, such as a key that was not seen before: no loop waits for a store."""


class Refusal(NamedTuple):
    """The answer to a request that was not admitted, without `Content-Length`."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


class Admitted(NamedTuple):
    """
    A request that was admitted.

    Attributes:
        admission: `gate.admission.Admission`, or `remote.Admission`.
        headers: The dialect's headers of the answer; None without a dialect.
    """

    admission: Any
    headers: TextHeaders | None = None


class Door(Protocol):
    """What the middleware asks of a gate. An admission is ended once, by one of the last four."""

    async def admit(
        self, scope: Scope, method: str, path: str, expected: Usage, tags: Mapping[str, str]
    ) -> Admitted | Refusal:
        """Read the api key of a request and decide it."""

    async def headers_at_start(self, admitted: Admitted, outcome: Outcome) -> TextHeaders:
        """Return the headers of an answer that begins, with what the request is known to have used by then."""

    async def settle(self, admission: Any, outcome: Outcome) -> None:
        """Book what the request used; return once it is durable, if the middleware is `durable`."""

    async def void(self, admission: Any) -> None:
        """End the request as if it never was."""

    def settle_soon(self, admission: Any, outcome: Outcome) -> None:
        """Book what the request used, without waiting: its task may be cancelled."""

    def void_soon(self, admission: Any) -> None:
        """End the request as if it never was, without waiting."""


class HasDoor(Protocol):
    """A gate that brings its own door, such as `remote.Tollkeeper`."""

    def door(self, *, profile: str | None, durable: bool) -> Door:
        """Return the door for one middleware; its options are those of `asgi.Middleware`."""


def text_headers(headers: RawHeaders) -> dict[str, str]:
    """Return a request's headers by their lower-case names; of several with one name the first counts."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(headers)}


def refusal_of(denial: Denial) -> Refusal:
    """Return *denial* as its problem document."""
    headers = [(b"content-type", PROBLEM_MEDIA_TYPE.encode()), *denial_headers(denial)]
    return Refusal(denial.status, headers, denial_body(denial))


def check_profile(name: str) -> None:
    """Raise `BadParameter` unless *name* is a profile, native, or empty."""
    if name not in ("", "native") and name not in names():
        raise BadParameter(f"{name!r} is no profile: it must be one of {', '.join(names())}", field="profile")


class EmbeddedDoor:
    """The gate of an installation of this process."""

    def __init__(self, installation: Installation, *, profile: str | None, durable: bool) -> None:
        self._holds = installation.holds
        self._durable = durable
        self._now_us = installation.clock.now_us
        self._request_id = installation.gate.new_id
        self._threads = Threads("admit", _THREADS)
        name = installation.settings.root_profile if profile is None else profile
        check_profile(name)
        self._dialect = Dialects(
            installation.profile_settings, installation.gate, installation.directory, installation.clock
        ).of(name)

    async def admit(
        self, scope: Scope, method: str, path: str, expected: Usage, tags: Mapping[str, str]
    ) -> Admitted | Refusal:
        dialect = self._dialect
        if dialect is None:
            secret = credential(scope["headers"], bare=True)
            found = await self._threads.attempt(self._holds.admit, secret, method, path, expected, tags)
            return refusal_of(found) if isinstance(found, Denial) else Admitted(found)
        request_id = "req_" + self._request_id(self._now_us()).replace("-", "")
        headers = text_headers(scope["headers"])
        secret = dialect.credential(headers)
        # Those that the caller states win over those of its headers.
        tags = {**dialect.tags(headers), **tags}
        found = await self._threads.attempt(self._holds.admit, secret, method, path, expected, tags)
        if not isinstance(found, Denial) and (objection := dialect.objection(found, secret)) is not None:
            self._holds.void(found)
            found = objection
        if isinstance(found, Denial):
            reply = await self._threads.run(dialect.refused, secret, method, path, headers, found, request_id)
            return Refusal(*reply_parts(reply))
        return Admitted(found, await self._threads.attempt(dialect.headers, found, request_id))

    async def headers_at_start(self, admitted: Admitted, outcome: Outcome) -> TextHeaders:
        worded = admitted.headers or ()
        if self._dialect is None:
            return worded
        return await self._threads.attempt(
            self._dialect.headers_at_start, worded, admitted.admission, outcome
        )

    async def settle(self, admission: Any, outcome: Outcome) -> None:
        future = CommitFuture(asyncio.get_running_loop()) if self._durable else None
        if admission.matched is None:
            self._holds.settle(admission, outcome, future)
        else:
            # With a model or tags that it states only now, it may count where nothing is in memory yet.
            await self._threads.attempt(self._holds.settle, admission, outcome, future)
        if future is not None:
            await future.committed()

    async def void(self, admission: Any) -> None:
        self._holds.void(admission)

    def settle_soon(self, admission: Any, outcome: Outcome) -> None:
        self._holds.settle(admission, outcome)

    def void_soon(self, admission: Any) -> None:
        self._holds.void(admission)
