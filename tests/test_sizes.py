"""No class has more than 400 lines, and no file more than 600."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import tollkeeper

ROOT: Final = Path(tollkeeper.__file__).parent
CLASS_LINES_MAX: Final = 400
"""A class holds one trade: above this it holds two."""
FILE_LINES_MAX: Final = 600


def sizes() -> dict[str, tuple[int, int]]:
    """Return each file and class with its lines and its bound. Generated migrations are left out."""
    found: dict[str, tuple[int, int]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        if "versions" in path.parts:
            continue
        text = path.read_text()
        name = str(path.relative_to(ROOT))
        found[name] = len(text.splitlines()), FILE_LINES_MAX
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno is not None
                found[f"{name}:{node.name}"] = node.end_lineno - node.lineno + 1, CLASS_LINES_MAX
    return found


def test_nothing_grows_beyond_its_bound() -> None:
    """Beyond it a reader no longer holds a part in mind: look for the second concept inside."""
    larger = {name: lines for name, (lines, bound) in sizes().items() if lines > bound}
    assert not larger
