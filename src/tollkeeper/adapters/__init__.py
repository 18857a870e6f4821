"""
Adapters: the stores, the network and the vendors' formats behind the ports.

The only part that imports drivers, and beside the surfaces the only one that opens connections. Adapters decide
nothing: a rule that must run inside a store, so that check and write are one step, has a pure twin in `domain/`.

Invariants:

* Every error of a driver leaves as one of `errors.py`; `str(error)` has no path, password or statement.
* Each store fulfils the contract of its port in `tests/contract`, against the real engine.

Files:

* `sql/`: the catalog and the ledger on SQLite or PostgreSQL.
* `clickhouse/`: the usage store on chDB or ClickHouse.
* `lazy_store.py`: a usage store that opens in the background, so that the first request need not wait for its engine.
* `batch_marks.py`: the last batch of each installation, in a file beside the engine in this process.
* `backup_directory.py`: the files of a backup and its manifest. `backup_sources.py`: what it is made of.
  `restore_directory.py`: a data directory that is being filled from one.
* `webhook_sender.py`: webhook messages over HTTP, to checked addresses.
* `jwks.py`: the keys of a session issuer. `redirects.py`: requests that follow no redirect, the console's too.

Imports: domain, ports, `record_columns`; no room.
"""
