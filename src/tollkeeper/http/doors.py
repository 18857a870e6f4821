"""
The gate as the middleware uses it: one small interface, for an installation of this process or a running server.

`embedded_door` has the first, `tollkeeper.remote` the other. Both answer a caller in a profile's words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.errors import BadParameter
from tollkeeper.http.asgi_types import RawHeaders, Scope
from tollkeeper.http.denials import denial_body, denial_headers
from tollkeeper.http.metered import TextHeaders
from tollkeeper.http.problems import PROBLEM_MEDIA_TYPE
from tollkeeper.metering import RequestGate
from tollkeeper.profiles import names


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


class Door(RequestGate, Protocol):
    """What the middleware asks of a gate. An admission is ended once, by one of the methods from `settle` on."""

    async def admit(
        self, scope: Scope, method: str, path: str, expected: Usage, tags: Mapping[str, str]
    ) -> Admitted | Refusal:
        """Read the api key of a request and decide it."""

    async def headers_at_start(self, admitted: Admitted, outcome: Outcome) -> TextHeaders:
        """Return the headers of an answer that begins, with what the request is known to have used by then."""

    async def refusal(self, scope: Scope, method: str, path: str, admission: Any, denial: Denial) -> Refusal:
        """Return the answer to a request that was admitted, and refused what it asked for afterwards."""

    async def settle(self, admission: Any, outcome: Outcome) -> None:
        """Book what the request used; return once it is durable, if the middleware is `durable`."""

    async def void(self, admission: Any) -> None:
        """End the request as if it never was."""

    async def deny(self, admission: Any, denial: Denial, model: str) -> None:
        """End the request as refused, what it held included."""

    async def settle_later(self, admission: Any, outcome: Outcome, timeout_s: int | None) -> None:
        """
        Leave the request open for *timeout_s* seconds, then book *outcome*, unless `settle_late` does before.

        Return once that is durable, if the middleware is `durable`.
        """

    def settle_soon(self, admission: Any, outcome: Outcome) -> None:
        """Book what the request used, without waiting: its task may be cancelled."""

    def void_soon(self, admission: Any) -> None:
        """End the request as if it never was, without waiting."""

    def deny_soon(self, admission: Any, denial: Denial, model: str) -> None:
        """End the request as refused, without waiting."""

    def settle_later_soon(self, admission: Any, outcome: Outcome, timeout_s: int | None) -> None:
        """Do `settle_later` without waiting."""


class SyncDoor(RequestGate, Protocol):
    """What the WSGI middleware asks of a gate, from any thread; as `Door`, but blocking."""

    def admit(
        self, scope: Scope, method: str, path: str, expected: Usage, tags: Mapping[str, str]
    ) -> Admitted | Refusal:
        """As `Door.admit`; *scope* is that of `environs.scope_of`."""

    def headers_at_start(self, admitted: Admitted, outcome: Outcome) -> TextHeaders:
        """As `Door.headers_at_start`."""

    def refusal(self, scope: Scope, method: str, path: str, admission: Any, denial: Denial) -> Refusal:
        """As `Door.refusal`."""

    def settle(self, admission: Any, outcome: Outcome, *, wait: bool) -> None:
        """Book what the request used; with *wait*, return once it is durable, if the middleware is `durable`."""

    def void(self, admission: Any) -> None:
        """End the request as if it never was."""

    def deny(self, admission: Any, denial: Denial, model: str) -> None:
        """As `Door.deny`."""

    def settle_later(self, admission: Any, outcome: Outcome, timeout_s: int | None, *, wait: bool) -> None:
        """As `Door.settle_later`; *wait* as of `settle`."""


class HasSyncDoor(Protocol):
    """A gate that brings its own door for WSGI, such as `remote.Tollkeeper`."""

    cors_origins: str
    """As the setting."""

    def sync_door(self, **options: Any) -> SyncDoor:
        """Return the door for one middleware; *options* as of `HasDoor.door`."""


class HasDoor(Protocol):
    """A gate that brings its own door, such as `remote.Tollkeeper`."""

    cors_origins: str
    """As the setting."""

    def door(self, *, profile: str | None, durable: bool, sessions: bool | None, key_parameter: str) -> Door:
        """Return the door for one middleware; its options are those of `asgi.Middleware`."""


def text_headers(headers: RawHeaders) -> dict[str, str]:
    """Return a request's headers by their lower-case names; of several with one name the first counts."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(list(headers))}


def refusal_of(denial: Denial) -> Refusal:
    """Return *denial* as its problem document."""
    headers = [(b"content-type", PROBLEM_MEDIA_TYPE.encode()), *denial_headers(denial)]
    return Refusal(denial.status, headers, denial_body(denial))


def check_key_parameter(name: str, profile: str) -> None:
    """Raise `BadParameter` where an API that speaks a *profile* is to read keys from a query: no vendor does."""
    if name and profile not in ("", "native"):
        raise BadParameter(
            f"key_parameter must be empty with profile {profile!r}, which reads keys as its vendor does: in headers",
            field="key_parameter",
        )


def check_profile(name: str) -> None:
    """Raise `BadParameter` unless *name* is a profile, native, or empty."""
    if name not in ("", "native") and name not in names():
        raise BadParameter(f"{name!r} is no profile: it must be one of {', '.join(names())}", field="profile")
