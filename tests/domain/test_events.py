"""Times are read to the microsecond, and a retry is told from another event with the same id."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tollkeeper.domain import events
from tollkeeper.domain.events import (
    RECORD_FIELDS,
    Event,
    Record,
    latency_us,
    parse_time_us,
    record_to_event,
)
from tollkeeper.domain.instants import from_us, to_text, to_us
from tollkeeper.domain.quantities import MICROS, QUANTITY_MICROS_MAX, TOKEN_CLASSES, TOKENS_MAX

offsets = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
instants = st.datetimes(timezones=offsets | st.just(UTC))


class TestTime:
    @given(instants, st.sampled_from("Tt "), st.text("0123456789", max_size=12))
    def test_it_agrees_with_the_standard_library(self, at, separator, fraction):
        text = at.replace(microsecond=0).isoformat().replace("T", separator)
        if fraction:
            text = f"{text[:19]}.{fraction}{text[19:]}"
        assert parse_time_us(text) == to_us(datetime.fromisoformat(text))

    @given(st.from_regex(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", fullmatch=True))
    @example("2026-02-29T00:00:00Z")
    @example("2026-01-01T00:00:60Z")
    @example("2026-01-01T00:00:00+24:00")
    def test_it_accepts_no_day_or_time_that_the_standard_library_refuses(self, text):
        try:
            ours = parse_time_us(text)
        except ValueError:
            return
        assert ours == to_us(datetime.fromisoformat(text))

    @given(instants.map(lambda at: at.replace(tzinfo=UTC)))
    def test_what_we_answer_is_what_we_read(self, at):
        assert from_us(parse_time_us(to_text(at))) == at

    @given(st.datetimes(datetime(1000, 1, 1)).map(datetime.isoformat))
    def test_a_time_without_offset_is_refused(self, text):
        """Guessing a zone would book an event in the wrong hour, and nobody would see it."""
        assume("." in text or len(text) == 19)
        with pytest.raises(ValueError, match="with an offset"):
            parse_time_us(text)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "2026-01-31",
            "2026-01-31T09:30Z",
            "2026-01-31T09:30:00.Z",
            "2026-01-31T09:30:00+0100",
            "2026-01-31T09:30:00Z\n",
            " 2026-01-31T09:30:00Z",
            "1769851800",
            "２０２６-01-31T09:30:00Z",
            "2026-02-30T09:30:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T09:30:00+01:60",
            "0000-01-01T00:00:00Z",
        ],
    )
    def test_what_is_not_rfc_3339_is_refused(self, text):
        with pytest.raises(ValueError):
            parse_time_us(text)

    @given(st.integers(0, events.LATENCY_MS_MAX * 1000))
    def test_whole_microseconds_of_latency_survive_the_float(self, micros):
        assert latency_us(micros / 1000) == micros


names = st.text(max_size=8)
tokens = st.integers(0, events.TOKENS_MAX)
charges = st.integers(0, events.COST_NANOS_MAX)


def quantities() -> st.SearchStrategy[dict[str, int]]:
    """Quantities as records have them: micro-units, token classes whole, in the order of the names."""
    micros = {
        **{name: st.integers(1, TOKENS_MAX).map(lambda tokens: tokens * MICROS) for name in TOKEN_CLASSES},
        **dict.fromkeys(("seconds", "images", "own_unit"), st.integers(1, QUANTITY_MICROS_MAX)),
    }
    some = st.sets(st.sampled_from(sorted(micros)), max_size=4)
    return st.just({}) | some.flatmap(
        lambda names: st.fixed_dictionaries({name: micros[name] for name in sorted(names)})
    )


times_us = st.integers(events.TIME_MIN_US, 2_000_000_000_000_000)

VALUES: dict[str, st.SearchStrategy] = {
    "account_id": names,
    "project_id": names,
    "key_id": names,
    "occurred_at_us": times_us,
    "received_at_us": times_us,
    "id": st.text(min_size=1, max_size=8),
    "revision": st.integers(0, 9),
    "sign": st.sampled_from([-1, 1]),
    "amendment_id": names,
    "kind": names,
    "method": names,
    "route": names,
    "status": st.integers(0, 999),
    "error_type": names,
    "denied_reason": names,
    "latency_us": st.none() | st.integers(0, 10**9),
    "bytes_out": st.integers(0, events.BYTES_MAX),
    "model": names,
    "prompt_tokens": tokens,
    "cached_prompt_tokens": tokens,
    "completion_tokens": tokens,
    "reasoning_tokens": tokens,
    "cache": st.sampled_from(["", "hit", "miss", "none"]),
    "credits": charges,
    "cost_nanos": charges,
    "estimated_cost_nanos": charges,
    "cost_state": st.sampled_from(["given", "priced", "estimated", "unpriced", "free"]),
    "price_version": names,
    "tags": st.dictionaries(st.text(min_size=1, max_size=4), names, max_size=3),
    "quantities": quantities(),
    "provider_cost_nanos": charges,
    "variant": names,
    "adjustment_nanos": st.just(0) | st.integers(-events.COST_NANOS_MAX, events.COST_NANOS_MAX),
}
records = st.builds(Record, **VALUES)


class TestWire:
    @pytest.mark.parametrize(
        "changes",
        [
            {"colour": "red"},
            {"id": ""},
            {"id": "x" * (events.ID_CHARS_MAX + 1)},
            {"id": 7},
            {"tokens": {"prompt": -1}},
            {"tokens": {"prompt": events.TOKENS_MAX + 1}},
            {"tokens": {"prompt": 1.5}},
            {"tokens": {"prompts": 1}},
            {"status": 1000},
            {"latency_ms": -0.1},
            {"bytes_out": events.BYTES_MAX + 1},
            {"cost_nanos": -1},
            {"cost_nanos": events.COST_NANOS_MAX + 1},
            {"cost_nanos": "1"},
            {"cache": "maybe"},
            {"tags": {"": "x"}},
            {"tags": {str(n): "x" for n in range(events.TAGS_MAX + 1)}},
        ],
    )
    def test_absurd_values_are_refused(self, changes):
        good = {"id": "e1", "time": "2026-01-31T09:30:00Z", "account": "acme"}
        assert msgspec.convert(good, Event).id == "e1"
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(msgspec.json.encode({**good, **changes}), type=Event)

    @given(records)
    def test_a_record_is_shown_with_its_time_money_and_tokens_exact(self, record):
        body = record_to_event(record)
        assert parse_time_us(body["time"]) == record.occurred_at_us
        assert int(body["cost_nanos"]) == record.cost_nanos
        assert sum(body.get("tokens", {}).values()) == sum(record[18:22])
        assert RECORD_FIELDS[18:22] == (
            "prompt_tokens",
            "cached_prompt_tokens",
            "completion_tokens",
            "reasoning_tokens",
        )
        assert "" not in body.values()
        assert None not in body.values()
