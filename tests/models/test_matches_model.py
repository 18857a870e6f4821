"""
The gate with limits and budgets by model and tag, against an oracle of plain lists.

The oracle knows no counters: it sums what each request took, by the model and end user that it named last. Money and
seconds of values are topped up, adjustments move the money of the account, and kills leave what was committed.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from tests.effort import effort
from tollkeeper.domain.catalog import Account, Budget, Key, Limit, Plan, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.entitlements import BudgetScope, Entitlement, resolve
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.matching import Facts, Match, counter_of_values
from tollkeeper.domain.pools import CreditBook
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.domain.top_ups import TopUps
from tollkeeper.gate import registry, request_plans
from tollkeeper.gate.gate import Admission, Gate
from tollkeeper.gate.openings import Openings
from tollkeeper.testing import ManualClock

DAY_US = 86_400 * US_PER_S
MODELS = ("gpt-4o", " GPT-4o-mini", "o3", "")
USERS = ("u1", "u2", "U1", "")
GPT4O, BY_USER, PER_MODEL, TOTAL, SECONDS = 7, 5, 40, 400, 10


class Counted(NamedTuple):
    """One limit or budget as the oracle sees it."""

    name: str
    unit: str
    amount: int
    is_budget: bool

    def value(self, model: str, user: str) -> str | None:
        """Return of which of its values a request is; None when it does not count it."""
        model = model.strip().lower()
        if self.name == "gpt-4o":
            return "" if model.startswith("gpt-4o") else None
        if self.name == "user":
            return user
        if self.name == "model":
            return model if user else None
        if self.name == "seconds":
            return user if model.startswith("gpt-4o") else None
        return ""


COUNTED = (
    Counted("gpt-4o", "requests", GPT4O, is_budget=False),
    Counted("user", "requests", BY_USER, is_budget=False),
    Counted("model", "nanos", PER_MODEL, is_budget=True),
    Counted("seconds", "quantity.seconds", SECONDS, is_budget=True),
    Counted("total", "nanos", TOTAL, is_budget=True),
)
LIMITS = [
    Limit(name="gpt-4o", amount=GPT4O, window="1d", match=Match(models=["gpt-4o*"])),
    Limit(name="user", amount=BY_USER, window="1d", per="tag.user"),
]


class Taking(NamedTuple):
    model: str
    user: str
    day: int
    nanos: int
    seconds: int
    """Micro-units."""

    def amount(self, unit: str) -> int:
        return {"requests": 1, "nanos": self.nanos, "quantity.seconds": self.seconds}[unit]


class MemorySources:
    """The catalog and the ledger, in memory."""

    def __init__(self) -> None:
        self.total = TOTAL
        self.rows: dict[tuple[str, int], int] = defaultdict(int)
        self.windows: dict[str, dict[int, int]] = {}
        self.commits = 0
        self.openings = Openings(lambda *of: (0, []))
        self.posted: dict[str, list[tuple[int, int, bool]]] = defaultdict(list)
        """Counter → its top-ups: `(day, amount, until used)`."""

    def entitlement(self, secret_sha256: str) -> Entitlement:
        return resolve(
            Key(id="k", account="a"),
            rotation_chain=["k"],
            account=Account(id="a", name="A"),
            subscription=None,
            plan=Plan(slug="p", limits=LIMITS),
            budgets=[
                Budget(id="total", account="a", amount=self.total, period="day"),
                Budget(
                    id="model",
                    account="a",
                    amount=PER_MODEL,
                    period="day",
                    per="model",
                    match=Match(tags={"user": "*"}),
                ),
                Budget(
                    id="seconds",
                    account="a",
                    amount=SECONDS,
                    unit="quantity.seconds",
                    period="day",
                    per="tag.user",
                    match=Match(models=["gpt-4o*"]),
                ),
            ],
        )

    def routes(self) -> list[Route]:
        return [Route(id="chat", method="POST", path="/chat")]

    def price(self, model: str, variant: str, account_id: str, plan: str, at_us: int) -> None:
        return None

    def top_ups(self, scope: BudgetScope) -> tuple[TopUps, dict[int, int], int]:
        once: dict[int, int] = defaultdict(int)
        for day, amount, lasts in self.posted[scope.counter_id]:
            if not lasts:
                once[day * DAY_US] += amount
        lasting = [(day * DAY_US, amount) for day, amount, lasts in self.posted[scope.counter_id] if lasts]
        used = {at: used for (name, at), used in self.rows.items() if name == scope.counter_id}
        return TopUps(dict(once), tuple(sorted(lasting))), used, self.commits

    def counter(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]:
        return self.rows[counter_id, period_start_us], self.commits

    def slots(self, account_id: str, counter_id: str) -> dict[int, int]:
        return dict(self.windows.get(counter_id, {}))

    def book(self, account_id: str) -> tuple[CreditBook, int]:
        return CreditBook(), self.commits


def counter_id(counted: Counted, value: str) -> str:
    """The counter of one value of a budget."""
    return counter_of_values(f"budget:{counted.name}", [value])


def quantities(seconds: int) -> dict[str, int]:
    """As records have them: none is 0."""
    return {"seconds": seconds} if seconds else {}


class MatchesModel(RuleBasedStateMachine):
    """After any sequence of calls each counter of each value is the sum of a list."""

    admissions = Bundle("admissions")

    @initialize()
    def start(self) -> None:
        self.bounds = registry.VALUES_MAX, request_plans.PLANS_MAX
        registry.VALUES_MAX, request_plans.PLANS_MAX = 2, 2  # type: ignore[misc]
        self.clock = ManualClock()
        self.sources = MemorySources()
        self.gate = Gate(self.sources, self.clock)
        self.open: dict[str, Taking] = {}
        self.used: list[Taking] = []
        self.adjusted: dict[int, int] = defaultdict(int)
        self.uncommitted: list[tuple[Taking, list[Any]]] = []
        self.in_windows: list[Taking] = []
        """As `used`, of rate limits: of what a kill left open, they keep what they had at the last commit."""
        self.saved_windows: list[Taking] = []

    def teardown(self) -> None:
        registry.VALUES_MAX, request_plans.PLANS_MAX = self.bounds  # type: ignore[misc]

    @property
    def day(self) -> int:
        return self.clock.now_us() // DAY_US

    def spent(self, counted: Counted, value: str, day: int) -> int:
        ended = self.used if counted.is_budget else self.in_windows
        given = self.adjusted[day] if counted.name == "total" else 0
        return -given + sum(
            taking.amount(counted.unit)
            for taking in [*self.open.values(), *ended]
            if taking.day == day and counted.value(taking.model, taking.user) == value
        )

    def amount(self, counted: Counted, value: str) -> int:
        """The most of today: day by day, as with a purse of what lasts."""
        if counted.name == "total":
            return self.sources.total
        posted = self.sources.posted[counter_id(counted, value)]
        purse = 0
        for day in range(min((day for day, _, _ in posted), default=self.day), self.day + 1):
            alone = sum(amount for at, amount, lasts in posted if at == day and not lasts)
            purse += sum(amount for at, amount, lasts in posted if at == day and lasts)
            if day < self.day:
                purse -= min(purse, max(0, self.spent(counted, value, day) - counted.amount - alone))
        return counted.amount + alone + purse

    @rule(
        target=admissions,
        model=st.sampled_from(MODELS),
        user=st.sampled_from(USERS),
        nanos=st.integers(0, 60),
        seconds=st.sampled_from((0, 1)) | st.integers(0, 30),
    )
    def admit(self, model: str, user: str, nanos: int, seconds: int) -> Any:
        taking = Taking(model, user, self.day, nanos, seconds)
        refusing = [
            counted.name
            for counted in COUNTED
            if (value := counted.value(model, user)) is not None
            and self.spent(counted, value, self.day) + max(1, taking.amount(counted.unit))
            > self.amount(counted, value)
        ]
        tags = {"user": user} if user else {}
        usage = Usage(model=model, cost_nanos=nanos, quantities=quantities(seconds))
        found = self.gate.admit("k", "POST", "/chat", usage, tags=tags)
        if refusing:
            assert isinstance(found, Denial)
            assert found.limit in refusing
            assert (found.status == 429) == any(name in ("gpt-4o", "user") for name in refusing)
            return multiple()
        assert isinstance(found, Admission), found
        self.open[found.id] = taking
        return found

    @rule(
        admission=consumes(admissions),
        model=st.sampled_from(MODELS),
        user=st.sampled_from(USERS),
        nanos=st.integers(0, 90),
        seconds=st.integers(0, 50),
        fails=st.booleans(),
    )
    def settle(
        self, admission: Admission, model: str, user: str, nanos: int, seconds: int, fails: bool
    ) -> None:
        """With whatever model and user: what is left out is the hold's."""
        if admission.id not in self.open:
            return
        usage = Usage(model=model, cost_nanos=nanos, quantities=quantities(seconds))
        outcome = Outcome(usage=usage, tags={"user": user} if user else {})
        if fails:
            assert self.gate.claim(admission)
            record, _ = self.gate.settle(admission, outcome, self.clock.now_us())
            self.gate.unsettle(admission, record)
            self.check_all()
        held = self.open.pop(admission.id)
        finished = self.gate.finish(admission, outcome, self.clock.now_us())
        assert finished is not None
        taking = Taking(model or held.model, user or held.user, held.day, nanos, seconds)
        self.uncommitted.append((taking, finished[1]))
        self.used.append(taking)
        self.in_windows.append(taking)

    @rule(admission=consumes(admissions))
    def void(self, admission: Admission) -> None:
        if admission.id not in self.open:
            return
        assert self.gate.claim(admission)
        self.gate.void(admission)
        admission.state = "ended"
        del self.open[admission.id]

    @rule()
    def commit(self) -> None:
        for _, name, slots, _ in self.gate.dirty_windows():
            self.sources.windows[name] = slots
        self.sources.commits += 1
        charges: dict[tuple[str, str, int], int] = defaultdict(int)
        for account_id, name, start_us, amount in (c for _, made in self.uncommitted for c in made):
            charges[account_id, name, start_us] += amount
            self.sources.rows[name, start_us] += amount
        self.uncommitted.clear()
        self.saved_windows = [*self.in_windows, *self.open.values()]
        self.gate.booked(dict(charges), dict(charges), {}, self.sources.commits)

    @rule(hours=st.sampled_from((1, 13, 24)))
    def wait(self, hours: int) -> None:
        self.clock.advance(seconds=hours * 3600)

    @rule()
    def evict(self) -> None:
        for _ in range(4):
            self.gate.evict_idle()

    @rule(
        counted=st.sampled_from([c for c in COUNTED if c.name in ("model", "seconds")]),
        model=st.sampled_from(MODELS),
        user=st.sampled_from(USERS),
        amount=st.integers(1, 60),
        lasts=st.booleans(),
        both=st.booleans(),
    )
    def top_up(self, counted: Counted, model: str, user: str, amount: int, lasts: bool, both: bool) -> None:
        """Of one value; the next request may use it."""
        value = counted.value(model, user)
        if value is not None:
            at = counter_id(counted, value)
            self.sources.posted[at].append((self.day, amount, lasts))
            if both:
                self.sources.posted[at].append((self.day, amount, not lasts))
            self.sources.commits += 1
            self.gate.counters.topped_up("a", at)

    @rule(
        user=st.sampled_from(USERS), amounts=st.tuples(*[st.integers(1, 60)] * 2), seconds=st.integers(0, 90)
    )
    def end_a_day_with_top_ups(self, user: str, amounts: tuple[int, int], seconds: int) -> None:
        """Both kinds, used beyond what was held, and then the next day: rare where rules are drawn one by one."""
        (counted,) = (each for each in COUNTED if each.name == "seconds")
        for amount, lasts in zip(amounts, (True, False), strict=True):
            self.top_up(counted, "gpt-4o", user, amount, lasts, both=False)
        found = self.admit("gpt-4o", user, 1, 1)
        if isinstance(found, Admission):
            self.settle(found, "gpt-4o", user, 1, seconds, fails=False)
        self.check_all()
        self.wait(24)

    @rule(amount=st.integers(-80, 80), days_ago=st.integers(0, 1))
    def adjust(self, amount: int, days_ago: int) -> None:
        """Without model and tags: the budget of the account counts it, and those of values do not."""
        day = self.day - days_ago
        self.adjusted[day] += amount
        self.sources.rows["budget:total", day * DAY_US] -= amount
        self.sources.commits += 1
        self.gate.booked({("a", "budget:total", day * DAY_US): -amount}, {}, {}, self.sources.commits)

    @rule()
    def kill(self) -> None:
        """What was held here is gone, and so is what no commit had."""
        for taking, _ in self.uncommitted:
            self.used.remove(taking)
        self.uncommitted.clear()
        self.open.clear()
        self.in_windows = list(self.saved_windows)
        self.sources.openings = Openings(lambda *of: (0, []))
        self.gate = Gate(self.sources, self.clock)

    @rule(amount=st.integers(0, 400))
    def change_amount(self, amount: int) -> None:
        self.sources.total = amount
        self.gate.forget("a")

    @invariant()
    def every_counter_is_the_sum_of_its_list(self) -> None:
        self.check_all()

    def check_all(self) -> None:
        compiled_key = self.gate.compiled_key("k")
        assert not isinstance(compiled_key, Denial)
        for model in MODELS:
            for user in USERS:
                facts = Facts(model, {"user": user} if user else {}, "request", "POST", "/chat")
                statuses = self.gate.limit_statuses(compiled_key, self.clock.now_us(), facts)
                told = {status.name: (status.allowed, status.used) for status in statuses}
                assert told == {
                    counted.name: (self.amount(counted, value), self.spent(counted, value, self.day))
                    for counted in COUNTED
                    if (value := counted.value(model, user)) is not None
                }


TestMatches = MatchesModel.TestCase
TestMatches.settings = settings(max_examples=effort(12, 60), stateful_step_count=30, deadline=None)
