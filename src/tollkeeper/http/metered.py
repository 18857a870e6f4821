"""
Metered traffic in a dialect: the headers and refusals of the provider's own API, as its profile words them.

The middleware and `POST /tk/v1/authorize` both ask here, so a customer sees the same from either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tollkeeper.clock import Clock
from tollkeeper.domain.catalog import Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import Record
from tollkeeper.domain.keyless import Caller
from tollkeeper.domain.keys import StoredKey, hash_secret
from tollkeeper.domain.matching import Facts
from tollkeeper.domain.meter import UNKNOWN_ROUTE, facts_of
from tollkeeper.domain.requests import Outcome
from tollkeeper.errors import BadParameter
from tollkeeper.gate.gate import Admission, CompiledKey, Gate
from tollkeeper.profiles import load, names
from tollkeeper.profiles.base import Call, Metered, MeteredProfile, Profile, Reply, SessionProfile, Used

if TYPE_CHECKING:
    from tollkeeper.catalog.directory import Directory
    from tollkeeper.installation import Installation

_FOREIGN: Final = Denial("key_unknown", "The api key is not known here.")
_BARRED: Final = Denial("layer_not_allowed", "Keys of this family may not make metered requests.")

TextHeaders = Sequence[tuple[str, str]]


def encoded(headers: TextHeaders) -> list[tuple[bytes, bytes]]:
    """Return *headers* as ASGI has them."""
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]


class Dialect:
    """One profile as metered traffic meets it."""

    def __init__(
        self, profile: Profile, settings: Mapping[str, Any], gate: Gate, directory: Directory, clock: Clock
    ) -> None:
        self.profile = profile
        self._more = profile if isinstance(profile, MeteredProfile) else None
        self.admits_sessions = isinstance(profile, SessionProfile) and profile.admits_sessions
        self._settings = settings
        self._gate = gate
        self._directory = directory
        self._clock = clock

    def credential(self, headers: Mapping[str, str]) -> str:
        """Return the api key that a request's headers (lower-case names) carry."""
        return self.profile.credential(headers)

    def objection(self, admission: Admission, caller: Caller) -> Denial | None:
        """Return why the dialect refuses what the gate admitted: void it then. A key is good in its own only."""
        if self._bars(caller):
            return _BARRED
        return None if admission.compiled_key.profile == self.profile.name else _FOREIGN

    def tags(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return the tags that a request's headers (lower-case names) give its event."""
        return {} if self._more is None else self._more.tags(headers, self._settings)

    def headers(self, admission: Admission, request_id: str) -> TextHeaders:
        """Return the headers of an admitted request's answer."""
        metered = self._metered(admission.compiled_key, admission.route, request_id, admission.facts)
        return () if metered is None else self.profile.metered_headers(metered)

    def headers_at_start(self, worded: TextHeaders, admission: Admission, outcome: Outcome) -> TextHeaders:
        """
        Return *worded*, the headers of an admitted request, with what it is known to have used.

        Args:
            outcome: As stated when the answer begins. An outcome that is not known yet has no headers.
        """
        if self._more is None:
            return worded
        metered = self._metered(admission.compiled_key, admission.route, "", admission.facts)
        if metered is None:
            return worded
        usage = outcome.usage
        complete = usage.cost_nanos is not None or usage.tokens > 0 or outcome.cache == "hit"
        record = self._gate.record_of(admission, outcome, self._clock.now_us())
        # The hold is still counted at its estimate.
        held_nanos = admission.amounts.nanos
        beyond_nanos = record.cost_nanos - held_nanos
        limit_statuses = [
            limit_status._replace(
                used=limit_status.used + beyond_nanos, held=max(0, limit_status.held - held_nanos)
            )
            if limit_status.unit == "nanos" and limit_status.kind in ("budget", "credit")
            else limit_status
            for limit_status in metered.limit_statuses
        ]
        used = self._more.settled_headers(
            metered._replace(limit_statuses=limit_statuses), Used(record, complete)
        )
        replaced = {name for name, _ in used}
        return [*(header for header in worded if header[0] not in replaced), *used]

    def settled_headers(self, record: Record) -> TextHeaders:
        """Return the headers that tell what a settled request used."""
        if self._more is None:
            return ()
        directory = self._directory
        compiled_key = self._gate.compiled_key_of(lambda: directory.entitlement_of_id(record.key_id))
        if compiled_key is None:
            return ()
        route = directory.route_table().match(record.method, record.route, self.profile.name)
        metered = self._metered(compiled_key, route or UNKNOWN_ROUTE, "", facts_of(record))
        return () if metered is None else self._more.settled_headers(metered, Used(record, True))

    def refused(
        self,
        caller: Caller,
        method: str,
        path: str,
        headers: Mapping[str, str],
        denial: Denial,
        request_id: str,
    ) -> Reply:
        """Return the refusal of a request, headers included."""
        if denial.reason != "unavailable":
            if self._bars(caller):
                denial = _BARRED
            elif self._is_foreign(caller):
                denial = _FOREIGN
        compiled_key = None if denial is _BARRED else self._gate.compiled_key(caller)
        metered = None
        matched = self._directory.route_table().match(method, path, self.profile.name)
        if isinstance(compiled_key, CompiledKey) and compiled_key.profile == self.profile.name:
            route = matched or UNKNOWN_ROUTE
            if denial.status == 402 and self.profile.refusals_count:
                counted = self._gate.pass_limits(compiled_key, route)
                denial = counted if isinstance(counted, Denial) else denial
            metered = self._metered(compiled_key, route, request_id)
        now = self._clock.now()
        call = Call(method, path, {}, headers, b"", {}, now, request_id, self._settings, matched)
        return self.profile.refused(call, denial, metered)

    def _bars(self, caller: Caller) -> bool:
        if self._more is None or not isinstance(caller, str):
            return False
        return self._more.refuses_metered(caller, self._settings)

    def _is_foreign(self, caller: Caller) -> bool:
        """Whether this is the key of another profile: in whatever state, it is unknown in this one."""
        if not caller or not isinstance(caller, str):
            return False
        stored = self._directory.key_by_hash(hash_secret(caller))
        return stored is not None and stored.entry.profile != self.profile.name

    def _metered(
        self, compiled_key: CompiledKey, route: Route, request_id: str, facts: Facts | None = None
    ) -> Metered | None:
        key = self._key_of(compiled_key)
        if key is None:
            return None
        now = self._clock.now()
        limit_statuses = self._gate.limit_statuses(compiled_key, self._clock.now_us(), facts)
        return Metered(key, route, limit_statuses, now, request_id, self._settings, compiled_key.entitlement)

    def _key_of(self, compiled_key: CompiledKey) -> StoredKey | None:
        if compiled_key.key_id:
            return self._directory.key(compiled_key.key_id)
        # Of a request without a key, which has an entry and nothing stored.
        entry = compiled_key.entitlement.key
        return StoredKey(
            entry=entry,
            secret_sha256="",
            shown_prefix=None,
            created_at_us=0,
            updated_at_us=0,
            rotation_chain_id="",
        )


class Dialects:
    """
    The dialects, made when they are first needed.

    Args:
        settings_of: Returns the settings of a profile that this deployment has.
    """

    def __init__(
        self,
        settings_of: Callable[[Profile], Mapping[str, Any]],
        gate: Gate,
        directory: Directory,
        clock: Clock,
    ) -> None:
        self._settings_of = settings_of
        self._gate = gate
        self._directory = directory
        self._clock = clock
        self._dialects: dict[str, Dialect] = {}

    def of(self, name: str) -> Dialect | None:
        """Return the dialect of a profile; None for the native one."""
        if name not in names():
            return None
        if name not in self._dialects:
            profile = load(name)
            self._dialects[name] = Dialect(
                profile, self._settings_of(profile), self._gate, self._directory, self._clock
            )
        return self._dialects[name]

    def settled_headers(self, record: Record) -> TextHeaders:
        """Return the headers that tell what a settled request used, as the dialect of its key words them."""
        key = self._directory.key(record.key_id) if record.key_id else None
        dialect = None if key is None or key.entry.profile == "native" else self.of(key.entry.profile)
        return () if dialect is None else dialect.settled_headers(record)

    def of_secret(self, secret: str) -> Dialect | None:
        """Return the dialect of the key of *secret*, in whatever state it is; None for native or unknown."""
        stored = self._directory.key_by_hash(hash_secret(secret)) if secret else None
        return None if stored is None else self.of(stored.entry.profile)


def admits_sessions(dialect: Dialect | None, wanted: bool | None) -> bool:
    """Return whether session tokens are admitted beside api keys: as *wanted*; None: as the dialect's vendor does."""
    return (dialect is not None and dialect.admits_sessions) if wanted is None else wanted


def dialect_of(installation: Installation, profile: str | None) -> Dialect | None:
    """
    Return the dialect that a middleware speaks; None for the native one.

    Args:
        profile: Its name; None for the root profile of the settings.

    Raises:
        BadParameter: There is no such profile.
    """
    name = installation.settings.root_profile if profile is None else profile
    found = Dialects(
        installation.profile_settings, installation.gate, installation.directory, installation.clock
    ).of(name)
    if found is None and name not in ("", "native"):
        raise BadParameter(f"{name!r} is no profile: it must be one of {', '.join(names())}", field="profile")
    return found
