"""Single events as they stand, by id: whose an event is, and its newest record."""

from __future__ import annotations

from tollkeeper.domain.events import Record
from tollkeeper.errors import BadParameter, NotFound, Unavailable
from tollkeeper.ledger.delivery import Delivery
from tollkeeper.ledger.expired import expired_error
from tollkeeper.ports import UsageStore


class EventLookup:
    """
    Reads single events. Everything that was acknowledged before a call is found.

    Raises:
        Unavailable: The usage store does not answer, or is behind.
    """

    def __init__(self, store: UsageStore, delivery: Delivery) -> None:
        self._store = store
        self._delivery = delivery

    def owner(self, event_id: str, account_id: str | None) -> str:
        """
        Return the account of an event: *account_id* where it is given, which is not looked up.

        Raises:
            NotFound: No account has such an event.
            BadParameter: Several accounts have one.
        """
        if account_id is not None:
            return account_id
        self._catch_up(None)
        owners = self._store.owners(event_id)
        if not owners:
            raise _no_such_event(event_id)
        if len(owners) > 1:
            raise BadParameter(
                "several accounts have an event of this id: state the account", field="account"
            )
        return owners[0]

    def record(self, event_id: str, account_id: str) -> Record:
        """
        Return the record of an event as it stands, voided or not.

        Raises:
            NotFound: The account has no such event.
            DetailExpired: It has expired.
        """
        self._catch_up(account_id)
        record = self._store.records([(account_id, event_id)]).get((account_id, event_id))
        if record is None:
            raise expired_error(self._store, account_id, event_id) or _no_such_event(event_id)
        return record

    def _catch_up(self, account_id: str | None) -> None:
        if not self._delivery.fresh(account_id):
            raise Unavailable("The usage store is behind. Try again.")


def _no_such_event(event_id: str) -> NotFound:
    return NotFound(f"There is no event {event_id[:128]!r}.")
