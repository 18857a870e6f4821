"""
Restores an installation from a backup: wires what `adapters` can do, and verifies the result.

Nothing is written before the whole backup was read and everything that is to be filled was found to be empty. A
restored installation has an id of its own, so that it and the one that was backed up are two, and the usage store of
the one refuses the ledger of the other. Only a ledger that goes on with the usage store that survived keeps the id.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tollkeeper.adapters.backup_directory import damages, read_manifest
from tollkeeper.adapters.clickhouse import restoring as usage_restoring
from tollkeeper.adapters.clickhouse import tables
from tollkeeper.adapters.restore_directory import RestoreDirectory
from tollkeeper.adapters.sql import ledger_copies
from tollkeeper.adapters.sql.database import SCHEMA_REVISION
from tollkeeper.clock import Clock
from tollkeeper.domain.backups import BackupTotals, Manifest, totals_differ, why_not_restorable
from tollkeeper.domain.pairing import BatchMark
from tollkeeper.errors import Conflict, Unavailable, cause_of
from tollkeeper.installation import Installation
from tollkeeper.maintenance.reconcile import Verdict
from tollkeeper.settings import Settings


class Restored(NamedTuple):
    """
    What was restored.

    Attributes:
        totals: Of what was restored, before anything was started on it.
        events_after: Records of the usage store when the outbox was delivered to it.
        verdict: Of `verify` on the restored installation.
    """

    manifest: Manifest
    installation_id: str
    totals: BackupTotals
    events_after: int
    verdict: Verdict


def check_backup(source: Path) -> Manifest:
    """
    Read a whole backup and return its manifest.

    Raises:
        Conflict: It is incomplete or damaged, or of a later version.
        NotFound: There is none.
        Unavailable: It cannot be read.
    """
    manifest = read_manifest(source)
    reason = why_not_restorable(
        manifest, ledger_revision=SCHEMA_REVISION, usage_schema=tables.newest_schema()
    )
    if reason is not None:
        raise Conflict(f"The backup {source} cannot be restored by this version: {reason}.")
    if found := damages(source, manifest):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise Conflict(
            f"The backup {source} is damaged, nothing was restored: {'; '.join(found[:3])}{more}. "
            "Restore another backup."
        )
    return manifest


def restore(
    source: Path,
    settings: Settings,
    *,
    keep_usage: bool = False,
    clock: Clock | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Restored:
    """
    Restore the backup *source* as the installation of *settings*, and verify it. Broken off, it may be repeated.

    Args:
        keep_usage: Restore the ledger only, to go on with the usage store of *settings*, which survived.
        progress: Called with the name of each step.

    Raises:
        BadParameter: A URL of *settings* is none.
        Conflict: The backup cannot be used, or a place that is to be filled is not empty. Nothing was written.
        DataDirectoryInUse: Another process has the data directory.
        NotFound: There is no backup.
        Unavailable: A store cannot be reached or written. The same call again goes on.
    """
    progress("reading the backup")
    manifest = check_backup(source)
    id_ = manifest.installation_id
    if keep_usage:
        found = usage_restoring.installations_at(settings.usage)
        if found != [id_]:
            whose = f"of installation {', '.join(found)}" if found else "of no installation"
            raise Conflict(
                f"The usage store to keep is {whose}, and the backup of installation {id_}: "
                "leave --keep-usage out to restore the usage store of the backup."
            )
    else:
        id_ = uuid.uuid4().hex
    directory = RestoreDirectory(settings, manifest, id_, keep_usage=keep_usage)
    try:
        totals = _fill(source, settings, manifest, directory, keep_usage=keep_usage, progress=progress)
        directory.finish()
    finally:
        directory.close()
    progress("verifying")
    site = Installation(settings, clock=clock, sends_webhooks=False)
    try:
        verdict = site.reconcile.verify()
        events_after = site.store.past(site.ledger.installation_id).records
    finally:
        site.close()
    return Restored(manifest, directory.installation_id, totals, events_after, verdict)


def _fill(
    source: Path,
    settings: Settings,
    manifest: Manifest,
    directory: RestoreDirectory,
    *,
    keep_usage: bool,
    progress: Callable[[str], None],
) -> BackupTotals:
    for name, file in manifest.secrets.items():
        directory.take_secret(name, source / file)
    events, cost_nanos = manifest.totals.events, manifest.totals.cost_nanos
    if not keep_usage:
        progress("restoring the usage store")
        directory.make_usage_directory()
        mark = BatchMark(directory.installation_id, manifest.batch_epoch, manifest.batch)
        try:
            events, cost_nanos = usage_restoring.restore(
                settings.usage,
                manifest.usage,
                source,
                schema=manifest.usage_schema,
                mark=mark if manifest.batch else None,
                memory_bytes_max=settings.usage_memory_bytes_max or None,
            )
        except Unavailable as exc:
            raise Unavailable(
                f"The usage store cannot be restored: {cause_of(exc) or exc} "
                "When that is mended (is the disk full?), run the same command again."
            ) from exc
    # Last: where it is on a server, it is there whole or not at all.
    if not directory.ledger_is_there:
        progress("restoring the ledger")
        copy = directory.copy_of(source / manifest.ledger_file)
        ledger_copies.restore(copy, settings.ledger, directory.installation_id)
    rows, figures = ledger_copies.figures_of(settings.ledger)
    totals = BackupTotals(**figures, events=events, cost_nanos=cost_nanos)
    wrong = {
        name: (count, rows[name])
        for name, count in manifest.ledger_rows.items()
        if name in rows and rows[name] != count
    } | totals_differ(manifest.totals, totals)
    if wrong:
        lines = "; ".join(
            f"{name}: {before} in the backup, {after} restored" for name, (before, after) in wrong.items()
        )
        raise Unavailable(f"What was restored is not what the backup has: {lines}.")
    return totals
