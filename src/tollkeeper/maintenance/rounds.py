"""The maintenance thread: runs its jobs in rounds, in their order, for as long as the installation is open."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from tollkeeper.errors import Unavailable

ROUND_S: Final = 0.5
_ENDS_S: Final = 30.0

log = logging.getLogger("tollkeeper")


class Job(NamedTuple):
    """
    What a round does.

    Attributes:
        run: May raise `Unavailable`: that ends the round, as the jobs after it need the same stores.
        every: In how many rounds it runs once.
        at: In which of so many rounds; 0 is the last of them.
        repeats: It runs again at once for as long as it returns something.
    """

    run: Callable[[], Any]
    every: int = 1
    at: int = 0
    repeats: bool = False


class MaintenanceThread:
    """Runs *jobs* from `start` until `close`."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tollkeeper-maintain", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End after the job that runs now. A repeat changes nothing."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_ENDS_S)

    def _run(self) -> None:
        number = 0
        while not self._closing.wait(ROUND_S):
            number += 1
            try:
                self._round(number)
            except Unavailable as exc:
                log.warning("tollkeeper.maintain.unavailable", extra={"reason": str(exc)})
            except Exception:
                # Whatever it is, holds must go on expiring.
                log.exception("tollkeeper.maintain.failed")

    def _round(self, number: int) -> None:
        for job in self._jobs:
            if number % job.every == job.at:
                while job.run() and job.repeats and not self._closing.is_set():
                    pass
