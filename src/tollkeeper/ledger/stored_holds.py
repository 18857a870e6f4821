"""
Open holds between memory and the ledger: an admission as a stored hold, and back after a restart.

A hold keeps the amounts and the project of its request, wherever its key is when it is restored.
"""

from __future__ import annotations

import logging

import msgspec

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.domain.bookings import EndedHold, HoldBody, StoredHold
from tollkeeper.domain.decisions import Amounts, UnitAmounts, amounts_by_unit
from tollkeeper.domain.entitlements import Entitlement
from tollkeeper.domain.keyless import Keyless
from tollkeeper.domain.matching import Facts
from tollkeeper.domain.meter import UNKNOWN_ROUTE
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.errors import HoldUnknown
from tollkeeper.gate.gate import Admission, Gate
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import EndHold
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.open_holds import OpenHolds
from tollkeeper.ports import Ledger

log = logging.getLogger("tollkeeper.holds")


def stored_hold_of(admission: Admission, at_expiry: Outcome | None = None) -> StoredHold:
    """
    Return an admission as the ledger keeps it while its hold is open.

    Args:
        at_expiry: What is booked when it expires; None voids it.
    """
    return StoredHold(admission.account_id, admission.id, "open", _body_of(admission, at_expiry))


class StoredHolds:
    """Makes admissions of the holds in the ledger."""

    def __init__(self, gate: Gate, directory: Directory) -> None:
        self._gate = gate
        self._directory = directory

    def admission_of(self, stored: StoredHold, *, hold: bool) -> Admission:
        """
        Return the admission that made *stored*.

        Args:
            hold: Whether it holds its amounts at the gate again; not for a hold that has ended.

        Raises:
            HoldUnknown: Its key is no longer in the catalog.
        """
        body = stored.body
        compiled_key = self._gate.compiled_key_of(lambda: self._entitlement_of(stored))
        if compiled_key is None:
            raise HoldUnknown(f"The key of hold {stored.hold_id} is gone.")
        route = (
            self._directory.route_table().match(body.method, body.path, compiled_key.profile) or UNKNOWN_ROUTE
        )
        amounts: UnitAmounts = Amounts(*body.amounts)
        if body.quantities or compiled_key.counts_quantities:
            amounts = amounts_by_unit(body.amounts, body.quantities)
        if hold:
            *_, model = body.expected
            facts = Facts(model, body.tags, route.event_kind, body.method, body.path)
            admission = self._gate.hold_again(compiled_key, route, stored.hold_id, amounts, body.at_us, facts)
        else:
            admission = Admission(
                self._gate.abandoned,
                stored.hold_id,
                compiled_key,
                route,
                body.method,
                amounts,
                NO_USAGE,
                [],
                body.at_us,
            )
        prompt, cached_prompt, completion, reasoning, model = body.expected
        admission.expected = Usage(
            prompt,
            cached_prompt,
            completion,
            reasoning,
            model,
            quantities=body.quantities,
            variant=body.variant,
        )
        admission.method = body.method
        admission.path = body.path
        admission.tags = body.tags
        admission.fingerprint = body.fingerprint
        admission.expires_at_us = body.expires_at_us
        admission.durable = True
        return admission

    def _entitlement_of(self, stored: StoredHold) -> Entitlement | None:
        """Return the entitlement of a hold's key, in the project of its request, wherever the key is now."""
        body = stored.body
        if not body.key_id:
            caller = Keyless(stored.account_id, body.user, body.project or "", body.profile)
            return self._directory.keyless_entitlement(caller)
        key = self._directory.key(body.key_id)
        if key is None:
            return None
        if body.project is not None:
            entry = msgspec.structs.replace(key.entry, project=body.project or None)
            key = msgspec.structs.replace(key, entry=entry)
        return self._directory.entitlement_of(key)


def restore_open_holds(
    ledger: Ledger, stored_holds: StoredHolds, open_holds: OpenHolds, committer: Committer, clock: Clock
) -> int:
    """Open the holds again that were open when the process ended; return how many. Called once, at start."""
    count = 0
    for stored in ledger.open_holds():
        at = (stored.account_id, stored.hold_id)
        try:
            admission = stored_holds.admission_of(stored, hold=True)
        except HoldUnknown:
            # Without its key it cannot be settled any more, and the other holds must be restored all the same.
            log.warning("tollkeeper.hold.orphaned", extra={"account": at[0], "hold": at[1]})
            committer.submit(EndHold(EndedHold(*at, "expired", clock.now_us()), None))
            continue
        open_holds.add(admission, CommitFuture.finished())
        if stored.body.at_expiry is not None:
            open_holds.settle_at_expiry(admission, stored.body.at_expiry)
        count += 1
    return count


def _body_of(admission: Admission, at_expiry: Outcome | None) -> HoldBody:
    expected = admission.expected
    amounts = admission.amounts
    return HoldBody(
        key_id=admission.key_id,
        method=admission.method,
        path=admission.path,
        amounts=(amounts.requests, amounts.tokens, amounts.nanos, amounts.credits),
        expected=(
            expected.prompt_tokens,
            expected.cached_prompt_tokens,
            expected.completion_tokens,
            expected.reasoning_tokens,
            expected.model,
        ),
        at_us=admission.at_us,
        expires_at_us=admission.expires_at_us,
        fingerprint=admission.fingerprint,
        tags=dict(admission.tags),
        project=admission.compiled_key.project_id,
        quantities=dict(expected.quantities),
        variant=expected.variant,
        at_expiry=at_expiry,
        user="" if admission.key_id else admission.compiled_key.entitlement.key.name,
        profile="native" if admission.key_id else admission.compiled_key.profile,
    )


def keyless_caller_of(admission: Admission) -> Keyless:
    """Return who made a request without a key."""
    key = admission.compiled_key
    return Keyless(admission.account_id, key.entitlement.key.name, key.project_id or "", key.profile)
