"""
The catalog: who may do what, and at what price. Accounts, projects, plans, subscriptions, keys, routes, prices,
mark-ups, budgets, grants, webhooks.

It is not the ledger: it says that a budget or a grant exists, never what was spent of it. It does not decide about a
request: the gate does, over what the directory resolves. It serves no transport: HTTP, command line and declarations
call the same `Manage`.

Invariants:
* An entry that is stored passed every check, alone and against the entries that it names, which are its account's own.
* A call is one transaction. Its changes are announced after the commit, and in force when the call returns.
* A secret exists only in the `IssuedKey` that made it; the catalog keeps its SHA-256.
* A revoked key never works again; a deleted key keeps its id and its secret taken.
* A customer's call makes nothing that is freer than what the customer has.

Changing: `manage` (the use cases), `entry_writer` and `key_writer` (the steps of a transaction), `key_rules` (states
and ends of keys), `quotas`, `customer_terms` (what bounds a customer), `lookups`, `changes` (what a call did),
`entry_parsing` (entries of plain values), `declaration` (files), `toml_bounds` (their size).
Reading: `directory` (what a key permits, and what an event is charged to; `catalog_reads`: what it does not remember),
`plans_of` (which plan is in force, with a key and without one), `key_families` (keys that belong together),
`price_book` (which price applies), `listed_prices` (the built-in list), `model_names` (which of its models a name
means), `price_timeline` (their form), `shown_prices` (which price a name has, and why), `budget_readiness` (accounts
whose budgets are not in force yet), `last_used`, `sessions` (who is signed in).

Imports: domain, clock, ports, profiles (names and key prefixes only), gate.
"""
