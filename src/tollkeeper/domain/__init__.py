"""
The domain: every rule of the product, as functions of values.

It decides what a request costs, whether it fits a limit, when a period ends, how two records differ. It is not the
place for stores, locks, caches or formats of one surface, and it reads no clock.

Invariants:

* Pure: values in, values out. No I/O, clock, randomness, logging or async; tests hold this.
* Money is an int of nanos, time an int of microseconds or an aware `datetime`; no float comes near either.
* A rule stands once. Where a batch or a store needs a form of its own, it names its twin here, and a property test
  holds the two together.

Files, by what they are about:

* a request: `requests` (what its caller states), `decisions` (what the gate answers), `meter` (what it costs, and the
  record that says so), `events` (the wire format and the record), `pricing` (what tokens cost).
* what is set up: `catalog`, `keys`, `entitlements` (what a key permits now), `bounds` (what a customer may make).
* money and time: `money`, `pools` (the credit balance), `periods`, `zones`, `instants`, `limit_status`.
* what is sent: `requirements` (what a value of the wrong type must be).
* what was used: `usage` (the query), `rollups`, `increments` (a report brought up to date), `alerts`, `webhooks`.
* the stores: `bookings` (what one commit writes), `pairing` (which ledger belongs to which usage store), `addresses`.

It may import `errors` and `version`, and nothing else of the package.
"""
