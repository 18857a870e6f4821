"""
Faults that take a part of an installation back in time, or fill its disk: each on a small installation of its own.

One caller sends batches and spends in three phases (before the copy, between copy and restore, after the restore), so
that it knows of each event when it was acknowledged; `gone_back` decides.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Final, Literal, NamedTuple

import msgspec

from tollkeeper.console.failures import Failure
from tollkeeper.console.server_client import Server
from tollkeeper.domain.keys import hash_secret
from tollkeeper.errors import Unavailable
from tollkeeper.prove.faults import Fault
from tollkeeper.prove.gone_back import COST_NANOS, Acknowledged, FinalAnswers, check_gone_back
from tollkeeper.prove.ledgers import LedgerPlace, PostgresqlLedger, SqliteLedger
from tollkeeper.prove.look import Counted, becomes_complete, outbox_records, usage, verify
from tollkeeper.prove.oracle import Finding
from tollkeeper.prove.plan import secret_of
from tollkeeper.prove.server import OPERATOR_KEY, ServerProcess

Variant = Literal[
    "older ledger",
    "empty ledger",
    "ledger of another installation",
    "ledger first",
    "usage first",
    "stopped",
    "killed",
]

BATCH: Final = 220
"""Events of a batch: more than the server answers out of its memory, so that a usage query has them delivered."""
DISK_MB: Final = 96
"""Of the disk that is filled."""
REFUSAL_S: Final = 10.0
"""A server that answers for so long that it is not ready has refused."""
QUIET_S_MAX: Final = 180.0
COMPLETE_S_MAX: Final = 10.0
_ACCOUNT: Final = "kept"
_KEY: Final = "kept-1"
_HOLD_S: Final = 3_600
_AMPLE: Final = 10**15


class Skipped(Exception):
    """The machine does not let a fault be made. `str(skipped)` says why."""


class Drill(NamedTuple):
    """
    What one fault does.

    Attributes:
        between: Batches between copy and restore.
        after: Batches after the restore.
        stop: How the server ends before the restore.
        kill_after: It is killed again after so many batches that follow the restore; None leaves it alone.
    """

    fault: Fault
    variant: Variant
    between: int
    after: int
    stop: Literal["stop", "kill"]
    kill_after: int | None


def plan_drill(seed: int, number: int, fault: Fault) -> Drill:
    """Return what *fault* does in round *number*."""
    chance = Random(f"{seed}/{number}/{fault}")
    variants: dict[Fault, tuple[Variant, ...]] = {
        "restores": ("older ledger", "older ledger", "empty ledger", "ledger of another installation"),
        "fail-over": ("older ledger",),
        "copies": ("ledger first", "usage first"),
        "full-disk": ("stopped", "killed"),
    }
    variant = chance.choice(variants[fault])
    if fault == "restores" and number == 1:
        variant = "older ledger"
    after = chance.randrange(2, 4)
    stop: Literal["stop", "kill"] = "stop" if fault == "restores" or variant == "stopped" else "kill"
    return Drill(
        fault,
        variant,
        # A replica is some commits behind; a backup some hours.
        between=chance.randrange(1, 3) if fault == "fail-over" else chance.randrange(2, 5),
        after=after,
        stop=stop,
        kill_after=chance.randrange(1, after) if chance.random() < 0.5 else None,
    )


def run_drill(drill: Drill, seed: int, number: int, directory: Path, ledger_url: str | None) -> list[Finding]:
    """
    Make the fault on a new installation in *directory*, which is there and empty; return what is wrong.

    Raises:
        Skipped: The machine does not let it be made.
        Unavailable: The server cannot start where it must.
    """
    if drill.fault == "full-disk":
        with (
            _small_disk(directory / "disk") as disk,
            open_site(disk / "data", directory, ledger_url, number) as site,
        ):
            return _full_disk(site, drill, disk)
    with open_site(directory / "data", directory, ledger_url, number) as site:
        if drill.fault == "copies":
            return _copied(site, drill)
        return _restored(site, drill, Random(f"{seed}/{number}/again"))


class Site:
    """One small installation, its caller, and what that was answered."""

    def __init__(self, server: ServerProcess, ledger: LedgerPlace) -> None:
        self.server = server
        self.ledger = ledger
        self.acknowledged: set[str] = set()
        self.accepted = 0
        """Events that were new, by the answers."""
        self.odd: list[Finding] = []
        self._client = Server(server.url, OPERATOR_KEY)
        self._sent = 0

    def set_up(self) -> None:
        declaration = (
            '[[routes]]\nid = "any"\nmethod = "*"\npath = "/*"\n'
            f'[[accounts]]\nid = "{_ACCOUNT}"\nname = "{_ACCOUNT}"\n'
            f'[[keys]]\nid = "{_KEY}"\naccount = "{_ACCOUNT}"\nsha256 = "{hash_secret(secret_of(_KEY))}"\n'
            f'[[budgets]]\nid = "ample"\naccount = "{_ACCOUNT}"\nkey = "{_KEY}"\namount = {_AMPLE}\nperiod = "total"\n'
        )
        self._client.call("POST", "/apply", body=declaration.encode(), media_type="application/toml")

    def batches(self, count: int) -> list[tuple[str, ...]]:
        """Send *count* new batches, each delivered to the usage store by itself; return their ids."""
        return [self.batch() for _ in range(count)]

    def batch(self) -> tuple[str, ...]:
        ids = tuple(f"e{self._sent}-{index}" for index in range(BATCH))
        self._sent += 1
        self.post(ids)
        self.deliver()
        return ids

    def post(self, ids: Sequence[str]) -> None:
        """Send events, new or again."""
        body = [
            {
                "id": id_,
                "time": "2025-01-01T00:00:00Z",
                "key_id": _KEY,
                "cost_nanos": COST_NANOS,
                "tags": {"op": id_},
            }
            for id_ in ids
        ]
        answer = self._client.call("POST", "/events", body=msgspec.json.encode(body))
        if answer["rejected"]:
            self.odd.append(Finding("other", f"events were rejected: {answer['errors'][0]}", tuple(ids[:1])))
            return
        self.acknowledged |= set(ids)
        self.accepted += answer["accepted"]

    def hold(self) -> str:
        """Return the id of a new hold."""
        self._sent += 1
        id_ = f"h{self._sent}"
        body = {
            "key": secret_of(_KEY), "path": "/v1/any", "id": id_, "cost_nanos": COST_NANOS, "ttl_s": _HOLD_S,
            "tags": {"op": id_},
        }  # fmt: skip
        self._client.call("POST", "/authorize", body=msgspec.json.encode(body))
        return id_

    def settle(self, id_: str) -> None:
        body = {"hold_id": id_, "cost_nanos": COST_NANOS}
        self._client.call("POST", "/settle", body=msgspec.json.encode(body))
        self.acknowledged.add(id_)

    def deliver(self) -> None:
        """
        Return once the usage store has all that is acknowledged.

        Raises:
            Unavailable: It does not get it.
        """
        # No answer from memory: a query that was not asked before has waiting records delivered first.
        never = [("route", f"/asked-{time.monotonic_ns()}")]
        list(usage(self._client, (_ACCOUNT,), "key", never, incomplete=True))
        until = time.monotonic() + QUIET_S_MAX
        while outbox_records(self.server.url, OPERATOR_KEY):
            if time.monotonic() > until:
                raise Unavailable(f"The usage store has not got all records after {QUIET_S_MAX:g} s.")
            time.sleep(0.1)

    def answers(self, complete_s: float = COMPLETE_S_MAX) -> FinalAnswers:
        """Ask everything, as any customer and the operator would; the answers have *complete_s* to become complete."""
        differences = verify(self._client)
        # A store that lacks something rightly says so for good.
        complete = becomes_complete(self._client, (_ACCOUNT,), complete_s)
        rollup = dict(usage(self._client, (_ACCOUNT,), "key", [], incomplete=True))
        budgets = self._client.call("GET", f"/keys/{_KEY}/state")["budgets"]
        return FinalAnswers(
            dict(usage(self._client, (_ACCOUNT,), "tag.op", [("denied_reason", "")], incomplete=True)),
            rollup.get(_KEY, Counted(0, 0)),
            next((int(budget["used"]) for budget in budgets if budget["name"] == "ample"), 0),
            differences,
            complete,
        )


def _restored(site: Site, drill: Drill, chance: Random) -> list[Finding]:
    """Put an older ledger, or a wrong one, beside the usage store."""
    site.set_up()
    first = site.batches(2)
    holds = [site.hold() for _ in range(4)]
    for id_ in holds[:2]:
        site.settle(id_)
    if drill.variant == "older ledger":
        copy = site.ledger.copy(site.server)
    before = frozenset(site.acknowledged)
    first += site.batches(drill.between)
    if drill.fault == "fail-over":
        # Acknowledged, and perhaps not delivered when the server dies.
        site.post(ids := tuple(f"late-{index}" for index in range(20)))
        first.append(ids)
    for id_ in holds[2:]:
        site.settle(id_)
    between = frozenset(site.acknowledged - before)
    _end(site, drill)
    if drill.variant != "older ledger":
        return site.odd + _wrong_ledger(site, drill)
    site.ledger.put_back(copy)
    site.server.start()
    site.acknowledged, site.accepted = set(), 0
    # Every hold that the older ledger still has open is ended, so that the counter has no open ones.
    again = [
        lambda: site.post(chance.choice(first)),
        lambda: site.post(first[-1]),
        lambda: site.settle(holds[2]),
        lambda: site.settle(holds[3]),
    ]
    _go_on(site, drill, again)
    settled = len(frozenset(holds) & site.acknowledged)
    return site.odd + check_gone_back(
        Acknowledged(before, between, frozenset(site.acknowledged), before, site.accepted, settled),
        site.answers(),
    )


def _copied(site: Site, drill: Drill) -> list[Finding]:
    """Copy a running installation in two parts, with traffic between them, and go on with the copy."""
    site.set_up()
    first = site.batches(2)
    before = frozenset(site.acknowledged)
    usage_store, copied = site.server.directory / "usage", site.server.directory.with_name("usage-copied")

    def copy_usage() -> None:
        with site.server.frozen():
            shutil.copytree(usage_store, copied, symlinks=True)

    if drill.variant == "usage first":
        copy_usage()
    else:
        ledger = site.ledger.copy(site.server)
    first += site.batches(drill.between)
    between = frozenset(site.acknowledged - before)
    if drill.variant == "usage first":
        ledger = site.ledger.copy(site.server)
    else:
        copy_usage()
    charged = before | between if drill.variant == "usage first" else before
    site.server.kill()
    site.ledger.put_back(ledger)
    shutil.rmtree(usage_store)
    copied.rename(usage_store)
    if not site.server.opens(REFUSAL_S):
        refused = _refused(site, f"{drill.variant}")
        # A newer ledger beside an older store may be refused, since the store lacks what was acknowledged.
        if drill.variant == "usage first":
            return site.odd + refused
        return [*site.odd, *refused, Finding("other", f"{drill.variant}: the server does not open the copy")]
    site.acknowledged, site.accepted = set(), 0
    _go_on(site, drill, [lambda: site.post(first[0]), lambda: site.post(first[-1])])
    return site.odd + check_gone_back(
        Acknowledged(before, between, frozenset(site.acknowledged), charged, site.accepted), site.answers()
    )


def _go_on(site: Site, drill: Drill, again: Sequence[Callable[[], object]]) -> None:
    """Send what is new and what was sent before, in turn, with a kill on the way where the plan has one."""
    for index in range(max(drill.after, len(again))):
        if index == drill.kill_after:
            site.server.kill()
            site.server.start()
        if index < drill.after:
            site.batch()
        if index < len(again):
            again[index]()
    site.deliver()


def _wrong_ledger(site: Site, drill: Drill) -> list[Finding]:
    """Put an empty ledger, or another installation's, beside the store: it must be refused, with the reason."""
    other = ServerProcess(
        site.server.directory.with_name("other"),
        site.server.directory.with_name("other.log"),
        site.ledger.url,
    )
    site.ledger.clear()
    if drill.variant == "ledger of another installation":
        try:
            other.start()
            other.stop()
        finally:
            other.kill()
        if site.ledger.url is None:
            site.ledger.put_back(SqliteLedger(other.directory).copy(other))
    if site.server.opens(REFUSAL_S):
        stored = len(site.acknowledged)
        return [
            Finding("other", f"{drill.variant}: the server opens it beside a usage store of {stored} events")
        ]
    return _refused(site, drill.variant)


def _refused(site: Site, what: str) -> list[Finding]:
    if "ledger" in site.server.refusal():
        return []
    return [
        Finding(
            "other", f"{what}: refused without a word about the ledger: {site.server.refusal() or 'nothing'}"
        )
    ]


def _full_disk(site: Site, drill: Drill, disk: Path) -> list[Finding]:
    """Let the disk fill under the server, start it while it is full, make room, and start it again."""
    full = [f"full-{index}" for index in range(BATCH)]
    site.set_up()
    site.batches(2)
    # Records that wait for the usage store: the next start has to insert them.
    site.post([f"waiting-{index}" for index in range(BATCH)])
    filler = disk / "filler"
    _fill(filler)
    _attempt(site, full)
    _end(site, drill)
    _fill(filler)
    if site.server.opens(REFUSAL_S):
        _attempt(site, full)
    site.server.kill()
    filler.unlink()
    try:
        site.server.start()
    except Unavailable as exc:
        return [*site.odd, Finding("other", f"with room on the disk again: {exc}")]
    # It may have been booked while the disk was full: sent again, it counts once.
    site.post(full)
    site.batches(drill.after)
    ids = frozenset(site.acknowledged)
    return site.odd + check_gone_back(
        Acknowledged(ids, frozenset(), ids, ids, 0, went_back=False), site.answers(QUIET_S_MAX)
    )


def _attempt(site: Site, ids: Sequence[str]) -> None:
    """Send events that may be refused."""
    with suppress(Failure):
        site.post(ids)


def _end(site: Site, drill: Drill) -> None:
    if drill.stop == "stop":
        site.server.stop()
    else:
        site.server.kill()


def _fill(path: Path) -> None:
    """Write until there is no room, beside what is there."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


@contextmanager
def open_site(data: Path, directory: Path, ledger_url: str | None, number: int) -> Iterator[Site]:
    """
    Run a server on a new installation; its log is in *directory*.

    Raises:
        Skipped: The ledger cannot have a database of its own.
    """
    ledger: LedgerPlace
    if ledger_url is None:
        ledger = SqliteLedger(data)
    else:
        try:
            ledger = PostgresqlLedger(ledger_url, f"tollkeeper_prove_{os.getpid()}_{number}")
        except Unavailable as exc:
            raise Skipped(f"the role cannot create a database beside the one given: {exc}") from None
    server = ServerProcess(data, directory / "server.log", ledger.url)
    try:
        server.start()
        yield Site(server, ledger)
    finally:
        server.kill()
        ledger.remove()


@contextmanager
def _small_disk(path: Path) -> Iterator[Path]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=700", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Skipped("there is no mount command") from None
    if done.returncode:
        raise Skipped(f"a small disk cannot be mounted, which only root may: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)
