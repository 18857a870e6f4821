"""
Finds the route policy of a request: exact paths first, then templates, the more specific one first.

As servers and frameworks do, `HEAD` is served as `GET` where it has no policy of its own, and a slash at the end of a
path makes no other path unless a policy says so: else one of them would be another price.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from tollkeeper.domain.catalog import Route

_CACHE_MAX: Final = 8_192
"""Most paths in the cache. A full cache is cleared, so that made-up paths cannot grow it."""


class RouteTable:
    """All route policies, compiled. A changed catalog makes a new table."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[tuple[str, str], list[Route]] = {}
        self._templates: list[tuple[re.Pattern[str], Route]] = []
        self._cache: dict[tuple[str, str, str], Route | None] = {}
        for route in sorted(routes, key=_specificity):
            if "{" in route.path or route.path.endswith("*"):
                self._templates.append((_pattern(route.path), route))
            else:
                self._exact.setdefault((route.method, route.path), []).append(route)

    def match(self, method: str, path: str, profile: str) -> Route | None:
        """
        Return the policy of a request, or None when the route is unknown.

        Args:
            path: The path as called, without the query string; a route's own template matches itself.
            profile: Profile of the key; policies of other profiles are passed over. With "", of none.
        """
        at = (method, path, profile)
        cache = self._cache
        known = cache.get(at)
        if known is not None or at in cache:
            return known
        if len(cache) >= _CACHE_MAX:
            cache.clear()
        found = cache[at] = self._find(method, path, profile)
        return found

    def _find(self, method: str, path: str, profile: str) -> Route | None:
        methods = (method, "GET", "*") if method == "HEAD" else (method, "*")
        for one in (path, _with_other_end(path)):
            for wanted in methods:
                for route in self._exact.get((wanted, one), ()):
                    if route.profile is None or route.profile == profile or not profile:
                        return route
        for pattern, route in self._templates:
            if (
                route.method in methods
                and (route.profile is None or route.profile == profile or not profile)
                and pattern.fullmatch(path)
            ):
                return route
        return None


def _with_other_end(path: str) -> str:
    """Return *path* with a slash at its end, or without the one that it has."""
    return path.removesuffix("/") if path.endswith("/") else f"{path}/"


def _specificity(route: Route) -> tuple[object, ...]:
    # A route of one profile before one for all; fewer variable segments first; longer paths first; then by id.
    return (
        route.profile is None,
        route.path.endswith("*"),
        route.path.count("{"),
        -len(route.path),
        # Of one template, that of HEAD before that of GET, which serves HEAD too.
        ("HEAD", "*").index(route.method) * 2 if route.method in ("HEAD", "*") else 1,
        route.id,
    )


def _pattern(template: str) -> re.Pattern[str]:
    head, rest = (template[:-1], ".*") if template.endswith("*") else (template.removesuffix("/"), "/?")
    parts = re.split(r"\{[^{}/]*\}", head)
    return re.compile("[^/]+".join(re.escape(part) for part in parts) + rest, re.DOTALL)
