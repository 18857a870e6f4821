"""Paths as they are routed: a slash that came percent-encoded belongs to its segment and divides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

_SLASH: Final = "\0"
"""Stands for a slash within a segment: no id and no template has this character."""


def routed_path(scope: Mapping[str, Any]) -> str:
    """Return the decoded path of an ASGI *scope*, to be split at its slashes; `segment_text` reads the parts."""
    raw: bytes = scope.get("raw_path") or b""
    if b"%2f" not in raw.lower():
        path: str = scope["path"]
        return path
    segments = raw.partition(b"?")[0].split(b"/")
    return "/".join(_decoded(segment).replace("/", _SLASH) for segment in segments)


def app_path(scope: Mapping[str, Any]) -> str:
    """
    Return the path of an ASGI *scope* as the app knows it: without what it is mounted under.

    `root_path` is set by the server (`uvicorn --root-path`) or by a mount, never by the caller; some servers leave it
    at the head of the path.
    """
    path: str = scope["path"]
    root: str = (scope.get("root_path") or "").rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :] or "/"
    return path


def segment_text(text: str) -> str:
    """Return a path, or a segment of one, of `routed_path` as its caller meant it."""
    return text.replace(_SLASH, "/")


def _decoded(segment: bytes) -> str:
    return unquote_to_bytes(segment).decode("utf-8", "replace")
