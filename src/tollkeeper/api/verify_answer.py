"""The result of `verify` as the API and the command line show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from tollkeeper.maintenance.reconcile import Verdict


class DifferenceAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Two figures that should be equal, as text: money may be among them."""

    account: str
    what: str
    expected: str
    found: str


class VerifyAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of verify; `ok` is true if there is no difference and everything could be compared."""

    ok: bool
    differences: list[DifferenceAnswer]
    store_differences: list[str]
    """Differences between the records of the usage store and its rollups or id index."""
    accounts: int
    counters: int
    expired: int = 0
    """Counters that were compared with their postings only, as their events have expired; absent if there are none."""


def verify_answer(verdict: Verdict) -> VerifyAnswer:
    """Return a verdict as answers show it."""
    return VerifyAnswer(
        ok=verdict.ok,
        differences=[
            DifferenceAnswer(account=d.account_id, what=d.what, expected=str(d.expected), found=str(d.found))
            for d in verdict.differences
        ],
        store_differences=list(verdict.store_differences),
        accounts=verdict.accounts,
        counters=verdict.counters,
        expired=verdict.expired,
    )
