"""Price lists, mark-ups and what requests use, drawn at random."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from tests.domain.test_events import quantities
from tollkeeper.domain.catalog import PRICE_NANOS_MAX, REQUEST_NANOS_MAX, Markup, Price
from tollkeeper.domain.events import TOKENS_MAX
from tollkeeper.domain.price_entries import RATE_FIELDS, PriceTier, variant_of

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)

MODELS = (
    "house-model",
    "gpt-4o",
    "gpt-5",
    "deepseek-chat",
    "anthropic/claude-sonnet-4-5",
    "whisper-1",
    "groq/whisper-large-v3",
    "no-such-model-anywhere",
)
"""Without a listed price, with one, by time of day, tiered, per second, and with no price unless an entry gives one."""

ACCOUNTS = ("acme", "globex", "initech")
PLANS = ("", "pro", "free")
VARIANTS = ("", "batch", "Flex", "default", "own")

instants = st.integers(0, 10**6).map(lambda seconds: NOON + timedelta(seconds=seconds))
rates = st.integers(0, 4) | st.integers(0, PRICE_NANOS_MAX)
token_counts = (
    st.integers(0, TOKENS_MAX) | st.integers(0, 400_000) | st.sampled_from([199_999, 200_000, 200_001])
)
factors = st.sampled_from(["0", "0.5", "1", "1.2", "1.35", "1.075", "0.333333333", "1000"])
unit_rates = st.sampled_from(["0.006/60", "0.0043/60", "15.00/1000000", "1000000/1", "0.01/7", 3, 10**15])


def _stated(draw: st.DrawFn) -> dict[str, Any]:
    fields = draw(st.sets(st.sampled_from(sorted(RATE_FIELDS)), max_size=5))
    return {field: draw(rates) for field in sorted(fields)}


@st.composite
def price_lists(draw: st.DrawFn) -> list[Price]:
    """Own prices: of rates or of factors, for some or all, of variants, tiers and units, from some instant on."""
    entries = []
    for index in range(draw(st.integers(0, 6))):
        common: dict[str, Any] = {
            "id": f"p{index}",
            "account": draw(st.sampled_from([None, *ACCOUNTS[:2]])),
            "effective_at": draw(instants),
            "variant": draw(st.sampled_from(VARIANTS)),
        }
        if variant_of(common["variant"]) and draw(st.booleans()):
            model = draw(st.sampled_from([*MODELS, "*", "gpt-*"]))
            entry = Price(**common, model=model, factor=draw(factors))
        else:
            thresholds = draw(st.sets(st.integers(1, 2 * TOKENS_MAX) | st.just(200_000), max_size=2))
            entry = Price(
                **common,
                **_stated(draw),
                model=draw(st.sampled_from(MODELS)),
                tiers=[PriceTier(over=over, **_stated(draw)) for over in sorted(thresholds)],
                rates=draw(
                    st.dictionaries(
                        st.sampled_from(["seconds", "images", "own_unit"]), unit_rates, max_size=2
                    )
                ),
                request_nanos=draw(st.integers(0, REQUEST_NANOS_MAX)),
            )
        entry.check()
        entries.append(entry)
    return entries


@st.composite
def markup_lists(draw: st.DrawFn) -> list[Markup]:
    """Mark-ups for all, a plan or an account, by pattern, from some instant on."""
    markups = []
    for index in range(draw(st.integers(0, 4))):
        scope = draw(
            st.sampled_from(
                [{}, {"account": "acme"}, {"account": "globex"}, {"plan": "pro"}, {"plan": "free"}]
            )
        )
        markup = Markup(
            id=f"m{index}",
            **scope,
            model=draw(st.sampled_from(["*", "gpt-*", "gpt-4o", "claude-*", "*whisper*"])),
            effective_at=draw(instants),
            factor=draw(factors),
            request_nanos=draw(st.sampled_from([0, 7, REQUEST_NANOS_MAX])),
        )
        markup.check()
        markups.append(markup)
    return markups


rows = st.fixed_dictionaries(
    {
        "model": st.sampled_from([None, "", *MODELS]),
        "account": st.sampled_from([None, "", *ACCOUNTS]),
        "plan": st.sampled_from([None, *PLANS]),
        "variant": st.sampled_from([None, None, *VARIANTS]),
        "at": instants,
        "tokens": st.tuples(*[token_counts] * 4),
        "quantities": quantities(),
    }
)
