"""
Serves profiles: finds the endpoint of a vendor's path, runs it, and writes its reply.

Every profile answers under `/<profile>`, and the root profile at the root too, with the same status, headers
and body: a profile sees the vendor's path only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import parse_qs

import msgspec

from tollkeeper.callers import Caller
from tollkeeper.clock import Clock
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.instants import to_us
from tollkeeper.errors import BadInput, BadParameter, TollkeeperError, Unavailable
from tollkeeper.http.asgi_types import Receive, Scope, Send
from tollkeeper.http.bodies import read_body
from tollkeeper.http.executors import Executors
from tollkeeper.http.paths import segment_text
from tollkeeper.profiles import load, names
from tollkeeper.profiles.base import (
    Call,
    Endpoint,
    Profile,
    ProfileContext,
    Reply,
    credential_headers,
    failure,
)
from tollkeeper.settings import Settings

ALL: Final = "all"
"""The value of the setting `profiles` that stands for every one that is installed."""
BODY_BYTES_MAX: Final = 64 * 1024
QUERY_BYTES_MAX: Final = 8_192
"""The dispatcher refuses a longer one: cut off, it would be another query."""

_encode: Final = msgspec.json.Encoder().encode
log = logging.getLogger("tollkeeper.profiles")


class ProfileSite:
    """One profile with its context and its compiled paths."""

    def __init__(self, profile: Profile, context: ProfileContext) -> None:
        self.profile = profile
        self.context = context
        self._endpoints = [(_pattern(endpoint.path), endpoint) for endpoint in profile.endpoints]
        self._vary = ", ".join(credential_headers(profile))

    def answer(self, call: Call) -> Reply:
        """Return the reply to *call*, whose path is a `paths.routed_path`, whatever happens. Blocking."""
        return self._for_caches(self._answer(call))

    def _answer(self, call: Call) -> Reply:
        call = call._replace(settings=self.context.settings)
        try:
            found, params, allowed = self._find(call)
            call = call._replace(path=segment_text(call.path), params=params)
            if found is None:
                return self.profile.not_found(call, allowed, self.context)
            return found.handle(call, self.context)
        except Exception as exc:
            return failure(self.profile, call, exc)

    def is_failed_credential(self, call: Call, reply: Reply) -> bool:
        """Return whether *reply* answers a credential that is not valid. Blocking."""
        # Some dialects refuse a bad key with another status, and a path that is not there refuses nobody, but its
        # headers tell a good key from a bad one.
        if reply.status not in (401, 404, 405, self.context.settings.get("invalid_key_status")):
            return False
        secret = self.profile.credential(call.headers)
        if not secret:
            return False
        context = self.context
        try:
            keys = (find(secret) for find in (context.find_key, context.find_management_key))
            now_us = to_us(call.now)
            if any(key is not None and key.state_at(now_us) == "active" for key in keys):
                return False
            return context.session(secret) is None
        except Unavailable:
            return False  # No answer was sent.
        except Exception:
            # The reply stands: what failed is only our look at who asked.
            log.exception("tollkeeper.profile.failed", extra={"request_id": call.request_id})
            return False

    def rejected_early(self, call: Call, why: Denial | BadInput) -> Reply:
        """Return the reply to *call* without a handler and without a known caller. Never blocks."""
        call = call._replace(settings=self.context.settings, path=segment_text(call.path))
        if isinstance(why, Denial):
            return self._for_caches(self.profile.refused(call, why, None))
        return self._for_caches(self.profile.failed(call, why))

    def _for_caches(self, reply: Reply) -> Reply:
        """Return *reply* so that no cache gives it to another caller: it is stored only if the profile says so."""
        own = [("Vary", self._vary), ("Cache-Control", "private, no-store")]
        given = {name.lower() for name, _ in reply.headers}
        return reply._replace(
            headers=[*reply.headers, *(header for header in own if header[0].lower() not in given)]
        )

    def _find(self, call: Call) -> tuple[Endpoint | None, Mapping[str, str], Sequence[str]]:
        allowed = []
        for pattern, endpoint in self._endpoints:
            match = pattern.fullmatch(call.path)
            if match is None:
                continue
            if endpoint.method == call.method:
                return endpoint, {name: segment_text(text) for name, text in match.groupdict().items()}, ()
            allowed.append(endpoint.method)
        return None, {}, allowed


class Profiles:
    """All profiles that an installation serves."""

    def __init__(
        self,
        settings: Settings,
        context_of: Callable[[Profile], ProfileContext],
        clock: Clock,
        executors: Executors,
    ) -> None:
        root = settings.root_profile
        served = (
            [name.strip() for name in settings.profiles.split(",")] if settings.profiles != ALL else names()
        )
        self._context_of = context_of
        self._clock = clock
        self._executors = executors
        self.sites = {name: self._site(name) for name in dict.fromkeys([*served, root]) if name}
        self.root = self.sites.get(root)

    def _site(self, name: str) -> ProfileSite:
        if name not in names():
            raise BadParameter(
                f"{name!r} is no profile: it must be one of {', '.join(names())}", field="profiles"
            )
        profile = load(name)
        return ProfileSite(profile, self._context_of(profile))

    def find(self, path: str) -> tuple[ProfileSite, str] | None:
        """Return the profile that serves *path*, a `paths.routed_path`, and the vendor's; None without one."""
        head, slash, rest = path[1:].partition("/")
        site = self.sites.get(head)
        if site is not None:
            return site, slash + rest or "/"
        return None if self.root is None else (self.root, path)

    async def serve(
        self,
        site: ProfileSite,
        path: str,
        scope: Scope,
        receive: Receive,
        send: Send,
        request_id: str,
        failed_credential: Callable[[], Denial | None],
    ) -> None:
        """
        Answer one request to a vendor's *path*.

        Args:
            failed_credential: Counts a credential that authenticates nobody, before it is answered; returns what
                to answer instead, or None.
        """
        try:
            body = await read_body(receive, BODY_BYTES_MAX)
        except TollkeeperError:
            # Longer than anything that a dialect takes, or cut: let the profile find that it cannot read it.
            body = b"\x00"
        text = scope["query_string"].decode("latin-1")
        query = parse_qs(text, keep_blank_values=True, errors="replace")
        call = self._call(path, scope, request_id)._replace(query=query, body=body)
        reply = await self._executors.run_for("profiles", Caller(), receive, site.answer, call)
        if reply.status >= 400 and await self._executors.hot.run(site.is_failed_credential, call, reply):
            denial = failed_credential()
            if denial is not None:
                reply = site.rejected_early(call, denial)
        await send_reply(send, reply)

    async def reject_early(
        self,
        site: ProfileSite,
        path: str,
        scope: Scope,
        send: Send,
        request_id: str,
        why: Denial | BadInput,
    ) -> None:
        """Refuse one request to a vendor's *path* whose query and body are not read."""
        await send_reply(send, site.rejected_early(self._call(path, scope, request_id), why))

    def _call(self, path: str, scope: Scope, request_id: str) -> Call:
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        return Call(
            method=scope["method"],
            path=path,
            query={},
            headers=headers,
            body=b"",
            params={},
            now=self._clock.now(),
            request_id=request_id,
        )


def reply_parts(reply: Reply) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body of *reply*; a reply without a body has none."""
    body = b"" if reply.body is None else _encode(reply.body)
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in reply.headers]
    if reply.body is not None:
        headers.append((b"content-type", reply.media_type.encode()))
    return reply.status, headers, body


async def send_reply(send: Send, reply: Reply) -> None:
    """Write *reply*."""
    status, headers, body = reply_parts(reply)
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile(
        "".join(f"(?P<{part}>[^/]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    )
