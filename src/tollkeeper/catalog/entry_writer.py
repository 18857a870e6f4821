"""
Writes entries of every kind within one transaction, and gathers its changes, to be announced after the commit.

Keys are the business of `key_writer`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tollkeeper.catalog.changes import Change, IssuedKey, change_of, differences
from tollkeeper.catalog.customer_terms import budgets_of, plans_of
from tollkeeper.catalog.entry_parsing import at_path
from tollkeeper.catalog.key_rules import check_same
from tollkeeper.catalog.key_writer import KeyWriter, WriteTerms
from tollkeeper.catalog.lookups import owner_of
from tollkeeper.catalog.quotas import check_quota
from tollkeeper.domain.bounds import project_objection
from tollkeeper.domain.catalog import Budget, Entry, Grant, Key, Price, Project
from tollkeeper.errors import Conflict, Forbidden, IdempotencyConflict

STATE_FIELDS: Final = {"keys": "state", "accounts": "active", "subscriptions": "status"}
"""Fields that are often changed outside of a declaration: one that does not name them keeps them."""
_COUNTED_BUDGET_FIELDS: Final = ("project", "key", "unit")
"""What a budget's counter has counted so far: another scope or unit would make its sum a wrong one."""


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

    def put(self, entry: Entry, path: str, *, keep_state: bool = False) -> None:
        """Create or change one entry, whole; with *keep_state* one that exists keeps its state."""
        if isinstance(entry, Key):
            stored = self._catalog.find_key(entry.id)
            if stored is not None and stored.entry.account == entry.account:
                if keep_state:
                    entry = msgspec.structs.replace(entry, state=stored.entry.state)
                self.keys.change(stored, entry, path)
            else:
                self.keys.create(entry, path)
            return
        old = self._catalog.get(entry.kind, entry.entry_id, owner_of(entry))
        if old is not None:
            if keep_state:
                field = STATE_FIELDS[entry.kind]
                entry = msgspec.structs.replace(entry, **{field: getattr(old, field)})
            _check_immutable(old, entry, path)
        elif self._by is not None and isinstance(entry, Project):
            budgets = budgets_of(self._catalog, entry.account)
            objection = project_objection(plans_of(self._catalog, entry.account), budgets)
            if objection is not None:
                raise Forbidden(objection, account=self._by.account_id)
        if old is None and isinstance(entry, Price) and self._catalog.get("prices", entry.id) is not None:
            raise Conflict(f"{at_path(path, 'id')}: the price id {entry.id!r} is taken: choose another")
        self._store(old, entry)

    def _store(self, old: Entry | None, new: Entry) -> None:
        if old is None and new.kind in self._quotas:
            check_quota(self._catalog, self._quotas, new.kind, str(getattr(new, "account")))  # noqa: B009
        action = self._catalog.put(new, self._now_us)
        self.changes.append(
            change_of(new, action, differences(old, new) if old and action == "changed" else {})
        )


def _check_immutable(old: Entry, new: Entry, path: str) -> None:
    if isinstance(new, Grant) and old != new:
        raise IdempotencyConflict(
            f"{at_path(path, 'id')}: grant {new.id} was posted with another body: use another id"
        )
    if isinstance(new, Price):
        check_same(old, new, "account", path, "make another price")
    if isinstance(new, Budget):
        for field in _COUNTED_BUDGET_FIELDS:
            check_same(old, new, field, path, "make another budget and delete this one")
