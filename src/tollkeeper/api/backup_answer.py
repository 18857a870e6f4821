"""How HTTP and CLI tell of a backup that was taken."""

from __future__ import annotations

import msgspec

from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.money import format_nanos
from tollkeeper.maintenance.backups import BackupTaken


class BackupAnswerTotals(msgspec.Struct, frozen=True):
    """
    Figures of the backup, which `restore` compares with what it restored.

    Attributes:
        charged: Sum of all counters, whatever their units.
        pending_events: Events that are still in the outbox of the ledger.
        events: Events that the usage store has, corrections counted as events.
        cost: Of the events of the usage store, as decimal text.
    """

    accounts: int
    keys: int
    holds: int
    counters: int
    charged: int
    pending_events: int
    events: int
    cost: str


class BackupAnswer(msgspec.Struct, frozen=True):
    """
    A complete backup.

    Attributes:
        path: Its directory on the server's machine.
        started_at: Everything that was acknowledged before is in it.
        made_at: The instant that it shows.
        written_bytes: How much of it was not in an earlier backup.
    """

    path: str
    installation_id: str
    started_at: str
    made_at: str
    bytes: int
    written_bytes: int
    files: int
    totals: BackupAnswerTotals


def backup_answer(taken: BackupTaken) -> BackupAnswer:
    """Return what is answered about *taken*."""
    manifest = taken.manifest
    totals = msgspec.structs.asdict(manifest.totals)
    cost = format_nanos(totals.pop("cost_nanos"))
    return BackupAnswer(
        str(taken.path.absolute()),
        manifest.installation_id,
        to_text(from_us(manifest.started_at_us)),
        to_text(from_us(manifest.made_at_us)),
        manifest.bytes,
        taken.written_bytes,
        len(manifest.files),
        BackupAnswerTotals(**totals, cost=cost),
    )
