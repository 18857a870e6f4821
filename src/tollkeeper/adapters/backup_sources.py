"""What a backup of an installation is made of: its stores and its data directory."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from tollkeeper.adapters.backup_directory import BackupWriter, target_below
from tollkeeper.adapters.data_directory import SECRETS, DataDirectory
from tollkeeper.adapters.lazy_store import snapshot_of
from tollkeeper.adapters.sql import ledger_copies
from tollkeeper.maintenance.backups import BackupSources
from tollkeeper.ports import UsageStore


def backup_sources(
    engine: sa.Engine, store: UsageStore, directory: DataDirectory, installation_id: str
) -> BackupSources:
    """Return the sources of an installation that is open."""

    def secrets() -> Mapping[str, str]:
        return {name: directory.secret(name) for name in SECRETS}

    return BackupSources(
        usage=lambda: snapshot_of(store),
        ledger=lambda: ledger_copies.frozen(engine),
        describe=ledger_copies.describe,
        ledger_bytes=lambda: ledger_copies.size_of(engine),
        secrets=secrets,
        write=lambda path: BackupWriter(path, installation_id),
        place=target_below,
    )
