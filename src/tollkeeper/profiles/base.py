"""
The contract of a profile: one vendor's dialect of the usage API, without storage.

A profile has endpoints, reads a credential from a request as its vendor does, and renders answers and errors.
Everything that it needs of Tollkeeper comes from its `ProfileContext`. It decides nothing about money or limits: the
gate does, and the profile words the outcome.
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
from tollkeeper.domain.requirements import requirement
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.errors import BadParameter, TollkeeperError, TooManyQueries, without_handles

NATIVE: Final = "native"
"""The profile of keys that speak no vendor's dialect."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
"""A whole number that every JSON reader can hold: the type of a setting whose default is a whole number."""
ErrorStatus = Annotated[int, msgspec.Meta(ge=400, le=599)]
Places = Annotated[int, msgspec.Meta(ge=0, le=9)]
"""Decimals of a number in an answer."""
_WORDS: Final[Mapping[type, str]] = {bool: "true, false", str: "text", int: "a whole number", list: "a list"}
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
        settings: As `ProfileContext.settings`.
        route: The route of a metered request that is refused; None when it matches no route.
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
    The part of an installation that one profile may use.

    Every method may raise `errors.Unavailable` when a store fails. All methods block; the server calls profiles in
    threads.
    """

    settings: Mapping[str, Any]
    """`Profile.settings` with the values that the deployment sets in `profile_settings`."""

    def find_key(self, secret: str) -> StoredKey | None:
        """
        Return this profile's consumption key with the secret *secret*, or None.

        Keys of every state are returned, deleted ones too: check `StoredKey.state_at`.
        """

    def find_management_key(self, secret: str) -> StoredKey | None:
        """Return the management key (`mk_…`) with the secret *secret*, in any state, or None."""

    def session(self, token: str) -> Session | None:
        """
        Return the session of *token*: one of Tollkeeper's own login, or a JWT of the configured issuer.

        None when the token is not valid, and when its account is unknown or not active.
        """

    def entitlement(self, key: StoredKey) -> Entitlement | None:
        """Return the plan, subscription, limits and budgets of a key; None when its account is unknown."""

    def pass_limits(self, key: StoredKey, route: Route) -> Denial | None:
        """Count one request to *route* against the key's rate limits, not its budgets; return the refusal, or None."""

    def count_call(self, key: StoredKey, route: Route) -> Denial | Any:
        """
        Count one request as `pass_limits` does; return the refusal, or a receipt for `give_back`.

        `toolkit.answered` gives back a call that fails on our side.
        """

    def spend(self, account_id: str, name: str, limit: Limit, *, from_first: bool = False) -> Denial | Any:
        """
        Count one call against a limit that belongs to an account instead of a key. Durable when this returns.

        *name* is the counter's: calls with the same account and name share it. With *from_first* a `fixed` window
        opens with its first call instead of at a multiple of its length.

        Returns the refusal, or a receipt for `give_back`.
        """

    def give_back(self, counted: Any) -> None:
        """
        Take back a call that `spend` or `count_call` counted and that failed on our side, once.

        Of `spend`, durable when this returns.
        """

    def limit_status_of(self, account_id: str, name: str, limit: Limit) -> LimitStatus:
        """Return the status of a limit that `spend` counts without *from_first*; counts nothing."""

    def record(self, key: StoredKey, route: Route, status: int, denial: Denial | None = None) -> None:
        """
        Record a call to a usage endpoint as a free event of *key*, for dialects that count such calls.

        With *denial*, as a request that this refused.
        """

    def record_unkeyed(
        self, account_id: str, route: Route, status: int, denial: Denial | None = None
    ) -> None:
        """Record a call under a session as a free event of its account, without a key; *denial* as in `record`."""

    def rotation_chain(self, key: StoredKey) -> Sequence[str]:
        """Return the ids of all keys of a rotation: *key*, the keys it replaced and those that replaced it."""

    def time_zone(self, account_id: str) -> str:
        """Return where days and months begin for an account: by the setting `time_zone`, else by its own zone."""

    def limit_statuses(self, key: StoredKey) -> list[LimitStatus]:
        """Return the status of each limit, then each budget, then the credit of an active key."""

    def usage(self, query: UsageQuery) -> UsageReport:
        """
        Return the report of a usage query, with every event that was acknowledged before.

        Raises:
            Unavailable: The report would lack acknowledged events.
        """

    def balance_nanos(self, account_id: str) -> int:
        """Return the credit that an account has left; negative while it is overdrawn."""

    def top_ups_nanos(self, account_id: str) -> int:
        """Return the sum of all top-ups and grants of an account, used and expired ones too."""

    def keys(self, account_id: str) -> list[StoredKey]:
        """Return this profile's consumption keys of an account, newest first, deleted ones too."""

    def key(self, key_id: str) -> StoredKey | None:
        """Return this profile's consumption key with an id, or None."""

    def subscriptions(self, account_id: str) -> list[Subscription]:
        """Return the subscriptions of an account."""

    def plans(self) -> list[Plan]:
        """Return all plans, sellable or not."""

    def issue_key(self, key: Key, by: Customer) -> tuple[StoredKey, str]:
        """
        Make a key of this profile for a customer; return it with its secret. Its id should be `new_key_id()`.

        Raises:
            Forbidden: The key would have more freedom than the operator gave the customer. The message says how to
                get the key.
        """

    def new_key_id(self) -> str:
        """Return a fresh uuid4."""

    def set_key_state(self, key: StoredKey, state: KeyState, by: Customer) -> None:
        """
        Set a key's state for a customer. In force when this returns.

        Raises:
            Forbidden: The operator or an alert made the key inactive: only the operator may make it active.
        """


class Credential(NamedTuple):
    """
    What a client of the vendor sends with a call.

    Attributes:
        kind: Whose it is, for people: `key`, `management key`, `session`, several with ` or `; `none`.
        header: `Name: value`, in which `{secret}` stands for the credential; `""` for none.
    """

    kind: str
    header: str


BEARER_KEY: Final = Credential("key", "Authorization: Bearer {secret}")
NO_CREDENTIAL: Final = Credential("none", "")


class Endpoint(NamedTuple):
    """
    One endpoint of a dialect. *path* is a template: `{name}` stands for one segment.

    Attributes:
        credential: What the vendor's client sends.
        query: Of an example call, `projectId={project}`: the project of the key.
        body: Of an example call, as JSON text; `""` for none.
    """

    method: str
    path: str
    handle: Callable[[Call, ProfileContext], Reply]
    credential: Credential = BEARER_KEY
    query: str = ""
    body: str = ""


class Metered(NamedTuple):
    """A request of the provider's own API that went through the gate: the source of its vendor headers."""

    key: StoredKey
    route: Route
    limit_statuses: Sequence[LimitStatus]
    now: datetime
    request_id: str
    settings: Mapping[str, Any] = {}
    """As `ProfileContext.settings`."""
    entitlement: Entitlement | None = None
    """Of the key: its plan, limits and budgets."""


class Used(NamedTuple):
    """
    The usage of a metered request, for its headers.

    Attributes:
        record: As it is recorded; while the request runs, as it would be recorded if it ended now.
        complete: Whether tokens and cost are known. A streamed answer begins before they are.
    """

    record: Record
    complete: bool


class Profile(Protocol):
    """One dialect. Instances are stateless and shared."""

    name: str
    key_prefix: str
    """The prefix of its keys' secrets."""

    settings: Mapping[str, Any]
    """The choices that the vendor leaves open: name → our default."""

    setting_types: Mapping[str, Any]
    """
    The values that a setting may have, if not every value of its default's type: name → a type for
    `msgspec.convert`, or a function that raises ValueError with the allowed values. A whole number must be at
    least 0 unless its type says otherwise.
    """

    endpoints: Sequence[Endpoint]
    catalog: str
    """The text of a declarative file (TOML) with the vendor's plans and routes, for an operator to start from."""

    refusals_count: bool
    """Whether the rate limits count a request that a budget or credit refuses."""

    def credential(self, headers: Mapping[str, str]) -> str:
        """Return the api key of a metered request (lower-case header names), or `""`."""

    def not_found(self, call: Call, allowed: Sequence[str], context: ProfileContext) -> Reply:
        """Answer a path that the dialect does not have; with *allowed*, a path that has only these methods."""

    def failed(self, call: Call, error: Exception) -> Reply:
        """
        Answer an error that no handler caught, or one that the server found before any handler.

        `errors.Unavailable` means that a store is away. `errors.BadInput` means that the caller can mend the
        request; its text is safe to show.
        """

    def refused(self, call: Call, denial: Denial, metered: Metered | None) -> Reply:
        """
        Answer a metered request that the gate refused; *metered* is None without a known key.

        It also answers a bad credential from an address with too many of them: `rate_limited`, without a key.
        """

    def metered_headers(self, metered: Metered) -> Sequence[tuple[str, str]]:
        """Return the headers of a metered request's answer."""


@runtime_checkable
class MeteredProfile(Protocol):
    """
    Methods that a gateway's dialect adds to `Profile` for metered requests; most profiles have none of them.

    *settings* are as `ProfileContext.settings`.
    """

    def refuses_metered(self, secret: str, settings: Mapping[str, Any]) -> bool:
        """Return whether a key with this secret may make no metered request, known or not: its prefix forbids it."""

    def tags(self, headers: Mapping[str, str], settings: Mapping[str, Any]) -> Mapping[str, str]:
        """Return the tags that a request's headers (lower-case names) give its event."""

    def settled_headers(self, metered: Metered, used: Used) -> Sequence[tuple[str, str]]:
        """
        Return the headers with the usage of a request; each replaces the same header of `metered_headers`.

        *metered* has the limit statuses after the request has ended with *used*.
        """


@runtime_checkable
class SessionProfile(Protocol):
    """What a dialect has whose dashboard users call the provider's own API with their sessions, beside its keys."""

    admits_sessions: bool
    """Whether the gate admits a session token that `Profile.credential` returns, for the account's own pools."""


@runtime_checkable
class WebhookProfile(Protocol):
    """What a vendor's dialect may add to every webhook message; a profile without it adds nothing."""

    def webhook_headers(self, body: bytes, secret: str) -> Mapping[str, str]:
        """Return the headers in which the vendor's receivers look for the signature of *body* under *secret*."""


def failure(profile: Profile, call: Call, error: Exception) -> Reply:
    """
    Return the reply of *profile* to *error*; an error that is not a `TollkeeperError` is logged.

    A handler that knows its caller catches errors, calls this, and adds the caller's headers. The server calls it
    for errors that a handler does not catch.
    """
    error = without_handles(error) or error
    if isinstance(error, TooManyQueries):
        # A dialect words it as any other rate limit.
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


def credential_headers(profile: Profile) -> Sequence[str]:
    """
    Return the names of the headers that may carry a credential, for `Vary`.

    A profile whose keys come elsewhere than in `Authorization` has them in an attribute `credential_headers`.
    """
    names: Sequence[str] = getattr(profile, "credential_headers", ("Authorization",))
    return names


def settings_of(profile: Profile, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """
    Return the settings of *profile*: the *given* values, and its defaults for the others.

    Raises:
        BadParameter: A setting is unknown, or cannot have its value.
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
    """Return why the setting *name* cannot have *value*, with the allowed values; None when it can."""
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
            return f"it must be one of {', '.join(map(repr, choices))}"
        return f"it {requirement(str(exc))}"
    except ValueError as exc:
        return str(exc)
    return None


def allowed_values(profile: Profile, name: str) -> str:
    """Return which values the setting *name* may have, for people: its choices, its bounds, or its type."""
    default = profile.settings[name]
    check = profile.setting_types.get(name, _type_of(default))
    if inspect.isfunction(check):
        return _WORDS.get(type(default), "an object")
    if choices := _choices(check):
        return ", ".join(str(choice) for choice in choices)
    schema = msgspec.json.schema(check)
    if schema.get("type") == "integer":
        least, most = schema.get("minimum", 0), schema.get("maximum", 2**53 - 1)
        return f"{least} to {most}" if most < 2**53 - 1 else f"a whole number, {least} or more"
    return _WORDS.get(type(default), "an object")


def missing_members(profile: object) -> list[str]:
    """Return the names of the members that *profile* lacks to be a `Profile`."""
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
