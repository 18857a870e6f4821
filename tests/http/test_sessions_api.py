"""Session tokens over HTTP: the operator gets one for a user of an account; nobody else does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.http.conftest import Api
from tollkeeper.domain.limit_status import Session
from tollkeeper.installation import Installation


def test_a_session_token_stands_for_its_user(api: Api, installation: Installation, account: str) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    made = api("POST", "/tk/v1/sessions", {"account": account, "user": "ada", "ttl_s": 60})
    assert (made.status_code, list(made.json())) == (201, ["token", "expires_at"])
    assert made.headers["cache-control"] == "no-store"
    assert installation.sessions.verify(made.json()["token"]) == Session(account, "ada")
    expires_at = datetime.fromisoformat(made.json()["expires_at"])
    assert before <= expires_at - timedelta(seconds=60) <= datetime.now(UTC)
    default = api("POST", "/tk/v1/sessions", {"account": account, "user": "ada"}).json()["expires_at"]
    assert datetime.fromisoformat(default) - expires_at >= timedelta(hours=11)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"user": ""}, "user"),
        ({"user": None}, "user"),
        ({"user": "a" * 257}, "user"),
        ({"account": ""}, "account"),
        ({"ttl_s": 0}, "ttl_s"),
        ({"ttl_s": 2_592_001}, "ttl_s"),
        ({"ttl_s": 1.5}, "ttl_s"),
        ({"role": "operator"}, "role"),
    ],
    ids=str,
)
def test_a_bad_field_is_400(api: Api, account: str, fields: dict[str, Any], field: str) -> None:
    found = api("POST", "/tk/v1/sessions", {"account": account, "user": "ada", **fields})
    assert (found.status_code, found.json()["code"], found.json()["field"]) == (400, "bad_parameter", field)


def test_an_unknown_account_is_404(api: Api) -> None:
    assert api("POST", "/tk/v1/sessions", {"account": "none", "user": "ada"}).status_code == 404


def test_a_session_token_is_no_key_of_ours(api: Api, account: str) -> None:
    token = api("POST", "/tk/v1/sessions", {"account": account, "user": "ada"}).json()["token"]
    assert api("GET", f"/tk/v1/usage?account={account}", key=token).status_code == 401
