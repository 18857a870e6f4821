"""A gate over a ledger in memory."""

from __future__ import annotations

from collections import defaultdict

from tollkeeper.domain.catalog import Account, Budget, Key, Limit, Plan, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.entitlements import BudgetScope, Entitlement, resolve
from tollkeeper.domain.instants import from_us
from tollkeeper.domain.keys import hash_secret
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.periods import FAR_FUTURE
from tollkeeper.domain.pools import CreditBook, GrantBalance
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.domain.top_ups import TopUps
from tollkeeper.gate.gate import Admission, Charge, Gate
from tollkeeper.gate.openings import Openings
from tollkeeper.testing import ManualClock

LIMITS = [
    Limit(name="rpm", amount=6),
    Limit(name="tpm", amount=100, unit="tokens", algorithm="sliding"),
    Limit(name="permits", amount=60, burst=90, unit="tokens", algorithm="permits"),
    Limit(name="open", amount=3, algorithm="concurrency"),
    Limit(name="shared", amount=200, unit="tokens", window="1h", per="account"),
]
PLAN = Plan(slug="pro", limits=LIMITS)
SPENT = Limit(name="calls", amount=3, window="5m")
IDLE_S = 600


class Site:
    """A gate with a ledger in memory. Every secret is the key of its own name, of the account before its dot."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.used: dict[tuple[str, str, int], int] = defaultdict(int)
        self.windows: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
        self.books: dict[str, CreditBook] = {}
        self.commits = 0
        self.settled: list[Charge] = []
        self.openings = Openings(lambda *of: (0, []))
        self.top_ups_ = TopUps()
        self.gate = Gate(self, clock)
        self.secrets: dict[str, str] = {}

    # What the gate reads.

    def entitlement(self, secret_sha256: str) -> Entitlement | None:
        name = self.secrets[secret_sha256]
        account = name.partition(".")[0]
        return resolve(
            Key(id=name, account=account, type="credit"),
            rotation_chain=[name],
            account=Account(id=account, name=account),
            subscription=None,
            plan=PLAN,
            budgets=[Budget(id="b", account=account, amount=400, period="day")],
        )

    def routes(self) -> list[Route]:
        return [Route(id="chat", method="POST", path="/chat")]

    def price(self, model: str, variant: str, account_id: str, plan: str, at_us: int) -> None:
        return None

    def counter(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]:
        return self.used[account_id, counter_id, period_start_us], self.commits

    def top_ups(self, scope: BudgetScope) -> tuple[TopUps, dict[int, int], int]:
        used = {
            start: amount
            for (_, counter_id, start), amount in self.used.items()
            if counter_id == scope.counter_id
        }
        return self.top_ups_, used, self.commits

    def slots(self, account_id: str, counter_id: str) -> dict[int, int]:
        return dict(self.windows[account_id, counter_id])

    def book(self, account_id: str) -> tuple[CreditBook, int]:
        if account_id not in self.books:
            grant = GrantBalance(1, FAR_FUTURE, "g", 1_000, 1_000)
            self.books[account_id] = CreditBook().posted(grant)
        return self.books[account_id], self.commits

    # What is done with it.

    def admit(self, name: str, tokens: int = 1, nanos: int = 1) -> Admission | Denial:
        self.secrets[hash_secret(name)] = name
        return self.gate.admit(name, "POST", "/chat", Usage(tokens, cost_nanos=nanos))

    def settle(self, admission: Admission, tokens: int = 1, nanos: int = 1) -> None:
        outcome = Outcome(usage=Usage(tokens, cost_nanos=nanos))
        finished = self.gate.finish(admission, outcome, self.clock.now_us())
        assert finished is not None
        self.settled += finished[1]

    def void(self, admission: Admission) -> None:
        assert self.gate.claim(admission)
        self.gate.void(admission)
        admission.state = "ended"

    def commit(self) -> None:
        """Write what was settled, and the windows that changed."""
        for account_id, counter_id, slots, _ in self.gate.dirty_windows():
            self.windows[account_id, counter_id] |= slots
        self.commits += 1
        charges: dict[tuple[str, str, int], int] = defaultdict(int)
        for charge in self.settled:
            charges[charge[:3]] += charge.amount
        books = {}
        for at, amount in charges.items():
            if at[1] == "credit":
                book = self.book(at[0])[0].charged(amount, from_us(at[2]))
                books[at[0]] = self.books[at[0]] = book
            else:
                self.used[at] += amount
        self.settled = []
        self.gate.booked(dict(charges), dict(charges), books, self.commits)
        self.gate.take_last_used()

    def evict_idle(self) -> None:
        """Look at everything at least once."""
        for _ in range(4):
            self.gate.evict_idle()

    def limit_statuses(self, name: str) -> list[LimitStatus]:
        self.secrets[hash_secret(name)] = name
        compiled_key = self.gate.compiled_key(name)
        assert not isinstance(compiled_key, Denial)
        return self.gate.limit_statuses(compiled_key, self.clock.now_us())

    @property
    def counter_count(self) -> int:
        return len(self.gate._counters.places())
