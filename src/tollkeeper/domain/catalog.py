"""
The catalog: everything that a provider sets up, as kinds of entry with the same names in the
declarative file, over HTTP and on the command line.

Each entry is a frozen struct that refuses unknown fields; `check()` states what a single entry must
fulfil by itself, `check_references()` what it needs of the others. Money is integer nanos, durations
and periods are text (`60s`, `month`, `30d`: see `periods`), instants are aware.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from tollkeeper.domain import periods
from tollkeeper.domain.decisions import UNITS
from tollkeeper.domain.entry import ID_PATTERN as ID_PATTERN
from tollkeeper.domain.entry import REQUEST_NANOS_MAX as REQUEST_NANOS_MAX
from tollkeeper.domain.entry import ChargeNanos, Count, Text
from tollkeeper.domain.entry import Entry as Entry
from tollkeeper.domain.entry import Invalid as Invalid
from tollkeeper.domain.entry import check_aware as _check_aware
from tollkeeper.domain.entry import check_id as _check_id
from tollkeeper.domain.matching import Match, Patterns, check_routes, parse_per
from tollkeeper.domain.model_aliases import ModelAlias as ModelAlias
from tollkeeper.domain.money import NANOS_MAX
from tollkeeper.domain.price_entries import PRICE_NANOS_MAX as PRICE_NANOS_MAX
from tollkeeper.domain.price_entries import Markup as Markup
from tollkeeper.domain.price_entries import Price as Price
from tollkeeper.domain.quantities import NAME_PATTERN, quantity_of_unit
from tollkeeper.domain.retention import RETENTION_PATTERN, retention_us
from tollkeeper.domain.route_templates import template_objection
from tollkeeper.domain.zones import zone_of

Unit = Annotated[
    str,
    msgspec.Meta(
        max_length=64,
        extra_json_schema={"pattern": rf"^({'|'.join(UNITS)}|quantity\.{NAME_PATTERN})$"},
    ),
]
"""
What a limit or budget counts. `nanos` is money, `credits` the provider's own unit; `quantity.NAME` is a quantity: its
amounts are micro-units here, and decimal units for callers (`catalog.quantity_amounts`).
"""

Retention = Annotated[str, msgspec.Meta(max_length=16, extra_json_schema={"pattern": RETENTION_PATTERN})]
"""How long single events are kept: see `domain.retention`."""

ChargeCredits = ChargeNanos

KeyState = Literal["active", "inactive", "expired", "revoked", "deleted"]
KeyType = Literal["subscription", "credit"]
Role = Literal["consumption", "management"]

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "*"})
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_URL: Final = re.compile(r"https?://[!-~]+\Z")
"""Visible ASCII only: a line break in it would end a header of the request that is sent there."""


class Account(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who pays; owns a balance, projects and keys."""

    kind = "accounts"

    id: str
    name: Text
    plan: str | None = None
    """Default plan of the account's keys."""
    time_zone: str = "UTC"
    """Of its budgets, its own and its plans', that state none."""
    active: bool = True
    keyless_credit_at: datetime | None = None
    """Its requests and events without a key draw on its credit balance from then on; never when absent."""
    sessions_reset_at: datetime | None = None
    """Session tokens that were issued before are no longer good."""
    retention: Retention | None = None
    """How long its single events are kept: `90d`, `12w`, `none` for ever; as the setting says when absent."""
    metadata: dict[str, str] = {}

    def check(self) -> None:
        super().check()
        check_zone(self.time_zone)
        if self.retention is not None:
            try:
                retention_us(self.retention)
            except ValueError as exc:
                raise Invalid("retention", str(exc)) from None
        _check_aware(self.keyless_credit_at, "keyless_credit_at")
        _check_aware(self.sessions_reset_at, "sessions_reset_at")


class Project(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of an account with its own keys and statistics."""

    kind = "projects"

    id: str
    account: str
    name: Text = ""


class Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The most to do per window.

    `fixed` windows are aligned to the Unix epoch. `from_first` windows open with the first request after the one
    before ended. `sliding` counts the last *window* at every instant, in sixtieths of the window: never more than
    *amount* in any span of that length. `concurrency` counts what is under way and has no window. `permits` is a
    token bucket: it holds up to *burst* permits and gains *amount* per window.
    """

    name: str
    amount: Count
    window: str = "1m"
    unit: Unit = "requests"
    algorithm: Literal["fixed", "from_first", "sliding", "concurrency", "permits"] = "fixed"
    burst: Count | None = None
    """Capacity of a `permits` limit; *amount* when absent."""
    bucket: str | None = None
    """Counts only routes of this rate bucket; all routes when absent."""
    match: Match | None = None
    """Counts only these requests; all when absent."""
    per: str | list[str] = "key"
    """What has a counter of its own: `key`, `project` or `account`, and each value of `model` or `tag.NAME`."""

    @property
    def is_whole(self) -> bool:
        """Whether it counts all requests of its key, project or account in one counter (or those of its bucket)."""
        return self.match is None and not parse_per(self.per).values

    def check(self, path: str) -> None:
        _check_id(self.name, f"{path}.name")
        _check_counted(self.match, self.per, ("key", "project", "account"), f"{path}.")
        _check_unit(self.unit, f"{path}.unit")
        if self.algorithm == "concurrency":
            if self.unit != "requests":
                raise Invalid(f"{path}.unit", "a concurrency limit must count requests: leave unit out")
            return
        try:
            seconds = periods.duration_s(self.window)
        except ValueError as exc:
            raise Invalid(f"{path}.window", str(exc)) from None
        if seconds > 366 * 86_400:
            raise Invalid(
                f"{path}.window", "a window must be at most 366 days: use a budget for longer spans"
            )
        if self.burst is not None and (self.algorithm != "permits" or self.burst < 1):
            raise Invalid(f"{path}.burst", "burst must be at least 1, with algorithm = 'permits'")


class PlanBudget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The most to spend per period, for each thing of *per* that is on the plan.

    `per = "subscription"` makes one pool that all keys of the subscription share; `per = "tag.user"` one for each end
    user of the account.
    """

    name: str
    amount: Count | None
    """Absent (null): unlimited, but counted."""
    unit: Unit = "nanos"
    period: str = "month"
    match: Match | None = None
    """Counts only these requests; all when absent."""
    per: str | list[str] = "subscription"
    """As of a limit, or `subscription`. With values alone (`tag.user`), the account's."""
    time_zone: str | None = None
    """Its account's when absent."""
    week_start: str = "monday"

    def check(self, path: str) -> None:
        _check_id(self.name, f"{path}.name")
        _check_counted(self.match, self.per, ("subscription", "key", "project", "account"), f"{path}.")
        _check_unit(self.unit, f"{path}.unit")
        _check_span(self.period, self.time_zone, self.week_start, path + ".")


class Plan(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is offered: limits, budgets, layers, price. A change makes a new version, kept beside the old."""

    kind = "plans"
    id_field = "slug"

    slug: str
    name: Text = ""
    limits: list[Limit] = []
    budgets: list[PlanBudget] = []
    layers: list[str] | None = None
    """Access layers that its keys may call; all when absent."""
    models: Patterns | None = None
    """Patterns of the models that its keys may use, e.g. `gpt-4o*`; all when absent."""
    price_nanos: Count = 0
    """What a subscription costs per billing period; shown, never charged by us."""
    sellable: bool = True
    metadata: dict[str, str] = {}

    def check(self) -> None:
        super().check()
        for index, limit in enumerate(self.limits):
            limit.check(f"limits[{index}]")
        for index, budget in enumerate(self.budgets):
            budget.check(f"budgets[{index}]")
        _check_unique([limit.name for limit in self.limits], "limits", "name")
        _check_unique([budget.name for budget in self.budgets], "budgets", "name")


class Subscription(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An account's tie to a plan. Its start anchors the plan's budgets by anniversary and `<n>d`."""

    kind = "subscriptions"

    id: str
    account: str
    plan: str
    started_at: datetime
    expires_at: datetime | None = None
    status: Literal["active", "canceled"] = "active"

    def check(self) -> None:
        super().check()
        _check_aware(self.started_at, "started_at")
        _check_aware(self.expires_at, "expires_at")

    @property
    def ends_at(self) -> datetime | None:
        """When its keys end; None while it goes on. Canceled, it runs to its `expires_at`, or has ended."""
        return self.started_at if self.status == "canceled" and self.expires_at is None else self.expires_at


class Key(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    A credential. Its secret is made by us and shown once, or brought as `sha256`; only the hash is stored.

    A `subscription` key is limited by its plan; a `credit` key draws on its account's credit balance.
    """

    kind = "keys"

    id: str
    account: str
    project: str | None = None
    name: Text = ""
    role: Literal["consumption", "management"] = "consumption"
    type: Literal["subscription", "credit"] = "subscription"
    profile: str = "native"
    subscription: str | None = None
    plan: str | None = None
    """Overrides the plan of the subscription and of the account."""
    limits: list[Limit] | None = None
    """Overrides the plan's limits."""
    models: Patterns | None = None
    """Patterns of the models that it may use, of those that its plan allows; all of these when absent."""
    state: Literal["active", "inactive", "expired", "revoked", "deleted"] = "active"
    expires_at: datetime | None = None
    sha256: str | None = None
    """Lower-case hex SHA-256 of an existing secret, of any form, to import; write-only."""
    created_at: datetime | None = None
    """When it was made; now when absent. It never changes."""
    metadata: dict[str, str] = {}

    def without_origin(self) -> Key:
        """Return the key as it is stored and compared: its hash and `created_at` are kept beside it."""
        return msgspec.structs.replace(self, sha256=None, created_at=None)

    @property
    def is_metered(self) -> bool:
        """Whether it makes requests that are counted: events, holds and budgets name no other keys."""
        return self.role == "consumption"

    @property
    def draws_on_credit(self) -> bool:
        """Whether its events charge the account's credit balance. Charging and verifying both ask this."""
        return self.type == "credit"

    def check(self) -> None:
        super().check()
        _check_aware(self.expires_at, "expires_at")
        _check_aware(self.created_at, "created_at")
        if self.role == "management" and self.type == "credit":
            raise Invalid("type", "a management key makes no requests that credit could pay: leave type out")
        if self.sha256 is not None and not _SHA256.match(self.sha256):
            raise Invalid(
                "sha256", "sha256 must be 64 lower-case hex digits: the SHA-256 of the whole secret"
            )
        for index, limit in enumerate(self.limits or []):
            limit.check(f"limits[{index}]")
            if parse_per(limit.per).owner not in ("key", None):
                # Shared by name, the amount of whichever key came last would hold for all.
                raise Invalid(
                    f"limits[{index}].per",
                    "a key's own limits must have per = 'key': put limits per project or account into a plan",
                )
        _check_unique([limit.name for limit in self.limits or []], "limits", "name")

    def __repr__(self) -> str:
        # Without the hash: what a trace shows is read by many.
        return f"Key(id={self.id!r}, account={self.account!r}, role={self.role!r}, state={self.state!r})"


class Budget(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most that one account, project or key spends per period."""

    kind = "budgets"

    id: str
    account: str
    project: str | None = None
    key: str | None = None
    amount: Count
    unit: Unit = "nanos"
    period: str = "month"
    time_zone: str | None = None
    """Its account's when absent."""
    week_start: str = "monday"
    anchor_at: datetime | None = None
    match: Match | None = None
    """Counts only these requests; all when absent."""
    per: str | list[str] | None = None
    """Each key or project of the account, or each value of `model` or `tag.NAME`, has a budget of its own."""

    def check(self) -> None:
        super().check()
        owners = ("account", "project", "key") if self.project is None and self.key is None else ()
        _check_counted(self.match, self.per or [], owners, "")
        _check_unit(self.unit, "unit")
        _check_span(self.period, self.time_zone, self.week_start, "")
        _check_aware(self.anchor_at, "anchor_at")
        if self.project is not None and self.key is not None:
            raise Invalid("key", "a budget must name a project or a key, not both: drop one")


class Grant(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    Credit given (`grant`) or bought (`top_up`) to an account's balance. Posted once; never changed.

    Spending draws on the lowest *priority* first, then on the soonest *expires_at*, then by id.
    """

    kind = "grants"

    id: str
    account: str
    amount_nanos: Annotated[int, msgspec.Meta(gt=0, le=NANOS_MAX)]
    source: Literal["grant", "top_up"] = "grant"
    priority: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 100
    expires_at: datetime | None = None
    note: Text = ""

    def check(self) -> None:
        super().check()
        _check_aware(self.expires_at, "expires_at")


class Route(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How requests to a method and path template are metered. `{name}` stands for one path segment,
    a trailing `*` for all that follows.
    """

    kind = "routes"

    id: str
    method: str
    path: str
    event_kind: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "request"
    """The `kind` of its meter events: request, scan, export, …"""
    credits: ChargeCredits = 0
    price_nanos: ChargeNanos = 0
    """Charged per request, beside what the tokens of a model cost."""
    free: bool = False
    """Neither credits nor money; budgets never stop it. Rate limits still count."""
    bucket: str | None = None
    surface: str = ""
    layer: str = ""
    policy: str = ""
    profile: str | None = None
    """Serves only keys of this profile; all when absent."""

    def check(self) -> None:
        super().check()
        if self.method not in _METHODS:
            raise Invalid(
                "method", f"method must be one of {', '.join(sorted(_METHODS))}, not {self.method!r}"
            )
        if not self.path.startswith("/") or "*" in self.path[:-1]:
            raise Invalid(
                "path",
                f"path must begin with / and may have * only as its last character, not {self.path[:64]!r}",
            )
        if objection := template_objection(self.path):
            raise Invalid("path", objection)
        if self.free and (self.credits or self.price_nanos):
            raise Invalid("free", "a free route must have neither credits nor price_nanos")


class Actions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The thresholds of a webhook's actions; an absent action never happens."""

    notify_admins: int | None = None
    """From this threshold on, messages ask the receiver to notify the admins, and the operator's log has it."""
    disable_keys: int | None = None
    """At this threshold the active keys that the budget counts become inactive, until they are activated."""


class Webhook(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    Where to tell that a budget of an account crossed a threshold: each once per budget and period.

    Its secret is made by us and shown once, when it is created.
    """

    kind = "webhooks"

    id: str
    account: str
    project: str | None = None
    """Only budgets of this project; all of the account's when absent."""
    url: Annotated[str, msgspec.Meta(max_length=2048)]
    thresholds: Annotated[
        list[Annotated[int, msgspec.Meta(ge=1, le=1000)]], msgspec.Meta(min_length=1, max_length=20)
    ] = msgspec.field(default_factory=lambda: [50, 75, 90, 100])
    """Percentages of a budget's amount, ascending; 50, 75, 90 and 100 when absent."""
    actions: Actions = Actions()

    def check(self) -> None:
        super().check()
        _check_url(self.url)
        for before, after in zip(self.thresholds, self.thresholds[1:], strict=False):
            if before >= after:
                raise Invalid("thresholds", "thresholds must ascend, each of them once")
        for name in ("notify_admins", "disable_keys"):
            at = getattr(self.actions, name)
            if at is not None and at not in self.thresholds:
                raise Invalid(f"actions.{name}", f"{name} must be one of the thresholds")


KINDS: Final[dict[str, type[Entry]]] = {
    entry.kind: entry
    for entry in (
        Plan,
        Account,
        Project,
        Subscription,
        Key,
        Budget,
        Grant,
        Route,
        ModelAlias,
        Price,
        Markup,
        Webhook,
    )
}
"""The kinds in the order in which references between them can be set up."""

REFERENCES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "accounts": (("plan", "plans"),),
    "projects": (("account", "accounts"),),
    "subscriptions": (("account", "accounts"), ("plan", "plans")),
    "keys": (
        ("account", "accounts"),
        ("project", "projects"),
        ("subscription", "subscriptions"),
        ("plan", "plans"),
    ),
    "budgets": (("account", "accounts"), ("project", "projects"), ("key", "keys")),
    "grants": (("account", "accounts"),),
    "prices": (("account", "accounts"),),
    "markups": (("account", "accounts"), ("plan", "plans")),
    "webhooks": (("account", "accounts"), ("project", "projects")),
    "plans": (),
    "models": (),
    "routes": (),
}
"""For each kind: its fields that name an entry of another kind."""


def references(entry: Entry) -> Iterator[tuple[str, str, str]]:
    """Yield `(field, kind, id)` for each entry of another kind that *entry* names."""
    for field, kind in REFERENCES[entry.kind]:
        value: Any = getattr(entry, field)
        if value is not None:
            yield field, kind, value


def check_zone(name: str, path: str = "") -> None:
    """Raise `Invalid` unless *name* is a time zone; *path* begins the field's."""
    try:
        zone_of(name)
    except ValueError as exc:
        raise Invalid(f"{path}time_zone", str(exc)) from None


def _check_counted(match: Match | None, per: str | list[str], owners: tuple[str, ...], path: str) -> None:
    """Raise `Invalid` unless *match* and *per* are well-formed, and the owner one of *owners*."""
    try:
        owner = parse_per(per).owner
    except ValueError as exc:
        raise Invalid(f"{path}per", str(exc)) from None
    if owner is not None and owner not in owners:
        what = f"one of {', '.join(owners)}, and" if owners else "the budget has an owner: per must be one of"
        raise Invalid(f"{path}per", f"{owner} is not possible here: {what} model or tag.NAME")
    if per == [] and path:
        raise Invalid(f"{path}per", "per is empty: leave it out, or name what has a counter of its own")
    if match is None:
        return
    if not match:
        raise Invalid(f"{path}match", "match is empty: leave it out, or give models, tags, kinds or routes")
    try:
        check_routes(match.routes)
    except ValueError as exc:
        raise Invalid(f"{path}match.routes", str(exc)) from None


def _check_unit(unit: str, path: str) -> None:
    if unit not in UNITS and quantity_of_unit(unit) is None:
        raise Invalid(
            path, f"{unit[:64]!r} must be one of {', '.join(UNITS)}, or quantity.NAME, e.g. quantity.seconds"
        )


def _check_url(url: str) -> None:
    if not _URL.match(url):
        raise Invalid("url", "url must begin with https:// and must have no blanks, nor letters beyond ASCII")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0:
        raise Invalid("url", "url must name a host; its port, if any, must be from 1 to 65535")
    if "@" in parts.netloc:
        raise Invalid("url", "url must have no user and password: messages are signed instead")


def _check_span(period: str, time_zone: str | None, week_start: str, path: str) -> None:
    try:
        periods.check_period(period)
    except ValueError as exc:
        raise Invalid(f"{path}period", str(exc)) from None
    if time_zone is not None:
        check_zone(time_zone, path)
    if week_start not in periods.WEEKDAYS:
        days = ", ".join(periods.WEEKDAYS)
        raise Invalid(f"{path}week_start", f"week_start must be one of {days}, not {week_start[:64]!r}")


def _check_unique(names: list[str], path: str, field: str) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise Invalid(f"{path}[{index}].{field}", f"{name!r} is used twice: give each its own name")
        seen.add(name)
