"""Two accounts with a credential of each kind, on an installation that also takes another login's tokens."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.fuzz.asgi import Caller
from tests.http.conftest import OPERATOR_KEY, Api, World, api, world
from tollkeeper import testing
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.clock import SystemClock
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.installation import Installation

__all__ = ["api", "world"]

ISSUER: Final = "https://login.example"
AUDIENCE: Final = "dashboard"
LOGIN_KEY: Final = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def installation(
    tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore
) -> Iterator[Installation]:
    directory = tmp_path_factory.mktemp("security")
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(LOGIN_KEY.public_key()))
    jwks = directory / "jwks.json"
    jwks.write_text(json.dumps({"keys": [{**public, "kid": "one", "alg": "ES256"}]}))
    with testing.installation(
        directory,
        clock=SystemClock(),
        store=usage_store,
        session_jwks=str(jwks),
        session_issuer=ISSUER,
        session_audience=AUDIENCE,
    ) as opened:
        ensure_operator_key(opened, OPERATOR_KEY)
        yield opened


@pytest.fixture(scope="module")
def call(api: Api) -> Iterator[Caller]:
    caller = Caller(api.app)
    yield caller
    caller.close()


class Tokens(NamedTuple):
    """Session tokens that say that they are of one account."""

    good: dict[str, str]
    bad: dict[str, str]


def tokens_of(account: str, installation: Installation) -> Tokens:
    """Return the good tokens of *account*, and every kind of forgery or leftover that claims to be one."""
    now = datetime.now(UTC)
    claims = {
        "sub": "ada",
        "account": account,
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": now + timedelta(hours=1),
    }
    past = {**claims, "exp": now - timedelta(hours=1)}
    kid = {"kid": "one"}
    public = LOGIN_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    own = installation.sessions.issue(account, "ada")

    def signed(given: dict[str, Any], key: Any = LOGIN_KEY, **header: Any) -> str:
        return jwt.encode(given, key, algorithm="ES256", headers={**kid, **header})

    head, body, signature = own.split(".")
    wide = json.loads(base64.urlsafe_b64decode(body + "=="))
    return Tokens(
        {"own": own, "login": signed(claims)},
        {
            "expired own": installation.sessions.issue(account, "ada", -3600),
            "expired login": signed(past),
            "no algorithm": jwt.encode(claims, None, algorithm="none", headers=kid),
            "no algorithm, own issuer": f"{_part({'alg': 'none', 'typ': 'JWT'})}.{body}.",
            # The classic confusion: the public key as the secret of an HMAC.
            "public key as secret": _hmac({**claims, "exp": wide["exp"]}, public, kid),
            "public key as secret, own issuer": _hmac(wide, public, {}),
            "empty secret": _hmac(wide, b"", {}),
            "other key": signed(claims, ec.generate_private_key(ec.SECP256R1())),
            "unknown key id": signed(claims, kid="two"),
            "other issuer": signed({**claims, "iss": "https://evil.example"}),
            "own issuer by login": signed({**claims, "iss": "tollkeeper"}),
            "other audience": signed({**claims, "aud": "elsewhere"}),
            "no expiry": signed({name: value for name, value in claims.items() if name != "exp"}),
            "changed body": f"{head}.{_part({**wide, 'sub': 'eve'})}.{signature}",
            "cut": own[:-4],
            "unknown account": installation.sessions.issue(f"none-{uuid.uuid4().hex}", "ada"),
            "nested without end": base64.urlsafe_b64encode(b"[" * 5_000).decode() + ".e30.e30",
        },
    )


def _part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _hmac(claims: dict[str, Any], secret: bytes, header: dict[str, str]) -> str:
    """Return an HS256 token; by hand, since the library refuses to make what an attacker would."""
    import hashlib
    import hmac

    text = f"{_part({'alg': 'HS256', 'typ': 'JWT', **header})}.{_part(claims)}"
    digest = hmac.new(secret, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


class Credentials(NamedTuple):
    """What somebody may send for one profile: those that say who calls, and those that are good for nothing."""

    good: dict[str, str]
    """`key`, `management`, `session`, `login` of account A; `key of B`, `management of B`, `session of B`."""
    bad: dict[str, str | None]


def credentials_of(profile: str, api: Api, world: World, installation: Installation) -> Credentials:
    """Return every kind of credential as *profile* may meet it."""
    a, b = world

    def issue(account: str, of: str = profile, **fields: Any) -> tuple[str, str]:
        made = api("POST", "/tk/v1/keys", {"account": account, "profile": of, "type": "credit", **fields})
        assert made.status_code == 201, made.text
        return made.json()["entry"]["id"], made.json()["secret"]

    ends: dict[str, str] = {}
    for state in ("revoked", "inactive", "deleted"):
        key_id, ends[state] = issue(a.account)
        assert api("POST", f"/tk/v1/keys/{key_id}/state", {"state": state}).status_code == 200
    key_id, ends["expired"] = issue(a.account)
    ended = {"account": a.account, "profile": profile, "type": "credit", "expires_at": "2026-01-01T00:00:00Z"}
    assert api("PUT", f"/tk/v1/keys/{key_id}", ended).status_code == 200
    other = "shoal" if profile != "shoal" else "regsn"
    key = issue(a.account)[1]
    of_a, of_b = tokens_of(a.account, installation), tokens_of(b.account, installation)
    return Credentials(
        {
            "key": key,
            "management": a.management_key,
            "session": of_a.good["own"],
            "login": of_a.good["login"],
            "key of B": issue(b.account)[1],
            "management of B": b.management_key,
            "session of B": of_b.good["own"],
        },
        {
            "none": None,
            "garbage": "garbage",
            "garbage with the prefix": key[:-8] + "AAAAAAAA",
            "cut": key[:-1],
            "longer": key + "A",
            "operator": OPERATOR_KEY,
            "key of another profile": issue(a.account, other)[1],
            "native key": issue(a.account, "native")[1],
            "management, changed": a.management_key[:-4] + "AAAA",
            **ends,
            **of_a.bad,
        },
    )
