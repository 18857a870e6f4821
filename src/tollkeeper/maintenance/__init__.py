"""
Maintenance: the operator's checks and repairs of an installation.

It is not the periodic work of a running process (`installation.py`), and it never changes the books: `verify` reads,
`rebuild` replaces only what is derived from the records. The comparison inside the usage store is the adapter's
(`adapters/clickhouse/audit.py`).

Invariants:

* `verify` is exact with traffic going on: it reads the ledger between two commits, and holds the relay until the usage
  store was compared with just those commits.
* `rebuild` starts only when every record is readable; reports and id look-ups stay right while it runs.

Files:

* `reconcile.py`: counter = ledger = sum of events; and the rebuild of rollups and the id index.
* `retention.py`: removes the events whose time is over.
* `backups.py`: both stores as of one instant, written to a directory. The way back is `restoring.py` beside this room.

Imports: domain, ports, catalog, ledger, and the rooms before it; never adapters.
"""
