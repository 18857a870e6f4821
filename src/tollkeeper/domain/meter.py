"""
The meter: what a request costs, and the record that says so. Each rule of it stands here once.

A request reaches us in one of four ways: the gate in this process, authorize and settle over HTTP, ingest, and a
correction. All four call `cost_of`, so that the same request costs the same in each. Ingest does it for a batch at
a time, in `meter.columns`, the declared twin of this module: a property test holds the two together.

The rules, the first that applies:

1. An estimate of a job under way counts until its actual cost comes.
2. A cost that the caller states stands.
3. A free route, a cache hit and a refused request cost nothing.
4. The route's price, unless the request failed, plus the price of its model, if it used one. Unpriced without a price
   for that model and variant, or with one for units (seconds, pages) of which the request states none.
5. Without a model, on a path that no route knows, there is nothing to charge: free.

Beside it stands the provider cost, what the request costs its provider: what the caller states; else the cost that
the caller states; else the price of the model before any mark-up. A route's own price costs the provider nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from hashlib import blake2b
from typing import Final, TypeAlias

from tollkeeper.domain.catalog import Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import RECORD_FIELDS, ROUTE_CHARS_MAX, CostState, Record
from tollkeeper.domain.labels import LABELS, same_label
from tollkeeper.domain.matching import NO_TAGS, Facts
from tollkeeper.domain.pricing import ModelPrice, cost_nanos
from tollkeeper.domain.quantities import QUANTITY_PREFIX
from tollkeeper.domain.requests import Outcome, Usage

UNKNOWN_ROUTE: Final = Route(id="unknown", method="*", path="/*")
"""Stands for the policy of a path that no route knows. Compared by identity: a catalog may have a route of this id."""

PriceOf: TypeAlias = Callable[[str, str, str, str, int], "ModelPrice | None"]
"""`(model, variant, account_id, plan, at_us)` → its price, or None. Only asked for a model that is charged."""

Cost: TypeAlias = tuple[int, int, CostState, int, str]
"""`(cost_nanos, provider_cost_nanos, cost_state, credits, price_version)`. A plain tuple: every request makes one."""

NOT_OF_BODY: Final = frozenset({"received_at_us", "revision", "sign", "amendment_id", "price_version"})
"""Fields that we set, never the sender."""
PRICE_OF_BODY: Final = frozenset({"cost_nanos", "provider_cost_nanos", "cost_state", "credits"})
"""Fields that we set unless the sender does."""

_DIGEST_BYTES: Final = 16


# --- What a request costs ----------------------------------------------------------------------


def cost_of(
    price_of: PriceOf,
    account_id: str,
    at_us: int,
    route: Route,
    usage: Usage,
    model: str,
    status: int,
    cache: str,
    refused: bool = False,
    estimate_nanos: int | None = None,
    provider_nanos: int | None = None,
    plan: str = "",
) -> Cost:
    """
    Return what a request costs, by the rules at the top of this module.

    Asked before a request, with the most that it may use, it says what must be set aside. `meter.columns` does the
    same for a batch.

    Args:
        price_of: The price book.
        account_id: Who pays.
        at_us: When the request occurred.
        route: Its policy, or `UNKNOWN_ROUTE`.
        usage: What it used; `cost_nanos` and `credits` override what we would find.
        model: The model that it used: that of its hold when *usage* names none.
        status: Its HTTP status, 0 if unknown.
        cache: As `Record.cache`.
        refused: Whether a limit or budget refused it. It used nothing then, whatever it asked for.
        estimate_nanos: The expected cost of a job under way; None when the job is done.
        provider_nanos: The provider cost that the caller states, if any.
        plan: Slug of the plan in force, `""` for none: mark-ups may be for one.
    """
    failed = refused or status >= 400
    credits = usage.credits
    if credits is None:
        credits = 0 if failed or route.free else route.credits
    if estimate_nanos is not None:
        return estimate_nanos, _or(provider_nanos, estimate_nanos), "estimated", credits, ""
    if usage.cost_nanos is not None:
        return usage.cost_nanos, _or(provider_nanos, usage.cost_nanos), "given", credits, ""
    if route.free or refused or cache == "hit":
        return 0, provider_nanos or 0, "free", credits, ""
    nanos = 0 if failed else route.price_nanos
    # A request that names a model used it, with tokens or without (an image, a transcription: `request_nanos`).
    # Only one that failed before it used anything did not.
    if not model or (failed and not usage.tokens and not usage.quantities):
        if route is UNKNOWN_ROUTE:
            return 0, provider_nanos or 0, "free", credits, ""
        return nanos, provider_nanos or 0, "priced", credits, "route:" + route.id
    price = price_of(model, usage.variant, account_id, plan, at_us)
    if price is None or (price.only_units and not price.covers(usage)):
        return nanos, provider_nanos or 0, "unpriced", credits, ""
    of_model, listed_nanos = cost_nanos(price, usage)
    return nanos + of_model, _or(provider_nanos, listed_nanos), "priced", credits, price.version


def _or(stated: int | None, found: int) -> int:
    return found if stated is None else stated


def units_of(record: Record) -> dict[str, int]:
    """
    Return what a record counts in each of `UNITS` and of its quantities (`quantity.NAME`), with its sign.

    Units that are not there are 0. `meter.columns.units_columns` is its twin.
    """
    sign = record.sign
    units = {
        # A denied request used nothing, whatever it asked for; an adjustment is no request.
        "requests": 0 if record.denied_reason or record.adjustment_nanos else sign,
        "tokens": sign * record.tokens,
        # Money that is given back is money to spend again.
        "nanos": sign * (record.cost_nanos - record.adjustment_nanos),
        "credits": sign * record.credits,
    }
    for name, micros in record.quantities.items():
        units[QUANTITY_PREFIX + name] = sign * micros
    return units


def facts_of(record: Record) -> Facts:
    """Return what a record is matched by: `matching.Facts`. The tags of an adjustment say why it was made."""
    tags = NO_TAGS if record.adjustment_nanos else record.tags
    return Facts(record.model, tags, record.kind, record.method, record.route)


# --- The builders of a record ------------------------------------------------------------------


def admitted_record(
    price_of: PriceOf,
    account_id: str,
    project_id: str,
    key_id: str,
    at_us: int,
    received_at_us: int,
    id_: str,
    route: Route,
    method: str,
    path: str,
    held_nanos: int,
    expected_model: str,
    tags: Mapping[str, str],
    outcome: Outcome,
    plan: str = "",
    expected_variant: str = "",
) -> Record:
    """
    Return the record of a request that the gate admitted.

    Args:
        path: Under which it is counted: see `counted_path`.
        held_nanos: What was set aside for it; its cost while its outcome is an estimate without a number.
        expected_model: The model of the hold, which *outcome* may leave out, as it may the *tags*.
        plan: Slug of the plan that was in force when the request was admitted.
        expected_variant: The variant of the hold, which *outcome* may leave out too.
    """
    status, usage, error_type, latency_us, bytes_out, cache, stated_tags, estimated = outcome
    prompt, cached_prompt, completion, reasoning, model, stated_nanos, _, quantities, variant, answered = (
        usage
    )
    if not model:
        # The response's own name says neither the seller nor the deployment, which have the price.
        model = expected_model or answered
    if expected_variant and not variant:
        variant = expected_variant
        usage = usage._replace(variant=variant)
    estimate_nanos = None
    if estimated:
        estimate_nanos = held_nanos if stated_nanos is None else stated_nanos
    cost, provider_cost, state, credits, version = cost_of(
        price_of, account_id, at_us, route, usage, model, status, cache, False, estimate_nanos, None, plan
    )
    if stated_tags:
        tags = stated_tags
    # As `Record(…)`, in the order of its fields: every request makes one, and by name it costs 1 µs more.
    return tuple.__new__(
        Record,
        (
            account_id,
            project_id,
            key_id,
            at_us,
            received_at_us,
            id_,
            0,
            1,
            "",
            route.event_kind,
            method,
            path,
            status,
            error_type,
            "",
            latency_us,
            bytes_out,
            model,
            prompt,
            cached_prompt,
            completion,
            reasoning,
            cache,
            credits,
            cost,
            held_nanos,
            state,
            version,
            dict(tags) if tags else {},
            quantities,
            provider_cost,
            variant,
            0,
        ),
    )


def refused_record(record: Record, denial: Denial, model: str = "") -> Record:
    """Return *record*, which `free_record` made, as that of a request that the gate refused."""
    return record._replace(
        status=denial.status, error_type=denial.reason, denied_reason=denial.reason, model=model
    )


def free_record(
    account_id: str,
    project_id: str,
    key_id: str,
    at_us: int,
    id_: str,
    route: Route,
    method: str,
    path: str,
    status: int,
) -> Record:
    """Return the record of a request that is counted and costs nothing."""
    return Record(
        account_id, project_id, key_id, at_us, at_us, id_, 0, 1, "", route.event_kind, method, path, status,
        "", "", None, 0, "", 0, 0, 0, 0, "", 0, 0, 0, "free", "", {},
    )  # fmt: skip


def counted_path(route: Route, path: str) -> str:
    """
    Return the path under which a request of the gate is counted: its route's template.

    A request that no route knows is counted under the path as it was called. Ingest differs for a template that ends
    with `*`: see `meter.resolve`.
    """
    return bounded_path(path) if route is UNKNOWN_ROUTE else route.path


def bounded_path(path: str) -> str:
    """
    Return *path* as an event's `route` can hold it: Unicode text of at most `ROUTE_CHARS_MAX` characters.

    Of a longer one the end is replaced by a digest of the whole: the request must count, and different paths must
    stay different.
    """
    if not path.isascii():
        # A lone surrogate, which no store can hold, is shown as `\\udc80`.
        path = path.encode("utf-8", "backslashreplace").decode()
    if len(path) <= ROUTE_CHARS_MAX:
        return path
    digest = "~" + blake2b(path.encode(), digest_size=_DIGEST_BYTES).hexdigest()
    return path[: ROUTE_CHARS_MAX - len(digest)] + digest


def recharged(price_of: PriceOf, record: Record, route: Route, plan: str = "") -> Record:
    """
    Return *record* with the cost that it has by today's routes and prices, as if no cost had been stated.

    Args:
        plan: Slug of the plan in force now.
    """
    usage = Usage(
        record.prompt_tokens,
        record.cached_prompt_tokens,
        record.completion_tokens,
        record.reasoning_tokens,
        quantities=record.quantities,
        variant=record.variant,
    )
    # What an unpriced event costs its provider is known only if its sender stated it.
    stated = record.provider_cost_nanos if record.cost_state == "unpriced" else 0
    cost, provider_cost, state, _, version = cost_of(
        price_of,
        record.account_id,
        record.occurred_at_us,
        route,
        usage,
        record.model,
        record.status,
        record.cache,
        bool(record.denied_reason),
        provider_nanos=stated or None,
        plan=plan,
    )
    return record._replace(
        cost_nanos=cost, provider_cost_nanos=provider_cost, cost_state=state, price_version=version
    )


# --- Repeats -----------------------------------------------------------------------------------


def same_body(stored: Record, given: Record) -> bool:
    """
    Tell whether *given*, a record just made from a caller's event, reports what *stored* reported.

    When we received it and what a price list says by now are ours, not the caller's: they do not count.
    `meter.columns.same_body_columns` finds most of these in a batch.
    """
    ours = NOT_OF_BODY
    if "given" not in (stored.cost_state, given.cost_state):
        ours |= PRICE_OF_BODY
    elif stored.cost_state == given.cost_state:
        ours |= {"credits"} if stored.credits and not given.credits else set()
        # As of an event that does not state it: a customer is not shown what the provider pays.
        ours |= {"provider_cost_nanos"} if given.provider_cost_nanos == given.cost_nanos else set()
    return same_fields(stored, given, ours)


def same_fields(stored: Record, given: Record, ours: Set[str]) -> bool:
    """Tell whether the fields that are not *ours* are the same; a label that was stored as `other` may be any text."""
    return all(
        same_label(getattr(stored, name), getattr(given, name))
        if name in LABELS
        else getattr(stored, name) == getattr(given, name)
        for name in RECORD_FIELDS
        if name not in ours
    )


def same_outcome(record: Record, outcome: Outcome) -> bool:
    """Tell whether *outcome*, given for a hold that was settled, is the one that *record* books."""
    if record.revision > 0 or record.sign < 0:
        # Corrected since, so it is not what it was: a retry can only be taken as a repeat, as at ingest.
        return True
    usage = outcome.usage
    stated = "estimated" if outcome.estimated else "given" if usage.cost_nanos is not None else None
    return (
        record.status == outcome.status
        and same_label(record.error_type, outcome.error_type)
        and record.latency_us == outcome.latency_us
        and record.bytes_out == outcome.bytes_out
        and record.cache == outcome.cache
        # Left out, these two are the hold's.
        and (not usage.model or same_label(record.model, usage.model))
        and (not outcome.tags or record.tags == outcome.tags)
        and record.prompt_tokens == usage.prompt_tokens
        and record.cached_prompt_tokens == usage.cached_prompt_tokens
        and record.completion_tokens == usage.completion_tokens
        and record.reasoning_tokens == usage.reasoning_tokens
        and record.quantities == usage.quantities
        and (not usage.variant or record.variant == usage.variant)
        and (record.cost_state if record.cost_state in ("given", "estimated") else None) == stated
        and (usage.cost_nanos is None or record.cost_nanos == usage.cost_nanos)
        and (usage.credits is None or record.credits == usage.credits)
    )
