"""
The usage store on ClickHouse: in process (chDB) or on a server, behind one implementation.

It is a projection: every record in `events`, and what is derived from them, `usage_rollups` and the index `event_ids`.
It is not the truth about money; losing it loses nothing that is still in the outbox.

Invariants:

* The derived tables are pure functions of `events`; the SELECT of each materialized view is the one definition.
* An append is all or nothing, and a repeat changes nothing, a crash at any step included.
* Values are server-side parameters; no value is ever read as SQL.

Files:

* `store.py`: `ClickHouseUsageStore`, the port: append and report. `look_ups.py`: records and owners by id.
* `queries.py`: the statement of a report. `tiers.py`: which rollup answers. `values.py`: its columns.
  `matching.py`: the twin of `domain.matching`.
  `pending_rows.py`: records beside the store's. `answers.py`: reads the result.
* `audit.py`: damages, losses, duplicates, differences. `rebuild.py`: the derived tables again, from the records.
  `append_recovery.py`: completes an append that was cut short.
* `snapshots.py`: all tables as of one instant, for a backup. `restoring.py`: an empty store filled from one.
* `engine.py`: the connections. `readers.py`: clients by kind of query, and the bounds of a report.
* `tables.py` and `schema/`: the tables and their migrations. `descriptions.py`: table files that a full disk cut off.
  `marks.py`: the last batch of each installation, in a table. `record_form.py`: a record here and there.
"""

from tollkeeper.adapters.clickhouse.store import ClickHouseUsageStore

__all__ = ["ClickHouseUsageStore"]
