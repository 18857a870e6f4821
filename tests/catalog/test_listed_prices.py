"""The built-in list: models by the names that gateways use, and the package's own arithmetic over all of it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from math import floor
from random import Random

import pytest

from tollkeeper.catalog.price_book import PriceBook
from tollkeeper.catalog.price_timeline import DAY_US
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.pricing import ModelPrice, cost_nanos
from tollkeeper.domain.quantities import MICROS, parse_quantities
from tollkeeper.domain.requests import Usage

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
BUILT_IN = PriceBook([])


def _price(model: str, *, at: datetime = NOON, variant: str = "") -> ModelPrice | None:
    return BUILT_IN.price_of(model, account_id="acme", at_us=to_us(at), variant=variant)


class TestBuiltInList:
    @pytest.mark.parametrize(
        ("model", "prompt", "cached", "completion"),
        [
            ("gpt-4o", "2.5", "1.25", "10"),
            ("openai/gpt-4o-mini", "0.15", "0.075", "0.6"),
            ("anthropic/claude-sonnet-4-5", "3", "0.3", "15"),
            ("openrouter/openai/gpt-4o", "2.5", None, "10"),
        ],
    )
    def test_models_are_found_by_the_names_that_gateways_use(self, model, prompt, cached, completion):
        tier = _price(model).tiers[0]
        assert tier.prompt == Decimal(prompt) * 10**9
        assert tier.cached_prompt == (Decimal(cached) * 10**9 if cached else tier.prompt)
        assert tier.completion == tier.reasoning == Decimal(completion) * 10**9

    def test_a_seller_in_front_of_the_name_is_heeded(self):
        """The package itself does not understand this form."""
        assert "azure/deepseek-v3.2" in _price("azure/DeepSeek-V3.2").version
        assert "openai/gpt-4o" in _price("gpt-4o").version

    @pytest.mark.parametrize(
        "model",
        [
            "",
            "no-such-model-anywhere",
            "no-such-seller/gpt-4o",
            "anthropic/gpt-4o",
            "/",
            "openai/",
            "/gpt-4o",
        ],
    )
    def test_what_no_source_knows_has_no_price(self, model):
        """Never 0: it would let callers use it for nothing. What its seller does not list is unknown too."""
        assert _price(model) is None

    def test_a_list_without_prices_is_free_only_where_the_name_says_so(self):
        assert _price("azure/mai-ds-r1:free").tiers[0][1:5] == (0, 0, 0, 0)
        assert _price("github-copilot/gpt-4o") is None

    def test_a_price_by_time_of_day_changes_to_the_minute(self):
        """The list of deepseek-chat is dearer from 00:30 to 16:30 UTC."""
        day = datetime(2026, 3, 1, tzinfo=UTC)
        dear, cheap = _price("deepseek-chat", at=day.replace(hour=12)), _price("deepseek-chat", at=day)
        assert dear.tiers[0].prompt > cheap.tiers[0].prompt
        microsecond = timedelta(microseconds=1)
        for at, before, after in (
            (day.replace(minute=30), cheap, dear),
            (day.replace(hour=16, minute=30), dear, cheap),
        ):
            assert _price("deepseek-chat", at=at - microsecond) == before
            assert _price("deepseek-chat", at=at) == after

    @pytest.mark.parametrize("variant", ["", "batch", "flex", "priority", "fast"])
    def test_it_agrees_with_the_package_on_every_model(self, variant):
        """Dates, times of day, tiers, every class and unit, absent classes, service tiers: to the nano."""
        from genai_prices.data import providers

        random = Random(7)
        compared = 0
        for provider in providers:
            for info in provider.models:
                days = random.randrange(-60, 60) if variant else random.randrange(-520, 10)
                at_us = to_us(NOW) + days * DAY_US + random.randrange(DAY_US)
                model = f"{provider.id}/{info.id}"
                price = BUILT_IN.price_of(model, account_id="", at_us=at_us, variant=variant)
                listed = BUILT_IN.listed(model)
                if price is None or listed is None or listed.model is not info:
                    continue  # The list's rules may give a model's own id to another model.
                for usage in (_some_usage(random), _some_usage(random, 300_000)):
                    theirs = _calculated(provider, info, usage, variant, at_us)
                    assert cost_nanos(price, usage) == (theirs, theirs), model
                compared += 1
        assert compared > {"": 2_000, "batch": 80, "flex": 15, "priority": 15, "fast": 15}[variant]

    def test_what_the_package_cannot_price_has_no_price(self):
        """Every model that it can price has one here: none is left out for a unit that we do not know."""
        from genai_prices.data import providers

        for provider in providers:
            for info in provider.models:
                prices = info.prices if isinstance(info.prices, list) else [info]
                stated = [vars(one.prices) for one in prices]
                model = f"{provider.id}/{info.id}"
                known = BUILT_IN.timeline(model, "").prices
                if not BUILT_IN._built_in.names(model):
                    continue  # Its own id is none of the names that it is found by.
                if any(any(value is not None for value in one.values()) for one in stated):
                    assert any(price is not None for price in known), model

    @pytest.mark.parametrize(
        ("model", "variant", "nanos"),
        [
            ("gpt-5", "", 1_250 + 10_000),
            ("gpt-5", "flex", 625 + 5_000),
            ("gpt-5", "Batch", 625 + 5_000),
            ("gpt-5", "priority", 2_500 + 20_000),
            ("claude-opus-4-8", "fast", 10_000 + 50_000),
            ("gpt-5", "default", 1_250 + 10_000),
            ("gpt-5", "standard", 1_250 + 10_000),
        ],
    )
    def test_a_service_tier_has_its_own_price(self, model, variant, nanos):
        """M6."""
        assert cost_nanos(_price(model, at=NOW, variant=variant), Usage(1, 0, 1))[0] == nanos

    @pytest.mark.parametrize(
        ("model", "variant", "at"),
        [
            ("gpt-4o", "flex", NOW),
            ("openrouter/openai/gpt-5", "batch", NOW),
            ("azure/gpt-5", "batch", NOW),
            ("gpt-5", "no-such-tier", NOW),
            ("gpt-5", "flex", NOON),
        ],
    )
    def test_a_variant_that_the_list_does_not_price_has_no_price(self, model, variant, at):
        """Never the standard price in silence: not of a tier that the seller lacks, nor before the list knows it."""
        assert _price(model, at=at) is not None
        assert _price(model, at=at, variant=variant) is None

    @pytest.mark.parametrize(
        ("model", "tokens", "quantities", "usd"),
        [
            (
                "claude-sonnet-4-5-20250929",
                (12, 20_000, 350),
                {"cache_write_tokens": 4000, "cache_write_1h_tokens": 6000},
                "0.062286",
            ),
            ("gpt-5.6", (600, 2000, 300), {"cache_write_tokens": 400}, "0.0112"),
            ("gemini-2.5-flash", (8, 0, 200), {"audio_prompt_tokens": 19_200}, "0.0197024"),
            ("claude-sonnet-4-5", (1000, 0, 200), {"searches": 3}, "0.036"),
            ("whisper-1", (), {"seconds": "61.5"}, "0.00615"),
            ("groq/whisper-large-v3", (), {"seconds": "2"}, "0.000308333"),
            ("perplexity/sonar", (), {}, "0.012"),
        ],
    )
    def test_cases_from_the_world_cost_what_they_must(self, model, tokens, quantities, usd):
        """M3, M4, M7 and M10 by the list."""
        usage = Usage(*tokens, quantities=parse_quantities(quantities))
        nanos = int(Decimal(usd) * 10**9)
        assert cost_nanos(_price(model, at=NOW), usage) == (nanos, nanos)

    def test_a_transcription_without_seconds_has_no_price(self):
        """M2: `whisper-1` is listed per hour, so a request that states its model only cannot be priced."""
        price = _price("whisper-1", at=NOW)
        assert price.only_units == {"seconds"}
        assert not price.covers(Usage())

    def test_it_never_touches_the_network_and_waits_to_be_needed(self):
        """In a fresh interpreter whose sockets do not work."""
        script = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the network was touched")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from tollkeeper.domain.catalog import Price
from tollkeeper.catalog.price_book import PriceBook
book = PriceBook([Price(id="p1", model="m")])
assert "genai_prices" not in sys.modules
assert book.price_of("gpt-4o", account_id="a", at_us=1_772_366_400_000_000).tiers
assert "genai_prices" in sys.modules
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def _some_usage(random: Random, tokens_max: int = 3_000) -> Usage:
    """Tokens and units of some names, most of the time of few."""

    def some() -> int:
        return random.choice([0, random.randrange(tokens_max)])

    names = (
        "cache_write_tokens",
        "cache_write_1h_tokens",
        "audio_prompt_tokens",
        "audio_cached_prompt_tokens",
        "image_prompt_tokens",
        "image_cached_prompt_tokens",
        "video_prompt_tokens",
        "audio_completion_tokens",
        "image_completion_tokens",
        "video_completion_tokens",
        "searches",
        "storage_searches",
        "messages",
        "characters",
        "pages",
        "annotated_pages",
    )
    quantities = {name: some() for name in names}
    quantities["seconds"] = f"{random.randrange(10**6)}.{random.randrange(10**6):06}"
    if random.random() < 0.5:
        quantities["seconds"] = f"{random.randrange(11)}.{random.randrange(10**6):06}"
    kept = {name: value for name, value in quantities.items() if random.random() < 0.7}
    return Usage(some(), some(), some(), some(), quantities=parse_quantities(kept))


def _calculated(provider, info, usage: Usage, variant: str, at_us: int) -> int:
    """What the package says, in nanos, rounded half up: its counts are inclusive."""
    from genai_prices import Usage as TheirUsage

    def of(name: str) -> int:
        return usage.quantities.get(name, 0) // MICROS

    written = of("cache_write_tokens") + of("cache_write_1h_tokens")
    audio = of("audio_prompt_tokens") + of("audio_cached_prompt_tokens")
    image = of("image_prompt_tokens") + of("image_cached_prompt_tokens")
    cached = usage.cached_prompt_tokens + of("audio_cached_prompt_tokens") + of("image_cached_prompt_tokens")
    audio_out, image_out = of("audio_completion_tokens"), of("image_completion_tokens")
    video_out = of("video_completion_tokens")
    seconds = Decimal(usage.quantities.get("seconds", 0)) / MICROS
    theirs = TheirUsage(
        input_tokens=usage.prompt_tokens
        + usage.cached_prompt_tokens
        + written
        + audio
        + image
        + of("video_prompt_tokens"),
        cache_read_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=of("cache_write_1h_tokens"),
        input_audio_tokens=audio,
        cache_audio_read_tokens=of("audio_cached_prompt_tokens"),
        input_image_tokens=image,
        cache_image_read_tokens=of("image_cached_prompt_tokens"),
        input_video_tokens=of("video_prompt_tokens"),
        output_tokens=usage.completion_tokens + usage.reasoning_tokens + audio_out + image_out + video_out,
        output_reasoning_tokens=usage.reasoning_tokens,
        output_audio_tokens=audio_out,
        output_image_tokens=image_out,
        output_video_tokens=video_out,
        output_citation_tokens=0,
        web_searches=of("searches"),
        storage_searches=of("storage_searches"),
        input_text_messages=of("messages"),
        input_characters=of("characters"),
        input_document_pages=of("pages") + of("annotated_pages"),
        input_annotated_document_pages=of("annotated_pages"),
        audio_seconds=seconds,
        input_audio_seconds=seconds,
    )
    keys = {key for priced in info.price_variants or () for key in priced.when}
    with warnings.catch_warnings(), localcontext() as context:
        warnings.simplefilter("ignore")
        context.prec = 100
        price = info.calc_price(
            theirs,
            provider,
            genai_request_timestamp=from_us(at_us),
            price_context=dict.fromkeys(keys, variant) if variant else None,
        )
        # A third of a nano is not exact in any decimal: 90 of the 100 places are.
        exact = Fraction(price.total_price.quantize(Decimal(1).scaleb(-90), ROUND_HALF_EVEN)) * 10**9
    return floor(exact.limit_denominator(10**40) + Fraction(1, 2))
