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
  record that says so), `quantities` (units and token classes by name; `stated`: as programs state them), `events` (the
  wire format and the record), `pricing` (what tokens and units cost).
* what is set up: `catalog` (the kinds; `entry`: what they share), `price_entries` (`rates`, `model_patterns`: what
  these are written in), `keys`, `entitlements` (what a key permits now;
  `keyless`: what an account does without one), `matching` (which requests a limit or budget
  counts), `bounds` (what a customer may make).
* money and time: `money` (`money_fields`: as people write it), `pools` (the credit balance; `draws` on it),
  `adjustments` (money that moves without a request), `periods` (`first_use`: those that open with a use), `top_ups` (of
  budgets), `zones`, `instants`, `limit_status`.
* what is sent: `requirements` (what a value of the wrong type must be).
* what was used: `usage` (the query), `rollups`, `increments` (a report brought up to date), `alerts`, `webhooks`.
* the stores: `bookings` (what one commit writes), `store_answers` (what a usage store answers), `pairing` (which ledger
  belongs to which usage store), `backups` (what a backup says of itself), `addresses`.

It may import `errors` and `version`, and nothing else of the package.
"""
