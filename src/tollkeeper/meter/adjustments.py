"""
Books adjustments (`domain.adjustments`): once each, through the committer, like an event.

An id is looked up among the pending records, then in the usage store, and the commit thread looks again, so of several
calls with one id one is booked. The same adjustment again gets the first answer.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import pyarrow as pa

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.domain.adjustments import (
    Adjustment,
    BadAdjustment,
    adjustment_record,
    check_adjustment,
    same_adjustment,
)
from tollkeeper.domain.events import Record
from tollkeeper.errors import BadParameter, EventConflict, NotFound, Unavailable
from tollkeeper.ledger.commit_tasks import Stale
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.expired import expired_error
from tollkeeper.ledger.pending import TOO_MANY, Pending, key_of
from tollkeeper.meter.booking import book, wait_for_commits
from tollkeeper.ports import UsageStore
from tollkeeper.record_columns import table_of

_TRIES: Final = 20


class Adjusted(NamedTuple):
    """The record of an adjustment as it stands (`sign` -1 when it was voided), and whether it was booked before."""

    record: Record
    repeated: bool


class Adjustments:
    """Blocking; any thread may call."""

    def __init__(
        self, directory: Directory, store: UsageStore, pending: Pending, committer: Committer, clock: Clock
    ) -> None:
        self._directory = directory
        self._store = store
        self._pending = pending
        self._committer = committer
        self._clock = clock

    def post(self, asked: Adjustment) -> Adjusted:
        """
        Book an adjustment; when this returns, it is durable, and in force in the gate.

        Raises:
            BadParameter: A field breaks a rule, or names a key, project or event that the account does not have.
            NotFound: There is no such account.
            EventConflict: The id is that of an event, of a correction, of an open hold, or of another adjustment.
            DetailExpired: It was booked, and its record has expired.
            Unavailable: A store failed, or too much waits; the same call again is safe.
        """
        try:
            check_adjustment(asked, self._clock.now_us())
        except BadAdjustment as exc:
            raise BadParameter(str(exc), field=exc.field) from None
        if self._directory.account(asked.account_id) is None:
            raise NotFound(f"there is no account {asked.account_id[:64]!r}: create it")
        with self._pending.looking_up():
            found = self._record(asked.account_id, asked.id)
        # Before anything else: its key may have another project by now, or be gone. A commit under way may fail.
        committing = self._pending.is_committing([key_of(asked.account_id, asked.id)])
        if found is not None and not committing and same_adjustment(found, _of_project(asked, found)):
            return Adjusted(found, True)
        asked = self._resolved(asked)
        for _ in range(_TRIES):
            # Until the commit thread has looked: what is delivered meanwhile must not be missed by both.
            with self._pending.looking_up():
                try:
                    return self._post_once(asked)
                except Stale:
                    continue
        raise Unavailable("The same id keeps coming in from elsewhere. Try again.")

    def _post_once(self, asked: Adjustment) -> Adjusted:
        """Book it as the stores are now. Raises `Stale` when they changed before its commit."""
        if self._pending.is_full:
            raise Unavailable(TOO_MANY)
        key = key_of(asked.account_id, asked.id)
        found = self._record(asked.account_id, asked.id)
        is_known = found is None and self._is_recorded(asked.account_id, asked.id)
        if is_known:
            # It may have been booked between the two look-ups; a correction is no record of its id.
            found = self._record(asked.account_id, asked.id)
        if found is not None:
            if not same_adjustment(found, asked):
                raise EventConflict(
                    f"{asked.id[:128]!r} is the id of an event or of another adjustment: use a new id."
                )
            if self._pending.is_committing([key]):
                wait_for_commits(self._committer)
                raise Stale  # It may have failed: look again.
            return Adjusted(found, True)
        if self._pending.is_held(key) or self._pending.is_own(key):
            raise EventConflict(f"{asked.id[:128]!r} is the id of an open hold: use a new id.")
        if is_known:
            if not self._is_recorded(asked.account_id, asked.id):
                raise Stale  # Its commit has failed meanwhile.
            if expired := expired_error(self._store, asked.account_id, asked.id):
                raise expired  # Under a new id it would count twice.
            raise EventConflict(f"{asked.id[:128]!r} is the id of a correction or a record: use a new id.")
        version = self._committer.scopes_version
        record = adjustment_record(asked, self._clock.now_us())
        charges = self._directory.charges_of_all([record])
        book(self._committer, table_of([record]), [key], charges, version)
        return Adjusted(record, False)

    def _resolved(self, asked: Adjustment) -> Adjustment:
        """Return *asked* with the project of its key. Raises as `post` for what does not exist."""
        account_id, directory = asked.account_id, self._directory
        if asked.key_id:
            stored = directory.key(asked.key_id)
            if stored is None or stored.entry.account != account_id or not stored.entry.is_metered:
                raise BadParameter(
                    f"key_id: account {account_id!r} has no api key {asked.key_id[:64]!r}", field="key_id"
                )
            project = stored.entry.project or ""
            if asked.project_id and project and asked.project_id != project:
                raise BadParameter(
                    f"project: key {asked.key_id!r} belongs to project {project!r}: leave project out",
                    field="project",
                )
            asked = asked._replace(project_id=asked.project_id or project)
        if asked.project_id and not directory.project_exists(account_id, asked.project_id):
            raise BadParameter(
                f"project: account {account_id!r} has no project {asked.project_id[:64]!r}", field="project"
            )
        if asked.event_id:
            with self._pending.looking_up():
                if self._record(account_id, asked.event_id) is None:
                    if expired_error(self._store, account_id, asked.event_id):
                        raise BadParameter(
                            f"event: event {asked.event_id[:64]!r} has expired: leave it out", field="event"
                        )
                    raise BadParameter(
                        f"event: account {account_id!r} has no event {asked.event_id[:64]!r}: leave it out, or "
                        "name the event that this corrects",
                        field="event",
                    )
        return asked

    def _record(self, account_id: str, id_: str) -> Record | None:
        key = key_of(account_id, id_)
        # In this order, since what is no longer pending is in the store.
        found = self._pending.records([key]).get(key)
        return found or self._store.records([(account_id, id_)]).get((account_id, id_))

    def _is_recorded(self, account_id: str, id_: str) -> bool:
        if self._pending.is_recorded(key_of(account_id, id_)):
            return True
        pair = pa.table({"account_id": [account_id], "id": [id_]})
        known: int = self._store.known_ids(pair).num_rows
        return known > 0


def _of_project(asked: Adjustment, found: Record) -> Adjustment:
    """Return *asked* with the project that its key had when *found* was booked, where it names none."""
    if asked.project_id or not asked.key_id:
        return asked
    return asked._replace(project_id=found.project_id)
