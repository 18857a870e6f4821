"""
A secret is shown once, to the caller that made it: not on the disk, not in a log, an error, a metric or a `repr`.

At rest there are hashes only, and none is compared in a way that could tell by its time.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import re
from pathlib import Path
from typing import Any, Final

import pytest

import tollkeeper
from tests.cli.commands import tollkeeper as run_command
from tests.end_to_end.server import running_server
from tests.fuzz.asgi import Answer, Caller
from tests.http.conftest import OPERATOR_KEY
from tests.security.conftest import tokens_of
from tollkeeper import testing
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.catalog.changes import IssuedKey
from tollkeeper.clock import SystemClock
from tollkeeper.domain.catalog import Account, Key
from tollkeeper.domain.keys import hash_secret
from tollkeeper.http.app import build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.profiles import names
from tollkeeper.settings import Settings
from tollkeeper.testing import set_up

SOURCE: Final = Path(tollkeeper.__file__).parent


class Story:
    """An installation that has issued, used, rotated and refused keys; what it said and what it wrote."""

    def __init__(self, directory: Path, usage_directory: Path) -> None:
        self.directory = directory
        self.usage_directory = usage_directory
        self.secrets: list[str] = [OPERATOR_KEY]
        self.answers: list[Answer] = []
        self.texts: list[str] = []


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore, usage_directory: Path
) -> Story:
    directory = tmp_path_factory.mktemp("secrets")
    story = Story(directory, usage_directory)
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = records.append  # type: ignore[method-assign]
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with testing.installation(directory, clock=SystemClock(), store=usage_store) as site:
            ensure_operator_key(site, OPERATOR_KEY)
            app = build_app(site)
            call = Caller(app)
            _live(story, call)
            story.texts += [repr(site.settings), repr(site), repr(app.authenticator), repr(site.sessions)]
            story.texts += [repr(stored) for stored in site.directory.keys_of("acme")]
            story.secrets += tokens_of("acme", site).good.values()
            # What is wrong inside is told to the log, with its trace.
            site.manage.list = _broken  # type: ignore[method-assign, assignment]
            story.answers.append(_ask(call, "GET", "/tk/v1/keys", OPERATOR_KEY))
            call.close()
            app.close()
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    formatter = logging.Formatter("%(name)s %(message)s")
    for record in records:
        story.texts.append(formatter.format(record))
        story.texts.append(repr({name: value for name, value in vars(record).items() if name != "exc_info"}))
    assert any("tollkeeper.http.failed" in text for text in story.texts)
    return story


def _broken(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("broken by the test")


def _ask(call: Caller, method: str, path: str, key: str, body: Any = None) -> Answer:
    headers = [(b"authorization", b"Bearer " + key.encode()), (b"content-type", b"application/json")]
    return call(method, path, headers, b"" if body is None else json.dumps(body).encode())


def _live(story: Story, call: Caller) -> None:
    """Do everything that a key can be part of; keep what was answered, but for where a secret is shown."""

    def ask(method: str, path: str, body: Any = None, key: str = OPERATOR_KEY) -> Answer:
        answer = _ask(call, method, path, key, body)
        story.answers.append(answer)
        return answer

    def make(path: str, body: Any, key: str = OPERATOR_KEY) -> tuple[str, str]:
        answer = _ask(call, "POST", path, key, body)
        assert answer.status == 201, answer.body
        secret = answer.json["secret"]
        story.secrets.append(secret)
        return answer.json["entry"]["id"], secret

    ask("PUT", "/tk/v1/accounts/acme", {"name": "Acme"})
    ask("PUT", "/tk/v1/routes/all", {"method": "*", "path": "/*", "price_nanos": 10})
    ask("PUT", "/tk/v1/grants/g", {"account": "acme", "amount_nanos": "1000000"})
    _, management = make("/tk/v1/keys", {"account": "acme", "role": "management"})
    for profile in ("native", *names()):
        key_id, secret = make("/tk/v1/keys", {"account": "acme", "profile": profile, "type": "credit"})
        held = ask("POST", "/tk/v1/authorize", {"key": secret, "path": "/v1/x", "profile": profile})
        if held.status == 200:
            ask("POST", "/tk/v1/settle", {"hold_id": held.json["hold_id"], "cost_nanos": 5})
        _, rotated = make(f"/tk/v1/keys/{key_id}/rotate", {"overlap_s": 60})
        ask("POST", "/tk/v1/authorize", {"key": rotated, "path": "/v1/x", "kee": 1})
        ask("POST", "/tk/v1/authorize", {"key": rotated + "x", "path": "/v1/x"})
        ask("GET", f"/tk/v1/keys/{key_id}/state")
        ask("POST", f"/tk/v1/keys/{key_id}/state", {"state": "revoked"})
        ask("POST", "/tk/v1/authorize", {"key": secret, "path": "/v1/x"})
        ask("PUT", f"/tk/v1/keys/{key_id}", {"account": "acme", "secret": secret})
        ask("PUT", f"/tk/v1/keys/{key_id}", {"account": "acme", "sha256": secret})
        ask("GET", f"/{profile}/v1/usage", key=rotated)
        ask("GET", f"/{profile}/v1/none", key=rotated)
        ask("GET", "/tk/v1/usage", key=secret)
    token = _ask(call, "POST", "/tk/v1/sessions", OPERATOR_KEY, {"account": "acme", "user": "ada"}).json[
        "token"
    ]
    story.secrets.append(token)
    for path in ("/regsn/v1/usage", "/cheapestinference/api/keys", "/regsn/v1/keys", "/tk/v1/usage"):
        ask("GET", path, key=token)
    _, made = make("/tk/v1/keys", {"type": "credit", "name": "own"}, management)
    event = {"id": "e-1", "time": "2026-01-31T00:00:00Z", "account": "acme", "cost_nanos": 1}
    for path in (
        "/tk/v1/events",
        "/tk/v1/events/e-1/amend?account=acme",
        "/tk/v1/events/e-1/void?account=acme",
    ):
        ask("POST", path, event if path.endswith("events") else {"cost_nanos": 2} if "amend" in path else {})
    for path in (
        "keys?limit=1000",
        "accounts",
        "usage?group_by=key",
        "openapi.json",
        "events/e-1?account=acme",
    ):
        ask("GET", f"/tk/v1/{path}")
    ask("POST", "/tk/v1/verify")
    ask("GET", "/metrics")
    ask("GET", "/readyz")
    file = f'[[keys]]\nid = "filed"\naccount = "acme"\nsha256 = "{hash_secret(made)}"\nsecret = "{made}"\n'
    headers = [(b"authorization", b"Bearer " + OPERATOR_KEY.encode()), (b"content-type", b"application/toml")]
    story.answers.append(call("POST", "/tk/v1/apply", headers, file.encode()))


def test_no_secret_is_on_the_disk(story: Story) -> None:
    """The bytes of every file of the data directory and of the usage store, WAL and all, are looked through."""
    wanted = re.compile(b"|".join(re.escape(secret.encode()) for secret in story.secrets))
    seen_bytes = 0
    for root in (story.directory, story.usage_directory):
        for path in root.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                seen_bytes += len(data)
                found = wanted.search(data)
                assert found is None, (path, found)
    assert len(story.secrets) > 15
    # It looked at the right place: the hash of a key is there.
    ledger = b"".join(path.read_bytes() for path in story.directory.glob("ledger.sqlite3*"))
    assert hash_secret(story.secrets[1]).encode() in ledger
    assert seen_bytes > 100_000


def test_no_secret_and_no_hash_is_answered_logged_or_shown(story: Story) -> None:
    """But where it is made. Of the errors, too, which tell what was wrong with what was sent."""
    hidden = [*story.secrets, *map(hash_secret, story.secrets)]
    texts = [*(answer.body.decode() for answer in story.answers), *story.texts]
    texts += [str(answer.headers) for answer in story.answers]
    for secret in hidden:
        leaks = [text[:300] for text in texts if secret in text]
        assert not leaks, (secret[:8], leaks[:2])


def test_what_holds_a_key_does_not_show_its_hash() -> None:
    """A `repr` ends in a trace sooner or later."""
    entry = Key(id="k", account="acme", sha256=hash_secret("tk_x"))
    assert hash_secret("tk_x") not in repr(entry)
    assert "acme" in repr(entry)
    assert "acme" in repr(Account(id="acme", name="Acme"))
    assert "tk_x" not in repr(IssuedKey(entry=entry, secret="tk_x"))
    settings = Settings(ledger_url="postgresql://toll:hunter2@db.example:5432/toll")
    assert "hunter2" not in repr(settings)
    assert "toll:***@db.example:5432/toll" in repr(settings)


def test_what_signs_sessions_is_its_owners_to_read_only(story: Story) -> None:
    """It is no hash: with it anybody could make session tokens. Only the server's own user may read it."""
    assert (story.directory / "session.secret").stat().st_mode & 0o777 == 0o600


def test_a_data_directory_that_we_make_is_its_owners_only(
    tmp_path: Path, usage_store: ClickHouseUsageStore
) -> None:
    """Usage and money of every customer are in it, whatever the umask is."""
    with testing.installation(tmp_path / "made", store=usage_store):
        assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_what_is_made_in_a_directory_of_others_is_its_owners_only(
    tmp_path: Path, usage_store: ClickHouseUsageStore, umask: int
) -> None:
    """A volume or a service manager makes the directory 0755: the money in it is nobody else's to read."""
    directory = tmp_path / "volume"
    directory.mkdir()
    directory.chmod(0o755)
    before = os.umask(umask)
    try:
        with testing.installation(directory, store=usage_store) as site:
            set_up(site, Account(id="acme", name="Acme"))
            modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    finally:
        os.umask(before)
    assert modes.pop("usage") == 0o700
    assert modes == dict.fromkeys(modes, 0o600)
    assert {
        "lock",
        "ledger.sqlite3",
        "ledger.sqlite3-wal",
        "session.secret",
        "webhook.secret",
    } <= modes.keys()
    assert directory.stat().st_mode & 0o777 == 0o755, "the directory itself is not ours"


def test_a_file_that_its_owner_has_shared_stays_shared(
    tmp_path: Path, usage_store: ClickHouseUsageStore
) -> None:
    """A group that makes backups may read it."""
    with testing.installation(tmp_path / "data", store=usage_store):
        pass
    ledger = tmp_path / "data" / "ledger.sqlite3"
    ledger.chmod(0o640)
    with testing.installation(tmp_path / "data", store=usage_store):
        assert ledger.stat().st_mode & 0o777 == 0o640


def test_the_server_makes_files_for_its_owner_only(tmp_path: Path) -> None:
    """Those of the embedded engine too, whatever the umask that it was started with."""
    directory = tmp_path / "volume"
    directory.mkdir()
    directory.chmod(0o755)
    before = os.umask(0o022)
    try:
        with running_server(directory) as server:
            server.put("/tk/v1/accounts/acme", {"name": "Acme"})
            event = {"id": "e", "time": "2026-01-31T00:00:00Z", "account": "acme", "cost_nanos": 1}
            server.post("/tk/v1/events", event)
            found = server.call("GET", "/tk/v1/usage?account=acme&from=2026-01-01")
            assert found["totals"]["requests"] == 1
    finally:
        os.umask(before)
    paths = list(directory.rglob("*"))
    assert len(paths) > 20
    assert [path for path in paths if not path.is_symlink() and path.stat().st_mode & 0o077] == []


@pytest.mark.drawn(1)
@pytest.mark.parametrize(
    ("option", "url"),
    [
        ("--ledger-url", "postgresql://toll:hunter2@127.0.0.1:1/toll"),
        ("--ledger-url", "postgresql://127.0.0.1:1/toll?user=toll&password=hunter2"),
        ("--usage-url", "clickhouse://toll:hunter2@127.0.0.1:1/toll"),
    ],
)
def test_a_password_on_the_command_line_is_warned_of_and_never_shown(
    tmp_path: Path, option: str, url: str
) -> None:
    """Every user of the machine reads it with `ps`; the environment is the owner's."""
    variable = "TOLLKEEPER_" + option.strip("-").replace("-", "_").upper()
    # A ledger that cannot be opened ends the command.
    ledger = [] if option == "--ledger-url" else ["--ledger-url", "oracle://nowhere"]
    warned = run_command("serve", "--data", tmp_path / "data", option, url, *ledger)
    quiet = run_command("serve", "--data", tmp_path / "other", *ledger, variables={variable: url})
    for done in (warned, quiet):
        assert done.returncode == 1
        assert "hunter2" not in done.stdout + done.stderr
    assert f"Use the variable {variable}" in warned.stderr
    assert "Use the variable" not in quiet.stderr
    assert "hunter2" not in repr(Settings(ledger_url=url))


def test_a_secret_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, usage_store: ClickHouseUsageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the rename left an empty file, and the next start refused."""
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def renamed(path: Path, to: Path) -> Path:
        done.append(f"name {to.name} {path.stat().st_size}")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    with testing.installation(tmp_path / "data", store=usage_store):
        pass
    for name in ("webhook", "session"):
        at = done.index(f"name {name}.secret 64")
        assert done[at - 1 : at + 2] == [f"sync {name}.new", f"name {name}.secret 64", "sync data"]


SECRETIVE: Final = re.compile(r"secret|sha256|digest|signature|password|token\b|credential", re.IGNORECASE)
COMPARED_OPENLY: Final = {
    # Whether the operator's key of the environment is the stored one already: no caller can ask for it.
    ("http/server.py", "keys.all() != {hash_secret(given)}"),
    # The look-up itself, by hash, in the index of the database.
    ("adapters/sql/catalog_store.py", "tables.keys.c.secret_sha256 == secret_sha256"),
    # Logins of the page, by hash in the same way; the others compare hashes of the database with each other.
    ("adapters/sql/logins.py", "logins.c.secret_sha256 == secret_sha256"),
    ("adapters/sql/logins.py", "logins.c.key_sha256 == login.key_sha256"),
    ("adapters/sql/logins.py", "keys.c.secret_sha256 == logins.c.key_sha256"),
    ("adapters/sql/logins.py", "operator_keys.c.secret_sha256 == logins.c.key_sha256"),
    # Whether the operator's file brings the hash that is stored: of hashes, by who may read them all.
    ("catalog/key_writer.py", "key.sha256 != stored.secret_sha256"),
    # Checksums of files of a backup: they find damage, and keep nobody out.
    ("adapters/backup_directory.py", "hashlib.sha256(sealed.manifest).hexdigest() != sealed.sha256"),
    ("adapters/backup_directory.py", "there.sha256 != known.sha256"),
    # What a profile declares of its endpoints.
    ("demo/dialect.py", "credential == 'none'"),
    # The form of a token, which its sender knows.
    ("http/known_key.py", "secret.count('.') == _TOKEN_DOTS"),
}
"""Comparisons that no caller of an API can time."""


def test_no_code_compares_a_secret_byte_by_byte() -> None:
    """
    `==` stops at the first byte that differs, and its time tells how many were right.

    A key is hashed first, and the hash looked up: who tries out keys cannot choose the bytes of their hashes, so
    the time of a look-up says nothing about a secret. Signatures are the JWT library's, which compares in constant
    time.
    """
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Compare) or not any(
                isinstance(op, ast.Eq | ast.NotEq) for op in node.ops
            ):
                continue
            parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
            named = [part.id for part in parts if isinstance(part, ast.Name)]
            named += [part.attr for part in parts if isinstance(part, ast.Attribute)]
            if any(SECRETIVE.search(name) for name in named):
                found.add((path.relative_to(SOURCE).as_posix(), ast.unparse(node)))
    assert found == COMPARED_OPENLY
