"""
The plans of requests: which counters a request takes from whose key has a match or counts values apart.

To find them takes some µs, and most requests are like one before: a bounded number of plans is remembered. A plan that
is remembered keeps its counters in memory, so that these are never read twice while it is used.
"""

from __future__ import annotations

from typing import Final

from tollkeeper.domain.matching import Facts
from tollkeeper.gate.compiled_keys import HeldBy, RoutePlan

PLANS_MAX: Final = 10_000
"""Remembered of all keys together; when full the memory starts again, so that made-up tags cannot grow it."""


class RequestPlans:
    """Any thread may call: each step is one operation on one dictionary."""

    def __init__(self) -> None:
        self._plans: dict[tuple[object, ...], RoutePlan] = {}

    def of(self, route_plan: RoutePlan, held_by: HeldBy, now_us: int) -> RoutePlan:
        """
        Return the plan of one request of these facts; *route_plan* is that of its key and route.

        A plan goes with its key: after a change of the catalog another *route_plan* asks.
        """
        matched = route_plan.matched
        if matched is None:
            return route_plan
        model, tags, _, method, route = held_by
        at: tuple[object, ...] = (route_plan, model, method, route)
        for name in matched.tag_names:
            at += (tags.get(name, ""),)
        found = self._plans.get(at)
        if found is None:
            found = route_plan.for_request(Facts(*held_by), now_us)
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            self._plans[at] = found
        return found

    def clear(self) -> None:
        """Forget all plans."""
        self._plans.clear()
