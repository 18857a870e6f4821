"""
What a run does, drawn from its seed alone: the set-up of each round, each step of each connection, the kills.

The same seed gives the same plan. It does not give the same run: which of two requests the server takes
first is up to the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from tollkeeper.domain.instants import to_text
from tollkeeper.domain.keys import hash_secret
from tollkeeper.prove.faults import Fault

Cut = Literal["unread", "half"]
"""A connection closed on purpose: before its answer is read, or with half of the body sent."""
Ending = Literal["settle", "late", "void", "none"]
"""How a hold ends: settled in time, settled after it expired, voided, or left to expire."""
Step: TypeAlias = "SpendStep | Post | Correct | Put"

DECK: Final[dict[str, int]] = {
    "even": 6,
    "fixed": 5,
    "sliding": 5,
    "concurrency": 4,
    "expiry": 5,
    "pools": 6,
    "post": 6,
    "changed": 1,
    "correct": 2,
    "grant": 1,
    "budget": 1,
}
"""Steps of one connection in one round, by what they are about."""
STEPS: Final = sum(DECK.values())
EVEN_NANOS: Final = 7
WINDOW: Final = "366d"
"""Of the fixed limit: the longest there is, so that a round lies inside one window."""
SLIDING: Final = "1s"
LONG_S: Final = 3_600
SHORT_S: Final = 1
"""How long holds stay open: those that never expire within a round, and those that do."""
AMPLE: Final = 10**15
EVENTS_PER_POST: Final = 20
MINTED_MAX: Final = 5
"""Requests that fit into the bound of each account that mints keys."""
_FIRST_AT: Final = datetime(2025, 1, 1, tzinfo=UTC)
_HOURS: Final = 480
"""Events lie in these hours, so that batches come late and out of order, in many buckets."""


class Scale(NamedTuple):
    """How large a run is: rounds (one kill each, or two), client processes, connections of each."""

    rounds: int = 5
    clients: int = 4
    connections: int = 4

    @property
    def callers(self) -> int:
        return self.clients * self.connections


class Bound(NamedTuple):
    """
    One limit, budget or balance that no caller may pass.

    Attributes:
        keys: Whose requests it counts.
        allowed: In nanos for a `budget`, else in requests.
        window: Of a `fixed` or `sliding` limit.
        exact: Nothing is ever given back and every request is retried, so just as many are admitted as fit.
    """

    name: str
    keys: tuple[str, ...]
    allowed: int
    kind: Literal["budget", "fixed", "sliding", "concurrency"]
    window: str = ""
    exact: bool = False


class SpendStep(NamedTuple):
    """
    A hold and its ending.

    Attributes:
        amount: Nanos to hold.
        cost: Nanos to settle.
        after: Steps of the same connection before it ends.
        given_up: The call whose answer was lost and that is never tried again.
    """

    id: str
    key: str
    amount: int
    cost: int
    ttl_s: int
    ending: Ending
    after: int
    cuts: tuple[Cut, ...]
    ending_cuts: tuple[Cut, ...]
    given_up: Literal["", "authorize", "ending"]


class Post(NamedTuple):
    """A batch of events, in this order, some of them twice. With *changed*, other bodies under the same ids."""

    id: str
    events: tuple[str, ...]
    changed: bool
    cuts: tuple[Cut, ...]


class Correct(NamedTuple):
    """A correction of an event: its new cost, or None to void it."""

    id: str
    event: str
    cost: int | None
    cuts: tuple[Cut, ...]


class Put(NamedTuple):
    """An entry of the catalog, set up in the middle of the traffic."""

    id: str
    kind: Literal["grants", "budgets"]
    entry: dict[str, Any]
    cuts: tuple[Cut, ...]


class Round(NamedTuple):
    """
    One round: what is set up, what must hold, and when the server is killed.

    Attributes:
        kill_at: After so many answers, of all clients together.
        kill_start_s: The start that follows is killed too, after so long; None leaves it alone.
    """

    number: int
    declaration: str
    bounds: tuple[Bound, ...]
    kill_at: int
    kill_start_s: float | None


def accounts_of(number: int) -> tuple[str, str, str]:
    """Return the accounts of a round: of single limits, of several pools per request, of events."""
    return f"single-{number}", f"pools-{number}", f"meter-{number}"


def secret_of(key_id: str) -> str:
    """Return the secret of an api key. It guards nothing: the installation is thrown away."""
    return f"tk_prove_{hash_secret(key_id)[:32]}"


def plan_round(seed: int, number: int, scale: Scale) -> Round:
    """Return the plan of round *number*, from 1 on."""
    chance = Random(f"{seed}/{number}")
    single, pools, meter = accounts_of(number)
    count = {name: times * scale.callers for name, times in DECK.items()}
    bounds = (
        Bound("even", (f"even-{number}",), EVEN_NANOS * (count["even"] // 2) + 3, "budget", exact=True),
        Bound("fixed", (f"fixed-{number}",), count["fixed"] // 2, "fixed", WINDOW, exact=True),
        Bound("sliding", (f"sliding-{number}",), 10, "sliding", SLIDING),
        Bound("concurrency", (f"concurrency-{number}",), 3, "concurrency"),
        Bound("expiry", (f"expiry-{number}",), count["expiry"] * 2, "budget"),
        Bound("pool-a", (f"pool-a-{number}",), count["pools"] * 14, "budget"),
        Bound("pool-b", (f"pool-b-{number}",), count["pools"] * 14, "budget"),
        Bound("account", (f"pool-a-{number}", f"pool-b-{number}"), count["pools"] * 24, "budget"),
        Bound("credit", (f"pool-a-{number}", f"pool-b-{number}"), count["pools"] * 22, "budget"),
    )
    parts = [] if number > 1 else ['[[routes]]\nid = "any"\nmethod = "*"\npath = "/*"']
    parts += [f'[[accounts]]\nid = "{account}"\nname = "{account}"' for account in (single, pools, meter)]
    for bound in bounds:
        account = single if bound.name in DECK else pools
        if bound.kind == "budget" and bound.name != "credit":
            parts.append(_budget(bound, account, number))
        if len(bound.keys) == 1:
            parts.append(_key(bound.keys[0], account, None if bound.kind == "budget" else bound))
        if bound.name == "credit":
            parts.append(
                f'[[grants]]\nid = "first-{number}"\naccount = "{pools}"\namount_nanos = {bound.allowed}'
            )
    parts.append(_key(f"meter-{number}", meter, None))
    ample = Bound("ample", (f"meter-{number}",), AMPLE, "budget")
    parts.append(_budget(ample, meter, number))
    return Round(
        number,
        "\n\n".join(parts) + "\n",
        bounds,
        kill_at=chance.randrange(1, STEPS * scale.callers),
        kill_start_s=chance.uniform(0.05, 1.0) if chance.random() < 0.25 else None,
    )


def _budget(bound: Bound, account: str, number: int) -> str:
    of_key = f'key = "{bound.keys[0]}"\n' if len(bound.keys) == 1 else ""
    return (
        f'[[budgets]]\nid = "{bound.name}-{number}"\naccount = "{account}"\n{of_key}'
        f'amount = {bound.allowed}\nperiod = "total"'
    )


def _key(key_id: str, account: str, limit: Bound | None) -> str:
    text = f'[[keys]]\nid = "{key_id}"\naccount = "{account}"\nsha256 = "{hash_secret(secret_of(key_id))}"'
    if key_id.startswith("pool"):
        text += '\ntype = "credit"'
    if limit is not None:
        window = f'\nwindow = "{limit.window}"' if limit.window else ""
        text += (
            f'\n[[keys.limits]]\nname = "{limit.name}"\namount = {limit.allowed}\n'
            f'algorithm = "{limit.kind}"{window}'
        )
    return text


def attackers_declaration(number: int, faults: Sequence[Fault]) -> str:
    """Return the accounts of the customers who misbehave in round *number*."""
    parts = []
    if "noisy" in faults:
        parts += [
            f'[[plans]]\nslug = "noisy-{number}"\nbudgets = [{{ name = "noise", amount = {AMPLE}, unit = "nanos", '
            'period = "month", per = "account" }]',
            _account(f"noisy-{number}", f"noisy-{number}"),
            _management_key(f"noisy-{number}"),
            _key(f"noisy-{number}", f"noisy-{number}", None),
        ]
    if "minting" in faults:
        nanos = MINTED_MAX * EVEN_NANOS
        parts += [
            f'[[plans]]\nslug = "rates-{number}"\nlimits = [{{ name = "rate", amount = 100000, window = "1m" }}]',
            _account(f"mint-credit-{number}", f"rates-{number}"),
            _management_key(f"mint-credit-{number}"),
            _key(f"mint-credit-{number}", f"mint-credit-{number}", None) + '\ntype = "credit"',
            f'[[grants]]\nid = "mint-{number}"\naccount = "mint-credit-{number}"\namount_nanos = {nanos}',
            f'[[plans]]\nslug = "shared-{number}"\nbudgets = [{{ name = "shared", amount = {nanos}, '
            'unit = "nanos", period = "total", per = "account" }]',
            _account(f"mint-plan-{number}", f"shared-{number}"),
            _management_key(f"mint-plan-{number}"),
            _key(f"mint-plan-{number}", f"mint-plan-{number}", None),
            _account(f"mint-key-{number}", None),
            _key(f"mint-key-{number}", f"mint-key-{number}", None)
            + f'\nprofile = "anylayer"\nlimits = [{{ name = "few", amount = {MINTED_MAX}, window = "{WINDOW}" }}]',
        ]
    return "\n\n".join(parts)


def management_id_of(account: str) -> str:
    """Return the id of the management key of an account that misbehaves."""
    return f"manages-{account}"


def _account(account: str, plan: str | None) -> str:
    return f'[[accounts]]\nid = "{account}"\nname = "{account}"' + (f'\nplan = "{plan}"' if plan else "")


def _management_key(account: str) -> str:
    return _key(management_id_of(account), account, None) + '\nrole = "management"'


def steps_of(seed: int, number: int, client: int, connection: int, scale: Scale) -> Iterator[Step]:
    """Yield the steps of one connection in one round, in order."""
    chance = Random(f"{seed}/{number}/{client}/{connection}")
    deck = [name for name, count in DECK.items() for _ in range(count)]
    chance.shuffle(deck)
    own = f"{number}-{client}-{connection}"
    shared_count = scale.callers * EVENTS_PER_POST
    posted: list[str] = []
    for index, name in enumerate(deck):
        id_ = f"{own}-{index}"
        cuts = _cuts(chance)
        if name == "post" or (name in ("changed", "correct") and not posted):
            fresh = [f"e{own}-{index}-{n}" for n in range(chance.randrange(1, 6))]
            events = fresh + [f"e{number}-{n}" for n in chance.sample(range(shared_count), EVENTS_PER_POST)]
            # Again what was sent before, in this call or an earlier one, perhaps corrected since.
            events += chance.choices(events + posted, k=5)
            chance.shuffle(events)
            posted += fresh
            yield Post(id_, tuple(events), False, cuts)
        elif name == "changed":
            yield Post(id_, (chance.choice(posted),), True, cuts)
        elif name == "correct":
            cost = None if chance.random() < 0.3 else chance.randrange(1_000)
            yield Correct(id_, chance.choice(posted), cost, cuts)
        elif name == "grant":
            amount = chance.randrange(1, 1_000)
            entry = {"id": f"g{id_}", "account": accounts_of(number)[2], "amount_nanos": amount}
            yield Put(id_, "grants", entry, cuts)
        elif name == "budget":
            entry = {"id": f"b{number}-{chance.randrange(4)}", "account": accounts_of(number)[2]}
            yield Put(id_, "budgets", {**entry, "amount": AMPLE, "period": "total"}, cuts)
        else:
            yield _spend(chance, name, id_, number, cuts)


def event_of(seed: int, event_id: str, *, changed: bool = False) -> dict[str, Any]:
    """Return the body of an event, always the same, or with *changed* another one under the same id."""
    chance = Random(f"{seed}/{event_id}")
    number = event_id[1:].partition("-")[0]
    at = _FIRST_AT + timedelta(microseconds=chance.randrange(_HOURS * 3_600 * 10**6))
    return {
        "id": event_id,
        "time": to_text(at),
        "key_id": f"meter-{number}",
        "cost_nanos": chance.randrange(1_000) + (1_000 if changed else 0),
        "tags": {"op": event_id},
    }


def _spend(chance: Random, name: str, id_: str, number: int, cuts: tuple[Cut, ...]) -> SpendStep:
    key = f"{chance.choice(('pool-a', 'pool-b'))}-{number}" if name == "pools" else f"{name}-{number}"
    spend = SpendStep(
        id_, key, EVEN_NANOS, EVEN_NANOS, LONG_S, "settle", chance.randrange(4), cuts, _cuts(chance), ""
    )
    if name in ("even", "fixed"):
        return spend
    if name in ("sliding", "concurrency"):
        return spend._replace(ending=chance.choice(("settle", "settle", "void")))
    if name == "expiry":
        endings: tuple[Ending, ...] = ("settle", "settle", "late", "void", "none")
        return spend._replace(
            amount=10, cost=chance.randrange(11), ttl_s=SHORT_S, ending=chance.choice(endings)
        )
    amount = chance.randrange(1, 100)
    spend = spend._replace(
        amount=amount,
        # One in ten uses more than it held, which is booked whole.
        cost=amount + chance.randrange(20) if chance.random() < 0.1 else chance.randrange(amount + 1),
        ending=chance.choice(("settle", "settle", "settle", "void")),
    )
    if chance.random() < 0.1:
        calls: tuple[Literal["authorize", "ending"], ...] = ("authorize", "ending")
        spend = spend._replace(ttl_s=SHORT_S, given_up=chance.choice(calls))
    return spend


def _cuts(chance: Random) -> tuple[Cut, ...]:
    """Return how often, and how, a call is cut off before it is left to finish: mostly never."""
    if chance.random() < 0.8:
        return ()
    return tuple(chance.choice(("unread", "unread", "half")) for _ in range(chance.randrange(1, 3)))
