"""
Customers who make themselves keys through every door they have, and spend with all of them.

The bound of each account (its credit, its plan's budget, the limit of its only key) lets `MINTED_MAX` requests pass.
However many keys its customer makes, no more may be admitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from itertools import product
from typing import Any, Final

import msgspec

from tollkeeper.api.paths import PREFIX
from tollkeeper.console.server_defaults import HOST
from tollkeeper.prove.journal import ANSWER_S_MAX
from tollkeeper.prove.oracle import Finding
from tollkeeper.prove.plan import EVEN_NANOS, MINTED_MAX, management_id_of, secret_of
from tollkeeper.prove.server import OPERATOR_KEY

TRIES: Final = MINTED_MAX + 1
"""Requests with each key: one more than may pass in all."""


def check_minting(port: int, number: int) -> list[Finding]:
    """Mint and spend on the accounts of round *number*; return where more was admitted than fits."""
    found: list[Finding] = []
    for account in (f"mint-credit-{number}", f"mint-plan-{number}", f"mint-key-{number}"):
        door = _Door(port, account)
        secrets = [secret_of(account), *door.mint()]
        admitted = [
            name for name, secret in enumerate(secrets) for _ in range(TRIES) if door.authorize(secret)
        ]
        limited = account == f"mint-key-{number}"
        found += minted(account, len(admitted), len(secrets), door.own_calls if limited else 0)
        found += [Finding("other", f"{account}: {what}") for what in door.errors]
    return found


def minted(account: str, admitted: int, keys: int, own_calls: int = 0) -> list[Finding]:
    """
    Return the finding of an account by whose *keys* so many requests were admitted, if there is one.

    Args:
        own_calls: Calls to a dialect's endpoints with a key of the account, where its bound is a rate limit: these
            calls count in it too.
    """
    if admitted > MINTED_MAX:
        what = f"{account}: {admitted} requests were admitted with {keys} keys where {MINTED_MAX} fit"
        return [Finding("overshoot", what, fault="minting")]
    if admitted < MINTED_MAX - own_calls:
        what = f"{account}: {admitted} requests were admitted with {keys} keys where {MINTED_MAX} fit"
        return [Finding("other", what, fault="minting")]
    return []


class _Door:
    """One customer, and the operator's gateway in front of it."""

    def __init__(self, port: int, account: str) -> None:
        self.errors: list[str] = []
        self.own_calls = 0
        self._port = port
        self._account = account

    def mint(self) -> Iterator[str]:
        """Yield the secret of every key that the customer can get."""
        manages = secret_of(management_id_of(self._account))
        own = secret_of(self._account)
        if not self._account.startswith("mint-key"):
            projects: list[dict[str, Any]] = [{}] + [
                {"project": f"{self._account}-p{index}"}
                for index in range(2)
                if self._call("PUT", f"{PREFIX}/projects/{self._account}-p{index}", manages,
                              {"id": f"{self._account}-p{index}", "account": self._account})[0] < 300
            ]  # fmt: skip
            kinds: list[dict[str, Any]] = [{}, {"type": "subscription"}, {"type": "credit"}]
            for kind, project in product(kinds, projects):
                status, answer = self._call("POST", f"{PREFIX}/keys", manages, {**kind, **project})
                if status == 201:
                    yield answer["secret"]
                    yield from self._rotated(manages, answer["entry"]["id"])
            yield from self._rotated(manages, self._account)
        for (credential, calls), limit in product(
            ((own, 1), (manages, 0)), (None, {"requestsPerMinute": 1_000})
        ):
            body = {"name": "minted"} if limit is None else {"name": "minted", "rateLimit": limit}
            self.own_calls += calls
            status, answer = self._call("POST", "/anylayer/v1/developer/keys", credential, body)
            if status in (200, 201) and "apiKey" in answer:
                yield answer["apiKey"]

    def authorize(self, secret: str) -> bool:
        """Spend once, as the operator's gateway has it checked."""
        body = {"key": secret, "path": "/v1/any", "cost_nanos": EVEN_NANOS, "ttl_s": 3_600}
        status, answer = self._call("POST", f"{PREFIX}/authorize", OPERATOR_KEY, body)
        if status == 200:
            self._call(
                "POST",
                f"{PREFIX}/settle",
                OPERATOR_KEY,
                {"hold_id": answer["hold_id"], "cost_nanos": EVEN_NANOS},
            )
        return status == 200

    def _rotated(self, manages: str, key_id: str) -> Iterator[str]:
        status, answer = self._call("POST", f"{PREFIX}/keys/{key_id}/rotate", manages, {"overlap_s": 3_600})
        if status == 201:
            yield answer["secret"]

    def _call(self, method: str, path: str, credential: str, body: Any) -> tuple[int, Any]:
        connection = HTTPConnection(HOST, self._port, timeout=ANSWER_S_MAX)
        headers = {"Authorization": f"Bearer {credential}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, msgspec.json.encode(body), headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status >= 500:
                self.errors.append(f"{method} {path} was answered {answer.status}: {content[:200]!r}")
            return answer.status, msgspec.json.decode(content) if content else None
        except (OSError, HTTPException, msgspec.DecodeError) as exc:
            self.errors.append(f"{method} {path} was not answered: {exc!r}")
            return 0, None
        finally:
            connection.close()
