"""
The gate against an oracle of plain integers: lists of what was taken, by whom and when.

The oracle knows no windows, periods or books: it sums lists, in the order in which the gate asks its counters.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from tests.effort import effort
from tollkeeper.domain.catalog import Account, Budget, Key, Limit, Plan, Route
from tollkeeper.domain.decisions import Amounts, Denial
from tollkeeper.domain.entitlements import BudgetScope, resolve, scope_of_budget
from tollkeeper.domain.instants import US_PER_S, from_us, to_us
from tollkeeper.domain.keys import hash_secret
from tollkeeper.domain.periods import FAR_FUTURE, period_of
from tollkeeper.domain.pools import CreditBook, GrantBalance
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.domain.top_ups import TopUps
from tollkeeper.gate.gate import Admission, Gate
from tollkeeper.gate.openings import Openings
from tollkeeper.testing import ManualClock

MINUTE_US = 60 * US_PER_S
UNITS = ("requests", "tokens", "nanos", "credits")
START = datetime(2026, 3, 18, 23, 57, tzinfo=UTC)
"""Minutes before the end of a day, so that periods change in every run."""

RPM, TPM, UNDER_WAY = 6, 100, 4
LIMITS = [
    Limit(name="rpm", amount=RPM),
    Limit(name="tpm", amount=TPM, unit="tokens", algorithm="sliding"),
    Limit(name="open", amount=UNDER_WAY, algorithm="concurrency"),
]
SPM = 90
QUANTITY_LIMIT = Limit(name="spm", amount=SPM, unit="quantity.seconds")
"""Of one of the two keys, so that both forms of amounts are drawn."""
SECRETS = {"plain": "tk_plain", "credit": "tk_credit"}
ROUTES = [
    Route(id="chat", method="POST", path="/chat", credits=2),
    Route(id="free", method="GET", path="/free", free=True),
]


class Taking(NamedTuple):
    """What one request took, for the oracle. Corrected at settling, dropped at voiding."""

    key: str
    free: bool
    at_us: int
    period_us: int
    """Start of the budget's period, by the budget as it was when the request was admitted."""
    amounts: tuple[int, int, int, int]
    seconds: int = 0
    """Micro-units of the quantity `seconds`."""


def quantities(seconds: int) -> dict[str, int]:
    """As records have them: none is 0."""
    return {"seconds": seconds} if seconds else {}


class FakeSources:
    """The catalog and the ledger, in memory."""

    def __init__(self) -> None:
        self.budget = Budget(id="b", account="acme", amount=300, period="day")
        self.rows: dict[int, int] = defaultdict(int)
        self.book_ = CreditBook()
        self.commit = 0
        self.openings = Openings(lambda *of: (0, []))
        self.posted: list[tuple[int, int, bool]] = []
        """Top-ups: `(posted at, amount, until used)`."""
        self.own: list[tuple[int, int]] = []
        """`(from, own amount)`: what the ledger keeps while top-ups last."""

    def entitlement(self, secret_sha256: str) -> Any:
        for name, secret in SECRETS.items():
            if secret_sha256 == hash_secret(secret):
                key = Key(id=name, account="acme", type="credit" if name == "credit" else "subscription")
                limits = [*LIMITS, QUANTITY_LIMIT] if name == "credit" else LIMITS
                plan = Plan(slug="pro", limits=limits)
                account = Account(id="acme", name="Acme")
                return resolve(
                    key,
                    rotation_chain=[name],
                    account=account,
                    subscription=None,
                    plan=plan,
                    budgets=[self.budget],
                )
        return None

    def routes(self) -> list[Route]:
        return ROUTES

    def price(self, model: str, variant: str, account_id: str, plan: str, at_us: int) -> None:
        return None

    def counter(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]:
        return self.rows[period_start_us], self.commit

    def top_ups(self, scope: BudgetScope) -> tuple[TopUps, dict[int, int], int]:
        def start(at_us: int) -> int:
            return scope.span_us(at_us)[0]

        once: dict[int, int] = defaultdict(int)
        for at_us, amount, lasts in self.posted:
            if not lasts:
                once[start(at_us)] += amount
        lasting = tuple(sorted((start(at_us), amount) for at_us, amount, lasts in self.posted if lasts))
        own = tuple((start(at_us), amount) for at_us, amount in self.own)
        return TopUps(dict(once), lasting, own), dict(self.rows), self.commit

    def slots(self, account_id: str, counter_id: str) -> dict[int, int]:
        return {}

    def book(self, account_id: str) -> tuple[CreditBook, int]:
        return self.book_, self.commit


class GateModel(RuleBasedStateMachine):
    """After any sequence of calls each counter of the gate is the sum of a list."""

    admissions = Bundle("admissions")
    expired = Bundle("expired")

    @initialize(granted=st.integers(0, 400))
    def start(self, granted):
        self.clock = ManualClock(START)
        self.sources = FakeSources()
        self.gate = Gate(self.sources, self.clock)
        self.open: dict[str, Taking] = {}
        self.settled: list[tuple[Taking, list[Any]]] = []
        self.used_in_windows: list[Taking] = []
        self.grants = 0
        if granted:
            self.grant(granted, None)

    # -- the oracle -----------------------------------------------------------------------------------

    @property
    def now_us(self) -> int:
        return self.clock.now_us()

    def period_us(self, at_us: int) -> int:
        return to_us(period_of(from_us(at_us), self.sources.budget.period).start_at)

    def counters(self, key: str, *, free: bool) -> list[tuple[str, str, int, int]]:
        """Return name, unit, allowed and used of each counter, in the order in which they are asked."""
        now_us = self.now_us
        mine = [taking for taking in self.used_in_windows if taking.key == key]
        rpm = sum(t.amounts[0] for t in mine if t.at_us // MINUTE_US == now_us // MINUTE_US)
        slot_us = MINUTE_US // 60
        tpm = sum(t.amounts[1] for t in mine if t.at_us - t.at_us % slot_us > now_us - MINUTE_US - slot_us)
        under_way = sum(taking.key == key for taking in self.open.values())
        found = [
            ("rpm", "requests", RPM, rpm),
            ("tpm", "tokens", TPM, tpm),
            ("open", "requests", UNDER_WAY, under_way),
        ]
        if key == "credit":
            spm = sum(t.seconds for t in mine if t.at_us // MINUTE_US == now_us // MINUTE_US)
            found.append(("spm", "quantity.seconds", SPM, spm))
        if free:
            return found
        period_us = self.period_us(now_us)
        found.append(("b", "nanos", self.amount_in_force(period_us), self.spent(period_us)))
        if key == "credit":
            unbooked = [*self.open.values(), *(taking for taking, _ in self.settled)]
            book, out = self.sources.book_, 0
            over = [at for at in book.expiries if at <= from_us(now_us)]
            for taking in sorted((t for t in unbooked if t.key == "credit"), key=lambda t: t.at_us):
                # What was requested before an expiry draws on the grants of its own time.
                if any(from_us(taking.at_us) < at for at in over):
                    book = book.charged(taking.amounts[2], from_us(taking.at_us))
                else:
                    out += taking.amounts[2]
            balance = book.balance_nanos(from_us(now_us))
            found.append(("credit", "nanos", max(0, balance), out + min(0, balance) * -1))
        return found

    def spent(self, period_us: int) -> int:
        unbooked = [*self.open.values(), *(taking for taking, _ in self.settled)]
        return sum(t.amounts[2] for t in unbooked if t.period_us == period_us) + self.sources.rows.get(
            period_us, 0
        )

    def amount_in_force(self, period_us: int) -> int:
        """Go through all periods from the first top-up on, hour by hour, as one would with a purse and a list."""
        purse, own = 0, self.sources.budget.amount
        posted = [(self.period_us(at_us), amount, lasts) for at_us, amount, lasts in self.sources.posted]
        once = sum(amount for start, amount, lasts in posted if start == period_us and not lasts)
        starts = {start for start, _, lasts in posted if lasts and start <= period_us}
        if not starts:
            return own + once
        first = min(starts)
        unbooked = [*self.open.values(), *(taking for taking, _ in self.settled)]
        starts |= {
            at for at in (*self.sources.rows, *(t.period_us for t in unbooked)) if first <= at <= period_us
        }
        for start in sorted(starts):
            purse += sum(amount for at, amount, lasts in posted if lasts and at == start)
            if start == period_us:
                break
            then = [amount for at, amount in self.sources.own if self.period_us(at) <= start][-1]
            alone = sum(amount for at, amount, lasts in posted if at == start and not lasts)
            purse -= min(purse, max(0, self.spent(start) - then - alone))
        return own + once + purse

    def refusal(
        self, key: str, *, free: bool, tokens: int, nanos: int, seconds: int
    ) -> tuple[str, str, int, int] | None:
        """Return the first counter that a request does not fit."""
        for name, unit, allowed, used in self.counters(key, free=free):
            amount = {
                "requests": 1,
                "tokens": tokens,
                "nanos": max(1, nanos),
                "quantity.seconds": seconds,
            }[unit]
            if used + amount > allowed:
                return name, unit, allowed, used
        return None

    @invariant()
    def every_counter_is_the_sum_of_its_list(self):
        for key, secret in SECRETS.items():
            self.gate._collect_abandoned()
            compiled_key = self.gate.compiled_key(secret)
            statuses = self.gate.limit_statuses(compiled_key, self.now_us)
            expected = self.counters(key, free=False)
            assert [status.name for status in statuses] == [name for name, *_ in expected]
            for status, (name, unit, allowed, used) in zip(statuses, expected, strict=True):
                assert status.unit == unit
                assert status.allowed == allowed
                if name == "credit":
                    assert status.remaining == max(0, allowed - used)
                else:
                    assert status.used == used

    # -- requests -------------------------------------------------------------------------------------

    def ask(self, key: str, free: bool, tokens: int, nanos: int, seconds: int) -> Admission | Denial:
        usage = Usage(prompt_tokens=tokens, cost_nanos=nanos, quantities=quantities(seconds))
        method, path = ("GET", "/free") if free else ("POST", "/chat")
        return self.gate.admit(SECRETS[key], method, path, usage)

    @rule(
        target=admissions,
        key=st.sampled_from(sorted(SECRETS)),
        free=st.sampled_from((False, False, False, True)),
        tokens=st.integers(0, 60),
        nanos=st.integers(0, 120),
        seconds=st.sampled_from((0, 1)) | st.integers(0, 60),
    )
    def admit(self, key, free, tokens, nanos, seconds):
        if free:
            nanos = 0
        refusal = self.refusal(key, free=free, tokens=tokens, nanos=nanos, seconds=seconds)
        result = self.ask(key, free, tokens, nanos, seconds)
        if refusal is None:
            assert isinstance(result, Admission), result
            amounts = (1, tokens, nanos, 0 if free else 2)
            assert tuple(result.amounts[place] for place in range(4)) == amounts
            assert (type(result.amounts) is Amounts) == (key == "plain" and not seconds)
            taking = Taking(key, free, self.now_us, self.period_us(self.now_us), amounts, seconds)
            self.open[result.id] = taking
            self.used_in_windows.append(taking)
            return result
        self.check_denial(result, refusal, key, free, tokens, nanos, seconds)
        return multiple()

    def check_denial(self, denial, refusal, key, free, tokens, nanos, seconds):
        assert isinstance(denial, Denial)
        name, unit, allowed, used = refusal
        assert (denial.limit, denial.unit, denial.allowed) == (name, unit, allowed)
        if name != "credit":
            assert denial.used == used
        assert denial.status == (402 if name in ("b", "credit") else 429)
        if name == "open":
            assert denial.largest_fit == 0
            return
        of_unit = [a - u for n, w, a, u in self.counters(key, free=free) if w == unit and n != "open"]
        assert denial.largest_fit == max(0, min(of_unit))
        if name in ("b", "credit"):
            assert denial.retry_after_s is None
        elif name in ("rpm", "spm"):
            # At the next full minute, in whole seconds, and not one earlier.
            assert denial.retry_after_s == -(-(MINUTE_US - self.now_us % MINUTE_US) // US_PER_S)
        if unit != "requests":
            self.try_largest_fit(unit, denial.largest_fit, key, free, tokens, nanos, seconds)

    def try_largest_fit(self, unit, largest, key, free, tokens, nanos, seconds):
        """Where only this unit binds, exactly the largest fit is admitted, and one more is not."""
        for amount, fits in ((largest, True), (largest + 1, False)):
            asked = {
                "tokens": tokens,
                "nanos": nanos,
                "seconds": seconds,
                unit.removeprefix("quantity."): amount,
            }
            if fits and (not largest or self.refusal(key, free=free, **asked) is not None):
                continue
            result = self.ask(key, free, **asked)
            assert isinstance(result, Admission) == fits
            if fits:
                assert self.gate.claim(result)
                self.gate.void(result)

    @rule(
        admission=consumes(admissions),
        tokens=st.integers(0, 80),
        nanos=st.integers(0, 200),
        seconds=st.integers(0, 80),
    )
    def settle(self, admission, tokens, nanos, seconds):
        taking = self.open.pop(admission.id)
        usage = Usage(completion_tokens=tokens, cost_nanos=nanos, quantities=quantities(seconds))
        finished = self.gate.finish(admission, Outcome(usage=usage), self.now_us)
        assert finished is not None
        record, charges = finished
        assert (record.cost_nanos, record.occurred_at_us) == (nanos, taking.at_us)
        actual = taking._replace(amounts=(1, tokens, nanos, record.credits), seconds=seconds)
        self.used_in_windows[self.used_in_windows.index(taking)] = actual
        self.settled.append((actual, charges))
        assert self.gate.finish(admission, Outcome(), self.now_us) is None
        assert not self.gate.claim(admission)

    @rule(admission=consumes(admissions), commits=st.booleans(), nanos=st.integers(0, 200))
    def settle_and_fail(self, admission, commits, nanos):
        """A settlement that could not be committed leaves the hold as it was; so does a void."""
        assert self.gate.claim(admission)
        record, _ = self.gate.settle(admission, Outcome(usage=Usage(cost_nanos=nanos)), self.now_us)
        self.gate.unsettle(admission, record)
        self.forget(admission)

    @rule(admission=consumes(admissions))
    def void(self, admission):
        assert self.gate.claim(admission)
        self.gate.void(admission)
        admission.state = "ended"
        assert not self.gate.claim(admission)
        self.forget_taking(admission.id)

    @rule(target=expired, admission=consumes(admissions))
    def expire(self, admission):
        taking = self.open[admission.id]
        self.void(admission)
        return admission, taking

    @rule(
        late=consumes(expired),
        tokens=st.integers(0, 80),
        nanos=st.integers(0, 200),
        seconds=st.integers(0, 80),
        commits=st.booleans(),
    )
    def settle_late(self, late, tokens, nanos, seconds, commits):
        """It counts whole where its request would have, whether or not it fits; concurrency is over."""
        admission, taking = late
        usage = Usage(completion_tokens=tokens, cost_nanos=nanos, quantities=quantities(seconds))
        record = self.gate.record_of(admission, Outcome(usage=usage), self.now_us)
        self.gate.count_late(admission, record, self.now_us)
        if not commits:
            self.gate.void(admission)
            return
        actual = taking._replace(amounts=(1, tokens, nanos, record.credits), seconds=seconds)
        self.used_in_windows.append(actual)
        charged = {("acme", "budget:b", self.period_us(taking.at_us)): nanos}
        if taking.key == "credit":
            charged["acme", "credit", taking.at_us] = nanos
        self.book(charged, {})

    def forget(self, admission):
        assert admission.state == "open"
        assert self.gate.claim(admission)
        self.gate.void(admission)
        self.forget_taking(admission.id)

    @rule(admission=consumes(admissions))
    def abandon(self, admission):
        """What its caller drops is voided by the next request. Bundles keep references: drop it by hand."""
        self.forget_taking(admission.id)
        admission.__del__()
        admission.state = "ended"

    def forget_taking(self, admission_id):
        self.used_in_windows.remove(self.open.pop(admission_id))

    # -- the rest of the world ------------------------------------------------------------------------

    @rule(seconds=st.integers(1, 30) | st.sampled_from((60, 61, 180, 3600)))
    def wait(self, seconds):
        self.clock.advance(seconds=seconds)

    @rule()
    def commit(self):
        """Everything settled is committed, as the budget and the balance stand then."""
        counted: dict[tuple[str, str, int], int] = defaultdict(int)
        for _, charges in self.settled:
            for account_id, counter_id, period_us, amount in charges:
                counted[account_id, counter_id, period_us] += amount
        charged: dict[tuple[str, str, int], int] = defaultdict(int)
        for taking, charges in self.settled:
            charged["acme", "budget:b", self.period_us(taking.at_us)] += taking.amounts[2]
            if taking.key == "credit":
                charged["acme", "credit", taking.at_us] += taking.amounts[2]
            assert {charge.counter_id for charge in charges} == {"budget:b"} | (
                {"credit"} if taking.key == "credit" else set()
            )
        self.settled.clear()
        self.book(charged, counted)

    @rule(amount=st.integers(1, 150), after=st.integers(0, 200))
    def ingest(self, amount, after):
        """Events that did not pass the gate are charged too, sometimes to a period that is over."""
        period_us = self.period_us(self.now_us - after * MINUTE_US)
        self.book({("acme", "budget:b", period_us): amount}, {})

    def book(self, charged, counted):
        self.sources.commit += 1
        for (_, counter_id, period_us), amount in charged.items():
            if counter_id == "budget:b":
                self.sources.rows[period_us] += amount
        drawn = {at[2]: amount for at, amount in charged.items() if at[1] == "credit"}
        for at_us, amount in sorted(drawn.items()):
            self.sources.book_ = self.sources.book_.charged(amount, from_us(at_us))
        books = {"acme": self.sources.book_} if drawn else {}
        self.gate.booked(dict(charged), dict(counted), books, self.sources.commit)

    @rule(amount=st.integers(1, 300), minutes=st.none() | st.integers(1, 90))
    def grant(self, amount, minutes):
        self.grants += 1
        expires_at = FAR_FUTURE if minutes is None else from_us(self.now_us) + timedelta(minutes=minutes)
        balance = GrantBalance(1, expires_at, f"g{self.grants}", amount, amount)
        self.sources.commit += 1
        self.sources.book_ = self.sources.book_.posted(balance)
        self.gate.booked({}, {}, {"acme": self.sources.book_}, self.sources.commit)

    @rule(amount=st.integers(-150, 150), after=st.integers(0, 200))
    def adjust(self, amount, after):
        """Money up or down, now or late, is no request: it moves the budget of its time, and the balance."""
        at_us = self.now_us - after * MINUTE_US
        charged = {("acme", "budget:b", self.period_us(at_us)): -amount, ("acme", "credit", at_us): -amount}
        self.book(charged, {})

    @rule(number=st.integers(0, 9))
    def revoke(self, number):
        grants = self.sources.book_.grants
        if grants:
            grant_id = grants[number % len(grants)].grant_id
            self.sources.book_ = self.sources.book_.revoked(grant_id, from_us(self.now_us))
            self.sources.commit += 1
            self.gate.booked({}, {}, {"acme": self.sources.book_}, self.sources.commit)

    @rule(amount=st.integers(0, 600))
    def change_amount(self, amount):
        self.sources.budget = Budget(id="b", account="acme", amount=amount, period=self.sources.budget.period)
        if self.sources.own:
            self.sources.own.append((self.now_us, amount))
        self.gate.forget("acme")
        self.gate.counters.topped_up("acme", "budget:b")

    @rule(amount=st.integers(1, 300), lasts=st.booleans())
    def top_up(self, amount, lasts):
        """It counts at once, for requests and for what is said of the budget."""
        if lasts and not self.sources.own:
            self.sources.own.append((self.now_us, self.sources.budget.amount))
        self.sources.posted.append((self.now_us, amount, lasts))
        self.sources.commit += 1
        self.gate.counters.topped_up("acme", "budget:b")

    @rule()
    def next_period(self):
        """What is left of top-ups shows in the next period."""
        _, end_us = scope_of_budget(self.sources.budget).span_us(self.now_us)
        self.clock.advance(us=end_us - self.now_us)

    @precondition(lambda self: not self.sources.own)
    @rule(period=st.sampled_from(("day", "week", "quarter", "month")))
    def change_period(self, period):
        """The new period has its own row of the ledger; holds stay in the period that they were made in."""
        self.sources.budget = Budget(id="b", account="acme", amount=self.sources.budget.amount, period=period)
        self.gate.forget("acme")
        scope = scope_of_budget(self.sources.budget)
        assert scope.span_us(self.now_us)[0] == self.period_us(self.now_us)


TestGate = GateModel.TestCase
TestGate.settings = settings(max_examples=effort(24, 120), stateful_step_count=40, deadline=None)
