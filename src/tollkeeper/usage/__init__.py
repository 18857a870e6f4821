"""
Usage: the reports.

A report is a pure function of its query and of the events that were acknowledged before it.

It is not the meter, which decides the cost of a request, nor the ledger, which has the truth about money. It writes
nothing. SQL is in `adapters/clickhouse`; parameters, JSON and CSV belong to the surfaces.

Invariants:

* Read your writes: a report has every event that was acknowledged before the query, or says `complete: false`.
* The cache changes the cost of a report, never its meaning.
* No account keeps another one's queries waiting.

Files:

* `report.py`: the report; its table says how each query gets the newest events, and at which cost.
* `event_pages.py`: lists of single events, newest first, with what explains their numbers.
* `fresh_reads.py`: how a read of the usage store gets the newest events.
* `freshness.py`: the acknowledged events that the usage store may not have yet.
* `report_cache.py`: earlier reports, and as of which outbox row each is.
* `query_turns.py`: how many queries of one account run at once.

Imports: domain, ports, ledger, and the rooms before it; never alerts, maintenance or adapters.
"""
