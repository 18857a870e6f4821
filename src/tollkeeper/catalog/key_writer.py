"""
Writes keys within one transaction: creates, changes and rotates them, by the operator's word or a customer's.

A secret exists only in the `IssuedKey` that made it. A customer's key is never freer than what the customer has
(`domain.bounds`): its state and its end stay within what the operator set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from tollkeeper.catalog.changes import Change, IssuedKey, change_of, differences
from tollkeeper.catalog.customer_terms import terms_of
from tollkeeper.catalog.entry_parsing import at_path
from tollkeeper.catalog.key_rules import (
    CUSTOMER_KEY_FIELDS,
    IMMUTABLE_KEY_FIELDS,
    check_created,
    check_end,
    check_new_id,
    check_not_ahead,
    check_same,
    check_transition,
    expiry_of,
    no_later,
    prefix_of,
    set_by_operator,
    successor_id,
)
from tollkeeper.catalog.lookups import found_key
from tollkeeper.catalog.quotas import check_quota
from tollkeeper.domain.bounds import Customer, inherited_objection, key_objection, models_objection
from tollkeeper.domain.catalog import Key, KeyState
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.keys import Actor, KeyOrigin, StoredKey, hash_secret, new_secret, shown_prefix
from tollkeeper.errors import BadParameter, Conflict, Forbidden
from tollkeeper.ports import Catalog


class WriteTerms(NamedTuple):
    """
    What holds for all steps of one transaction.

    Attributes:
        catalog: The catalog within the transaction.
        choice: Picks one character of an alphabet, for secrets.
        issue: A key without `sha256` gets a secret; else it must bring one.
        by: The customer that asks; None for the operator.
        quotas: Kind → most entries of the account.
    """

    catalog: Catalog
    now_us: int
    choice: Callable[[str], str]
    issue: bool
    by: Customer | None
    quotas: Mapping[str, int]


class KeyWriter:
    """The steps of one transaction that touch keys."""

    def __init__(self, terms: WriteTerms) -> None:
        self._catalog = terms.catalog
        self._quotas = terms.quotas
        self._now_us = terms.now_us
        self._choice = terms.choice
        self._issue = terms.issue
        self._by = terms.by
        self.actor: Actor = "operator" if terms.by is None else "customer"
        self.changes: list[Change] = []
        self.issued: list[IssuedKey] = []

    def create(self, key: Key, path: str) -> None:
        """Store a new key, and issue it unless it brings the hash of its secret."""
        startable = ("active", "inactive") if key.sha256 is None else ("active", "inactive", "revoked")
        if key.state not in startable:
            raise BadParameter(
                f"{at_path(path, 'state')}: a new key must be {' or '.join(startable)}, not {key.state}",
                field=at_path(path, "state"),
            )
        check_not_ahead(key, self._now_us, path)
        origin = set_by_operator(key)
        if self._by is not None:
            key, origin = self._made_by_customer(key, self._by, path)
        secret = None
        if key.sha256 is None:
            if not self._issue:
                raise BadParameter(
                    f"{at_path(path, 'sha256')}: a new key must have its sha256; to get a secret, issue it",
                    field=at_path(path, "sha256"),
                )
            check_end(key, self._now_us, path)
            secret = new_secret(prefix_of(key), self._choice)
        self._add_key(key, secret, rotation_chain_id=None, origin=origin)

    def change(self, stored: StoredKey, key: Key, path: str) -> None:
        """Store a key that exists, whole, but for what a customer does not change."""
        old = stored.entry
        if self._by is not None:
            # As stored, not as the caller read it: the operator may have changed it meanwhile.
            fields = {field: getattr(key, field) for field in CUSTOMER_KEY_FIELDS}
            key = msgspec.structs.replace(self.managed(stored).entry, **fields)
            expires_at = no_later(key.expires_at, stored.expires_latest_us, path)
            key = msgspec.structs.replace(key, expires_at=expires_at)
            self._check_moved(stored, key)
        for field in IMMUTABLE_KEY_FIELDS:
            check_same(old, key, field, path, "make a new key and revoke this one")
        if key.sha256 is not None and key.sha256 != stored.secret_sha256:
            raise Conflict(f"{at_path(path, 'sha256')}: key {key.id} keeps its secret: rotate it instead")
        check_created(stored, key, path)
        key = msgspec.structs.replace(
            key.without_origin(),
            state=self._settable_state(stored, key, path),
            expires_at=expiry_of(stored, key, path),
        )
        check_transition(old.state, key.state, f"{at_path(path, 'state')}: key {key.id}")
        if old.state == "deleted" and key != old:
            raise Conflict(f"{at_path(path, 'id')}: key {key.id} is deleted for good: make a new key")
        action = self._catalog.put(key, self._now_us, origin=self._origin(stored, key))
        self.changes.append(change_of(key, action, differences(old, key) if action == "changed" else {}))

    def rotate(self, stored: StoredKey, overlap_s: int, new_id: str | None = None) -> None:
        """
        Store a successor of *stored* with a secret of its own, and end *stored* after *overlap_s*.

        It has the id *new_id*, or one after that of the first key (`key_rules.successor_id`).
        """
        old = stored.entry
        state = stored.state_at(self._now_us)
        if state not in ("active", "inactive"):
            raise Conflict(f"key {old.id} is {state} and cannot be rotated: make a new key")
        if stored.replaced_by is not None:
            raise Conflict(f"key {old.id} was rotated before, to {stored.replaced_by}: rotate that one")
        if new_id is None:
            new_id = successor_id(
                stored.rotation_chain_id, lambda name: self._catalog.find_key(name) is not None
            )
        else:
            check_new_id(new_id)
        new = msgspec.structs.replace(old, id=new_id)
        self._add_key(
            new,
            new_secret(prefix_of(new), self._choice),
            rotation_chain_id=stored.rotation_chain_id,
            origin=stored.origin,
        )
        ends_at_us = self._now_us + overlap_s * 1_000_000
        if old.expires_at is not None:
            ends_at_us = min(ends_at_us, to_us(old.expires_at))
        self._catalog.replace_key(
            old.account, old.id, by=new.id, expires_at_us=ends_at_us, now_us=self._now_us
        )
        self.changes.append(change_of(old, "changed", {"expires_at": (old.expires_at, from_us(ends_at_us))}))

    def ended_for_good(self, key: Key, *, names_state: bool) -> Change | None:
        """Return the note on a declared key that is revoked or deleted, if the declaration says otherwise."""
        stored = self._catalog.find_key(key.id)
        if stored is None or stored.entry.account != key.account:
            return None
        old = stored.entry
        if old.state not in ("revoked", "deleted") or (names_state and old.state == key.state == "revoked"):
            return None
        if key.without_origin() == old:
            return None
        change = change_of(old, "unchanged")
        return msgspec.structs.replace(change, note=f"the key is {old.state} for good: left as it is")

    def managed(self, stored: StoredKey) -> StoredKey:
        """Return a key that the caller may manage: a customer manages no management key."""
        if self._by is not None and not stored.entry.is_metered:
            raise Forbidden("A management key is changed by your provider only.", account=self._by.account_id)
        return stored

    def _made_by_customer(self, key: Key, by: Customer, path: str) -> tuple[Key, KeyOrigin]:
        """Return a new key as a customer gets it: it ends no later than the key that makes it."""
        if not key.is_metered or key.account != by.account_id:
            raise Forbidden("Only your provider makes such a key.", account=by.account_id)
        maker = None if by.key_id is None else found_key(self._catalog, by.account_id, by.key_id)
        terms = terms_of(self._catalog, key)
        self._refuse(models_objection(key, terms, None if maker is None else maker.entry))
        if maker is None or not maker.entry.is_metered:
            self._refuse(key_objection(key, terms))
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
        key = msgspec.structs.replace(key, expires_at=no_later(key.expires_at, latest_us, path))
        return key, KeyOrigin("customer", latest_us, made_by)

    def _add_key(
        self, key: Key, secret: str | None, *, rotation_chain_id: str | None, origin: KeyOrigin
    ) -> None:
        sha256 = key.sha256 if secret is None else hash_secret(secret)
        assert sha256 is not None
        check_quota(self._catalog, self._quotas, "keys", key.account)
        created_at_us = None if key.created_at is None else to_us(key.created_at)
        key = key.without_origin()
        self._catalog.add_key(
            key,
            secret_sha256=sha256,
            shown_prefix=None if secret is None else shown_prefix(secret),
            now_us=self._now_us,
            rotation_chain_id=rotation_chain_id,
            origin=origin,
            created_at_us=created_at_us,
        )
        self.changes.append(change_of(key, "created"))
        if self._issue:
            self.issued.append(IssuedKey(entry=key, secret=secret))

    def _check_moved(self, stored: StoredKey, key: Key) -> None:
        """Raise `Forbidden` when a customer moves a key to where it is less bounded."""
        old = stored.entry
        same_plan = key.subscription == old.subscription
        if same_plan and key.project == old.project:
            return
        rotation_chain = [
            other.entry.id
            for other in self._catalog.keys_of_account(old.account)
            if other.rotation_chain_id == stored.rotation_chain_id
        ]
        self._refuse(
            key_objection(
                key, terms_of(self._catalog, key), rotation_chain=rotation_chain, same_plan=same_plan
            )
        )

    def _origin(self, stored: StoredKey, key: Key) -> KeyOrigin:
        """Return whose word state and expiry of a changed key are: what the operator did not change stays."""
        origin = stored.origin
        if self._by is not None:
            return origin
        declared = set_by_operator(key)
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

    def _refuse(self, objection: str | None) -> None:
        if objection is not None:
            raise Forbidden(objection, account=None if self._by is None else self._by.account_id)
