"""
Usage of traffic that does not pass the gate, booked in batches by a thread beside it.

    tollkeeper apply examples/provider.toml
    python examples/background_ingest.py

An event counts once per `id`, so a batch that failed is simply sent again.
"""

import queue
import threading
import time
import uuid
from datetime import UTC, datetime

from tollkeeper import Tollkeeper, TollkeeperError

BATCH_MAX = 1_000
events = queue.Queue(maxsize=100_000)


def report(key_id, model, prompt, completion, status=200):
    """Note one finished request; returns at once."""
    events.put(
        {
            "id": str(uuid.uuid4()),
            "time": datetime.now(UTC).isoformat(),
            "key_id": key_id,
            "status": status,
            "model": model,
            "tokens": {"prompt": prompt, "completion": completion},
        }
    )


def book(toll):
    """Book events until `None` comes, in batches; what is rejected is printed with its reason."""
    while (first := events.get()) is not None:
        batch = [first]
        while len(batch) < BATCH_MAX and not events.empty() and events.queue[0] is not None:
            batch.append(events.get())
        while True:
            try:
                result = toll.record(batch)
                break
            except TollkeeperError as exc:
                print(f"not booked yet: {exc}")
                time.sleep(1)
        for rejection in result.rejections:
            print(f"rejected: {batch[rejection.index]['id']}: {rejection.reason}")


if __name__ == "__main__":
    with Tollkeeper.open("./data") as toll:
        worker = threading.Thread(target=book, args=(toll,))
        worker.start()
        for n in range(5_000):
            report("acme-prod", "gpt-4o-mini", prompt=800 + n % 100, completion=90)
        events.put(None)
        worker.join()
