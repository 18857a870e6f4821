"""What a template of a route's path may hold: placeholders as `{id}`, and no other framework's spelling of them."""

from __future__ import annotations

import re
from typing import Final

_PLACEHOLDER: Final = re.compile(r"\{[^{}/]*\}")
_FOREIGN: Final = re.compile(
    r":(?P<colon>[A-Za-z_]\w*)"  # Express, Rails, Gin: /items/:id
    r"|<(?:[^<>/]*:)?(?P<angle>[^<>/]*)>"  # Flask, Django: /items/<int:id>
    r"|\[(?:\.\.\.)?(?P<square>[^\[\]/]*)\]"  # Next.js: /items/[id]
)


def template_objection(path: str) -> str | None:
    """
    Return why *path*, which begins with `/`, would not match what its writer means, and what to write; else None.

    A route's path is compared with the path of a request alone, without its query. `:id` would be matched as text.
    """
    for mark, what in (("?", "a query"), ("#", "a fragment")):
        if mark in path:
            return f"{path[:80]!r} has {what}, and routes match the path alone: write {path.split(mark)[0][:80]!r}"
    for segment in path.split("/"):
        found = _FOREIGN.fullmatch(segment)
        if found is not None:
            name = found["colon"] or found["angle"] or found["square"] or "name"
            wanted = path.replace(segment, f"{{{name}}}")
            return (
                f"{segment[:40]!r} would be matched as text: a placeholder must be written {{{name}}}, "
                f"as in {wanted[:80]}"
            )
        if segment.startswith("{") and segment.endswith(":path}"):
            return f"{segment[:40]!r} would match one segment only: for all that follows, end the path with *"
        if set(_PLACEHOLDER.sub("", segment)) & set("{}"):
            return f"{segment[:40]!r} has a brace without its partner: a placeholder is written {{id}}"
    return None
