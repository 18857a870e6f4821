"""
What a run does, drawn from its seed alone: the set-up of each round, each step of each connection, the kills.

The same seed gives the same plan. It does not give the same run: which of two requests the server takes
first is up to the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from tollkeeper.domain.instants import to_text
from tollkeeper.domain.keys import hash_secret
from tollkeeper.prove.amounts import (
    MICROS,
    MODEL,
    draw_quantities,
    draw_used,
    measures_of,
    prices_declaration,
)
from tollkeeper.prove.faults import Fault

Cut = Literal["unread", "half"]
"""A connection closed on purpose: before its answer is read, or with half of the body sent."""
Ending = Literal["settle", "late", "void", "none"]
"""How a hold ends: settled in time, settled after it expired, voided, or left to expire."""
Step: TypeAlias = "SpendStep | Post | Correct | Manage"
ManageOp: TypeAlias = Literal["grants", "budgets", "top_up", "adjust", "revoke"]
"""What the operator does in the middle of the traffic."""

DECK: Final[dict[str, int]] = {
    "even": 6,
    "fixed": 5,
    "sliding": 5,
    "concurrency": 4,
    "expiry": 5,
    "pools": 6,
    "seconds": 4,
    "clip": 4,
    "model": 5,
    "user": 6,
    "topped": 6,
    "priced": 3,
    "post": 6,
    "changed": 1,
    "correct": 2,
    "grant": 2,
    "revoke": 1,
    "budget": 1,
    "top_up": 2,
    "adjust": 3,
}
"""Steps of one connection in one round, by what they are about."""
STEPS: Final = sum(DECK.values())
EVEN_NANOS: Final = 7
EVEN_SECONDS: Final = "1.25"
USERS: Final = ("u1", "u2", "u3")
MODELS: Final = ("prove-a1", "PROVE-A2", "prove-b")
TOPPED: Final = "topped"
"""The budget that top-ups add to."""
MATCHED: Final = "prove-a"
"""How the models begin that a limit counts."""
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
        allowed: In *unit*; seconds in millionths.
        window: Of a `fixed` or `sliding` limit.
        exact: Nothing is ever given back and every request is retried, so none is refused that fits.
        account: Whose it is. It bounds all of it when *whole* is set.
        model: It counts requests of models that begin so; "" for all.
        user: It counts requests of this end user, apart from those of others; "" for all.
    """

    name: str
    keys: tuple[str, ...]
    allowed: int
    kind: Literal["budget", "fixed", "sliding", "concurrency"]
    window: str = ""
    exact: bool = False
    unit: Literal["nanos", "requests", "seconds"] = "requests"
    account: str = ""
    whole: bool = False
    model: str = ""
    user: str = ""

    def counts(self, body: Mapping[str, Any]) -> bool:
        """Return whether it counts a request of one of its keys, by what the request states."""
        if not body.get("model", "").lower().startswith(self.model):
            return False
        return not self.user or body["tags"].get("user") == self.user


class SpendStep(NamedTuple):
    """
    A hold and its ending.

    Attributes:
        asked: What the request may use, with its model and tags, as `authorize` states it.
        used: What it did use, as `settle` states it.
        after: Steps of the same connection before it ends.
        given_up: The call whose answer was lost and that is never tried again.
    """

    id: str
    key: str
    asked: dict[str, Any]
    used: dict[str, Any]
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
    """A correction of an event: what it changes, or None to void it. Of an adjustment: to void it."""

    id: str
    event: str
    changes: dict[str, Any] | None
    cuts: tuple[Cut, ...]


class Manage(NamedTuple):
    """
    What the operator does in the middle of the traffic. *body* has the id of the grant, budget, top-up or adjustment.

    Attributes:
        given_up: Its answer is lost, and it is never tried again.
    """

    id: str
    op: ManageOp
    path: str
    body: dict[str, Any]
    cuts: tuple[Cut, ...]
    given_up: bool = False


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
    both = (f"pool-a-{number}", f"pool-b-{number}")
    even_micros = measures_of({"quantities": {"seconds": EVEN_SECONDS}}).seconds
    bounds = (
        _limit("fixed", number, count["fixed"] // 2, window=WINDOW, exact=True),
        _limit("sliding", number, 10, kind="sliding", window=SLIDING),
        _limit("concurrency", number, 3, kind="concurrency"),
        _limit("model", number, count["model"] // 3, window=WINDOW, exact=True, model=MATCHED),
        _limit("clip", number, count["clip"] * 10 * MICROS + 1, window=WINDOW, unit="seconds"),
        _budget("even", number, EVEN_NANOS * (count["even"] // 2) + 3, exact=True),
        _budget("expiry", number, count["expiry"] * 2),
        _budget("seconds", number, even_micros * (count["seconds"] // 2) + 5, exact=True, unit="seconds"),
        _budget(TOPPED, number, EVEN_NANOS * (count["topped"] // 4) + 3, exact=True),
        *(
            _budget("user", number, EVEN_NANOS * (count["user"] // 6) + 3, exact=True, user=user)
            for user in USERS
        ),
        _budget("pool-a", number, count["pools"] * 14, account=pools),
        _budget("pool-b", number, count["pools"] * 14, account=pools),
        _budget("account", number, count["pools"] * 24, account=pools, keys=both, whole=True),
        _budget("credit", number, count["pools"] * 22, account=pools, keys=both, whole=True),
        _budget("meter", number, AMPLE, account=meter),
    )
    parts = [] if number > 1 else ['[[routes]]\nid = "any"\nmethod = "*"\npath = "/*"']
    parts += [f'[[accounts]]\nid = "{account}"\nname = "{account}"' for account in (single, pools, meter)]
    parts.append(prices_declaration(meter))
    for bound in bounds:
        if bound.name == "credit":
            parts.append(
                f'[[grants]]\nid = "first-{number}"\naccount = "{pools}"\namount_nanos = {bound.allowed}'
            )
        elif bound.kind == "budget" and bound.user in ("", USERS[0]):
            parts.append(_budget_entry(bound, number))
    keys = {key: bound for bound in reversed(bounds) for key in bound.keys}
    parts += [_key(key, bound.account, bound) for key, bound in keys.items()]
    return Round(
        number,
        "\n\n".join(parts) + "\n",
        bounds,
        kill_at=chance.randrange(1, STEPS * scale.callers),
        kill_start_s=chance.uniform(0.05, 1.0) if chance.random() < 0.25 else None,
    )


def label_of(bound: Bound, number: int) -> str:
    """Return the name under which a budget is looked at: one that counts users apart has a name for each."""
    return f"{bound.name}-{number}" + (f" of {bound.user}" if bound.user else "")


def _limit(
    name: str,
    number: int,
    allowed: int,
    kind: Literal["fixed", "sliding", "concurrency"] = "fixed",
    **more: Any,
) -> Bound:
    return Bound(name, (f"{name}-{number}",), allowed, kind, account=accounts_of(number)[0], **more)


def _budget(name: str, number: int, allowed: int, **more: Any) -> Bound:
    of = {"keys": (f"{name}-{number}",), "account": accounts_of(number)[0], "unit": "nanos", **more}
    return Bound(name, allowed=allowed, kind="budget", **of)


def _amount(bound: Bound) -> str:
    """Return the amount of a limit or budget, and what it counts."""
    if bound.unit == "seconds":
        seconds = f"{bound.allowed // MICROS}.{bound.allowed % MICROS:06d}"
        return f'amount = "{seconds}"\nunit = "quantity.seconds"'
    return f'amount = {bound.allowed}\nunit = "{bound.unit}"'


def _budget_entry(bound: Bound, number: int) -> str:
    of_key = "" if bound.whole else f'key = "{bound.keys[0]}"\n'
    per = '\nper = "tag.user"' if bound.user else ""
    return (
        f'[[budgets]]\nid = "{bound.name}-{number}"\naccount = "{bound.account}"\n{of_key}'
        f'{_amount(bound)}\nperiod = "total"{per}'
    )


def _key(key_id: str, account: str, bound: Bound | None) -> str:
    text = f'[[keys]]\nid = "{key_id}"\naccount = "{account}"\nsha256 = "{hash_secret(secret_of(key_id))}"'
    if key_id.startswith("pool"):
        text += '\ntype = "credit"'
    if bound is not None and bound.kind != "budget":
        text += f'\n[[keys.limits]]\nname = "{bound.name}"\n{_amount(bound)}\nalgorithm = "{bound.kind}"'
        text += f'\nwindow = "{bound.window}"' if bound.window else ""
        text += f'\nmatch = {{ models = ["{bound.model}*"] }}' if bound.model else ""
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
    given: list[dict[str, Any]] = []
    adjusted: list[str] = []
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
            yield Correct(id_, chance.choice(posted), _changes(chance), cuts)
        elif name == "grant" or (name == "revoke" and not given):
            amount = chance.randrange(1, 1_000)
            entry = {"id": f"g{id_}", "account": accounts_of(number)[2], "amount_nanos": amount}
            given.append(entry)
            yield Manage(id_, "grants", f"/grants/{entry['id']}", entry, cuts)
        elif name == "revoke":
            entry = chance.choice(given)
            path = f"/grants/{entry['id']}/revoke?account={entry['account']}"
            yield Manage(id_, "revoke", path, {"id": entry["id"]}, cuts)
            # Sent again, it stays revoked.
            yield Manage(f"{id_}-again", "grants", f"/grants/{entry['id']}", entry, cuts)
        elif name == "budget":
            entry = {"id": f"b{number}-{chance.randrange(4)}", "account": accounts_of(number)[2]}
            entry |= {"amount": AMPLE, "period": "total"}
            yield Manage(id_, "budgets", f"/budgets/{entry['id']}", entry, cuts)
        elif name == "top_up":
            yield _top_up(chance, seed, id_, number, scale, cuts)
        elif name == "adjust":
            if adjusted and chance.random() < 0.2:
                yield Correct(id_, chance.choice(adjusted), None, cuts)
                continue
            shared = chance.random() < 0.5
            body = _adjustment(
                seed, f"a{number}-{chance.randrange(scale.callers)}" if shared else f"a{id_}", number
            )
            adjusted += [] if shared else [body["id"]]
            yield Manage(id_, "adjust", "/adjustments", body, cuts)
        else:
            yield _spend(chance, name, id_, number, cuts)


def event_of(seed: int, event_id: str, *, changed: bool = False) -> dict[str, Any]:
    """Return the body of an event, always the same, or with *changed* another one under the same id."""
    chance = Random(f"{seed}/{event_id}")
    number = event_id[1:].partition("-")[0]
    at = _FIRST_AT + timedelta(microseconds=chance.randrange(_HOURS * 3_600 * 10**6))
    body: dict[str, Any] = {
        "id": event_id,
        "time": to_text(at),
        "key_id": f"meter-{number}",
        "tags": {"op": event_id},
    }
    if chance.random() < 0.5:
        body["cost_nanos"] = chance.randrange(1_000)
        if chance.random() < 0.3:
            body["quantities"] = draw_quantities(chance)
    else:
        body |= {"model": MODEL, **draw_used(chance)}
    if changed:
        body["cost_nanos"] = body.get("cost_nanos", 0) + 1_000
    return body


def _changes(chance: Random) -> dict[str, Any] | None:
    """Return what a correction changes: the cost, the seconds, or None to void the event."""
    kind = chance.random()
    if kind < 0.3:
        return None
    if kind < 0.6:
        return {"cost_nanos": chance.randrange(1_000)}
    return {"quantities": {"seconds": draw_quantities(chance)["seconds"]}}


def _top_up(chance: Random, seed: int, id_: str, number: int, scale: Scale, cuts: tuple[Cut, ...]) -> Manage:
    """Return a top-up that several connections post, all with the same body; a few never hear of it."""
    top_up = f"t{number}-{chance.randrange(scale.callers)}"
    drawn = Random(f"{seed}/{top_up}")
    amount = f"0.{drawn.randrange(1, 4 * EVEN_NANOS):09d}"
    body = {"id": top_up, "amount": amount, "until_used": drawn.random() < 0.3}
    path = f"/budgets/{TOPPED}-{number}/top-up?account={accounts_of(number)[0]}"
    return Manage(id_, "top_up", path, body, cuts, given_up=chance.random() < 0.1)


def _adjustment(seed: int, id_: str, number: int) -> dict[str, Any]:
    """Return an adjustment, always the same under its id. Its reason is its id, so that usage shows it."""
    drawn = Random(f"{seed}/{id_}")
    _, pools, meter = accounts_of(number)
    account, key = drawn.choice(
        ((meter, ""), (meter, f"meter-{number}"), (pools, ""), (pools, f"pool-a-{number}"))
    )
    amount = drawn.choice((-1, 1)) * drawn.randrange(1, 50)
    body = {"id": id_, "account": account, "amount_nanos": amount, "reason": id_}
    return body | ({"key_id": key} if key else {})


def _spend(chance: Random, name: str, id_: str, number: int, cuts: tuple[Cut, ...]) -> SpendStep:
    key = {"pools": chance.choice(("pool-a", "pool-b")), "priced": "meter"}.get(name, name)
    even = {"cost_nanos": EVEN_NANOS}
    spend = SpendStep(
        id_,
        f"{key}-{number}",
        even,
        even,
        LONG_S,
        "settle",
        chance.randrange(4),
        cuts,
        _cuts(chance),
        "",
    )
    if name == "user":
        return spend._replace(asked={**even, "tags": {"user": chance.choice(USERS)}})
    if name == "model":
        return spend._replace(asked={**even, "model": chance.choice(MODELS)})
    if name == "seconds":
        seconds = {"quantities": {"seconds": EVEN_SECONDS}}
        return spend._replace(asked=seconds, used=seconds)
    if name == "clip":
        # From nothing to all of what was held.
        held = chance.randrange(1, 80 * MICROS)
        asked, used = (f"{us // MICROS}.{us % MICROS:06d}" for us in (held, chance.randrange(held + 1)))
        return spend._replace(
            asked={"quantities": {"seconds": asked}},
            used={"quantities": {"seconds": used, "images": 1}},
            ending=chance.choice(("settle", "settle", "void")),
        )
    if name == "priced":
        most = {"prompt": 1_000, "cached_prompt": 1_000, "completion": 1_000, "reasoning": 1_000}
        return spend._replace(asked={"model": MODEL, "tokens": most}, used=draw_used(chance))
    if name in ("even", "fixed", "topped"):
        return spend
    if name in ("sliding", "concurrency"):
        return spend._replace(ending=chance.choice(("settle", "settle", "void")))
    if name == "expiry":
        endings: tuple[Ending, ...] = ("settle", "settle", "late", "void", "none")
        return spend._replace(
            asked={"cost_nanos": 10},
            used={"cost_nanos": chance.randrange(11)},
            ttl_s=SHORT_S,
            ending=chance.choice(endings),
        )
    amount = chance.randrange(1, 100)
    # One in ten uses more than it held, which is booked whole.
    cost = amount + chance.randrange(20) if chance.random() < 0.1 else chance.randrange(amount + 1)
    spend = spend._replace(
        asked={"cost_nanos": amount},
        used={"cost_nanos": cost},
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
