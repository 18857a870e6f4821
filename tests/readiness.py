"""The reasons of `/readyz` for an installation that no server runs."""

from __future__ import annotations

from tollkeeper.http.routes.health import fault_of_ledger, fault_of_store
from tollkeeper.installation import Installation


def reasons_not_ready(site: Installation) -> list[str]:
    """Return why requests cannot be served now; nothing when they can."""
    faults = (
        fault_of_ledger(site.ledger),
        fault_of_store(site.store),
        *site.pairing.reasons(),
        site.gate.refusing,
    )
    return [fault for fault in faults if fault is not None]
