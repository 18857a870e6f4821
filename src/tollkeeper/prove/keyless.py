"""
Requests without a key, of accounts and of signed-in users, beside those with one: they spend the same bounds.

Three accounts: one with a budget of its plan, one with credit, one whose users have a limit each. Session tokens that
are forged or made up, and accounts that do not exist, get nothing.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from tollkeeper.domain.keys import hash_secret
from tollkeeper.prove.attempts import UNIT_NANOS, Attempt, check_attempts
from tollkeeper.prove.oracle import Finding
from tollkeeper.prove.plan import secret_of
from tollkeeper.prove.scene import HOLD_S, Scene, ask, at_once, once_at, some, spend

UNITS: Final = 20
REQUESTS: Final = 32
"""Of each account: three in five fit."""
EVENTS: Final = 25
PER_USER: Final = 6
USERS: Final = ("ada", "bob")
_LONG_AGO: Final = "2020-01-01T00:00:00Z"


def check_sessions(scene: Scene, directory: Path, variant: str, chance: Random) -> list[Finding]:
    """Spend with and without a key; with *variant* `killed` the server is killed on the way."""
    scene.declare(_declaration())
    tokens = {
        (account, user): _token(scene, account, user)
        for account in ("house", "credit", "users")
        for user in USERS
    }
    signed, _, signature = tokens["house", "ada"].rpartition(".")
    forged = f"{signed}.{signature[::-1]}"
    planned: list[tuple[str, str, dict[str, Any]]] = []
    for account in ("house", "credit"):
        callers = [{"key": secret_of(f"{account}-1")}, {"account": account}]
        callers += [{"account": account, "user": user} for user in USERS]
        callers += [{"session": tokens[account, user]} for user in USERS]
        planned += [(account, f"{account}-{n}", callers[n % len(callers)]) for n in range(REQUESTS)]
    for user in USERS:
        both = ({"session": tokens["users", user]}, {"account": "users", "user": user})
        planned += [("users", f"users-{user}-{n}", both[n % 2]) for n in range(PER_USER + 4)]
    bad: list[dict[str, Any]] = [{"session": forged}, {"session": "made.up.token"}, {"account": "nobody"}]
    planned += [("house", f"bad-{n}", caller) for n, caller in enumerate(bad)]
    chance.shuffle(planned)
    act = scene.crash if variant == "killed" else lambda: None
    calls = [partial(spend, scene.server.port, id_, caller) for _, id_, caller in planned]
    sent = at_once(calls, once_at(chance.randrange(5, len(calls) - 20), act))
    sent_by: dict[str, list[Attempt]] = {}
    for (account, _, _), attempt in zip(planned, sent, strict=True):
        sent_by.setdefault(account, []).append(attempt)
    found = [
        Finding("other", f"{attempt.id} was admitted: nobody may be charged for it")
        for attempt in sent
        if attempt.id.startswith("bad") and attempt.outcome != "refused"
    ]
    for account in ("house", "credit"):
        sent_by[account] += scene.fill(UNITS, f"{account}-fill", {"account": account})
    house = scene.spent("house", scene.used("house-1", "all"))
    credit = scene.spent("credit", _spent(scene, "credit"))
    found += check_attempts(sent_by["house"], UNITS, house)
    found += check_attempts(sent_by["credit"], UNITS, credit)
    return [*found, *_users(scene, sent_by["users"], variant), *_events(scene)]


def _users(scene: Scene, sent: list[Attempt], variant: str) -> list[Finding]:
    """Each user has a limit of requests; a kill may lose permits of it, which overshoots nothing."""
    found = []
    for user in USERS:
        count = some([a for a in sent if a.id.startswith(f"users-{user}-")], "booked")
        if count > PER_USER:
            found.append(Finding("overshoot", f"{user} had {count} requests where {PER_USER} fit"))
        elif count < PER_USER and variant != "killed":
            found.append(Finding("other", f"{user} had {count} requests where {PER_USER} fit"))
    due = some(sent, "booked") * UNIT_NANOS
    return found + check_attempts(sent, len(sent), scene.spent("users", due, is_full=False))


def _events(scene: Scene) -> list[Finding]:
    """Events without a key draw on the credit where the account says so: each once, though it is sent again."""
    events = [
        {
            "id": f"ui-{n}", "account": "ui", "time": "2025-01-01T00:00:00Z", "cost_nanos": UNIT_NANOS,
            "tags": {"op": f"ui-{n}"},
        }
        for n in range(EVENTS)
    ]  # fmt: skip
    for _ in range(2):
        ask(scene.server.port, "POST", "/events", events)
    sent = [Attempt(str(event["id"]), "booked") for event in events]
    # More than the credit: they happened, and are never refused.
    return check_attempts(sent, EVENTS, scene.spent("ui", _spent(scene, "ui")))


def _spent(scene: Scene, account: str) -> int:
    """Return what is spent of an account's credit."""
    return int(scene.client.call("GET", f"/accounts/{account}/balance")["spent_nanos"])


def _token(scene: Scene, account: str, user: str) -> str:
    body = {"account": account, "user": user, "ttl_s": HOLD_S * 10}
    token: str = ask(scene.server.port, "POST", "/sessions", body).body["token"]
    return token


def _declaration() -> str:
    nanos = UNITS * UNIT_NANOS
    parts = [
        '[[routes]]\nid = "any"\nmethod = "*"\npath = "/*"',
        f'[[plans]]\nslug = "house"\nbudgets = [{{ name = "all", amount = {nanos}, unit = "nanos", '
        'period = "total", per = "account" }]',
        f'[[plans]]\nslug = "users"\nlimits = [{{ name = "each", amount = {PER_USER}, window = "366d" }}]',
    ]
    for account, more in (
        ("house", 'plan = "house"'),
        ("users", 'plan = "users"'),
        ("credit", f'keyless_credit_at = "{_LONG_AGO}"'),
        ("ui", f'keyless_credit_at = "{_LONG_AGO}"'),
    ):
        parts.append(f'[[accounts]]\nid = "{account}"\nname = "{account}"\n{more}')
        kind = '\ntype = "credit"' if account == "credit" else ""
        hashed = hash_secret(secret_of(f"{account}-1"))
        parts.append(f'[[keys]]\nid = "{account}-1"\naccount = "{account}"\nsha256 = "{hashed}"{kind}')
    parts += [
        f'[[grants]]\nid = "first-{account}"\naccount = "{account}"\namount_nanos = {nanos}'
        for account in ("credit", "ui")
    ]
    return "\n\n".join(parts) + "\n"
