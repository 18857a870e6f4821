"""
The meter: events that were sent to us become records in the ledger, exactly once, and are corrected later.

It takes events that report what happened elsewhere: as JSON, as access logs, as objects. It is not the gate, which
books the requests that it admits itself, and it decides no cost: `domain.meter` does, for both. It answers no
queries about usage.

Invariants:

* An id names one event of its account for good: the same event again is a duplicate, another one is a conflict.
* A bad event does not affect the others; it is rejected by its place in the batch.
* A call costs in proportion to its bytes, and what it costs is bounded before anything is parsed.
* A record never changes: a correction appends its reversal and its successor.

Files:

* `decode` (bytes to columns) over `lines`, `fields`, `rejections` and its two ways, `exact` and `fast`; `access_log`.
* `ingest` (one batch, from columns to the commit) over `resolve` (whose, which route, what cost), `dedupe` (known
  already?) and `charges` (what it charges to the counters), which asks `matched_rows`, the twin of `domain.matching`.
* `provider_usage`: a provider's usage object into disjoint counts, over `usage_bodies` (finds it in a response) and
  `usage_extractors` (which extractor of the price list's package reads it).
* `price_lines`: how the cost of a record came about, line by line.
* `price_preview`: what history would have cost under other prices.
* `columns`, the vector twin of `domain.meter`, and `price_columns`, that of `domain.pricing`; both over `arrays`.
* `amend`: corrections, and the pricing of events that had no price when they came.
* `adjustments`: money that moves without a request. `event_forms`: events with money as text, and as answers show them.
* `booking`: hands a table of records to the committer, for `ingest`, `amend` and `adjustments`.

It may import the domain, the ports, the gate, the catalog and the ledger; no room that comes after the ledger.
"""
