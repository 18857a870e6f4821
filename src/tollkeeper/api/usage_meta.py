"""What a caller may ask of usage: the tables that `usage_params` reads by, with units and meanings."""

from __future__ import annotations

from typing import Final

import msgspec

from tollkeeper.api.usage_params import GROUPS_MAX, VALUES_MAX, UsageScope, may_ask
from tollkeeper.domain.event_pages import EVENTS_PER_PAGE, EVENTS_PER_PAGE_MAX
from tollkeeper.domain.usage import (
    DIMENSION_MEANINGS,
    GRANULARITY_MEANINGS,
    MEASURE_MEANINGS,
    MEASURES_DEFAULT,
    PAGE_SIZE_DEFAULT,
    PAGE_SIZE_MAX,
)

QUANTITY: Final = "quantity.<name>"
TAG: Final = "tag.<name>"


class MeasureMeta(msgspec.Struct, frozen=True, kw_only=True):
    """A measure: a value of `measures`."""

    name: str
    """`quantity.<name>` stands for any quantity."""
    unit: str
    """`events`, `tokens`, `nanos`, `credits`, `ms`, `bytes`, `requests`, `units`, `time` or `map`."""
    meaning: str
    default: bool
    """Whether it is told without `measures`."""


class DimensionMeta(msgspec.Struct, frozen=True, kw_only=True):
    """A dimension: a value of `group_by`, and a filter of its name."""

    name: str
    """`tag.<name>` stands for any tag."""
    meaning: str


class GranularityMeta(msgspec.Struct, frozen=True, kw_only=True):
    """A value of `granularity`."""

    name: str
    meaning: str


class MetaLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The most of what a query may state, and what is taken where it states nothing."""

    group_by: int = GROUPS_MAX
    filter_values: int = VALUES_MAX
    usage_rows: int = PAGE_SIZE_MAX
    usage_rows_default: int = PAGE_SIZE_DEFAULT
    events: int = EVENTS_PER_PAGE_MAX
    events_default: int = EVENTS_PER_PAGE


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What this caller may ask of usage and of the list of events."""

    measures: list[MeasureMeta]
    dimensions: list[DimensionMeta]
    granularities: list[GranularityMeta]
    limits: MetaLimits = msgspec.field(default_factory=MetaLimits)


def meta_of(scope: UsageScope) -> Meta:
    """Return what callers of *scope* may ask."""
    measures = [
        MeasureMeta(name=name, unit=measure.unit, meaning=measure.meaning, default=name in MEASURES_DEFAULT)
        for name, measure in MEASURE_MEANINGS.items()
        if may_ask(name, scope)
    ]
    measures.append(
        MeasureMeta(
            name=QUANTITY, unit="units", meaning="a quantity, in its units, as decimal text", default=False
        )
    )
    dimensions = [DimensionMeta(name=name, meaning=text) for name, text in DIMENSION_MEANINGS.items()]
    dimensions.append(DimensionMeta(name=TAG, meaning="value of a tag; empty for none"))
    return Meta(
        measures=measures,
        dimensions=dimensions,
        granularities=[
            GranularityMeta(name=name, meaning=text) for name, text in GRANULARITY_MEANINGS.items()
        ],
    )
