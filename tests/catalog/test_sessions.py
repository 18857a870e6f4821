"""Session tokens: only what our own login or the configured issuer signed, for as long as it said."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tollkeeper import Tollkeeper
from tollkeeper.adapters.jwks import JWKS_BYTES_MAX, read_jwks
from tollkeeper.adapters.jwt_tokens import JwtTokens
from tollkeeper.catalog.sessions import OWN_ISSUER, OWN_TTL_S, Sessions, check_login
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.limit_status import Session
from tollkeeper.errors import BadParameter
from tollkeeper.testing import ManualClock

SECRET: Final = "0123456789abcdef0123456789abcdef"
ISSUER: Final = "https://login.example"
AUDIENCE: Final = "https://usage.example"
RSA_KEY: Final = rsa.generate_private_key(65537, 2048)
RSA_KEY_2: Final = rsa.generate_private_key(65537, 2048)
EC_KEY: Final = ec.generate_private_key(ec.SECP256R1())
ED_KEY: Final = ed25519.Ed25519PrivateKey.generate()
ADA: Final = Session("acme", "ada")


def jwk(key: Any, key_id: str) -> dict[str, Any]:
    """Return the public half of *key* as a JWKS has it."""
    algorithm: Any = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}.get(
        next(
            (base for base in (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey) if isinstance(key, base)), Any
        ),
        OKPAlgorithm,
    )
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": key_id, "use": "sig"}


class Issuer:
    """Another login: what its JWKS says, and how often it was read."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.document: bytes = json.dumps({"keys": keys}).encode()
        self.error: Exception | None = None
        self.reads = 0

    def publish(self, *keys: dict[str, Any]) -> None:
        self.document = json.dumps({"keys": keys}).encode()

    def fetch(self, source: str) -> bytes:
        assert source == "https://login.example/jwks"
        self.reads += 1
        if self.error is not None:
            raise self.error
        return self.document


@pytest.fixture
def issuer() -> Issuer:
    return Issuer(jwk(RSA_KEY, "rsa-1"), jwk(EC_KEY, "ec-1"), jwk(ED_KEY, "ed-1"))


@pytest.fixture
def sessions(clock: ManualClock, issuer: Issuer) -> Sessions:
    return Sessions(
        clock,
        SECRET,
        JwtTokens(issuer.fetch),
        jwks="https://login.example/jwks",
        issuer=ISSUER,
        audience=AUDIENCE,
        account_claim="org",
    )


Sign = Callable[..., str]


@pytest.fixture
def sign(clock: ManualClock) -> Sign:
    """Signs claims as the other login does, some of them changed (None: left out)."""

    def sign(key: Any = RSA_KEY, algorithm: str = "RS256", kid: str | None = "rsa-1", **changed: Any) -> str:
        now_s = clock.now_us() // US_PER_S
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "ada",
            "org": "acme",
            "iat": now_s,
            "exp": now_s + 60,
            **changed,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, key, algorithm, headers=None if kid is None else {"kid": kid})

    return sign


def test_our_own_token_is_good_until_it_expires(sessions: Sessions, clock: ManualClock) -> None:
    token = sessions.issue("acme", "ada")
    assert sessions.verify(token) == ADA
    clock.advance(seconds=OWN_TTL_S + 29)
    assert sessions.verify(token) == ADA, "the leeway"
    clock.advance(seconds=1)
    assert sessions.verify(token) is None


def test_our_own_token_is_good_here_only(sessions: Sessions, clock: ManualClock) -> None:
    assert sessions.verify(Sessions(clock, SECRET[::-1], JwtTokens()).issue("acme", "ada")) is None
    assert Sessions(clock, SECRET, JwtTokens()).verify(sessions.issue("acme", "ada")) == ADA


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(RSA_KEY, "RS256", "rsa-1"), (EC_KEY, "ES256", "ec-1"), (ED_KEY, "EdDSA", "ed-1")],
    ids=["RS256", "ES256", "EdDSA"],
)
def test_a_token_of_the_other_login_is_good(
    sessions: Sessions, sign: Sign, key: Any, algorithm: str, kid: str
) -> None:
    assert sessions.verify(sign(key, algorithm, kid)) == ADA


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "https://evil.example"},
        {"iss": None},
        {"iss": OWN_ISSUER},
        {"aud": "https://other.example"},
        {"aud": None},
        {"exp": None},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"org": None},
        {"org": ""},
        {"org": ["acme"]},
        {"org": None, "account": "acme"},
        {"exp": "soon"},
        {"exp": [1]},
        {"exp": True},
        {"nbf": "now"},
        {"nbf": {}},
        *(
            {name: value}
            for name in ("exp", "nbf", "iat")
            for value in (
                float("inf"),
                float("-inf"),
                float("nan"),
                1e300,
                1e9,
                1_767_225_600.5,
                -1,
                -1.0,
                10**12,
                10**40,
                2**63,
                "1767225600",
                False,
                [],
                {},
            )
        ),
    ],
    ids=str,
)
def test_a_token_with_another_claim_is_refused(
    sessions: Sessions, sign: Sign, changed: dict[str, Any]
) -> None:
    assert sessions.verify(sign(**changed)) is None


def test_times_are_taken_with_a_leeway_of_thirty_seconds(
    sessions: Sessions, sign: Sign, clock: ManualClock
) -> None:
    now_s = clock.now_us() // US_PER_S
    assert sessions.verify(sign(exp=now_s - 29)) == ADA
    assert sessions.verify(sign(exp=now_s - 30)) is None
    assert sessions.verify(sign(nbf=now_s + 30)) == ADA
    assert sessions.verify(sign(nbf=now_s + 31)) is None
    assert sessions.verify(sign(exp=253_402_300_799)) == ADA, "a time that a calendar has"
    assert sessions.verify(sign(exp=now_s + 0.5)) is None, "whole seconds, as every login writes them"


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256"])
def test_an_algorithm_off_the_list_is_refused(sessions: Sessions, sign: Sign, algorithm: str) -> None:
    assert sessions.verify(sign(RSA_KEY, algorithm)) is None


def test_a_key_verifies_its_own_algorithm_only(sessions: Sessions, sign: Sign) -> None:
    assert sessions.verify(sign(EC_KEY, "ES256", "rsa-1")) is None
    assert sessions.verify(sign(RSA_KEY, "RS256", "ec-1")) is None
    assert sessions.verify(sign(RSA_KEY_2)) is None, "signed with another key of the same name"


@pytest.mark.parametrize("issuer_claim", [ISSUER, OWN_ISSUER])
def test_the_public_key_is_no_shared_secret(
    sessions: Sessions, clock: ManualClock, issuer_claim: str
) -> None:
    """The classic confusion: HS256 with the text of the public key, which everybody can read."""
    pem = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    now_s = clock.now_us() // US_PER_S
    claims = {
        "iss": issuer_claim, "aud": AUDIENCE, "sub": "ada", "org": "acme", "account": "acme", "exp": now_s + 60,
    }  # fmt: skip
    for algorithm, digest in (("HS256", hashlib.sha256), ("HS384", hashlib.sha384)):
        head = _b64(json.dumps({"alg": algorithm, "typ": "JWT", "kid": "rsa-1"}).encode())
        signed = f"{head}.{_b64(json.dumps(claims).encode())}"
        signature = _b64(hmac.new(pem, signed.encode(), digest).digest())
        assert sessions.verify(f"{signed}.{signature}") is None


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, ["RS256"], 0])
def test_a_token_without_a_signature_is_refused(sessions: Sessions, sign: Sign, algorithm: Any) -> None:
    payload = sign().split(".")[1]
    for kid in ("rsa-1", "unknown"):
        head = _b64(json.dumps({"alg": algorithm, "kid": kid}).encode())
        assert sessions.verify(f"{head}.{payload}.") is None


def test_a_shared_secret_in_the_jwks_signs_nothing(sessions: Sessions, sign: Sign, issuer: Issuer) -> None:
    """Everybody reads it there."""
    issuer.publish(
        {"kty": "oct", "kid": "oct-1", "k": _b64(b"x" * 32), "alg": "HS256"}, jwk(RSA_KEY, "rsa-1")
    )
    for algorithm in ("HS256", "RS256"):
        head = _b64(json.dumps({"alg": algorithm, "kid": "oct-1"}).encode())
        signed = f"{head}.{sign().split('.')[1]}"
        signature = _b64(hmac.new(b"x" * 32, signed.encode(), hashlib.sha256).digest())
        assert sessions.verify(f"{signed}.{signature}") is None
    assert sessions.verify(sign()) == ADA


def test_an_unknown_key_id_rereads_at_most_once_a_minute(
    sessions: Sessions, sign: Sign, issuer: Issuer, clock: ManualClock
) -> None:
    """Else anybody could make us ask the other login, as often as they like."""
    for _ in range(3):
        assert sessions.verify(sign(kid="unknown")) is None
    assert issuer.reads == 1
    assert sessions.verify(sign()) == ADA
    clock.advance(seconds=59)
    assert sessions.verify(sign(kid="unknown")) is None
    assert issuer.reads == 1
    clock.advance(seconds=1)
    assert sessions.verify(sign(kid="unknown")) is None
    assert issuer.reads == 2


def test_a_rotated_key_is_taken_up_and_the_old_one_ends(
    sessions: Sessions, sign: Sign, issuer: Issuer, clock: ManualClock
) -> None:
    assert sessions.verify(sign()) == ADA
    issuer.publish(jwk(RSA_KEY_2, "rsa-2"))
    clock.advance(seconds=60)
    assert sessions.verify(sign(RSA_KEY_2, kid="rsa-2")) == ADA
    assert sessions.verify(sign()) is None


def test_a_withdrawn_key_ends_within_the_hour(
    sessions: Sessions, sign: Sign, issuer: Issuer, clock: ManualClock
) -> None:
    """Also when nothing new makes us look: a leaked key must not stay good for ever."""
    assert sessions.verify(sign()) == ADA
    issuer.publish(jwk(EC_KEY, "ec-1"))
    clock.advance(seconds=3599)
    assert sessions.verify(sign()) == ADA
    clock.advance(seconds=1)
    assert sessions.verify(sign()) is None


@pytest.mark.parametrize("error", [OSError("away"), TimeoutError("slow"), ValueError("bad url")], ids=repr)
def test_known_keys_stay_good_while_the_jwks_cannot_be_read(
    sessions: Sessions, sign: Sign, issuer: Issuer, clock: ManualClock, error: Exception
) -> None:
    assert sessions.verify(sign()) == ADA
    issuer.error = error
    clock.advance(seconds=3600)
    assert sessions.verify(sign()) == ADA
    assert sessions.verify(sign(kid="unknown")) is None
    assert issuer.reads == 2


def test_nobody_is_known_until_the_jwks_was_read(
    sessions: Sessions, sign: Sign, issuer: Issuer, clock: ManualClock
) -> None:
    issuer.error = OSError("away")
    assert sessions.verify(sign()) is None
    assert sessions.verify(sessions.issue("acme", "ada")) == ADA, "our own login needs nobody"
    issuer.error = None
    assert sessions.verify(sign()) is None, "not before a minute is over"
    clock.advance(seconds=60)
    assert sessions.verify(sign()) == ADA


@pytest.mark.parametrize(
    "document",
    [b"", b"<html>", b"[]", b"7", b"null", b"{}", b'{"keys": {}}', b'{"keys": []}', b'{"keys": [7, null]}',
     b'{"keys": [{"kty": "RSA", "kid": "rsa-1"}]}',
     b'{"keys": [{"kty": ["RSA"]}]}',
     b'{"keys": [{"kty": "RSA", "kid": "rsa-1", "n": 5, "e": []}]}', b'{"keys": [{"kty": "EC", "crv": 7}]}',
     b"\xff\xfe", b"[" * 100_000],
    ids=lambda document: repr(document[:24]),
)  # fmt: skip
def test_a_jwks_that_is_none_makes_no_error(
    sessions: Sessions, sign: Sign, issuer: Issuer, document: bytes
) -> None:
    issuer.document = document
    assert sessions.verify(sign()) is None


def test_one_bad_key_does_not_spoil_the_others(sessions: Sessions, sign: Sign, issuer: Issuer) -> None:
    issuer.publish({"kty": "RSA", "kid": "odd"}, {"kty": "new", "kid": "newer"}, jwk(RSA_KEY, "rsa-1"))
    assert sessions.verify(sign()) == ADA


def test_all_who_come_at_the_start_are_let_in_by_one_read(
    sessions: Sessions, sign: Sign, issuer: Issuer
) -> None:
    token, found = sign(), []
    together = threading.Barrier(8)

    def verify() -> None:
        together.wait()
        found.append(sessions.verify(token))

    threads = [threading.Thread(target=verify) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, issuer.reads) == ([ADA] * 8, 1)


def test_a_slow_login_holds_up_one_thread(
    sessions: Sessions, sign: Sign, issuer: Issuer, clock: ManualClock
) -> None:
    """One reads. Others go on with the keys that are known, and after a second those without one are refused."""
    assert sessions.verify(sign()) == ADA
    clock.advance(seconds=3600)
    reading, go_on = threading.Event(), threading.Event()

    def slow(source: str) -> bytes:
        reading.set()
        assert go_on.wait(60)
        return issuer.document

    sessions._tokens = JwtTokens(slow)
    issuer.publish(jwk(RSA_KEY, "rsa-1"), jwk(RSA_KEY_2, "rsa-2"))
    found: list[Session | None] = []
    first = threading.Thread(target=lambda: found.append(sessions.verify(sign(RSA_KEY_2, kid="rsa-2"))))
    first.start()
    assert reading.wait(60)
    assert sessions.verify(sign()) == ADA, "by the key that is known"
    clock.advance(seconds=1)
    assert sessions.verify(sign(RSA_KEY_2, kid="rsa-2")) is None
    assert sessions.verify(sign(kid="unknown")) is None
    assert first.is_alive()
    assert found == []
    go_on.set()
    first.join()
    assert found == [ADA]
    assert sessions.verify(sign(RSA_KEY_2, kid="rsa-2")) == ADA


def test_who_comes_second_waits_for_a_read_that_is_quick(
    sessions: Sessions, sign: Sign, issuer: Issuer
) -> None:
    """The first read began, and nobody is known yet: a good token must not be refused for that."""
    token = sign()
    reading, go_on, waits = threading.Event(), threading.Event(), threading.Event()

    def fetch(source: str) -> bytes:
        reading.set()
        assert go_on.wait(60)
        return issuer.document

    class Watched:
        def __init__(self, lock: Any) -> None:
            self.acquire_, self.release, self.locked = lock.acquire, lock.release, lock.locked

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if blocking:
                waits.set()
            return bool(self.acquire_(blocking, 60 if blocking else -1))

    sessions._tokens = JwtTokens(fetch)
    sessions._reading = Watched(sessions._reading)  # type: ignore[assignment]
    found: list[Session | None] = []
    threads = [threading.Thread(target=lambda: found.append(sessions.verify(token))) for _ in range(2)]
    threads[0].start()
    assert reading.wait(60)
    threads[1].start()
    assert waits.wait(60)
    go_on.set()
    for thread in threads:
        thread.join()
    assert found == [ADA, ADA]


@pytest.mark.parametrize(
    ("issuer_", "audience", "field"),
    [("", "", "session_issuer"), (ISSUER, "", "session_audience"), ("", AUDIENCE, "session_issuer")],
)
def test_a_jwks_without_issuer_and_audience_is_refused_at_the_start(
    tmp_path: Path, issuer_: str, audience: str, field: str
) -> None:
    """Else tokens that the login made for any other application are good here, and nobody is told."""
    with pytest.raises(BadParameter, match="any other application") as refused:
        check_login("https://login.example/jwks", issuer_, audience)
    assert refused.value.field == field
    settings = {"session_jwks": "jwks.json", "session_issuer": issuer_, "session_audience": audience}
    with pytest.raises(BadParameter, match=field):
        Tollkeeper.open(str(tmp_path / "data"), **settings)
    assert not (tmp_path / "data").exists(), "before anything is opened"


@pytest.mark.parametrize(
    ("source", "is_good"),
    [
        ("https://login.example/jwks", True),
        ("https://login.example:8443/jwks", True),
        ("http://127.0.0.1:8080/jwks", True),
        ("http://[::1]:8080/jwks", True),
        ("http://localhost/jwks", True),
        ("/etc/jwks.json", True),
        ("jwks.json", True),
        ("http://login.example/jwks", False),
        ("HTTP://login.example/jwks", False),
        ("http://127.0.0.1.login.example/jwks", False),
        ("http://localhost@login.example/jwks", False),
        ("http://10.0.0.1/jwks", False),
        ("ftp://127.0.0.1/jwks", False),
        ("file:///etc/jwks.json", False),
        ("data://x", False),
        ("https://", False),
        ("https://[::1/jwks", False),
        ("https://login.example:port/jwks", False),
    ],
)
def test_a_jwks_comes_over_https_or_from_this_machine(source: str, is_good: bool) -> None:
    """Over plain http anybody on the way can put a key of their own into it."""
    if is_good:
        check_login(source, ISSUER, AUDIENCE)
    else:
        with pytest.raises(BadParameter, match="must be an https URL or a file"):
            check_login(source, ISSUER, AUDIENCE)


class Login(http.server.BaseHTTPRequestHandler):
    """Answers as its path says."""

    def do_GET(self) -> None:
        asked.append(self.path)
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/jwks")
            self.end_headers()
            return
        if self.path == "/drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            # Until the other side has had enough.
            with contextlib.suppress(OSError):
                while not stop_dripping.wait(0.01):
                    self.wfile.write(b"a")
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x" * JWKS_BYTES_MAX + (b"x" if self.path == "/long" else b""))

    def log_message(self, *args: object) -> None:
        pass


asked: Final[list[str]] = []
stop_dripping: Final = threading.Event()


@pytest.fixture
def login() -> Iterator[str]:
    asked.clear()
    stop_dripping.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Login)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    stop_dripping.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_jwks_is_read_within_bounds_and_without_redirects(
    login: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert len(read_jwks(f"{login}/jwks")) == JWKS_BYTES_MAX
    with pytest.raises(ValueError, match="at most"):
        read_jwks(f"{login}/long")
    with pytest.raises(OSError, match="302"):
        read_jwks(f"{login}/redirect")
    assert asked == ["/jwks", "/long", "/redirect"]
    (tmp_path / "long").write_bytes(b"x" * (JWKS_BYTES_MAX + 1))
    with pytest.raises(ValueError, match="at most"):
        read_jwks(str(tmp_path / "long"))


def test_a_jwks_that_drips_is_given_up(login: str) -> None:
    """Each byte comes in time, but the whole never does."""
    with pytest.raises((OSError, HTTPException)):
        read_jwks(f"{login}/drip", deadline_s=0.2)


def test_without_a_jwks_only_our_own_tokens_are_good(clock: ManualClock, sign: Sign) -> None:
    sessions = Sessions(clock, SECRET, JwtTokens())
    assert sessions.verify(sign()) is None
    assert sessions.verify(sign(kid=None)) is None


def test_a_jwks_may_be_a_file(tmp_path: Path, clock: ManualClock, sign: Sign) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [jwk(RSA_KEY, "rsa-1")]}))
    sessions = Sessions(
        clock,
        SECRET,
        JwtTokens(read_jwks),
        jwks=str(path),
        issuer=ISSUER,
        audience=AUDIENCE,
        account_claim="org",
    )
    assert sessions.verify(sign()) == ADA


@pytest.mark.parametrize("algorithms", [("HS256",), ("none",), ("HS512", "none")])
def test_a_shared_secret_cannot_be_put_on_the_list(
    clock: ManualClock, sign: Sign, issuer: Issuer, algorithms: tuple[str, ...]
) -> None:
    sessions = Sessions(
        clock,
        SECRET,
        JwtTokens(issuer.fetch),
        jwks="https://login.example/jwks",
        issuer=ISSUER,
        audience=AUDIENCE,
        algorithms=algorithms,
    )
    assert sessions.verify(sign()) is None
    assert issuer.reads == 0


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*", fullmatch=True)))
@example("a" * 10_000)
@example("..")
@example("\ud800.e30.")
@example("eyJhbGciOiJIUzI1NiJ9.e30.")
def test_garbage_is_nobody(token: str) -> None:
    assert Sessions(ManualClock(), SECRET, JwtTokens()).verify(token) is None


def test_a_token_that_was_altered_anywhere_is_refused(sessions: Sessions, sign: Sign) -> None:
    for token in (sign(), sessions.issue("acme", "ada")):
        head, payload, signature = token.split(".")
        forged = _b64(
            json.dumps({**json.loads(_unb64(payload)), "org": "other", "account": "other"}).encode()
        )
        assert sessions.verify(f"{head}.{forged}.{signature}") is None
        assert sessions.verify(f"{head}.{payload}.{signature[::-1]}") is None
        assert sessions.verify(f"{head}.{payload}.") is None


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


CLERK: Final = "o.id, org_id,sub"


@pytest.mark.parametrize(
    ("claims", "account"),
    [({"o": {"id": "acme", "rol": "admin"}}, "acme"), ({"org_id": "acme"}, "acme"), ({}, "ada"),
     ({"o": {"id": "acme"}, "org_id": "other"}, "acme"), ({"o": {}}, "ada"), ({"o": "acme"}, "ada"),
     ({"o": {"id": None}, "org_id": "acme"}, "acme"), ({"org_id": ""}, "ada"), ({"o.id": "acme"}, "acme"),
     ({"o": {"id": 7}, "org_id": "acme"}, None), ({"org_id": ["acme"]}, None), ({"o": {"id": {"id": "x"}}}, None)],
)  # fmt: skip
def test_a_claim_may_be_nested_and_have_others_after_it(
    clock: ManualClock, issuer: Issuer, sign: Sign, claims: dict[str, Any], account: str | None
) -> None:
    """The first that a token has; one of another type names nobody, and no other claim stands in for it."""
    sessions = sessions_of(clock, issuer, CLERK)
    found = sessions.verify(sign(org=None, **claims))
    assert found == (None if account is None else Session(account, "ada"))
    assert sessions.verify(sessions.issue("own", "ada")) == Session("own", "ada")


def test_a_claim_may_be_a_url(clock: ManualClock, issuer: Issuer, sign: Sign) -> None:
    """Its dots are no path, and a path may begin with it."""
    name = "https://login.example/app"
    assert sessions_of(clock, issuer, name).verify(sign(**{name: "acme"})) == ADA
    assert sessions_of(clock, issuer, name + ".org.id").verify(sign(**{name: {"org": {"id": "acme"}}})) == ADA


@pytest.mark.parametrize("setting", ["", ",", "org,", "o..id", ".id", "o.", " "])
def test_a_setting_that_names_no_claim_is_refused_at_the_start(
    clock: ManualClock, issuer: Issuer, setting: str
) -> None:
    with pytest.raises(BadParameter, match="session_account_claim"):
        sessions_of(clock, issuer, setting)


def sessions_of(clock: ManualClock, issuer: Issuer, account_claim: str) -> Sessions:
    return Sessions(
        clock,
        SECRET,
        JwtTokens(issuer.fetch),
        jwks="https://login.example/jwks",
        issuer=ISSUER,
        audience=AUDIENCE,
        account_claim=account_claim,
    )
