"""Installations to back up, and what they have: each in a directory of its own, with its own usage store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from tollkeeper import Outcome, Tollkeeper, Usage
from tollkeeper.adapters.backup_directory import MANIFEST
from tollkeeper.domain.backups import Manifest
from tollkeeper.domain.decisions import Denial
from tollkeeper.settings import Settings, load
from tollkeeper.testing import NOON

DECLARED: Final = """
    [[accounts]]
    id = "acme"
    name = "A"
    [[keys]]
    id = "k"
    account = "acme"
    [[budgets]]
    id = "b"
    account = "acme"
    amount = 1_000_000_000_000
    period = "total"
"""


@contextmanager
def opened(directory: Path, **settings: Any) -> Iterator[Tollkeeper]:
    with Tollkeeper.open(str(directory), unknown_route="allow", **settings) as toll:
        yield toll


def declare(toll: Tollkeeper) -> str:
    """Set up an account with a budget; return the secret of its key."""
    (issued,) = toll.apply(DECLARED).issued
    assert issued.secret is not None
    return issued.secret


def ingest(toll: Tollkeeper, *ids: str, cost_nanos: int = 3) -> None:
    """Book events, each of which must be new."""
    events = [
        {"id": id_, "time": NOON.isoformat(), "account": "acme", "cost_nanos": cost_nanos} for id_ in ids
    ]
    assert toll.record(events).accepted == len(ids)


def spend(toll: Tollkeeper, secret: str, cost_nanos: int) -> str:
    """Pass the gate once; return the id of the record, which is durable."""
    admission = toll.admit(secret, "GET", "/x")
    assert not isinstance(admission, Denial), admission
    return toll.settle(admission, Outcome(usage=Usage(cost_nanos=cost_nanos)), wait=True).id


def stored_ids(toll: Tollkeeper) -> list[str]:
    """Return the ids of all records, once those of the outbox were delivered."""
    assert toll.installation.relay.flush(toll.installation.committer.outbox_seq, 60)
    pieces = toll.installation.store.export("acme", 0, 2**62)
    return [id_ for piece in pieces for id_ in piece.column("id").to_pylist()]


def counted(toll: Tollkeeper) -> tuple[int, int]:
    """Return the budget's counter and the sum of its events, in nanos."""
    rows = toll.installation.ledger.counter_rows("acme")
    spent = toll.installation.store.charged("acme", from_us=0, to_us=2**62, project_id=None, key_ids=None)
    return sum(rows.values()), spent.cost_nanos


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def seal(backup: Path, manifest: Manifest) -> None:
    """Write a manifest with its right checksum, as one who tampers with it does."""
    content = msgspec.json.encode(manifest)
    sealed = {"sha256": hashlib.sha256(content).hexdigest(), "manifest": msgspec.Raw(content)}
    (backup / MANIFEST).write_bytes(msgspec.json.encode(sealed))


def settings_of(data: Path, **values: Any) -> Settings:
    return load({"data_dir": str(data), "unknown_route": "allow", **values}, environ={})
