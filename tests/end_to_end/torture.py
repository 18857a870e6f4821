"""
The program that `test_kill` kills: it uses Tollkeeper in every way at once and says what was acknowledged.

    python -m tests.end_to_end.torture DIRECTORY JOURNAL SEED work|check

It first holds the directory against the journal, the lines that earlier runs printed before they were killed;
exit code 1 and a message mean that something acknowledged is lost, or counts twice. With `work` it goes on,
one JSON line per thing that was begun (`try`) or is durable (`ack`), until somebody kills it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tollkeeper import Admission, Denial, Outcome, Tollkeeper, Usage, UsageQuery
from tollkeeper.domain.catalog import Budget, Grant
from tollkeeper.domain.events import Event
from tollkeeper.errors import HoldEnded, HoldUnknown, TollkeeperError
from tollkeeper.gate.gate import NO_USAGE
from tollkeeper.services.tickets import Ticket

SETUP = """
[[accounts]]
id = "acme"
name = "A"
[[plans]]
slug = "pro"
[[plans.limits]]
name = "rpm"
amount = 1_000_000_000
algorithm = "sliding"
[[plans.budgets]]
name = "spend"
amount = 1_000_000_000_000_000
period = "5h"
per = "key"
[[keys]]
id = "plain"
account = "acme"
plan = "pro"
sha256 = "%s"
[[keys]]
id = "credit"
account = "acme"
type = "credit"
sha256 = "%s"
[[grants]]
id = "first"
account = "acme"
amount_nanos = 1_000_000_000_000_000
[[routes]]
id = "any"
method = "*"
path = "/*"
price_nanos = 3
[[budgets]]
id = "all"
account = "acme"
amount = 1_000_000_000_000_000
period = "day"
"""
PLAIN, CREDIT = "tk_plain_secret_of_the_torture", "tk_credit_secret_of_the_torture"
HOLD_S = 86_400
RETRIED_MAX = 30


def say(kind: str, what: str, **fields: Any) -> None:
    """Print one line at once, whole: whoever kills us must not lose what we said."""
    os.write(1, (json.dumps({"kind": kind, "what": what, **fields}) + "\n").encode())


def batch_of(name: str) -> list[dict[str, Any]]:
    """The events of a batch, the same every time: a retry sends what was sent."""
    chance = random.Random(name)
    now = datetime.fromtimestamp(int(name.split("-")[1]), UTC)
    return [
        {
            "id": f"{name}-{index}",
            "time": now.isoformat(),
            "key_id": chance.choice(["plain", "credit"]),
            "cost_nanos": chance.randrange(1_000),
            "tokens": {"prompt": chance.randrange(100)},
        }
        for index in range(chance.randrange(1, 60))
    ]


class Worker:
    """All that goes on at once in one run."""

    def __init__(self, toll: Tollkeeper, seed: int) -> None:
        self.toll = toll
        self.seed = seed
        self.run = f"{seed}-{int(time.time())}"
        self.amendable: list[str] = []

    def work(self) -> None:
        jobs = [self.requests, self.requests, self.holds, self.holds, self.batches, self.batches]
        jobs += [self.amendments, self.questions, self.budgets]
        threads = [
            threading.Thread(target=self.forever, args=(job, random.Random(f"{self.seed}/{number}"), number))
            for number, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def forever(self, job: Any, chance: random.Random, number: int) -> None:
        try:
            for count in range(1_000_000):
                job(chance, f"{self.run}-{number}-{count}")
        except BaseException as exc:
            say("fail", repr(exc))
            os._exit(2)

    def requests(self, chance: random.Random, name: str) -> None:
        admission = self.toll.admit(chance.choice([PLAIN, CREDIT]), "POST", "/v1/x")
        assert isinstance(admission, Admission), admission
        if chance.random() < 0.1:
            self.toll.void(admission)
            return
        wait = chance.random() < 0.7
        record = self.toll.settle(
            admission, Outcome(usage=Usage(cost_nanos=chance.randrange(1_000))), wait=wait
        )
        say("ack" if wait else "try", "event", id=record.id, cost=record.cost_nanos)

    def holds(self, chance: random.Random, name: str) -> None:
        holds = self.toll.installation.holds
        name = f"h{name}"
        secret = chance.choice([PLAIN, CREDIT])
        say("try", "hold", id=name)
        found = holds.authorize(secret, "GET", "/v1/h", NO_USAGE, Ticket(), hold_id=name, ttl_s=HOLD_S)
        assert not isinstance(found, Denial), found
        found[1].wait()
        say("ack", "hold", id=name)
        choice = chance.random()
        if choice < 0.6:
            cost = chance.randrange(1_000)
            say("try", "settle", id=name, cost=cost)
            _, ticket = holds.settle_hold(name, Outcome(usage=Usage(cost_nanos=cost)), Ticket())
            assert ticket is not None
            ticket.wait()
            say("ack", "settle", id=name, cost=cost)
        elif choice < 0.9:
            say("try", "void", id=name)
            _, ticket = holds.void_hold(name, Ticket())
            assert ticket is not None
            ticket.wait()
            say("ack", "void", id=name)

    def batches(self, chance: random.Random, name: str) -> None:
        say("try", "batch", id=name)
        result = self.toll.record(batch_of(name))
        assert (result.duplicates, result.rejections) == (0, []), result
        say("ack", "batch", id=name)
        self.amendable.append(name)

    def amendments(self, chance: random.Random, name: str) -> None:
        if not self.amendable:
            # Nothing to amend yet. A pause of the load, not a wait for a result: the journal is what is checked.
            time.sleep(0.001)
            return
        event = chance.choice(batch_of(chance.choice(self.amendable)))["id"]
        amend = self.toll.installation.amend
        cost = None if chance.random() < 0.3 else chance.randrange(1_000)
        say("try", "amend", id=f"a{name}", event=event, cost=cost)
        try:
            if cost is None:
                amend.void("acme", event, f"a{name}")
            else:
                amend.amend("acme", event, f"a{name}", Event(id="-", time="-", cost_nanos=cost))
        except TollkeeperError as exc:
            # Voided before, or the usage store is busy: nothing was done.
            say("note", type(exc).__name__)
            return
        say("ack", "amend", id=f"a{name}", event=event, cost=cost)

    def questions(self, chance: random.Random, name: str) -> None:
        query = UsageQuery(account_id="acme", from_us=0, to_us=2**52, group_by=("key",), granularity="hour")
        self.toll.usage(query)

    def budgets(self, chance: random.Random, name: str) -> None:
        if chance.random() < 0.5:
            id_ = f"b{chance.randrange(6)}"
            period = chance.choice(["day", "month", "total", "1h"])
            self.toll.manage.put(Budget(id=id_, account="acme", amount=10**15, period=period))
        else:
            grant = Grant(id=f"g{name}", account="acme", amount_nanos=chance.randrange(1, 1_000))
            say("try", "grant", id=grant.id, amount=grant.amount_nanos)
            self.toll.manage.put(grant)
            say("ack", "grant", id=grant.id, amount=grant.amount_nanos)
        # Budgets change some times a second, as no provider does more often; nothing is checked by time.
        time.sleep(0.05)


class Check:
    """Holds what is stored against the journal."""

    def __init__(self, toll: Tollkeeper, journal: list[dict[str, Any]]) -> None:
        self.toll = toll
        self.said: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
        self.amends: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in journal:
            if "id" in line:
                self.said[line["kind"], line["what"]][line["id"]] = line
            if (line["kind"], line["what"]) == ("try", "amend"):
                self.amends[line["event"]].append(line)
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.wrong: list[str] = []

    @staticmethod
    def recent(said: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The last of what was said: all of it again in every round would take longer and longer."""
        return dict(list(said.items())[-RETRIED_MAX:])

    def read(self) -> None:
        self.rows.clear()
        assert self.toll.installation.reports.fresh(None)
        for piece in self.toll.installation.store.export("acme", 0, 2**52):
            for row in piece.to_pylist():
                self.rows[row["id"]].append(row)

    def all(self) -> list[str]:
        """Return everything that is not as it was acknowledged."""
        self.read()
        self.records_are_whole()
        self.requests()
        self.holds()
        self.batches()
        self.amendments()
        self.grants()
        self.retry()
        before = len(self.rows)
        self.read()
        self.records_are_whole()
        known = {id_ for name in self.said["try", "batch"] for id_ in _ids(name)}
        known |= (
            set(self.said["try", "event"]) | set(self.said["ack", "event"]) | set(self.said["try", "settle"])
        )
        lost_words = [id_ for id_ in self.rows if id_ not in known]
        # Of a request whose line the kill cut off nothing is known but that it may be there.
        say("note", "rows", before=before, after=len(self.rows), unspoken=len(lost_words))
        verdict = self.toll.verify()
        self.expect(verdict.ok, f"verify: {verdict}")
        return self.wrong

    def expect(self, fact: bool, what: str) -> None:
        if not fact:
            self.wrong.append(what)

    def current(self, id_: str) -> int | None:
        """The cost in force of an event, None when there is none."""
        rows = self.rows.get(id_, [])
        if sum(row["sign"] for row in rows) == 0:
            return None
        return int(max(rows, key=lambda row: (row["revision"], row["sign"]))["cost_nanos"])

    def records_are_whole(self) -> None:
        for id_, rows in self.rows.items():
            places = sorted((row["revision"], -row["sign"]) for row in rows)
            last = places[-1][0]
            full = [(revision, sign) for revision in range(last + 1) for sign in (-1, 1)]
            self.expect(places in (full, full[:-1]), f"{id_}: rows {places}")

    def requests(self) -> None:
        for id_, line in self.said["ack", "event"].items():
            self.expect(self.current(id_) == line["cost"], f"request {line} is {self.current(id_)}")
        for id_, line in self.said["try", "event"].items():
            self.expect(self.current(id_) in (None, line["cost"]), f"request {line} is {self.current(id_)}")

    def holds(self) -> None:
        still_open = {hold.hold_id for hold in self.toll.installation.ledger.open_holds()}
        self.expect(self.toll.installation.holds.open_count == len(still_open), "holds are restored")
        for id_ in self.said["ack", "hold"]:
            settled, voided = id_ in self.said["ack", "settle"], id_ in self.said["ack", "void"]
            ending = id_ in self.said["try", "settle"] or id_ in self.said["try", "void"]
            if settled or voided:
                self.expect(id_ not in still_open, f"hold {id_} was ended and is open")
            elif not ending:
                self.expect(id_ in still_open, f"hold {id_} is gone")
        for id_, line in self.said["try", "settle"].items():
            allowed = [line["cost"]] if id_ in self.said["ack", "settle"] else [line["cost"], None]
            self.expect(self.current(id_) in allowed, f"settled hold {line} is {self.current(id_)}")
            self.expect((self.current(id_) is None) == (id_ in still_open), f"hold {id_} is open and settled")
        for id_ in self.said["try", "void"]:
            self.expect(self.current(id_) is None, f"hold {id_} was voided and counts")

    def batches(self) -> None:
        for name in self.said["try", "batch"]:
            there = [id_ in self.rows for id_ in _ids(name)]
            self.expect(all(there) or not any(there), f"batch {name} is there in part")
            if name in self.said["ack", "batch"]:
                self.expect(all(there), f"batch {name} is lost")
            for event in batch_of(name) if all(there) else []:
                if not self.amends[event["id"]]:
                    cost = self.current(event["id"])
                    self.expect(cost == event["cost_nanos"], f"event {event} costs {cost}")

    def amendments(self) -> None:
        for event, tries in self.amends.items():
            cost = self.current(event)
            done = [n for n, line in enumerate(tries) if line["id"] in self.said["ack", "amend"]]
            allowed = [line["cost"] for line in tries[done[-1] if done else 0 :]]
            if not done:
                allowed += [e["cost_nanos"] for e in batch_of(event.rpartition("-")[0]) if e["id"] == event]
            self.expect(cost in allowed, f"event {event} costs {cost}, not one of {allowed}: {tries}")

    def grants(self) -> None:
        book, _ = self.toll.installation.ledger.book("acme")
        posted = {grant.grant_id: grant.amount_nanos for grant in book.grants}
        for id_, line in self.said["ack", "grant"].items():
            self.expect(posted.get(id_) == line["amount"], f"grant {id_} is {posted.get(id_)}")

    def retry(self) -> None:
        """Send everything again, as somebody does who never got an answer: only what is new may count."""
        for name in self.recent(self.said["try", "batch"]):
            events = batch_of(name)
            there = events[0]["id"] in self.rows
            for new in (0 if there else len(events), 0):
                result = self.toll.record(events)
                right = (result.accepted, result.duplicates) == (new, len(events) - new)
                self.expect(right and not result.rejections, f"retry of {name}: {result}")
        amend = self.toll.installation.amend
        for id_, line in self.recent(self.said["ack", "amend"]).items():
            if line["cost"] is None:
                repeated = amend.void("acme", line["event"], id_).repeated
            else:
                changes = Event(id="-", time="-", cost_nanos=line["cost"])
                repeated = amend.amend("acme", line["event"], id_, changes).repeated
            self.expect(repeated, f"correction {id_} was not known")
        holds = self.toll.installation.holds
        for id_, line in self.recent(self.said["ack", "settle"]).items():
            settled, ticket = holds.settle_hold(id_, Outcome(usage=Usage(cost_nanos=line["cost"])), Ticket())
            self.expect(settled.replayed and ticket is None, f"hold {id_} was settled again")
        for id_ in self.recent(self.said["ack", "void"]):
            try:
                holds.settle_hold(id_, Outcome(), Ticket())
                self.expect(False, f"voided hold {id_} was settled")
            except (HoldEnded, HoldUnknown):
                continue
        for line in self.said["ack", "grant"].values():
            grant = Grant(id=line["id"], account="acme", amount_nanos=line["amount"])
            self.expect(
                self.toll.manage.put(grant).action == "unchanged", f"grant {line['id']} was posted again"
            )


def _ids(name: str) -> list[str]:
    return [event["id"] for event in batch_of(name)]


def main(directory: str, journal: str, seed: str, mode: str) -> int:
    from tollkeeper.domain.keys import hash_secret

    lines = [json.loads(line) for line in Path(journal).read_text().splitlines()]
    with Tollkeeper.open(directory) as toll:
        say("note", "open")
        toll.apply(SETUP % (hash_secret(PLAIN), hash_secret(CREDIT)))
        say("note", "applied")
        wrong = Check(toll, lines).all()
        if wrong:
            say("wrong", "\n".join(wrong[:20]))
            return 1
        say("note", "checked", lines=len(lines))
        if mode == "work":
            Worker(toll, int(seed)).work()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
