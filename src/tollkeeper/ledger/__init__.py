"""
The ledger: the truth about money. It makes each settled request durable, and knows what must still be relayed.

It is not the place where a request is decided (`gate`), where a price is known (`catalog`), where events are checked
(`meter`), or where usage is summed up for readers (`usage`). It knows the database only by `ports.Ledger`.

Invariants:
* One thread writes groups. A group is one transaction: charges, postings, ended holds and outbox rows, or nothing.
* A caller gets its answer after the commit that holds its task. What was acknowledged is never booked twice or lost.
* A hold has one ending. An id names one event: an open hold, a pending record and a stored one all take their id.
* A counter is the sum of its postings, and of its events from the first period of its budget on.
* Each outbox row reaches the usage store once, under the mark of its batch.

Files:
  committer.py        the commit thread: groups, retries, failures; `book` queues one record's `Settle`
  commit_tasks.py     what a group is made of; each task adds its part or fails alone
  commit_future.py    how a caller waits for a commit, on a thread or an event loop
  listeners.py        who is notified of commits and deliveries
  storable.py         which values of a record the usage store has columns for
  holds.py            authorize, settle and void one request
  open_holds.py       the open holds in memory, and their expiry
  ended_holds.py      late settles and voids, and retries for ended holds
  expired.py          the error for an id whose record has expired
  stored_holds.py     holds after a restart
  balances.py         the credit of an account: the ledger's book and what open holds set aside
  grant_posting.py    puts grants of the catalog on balances, once each
  pending.py          the ids of records that are committed and not yet in the usage store
  id_hash_index.py    older ones of these ids, in 16 bytes each
  budget_scopes.py    brings budgets into force
  budget_periods.py   from which periods on these count
  scope_sums.py       what the stored events of a budget were charged
  budget_top_ups.py   top-ups of budgets
  labels.py           which texts are kept as labels, and which become `other`
  relay.py            moves outbox rows to the usage store
  delivery.py         delivers what is pending now, for a report or a correction
  recovery.py         what a start reads back from the ledger
  pairing.py          whether ledger and usage store belong together

It may import domain, ports, gate and catalog.
"""
