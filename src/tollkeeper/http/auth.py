"""
The caller of the product's own API: an operator (`ok_`), a management key (`mk_`), or a consumption key.

Keys are looked up by their SHA-256, so timing reveals nothing. A good credential is always served: only answers to
failing ones are throttled, by address (`Throttle`), in bounded memory. A key has 190 bits, so there is nothing to
guess, and an address may be a proxy's, with many clients behind it.

A request to `/tk/v1` without a key may come with the login of the page in its cookie: it stands for the key that it was
made with, as that key is now.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final, Literal, NamedTuple

from tollkeeper.catalog.directory import Directory
from tollkeeper.catalog.logins import Logins
from tollkeeper.clock import Clock
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.keys import OPERATOR_PREFIX, StoredKey, hash_secret
from tollkeeper.domain.logins import Login
from tollkeeper.errors import Forbidden, Unauthenticated
from tollkeeper.http.asgi_types import RawHeaders
from tollkeeper.http.credentials import Ambiguous, credentials, has_credential, the_known
from tollkeeper.http.forwarding import forwarded_address, names_a_client, network_of
from tollkeeper.http.login_cookie import check_csrf, check_own_page, login_secrets

_REMEMBERED_MAX: Final = 10_000
_GOOD_KEYS_MAX: Final = 4_096
FAILURES_MAX: Final = 50
FAILURES_WINDOW_S: Final = 60
NO_ADDRESS_HEADER: Final = (
    "requests carry a proxy's header (Forwarded, X-Forwarded-For or X-Real-IP) while client_address_header is unset: "
    "all clients of the proxy are throttled as one"
)
ONE_PEER: Final = (
    f"{FAILURES_MAX} failed authentications in a minute came from one peer address, and none from another: "
    "if that is a proxy, client_address_header must name the header in which it puts the client's address"
)

log = logging.getLogger("tollkeeper.http")


class Principal(NamedTuple):
    """Whom a credential stands for. The operator has no account."""

    role: Literal["operator", "management", "consumption"]
    account_id: str | None
    key_id: str | None


OPERATOR: Final = Principal("operator", None, None)


class LoggedIn(NamedTuple):
    """A login that is good now, its secret, and whom it stands for."""

    secret: str
    login: Login
    principal: Principal

    def __repr__(self) -> str:
        return f"LoggedIn(principal={self.principal!r})"


class Throttle:
    """
    Counts failing credentials per address and minute, and says when their answers are to be 429.

    It remembers `_REMEMBERED_MAX` addresses of a minute at most; those that come after them go uncounted.

    Args:
        address_header: In which the proxy puts the client's address, in lower case; empty: the peer's counts.

    Attributes:
        failed_count: Failing credentials since start.
        throttled_count: Those of them that were answered 429.
        notices: Why addresses may not be those of the clients, each once.
    """

    def __init__(self, clock: Clock, address_header: bytes = b"") -> None:
        self._clock = clock
        self._address_header = address_header
        self._window = 0
        self._failures: dict[str, int] = {}
        self._only_peers = True
        self.failed_count = 0
        self.throttled_count = 0
        self.notices: list[str] = []

    def refuses(self, peer: str, headers: RawHeaders) -> bool:
        """
        Count a failing credential; return whether its answer is 429, as its address failed too often this minute.

        Args:
            peer: The address of the connection.
        """
        address = ""
        if self._address_header:
            # Through a proxy all come from its address.
            address = forwarded_address(headers, self._address_header)
        else:
            self.look_at(headers)
        self.failed_count += 1
        refused = self._is_over(network_of(address or peer), from_peer=not address)
        self.throttled_count += refused
        return refused

    def look_at(self, headers: RawHeaders) -> None:
        """Notice a proxy whose clients cannot be told apart."""
        if not self._address_header and NO_ADDRESS_HEADER not in self.notices and names_a_client(headers):
            self._notice(NO_ADDRESS_HEADER)

    def _is_over(self, network: str, *, from_peer: bool) -> bool:
        window = self._clock.now_us() // (FAILURES_WINDOW_S * US_PER_S)
        if window != self._window:
            self._window = window
            self._failures = {}
            self._only_peers = True
        self._only_peers = self._only_peers and from_peer
        count = self._failures.get(network, 0)
        if count >= FAILURES_MAX:
            return True
        if count or len(self._failures) < _REMEMBERED_MAX:
            self._failures[network] = count + 1
            if count + 1 == FAILURES_MAX and len(self._failures) == 1 and self._only_peers:
                self._notice(ONE_PEER)
        return False

    def _notice(self, what: str) -> None:
        if what not in self.notices:
            self.notices.append(what)
            log.warning("tollkeeper.http.client_address", extra={"reason": what})


class Authenticator:
    """
    Turns headers into a `Principal`.

    Args:
        operators: Hashes of the operator keys.
        address_header: As the setting `client_address_header`.
    """

    def __init__(
        self,
        operators: Collection[str],
        directory: Directory,
        logins: Logins,
        clock: Clock,
        *,
        address_header: str = "",
    ) -> None:
        self._operators = operators
        self._directory = directory
        self._logins = logins
        self._clock = clock
        self._good: tuple[int, dict[str, StoredKey]] = (-1, {})
        """Keys that were looked up, with the version of the directory that they were read under."""
        self.throttle = Throttle(clock, address_header.lower().encode())

    def caller(self, headers: RawHeaders, method: str) -> Principal:
        """
        Return whom a request to `/tk/v1` stands for: by its key, or without one by the login in its cookie.

        Raises:
            Unauthenticated, Forbidden: As `principal` and `login`.
            Forbidden: With a login, it would change something and does not show that the page sends it.
        """
        if has_credential(headers) or not login_secrets(headers):
            return self.principal(headers)
        found = self.login(headers)
        check_csrf(found.secret, method, headers)
        return found.principal

    def login(self, headers: RawHeaders) -> LoggedIn:
        """
        Return the login in a request's cookie, whatever else it carries.

        Raises:
            Unauthenticated: There is none, it is over, or its key is no longer valid.
            Forbidden: The key's account is not active, or another site sends the request.
        """
        secrets = login_secrets(headers)
        if not secrets:
            raise Unauthenticated("Nobody is logged in: POST /tk/v1/login with a key.")
        check_own_page(headers)
        known = [(secret, found) for secret in secrets if (found := self._logins.find(secret)) is not None]
        if len(known) != 1:
            why = "The login has ended" if not known else "The request carries two different logins"
            raise Unauthenticated(f"{why}: log in again.")
        secret, login = known[0]
        if login.account_id:
            return LoggedIn(secret, login, self._key_principal(login.key_sha256))
        if login.key_sha256 not in self._operators:
            raise Unauthenticated("The operator key of this login was replaced: log in with the new one.")
        return LoggedIn(secret, login, OPERATOR)

    def principal(self, headers: RawHeaders) -> Principal:
        """
        Return whom the key in the request's headers stands for; a cookie counts for nothing.

        Raises:
            Unauthenticated: No credential, an unknown one, or one that is no longer valid.
            Forbidden: The key's account is not active.
        """
        secrets = credentials(headers)
        if not secrets:
            raise Unauthenticated("Send an operator, management or api key as `Authorization: Bearer <key>`.")
        try:
            secret = the_known(secrets, self._is_known) if len(secrets) > 1 else secrets[0]
        except Ambiguous:
            raise Unauthenticated("The request carries two different keys: send one.") from None
        return self.principal_of(secret)

    def principal_of(self, secret: str) -> Principal:
        """Return whom a key stands for. Raises as `principal`."""
        secret_sha256 = hash_secret(secret)
        if secret.startswith(OPERATOR_PREFIX):
            if secret_sha256 in self._operators:
                return OPERATOR
            raise Unauthenticated("The operator key is not known here.")
        return self._key_principal(secret_sha256)

    def _is_known(self, secret: str) -> bool:
        secret_sha256 = hash_secret(secret)
        return secret_sha256 in self._operators or self._stored(secret_sha256) is not None

    def _key_principal(self, secret_sha256: str) -> Principal:
        stored = self._stored(secret_sha256)
        if stored is None:
            raise Unauthenticated("The key is not known here.")
        state = stored.state_at(self._clock.now_us())
        if state != "active":
            raise Unauthenticated(f"The key is {state}.")
        account = self._directory.account(stored.entry.account)
        if account is None or not account.active:
            raise Forbidden("The account of this key is not active.")
        return Principal(stored.entry.role, stored.entry.account, stored.entry.id)

    def _stored(self, secret_sha256: str) -> StoredKey | None:
        """
        Return the key of a hash in whatever state.

        A key that was looked up before costs no read, so that it is served while others fail. Its state is asked
        of the clock each time, and any change of the catalog drops all: a key that ended is never good from here.
        """
        directory = self._directory
        version = directory.version
        read_under, good = self._good
        if read_under != version:
            good = {}
            self._good = (version, good)
        stored = good.get(secret_sha256)
        if stored is None:
            stored = directory.key_by_hash(secret_sha256)
            if stored is not None:
                if len(good) >= _GOOD_KEYS_MAX:
                    good.clear()
                # When the catalog changed since, these are a version's that is not asked any more.
                good[secret_sha256] = stored
        return stored
