"""
The hot endpoints as plain ASGI: authorize, settle, void, events.

Each answers only after the group commit that holds its work, so its result survives a crash.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from tollkeeper.api.events_answer import EventsAnswer, events_answer
from tollkeeper.clock import Clock
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import latency_us, stated_quantities
from tollkeeper.domain.extensions import Extension
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.keyless import Caller, Keyless
from tollkeeper.domain.money_fields import BadMoney, with_nanos
from tollkeeper.domain.quantities import BadQuantity, quantities_json
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.domain.requirements import requirement
from tollkeeper.domain.usage_forms import form_hint, type_hint
from tollkeeper.errors import BadParameter, Forbidden, Malformed, UnsupportedMediaType
from tollkeeper.gate.gate import Admission
from tollkeeper.http.auth import Principal
from tollkeeper.http.bodies import decompressed, header
from tollkeeper.http.denials import denial_body, denial_headers, denial_problem
from tollkeeper.http.executors import Threads
from tollkeeper.http.fair_queue import OPERATOR, FairQueue
from tollkeeper.http.known_key import KnownKey, may_be_session
from tollkeeper.http.metered import Dialects, TextHeaders, admits_sessions, encoded
from tollkeeper.http.routes.fields import money_names
from tollkeeper.http.wire import (
    AuthorizeAnswer,
    AuthorizeRequest,
    ExpectAnswer,
    ExpectRequest,
    GrantedUsage,
    MoreUsage,
    SettleAnswer,
    SettleRequest,
    TokenCounts,
    VoidAnswer,
    VoidRequest,
)
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.ended_holds import Settled
from tollkeeper.ledger.holds import Holds
from tollkeeper.ledger.stored_holds import keyless_caller_of
from tollkeeper.profiles import names

if TYPE_CHECKING:
    from tollkeeper.meter.ingest import Ingest

SMALL_BODY_BYTES_MAX: Final = 64 * 1024
BODIES_OF_PAYER_MAX: Final = 2
"""Most bytes of batches that an account may have under way, in largest bodies: one is booked while another arrives."""
BODIES_MAX: Final = 8
"""The same for all accounts together, and for the operator: 512 MiB each at the default."""

HotAnswer = tuple[int, list[tuple[bytes, bytes]], bytes]
T = TypeVar("T", bound=msgspec.Struct)

_JSON: Final = (b"content-type", b"application/json")
_PROBLEM: Final = (b"content-type", b"application/problem+json")
_INGEST: Final = (
    ". Access logs and CSV are booked by `tollkeeper ingest FILE`, to which --url names this server"
)
_OTHER_DOORS: Final = {
    b"text/plain": _INGEST,
    b"text/csv": _INGEST,
    b"application/x-www-form-urlencoded": ". It is what `curl -d` sends by itself",
}
"""Media types that are sent by mistake → what to do instead."""
_encode: Final = msgspec.json.Encoder().encode
_AUTHORIZE: Final = msgspec.json.Decoder(AuthorizeRequest)
_EXPECT: Final = msgspec.json.Decoder(ExpectRequest)
_SETTLE: Final = msgspec.json.Decoder(SettleRequest)
_VOID: Final = msgspec.json.Decoder(VoidRequest)
_NO_TOKENS: Final = TokenCounts()
_UNKNOWN: Final = re.compile(r"Object contains unknown field `([^`]{1,128})`")


class HotEndpoints:
    """The handlers, by path. They raise our errors; the dispatcher turns these into problems."""

    def __init__(
        self,
        holds: Holds,
        ingest: Ingest,
        dialects: Dialects,
        known_key: KnownKey,
        clock: Clock,
        *,
        new_id: Callable[[int], str],
        threads: Threads,
        body_bytes_max: int,
    ) -> None:
        self._holds = holds
        self._ingester = ingest
        self._dialects = dialects
        self._known_key = known_key
        self._clock = clock
        self._new_id = new_id
        self._threads = threads
        self._body_bytes_max = body_bytes_max
        # Two: one batch is decoded while another waits for its commit.
        self.batches = FairQueue(
            2, payer_bytes_max=BODIES_OF_PAYER_MAX * body_bytes_max, bytes_max=BODIES_MAX * body_bytes_max
        )

    async def authorize(
        self, principal: Principal, body: bytes, headers: list[tuple[bytes, bytes]]
    ) -> HotAnswer:
        _operator_only(principal)
        request = _decoded(_AUTHORIZE, body)
        expected = await self._expected(request)
        if request.answer_as:
            request = self._with_tags(request)
        caller: Caller | Denial = _checked_key(request)
        if request.key is None:
            caller = await self._threads.run(self._without_key, request)
        elif self._may_be_session(request):
            profile = request.answer_as or request.profile
            caller = await self._threads.run(self._known_key.caller, _keys_of(request), profile)
        elif request.other_keys:
            caller = await self._threads.attempt(self._known_key.of, _keys_of(request))
        if isinstance(caller, Denial):
            return await self._threads.run(self._refusal, request, request.key or "", caller)
        future = CommitFuture(asyncio.get_running_loop())
        if request.id is None:
            # Of a key that was seen before all is in memory.
            found = await self._threads.attempt(self._authorize, request, caller, expected, future)
        else:
            # A named hold may have to be looked up in the stores.
            found = await self._threads.run(self._authorize, request, caller, expected, future)
        if isinstance(found, Denial):
            return await self._threads.run(self._refusal, request, caller, found)
        admission, commit = found
        try:
            await commit.committed()
        except BaseException:
            if request.id is None:
                # Nobody has its id: not the caller, who is told that it failed, nor one who has gone.
                self._holds.give_back(admission)
            raise
        profile = request.answer_as or admission.compiled_key.profile
        dialect = None if profile == "native" else self._dialects.of(profile)
        if dialect is None:
            return 200, [_JSON], _encode(_authorize_answer(admission, {}))
        if (objection := dialect.objection(admission, caller)) is not None:
            future = CommitFuture(asyncio.get_running_loop())
            _, voided = await self._threads.run(
                self._holds.void_hold, admission.id, future, account_id=admission.account_id
            )
            if voided is not None:
                await voided.committed()
            return await self._threads.run(self._refusal, request, caller, objection)
        request_id = "req_" + admission.id.replace("-", "")
        worded = await self._threads.attempt(dialect.headers, admission, request_id)
        return 200, [_JSON, *encoded(worded)], _encode(_authorize_answer(admission, dict(worded)))

    async def _expected(self, request: AuthorizeRequest | ExpectRequest) -> Usage:
        """Return the most that a request may use, as it is stated or as a provider's usage object has it."""
        expected = _usage(request, request.cost_nanos)
        if request.usage is None and request.usage_of is None:
            return expected
        expected = await self._counted(expected, request.usage, request.usage_of)
        return expected._replace(model=expected.model or expected.response_model, response_model="")

    def _with_tags(self, request: AuthorizeRequest) -> AuthorizeRequest:
        """Return *request* with the tags that its profile reads from its headers."""
        name = request.answer_as
        dialect = self._dialects.of(name)
        if dialect is None:
            if name != "native":
                known = ", ".join(["native", *names()])
                raise BadParameter(f"answer_as must be one of {known}, not {name[:64]!r}", field="answer_as")
            return request
        # Those that are stated win over those of the headers.
        return msgspec.structs.replace(
            request, tags={**dialect.tags(request.request_headers), **request.tags}
        )

    def _may_be_session(self, request: AuthorizeRequest) -> bool:
        """Return whether a key of *request* has the form of a session token, where one may be sent."""
        if not (request.sessions or request.answer_as or request.profile):
            return False
        if not any(map(may_be_session, _keys_of(request))):
            return False
        return admits_sessions(self._dialects.of(request.answer_as or request.profile), request.sessions)

    def _without_key(self, request: AuthorizeRequest) -> Caller | Denial:
        profile, project_id = request.answer_as or request.profile, request.project or ""
        if request.session is not None:
            return self._known_key.of_session(request.session, profile, project_id)
        return Keyless(request.account or "", request.user, project_id, profile)

    def _refusal(self, request: AuthorizeRequest, caller: Caller, denial: Denial) -> HotAnswer:
        """Word a refusal as the key's profile does, or the one that the request names."""
        if request.answer_as:
            return self._refusal_with_reply(request, caller, denial)
        of_key = self._dialects.of_secret(caller) if isinstance(caller, str) else None
        dialect = of_key or self._dialects.of(request.profile)
        if dialect is None:
            return denial.status, [_PROBLEM, *denial_headers(denial)], denial_body(denial)
        request_id = "req_" + self._new_id(self._clock.now_us()).replace("-", "")
        reply = dialect.refused(caller, request.method, request.path, {}, denial, request_id)
        headers = [(b"content-type", reply.media_type.encode())]
        return reply.status, headers + encoded(reply.headers), _encode(reply.body)

    def _refusal_with_reply(self, request: AuthorizeRequest, caller: Caller, denial: Denial) -> HotAnswer:
        """Return a refusal as a problem document, with the answer of the profile that the caller speaks."""
        problem = denial_problem(denial)
        dialect = self._dialects.of(request.answer_as)
        if dialect is not None:
            request_id = "req_" + self._new_id(self._clock.now_us()).replace("-", "")
            reply = dialect.refused(
                caller, request.method, request.path, request.request_headers, denial, request_id
            )
            problem["reply"] = {
                "status": reply.status,
                "headers": list(reply.headers),
                "media_type": reply.media_type,
                "body": reply.body,
            }
        return denial.status, [_PROBLEM, *denial_headers(denial)], _encode(problem)

    def _authorize(
        self, request: AuthorizeRequest, caller: Caller, expected: Usage, future: CommitFuture
    ) -> tuple[Admission, CommitFuture] | Denial:
        return self._holds.authorize(
            caller,
            request.method,
            request.path,
            expected,
            future,
            hold_id=request.id,
            ttl_s=request.ttl_s,
            tags=request.tags,
        )

    async def expect(
        self, principal: Principal, body: bytes, headers: list[tuple[bytes, bytes]]
    ) -> HotAnswer:
        _operator_only(principal)
        request = _decoded(_EXPECT, body)
        expected = await self._expected(request)
        changes, future = self._holds.changes, CommitFuture(asyncio.get_running_loop())
        admission = self._holds.open_hold(request.hold_id, request.account)
        more, extension = request.more, None
        if more is not None:
            wanted = _usage(more, more.cost_nanos)
            extension = await self._threads.run(
                changes.extend_hold, admission, wanted, expected, request.ttl_s, future
            )
        else:
            denial = await self._threads.run(
                changes.expect_hold, admission, expected, request.tags, request.ttl_s, future
            )
            if denial is not None:
                asked = _as_authorize(request, admission)
                caller = request.key if admission.key_id else keyless_caller_of(admission)
                return await self._threads.run(self._refusal, asked, caller, denial)
        await future.committed()
        return 200, [_JSON], _encode(_expect_answer(admission, extension))

    async def settle(
        self, principal: Principal, body: bytes, headers: list[tuple[bytes, bytes]]
    ) -> HotAnswer:
        _operator_only(principal)
        request = _decoded(_SETTLE, body)
        estimated = request.cost_nanos is None and request.estimated_cost_nanos is not None
        cost_nanos = request.estimated_cost_nanos if estimated else request.cost_nanos
        usage = _usage(request, cost_nanos)
        if request.usage is not None or request.usage_of is not None:
            usage = await self._counted(usage, request.usage, request.usage_of)
        outcome = Outcome(
            status=request.status,
            usage=usage,
            error_type=request.error_type,
            latency_us=None if request.latency_ms is None else latency_us(request.latency_ms),
            bytes_out=request.bytes_out,
            cache=request.cache,
            tags=request.tags,
            estimated=estimated,
        )
        if request.preview or request.later_s is not None:
            return await self._previewed(request, outcome)
        future = CommitFuture(asyncio.get_running_loop())
        holds = self._holds
        if holds.is_settled_in_memory(request.hold_id, request.account, outcome):
            settled, commit = holds.settle_hold(request.hold_id, outcome, future, account_id=request.account)
        else:
            settled, commit = await self._threads.run(
                holds.settle_hold, request.hold_id, outcome, future, account_id=request.account
            )
        if commit is not None:
            await commit.committed()
        worded = await self._threads.attempt(self._dialects.settled_headers, settled.record)
        return 200, [_JSON, *encoded(worded)], _encode(_settle_answer(settled, dict(worded)))

    async def _previewed(self, request: SettleRequest, outcome: Outcome) -> HotAnswer:
        admission = self._holds.open_hold(request.hold_id, request.account)
        if request.later_s is not None and not request.preview:
            future = CommitFuture(asyncio.get_running_loop())
            self._holds.changes.settle_at_expiry(admission, outcome, request.later_s, future)
            await future.committed()
        settled = await self._threads.attempt(self._holds.preview, admission, outcome)
        dialect = self._dialects.of(admission.compiled_key.profile)
        worded: TextHeaders = ()
        if dialect is not None:
            worded = await self._threads.attempt(dialect.headers_at_start, (), admission, outcome)
        return 200, [_JSON], _encode(_settle_answer(settled, dict(worded)))

    async def _counted(self, stated: Usage, body: Any, usage_of: str | None) -> Usage:
        """Return *stated* with the counts of a provider's usage object; the first takes 0.2 s, to load the list."""
        from tollkeeper.meter.provider_usage import counted_usage

        return await self._threads.run(counted_usage, stated, body, usage_of)

    async def void(self, principal: Principal, body: bytes, headers: list[tuple[bytes, bytes]]) -> HotAnswer:
        _operator_only(principal)
        request = _decoded(_VOID, body)
        future = CommitFuture(asyncio.get_running_loop())
        account_id, commit = await self._threads.run(
            self._holds.void_hold, request.hold_id, future, account_id=request.account
        )
        if commit is not None:
            await commit.committed()
        answer = VoidAnswer(hold_id=request.hold_id, account=account_id, voided=True)
        return 200, [_JSON], _encode(answer)

    async def events(
        self, principal: Principal, body: bytes, headers: list[tuple[bytes, bytes]]
    ) -> HotAnswer:
        if principal.role == "consumption":
            raise Forbidden("An api key cannot send meter events: use an operator or management key.")
        answer = await self.batches.run(payer_of(principal), lambda: self._ingest(principal, body, headers))
        return 200, [_JSON], _encode(answer)

    def _ingest(self, principal: Principal, body: bytes, headers: list[tuple[bytes, bytes]]) -> EventsAnswer:
        from tollkeeper.meter import decode

        body = decompressed(body, headers, self._body_bytes_max)
        media_type = header(headers, b"content-type").partition(b";")[0].strip().lower()
        now_us = self._clock.now_us()
        if media_type in (b"application/x-ndjson", b"application/jsonl", b"application/jsonlines"):
            decoded = decode.decode_ndjson(body, now_us=now_us)
        elif media_type in (b"application/json", b""):
            decoded = decode.decode_json(body, now_us=now_us)
            if decoded.count == 1 and decoded.rejections and decoded.rejections[0].code == "malformed":
                raise Malformed(decoded.rejections[0].reason)
        else:
            raise UnsupportedMediaType(
                "Content-Type must be application/json (curl: `--json`) or application/x-ndjson, "
                f"not {media_type[:64].decode('latin-1')!r}{_OTHER_DOORS.get(media_type, '')}"
            )
        result = self._ingester.take(decoded, account_id=principal.account_id)
        return events_answer(result)

    def close(self) -> None:
        self.batches.close()


def payer_of(principal: Principal) -> str:
    """Return whose share of the ingest a call uses."""
    return principal.account_id or OPERATOR


def _keys_of(request: AuthorizeRequest) -> list[str]:
    """Return the distinct keys of a request, in its order."""
    return list(dict.fromkeys(key for key in (request.key, *request.other_keys) if key))


def _checked_key(request: AuthorizeRequest) -> str:
    """Return the key of a request, "" if it names its caller otherwise. Raises `BadParameter` unless it names one."""
    key = request.key
    if key is not None and request.session is request.account is request.project is None and not request.user:
        return key
    named = [name for name in ("key", "session", "account") if getattr(request, name) is not None]
    if len(named) != 1:
        field = named[1] if named else "key"
        sent = f"{field}: {' and '.join(named)} were sent" if named else "key is missing"
        raise BadParameter(
            f"{sent}: a request must have one of key (what your caller sent), session (a token) and account (for a "
            "request without a key)",
            field=field,
        )
    for name, goes_with in (
        ("other_keys", ["key"]),
        ("user", ["account"]),
        ("project", ["session", "account"]),
    ):
        if getattr(request, name) and named[0] not in goes_with:
            raise BadParameter(
                f"{name} must come with {' or '.join(goes_with)}, not with {named[0]}", field=name
            )
    return key or ""


def _operator_only(principal: Principal) -> None:
    if principal.role != "operator":
        raise Forbidden("Only the operator's key may decide requests.")


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError:
            return _decoded_with_money(decoder.type, body)
    except BadMoney as exc:
        raise BadParameter(f"{exc.field}: {exc}", field=exc.field) from None
    except msgspec.ValidationError as exc:
        message = str(exc)
        what, _, where = message.rpartition(" - at `$")
        field = where.strip("`.") if what else ""
        unknown = _UNKNOWN.match(what or message)
        if unknown is not None:
            named = f"{field}.{unknown[1]}" if field else unknown[1]
            fields = "" if field else f": the fields are {', '.join(decoder.type.__struct_fields__)}"
            hint = form_hint(named) or f"{named}: unknown field{fields}"
            raise BadParameter(hint, field=named) from None
        if "Expected" in what and (hint := type_hint(field)):
            raise BadParameter(hint, field=field) from None
        raise BadParameter(f"{field or 'body'}: {requirement(message)}", field=field) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Malformed(f"the body is not JSON: {exc}") from None


def _decoded_with_money(of: type[T], body: bytes) -> T:
    """Return a body that is not of the plain form: its money may be text. Raises as a decoder, and `BadMoney`."""
    plain = msgspec.json.decode(body)
    return msgspec.convert(with_nanos(plain, money_names(of)) if isinstance(plain, dict) else plain, of)


def _usage(
    request: AuthorizeRequest | ExpectRequest | MoreUsage | SettleRequest, cost_nanos: int | None
) -> Usage:
    tokens, model, credits, variant = request.tokens, request.model, request.credits, request.variant
    quantities: dict[str, int] = {}
    if tokens is not _NO_TOKENS or request.quantities:
        try:
            quantities = stated_quantities(request.quantities, tokens)
        except BadQuantity as exc:
            raise BadParameter(str(exc), field=exc.field) from None
    elif not model and cost_nanos is None and credits is None and not variant:
        return NO_USAGE
    return Usage(
        tokens.prompt,
        tokens.cached_prompt,
        tokens.completion,
        tokens.reasoning,
        model,
        cost_nanos,
        credits,
        quantities,
        variant,
    )


def _authorize_answer(admission: Admission, headers: dict[str, str]) -> AuthorizeAnswer:
    amounts = admission.amounts
    return AuthorizeAnswer(
        allowed=True,
        hold_id=admission.id,
        account=admission.account_id,
        key_id=admission.key_id,
        project=admission.compiled_key.entitlement.key.project,
        route=admission.path,
        held_nanos=str(amounts.nanos),
        held_tokens=amounts.tokens,
        held_credits=amounts.credits,
        expires_at=to_text(from_us(admission.expires_at_us)),
        headers=headers,
    )


def _as_authorize(request: ExpectRequest, admission: Admission) -> AuthorizeRequest:
    """Return the authorize whose refusal is that of *request*."""
    return AuthorizeRequest(
        key=request.key,
        method=admission.method,
        path=admission.path,
        answer_as=request.answer_as,
        request_headers=request.request_headers,
    )


def _expect_answer(admission: Admission, extension: Extension | None) -> ExpectAnswer:
    amounts, granted, denial = admission.amounts, None, None
    if extension is not None:
        more = extension.granted
        granted = GrantedUsage(
            tokens=TokenCounts(
                prompt=more.prompt_tokens,
                cached_prompt=more.cached_prompt_tokens,
                completion=more.completion_tokens,
                reasoning=more.reasoning_tokens,
            ),
            quantities=quantities_json(more.quantities),
            cost_nanos=None if more.cost_nanos is None else str(more.cost_nanos),
            credits=more.credits,
        )
        denial = None if extension.denial is None else denial_problem(extension.denial)
    return ExpectAnswer(
        hold_id=admission.id,
        account=admission.account_id,
        held_nanos=str(amounts.nanos),
        held_tokens=amounts.tokens,
        held_credits=amounts.credits,
        expires_at=to_text(from_us(admission.expires_at_us)),
        granted=granted,
        denial=denial,
    )


def _settle_answer(settled: Settled, headers: dict[str, str]) -> SettleAnswer:
    record = settled.record
    return SettleAnswer(
        hold_id=record.id,
        event_id=record.id,
        account=record.account_id,
        cost_nanos=str(record.cost_nanos),
        cost_state=record.cost_state,
        tokens=record.tokens,
        credits=record.credits,
        quantities=quantities_json(record.quantities),
        beyond_hold_nanos=str(settled.beyond_hold_nanos),
        replayed=settled.replayed,
        headers=headers,
    )
