"""
Alerts and recommendations: figures of an account or a key that need attention.

Each rule compares one figure with one threshold. Its message names the figure, its advice follows from it, and
a rule whose figure is within bounds says nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple

Kind = Literal["rate_limit", "error_rate", "latency", "budget", "key_expiry", "key_idle"]
KINDS: Final[tuple[Kind, ...]] = ("rate_limit", "error_rate", "latency", "budget", "key_expiry", "key_idle")
Priority = Literal["low", "medium", "high"]
HUNDREDTHS: Final = 100
"""Of a percent in a percent."""


class Alert(NamedTuple):
    """
    One thing to look at.

    Attributes:
        message: The figure that crossed the threshold, for people.
        advice: What to do about it.
    """

    kind: Kind
    priority: Priority
    message: str
    advice: str


class Thresholds(NamedTuple):
    """The thresholds of each rule. Percentages are whole numbers from 0 to 100, figures at a threshold cross it."""

    utilisation_percent: int = 80
    utilisation_percent_high: int = 95
    error_percent: int = 5
    error_percent_high: int = 20
    latency_factor: int = 2
    budget_percent: int = 80
    budget_percent_high: int = 95
    expiry_days: int = 7
    idle_days: int = 30


DEFAULTS: Final = Thresholds()


def percent_hundredths(part: int, whole: int) -> int:
    """Return *part* of *whole* in hundredths of a percent, half up; 0 of nothing."""
    return 0 if whole <= 0 else (2 * part * 10_000 + whole) // (2 * whole)


def error_rate_alert(
    requests: int, errors: int, *, leading_status: int | None = None, thresholds: Thresholds = DEFAULTS
) -> Alert | None:
    """
    Return an alert when too many of *requests* failed.

    Args:
        leading_status: The HTTP status that most of the errors have, if known: the advice is for that one.
    """
    if requests <= 0 or errors * 100 < thresholds.error_percent * requests:
        return None
    priority: Priority = "high" if errors * 100 >= thresholds.error_percent_high * requests else "medium"
    message = f"Error rate is {_percent(errors, requests)}: {errors} of {requests} requests failed"
    return Alert("error_rate", priority, message, _error_advice(leading_status))


def latency_alert(
    average_ms: float | None, average_ms_before: float | None, *, thresholds: Thresholds = DEFAULTS
) -> Alert | None:
    """Return an alert when the average latency is a multiple of what it was in the window before."""
    if not average_ms or not average_ms_before or average_ms < thresholds.latency_factor * average_ms_before:
        return None
    message = (
        f"Average latency is {_figure(average_ms)} ms, {_figure(average_ms / average_ms_before)} times the "
        f"{_figure(average_ms_before)} ms of the window before"
    )
    return Alert(
        "latency", "medium", message, "Look for the endpoint whose latency rose, and sort by latency"
    )


def utilisation_alert(
    name: str, used: int, allowed: int | None, *, thresholds: Thresholds = DEFAULTS
) -> Alert | None:
    """
    Return an alert when a rate limit is nearly used up.

    Args:
        name: The limit in words, e.g. `requests per minute`.
        allowed: None for no limit; no alert then.
    """
    if allowed is None or allowed <= 0 or used * 100 < thresholds.utilisation_percent * allowed:
        return None
    message = f"{used} of {allowed} {name} are used: {_percent(used, allowed)}"
    if used >= allowed:
        return Alert("rate_limit", "high", message, "Wait for the window to end, or move to a higher limit")
    priority: Priority = "high" if used * 100 >= thresholds.utilisation_percent_high * allowed else "medium"
    advice = f"Spread requests out: {allowed - used} more fit into this window, then calls get 429"
    return Alert("rate_limit", priority, message, advice)


def budget_alert(
    name: str,
    used: int,
    allowed: int | None,
    *,
    start_at: datetime | None = None,
    end_at: datetime | None = None,
    now: datetime,
    thresholds: Thresholds = DEFAULTS,
) -> Alert | None:
    """
    Return an alert when a budget is nearly used up, or will be before its period ends at the pace so far.

    Args:
        used: In the budget's unit; *allowed* too, None for no bound.
        start_at, end_at: The period; without both of them the pace is not looked at.
    """
    if allowed is None or allowed <= 0 or used <= 0:
        return None
    message = f"Budget {name} is {_percent(used, allowed)} used"
    if used * 100 >= thresholds.budget_percent * allowed:
        high = used * 100 >= thresholds.budget_percent_high * allowed
        advice = "Raise the budget or stop what can wait"
        if end_at is not None:
            advice += f": it is renewed at {_instant(end_at)}"
        return Alert("budget", "high" if high else "medium", message, advice)
    if start_at is None or end_at is None or not start_at < now < end_at:
        return None
    # The first tenth of a period tells too little about the rest of it.
    if (now - start_at) * 10 < end_at - start_at:
        return None
    runs_out_at = start_at + (now - start_at) * allowed / used
    if runs_out_at >= end_at:
        return None
    message += f" and runs out at {_instant(runs_out_at)}, before its period ends at {_instant(end_at)}"
    return Alert("budget", "medium", message, "Spend more slowly, or raise the budget before then")


def expiry_alert(
    name: str, expires_at: datetime | None, *, now: datetime, thresholds: Thresholds = DEFAULTS
) -> Alert | None:
    """Return an alert when an active key named *name* expires soon."""
    if expires_at is None or not now < expires_at <= now + timedelta(days=thresholds.expiry_days):
        return None
    message = f"Key {name} expires in {_span(expires_at - now)}, at {_instant(expires_at)}"
    return Alert("key_expiry", "medium", message, "Create a new key and switch to it before then")


def idle_alert(
    name: str, last_used_at: datetime | None, created_at: datetime, *, now: datetime,
    thresholds: Thresholds = DEFAULTS,
) -> Alert | None:  # fmt: skip
    """Return an alert when an active key named *name* has not been used for long, or never since it was made."""
    idle = now - (last_used_at or created_at)
    if idle < timedelta(days=thresholds.idle_days):
        return None
    if last_used_at is None:
        message = f"Key {name} was never used in the {idle.days} days since it was made"
    else:
        message = f"Key {name} was last used {_span(idle)} ago"
    return Alert("key_idle", "low", message, "Revoke it if nothing needs it")


def _error_advice(status: int | None) -> str:
    if status == 429:
        return "Back off on 429 responses: wait as long as Retry-After says"
    if status in (401, 403):
        return f"Check the key and its permissions: most errors have status {status}"
    if status == 402:
        return "Top up or raise the budget: most errors have status 402"
    if status is not None and status >= 500:
        return f"Retry with growing pauses and report it: most errors have status {status}"
    if status is not None and status >= 400:
        return f"Check what the client sends: most errors have status {status}"
    return "Look at the error types, the most frequent first"


def _percent(part: int, whole: int) -> str:
    return _figure(percent_hundredths(part, whole) / HUNDREDTHS) + "%"


def _figure(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _instant(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _span(span: timedelta) -> str:
    if span >= timedelta(days=1):
        return f"{span.days} day{'s' if span.days != 1 else ''}"
    hours = span // timedelta(hours=1)
    return f"{hours} hour{'s' if hours != 1 else ''}" if hours else "less than an hour"
