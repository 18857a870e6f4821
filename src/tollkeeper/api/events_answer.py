"""The result of an ingest as the API and the command line show it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from tollkeeper.meter.ingest import IngestResult
    from tollkeeper.meter.rejections import Rejection


class EventRejection(msgspec.Struct, frozen=True, kw_only=True):
    """One event that was not taken: its place in the call, the field at fault, why, and what to do."""

    index: int
    field: str
    code: str
    reason: str


class EventsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """
    The result of a batch. Accepted events are durable.

    `errors` lists the first rejections; `rejected` counts all of them.
    """

    accepted: int
    duplicates: int
    rejected: int
    errors: list[EventRejection]


def events_answer(result: IngestResult) -> EventsAnswer:
    """Return the answer to a batch of events."""
    return EventsAnswer(
        accepted=result.accepted,
        duplicates=result.duplicates,
        rejected=result.rejected,
        errors=rejections_json(result.rejections),
    )


def rejections_json(rejections: Iterable[Rejection]) -> list[EventRejection]:
    """Return rejections as answers show them."""
    return [EventRejection(index=r.index, field=r.field, code=r.code, reason=r.reason) for r in rejections]
