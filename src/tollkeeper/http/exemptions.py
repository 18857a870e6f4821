"""Which requests pass the middleware without a key: by path, by the beginning of a path, and by method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tollkeeper.errors import BadParameter

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Exemptions:
    """
    Args:
        entries: `/healthz` is one path, `/static/*` all that begin so; `GET /docs/*` only this method, where `GET`
            stands for `HEAD` too.

    Raises:
        BadParameter: An entry is none of these.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._paths: set[tuple[str, str]] = set()
        self._prefixes: list[tuple[str, str]] = []
        for entry in entries:
            method, blank, path = entry.partition(" ")
            if not blank:
                method, path = "", entry
            if not path.startswith("/") or "*" in path[:-1] or (method and method not in _METHODS):
                raise BadParameter(
                    f"exempt: {entry!r} must be a path such as /healthz, the beginning of one such as /static/*, or "
                    "either after a method in capitals, such as GET /docs/*",
                    field="exempt",
                )
            if path.endswith("*"):
                self._prefixes.append((method, path[:-1]))
            else:
                self._paths.add((method, path))

    def cover(self, method: str, path: str) -> bool:
        """Return whether a request to *path*, as the app sees it, passes without a key."""
        methods = ("", method, "GET") if method == "HEAD" else ("", method)
        if any((one, path) in self._paths for one in methods):
            return True
        if not self._prefixes or _climbs(path):
            return False
        return any(one in methods and path.startswith(prefix) for one, prefix in self._prefixes)


def _climbs(path: str) -> bool:
    """Return whether an app may take *path* for one that begins otherwise."""
    segments = path.replace("\\", "/").split("/")
    return ".." in segments or "." in segments or "" in segments[1:-1]
