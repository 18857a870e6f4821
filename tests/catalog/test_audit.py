"""Each change of the catalog has its line in the audit log: who, when, old, new. No refusal has."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.audit import AuditLine
from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import Account, Budget, Grant, Key, Plan, PlanBudget, Project
from tollkeeper.domain.keys import hash_secret
from tollkeeper.errors import BadParameter, TollkeeperError
from tollkeeper.installation import Installation
from tollkeeper.testing import ManualClock, installation

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def site(tmp_path: Path, usage_store: ClickHouseUsageStore) -> Iterator[Installation]:
    with installation(tmp_path, clock=ManualClock(NOON), store=usage_store) as site:
        yield site


def logged(site: Installation, **asked: Any) -> list[AuditLine]:
    return list(reversed(site.manage.audit_log(**asked)))


def told(lines: list[AuditLine]) -> list[tuple[str, str, str, str]]:
    return [(line.actor, line.action, line.kind, line.id) for line in lines]


def test_every_way_to_change_an_entry_has_its_line(site: Installation) -> None:
    manage = site.manage
    manage.put(Account(id="acme", name="Acme"))
    manage.put(Account(id="acme", name="Acme", active=False))
    manage.put(Account(id="acme", name="Acme", active=False))
    manage.put(Budget(id="b", account="acme", amount=5_000_000_000, period="month"))
    manage.put(Budget(id="b", account="acme", amount=7_000_000_000, period="month"))
    issued = manage.issue_key(Key(id="k", account="acme", type="credit"))
    manage.set_key_state("acme", "k", "inactive")
    manage.set_key_state("acme", "k", "inactive")
    manage.rotate_key("acme", "k", 60)
    manage.put(Grant(id="g", account="acme", amount_nanos=3))
    manage.revoke_grant("acme", "g")
    manage.revoke_grant("acme", "g")
    manage.delete("budgets", "b", "acme")
    manage.delete("keys", "k", "acme")
    lines = logged(site)
    successor = lines[6].id
    assert told(lines) == [
        ("operator", "created", "accounts", "acme"),
        ("operator", "changed", "accounts", "acme"),
        ("operator", "created", "budgets", "b"),
        ("operator", "changed", "budgets", "b"),
        ("operator", "created", "keys", "k"),
        ("operator", "changed", "keys", "k"),
        ("operator", "created", "keys", successor),
        ("operator", "changed", "keys", "k"),
        ("operator", "created", "grants", "g"),
        ("operator", "changed", "grants", "g"),
        ("operator", "deleted", "budgets", "b"),
        ("operator", "deleted", "keys", "k"),
    ]
    by_place = [line.fields for line in lines]
    assert by_place[0] == {"id": (None, "acme"), "name": (None, "Acme")}
    assert by_place[1] == {"active": (True, False)}
    assert by_place[3] == {"amount": (5_000_000_000, 7_000_000_000)}
    assert by_place[5] == {"state": ("active", "inactive")}
    assert by_place[9]["revoked_at"] == (None, "2026-01-31T12:00:00.000000Z")
    assert by_place[10]["amount"] == (7_000_000_000, None)
    assert {line.unit for line in lines if line.kind == "budgets"} == {"nanos"}
    assert all(line.at_us == site.clock.now_us() for line in lines)
    assert [line.seq for line in lines] == sorted({line.seq for line in lines})
    assert issued.secret is not None
    for secret in (issued.secret, hash_secret(issued.secret)):
        assert secret not in str(lines)


def test_a_file_has_a_line_for_each_entry_and_a_dry_run_none(site: Installation) -> None:
    entries = [
        Account(id="acme", name="Acme", plan="pro"),
        Plan(slug="pro", budgets=[PlanBudget(name="spend", amount=1, period="30d")]),
    ]
    site.manage.apply(entries, dry_run=True)
    assert logged(site) == []
    site.manage.apply(entries)
    site.manage.apply(entries)
    lines = logged(site)
    assert sorted(told(lines)) == [
        ("operator", "created", "accounts", "acme"),
        ("operator", "created", "plans", "pro"),
    ]
    assert [line.account_id for line in lines if line.kind == "plans"] == [None]


@pytest.mark.parametrize(("key_id", "actor"), [("mine", "key:mine"), (None, "session")])
def test_a_customer_is_named(site: Installation, key_id: str | None, actor: str) -> None:
    plan = Plan(slug="pro", budgets=[PlanBudget(name="spend", amount=1, period="30d", per="account")])
    site.manage.apply([plan, Account(id="acme", name="A", plan="pro")])
    site.manage.put(Project(id="p", account="acme", name="P"), by=Customer("acme", key_id))
    site.manage.delete("projects", "p", "acme", by=Customer("acme", key_id))
    assert told(logged(site, kind="projects")) == [
        (actor, "created", "projects", "p"),
        (actor, "deleted", "projects", "p"),
    ]


def test_what_is_refused_has_no_line(site: Installation) -> None:
    site.manage.put(Account(id="acme", name="A"))
    with pytest.raises(TollkeeperError):
        site.manage.apply([Account(id="fine", name="A"), Project(id="p", account="nobody", name="P")])
    with pytest.raises(TollkeeperError):
        site.manage.delete("accounts", "nobody")
    assert told(logged(site)) == [("operator", "created", "accounts", "acme")]


def test_pages_and_filters(site: Installation) -> None:
    for name in ("a", "b", "c"):
        site.manage.put(Account(id=name, name="A"))
        site.manage.put(Project(id="same", account=name, name="P"))
    assert {line.account_id for line in logged(site, account="b")} == {"b"}
    assert [line.account_id for line in logged(site, entry_id="same")] == ["a", "b", "c"]
    first = site.manage.audit_log(limit=4)
    rest = site.manage.audit_log(before_seq=first[-1].seq, limit=4)
    assert [*first, *rest] == list(site.manage.audit_log())
    assert len(rest) == 2
    for wrong in ({"limit": 0}, {"limit": 1001}, {"kind": "secrets"}):
        with pytest.raises(BadParameter):
            site.manage.audit_log(**wrong)
    assert site.manage.audit_log(entry_id="a\x00") == []


def test_a_new_operator_key_has_its_line_without_the_key(site: Installation) -> None:
    now_us = site.clock.now_us()
    for number, secret in enumerate(("ok_the-first-of-them", "ok_the-second-of-them")):
        site.operator_keys.replace(hash_secret(secret), now_us + number * 1_000_000)
    created, changed = logged(site, kind="operator_keys")
    assert told([created, changed]) == [
        ("operator", "created", "operator_keys", "operator"),
        ("operator", "changed", "operator_keys", "operator"),
    ]
    first, second = "2026-01-31T12:00:00.000000Z", "2026-01-31T12:00:01.000000Z"
    assert (created.fields, changed.fields) == (
        {"created_at": (None, first)},
        {"created_at": (first, second)},
    )
