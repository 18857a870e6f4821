"""The JSON of authorize, settle and void as a client writes and reads it. `http/wire.py` has the server's side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from tollkeeper import errors
from tollkeeper.domain.decisions import STATUS_BY_REASON, Amounts, Denial
from tollkeeper.domain.events import parse_time_us
from tollkeeper.domain.extensions import Extension
from tollkeeper.domain.keyless import WithoutKey, check_keyless
from tollkeeper.domain.quantities import parse_quantities, parse_quantity, quantities_json, quantity_of_unit
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.http.credentials import SECRET_CHARS_MAX, TOKEN_CHARS_MAX
from tollkeeper.http.wire import AuthorizeAnswer, ExpectAnswer, SettleAnswer
from tollkeeper.remote.admission import Admission, Settled
from tollkeeper.remote.connections import Answer

NATIVE: Final = "native"
AUTHORIZE: Final = "/tk/v1/authorize"
EXPECT: Final = "/tk/v1/expect"
SETTLE: Final = "/tk/v1/settle"
VOID: Final = "/tk/v1/void"
USAGE: Final = "/tk/v1/usage"
EVENTS: Final = "/tk/v1/events"
_SHOWN_CHARS_MAX: Final = 200
_encode: Final = msgspec.json.Encoder().encode
_AUTHORIZED: Final = msgspec.json.Decoder(AuthorizeAnswer)
_EXPECTED: Final = msgspec.json.Decoder(ExpectAnswer)
_SETTLED: Final = msgspec.json.Decoder(SettleAnswer)


class VendorReply(msgspec.Struct, frozen=True):
    """A refusal as a profile words it."""

    status: int
    headers: list[tuple[str, str]]
    media_type: str
    body: Any


class Refused(NamedTuple):
    """A refusal, with the vendor's answer where the caller speaks a dialect."""

    denial: Denial
    reply: VendorReply | None = None


def authorize_body(
    hold_id: str,
    api_key: str,
    method: str,
    path: str,
    expected: Usage,
    tags: Mapping[str, str],
    hold_s: int | None,
    answer_as: str = NATIVE,
    headers: Mapping[str, str] = {},
    other_keys: Sequence[str] = (),
    sessions: bool | None = None,
    without_key: WithoutKey | None = None,
) -> bytes:
    """
    Return the body of an authorize; the same values make the same body.

    Args:
        answer_as: The profile that the API speaks: a refusal has the vendor's answer.
        headers: Of the request, from which the profile reads tags.
        other_keys: What came in other headers: the one that is known counts.
        sessions: Whether *api_key* may be a session token; None: as the profile's vendor does.
        without_key: Who calls without a key, in place of *api_key*: `session`, or `account` with its `user`, and more.
    """
    body: dict[str, Any] = {"id": hold_id, "method": method, "path": path}
    if without_key is None:
        # A longer one is none of ours.
        body |= {"key": api_key if len(api_key) <= TOKEN_CHARS_MAX else "", "answer_as": answer_as}
    else:
        body |= {name: value for name, value in without_key.items() if value}
    if sessions is not None:
        body["sessions"] = sessions
    model = expected.model or expected.response_model
    more = {"ttl_s": hold_s, "request_headers": headers, "tags": tags, "other_keys": other_keys}
    return _encode(body | _stated(more) | _usage(expected, model))


def expect_body(admission: Admission, expected: Usage, tags: Mapping[str, str], hold_s: int | None) -> bytes:
    """Return the body of an expect; the same values make the same body."""
    key, answer_as, headers = admission.asked
    body = {"hold_id": admission.id, "account": admission.account_id, "tags": dict(tags)}
    # A session's token may be longer; the server knows whose request it is.
    key = key if len(key) <= SECRET_CHARS_MAX else ""
    more = {"ttl_s": hold_s, "key": key, "answer_as": answer_as, "request_headers": headers}
    return _encode(body | _stated(more) | _usage(expected, expected.model or expected.response_model))


def extend_body(admission: Admission, more: Usage, hold_s: int | None) -> bytes:
    """Return the body of an expect with more than *admission* holds."""
    expected = admission.expected
    body = {"hold_id": admission.id, "account": admission.account_id, "more": _usage(more, more.model)}
    return _encode(body | _stated({"ttl_s": hold_s}) | _usage(expected, expected.model))


def without_key(api_key: str, who: WithoutKey) -> WithoutKey | None:
    """Return who calls without a key, as `authorize` takes it; None with a key. Raises `BadParameter`."""
    if not any(who.values()):
        return None
    check_keyless(api_key, who.get("session", ""), who.get("account", ""), who.get("user", ""))
    return who


def settle_body(
    hold_id: str,
    account_id: str,
    expected: Usage,
    outcome: Outcome,
    *,
    preview: bool = False,
    later_s: int | None = None,
) -> bytes:
    """Return the body of a settle; *expected* is that of the admission."""
    usage = outcome.usage
    body: dict[str, Any] = {"hold_id": hold_id, "account": account_id, "status": outcome.status}
    if preview:
        body["preview"] = True
    if later_s is not None:
        body["later_s"] = later_s
    if outcome.latency_us is not None:
        body["latency_ms"] = outcome.latency_us / 1000
    # The response's model counts where neither the caller nor the hold names one.
    model = usage.model or ("" if expected.model else usage.response_model)
    more = {
        "error_type": outcome.error_type,
        "bytes_out": outcome.bytes_out,
        "cache": outcome.cache,
        "tags": outcome.tags,
    }
    body |= _stated(more) | _usage(usage, model)
    if outcome.estimated and usage.cost_nanos is not None:
        body["estimated_cost_nanos"] = body.pop("cost_nanos")
    return _encode(body)


def void_body(hold_id: str, account_id: str | None) -> bytes:
    """Return the body of a void."""
    return _encode(
        {"hold_id": hold_id} if account_id is None else {"hold_id": hold_id, "account": account_id}
    )


def _usage(usage: Usage, model: str) -> dict[str, Any]:
    tokens = {
        "prompt": usage.prompt_tokens,
        "cached_prompt": usage.cached_prompt_tokens,
        "completion": usage.completion_tokens,
        "reasoning": usage.reasoning_tokens,
    }
    more = {
        "model": model,
        "tokens": _stated(tokens),
        "quantities": quantities_json(usage.quantities),
        "variant": usage.variant,
    }
    stated = _stated(more)
    # Of these, 0 says something.
    if usage.cost_nanos is not None:
        stated["cost_nanos"] = usage.cost_nanos
    if usage.credits is not None:
        stated["credits"] = usage.credits
    return stated


def _stated(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


# -- answers --------------------------------------------------------------------------------------------------


def authorized(answer: Answer) -> AuthorizeAnswer | Refused:
    """Return what an authorize was answered. Raises the server's error."""
    if answer.status == 200:
        said: AuthorizeAnswer = decoded(_AUTHORIZED, answer)
        return said
    return _refused(answer)


def _refused(answer: Answer) -> Refused:
    problem = _problem(answer)
    code = problem.get("code")
    if code in STATUS_BY_REASON:
        reply = problem.get("reply")
        return Refused(denial_of(problem), None if reply is None else msgspec.convert(reply, VendorReply))
    raise error_of(answer, problem)


def expected(answer: Answer) -> ExpectAnswer | Refused:
    """Return what an expect was answered. Raises the server's error."""
    if answer.status == 200:
        said: ExpectAnswer = decoded(_EXPECTED, answer)
        return said
    return _refused(answer)


def extension_of(said: ExpectAnswer, more: Usage) -> Extension:
    """Return what of *more* was granted."""
    granted = said.granted
    denial = None if said.denial is None else denial_of(said.denial)
    if granted is None:
        return Extension(denial=denial)
    tokens = granted.tokens
    part = more._replace(
        prompt_tokens=tokens.prompt,
        cached_prompt_tokens=tokens.cached_prompt,
        completion_tokens=tokens.completion,
        reasoning_tokens=tokens.reasoning,
        cost_nanos=None if granted.cost_nanos is None else int(granted.cost_nanos),
        credits=granted.credits,
        quantities=parse_quantities(granted.quantities),
    )
    return Extension(part, denial)


def settled(answer: Answer) -> Settled:
    """Return what a settle was answered. Raises the server's error."""
    if answer.status != 200:
        raise error_of(answer)
    said = decoded(_SETTLED, answer)
    return Settled(
        said.event_id,
        said.account,
        int(said.cost_nanos),
        said.cost_state,
        said.tokens,
        said.credits,
        parse_quantities(said.quantities),
        int(said.beyond_hold_nanos),
        said.replayed,
        said.headers,
    )


def denial_of(problem: Mapping[str, Any]) -> Denial:
    """Return the denial that a problem document states: the reverse of `http.denials.denial_problem`."""
    unit = problem.get("unit", "")
    resets_at = problem.get("resets_at")
    return Denial(
        reason=problem["code"],
        message=problem.get("detail", ""),
        limit=problem.get("limit", ""),
        unit=unit,
        allowed=_amount(problem.get("allowed"), unit),
        used=_amount(problem.get("used"), unit),
        largest_fit=_amount(problem.get("largest_fit"), unit),
        retry_after_s=problem.get("retry_after_s", 1 if problem["code"] == "unavailable" else None),
        resets_at_us=None if resets_at is None else parse_time_us(resets_at),
        match=problem.get("match", ""),
    )


def _amount(value: int | str | None, unit: str) -> int | None:
    if isinstance(value, str):
        name = quantity_of_unit(unit)
        return int(value) if name is None else parse_quantity(name, value)
    return value


def error_of(answer: Answer, problem: Mapping[str, Any] | None = None) -> errors.TollkeeperError:
    """Return the error that an answer states, of the class of its code."""
    problem = _problem(answer) if problem is None else problem
    code = problem.get("code")
    detail = str(problem.get("detail", ""))
    if code == "too_many_failures":
        return errors.Unauthenticated("The server does not know the key, and was sent it too often.")
    kind = _ERRORS.get(str(code))
    if kind is errors.BadParameter:
        return errors.BadParameter(detail, field=str(problem.get("field", "")))
    if kind is errors.TooManyQueries:
        return errors.TooManyQueries(detail)
    if kind is not None:
        return kind(detail)
    if answer.status in (502, 503, 504):
        return errors.Unavailable(f"The server cannot be reached through its proxy (HTTP {answer.status}).")
    return errors.TollkeeperError(
        f"The server answered HTTP {answer.status}: {detail[:_SHOWN_CHARS_MAX] or 'is it a Tollkeeper server?'}"
    )


def is_transient(answer: Answer) -> bool:
    """Return whether the same call may be answered otherwise in a moment: a store or a proxy cannot do it now."""
    return answer.status in (502, 503, 504)


def may_be_done(answer: Answer) -> bool:
    """Return whether the server may do the call yet though it is answered an error: it or its proxy waited too long."""
    detail = str(_problem(answer).get("detail", "")) if answer.status == 503 else ""
    return answer.status in (502, 504) or errors.OUTCOME_UNKNOWN in detail


def _problem(answer: Answer) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def decoded(decoder: msgspec.json.Decoder[Any], answer: Answer) -> Any:
    try:
        return decoder.decode(answer.body)
    except msgspec.DecodeError as exc:
        raise errors.TollkeeperError(
            f"The server's answer cannot be read: {exc}. Is it a Tollkeeper server of this version?"
        ) from exc


def _classes(kind: type[errors.TollkeeperError]) -> Iterator[type[errors.TollkeeperError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _classes(below)


_ERRORS: Final = {kind.code: kind for kind in _classes(errors.TollkeeperError)}


def admission_of(
    said: AuthorizeAnswer, dropped: Any, method: str, expected: Usage, tags: Mapping[str, str]
) -> Admission:
    """Return the admission that the server answered."""
    return Admission(
        dropped,
        id=said.hold_id,
        account_id=said.account,
        key_id=said.key_id,
        project=said.project,
        method=method,
        path=said.route,
        amounts=Amounts(1, said.held_tokens, int(said.held_nanos), said.held_credits),
        expected=expected,
        tags=tags,
        expires_at_us=parse_time_us(said.expires_at),
        headers=list(said.headers.items()),
    )
