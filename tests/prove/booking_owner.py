"""The process of `prove` that forks, with a fault: each of its children books an event."""

from __future__ import annotations

import sys

from tollkeeper.embedded import Tollkeeper
from tollkeeper.prove import embedded_owner

_fork = embedded_owner._fork


def fork_and_book(toll: Tollkeeper, number: int, held: object) -> None:
    _fork(toll, number, held)  # type: ignore[arg-type]
    tags = {"op": f"child-{number}"}
    event = {"id": f"child-{number}", "time": "2025-01-01T00:00:00Z", "key_id": embedded_owner.KEY}
    toll.record([{**event, "cost_nanos": 1, "tags": tags}])


if __name__ == "__main__":
    embedded_owner._fork = fork_and_book
    embedded_owner.main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
