"""
What a backup says of itself: its manifest, and whether this version can restore it.

A backup has the whole ledger, and the tables of the usage store in pieces, a file for each part of a table. Money is
nanos, instants are microseconds since the Unix epoch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

FORMAT: Final = 1
"""The newest form of a manifest."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FILE: Final = re.compile(r"(usage/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class BackupFile(msgspec.Struct, frozen=True):
    """A file of a backup. *sha256* is lower-case hex."""

    bytes: int
    sha256: str


class UsagePiece(msgspec.Struct, frozen=True):
    """The rows of one part of a table. Two parts with the same rows have one file, and a piece each."""

    file: str
    rows: int


class UsageTable(msgspec.Struct, frozen=True):
    """One table of the usage store: its columns, in the order of the pieces."""

    name: str
    columns: list[str]
    pieces: list[UsagePiece]

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)


class BackupTotals(msgspec.Struct, frozen=True):
    """
    Figures that must be equal in the backup and in what was restored from it.

    Attributes:
        charged: Sum of all counters, whatever their units.
        events: Records that the usage store has, and those that have expired.
        pending_events: Records that are still in the outbox of the ledger.
        cost_nanos: Of the records of the usage store.
    """

    accounts: int
    keys: int
    holds: int
    counters: int
    charged: int
    pending_events: int
    events: int
    cost_nanos: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """
    A complete backup. It is written last, so that a directory without it is no backup.

    Attributes:
        started_at_us: Everything that was acknowledged before is in the backup.
        made_at_us: The instant that it shows. Nothing of later is in it.
        batch_epoch: Of the last batch that the usage store may have; "" with a *batch* of 0 if it was given none.
        secrets: Name in the data directory → file of the backup.
        ledger_rows: Table of the ledger → its rows.
        files: Every file of the backup but the manifest, by its path in it.
    """

    format: int
    version: str
    installation_id: str
    started_at_us: int
    made_at_us: int
    ledger_revision: str
    ledger_file: str
    ledger_rows: dict[str, int]
    usage_schema: int
    usage: list[UsageTable]
    batch_epoch: str
    batch: int
    secrets: dict[str, str]
    totals: BackupTotals
    files: dict[str, BackupFile]

    @property
    def bytes(self) -> int:
        """How large its files are together."""
        return sum(file.bytes for file in self.files.values())


def is_backup_name(text: str) -> bool:
    """Return whether *text* may name a backup within a directory of backups."""
    return _NAME.fullmatch(text) is not None


def why_not_restorable(manifest: Manifest, *, ledger_revision: str, usage_schema: int) -> str | None:
    """
    Return why this version cannot restore a backup; None if it can.

    Args:
        ledger_revision: The newest that this version knows.
        usage_schema: The newest that this version knows.
    """
    if manifest.format > FORMAT:
        return f"it has format {manifest.format}, and this version knows {FORMAT}"
    if manifest.ledger_revision > ledger_revision:
        return f"its ledger has revision {manifest.ledger_revision}, and this version knows {ledger_revision}"
    if manifest.usage_schema > usage_schema:
        return f"its usage store has schema {manifest.usage_schema}, and this version knows {usage_schema}"
    named = [manifest.ledger_file, *manifest.secrets.values()]
    named += [piece.file for table in manifest.usage for piece in table.pieces]
    for path in (*named, *manifest.files):
        # A manifest that was tampered with must not name a file outside of its directory.
        if not _FILE.fullmatch(path):
            return f"its manifest names {path!r}, which is no file of a backup"
        if path not in manifest.files:
            return f"its manifest has no checksum of {path}"
    if not all(_NAME.fullmatch(name) for name in manifest.secrets):
        return "its manifest names a secret that is none"
    return None


def totals_differ(backed_up: BackupTotals, restored: BackupTotals) -> dict[str, tuple[int, int]]:
    """Return the figures that are not equal: name → (in the backup, restored)."""
    pairs: Mapping[str, tuple[int, int]] = {
        name: (getattr(backed_up, name), getattr(restored, name)) for name in BackupTotals.__struct_fields__
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
