"""
Manage the catalog: put, issue, rotate, revoke, delete. One door for HTTP, command line and file.

Invariants: what is stored passed every check, alone and against the entries that it names; an entry never
names one of another account; a secret exists only in the `IssuedKey` that made it; a revoked key never
works again, a deleted one keeps its id and its secret taken. Each call is one transaction; `on_change` and
`post_grant` are called after it committed.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, cast

import msgspec

from tollkeeper.catalog.entry_parsing import at_path, check_kind, checked
from tollkeeper.clock import Clock
from tollkeeper.domain.bounds import (
    Customer,
    Terms,
    inherited_objection,
    key_objection,
    project_objection,
)
from tollkeeper.domain.catalog import (
    ID_PATTERN,
    KINDS,
    Budget,
    Entry,
    Grant,
    Key,
    KeyState,
    Plan,
    Price,
    Project,
    Subscription,
    Webhook,
    references,
)
from tollkeeper.domain.instants import from_us, to_text, to_us
from tollkeeper.domain.keys import (
    MANAGEMENT_PREFIX,
    NATIVE_PREFIX,
    Actor,
    KeyOrigin,
    StoredKey,
    hash_secret,
    new_secret,
    shown_prefix,
)
from tollkeeper.errors import (
    BadParameter,
    Conflict,
    Forbidden,
    IdempotencyConflict,
    NotFound,
    QuotaExceeded,
    Unavailable,
)
from tollkeeper.ports import Catalog, CatalogStore
from tollkeeper.profiles import load
from tollkeeper.profiles.base import NATIVE

PAGE_SIZE_MAX: Final = 1000
OVERLAP_S_MAX: Final = 366 * 86_400
"""A rotation that takes longer than a year is not a rotation."""

KEY_TRANSITIONS: Final[dict[KeyState, frozenset[KeyState]]] = {
    "active": frozenset({"inactive", "revoked", "deleted"}),
    "inactive": frozenset({"active", "revoked", "deleted"}),
    "revoked": frozenset({"deleted"}),
    "deleted": frozenset(),
}
"""Which state may follow which. `expired` is never set: it follows from `expires_at`."""

_IMMUTABLE_KEY_FIELDS: Final = ("role", "type", "profile")
CUSTOMER_KEY_FIELDS: Final = ("name", "project", "subscription", "expires_at", "metadata")
"""What a customer changes of a key; everything else of it stays as it is stored."""
STATE_FIELDS: Final = {"keys": "state", "accounts": "active", "subscriptions": "status"}
"""What is set by hand in the course of things: a declaration that does not name it leaves it alone."""
_COUNTED_BUDGET_FIELDS: Final = ("project", "key", "unit")
"""What a budget's counter has counted so far: another scope or unit would make its sum a wrong one."""

TOMBSTONES_PER_KEY: Final = 10
"""A revoked or deleted key leaves a row for good: an account may end so many for each key of its quota."""
_NO_QUOTAS: Final[Mapping[str, int]] = {}

_ACCOUNT_SCOPED: Final = frozenset({"projects", "subscriptions", "keys", "budgets", "grants", "webhooks"})
Action = Literal["created", "changed", "unchanged", "deleted"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a call did to one entry.

    Attributes:
        account_id: The account that the entry belongs to, or is; None for plans, routes and prices for all.
        fields: For `changed`: the old and new value of each field that differs. Never a secret or its hash.
        note: Why `apply` left an entry as it is although the file says otherwise; "" if it did not.
    """

    kind: str
    id: str
    account_id: str | None
    action: Action
    fields: dict[str, tuple[Any, Any]] = {}
    note: str = ""


class IssuedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A new key and its secret, which is shown now and never again; None for an imported one."""

    entry: Key
    secret: str | None

    def __repr__(self) -> str:
        return f"IssuedKey(id={self.entry.id!r}, account={self.entry.account!r})"


class Applied(NamedTuple):
    """What `apply` did: a change per entry, in the order of `KINDS`, and the keys that it issued."""

    changes: list[Change]
    issued: list[IssuedKey]


class Manage:
    """
    The use cases of the catalog. Every method raises `Unavailable` when the store fails.

    Where a method takes *account*, the entry must belong to it: another account's entry is `NotFound`, like
    one that does not exist. None is for the operator, who sees all. Where a method takes *by*, a customer asks:
    it changes no management key, and what it makes or changes is never freer than what it has
    (`domain.bounds`), else `Forbidden`; None is the operator, whose word on state and expiry then stands.

    Args:
        choice: Picks one character of an alphabet; for secrets, so it must be unpredictable.
        on_change: Called after the commit with all changes of a call that are not `unchanged`: the gate drops
            what it had compiled, so they are in force when the call returns.
        post_grant: Posts a grant to its account's balance, once; returns whether this call did. Called after
            the commit, again at every repeat of the same grant, so that a crash in between loses none.
        has_usage: Whether an account has meter events; such an account cannot be deleted.
        on_begin: Called before a transaction begins, by the thread that calls `on_change` after it.
        on_doubt: Called when a call failed for want of the store: it may have taken place all the same, and its
            repeat finds nothing to change.
        plain_http: Webhooks may have an http URL, whose messages everybody on the way can read.
        quotas: Kind → most entries that an account's own calls may bring it to; ended keys do not
            count, but at most `TOMBSTONES_PER_KEY` times as many are kept. The operator's calls have no bound.
    """

    def __init__(
        self,
        store: CatalogStore,
        clock: Clock,
        *,
        choice: Callable[[str], str] = secrets.choice,
        on_change: Callable[[Sequence[Change]], None],
        post_grant: Callable[[Grant], bool],
        has_usage: Callable[[str], bool] | None = None,
        on_begin: Callable[[], None] = lambda: None,
        on_doubt: Callable[[], None] = lambda: None,
        plain_http: bool = False,
        quotas: Mapping[str, int] | None = None,
    ) -> None:
        self._quotas = quotas or {}
        self._store = store
        self._clock = clock
        self._choice = choice
        self._on_change = on_change
        self._post_grant = post_grant
        self._has_usage = has_usage
        self._on_begin = on_begin
        self._on_doubt = on_doubt
        self._plain_http = plain_http

    def put(self, entry: Entry, *, by: Customer | None = None) -> Change:
        """
        Create or change one entry, whole: a field that is left out gets its default. A repeat is safe.

        A key is created here only with `sha256`; `issue_key` makes secrets. Of a key, a customer changes
        `CUSTOMER_KEY_FIELDS` only; without an `expires_at` it keeps the latest that the operator set.

        Raises:
            Forbidden: *by* would be freer than the operator made it.
            BadParameter: A field breaks a rule, or names an entry that does not exist.
            Conflict: A field that cannot change would, or the id is taken.
            IdempotencyConflict: A grant of this id was posted with another body.
            QuotaExceeded: The entry is new, and a customer's quota is used up.
        """
        return self._write([entry], [""], issue=False, dry_run=False, by=by).changes[0]

    def apply(
        self, entries: Sequence[Entry], *, dry_run: bool = False, stateless: Collection[int] = ()
    ) -> Applied:
        """
        Put many entries, all or none, in any order: they may name each other. Nothing else is removed.

        A key that is revoked or deleted for good stays as it is: its change has a note, and the rest applies.
        Of the entries at the places *stateless*, those that exist keep their state (`STATE_FIELDS`).

        Keys that do not exist and bring no `sha256` are issued. With *dry_run* nothing is kept and no key
        is issued; the changes are those that a real call would make.

        Raises:
            BadParameter, Conflict, IdempotencyConflict: As `put`; the field's path begins with the kind and
                the place among the entries of that kind, e.g. `keys[2].project`.
        """
        counts: dict[str, int] = {}
        paths = []
        for entry in entries:
            index = counts.get(entry.kind, 0)
            counts[entry.kind] = index + 1
            paths.append(f"{entry.kind}[{index}]")
        return self._write(entries, paths, issue=True, dry_run=dry_run, stateless=stateless)

    def issue_key(self, entry: Key, *, by: Customer | None = None) -> IssuedKey:
        """
        Make a new key and return it with its secret; without one when it brings its `sha256`.

        One that a customer makes ends with the key that made it, at the latest.

        Raises:
            Forbidden: *by* would be freer than the operator made it.
            BadParameter: A field breaks a rule, or names an entry that does not exist.
            Conflict: The id or the secret is taken.
            QuotaExceeded: A customer's quota is used up.
        """
        key = checked(entry, "")
        with self._transaction() as catalog:
            quotas = self._quotas_of(by)
            work = _Work(catalog, self._clock.now_us(), self._choice, issue=True, by=by, quotas=quotas)
            work.create_key(key, "")
            work.check_references(key, "")
        self._announce(work.changes)
        return work.issued[0]

    def rotate_key(
        self, account: str | None, key_id: str, overlap_s: int, *, by: Customer | None = None
    ) -> IssuedKey:
        """
        Make a key that is like *key_id* but for its id and secret, and end the old one after *overlap_s*.

        An inactive key's successor is inactive, by the same word.

        The two share their limits' and budgets' counters, so that rotating never frees a key of its bounds.

        Raises:
            BadParameter: *overlap_s* is not from 0 to `OVERLAP_S_MAX`.
            NotFound: The account has no such key.
            Conflict: The key is expired, revoked or deleted, or was rotated before.
            QuotaExceeded: A customer's quota is used up: the old key counts until it is revoked or deleted.
        """
        if not 0 <= overlap_s <= OVERLAP_S_MAX:
            raise BadParameter(f"overlap_s is from 0 to {OVERLAP_S_MAX} seconds", field="overlap_s")
        now_us = self._clock.now_us()
        with self._transaction() as catalog:
            quotas = self._quotas_of(by)
            work = _Work(catalog, now_us, self._choice, issue=True, by=by, quotas=quotas)
            work.rotate(work.managed(_stored_key(catalog, account, key_id)), overlap_s)
        self._announce(work.changes)
        return work.issued[0]

    def set_key_state(
        self, account: str | None, key_id: str, state: KeyState, *, by: Customer | None = None
    ) -> Change:
        """
        Set the state of a key, in force when this returns. Setting the state that it has changes nothing,
        but that the operator's word then keeps it so.

        Raises:
            Forbidden: A customer would activate a key that it did not make inactive itself.
            BadParameter: *state* is none that can be set.
            NotFound: The account has no such key.
            Conflict: The state may not follow the one that the key has (`KEY_TRANSITIONS`).
        """
        if state not in KEY_TRANSITIONS:
            raise BadParameter(f"state is one of {', '.join(KEY_TRANSITIONS)}", field="state")
        now_us = self._clock.now_us()
        with self._transaction() as catalog:
            work = _Work(catalog, now_us, self._choice, issue=False, by=by)
            stored = work.managed(_stored_key(catalog, account, key_id))
            old, owner = stored.state_at(now_us), stored.entry.account
            if old == "expired" and state == "active":
                raise Conflict(f"key {key_id} has expired: set a later expires_at, or make a new key")
            _check_transition(stored.entry.state, state, f"key {key_id}")
            actor = work.actor
            if stored.entry.state == state:
                if by is None and stored.state_by != actor:
                    catalog.set_key_state(owner, key_id, state, now_us, by=actor)
                return _change(stored.entry, "unchanged")
            if by is not None and state == "active" and stored.state_by != actor:
                raise Forbidden(
                    f"Key {key_id} was made inactive by your provider, or by an alert of its own: "
                    "only your provider can make it active.",
                    account=owner,
                )
            catalog.set_key_state(owner, key_id, state, now_us, by=actor)
        action: Action = "deleted" if state == "deleted" else "changed"
        change = _change(stored.entry, action, {"state": (old, state)})
        self._announce([change])
        return change

    def get(self, kind: str, entry_id: str, account: str | None = None) -> Entry:
        """
        Return one entry; a key with the state in force.

        Raises:
            BadParameter: No such kind, or its ids need an *account*.
            NotFound: There is no such entry, or not in this account.
        """
        check_kind(kind)
        entry = _found(self._store, kind, entry_id, account)
        return _as_of(entry, self._clock.now_us())

    def list(
        self, kind: str, *, account: str | None = None, after: str | None = None, limit: int = 100
    ) -> Sequence[Entry]:
        """
        Return up to *limit* entries by id, after the cursor *after* (`ports.cursor_of` of the last one).

        Deleted keys are among them, with that state.

        Raises:
            BadParameter: No such kind, or *limit* is not from 1 to `PAGE_SIZE_MAX`, or *after* is no cursor.
        """
        check_kind(kind)
        if not 1 <= limit <= PAGE_SIZE_MAX:
            raise BadParameter(f"limit is from 1 to {PAGE_SIZE_MAX}", field="limit")
        if after is not None and not all(ID_PATTERN.match(part) for part in after.split("/", 1)):
            raise BadParameter("after is the cursor that the page before ended with", field="after")
        if account is not None and not ID_PATTERN.match(account):
            raise NotFound("there is no such account")
        now_us = self._clock.now_us()
        return [
            _as_of(entry, now_us)
            for entry in self._store.list(kind, account=account, after=after, limit=limit)
        ]

    def stored_key(self, account: str | None, key_id: str) -> StoredKey:
        """Return a key with what is shown beside its entry: prefix, last use. Raises `NotFound`."""
        return _stored_key(self._store, account, key_id)

    def delete(
        self, kind: str, entry_id: str, account: str | None = None, *, by: Customer | None = None
    ) -> Change:
        """
        Remove an entry; of a key, leave a tombstone for good.

        Raises:
            BadParameter: No such kind, or its ids need an *account*.
            NotFound: There is no such entry, or not in this account.
            Conflict: Another entry names it, or it is a grant, or an account with usage.
        """
        check_kind(kind)
        if kind == "keys":
            return self.set_key_state(account, entry_id, "deleted", by=by)
        with self._transaction() as catalog:
            entry = _found(catalog, kind, entry_id, account)
            if kind == "grants":
                raise Conflict(f"grant {entry_id} is posted for good: balances never forget")
            owner = getattr(entry, "account", None)
            if account is not None and account != (entry_id if kind == "accounts" else owner):
                # It sees what is there for all, but that is the operator's.
                raise NotFound(f"there is no such entry among the {kind}")
            if referrer := catalog.referrer(kind, entry_id, owner):
                hint = "set active = false instead" if kind == "accounts" else "delete or change that first"
                raise Conflict(f"{kind} {entry_id} is in use by {' '.join(referrer)}: {hint}")
            if kind == "accounts" and self._has_usage is not None and self._has_usage(entry_id):
                raise Conflict(f"account {entry_id} has usage, which is kept: set active = false instead")
            catalog.delete(kind, entry_id, owner if kind in _ACCOUNT_SCOPED else None)
        change = _change(entry, "deleted")
        self._announce([change])
        return change

    def _quotas_of(self, by: Customer | None) -> Mapping[str, int]:
        return _NO_QUOTAS if by is None else self._quotas

    def _write(
        self,
        entries: Sequence[Entry],
        paths: Sequence[str],
        *,
        issue: bool,
        dry_run: bool,
        stateless: Collection[int] = (),
        by: Customer | None = None,
    ) -> Applied:
        order = list(KINDS)
        pairs = [(checked(entry, path), path) for entry, path in zip(entries, paths, strict=True)]
        keep_state = {paths[place] for place in stateless}
        pairs.sort(key=lambda pair: order.index(pair[0].kind))
        for entry, path in pairs:
            if isinstance(entry, Webhook) and not (self._plain_http or entry.url.startswith("https:")):
                field = at_path(path, "url")
                raise BadParameter(f"{field}: url begins with https://", field=field)
        with self._transaction(dry_run=dry_run) as catalog:
            quotas = self._quotas_of(by)
            work = _Work(catalog, self._clock.now_us(), self._choice, issue=issue, by=by, quotas=quotas)
            for entry, path in pairs:
                if (
                    issue
                    and isinstance(entry, Key)
                    and (note := work.ended_for_good(entry, path in keep_state))
                ):
                    work.changes.append(note)
                else:
                    work.put(entry, path, keep_state=path in keep_state)
            # Only now, since entries of one declaration may name each other in any direction. What is
            # unchanged stays as it is, even when what it names was deleted since.
            for (entry, path), change in zip(pairs, work.changes, strict=True):
                if change.action != "unchanged":
                    work.check_references(entry, path)
        if dry_run:
            return Applied(work.changes, [])
        self._announce([change for change in work.changes if change.kind != "grants"])
        for index, (entry, _) in enumerate(pairs):
            if isinstance(entry, Grant):
                if self._post_grant(entry):
                    work.changes[index] = _change(entry, "created")
                self._announce([work.changes[index]])
        return Applied(work.changes, work.issued)

    @contextmanager
    def _transaction(self, *, dry_run: bool = False) -> Iterator[Catalog]:
        try:
            self._on_begin()
            with self._store.transaction(dry_run=dry_run) as catalog:
                yield catalog
        except Unavailable:
            self._on_doubt()
            raise

    def _announce(self, changes: Sequence[Change]) -> None:
        told = [change for change in changes if change.action != "unchanged"]
        if told:
            self._on_change(told)


class _Work:
    """The steps of one transaction: what they did so far, to be told once it committed."""

    def __init__(
        self,
        catalog: Catalog,
        now_us: int,
        choice: Callable[[str], str],
        *,
        issue: bool,
        by: Customer | None = None,
        quotas: Mapping[str, int] = _NO_QUOTAS,
    ) -> None:
        self._catalog = catalog
        self._quotas = quotas
        self._now_us = now_us
        self._choice = choice
        self._issue = issue
        self._by = by
        self.actor: Actor = "operator" if by is None else "customer"
        self.changes: list[Change] = []
        self.issued: list[IssuedKey] = []

    def put(self, entry: Entry, path: str, *, keep_state: bool = False) -> None:
        if isinstance(entry, Key):
            stored = self._catalog.find_key(entry.id)
            if stored is not None and stored.entry.account == entry.account:
                if keep_state:
                    entry = msgspec.structs.replace(entry, state=stored.entry.state)
                self._change_key(stored, entry, path)
            else:
                self.create_key(entry, path)
            return
        old = self._catalog.get(entry.kind, entry.entry_id, _owner(entry))
        if old is not None:
            if keep_state:
                field = STATE_FIELDS[entry.kind]
                entry = msgspec.structs.replace(entry, **{field: getattr(old, field)})
            _check_immutable(old, entry, path)
        elif self._by is not None and isinstance(entry, Project):
            self._refuse(project_objection(self._plans(entry.account), self._budgets(entry.account)))
        if old is None and isinstance(entry, Price) and self._catalog.get("prices", entry.id) is not None:
            raise Conflict(f"{at_path(path, 'id')}: the price id {entry.id!r} is taken: choose another")
        self._store(old, entry)

    def ended_for_good(self, key: Key, keep_state: bool) -> Change | None:
        """Return the note on a declared key that is revoked or deleted, if the declaration says otherwise."""
        stored = self._catalog.find_key(key.id)
        if stored is None or stored.entry.account != key.account:
            return None
        old = stored.entry
        if old.state not in ("revoked", "deleted") or (old.state == key.state == "revoked"):
            return None
        state = old.state if keep_state else key.state
        if msgspec.structs.replace(key, sha256=None, state=state) == old:
            return None
        change = _change(old, "unchanged")
        return msgspec.structs.replace(change, note=f"the key is {old.state} for good: left as it is")

    def managed(self, stored: StoredKey) -> StoredKey:
        """Return a key that the caller may manage: a customer manages no management key."""
        if self._by is not None and not stored.entry.is_metered:
            raise Forbidden("A management key is changed by your provider only.", account=self._by.account_id)
        return stored

    def _refuse(self, objection: str | None) -> None:
        if objection is not None:
            raise Forbidden(objection, account=None if self._by is None else self._by.account_id)

    def _budgets(self, account: str) -> list[Budget]:
        return cast("list[Budget]", list(self._catalog.entries("budgets", account)))

    def _plans(self, account: str) -> list[tuple[Plan, bool]]:
        """Return the plans that keys of an account are or may come to be on, and whether by a subscription."""
        found = self._catalog.get("accounts", account)
        subscriptions = cast("list[Subscription]", self._catalog.entries("subscriptions", account))
        slugs: set[tuple[str | None, bool]] = {(subscription.plan, True) for subscription in subscriptions}
        slugs.add((getattr(found, "plan", None), False))
        slugs |= {
            (stored.entry.plan, stored.entry.subscription is not None)
            for stored in self._catalog.keys_of_account(account)
        }
        plans = [
            (self._catalog.get("plans", slug), subscribed)
            for slug, subscribed in sorted(slugs, key=str)
            if slug is not None
        ]
        return [(cast("Plan", plan), subscribed) for plan, subscribed in plans if plan is not None]

    def _terms(self, key: Key) -> Terms:
        subscription = None
        if key.subscription is not None:
            found = self._catalog.get("subscriptions", key.subscription, key.account)
            subscription = cast("Subscription | None", found)
        account = self._catalog.get("accounts", key.account)
        slug = key.plan or (subscription.plan if subscription else None) or getattr(account, "plan", None)
        plan = None if slug is None else cast("Plan | None", self._catalog.get("plans", slug))
        has_credit = bool(self._catalog.entries("grants", key.account)) or any(
            stored.entry.draws_on_credit and stored.entry.state not in ("revoked", "deleted")
            for stored in self._catalog.keys_of_account(key.account)
        )
        return Terms(plan, subscription, self._budgets(key.account), has_credit)

    def _made_by_customer(self, key: Key, by: Customer, path: str) -> tuple[Key, KeyOrigin]:
        """Return a new key as a customer gets it: it ends no later than the key that makes it."""
        if not key.is_metered or key.account != by.account_id:
            raise Forbidden("Only your provider makes such a key.", account=by.account_id)
        maker = None if by.key_id is None else _stored_key(self._catalog, by.account_id, by.key_id)
        if maker is None or not maker.entry.is_metered:
            self._refuse(key_objection(key, self._terms(key)))
        else:
            self._refuse(inherited_objection(key, maker.entry))
        latest_us = None
        if maker is not None:
            if maker.state_at(self._now_us) != "active":
                raise Forbidden(
                    f"The key that asks is {maker.state_at(self._now_us)}.", account=by.account_id
                )
            latest_us = None if maker.entry.expires_at is None else to_us(maker.entry.expires_at)
        made_by = maker.entry.id if maker is not None and maker.entry.is_metered else None
        key = msgspec.structs.replace(key, expires_at=_no_later(key.expires_at, latest_us, path))
        return key, KeyOrigin("customer", latest_us, made_by)

    def create_key(self, key: Key, path: str) -> None:
        startable = ("active", "inactive") if key.sha256 is None else ("active", "inactive", "revoked")
        if key.state not in startable:
            raise BadParameter(
                f"{at_path(path, 'state')}: a new key is {' or '.join(startable)}, not {key.state}",
                field=at_path(path, "state"),
            )
        origin = _set_by_operator(key)
        if self._by is not None:
            key, origin = self._made_by_customer(key, self._by, path)
        secret = None
        if key.sha256 is None:
            if not self._issue:
                raise BadParameter(
                    f"{at_path(path, 'sha256')}: a new key brings its sha256: issue it to get a secret",
                    field=at_path(path, "sha256"),
                )
            secret = new_secret(_prefix_of(key), self._choice)
        self._add_key(key, secret, lineage_id=None, origin=origin)

    def rotate(self, stored: StoredKey, overlap_s: int) -> None:
        old = stored.entry
        state = stored.state_at(self._now_us)
        if state not in ("active", "inactive"):
            raise Conflict(f"key {old.id} is {state} and cannot be rotated: make a new key")
        if stored.replaced_by is not None:
            raise Conflict(f"key {old.id} was rotated before, to {stored.replaced_by}: rotate that one")
        new = msgspec.structs.replace(old, id=str(uuid.uuid4()))
        self._add_key(
            new, new_secret(_prefix_of(new), self._choice), lineage_id=stored.lineage_id, origin=stored.origin
        )
        ends_at_us = self._now_us + overlap_s * 1_000_000
        if old.expires_at is not None:
            ends_at_us = min(ends_at_us, to_us(old.expires_at))
        self._catalog.replace_key(
            old.account, old.id, by=new.id, expires_at_us=ends_at_us, now_us=self._now_us
        )
        self.changes.append(_change(old, "changed", {"expires_at": (old.expires_at, from_us(ends_at_us))}))

    def check_references(self, entry: Entry, path: str) -> None:
        """Raise `BadParameter` when *entry* names an entry that its account does not have."""
        account = getattr(entry, "account", None)
        for field, kind, name in references(entry):
            scope = account if kind in _ACCOUNT_SCOPED else None
            named = self._catalog.get(kind, name, scope)
            if named is None or (isinstance(named, Key) and named.state == "deleted"):
                where = f" in account {scope}" if scope else ""
                raise BadParameter(
                    f"{at_path(path, field)}: there is no {name[:64]!r} among the {kind}{where}: create it first",
                    field=at_path(path, field),
                )

    def _check_quota(self, kind: str, account: str) -> None:
        """Raise `QuotaExceeded` when *account* may not have one more entry of *kind*."""
        quota = self._quotas.get(kind)
        if quota is None:
            return
        entries = self._catalog.entries(kind, account)
        kept = sum(
            not (isinstance(entry, Key) and entry.state in ("revoked", "deleted")) for entry in entries
        )
        if kept >= quota:
            raise QuotaExceeded(
                f"the account has {kept} {kind}, and {quota} are the most: delete one, or ask the operator"
            )
        if len(entries) >= quota * (1 + TOMBSTONES_PER_KEY):
            raise QuotaExceeded(
                f"the account has made and ended {len(entries)} {kind}: ask the operator for more"
            )

    def _store(self, old: Entry | None, new: Entry, *, origin: KeyOrigin | None = None) -> None:
        if old is None and new.kind in self._quotas:
            self._check_quota(new.kind, str(getattr(new, "account")))  # noqa: B009
        action = self._catalog.put(new, self._now_us, origin=origin)
        self.changes.append(
            _change(new, action, _differences(old, new) if old and action == "changed" else {})
        )

    def _add_key(self, key: Key, secret: str | None, *, lineage_id: str | None, origin: KeyOrigin) -> None:
        sha256 = key.sha256 if secret is None else hash_secret(secret)
        assert sha256 is not None
        self._check_quota("keys", key.account)
        key = msgspec.structs.replace(key, sha256=None)
        self._catalog.add_key(
            key,
            secret_sha256=sha256,
            shown_prefix=None if secret is None else shown_prefix(secret),
            now_us=self._now_us,
            lineage_id=lineage_id,
            origin=origin,
        )
        self.changes.append(_change(key, "created"))
        if self._issue:
            self.issued.append(IssuedKey(entry=key, secret=secret))

    def _change_key(self, stored: StoredKey, key: Key, path: str) -> None:
        old = stored.entry
        if self._by is not None:
            # As stored, not as the caller read it: the operator may have changed it meanwhile.
            fields = {field: getattr(key, field) for field in CUSTOMER_KEY_FIELDS}
            key = msgspec.structs.replace(self.managed(stored).entry, **fields)
            expires_at = _no_later(key.expires_at, stored.expires_latest_us, path)
            key = msgspec.structs.replace(key, expires_at=expires_at)
            self._check_moved(stored, key)
        for field in _IMMUTABLE_KEY_FIELDS:
            _check_same(old, key, field, path, "make a new key and revoke this one")
        if key.sha256 is not None and key.sha256 != stored.secret_sha256:
            raise Conflict(f"{at_path(path, 'sha256')}: key {key.id} keeps its secret: rotate it instead")
        key = msgspec.structs.replace(
            key,
            sha256=None,
            state=self._settable_state(stored, key, path),
            expires_at=_expiry(stored, key, path),
        )
        _check_transition(old.state, key.state, f"{at_path(path, 'state')}: key {key.id}")
        if old.state == "deleted" and key != old:
            raise Conflict(f"{at_path(path, 'id')}: key {key.id} is deleted for good: make a new key")
        self._store(old, key, origin=self._origin(stored, key))

    def _check_moved(self, stored: StoredKey, key: Key) -> None:
        """Raise `Forbidden` when a customer moves a key to where it is less bounded."""
        old = stored.entry
        same_plan = key.subscription == old.subscription
        if same_plan and key.project == old.project:
            return
        line = [
            other.entry.id
            for other in self._catalog.keys_of_account(old.account)
            if other.lineage_id == stored.lineage_id
        ]
        self._refuse(key_objection(key, self._terms(key), line=line, same_plan=same_plan))

    def _origin(self, stored: StoredKey, key: Key) -> KeyOrigin:
        """Return whose word state and expiry of a changed key are: what the operator did not change stays."""
        origin = stored.origin
        if self._by is not None:
            return origin
        declared = _set_by_operator(key)
        if key.state != stored.entry.state:
            origin = origin._replace(state_by="operator")
        if key.expires_at != stored.entry.expires_at:
            origin = origin._replace(expires_latest_us=declared.expires_latest_us)
        return origin

    def _settable_state(self, stored: StoredKey, key: Key, path: str) -> KeyState:
        if key.state != "expired":
            return key.state
        # Someone puts back what `get` gave, where `expired` stands for the state that was set.
        if stored.state_at(self._now_us) == "expired" and key.expires_at == stored.entry.expires_at:
            return stored.entry.state
        raise BadParameter(
            f"{at_path(path, 'state')}: a key expires by its expires_at: set that, and leave state out",
            field=at_path(path, "state"),
        )


def _prefix_of(key: Key) -> str:
    """Return what the secret of a new key begins with."""
    if key.role == "management":
        return MANAGEMENT_PREFIX
    if key.profile == NATIVE:
        return NATIVE_PREFIX
    try:
        return load(key.profile).key_prefix
    except KeyError:
        raise Conflict(
            f"the profile {key.profile} of key {key.id} is not installed: install it first"
        ) from None


def _check_immutable(old: Entry, new: Entry, path: str) -> None:
    if isinstance(new, Grant) and old != new:
        raise IdempotencyConflict(
            f"{at_path(path, 'id')}: grant {new.id} was posted with another body: use another id"
        )
    if isinstance(new, Price):
        _check_same(old, new, "account", path, "make another price")
    if isinstance(new, Budget):
        for field in _COUNTED_BUDGET_FIELDS:
            _check_same(old, new, field, path, "make another budget and delete this one")


def _check_same(old: Entry, new: Entry, field: str, path: str, advice: str) -> None:
    if getattr(old, field) != getattr(new, field):
        raise Conflict(f"{at_path(path, field)}: {new.kind} {new.entry_id} keeps its {field}: {advice}")


def _check_transition(old: KeyState, new: KeyState, label: str) -> None:
    if new != old and new not in KEY_TRANSITIONS[old]:
        raise Conflict(f"{label} is {old} for good and cannot become {new}: make a new key")


def _expiry(stored: StoredKey, key: Key, path: str) -> datetime | None:
    """Return when *key* shall expire: one that was rotated away cannot come back by being declared again."""
    end_at = stored.entry.expires_at
    if stored.replaced_by is None or end_at is None:
        return key.expires_at
    if key.expires_at is not None and key.expires_at > end_at:
        field = at_path(path, "expires_at")
        raise Conflict(
            f"{field}: key {key.id} was rotated to {stored.replaced_by} and ends at {to_text(end_at)}: "
            "leave expires_at out, or set an earlier one"
        )
    return key.expires_at or end_at


def _set_by_operator(key: Key) -> KeyOrigin:
    return KeyOrigin("operator", None if key.expires_at is None else to_us(key.expires_at))


def _no_later(expires_at: datetime | None, latest_us: int | None, path: str) -> datetime | None:
    """Return when a customer's key ends: as it says, else at the latest that the operator set."""
    if latest_us is None:
        return expires_at
    if expires_at is not None and to_us(expires_at) > latest_us:
        raise Forbidden(
            f"{at_path(path, 'expires_at')}: the key must end at {to_text(from_us(latest_us))} or earlier, "
            "as your provider set it"
        )
    return expires_at or from_us(latest_us)


def _found(catalog: Catalog, kind: str, entry_id: str, account: str | None) -> Entry:
    if kind in _ACCOUNT_SCOPED and kind != "keys" and account is None:
        raise BadParameter(
            f"account is required: ids of {kind} are unique within an account only", field="account"
        )
    # What is no id names nothing, and need not reach the store.
    sound = all(ID_PATTERN.match(name) for name in (entry_id, account) if name is not None)
    entry = catalog.get(kind, entry_id, account) if sound else None
    if entry is None:
        raise NotFound(f"there is no such entry among the {kind}")
    return entry


def _stored_key(catalog: Catalog, account: str | None, key_id: str) -> StoredKey:
    stored = catalog.find_key(key_id) if ID_PATTERN.match(key_id) else None
    if stored is None or account not in (None, stored.entry.account):
        raise NotFound("there is no such entry among the keys")
    return stored


def _as_of(entry: Entry, now_us: int) -> Entry:
    if not isinstance(entry, Key) or entry.expires_at is None or entry.state in ("revoked", "deleted"):
        return entry
    return msgspec.structs.replace(entry, state="expired") if now_us >= to_us(entry.expires_at) else entry


def _owner(entry: Entry) -> str | None:
    return str(getattr(entry, "account")) if entry.kind in _ACCOUNT_SCOPED else None  # noqa: B009


def _change(entry: Entry, action: Action, fields: dict[str, tuple[Any, Any]] | None = None) -> Change:
    account_id = entry.entry_id if entry.kind == "accounts" else getattr(entry, "account", None)
    return Change(
        kind=entry.kind, id=entry.entry_id, account_id=account_id, action=action, fields=fields or {}
    )


def _differences(old: Entry, new: Entry) -> dict[str, tuple[Any, Any]]:
    return {
        field: (getattr(old, field), getattr(new, field))
        for field in new.__struct_fields__
        if field != "sha256" and getattr(old, field) != getattr(new, field)
    }
