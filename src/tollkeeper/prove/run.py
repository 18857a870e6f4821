"""Runs the proof: rounds of traffic and kills on a throw-away installation, each checked, and all again at the end."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from tollkeeper.adapters.sql.database import check_empty, open_engine, remove_tables
from tollkeeper.console.failures import Failure
from tollkeeper.console.server_client import Server
from tollkeeper.errors import Conflict, TollkeeperError, Unavailable
from tollkeeper.prove.client import STUCK
from tollkeeper.prove.drills import Skipped, plan_drill, run_drill
from tollkeeper.prove.faults import FAULTS, GOES_BACK, IN_TRAFFIC, Fault, faults_of
from tollkeeper.prove.journal import JournaledCall, read_calls
from tollkeeper.prove.look import look, verify
from tollkeeper.prove.minting import check_minting
from tollkeeper.prove.noisy import TURN_ANSWERS
from tollkeeper.prove.oracle import KINDS, Finding, check, history
from tollkeeper.prove.plan import Round, Scale, attackers_declaration, plan_round
from tollkeeper.prove.scenarios import plan_scenario, run_scenario
from tollkeeper.prove.server import OPERATOR_KEY, ServerProcess, environment

DIRECTORY_PREFIX: Final = "tollkeeper-prove-"
SILENT_S_MAX: Final = 900
"""No client has an answer for so long: longer than any waits for one call."""
CLIENT_END_S_MAX: Final = 60
HISTORY_LINES_MAX: Final = 40


class Proof(NamedTuple):
    """
    What a run found. Findings are reported once, each with the calls that show it.

    Attributes:
        only: The faults that the run was limited to; nothing when its seed drew them.
        drawn: How often each fault was made.
        skipped: Faults that were drawn and could not be made, with the reason.
    """

    seed: int
    scale: Scale
    took_s: float
    calls: int
    tries: int
    kills: int
    verifies: int
    findings: tuple[tuple[Finding, tuple[str, ...]], ...]
    ledger: str = "SQLite"
    only: tuple[Fault, ...] = ()
    drawn: tuple[tuple[Fault, int], ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def by_fault(self) -> dict[str, dict[str, int]]:
        """The number of each fault, and the findings during it."""
        times = dict(self.drawn)
        return {
            fault: {
                "times": times.get(fault, 0),
                **{
                    kind: sum(found.kind == kind and found.fault == fault for found, _ in self.findings)
                    for kind in KINDS
                },
            }
            for fault in FAULTS
        }

    @property
    def counts(self) -> dict[str, int]:
        """Findings by kind."""
        return {kind: sum(finding.kind == kind for finding, _ in self.findings) for kind in KINDS}


def prove(
    scale: Scale,
    seed: int,
    *,
    data: str | None,
    say: Callable[[str], None],
    ledger_url: str | None = None,
    only: Sequence[Fault] = (),
) -> Proof:
    """
    Attack a new installation and return the findings.

    Args:
        only: Make these faults in every round; none lets the seed draw them.
        data: An empty directory, or one that is not there yet, to keep what is left in; None uses a temporary
            one and removes it.
        say: Takes a line for each round.
        ledger_url: An empty PostgreSQL database for the ledger, which is emptied again unless *data* is given;
            None has SQLite in the directory.

    Raises:
        BadParameter: *ledger_url* names no PostgreSQL database.
        Conflict: *data* or the database holds something.
        Unavailable: The database cannot be reached, the server cannot start, or a client got no answer.
    """
    with _directory(data) as directory, _database(ledger_url, keep=data is not None) as ledger:
        run = Run(scale, seed, directory, ledger_url, only)
        try:
            for number in range(1, scale.rounds + 1):
                say(run.round(number))
            say(run.last_look())
        finally:
            run.close()
        return run.proof()._replace(ledger=ledger)


class Run:
    """
    One run. The maker closes it, which ends every process that it started.

    Attributes:
        rounds: Of each round that is through: its plan, what its clients did, how often the server was
            killed, and the fault that its findings are of.
    """

    def __init__(
        self,
        scale: Scale,
        seed: int,
        directory: Path,
        ledger_url: str | None = None,
        only: Sequence[Fault] = ("kills",),
    ) -> None:
        self.server = ServerProcess(directory / "data", directory / "server.log", ledger_url)
        self._scale = scale
        self._seed = seed
        self._directory = directory
        self._began = time.monotonic()
        self._client = Server(self.server.url, OPERATOR_KEY)
        self._clients: list[subprocess.Popen[bytes]] = []
        self.rounds: list[tuple[Round, list[JournaledCall], int, Fault]] = []
        self._findings: dict[Finding, tuple[str, ...]] = {}
        self._verifies = 0
        self._ledger_url = ledger_url
        self._only = tuple(only)
        self._faults: Counter[Fault] = Counter()
        self._skipped: dict[str, None] = {}
        self._fault: Fault = "kills"
        """What is being done, for the findings."""

    def round(self, number: int) -> str:
        """Make the faults of one round and check them; return a line that tells of it."""
        faults = faults_of(self._seed, number, self._only)
        known, began = len(self._findings), time.monotonic()
        lines = []
        if set(faults) & set(IN_TRAFFIC):
            lines.append(_timed(partial(self._attack, number, faults)))
        lines += [_timed(partial(self._drill, number, fault)) for fault in faults if fault not in IN_TRAFFIC]
        found = list(self._findings)[known:]
        took_s = time.monotonic() - began
        return (
            f"round {number} of {self._scale.rounds}: {'; '.join(lines)}; {_counted(found)}; {took_s:.1f} s"
        )

    def _attack(self, number: int, faults: Sequence[Fault]) -> str:
        """Run the traffic of a round, with what happens beside it; return what was done."""
        plan = plan_round(self._seed, number, self._scale)
        if not self.rounds:
            self.server.start()
        kills = self.server.kills
        self._fault = "noisy" if "noisy" in faults else "kills"
        declaration = f"{plan.declaration}\n{attackers_declaration(number, faults)}"
        self._client.call("POST", "/apply", body=declaration.encode(), media_type="application/toml")
        self._faults.update(fault for fault in faults if fault in IN_TRAFFIC)
        if "minting" in faults:
            self._fault = "minting"
            self._note(check_minting(self.server.port, number), [])
            self._fault = "noisy" if "noisy" in faults else "kills"
        with self._noise(number) if "noisy" in faults else nullcontext(_no_noise) as make_noise:
            answered = self._traffic(plan, make_noise, killing="kills" in faults)
        kills = self.server.kills - kills
        calls = read_calls(self._journals(number))
        self.rounds.append((plan, calls, kills, self._fault))
        if any(call.timed_out or (call.status == 429 and call.op != "authorize") for call in calls):
            # The sums are asked of a server that answers: what it did not is a finding already.
            self.server.kill()
            self.server.start()
        self.verify()
        self.check(len(self.rounds))
        done = f"{answered:,} answers, {kills} kills"
        if "kills" in faults:
            done += f", the first after {plan.kill_at:,} answers"
        return ", ".join([done, *(fault for fault in faults if fault in ("noisy", "minting"))])

    def _drill(self, number: int, fault: Fault) -> str:
        """Make one fault on an installation of its own; return what was done."""
        self._fault = fault
        directory = self._directory / f"{fault}-{number}"
        directory.mkdir()
        where = (self._seed, number, directory, self._ledger_url)
        has_postgresql = self._ledger_url is not None
        try:
            if fault in GOES_BACK:
                drill = plan_drill(self._seed, number, fault)
                variant: str = drill.variant
                found = run_drill(drill, *where)
            else:
                scenario = plan_scenario(self._seed, number, fault, has_postgresql=has_postgresql)
                variant = scenario.variant
                found = run_scenario(scenario, *where)
        except Skipped as exc:
            self._skipped[f"{fault}: {exc}"] = None
            return f"{fault} skipped: {exc}"
        except (Failure, TollkeeperError) as exc:
            found = [Finding("unanswered", f"{variant}: {exc}")]
        self._faults[fault] += 1
        self._note(found, [])
        if not found:
            shutil.rmtree(directory)
        return f"{fault} ({variant})"

    @contextmanager
    def _noise(self, number: int) -> Iterator[Callable[[int], None]]:
        """Let the noisy customer of a round do its worst; yield what takes the number of the others' answers so far."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tollkeeper.prove.noisy", str(self.server.port), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment({}),
            start_new_session=True,
        )
        assert process.stdin is not None
        stdin, turns = process.stdin, 0

        def make_noise(answers: int) -> None:
            nonlocal turns
            due = 1 + answers // TURN_ANSWERS - turns
            turns += due
            # Unless it ended, which only a lack of memory makes it do.
            with suppress(BrokenPipeError):
                stdin.write(b"." * due)
                stdin.flush()

        try:
            yield make_noise
        finally:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):
                stdin.close()

    def check(self, number: int) -> list[Finding]:
        """Hold what the server says of the round at *number*, from 1 on, against its journals; return what is new."""
        plan, calls, kills, self._fault = self.rounds[number - 1]
        seen = look(self._client, OPERATOR_KEY, plan)
        return self._note(check(plan, calls, seen, callers=self._scale.callers, kills=kills), calls)

    def verify(self) -> list[Finding]:
        """Have the server verify itself; return what was not found before."""
        self._verifies += 1
        try:
            found = [Finding("verify", difference) for difference in verify(self._client)]
        except Failure as exc:
            if self._fault != "noisy":
                raise
            found = [Finding("unanswered", f"verify: {exc}")]
        return self._note(found, [])

    def last_look(self) -> str:
        """Stop the server as an operator would, start it again and check every round once more."""
        if not self.rounds:
            return "no round had traffic: nothing to check once more"
        self.server.stop()
        self.server.start()
        found = self.verify()
        for number in range(1, len(self.rounds) + 1):
            found += self.check(number)
        return f"all rounds once more after a clean restart: {_counted(found)}"

    def proof(self) -> Proof:
        """Return the findings so far."""
        calls = [call for _, calls, _, _ in self.rounds for call in calls]
        return Proof(
            self._seed,
            self._scale,
            time.monotonic() - self._began,
            len(calls),
            sum(call.sent for call in calls),
            self.server.kills,
            self._verifies,
            tuple(self._findings.items()),
            only=self._only,
            drawn=tuple(self._faults.items()),
            skipped=tuple(self._skipped),
        )

    def close(self) -> None:
        """End every process of this run."""
        for client in self._clients:
            client.kill()
            client.wait()
        self._clients.clear()
        self.server.kill()

    def _note(self, found: list[Finding], calls: list[JournaledCall]) -> list[Finding]:
        named = [finding._replace(fault=self._fault) for finding in found]
        fresh = [finding for finding in dict.fromkeys(named) if finding not in self._findings]
        for finding in fresh:
            self._findings[finding] = tuple(history(calls, finding.ids)[:HISTORY_LINES_MAX])
        return fresh

    def _traffic(self, plan: Round, make_noise: Callable[[int], None], *, killing: bool) -> int:
        """Run all clients of a round to their end, perhaps killing the server on the way; return the answers' count."""
        reader, writer = os.pipe()
        try:
            self._start_clients(plan.number, writer)
        finally:
            os.close(writer)
        answered, killed = 0, not killing
        with open(reader, "rb", buffering=0) as answers:
            while True:
                make_noise(answered)
                ready, _, _ = select.select([answers], [], [], SILENT_S_MAX)
                if not ready:
                    raise Unavailable(f"The clients of round {plan.number} do not end. Seed {self._seed}.")
                piece = answers.read(65536)
                answered += len(piece)
                if not killed and (answered >= plan.kill_at or not piece):
                    killed = True
                    self._crash(plan)
                if not piece:
                    break
        self._wait_for_clients(plan.number)
        return answered

    def _crash(self, plan: Round) -> None:
        self.server.kill()
        if plan.kill_start_s is not None:
            # It is opening its stores, or taking up holds.
            self.server.spawn()
            time.sleep(plan.kill_start_s)
            self.server.kill()
        self.server.start()
        self.verify()

    def _start_clients(self, number: int, answers: int) -> None:
        for client, journal in enumerate(self._journals(number)):
            numbers = [self.server.port, self._seed, number, client, *self._scale]
            with journal.with_suffix(".errors").open("wb") as errors:
                self._clients.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tollkeeper.prove.client", *map(str, numbers), str(journal)],
                        stdin=subprocess.DEVNULL,
                        stdout=answers,
                        stderr=errors,
                        env=environment({}),
                        start_new_session=True,
                    )
                )

    def _wait_for_clients(self, number: int) -> None:
        for client, journal in zip(self._clients, self._journals(number), strict=True):
            if client.wait(CLIENT_END_S_MAX) not in (0, STUCK):
                errors = journal.with_suffix(".errors").read_text(errors="replace")[-1_000:].strip()
                raise Unavailable(f"A client of round {number} failed (seed {self._seed}): {errors}")
        self._clients.clear()

    def _journals(self, number: int) -> list[Path]:
        return [self._directory / f"journal-{number}-{client}" for client in range(self._scale.clients)]


def shrink(
    proof: Proof, *, within_s: float, say: Callable[[str], None], ledger_url: str | None = None
) -> Proof:
    """
    Return the smallest run of the same seed that still finds something, of those tried *within_s* seconds.

    Another interleaving may find nothing in a run that has the fault: *proof* itself is returned then.
    """
    until = time.monotonic() + within_s
    smallest = proof
    while time.monotonic() < until:
        rounds, clients, connections = smallest.scale
        smaller = [
            Scale(max(1, rounds // 2), clients, connections),
            Scale(rounds, max(1, clients // 2), connections),
            Scale(rounds, clients, max(1, connections // 2)),
        ]
        for scale in smaller:
            if scale == smallest.scale or time.monotonic() > until:
                continue
            again = prove(
                scale, proof.seed, data=None, say=lambda line: None, ledger_url=ledger_url, only=proof.only
            )
            say(f"smaller, {_size(scale)}: {_counted([finding for finding, _ in again.findings])}")
            if again.findings:
                smallest = again
                break
        else:
            break
    return smallest


def _timed(make: Callable[[], str]) -> str:
    """Return what *make* returns, and how long it took."""
    began = time.monotonic()
    return f"{make()}, {time.monotonic() - began:.1f} s"


def _size(scale: Scale) -> str:
    return f"{scale.rounds} rounds of {scale.clients} clients with {scale.connections} connections"


def _counted(found: list[Finding]) -> str:
    return ", ".join(f"{kind} {sum(f.kind == kind for f in found)}" for kind in KINDS)


@contextmanager
def _directory(data: str | None) -> Iterator[Path]:
    # A stop by SIGTERM cleans up as Ctrl-C does, which a shell's background commands are born deaf to.
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if data is not None:
            path = Path(data)
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise Conflict(f"{data} is not empty: name another directory. The proof starts afresh.")
            path.mkdir(parents=True, exist_ok=True)
            yield path
            return
        path = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX))
        try:
            yield path
        finally:
            shutil.rmtree(path)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _database(ledger_url: str | None, *, keep: bool) -> Iterator[str]:
    """
    Yield what the ledger runs on.

    A database that holds anything is refused: all that is in it in the end is removed, unless *keep* is set.
    """
    if ledger_url is None:
        yield Proof._field_defaults["ledger"]
        return
    engine = open_engine(ledger_url)
    try:
        check_empty(engine)
        try:
            yield "PostgreSQL " + ".".join(map(str, engine.dialect.server_version_info or ()))
        finally:
            if not keep:
                remove_tables(engine)
    finally:
        engine.dispose()


def _no_noise(answers: int) -> None:
    """Make none."""


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
