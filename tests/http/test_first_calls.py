"""The first calls of somebody who learns the API: a slip is answered with what to send instead."""

from __future__ import annotations

import pytest

from tests.http.conftest import Api


def test_a_rotation_has_the_next_name_or_the_one_that_is_asked_for(api: Api, account: str) -> None:
    path = f"/tk/v1/keys/k-{account}"
    assert api("POST", "/tk/v1/keys", {"account": account, "id": f"k-{account}"}).status_code == 201
    assert api("POST", f"{path}/rotate", {}).json()["entry"]["id"] == f"k-{account}-2"
    named = api("POST", f"{path}-2/rotate", {"id": f"live-{account}"})
    assert named.json()["entry"]["id"] == f"live-{account}"
    taken = api("POST", f"/tk/v1/keys/live-{account}/rotate", {"id": f"k-{account}"})
    assert (taken.status_code, taken.json()["code"]) == (409, "conflict")
    bad = api("POST", f"/tk/v1/keys/live-{account}/rotate", {"id": "no id"})
    assert (bad.status_code, bad.json()["code"]) == (400, "bad_parameter")
    # A refused rotation changes nothing: the key can still be rotated.
    assert api("POST", f"/tk/v1/keys/live-{account}/rotate", {}).json()["entry"]["id"] == f"k-{account}-3"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        (
            "POST",
            "/tk/v1/keys",
            {"account": "{account}", "expires_at": "2020-01-01T00:00:00Z"},
            400,
            "expires_at must be later than now",
        ),
        ("PUT", "/tk/v1/routes/r", {"method": "GET", "path": "/v1/items/:id"}, 400, "as in /v1/items/{id}"),
        (
            "PUT",
            "/tk/v1/budgets/b",
            {"account": "{account}", "amount": 1, "match": {"routes": ["GET /v1/items/:id"]}},
            400,
            "as in /v1/items/{id}",
        ),
        ("PUT", "/tk/v1/plans/p", {"limits": [{"name": "l", "amount": 1.5}]}, 400, "whole number"),
        ("GET", "/tk/v1/keys?account=nobody", None, 404, "no account 'nobody'"),
        ("GET", "/tk/v1/usage?account=nobody", None, 404, "no such account"),
    ],
)
def test_a_slip_is_refused_with_words(
    api: Api, account: str, method: str, path: str, body: dict[str, object] | None, status: int, said: str
) -> None:
    sent = None if body is None else {k: account if v == "{account}" else v for k, v in body.items()}
    found = api(method, path, sent)
    assert found.status_code == status, found.text
    assert said in found.json()["detail"]


@pytest.mark.parametrize(
    ("media_type", "said"),
    [
        ("application/x-www-form-urlencoded", "what `curl -d` sends by itself"),
        ("text/plain", "`tollkeeper ingest FILE`"),
        ("text/csv", "`tollkeeper ingest FILE`"),
        ("image/png", "not 'image/png'"),
    ],
)
def test_a_log_with_another_content_type(api: Api, media_type: str, said: str) -> None:
    line = b'1.2.3.4 - - "GET / HTTP/1.1" 200 5'
    found = api("POST", "/tk/v1/events", content=line, headers={"Content-Type": media_type})
    assert found.status_code == 415
    assert "Content-Type must be application/json (curl: `--json`)" in found.json()["detail"]
    assert said in found.json()["detail"]
