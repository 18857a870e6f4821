"""
Metered traffic in a dialect: the headers and refusals of the provider's own API, as its profile words them.

The middleware and `POST /tk/v1/authorize` both ask here, so a customer sees the same from either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tollkeeper.domain.catalog import Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.keys import StoredKey, hash_secret
from tollkeeper.gate.gate import Admission, Permit
from tollkeeper.installation import Installation
from tollkeeper.profiles import NAMES, load
from tollkeeper.profiles.base import Call, Metered, Profile, Reply
from tollkeeper.services.desk import standings_of

_UNKNOWN_ROUTE: Final = Route(id="unknown", method="*", path="/*")


class Dialect:
    """One profile as metered traffic meets it."""

    def __init__(self, installation: Installation, name: str) -> None:
        self._installation = installation
        self.profile: Profile = load(name)
        self._settings = installation.desk(self.profile).settings

    def credential(self, headers: Mapping[str, str]) -> str:
        """Return the api key that a request's headers (lower-case names) carry."""
        return self.profile.credential(headers)

    def headers(self, admission: Admission, request_id: str) -> Sequence[tuple[str, str]]:
        """Return the headers of an admitted request's answer."""
        metered = self._metered(admission.permit, admission.route, request_id)
        return () if metered is None else self.profile.metered_headers(metered)

    def refused(
        self, secret: str, method: str, path: str, headers: Mapping[str, str], denial: Denial, request_id: str
    ) -> Reply:
        """Return the refusal of a request, headers included."""
        installation = self._installation
        if denial.reason != "unavailable" and self._is_foreign(secret):
            denial = Denial("key_unknown", "The api key is not known here.")
        permit = installation.gate.permit(secret)
        metered = None
        matched = installation.directory.route_table().match(method, path, self.profile.name)
        if isinstance(permit, Permit) and permit.profile == self.profile.name:
            route = matched or _UNKNOWN_ROUTE
            if denial.status == 402 and self.profile.refusals_count:
                limited = installation.gate.pass_limits(permit, route)
                denial = limited or denial
            metered = self._metered(permit, route, request_id)
        now = installation.clock.now()
        call = Call(method, path, {}, headers, b"", {}, now, request_id, self._settings, matched)
        return self.profile.refused(call, denial, metered)

    def _is_foreign(self, secret: str) -> bool:
        """Whether this is the key of another profile: in whatever state, it is unknown in this one."""
        stored = self._installation.directory.key_by_hash(hash_secret(secret)) if secret else None
        return stored is not None and stored.entry.profile != self.profile.name

    def _metered(self, permit: Permit, route: Route, request_id: str) -> Metered | None:
        installation = self._installation
        key: StoredKey | None = installation.directory.key(permit.key_id)
        if key is None:
            return None
        now = installation.clock.now()
        standings = standings_of(installation.gate, permit, installation.clock.now_us())
        return Metered(key, route, standings, now, request_id, self._settings, permit.entitlement)


class Dialects:
    """The dialects, made when they are first needed."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._dialects: dict[str, Dialect] = {}

    def of(self, name: str) -> Dialect | None:
        """Return the dialect of a profile; None for the native one."""
        if name not in NAMES:
            return None
        if name not in self._dialects:
            self._dialects[name] = Dialect(self._installation, name)
        return self._dialects[name]

    def of_secret(self, secret: str) -> Dialect | None:
        """Return the dialect of the key of *secret*, in whatever state it is; None for native or unknown."""
        stored = self._installation.directory.key_by_hash(hash_secret(secret)) if secret else None
        return None if stored is None else self.of(stored.entry.profile)
