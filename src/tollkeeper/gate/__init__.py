"""
The gate: decides each request from memory, before it runs, and ends each admission.

It is not the truth: the ledger is, and the gate reads it once per key, window and budget period. It prices no
record by rules of its own, writes nothing and knows no store: `Sources` is what it reads, and the committer takes
what it must save. It does not know HTTP; a denial is a value.

Invariants:

* What is admitted never exceeds a limit, budget or balance, however many threads ask at once.
* A denial changes nothing. An admission ends once: settled, voided or expired.
* One lock guards all of it, for µs. No store is read or written while it is held, and nothing outside takes it.
* What was read before a change of the catalog amends nothing after it.

Files: `gate.py` admits and ends · `admission.py` the admission of a caller · `compiled_keys.py` keys, their counters
per route, and their memory · `matched.py` counters that depend on a request's model, tags, kind and route, and
`request_plans.py` their memory · `settling.py` the counters and charges of a settlement · `keyless_limits.py` limits
that belong to no key · `registry.py` finds, makes, reads and evicts shared counters · `counter.py` the contract of
one · `windows.py` rate windows · `budget_counter.py` budgets · `credit.py` credit balances · `openings.py` when periods
opened that open with the first use · `limit_statuses.py` their state ·
`denials.py` the text of a refusal · `routes.py` the policy of a path · `catalog_version.py` which compiled keys are
current · `sources.py` the reads of stores · `eviction.py` eviction of idle keys and counters · `ids.py` ids of holds
and events.

Imports: `domain`, `clock`. No other room.
"""
