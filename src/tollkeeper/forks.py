"""
Makes an installation unusable in a forked child, so that the child cannot harm its parent's.

A child has a copy of the gate's memory and none of the threads: it would admit what its parent admits too, and
wait for ever for a commit. So in a child every part of an open installation becomes one whose use raises `Forked`.
That is done at the fork itself, without a lock (which a thread that the child lacks may hold), and costs
requests nothing. What the parts own stays allocated: to release a database's connection here would end the parent's.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterable
from typing import Any, Final

from tollkeeper.errors import Forked

_HARMLESS: Final = frozenset({"__class__", "abandoned", "close"})
"""`abandoned` is where an admission that is dropped leaves a note, also when the interpreter ends."""

_parts_of: weakref.WeakKeyDictionary[Any, list[tuple[Any, type]]] = weakref.WeakKeyDictionary()
_inherited = False


def _unusable(kind: type) -> type:
    """Return a class whose objects have the layout of *kind*, so that one can become the other, and no use."""

    def refuse(self: Any, name: str) -> Any:
        if name in _HARMLESS:
            return object.__getattribute__(self, name)
        raise forked()

    def close(self: Any, *_: Any) -> None:
        """Do nothing: what is open is the parent's."""

    return type(kind.__name__, (kind,), {"__getattribute__": refuse, "close": close})


def forked() -> Forked:
    """Return the error that says what happened and what to do."""
    return Forked(
        f"Process {os.getpid()} was forked from one that has Tollkeeper open, and can use nothing of it: it would "
        "admit what the other process admits too. Open Tollkeeper after the fork, in one process only; for several "
        "processes run `tollkeeper serve` and use `tollkeeper.remote`."
    )


def check_not_forked() -> None:
    """Raise `Forked` if this process inherited an open installation, whose engine it cannot start again."""
    if _inherited:
        raise forked()


def refuse_in_children(owner: Any, parts: Iterable[Any], becomes: type | None = None) -> None:
    """
    Have *parts* become of class *becomes* in children that are forked while *owner* is open.

    Args:
        owner: An installation; again with other parts, it has them all.
        becomes: A subclass of theirs without attributes of its own; None for one that cannot be used.
    """
    # Made now: a child does as little as it can.
    _parts_of.setdefault(owner, [(owner, _unusable(type(owner)))]).extend(
        (part, becomes or _unusable(type(part))) for part in parts
    )


def closed(owner: Any) -> None:
    """Forget an installation that is closed: a child may open one of its own."""
    _parts_of.pop(owner, None)


def _in_child() -> None:
    global _inherited
    for owner, parts in list(_parts_of.items()):
        _inherited = True
        # For ever, or the end of the interpreter would close what it refers to.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(vars(owner)))
        owner.left_to_parent()
        for part, becomes in parts:
            object.__setattr__(part, "__class__", becomes)
    _parts_of.clear()
    if _inherited:
        _exit_without_engine()


def _exit_without_engine() -> None:
    """
    Have this process end as soon as the interpreter has: the embedded engine's own end waits for threads that only
    the parent has. The handler that is registered last runs first.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)


os.register_at_fork(after_in_child=_in_child)
