"""
Checks that ledger and usage store belong together before anything is relayed, and which records one of them lacks.

A ledger of another installation is refused. One that is older than its usage store, as after a restore or a fail-over,
is used: as long as it may have records that the store has already, each batch is compared with the store. Records
that the store has and the ledger does not are reported: in the log, by `/readyz` and by verify.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from tollkeeper.clock import Clock
from tollkeeper.domain.pairing import Pair, StorePast, compare
from tollkeeper.errors import StoresMismatch, Unavailable
from tollkeeper.ports import Losses, Outbox, UsageStore

COMPARING: Final = "the ledger is older than the usage store: each batch is compared with what the store has"

log = logging.getLogger("tollkeeper.pairing")


class Pairing:
    """
    Any thread may call.

    Args:
        shared: Whether several installations share the usage store on purpose, as in tests: then what only a whole
            store tells (whose it is, how many records it must have) is not compared.
    """

    def __init__(self, outbox: Outbox, clock: Clock, *, shared: bool = False) -> None:
        self._outbox = outbox
        self._clock = clock
        self._shared = shared
        self._lock = threading.Lock()
        self._compared = False
        self._refusal: str | None = None
        self._is_behind = False
        self._surplus = 0
        self._missing = 0
        self._look_due = False
        self._losses = Losses([], [])

    def check(self, store: UsageStore) -> None:
        """
        Compare the two, unless that was done.

        Raises:
            StoresMismatch: They do not belong together. The answer stays the same until the next start.
            Unavailable: One of them cannot be read; a repeat is safe.
        """
        with self._lock:
            if self._refusal is not None:
                raise StoresMismatch(self._refusal)
            if not self._compared:
                self._check(store)
                self._compared = True

    def must_compare(self, store: UsageStore) -> bool:
        """Return whether each batch may have records that the store has already. Raises as `check` does."""
        self.check(store)
        return self._is_behind

    def _check(self, store: UsageStore) -> None:
        ledger = self._outbox.past()
        past = store.past(ledger.last.installation_id)
        pair = compare(ledger, past, shared=self._shared)
        if pair.refusal is not None:
            self._refusal = pair.refusal
            log.error("tollkeeper.pairing.refused", extra={"reason": pair.refusal})
            raise StoresMismatch(pair.refusal)
        if pair.uncounted:
            self._outbox.raise_delivered(past.records - ledger.set_aside_records)
            log.warning("tollkeeper.pairing.counted", extra={"records": pair.uncounted})
        if pair.ledger_is_behind:
            last = past.last.batch if past.last is not None else 0
            self._outbox.note_behind(last, self._clock.now_us())
            log.error(
                "tollkeeper.pairing.ledger_is_behind",
                extra={"records": pair.surplus, "batch": ledger.last.batch, "store_batch": last},
            )
        self._is_behind = self._outbox.is_behind()
        self._look_due = not self._shared
        # What a crash left half appended is made whole by its repeat, and looked at then.
        if not ledger.begun_records:
            self._look(store)
        self._learn(pair)

    def refuse_foreign(self, installations: Sequence[str]) -> None:
        """Raise `StoresMismatch` if a store of these *installations* cannot be this ledger's."""
        ledger = self._outbox.past()
        others = [id_ for id_ in installations if id_ != ledger.last.installation_id]
        refusal = compare(ledger, StorePast(None, others, 0), shared=self._shared).refusal
        if refusal is not None:
            log.error("tollkeeper.pairing.refused", extra={"reason": refusal})
            raise StoresMismatch(refusal)

    @property
    def look_is_due(self) -> bool:
        """Whether the store was not looked at yet, since a batch had to be made whole before."""
        return self._look_due

    def look_again(self, store: UsageStore) -> None:
        """Look at the store if that is due. Called after a batch, while no other is on its way."""
        # It stays due: the next batch looks again.
        with suppress(Unavailable), self._lock:
            if not self._outbox.past().begun_records:
                self._look(store)

    def maintain(self) -> None:
        """End the comparing of batches when nothing old can come any more."""
        if self._is_behind:
            self._is_behind = self._outbox.is_behind()
            if not self._is_behind:
                log.info("tollkeeper.pairing.caught_up")

    def recount(self, store: UsageStore) -> list[str]:
        """
        Compare again what the two have, with nothing on its way; return a line for what the ledger does not know.

        Raises:
            Unavailable: One of them cannot be read.
        """
        self.check(store)
        ledger = self._outbox.past()
        pair = compare(ledger, store.past(ledger.last.installation_id), shared=self._shared)
        with self._lock:
            self._look_due = not self._shared
            self._look(store)
            self._learn(pair)
        if not pair.surplus:
            return []
        return [
            f"events: the usage store has {pair.surplus} records that the ledger does not know: "
            "the ledger was put back to an earlier state, and they are in no counter that began before"
        ]

    @property
    def is_complete(self) -> bool:
        """Whether the store has all records that it was given, as far as is known."""
        return not self._missing and not self._losses.records

    def warnings(self) -> list[str]:
        """Return warnings for the operator; requests are served all the same."""
        found = [COMPARING] if self._is_behind else []
        if self._surplus:
            found.append(
                f"the usage store has {self._surplus} records that the ledger does not know: they are in no counter"
            )
        if self._missing:
            found.append(f"{self._missing} records are missing in the usage store: answers are not complete")
        return found + [
            f"the usage store lacks records: {line}: answers are not complete"
            for line in self._losses.records
        ]

    def reasons(self) -> list[str]:
        """Return why the usage store must not be asked."""
        if self._refusal is not None:
            return [self._refusal]
        return [
            f"the usage store lacks what is derived from its records: {line}: run `tollkeeper rebuild`"
            for line in self._losses.derived
        ]

    def _look(self, store: UsageStore) -> None:
        if not self._look_due:
            return
        self._look_due = False
        try:
            before, self._losses = self._losses, store.losses()
        except Unavailable as exc:
            # Each query that meets the damage fails; a rebuild, which mends it, must stay possible.
            log.warning("tollkeeper.pairing.unavailable", extra={"reason": str(exc)})
            return
        for line in {*self._losses.records, *self._losses.derived} - {*before.records, *before.derived}:
            log.error("tollkeeper.usage.lacks", extra={"what": line})

    def _learn(self, pair: Pair) -> None:
        self._surplus = pair.surplus
        if pair.missing and pair.missing != self._missing:
            log.error("tollkeeper.usage.records_missing", extra={"records": pair.missing})
        self._missing = pair.missing
