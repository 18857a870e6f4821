"""
The demonstration of one vendor's dialect: a month of history, traffic through the gate, and the vendor's own call.

The catalog, the account and its keys are the profile's (`Profile.catalog`, its `sample`); the routes of the catalog say
which requests there were.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from tollkeeper.api.profile_guide import curl_of, filled, url_of
from tollkeeper.catalog.declaration import parse_declaration
from tollkeeper.console.output import stdout
from tollkeeper.console.verify_table import print_verdict, with_store_differences
from tollkeeper.demo.client import ApiAnswer, ApiClient
from tollkeeper.domain.catalog import Account, Entry, Key, Plan, Route, Subscription
from tollkeeper.domain.instants import to_text
from tollkeeper.errors import Unavailable
from tollkeeper.profiles.base import Endpoint, Profile

HISTORY_DAYS: Final = 30
HISTORY_EVENTS: Final = 600
GATE_REQUESTS: Final = 30
LINES_SHOWN_MAX: Final = 60
"""Lines of one answer; the statistics of AnyLayer have some hundreds."""
_MODELS: Final = {
    "chat": ("gpt-4o-mini", "gpt-4o-mini", "gpt-4o"),
    "completion": ("gpt-4o-mini",),
    "embedding": ("text-embedding-3-small",),
}
"""Kind of event → models that its requests call, which cost by tokens."""


class _Caller(NamedTuple):
    """One key of the sample, with the routes that its plan includes."""

    key: Key
    routes: list[Route]


class DialectStory:
    """
    Sets up the sample of *profile*, sends its traffic, and shows the vendor's calls.

    Args:
        say: Takes a line for people.
        stopped: Asked between requests: whether to end early.
    """

    def __init__(
        self, api: ApiClient, profile: Profile, *, say: Callable[[str], None], stopped: Callable[[], bool]
    ) -> None:
        self._api = api
        self._profile = profile
        self._say = say
        self._stopped = stopped
        self._secrets: dict[str, str] = {}
        self._callers: list[_Caller] = []
        self._others: list[Key] = []
        self._session: str | None = None

    def run(self) -> None:
        """
        Set up and send everything.

        Raises:
            Unavailable: The server does not answer, or not as it should.
        """
        text = f"{self._profile.catalog}\n{sample_of(self._profile)}"
        entries = parse_declaration(text)
        applied = self._api.get("POST", "/apply", text.encode(), media_type="application/toml")
        self._secrets = {issued["entry"]["id"]: issued["secret"] for issued in applied["issued"]}
        keys = [entry for entry in entries if isinstance(entry, Key)]
        self._callers = [_Caller(key, _routes_of(key, entries)) for key in keys if key.is_metered]
        self._others = [key for key in keys if not key.is_metered]
        self._say(
            f"Set up {len(entries)} entries: the plans and routes of {self._profile.name}, and an account."
        )
        self._history()
        self._gate()

    def tell(self, url: str) -> bool:
        """Show the vendor's calls with their answers, and whether everything agrees; return whether it does."""
        for index, endpoint in enumerate(self._examples()):
            values = self._values(endpoint)
            console = stdout()
            console.print(f"\n# {_whose(endpoint, self._profile)}", style="bold", soft_wrap=True)
            console.print(curl_of(endpoint, url, values), soft_wrap=True)
            answer = self._ask(endpoint, values)
            lines = msgspec.json.format(msgspec.json.encode(answer.body), indent=2).decode().splitlines()
            most = LINES_SHOWN_MAX if index == 0 else LINES_SHOWN_MAX // 3
            console.print(f"HTTP {answer.status}", soft_wrap=True)
            for line in lines[:most]:
                console.print(line, soft_wrap=True)
            if len(lines) > most:
                console.print(f"… {len(lines) - most} lines more")
        print()
        verdict = self._api.get("POST", "/verify")
        print_verdict(with_store_differences(verdict))
        return bool(verdict["ok"])

    # -- traffic --------------------------------------------------------------------------------------

    def _history(self) -> None:
        rng = random.Random(self._profile.name)
        now = datetime.now(UTC)
        # More of it lately, and by day: as a product that grows.
        ages = [HISTORY_DAYS * 86_400 * (1 - rng.random() ** 0.7) for _ in range(HISTORY_EVENTS)]
        lines = []
        for number, age_s in enumerate(sorted(ages, reverse=True)):
            caller = rng.choices(self._callers, weights=range(len(self._callers), 0, -1))[0]
            route = rng.choice(caller.routes)
            used = _used(route, rng)
            event = {
                "id": f"history-{number:05d}",
                "time": to_text(now - timedelta(seconds=60 + age_s)),
                "key_id": caller.key.id,
                "method": _method(route),
                "route": _template(route),
                "kind": route.event_kind,
                **used,
            }
            lines.append(msgspec.json.encode(event))
        booked = self._api.get("POST", "/events", b"\n".join(lines), media_type="application/x-ndjson")
        if booked["rejected"]:
            raise Unavailable(
                f"The server rejected {booked['rejected']} events of the history: {booked['errors'][0]}"
            )
        self._say(f"Booked {booked['accepted']} events of the last {HISTORY_DAYS} days.")

    def _gate(self) -> None:
        rng = random.Random(GATE_REQUESTS)
        settled = 0
        refused: Counter[int] = Counter()
        answers: dict[int, Any] = {}
        for _ in range(GATE_REQUESTS):
            if self._stopped():
                return
            caller = self._callers[0]
            route = rng.choice(caller.routes)
            used = _used(route, rng)
            asked = {"key": self._secrets[caller.key.id], "method": _method(route), "path": _path(route)}
            expected = {name: used[name] for name in ("model", "tokens") if name in used}
            held = self._api.send("POST", "/authorize", {**asked, **expected})
            if held.status != 200:
                refused[held.status] += 1
                answers.setdefault(held.status, held.body)
                continue
            self._api.get("POST", "/settle", {"hold_id": held.body["hold_id"], **used})
            settled += 1
        self._say(
            f"Sent {GATE_REQUESTS} requests through the gate: {settled} passed and settled, "
            f"{refused.total()} refused{'' if refused else '.'}"
            + (", in the vendor's words:" if refused else "")
        )
        for status, count in refused.most_common():
            self._say(f"  {count} × HTTP {status} {msgspec.json.encode(answers[status]).decode()}")

    # -- the vendor's calls ---------------------------------------------------------------------------

    def _examples(self) -> list[Endpoint]:
        """Return the endpoints that are read with what is set up here; of aliases the first."""
        found: dict[Any, Endpoint] = {}
        for endpoint in self._profile.endpoints:
            if endpoint.method != "GET" or "{" in endpoint.path:
                continue
            if endpoint.credential.header and self._secret(endpoint) is None:
                continue
            name = endpoint.path.removeprefix("/api")
            found.setdefault((name, endpoint.credential.kind, endpoint.query), endpoint)
        return list(found.values())

    def _secret(self, endpoint: Endpoint) -> str | None:
        kinds = endpoint.credential.kind.split(" or ")
        if "key" in kinds:
            return self._secrets[self._callers[0].key.id]
        if "management key" in kinds and self._others:
            return self._secrets[self._others[0].id]
        if "session" in kinds:
            if self._session is None:
                asked = {"account": self._callers[0].key.account, "user": "ada"}
                self._session = self._api.get("POST", "/sessions", asked)["token"]
            return self._session
        return None

    def _values(self, endpoint: Endpoint) -> dict[str, str]:
        return {
            "secret": self._secret(endpoint) or "",
            "project": self._callers[0].key.project or "",
            "subscription": self._callers[0].key.subscription or "",
        }

    def _ask(self, endpoint: Endpoint, values: dict[str, str]) -> ApiAnswer:
        header = filled(endpoint.credential.header, values)
        name, _, value = header.partition(": ")
        return self._api.ask(endpoint.method, url_of(endpoint, "", values), {name: value} if name else {})


def sample_of(profile: Profile) -> str:
    """Return the declarative file of an account of *profile*: its own, or one with a key and nothing else."""
    text: str = getattr(profile, "sample", "")
    return text or (
        f'[[accounts]]\nid = "northwind"\nname = "Northwind"\n'
        f'[[keys]]\nid = "northwind-live"\naccount = "northwind"\nprofile = "{profile.name}"\n'
    )


def _routes_of(key: Key, entries: list[Entry]) -> list[Route]:
    """Return the routes that *key* may call and that are charged for; those that are free if there are no others."""
    by_id = {(entry.kind, entry.entry_id): entry for entry in entries}
    account = by_id["accounts", key.account]
    assert isinstance(account, Account)
    subscription = by_id.get(("subscriptions", key.subscription or ""))
    slug = key.plan or (subscription.plan if isinstance(subscription, Subscription) else account.plan)
    plan = by_id.get(("plans", slug or ""))
    layers = plan.layers if isinstance(plan, Plan) else None
    routes = [entry for entry in entries if isinstance(entry, Route)]
    allowed = [route for route in routes if layers is None or not route.layer or route.layer in layers]
    return [route for route in allowed if not route.free] or allowed


def _used(route: Route, rng: random.Random) -> dict[str, Any]:
    """Return what one request to *route* used, as an event and a settlement state it."""
    failed = rng.random() < 0.03
    used: dict[str, Any] = {
        "status": 502 if failed else 200,
        "latency_ms": round(rng.lognormvariate(5.5, 0.6), 1),
        "bytes_out": int(rng.lognormvariate(7, 0.8)),
    }
    if failed:
        return {**used, "error_type": "upstream_error"}
    models = _MODELS.get(route.event_kind)
    if models:
        used["model"] = rng.choice(models)
        used["tokens"] = {"prompt": int(rng.lognormvariate(6.5, 0.5)) + 1}
        if route.event_kind != "embedding":
            used["tokens"]["completion"] = int(rng.lognormvariate(4.6, 0.6)) + 1
        used["cache"] = "hit" if rng.random() < 0.2 else "miss"
    return used


def _method(route: Route) -> str:
    return "GET" if route.method == "*" else route.method


def _template(route: Route) -> str:
    return route.path[:-1] + "status" if route.path.endswith("*") else route.path


def _path(route: Route) -> str:
    return filled(_template(route), {}).replace("{", "").replace("}", "")


def _whose(endpoint: Endpoint, profile: Profile) -> str:
    credential = endpoint.credential.kind
    with_ = "without a credential" if credential == "none" else f"with a {credential}"
    return f"As a client of {profile.name} asks, {with_}:"
