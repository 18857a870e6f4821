"""
Manage the catalog: put, issue, rotate, revoke, delete. HTTP, command line and declarations all call this.

Invariants: a stored entry passed every check, alone and against the entries that it names; an entry never
names one of another account; a secret exists only in the `IssuedKey` that made it; a revoked key never
works again, a deleted one keeps its id and its secret taken. Each call is one transaction; `on_change` and
`post_grant` are called after it committed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from tollkeeper.audit import OPERATOR_KEYS, AuditLine
from tollkeeper.catalog.audit_lines import audit_lines
from tollkeeper.catalog.changes import Applied, Change, IssuedKey, change_of
from tollkeeper.catalog.entry_parsing import at_path, check_kind, checked
from tollkeeper.catalog.entry_writer import EntryWriter
from tollkeeper.catalog.key_rules import KEY_TRANSITIONS, check_transition
from tollkeeper.catalog.key_writer import WriteTerms
from tollkeeper.catalog.lookups import (
    ACCOUNT_SCOPED,
    USERS_NAMED_MAX,
    as_of,
    check_references,
    found_entry,
    found_key,
    in_use,
)
from tollkeeper.catalog.quotas import NO_QUOTAS
from tollkeeper.clock import Clock
from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import ID_PATTERN, KINDS, Entry, Grant, Key, KeyState, Webhook
from tollkeeper.domain.keys import StoredKey
from tollkeeper.errors import BadParameter, Conflict, Forbidden, NotFound, Unavailable
from tollkeeper.ports import Catalog, CatalogStore, ChangeAction

PAGE_SIZE_MAX: Final = 1000
OVERLAP_S_MAX: Final = 366 * 86_400
"""A rotation that takes longer than a year is not a rotation."""


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
        revoke_grant: Takes a grant off its account's balance; returns when, and whether this call did.
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
        revoke_grant: Callable[[Grant], tuple[datetime, bool]] | None = None,
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
        self._revoke_grant = revoke_grant
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
        self,
        entries: Sequence[Entry],
        *,
        dry_run: bool = False,
        named: Mapping[int, frozenset[str]] | None = None,
    ) -> Applied:
        """
        Put many entries, all or none, in any order: they may name each other. Nothing else is removed.

        A key that is revoked or deleted for good stays as it is: its change has a note, and the rest applies.
        Of an entry whose place is in *named*, these fields are stated: if it exists, its others stay as they are.

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
        return self._write(entries, paths, issue=True, dry_run=dry_run, named=named)

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
            writer = self._writer(catalog, self._clock.now_us(), issue=True, by=by)
            writer.keys.create(key, "")
            check_references(catalog, key, "")
            self._log(catalog, writer.changes, by)
        self._announce(writer.changes)
        return writer.issued[0]

    def rotate_key(
        self,
        account: str | None,
        key_id: str,
        overlap_s: int,
        *,
        by: Customer | None = None,
        new_id: str | None = None,
    ) -> IssuedKey:
        """
        Make a key that is like *key_id* but for its id and secret, and end the old one after *overlap_s*.

        Without *new_id* its id is that of the first key with a number: `acme-prod-2`, then `acme-prod-3`.
        An inactive key's successor is inactive, by the same word.

        The two share their limits' and budgets' counters, so that rotating never frees a key of its bounds.

        Raises:
            BadParameter: *overlap_s* is not from 0 to `OVERLAP_S_MAX`, or *new_id* is no id.
            NotFound: The account has no such key.
            Conflict: The key is expired, revoked or deleted, or was rotated before; or *new_id* is taken.
            QuotaExceeded: A customer's quota is used up: the old key counts until it is revoked or deleted.
        """
        if not 0 <= overlap_s <= OVERLAP_S_MAX:
            raise BadParameter(
                f"overlap_s must be from 0 to {OVERLAP_S_MAX} seconds, not {overlap_s}", field="overlap_s"
            )
        now_us = self._clock.now_us()
        with self._transaction() as catalog:
            writer = self._writer(catalog, now_us, issue=True, by=by)
            writer.keys.rotate(writer.keys.managed(found_key(catalog, account, key_id)), overlap_s, new_id)
            self._log(catalog, writer.changes, by)
        self._announce(writer.changes)
        return writer.issued[0]

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
            known = ", ".join(KEY_TRANSITIONS)
            raise BadParameter(f"state must be one of {known}, not {str(state)[:64]!r}", field="state")
        now_us = self._clock.now_us()
        with self._transaction() as catalog:
            writer = self._writer(catalog, now_us, issue=False, by=by)
            stored = writer.keys.managed(found_key(catalog, account, key_id))
            old, owner = stored.state_at(now_us), stored.entry.account
            if old == "expired" and state == "active":
                raise Conflict(f"key {key_id} has expired: set a later expires_at, or make a new key")
            check_transition(stored.entry.state, state, f"key {key_id}")
            actor = writer.keys.actor
            if stored.entry.state == state:
                if by is None and stored.state_by != actor:
                    catalog.set_key_state(owner, key_id, state, now_us, by=actor)
                return change_of(stored.entry, "unchanged")
            if by is not None and state == "active" and stored.state_by != actor:
                raise Forbidden(
                    f"Key {key_id} was made inactive by your provider, or by an alert of its own: "
                    "only your provider can make it active.",
                    account=owner,
                )
            catalog.set_key_state(owner, key_id, state, now_us, by=actor)
            action: ChangeAction = "deleted" if state == "deleted" else "changed"
            change = change_of(stored.entry, action, {"state": (old, state)})
            self._log(catalog, [change], by)
        self._announce([change])
        return change

    def revoke_grant(self, account: str | None, grant_id: str) -> Change:
        """
        Take a grant back, as if it had never been given; a repeat changes nothing.

        What is left of it goes, and what was spent of it is owed: drawn on the rest of the balance, then overdraft.
        In force when this returns.

        Raises:
            BadParameter: *account* is missing.
            NotFound: The account has no such grant.
        """
        grant = found_entry(self._store, "grants", grant_id, account)
        assert isinstance(grant, Grant)
        if self._revoke_grant is None:
            raise Unavailable("No ledger is here that could revoke a grant.")
        revoked_at, revoked_now = self._revoke_grant(grant)
        if not revoked_now:
            return change_of(grant, "unchanged")
        change = change_of(grant, "changed", {"revoked_at": (None, revoked_at)})
        with self._transaction() as catalog:
            self._log(catalog, [change], None)
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
        entry = found_entry(self._store, kind, entry_id, account)
        return as_of(entry, self._clock.now_us())

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
        _check_limit(limit)
        # An id, or that of an account and one of an entry.
        is_cursor = after is None or KINDS[kind].may_be_named(after)
        if not is_cursor and not all(ID_PATTERN.match(part) for part in str(after).split("/", 1)):
            raise BadParameter("after must be the cursor that the page before ended with", field="after")
        if account is not None and not ID_PATTERN.match(account):
            raise NotFound("there is no such account")
        if account is not None and self._store.get("accounts", account, None) is None:
            raise NotFound(f"there is no account {account!r}")
        now_us = self._clock.now_us()
        return [
            as_of(entry, now_us)
            for entry in self._store.list(kind, account=account, after=after, limit=limit)
        ]

    def stored_key(self, account: str | None, key_id: str) -> StoredKey:
        """Return a key with what is shown beside its entry: prefix, last use. Raises `NotFound`."""
        return found_key(self._store, account, key_id)

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
            entry = found_entry(catalog, kind, entry_id, account)
            if kind == "grants":
                raise Conflict(
                    f"grant {entry_id} is posted and cannot be deleted: to take it back, revoke it"
                )
            owner = getattr(entry, "account", None)
            if account is not None and account != (entry_id if kind == "accounts" else owner):
                # An account sees the entries for all accounts, but only the operator changes them.
                raise NotFound(f"there is no such entry among the {kind}")
            if users := catalog.referrers(kind, entry_id, owner, limit=USERS_NAMED_MAX + 1):
                raise Conflict(in_use(kind, entry_id, users))
            if kind == "accounts" and self._has_usage is not None and self._has_usage(entry_id):
                raise Conflict(f"account {entry_id} has usage, which is kept: set active = false instead")
            catalog.delete(kind, entry_id, owner if kind in ACCOUNT_SCOPED else None)
            change = change_of(entry, "deleted")
            self._log(catalog, [change], by)
        self._announce([change])
        return change

    def audit_log(
        self,
        *,
        account: str | None = None,
        kind: str | None = None,
        entry_id: str | None = None,
        before_seq: int | None = None,
        limit: int = 100,
    ) -> Sequence[AuditLine]:
        """
        Return up to *limit* changes of the catalog, the newest first.

        Args:
            account: Only changes of this account and its entries.
            kind: Only those of entries of this kind, or of `operator_keys`.
            before_seq: Only those before this place in the log: the last one of the page before.

        Raises:
            BadParameter: No such kind, or *limit* is not from 1 to `PAGE_SIZE_MAX`.
        """
        if kind is not None:
            check_kind(kind, OPERATOR_KEYS)
        _check_limit(limit)
        return self._store.logged(
            account=account, kind=kind, entry_id=entry_id, before_seq=before_seq, limit=limit
        )

    def _writer(self, catalog: Catalog, now_us: int, *, issue: bool, by: Customer | None) -> EntryWriter:
        quotas = NO_QUOTAS if by is None else self._quotas
        return EntryWriter(WriteTerms(catalog, now_us, self._choice, issue, by, quotas))

    def _write(
        self,
        entries: Sequence[Entry],
        paths: Sequence[str],
        *,
        issue: bool,
        dry_run: bool,
        named: Mapping[int, frozenset[str]] | None = None,
        by: Customer | None = None,
    ) -> Applied:
        order = list(KINDS)
        pairs = [(checked(entry, path), path) for entry, path in zip(entries, paths, strict=True)]
        named_at = {paths[place]: fields for place, fields in (named or {}).items()}
        pairs.sort(key=lambda pair: order.index(pair[0].kind))
        for entry, path in pairs:
            if isinstance(entry, Webhook) and not (self._plain_http or entry.url.startswith("https:")):
                field = at_path(path, "url")
                raise BadParameter(f"{field}: url must begin with https://", field=field)
        with self._transaction(dry_run=dry_run) as catalog:
            writer = self._writer(catalog, self._clock.now_us(), issue=issue, by=by)
            written: list[Entry] = []
            for entry, path in pairs:
                fields = named_at.get(path)
                whole = entry if fields is None else writer.completed(entry, path, fields)
                written.append(whole)
                names_state = fields is None or "state" in fields
                if (
                    issue
                    and isinstance(whole, Key)
                    and (note := writer.keys.ended_for_good(whole, names_state=names_state))
                ):
                    writer.changes.append(note)
                else:
                    writer.put(whole, path)
            # Only now, since entries of one declaration may name each other in any direction. What is
            # unchanged stays as it is, even when what it names was deleted since.
            for (entry, path), change in zip(pairs, writer.changes, strict=True):
                if change.action != "unchanged":
                    check_references(catalog, entry, path)
            self._log(catalog, writer.changes, by)
        if dry_run:
            return Applied(writer.changes, [])
        self._announce([change for change in writer.changes if change.kind != "grants"])
        for index, entry in enumerate(written):
            if isinstance(entry, Grant):
                if self._post_grant(entry):
                    writer.changes[index] = change_of(entry, "created")
                self._announce([writer.changes[index]])
        return Applied(writer.changes, writer.issued)

    @contextmanager
    def _transaction(self, *, dry_run: bool = False) -> Iterator[Catalog]:
        try:
            self._on_begin()
            with self._store.transaction(dry_run=dry_run) as catalog:
                yield catalog
        except Unavailable:
            self._on_doubt()
            raise

    def _log(self, catalog: Catalog, changes: Sequence[Change], by: Customer | None) -> None:
        catalog.log(audit_lines(changes, by, self._clock.now_us()))

    def _announce(self, changes: Sequence[Change]) -> None:
        announced = [change for change in changes if change.action != "unchanged"]
        if announced:
            self._on_change(announced)


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= PAGE_SIZE_MAX:
        raise BadParameter(f"limit must be from 1 to {PAGE_SIZE_MAX}, not {limit}", field="limit")
