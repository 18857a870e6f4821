"""
Alerts: notices that a budget crossed a threshold, and says so to the account's webhooks.

It is not the gate: a budget refuses with or without an alert. It counts nothing itself: it compares counters of the
ledger with amounts of the catalog. It knows neither a network nor a vendor: a port sends, and profiles add their
vendors' headers.

Invariants:
* Of one webhook, budget, period and threshold there is one message, however often the crossing is noticed.
* A crossing is noticed after a crash too: at start every budget of an account with a webhook is compared.
* A message is sent at least once, or given up after its last attempt, which the log says; each attempt has its id.
* A slow receiver delays the messages of its own account only.
* The commit thread only notes counters; without webhooks there is no thread.

`webhooks` does all of this; `domain.webhooks` says what a message is, how it is signed and when it is sent again.

Imports: domain, clock, ports, catalog (the directory, and `Manage` to make keys inactive).
"""
