"""
Writes entries of every kind within one transaction, and gathers its changes, to be announced after the commit.

Keys are the business of `key_writer`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tollkeeper.catalog.changes import Change, IssuedKey, change_of, differences
from tollkeeper.catalog.customer_terms import budgets_of, plans_of
from tollkeeper.catalog.entry_parsing import at_path, checked
from tollkeeper.catalog.key_rules import check_same
from tollkeeper.catalog.key_writer import KeyWriter, WriteTerms
from tollkeeper.catalog.lookups import owner_of
from tollkeeper.catalog.quotas import check_quota
from tollkeeper.domain.bounds import project_objection
from tollkeeper.domain.catalog import Account, Budget, Entry, Grant, Key, Markup, Price, Project
from tollkeeper.domain.events import FUTURE_S_MAX
from tollkeeper.domain.instants import US_PER_S, from_us, to_text, to_us
from tollkeeper.errors import Conflict, Forbidden, IdempotencyConflict

_MEANING_FIELDS: Final = {"budgets": ("unit",)}
"""Fields that say what others mean: kept unseen, they would turn an amount of the file into another one."""
_COUNTED_BUDGET_FIELDS: Final = ("project", "key", "unit")
"""What a budget's counter has counted so far: another scope or unit would make its sum a wrong one."""
KEYLESS_CREDIT_AHEAD_S: Final = FUTURE_S_MAX + 300
"""No event of that time can be stored yet, and the gate has the change by then."""


class EntryWriter:
    """The steps of one transaction."""

    def __init__(self, terms: WriteTerms) -> None:
        self.keys = KeyWriter(terms)
        self._catalog = terms.catalog
        self._quotas = terms.quotas
        self._now_us = terms.now_us
        self._by = terms.by

    @property
    def changes(self) -> list[Change]:
        """The changes so far, in order."""
        return self.keys.changes

    @property
    def issued(self) -> list[IssuedKey]:
        """The keys that were made so far."""
        return self.keys.issued

    def completed(self, entry: Entry, path: str, named: frozenset[str]) -> Entry:
        """
        Return *entry* of a declaration as it is to be stored: the fields *named* are its, the others stay.

        Raises:
            BadParameter: What the declaration says does not go with what stays.
        """
        old: Entry | None
        if isinstance(entry, Key):
            stored = self._catalog.find_key(entry.id)
            old = stored.entry if stored is not None and stored.entry.account == entry.account else None
        else:
            old = self._catalog.get(entry.kind, entry.entry_id, owner_of(entry))
        if old is None:
            return entry
        stated = {*named, *_MEANING_FIELDS.get(entry.kind, ()), "sha256", "created_at"}
        kept = {field: getattr(old, field) for field in entry.__struct_fields__ if field not in stated}
        completed = msgspec.structs.replace(entry, **kept)
        return completed if completed in (entry, old) else checked(completed, path)

    def put(self, entry: Entry, path: str) -> None:
        """Create or change one entry, whole."""
        if isinstance(entry, Key):
            stored = self._catalog.find_key(entry.id)
            if stored is not None and stored.entry.account == entry.account:
                self.keys.change(stored, entry, path)
            else:
                self.keys.create(entry, path)
            return
        old = self._catalog.get(entry.kind, entry.entry_id, owner_of(entry))
        if old is not None:
            _check_immutable(old, entry, path)
            if isinstance(old, Account) and isinstance(entry, Account):
                _check_keyless_credit(old, entry, path, self._now_us)
        elif self._by is not None and isinstance(entry, Project):
            budgets = budgets_of(self._catalog, entry.account)
            objection = project_objection(plans_of(self._catalog, entry.account), budgets)
            if objection is not None:
                raise Forbidden(objection, account=self._by.account_id)
        if (
            old is None
            and isinstance(entry, Price | Markup)
            and self._catalog.get(entry.kind, entry.id) is not None
        ):
            what = "price" if isinstance(entry, Price) else "mark-up"
            raise Conflict(f"{at_path(path, 'id')}: the {what} id {entry.id!r} is taken: choose another")
        self._store(old, entry)

    def _store(self, old: Entry | None, new: Entry) -> None:
        if old is None and new.kind in self._quotas:
            check_quota(self._catalog, self._quotas, new.kind, str(getattr(new, "account")))  # noqa: B009
        action = self._catalog.put(new, self._now_us)
        self.changes.append(
            change_of(new, action, differences(old, new) if old and action == "changed" else {})
        )


def _check_keyless_credit(old: Account, new: Account, path: str, now_us: int) -> None:
    """Raise `Conflict` when events may exist already that drew on credit and would not have, or the other way round."""
    if old.keyless_credit_at == new.keyless_credit_at:
        return
    earliest_us = now_us + KEYLESS_CREDIT_AHEAD_S * US_PER_S
    for at in (old.keyless_credit_at, new.keyless_credit_at):
        if at is not None and to_us(at) < earliest_us:
            raise Conflict(
                f"{at_path(path, 'keyless_credit_at')}: an account that exists must have it at "
                f"{to_text(from_us(earliest_us))} or later ({KEYLESS_CREDIT_AHEAD_S} s ahead), and keeps it once that "
                f"is past, since events are drawn on credit or not for good; {to_text(at)} is too early. Only a new "
                "account may have any instant"
            )


def _check_immutable(old: Entry, new: Entry, path: str) -> None:
    if isinstance(new, Grant) and old != new:
        raise IdempotencyConflict(
            f"{at_path(path, 'id')}: grant {new.id} was posted with another body: use another id"
        )
    if isinstance(new, Price):
        check_same(old, new, "account", path, "make another price")
    if isinstance(new, Markup):
        check_same(old, new, "account", path, "make another mark-up")
        check_same(old, new, "plan", path, "make another mark-up")
    if isinstance(new, Budget):
        for field in _COUNTED_BUDGET_FIELDS:
            check_same(old, new, field, path, "make another budget and delete this one")
