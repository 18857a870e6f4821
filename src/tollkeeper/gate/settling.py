"""
How a settlement ends what a request had taken, and what it charges. Callers hold the gate's lock unless it says not.

A settlement may name another model or other tags than its hold, so that other counters count it. Those that held for
it get their part back. Those that did not are charged what the record says, whether or not it fits: it was used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias

from tollkeeper.domain.decisions import AmountsByUnit, amounts_by_unit
from tollkeeper.domain.events import RECORD_FIELDS, Record
from tollkeeper.domain.meter import facts_of
from tollkeeper.domain.quantities import Quantities, tokens_of
from tollkeeper.gate.admission import Admission, Charge, Moved
from tollkeeper.gate.compiled_keys import CompiledKey
from tollkeeper.gate.counter import Counter, NotRead, Taken

Actual: TypeAlias = tuple[int, int, int, int] | AmountsByUnit

_used_of: Final[Callable[[Record], tuple[int, int, int, int, int, int, Quantities]]] = itemgetter(
    *map(
        RECORD_FIELDS.index,
        (
            "prompt_tokens",
            "cached_prompt_tokens",
            "completion_tokens",
            "reasoning_tokens",
            "cost_nanos",
            "credits",
            "quantities",
        ),
    )
)


class Moves(NamedTuple):
    """The counters that a settlement leaves and those that it joins, since its record is matched otherwise."""

    left: frozenset[str]
    joined: list[Counter]


def used_by(record: Record, compiled_key: CompiledKey) -> Actual:
    """
    Return what a record takes per unit, in the order of `UNITS`; its quantities too where a counter may ask for one.

    With the gate's lock: a budget that comes into force may have a key count quantities that did not before.
    """
    # As `record.tokens` and so on, at a third of the time: every request asks.
    prompt, cached_prompt, completion, reasoning, cost_nanos, credits, quantities = _used_of(record)
    tokens = prompt + cached_prompt + completion + reasoning
    if quantities:
        tokens += tokens_of(quantities)
    actual = (1, tokens, cost_nanos, credits)
    return amounts_by_unit(actual, quantities) if compiled_key.counts_quantities else actual


def moves_of(admission: Admission, record: Record, now_us: int) -> Moves | None:
    """
    Return the counters that *record* moves from and to; None when it counts where its hold does.

    Without the gate's lock: a window that is not in memory is read. Nothing is changed yet.
    """
    matched = admission.matched
    # All else of what they are matched by is of the request, and stays.
    if matched is None or (record.model == admission.expected.model and record.tags == admission.tags):
        return None
    held, facts = admission.facts, facts_of(record)
    before = {counter.counter_id for group in matched.counters(held, now_us) for counter in group}
    after = {counter.counter_id: counter for group in matched.counters(facts, now_us) for counter in group}
    if before == after.keys():
        return None
    return Moves(frozenset(before - after.keys()), [after[name] for name in after if name not in before])


def settle(admission: Admission, actual: Actual, moves: Moves | None, now_us: int) -> list[Charge]:
    """
    End every hold of *admission* with what was really used; return what the ledger must be charged.

    Raises:
        NotRead: A budget that it joins has periods that are not in memory. Nothing has changed.
    """
    charges = []
    if moves is None:
        for counter, held, mark in admission.taken:
            amount = actual[counter.unit_index]
            if amount != held or counter.counts_open:
                counter.settle(mark, held, amount)
                if counter.charged:
                    # As `Charge(…)`, which takes 0.3 µs.
                    charge = (counter.account_id, counter.counter_id, mark, amount)
                    charges.append(tuple.__new__(Charge, charge))
        return charges
    # First, since it may raise: nothing is settled before.
    marks = _marks(moves.joined, admission.at_us)
    for counter, held, mark in admission.taken:
        amount = 0 if counter.counter_id in moves.left else actual[counter.unit_index]
        counter.settle(mark, held, amount)
        if counter.charged and amount:
            charges.append(Charge(counter.account_id, counter.counter_id, mark, amount))
    joined: list[Taken] = []
    for counter in moves.joined:
        amount = actual[counter.unit_index]
        if counter.charged:
            mark = marks[counter.counter_id]
            counter.settle(mark, 0, amount)
            joined.append((counter, 0, mark))
            charges.append(Charge(counter.account_id, counter.counter_id, mark, amount))
        else:
            joined += take_late([counter], actual, admission.at_us, now_us)
    admission.moved = Moved(moves.left, joined)
    return charges


def _marks(joined: Iterable[Counter], at_us: int) -> dict[str, int]:
    """Return where a request of *at_us* counts in each of the budgets that it joins. Raises `NotRead`."""
    found: list[Taken] = []
    try:
        for counter in joined:
            if counter.charged:
                found.append((counter, 0, counter.retake(0, at_us)))
    except NotRead:
        for counter, held, mark in found:
            counter.give_back(mark, held)
        raise
    return {counter.counter_id: mark for counter, _, mark in found}


def take_late(counters: Iterable[Counter], actual: Actual, at_us: int, now_us: int) -> list[Taken]:
    """Count what a request of *at_us* used in the windows that its time falls into, fit or not; return where."""
    taken = []
    for counter in counters:
        amount = actual[counter.unit_index]
        mark = counter.take_late(amount, at_us, now_us)
        if mark is not None:
            taken.append((counter, amount, mark))
    return taken


def unsettle(admission: Admission, actual: Actual) -> None:
    """Take a settlement back, as it was made with `settle`: the hold is as it was before."""
    left, joined = admission.moved or Moved(frozenset(), [])
    for counter, held, mark in admission.taken:
        amount = 0 if counter.counter_id in left else actual[counter.unit_index]
        counter.unsettle(mark, held, amount)
    for counter, held, mark in joined:
        if counter.charged:
            counter.unsettle(mark, 0, actual[counter.unit_index])
        counter.give_back(mark, held)
    admission.moved = None
