"""
What a profile is: one vendor's dialect of the usage API, in one module that knows no storage.

A profile says which endpoints it has, reads a credential from a request the vendor's way, and renders
answers and errors. Whatever it needs of Tollkeeper it asks its `ProfileContext`. It decides nothing about money or
limits: the gate does, and the profile words the outcome.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    Protocol,
    get_args,
    get_origin,
    runtime_checkable,
)

import msgspec

from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import Key, KeyState, Limit, Plan, Route, Subscription
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.events import Record
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.limit_status import LimitStatus, Session
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.errors import BadParameter, TollkeeperError, TooManyQueries, without_handles

NATIVE: Final = "native"
"""The profile of keys that speak no vendor's dialect."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
"""A whole number that every JSON reader holds: what a setting with a number as its default may be."""
ErrorStatus = Annotated[int, msgspec.Meta(ge=400, le=599)]
Places = Annotated[int, msgspec.Meta(ge=0, le=9)]
"""Decimals of a number in an answer."""
Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]

log = logging.getLogger("tollkeeper.profiles")


class Call(NamedTuple):
    """
    One request to a vendor's endpoint.

    Attributes:
        path: As the vendor has it, without the `/<profile>` prefix and the query.
        query: Parameter → its values as given, in order; blank ones too.
        headers: Lower-case name → value (the first, when given twice).
        params: Placeholders of the endpoint's template → their text.
        now: The instant of the request, aware UTC. A profile reads no other clock.
        request_id: Unique; echoed where the vendor has such a thing.
        settings: The profile's own switches, as `ProfileContext.settings`.
        route: Of a metered request that is refused: the policy it met; None for an unknown route.
    """

    method: str
    path: str
    query: Mapping[str, Sequence[str]]
    headers: Mapping[str, str]
    body: bytes
    params: Mapping[str, str]
    now: datetime
    request_id: str
    settings: Mapping[str, Any] = {}
    route: Route | None = None

    def first(self, name: str) -> str | None:
        """Return the first value of a query parameter, or None."""
        values = self.query.get(name)
        return values[0] if values else None


class Reply(NamedTuple):
    """An answer. *body* is a JSON value whose member order is kept, or None for no body."""

    status: int
    body: Any = None
    headers: Sequence[tuple[str, str]] = ()
    media_type: str = "application/json"


class ProfileContext(Protocol):
    """
    What a profile may ask of Tollkeeper. Every method may raise `errors.Unavailable` when a store fails.
    All of it is blocking; the server calls profiles in threads.
    """

    settings: Mapping[str, Any]
    """The profile's own switches (`Profile.settings` with what the deployment overrides)."""

    def find_key(self, secret: str) -> StoredKey | None:
        """
        Return the consumption key of *secret* in whatever state (see `StoredKey.state_at`), tombstones too,
        if it was made for this profile; else None.
        """

    def find_management_key(self, secret: str) -> StoredKey | None:
        """Return the management key (`mk_…`) of *secret* in whatever state, or None."""

    def session(self, token: str) -> Session | None:
        """
        Return who *token* (our own login's, or a JWT of the configured issuer) stands for.

        None for a bad token, and for one of an account that is unknown or not active.
        """

    def entitlement(self, key: StoredKey) -> Entitlement | None:
        """Return plan, subscription, limits and budgets of a key; None without its account."""

    def pass_limits(self, key: StoredKey, route: Route) -> Denial | None:
        """Count one request to *route* against the key's rate limits (only); return a refusal or None."""

    def spend(self, account_id: str, name: str, limit: Limit, *, from_first: bool = False) -> Denial | Any:
        """
        Count one against a limit of an account that belongs to no key; durable when this returns.

        Returns a refusal, or what `give_back` takes.

        With *from_first* a `fixed` window opens with its first request instead of at a multiple of its length.
        """

    def give_back(self, counted: Any) -> None:
        """Take back what `spend` counted, once: the call failed on our side. Durable when this returns."""

    def limit_status_of(self, account_id: str, name: str, limit: Limit) -> LimitStatus:
        """Return where a limit stands that `spend` counts (without *from_first*)."""

    def record(self, key: StoredKey, route: Route, status: int) -> None:
        """Book a call to a usage endpoint as a free event of *key*, for dialects that count these."""

    def record_unkeyed(self, account_id: str, route: Route, status: int) -> None:
        """Book a call made under a session as a free event of its account, without a key."""

    def rotation_chain(self, key: StoredKey) -> Sequence[str]:
        """Return the ids of the keys that rotations made of one another, *key* among them."""

    def limit_statuses(self, key: StoredKey) -> list[LimitStatus]:
        """Return where each limit, budget and balance of an active key stands: limits, budgets, credit."""

    def usage(self, query: UsageQuery) -> UsageReport:
        """
        Answer a usage query; the answer contains everything that was acknowledged before.

        Raises:
            Unavailable: It would lack some of it.
        """

    def balance_nanos(self, account_id: str) -> int:
        """Return what an account may still spend of its credit; negative while overdrawn."""

    def top_ups_nanos(self, account_id: str) -> int:
        """Return the sum of all top-ups and grants that an account ever got."""

    def keys(self, account_id: str) -> list[StoredKey]:
        """Return all keys of an account and of this profile, newest first, tombstones too."""

    def key(self, key_id: str) -> StoredKey | None:
        """Return a key of this profile by its id, or None."""

    def subscriptions(self, account_id: str) -> list[Subscription]:
        """Return the subscriptions of an account."""

    def plans(self) -> list[Plan]:
        """Return all plans, sellable or not."""

    def issue_key(self, key: Key, by: Customer) -> tuple[StoredKey, str]:
        """
        Make a key of this profile (its id should be a uuid4) for a customer and return it with its secret.

        Raises:
            Forbidden: The customer would be freer than the operator made it; the message says what to do.
        """

    def new_key_id(self) -> str:
        """Return a fresh uuid4."""

    def set_key_state(self, key: StoredKey, state: KeyState, by: Customer) -> None:
        """
        Set a key's state for a customer, in force when this returns.

        Raises:
            Forbidden: The operator made it inactive, or an alert: only the operator makes it active.
        """


class Endpoint(NamedTuple):
    """One endpoint of a dialect. *path* is a template: `{name}` stands for one segment."""

    method: str
    path: str
    handle: Callable[[Call, ProfileContext], Reply]


class Metered(NamedTuple):
    """A request of the provider's own API that went through the gate, for a profile to word headers."""

    key: StoredKey
    route: Route
    limit_statuses: Sequence[LimitStatus]
    now: datetime
    request_id: str
    settings: Mapping[str, Any] = {}
    """The profile's own switches, as `ProfileContext.settings`."""
    entitlement: Entitlement | None = None
    """Of the key: its plan, limits and budgets."""


class Used(NamedTuple):
    """
    What a metered request used, for its headers.

    Attributes:
        record: As it is booked; before the request has ended, as it would be if it ended now.
        complete: Whether tokens and cost are known. An answer that streams begins before they are.
    """

    record: Record
    complete: bool


class Profile(Protocol):
    """One dialect. Instances are stateless and shared."""

    name: str
    key_prefix: str
    """What the secrets of its keys begin with."""

    settings: Mapping[str, Any]
    """Every point that the vendor leaves open: name → our default."""

    setting_types: Mapping[str, Any]
    """
    What a setting may be, where that is not any value of its default's type: name → a type as
    `msgspec.convert` takes it, or a function that raises ValueError with what is allowed. A whole number is
    at least 0 unless it says otherwise.
    """

    endpoints: Sequence[Endpoint]
    catalog: str
    """A declarative file (TOML) with the vendor's plans and the routes of its API, to start from."""

    refusals_count: bool
    """Whether a request that is refused for want of money counts against the rate limits all the same."""

    def credential(self, headers: Mapping[str, str]) -> str:
        """Return the api key of a metered request (lower-case header names), or `""`."""

    def not_found(self, call: Call, allowed: Sequence[str], context: ProfileContext) -> Reply:
        """Answer a path that the dialect does not have, or a method that it has not there (*allowed*)."""

    def failed(self, call: Call, error: Exception) -> Reply:
        """
        Answer an error that no handler expected, or one of the server before any handler.

        `errors.Unavailable` means that a store is away; `errors.BadInput` that the request is at fault, as its
        text says, which is safe to show.
        """

    def refused(self, call: Call, denial: Denial, metered: Metered | None) -> Reply:
        """
        Answer a metered request that the gate refused; *metered* is None when no key was recognised.

        Also a failing credential from an address where too many failed: `rate_limited`, without a key.
        """

    def metered_headers(self, metered: Metered) -> Sequence[tuple[str, str]]:
        """Return the headers of a metered request's answer."""


@runtime_checkable
class MeteredProfile(Protocol):
    """
    What a gateway's dialect may add to `Profile` on metered traffic; a profile without it adds nothing.

    *settings* are the profile's own switches, as `ProfileContext.settings`.
    """

    def refuses_metered(self, secret: str, settings: Mapping[str, Any]) -> bool:
        """Tell whether keys of this family may make no metered request at all, known or not."""

    def tags(self, headers: Mapping[str, str], settings: Mapping[str, Any]) -> Mapping[str, str]:
        """Return the tags that a request's headers (lower-case names) give its event."""

    def settled_headers(self, metered: Metered, used: Used) -> Sequence[tuple[str, str]]:
        """
        Return the headers that tell what a request used; each replaces the one of `metered_headers`.

        *metered* has the standings as they are once the request has ended with *used*.
        """


@runtime_checkable
class WebhookProfile(Protocol):
    """What a vendor's dialect may add to every webhook message; a profile without it adds nothing."""

    def webhook_headers(self, body: bytes, secret: str) -> Mapping[str, str]:
        """Return the headers in which the vendor's receivers look for the signature of *body* under *secret*."""


def failure(profile: Profile, call: Call, error: Exception) -> Reply:
    """
    Return how *profile* words *error*, which is logged unless it is one of ours.

    For a handler that knows its caller by then, and adds the caller's headers; whatever it lets through comes
    here too.
    """
    error = without_handles(error) or error
    if isinstance(error, TooManyQueries):
        # Worded as any other limit of rate: a dialect has no other words for it.
        denial = Denial(
            "rate_limited",
            str(error),
            limit="usage_queries",
            unit="requests",
            allowed=2,
            retry_after_s=error.retry_after_s,
        )
        return profile.refused(call, denial, None)
    if not isinstance(error, TollkeeperError):
        log.error("tollkeeper.profile.failed", exc_info=error, extra={"request_id": call.request_id})
    return profile.failed(call, error)


def settings_of(profile: Profile, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """
    Return the settings of *profile*: those that are *given*, its defaults for the others.

    Raises:
        BadParameter: A setting is unknown, or its value is not one that it may have.
    """
    for name, value in given.items():
        if name not in profile.settings:
            raise BadParameter(
                f"profile {profile.name} has no setting {name!r}: it has {', '.join(profile.settings)}",
                field="profile_settings",
            )
        fault = setting_fault(profile, name, value)
        if fault is not None:
            raise BadParameter(
                f"setting {name} of profile {profile.name} cannot be {value!r}: {fault}",
                field="profile_settings",
            )
    return {**profile.settings, **given}


def setting_fault(profile: Profile, name: str, value: Any) -> str | None:
    """Return why the setting *name* cannot be *value*, with what it may be; None when it can."""
    kind = _type_of(profile.settings[name])
    check = profile.setting_types.get(name, kind)
    try:
        if inspect.isfunction(check):
            msgspec.convert(value, kind)
            check(value)
        else:
            msgspec.convert(value, check)
    except msgspec.ValidationError as exc:
        choices = _choices(check)
        if choices:
            return f"one of {', '.join(map(repr, choices))}"
        return str(exc).replace("`", "").partition(" - at ")[0]
    except ValueError as exc:
        return str(exc)
    return None


def missing_members(profile: object) -> list[str]:
    """Return what *profile* would have to have besides, to be a `Profile`."""
    members = [
        *Profile.__annotations__,
        *(name for name, of in vars(Profile).items() if inspect.isfunction(of)),
    ]
    return [name for name in members if not name.startswith("_") and not hasattr(profile, name)]


def _type_of(default: Any) -> Any:
    return Count if type(default) is int else type(default)


def _choices(kind: Any) -> list[Any]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [choice for part in get_args(kind) for choice in _choices(part)]
