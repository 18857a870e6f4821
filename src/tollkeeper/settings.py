"""
Typed settings.

Each setting can be given to `Tollkeeper.open`, in the environment as `TOLLKEEPER_<NAME>` or as a file
(`TOLLKEEPER_<NAME>_FILE`), or to `tollkeeper serve`. docs/settings.md lists them; a test holds the two together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from tollkeeper import environment
from tollkeeper.domain.requirements import requirement
from tollkeeper.domain.retention import retention_us
from tollkeeper.errors import BadParameter

LEDGER_FILE: Final = "ledger.sqlite3"
USAGE_DIRECTORY: Final = "usage"
BACKUP_DIRECTORY: Final = "backups"
_PASSWORD: Final = re.compile(r"(?<=:)[^:/@]+(?=@)|(?<=password=)[^&#\s'\"]+")
"""In a URL, `user:password@host` or `?password=…`: no place for it in a trace or log."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of an operator. Sizes are bytes, times seconds."""

    data_dir: str = "./data"
    """Directory of the embedded stores; also of the lock that keeps a second process out."""
    ledger_url: str = ""
    """`sqlite:///path` or `postgresql://user@host/name`; empty: SQLite in the data directory."""
    usage_url: str = ""
    """`chdb:///path` or `clickhouse://user@host/name`; empty: chDB in the data directory."""
    unknown_route: Literal["deny", "allow"] = "deny"
    """What the gate does with a request to a route that no policy matches."""
    unknown_price: Literal["deny", "allow"] = "deny"
    """What the gate does with a model that has no price; `allow` admits it and records it as unpriced."""
    hold_s: Annotated[int, msgspec.Meta(ge=1)] = 300
    """Seconds that a hold made over HTTP stays open by default."""
    body_bytes_max: Annotated[int, msgspec.Meta(ge=1)] = 64 * 1024 * 1024
    """Largest request body, as sent and after decompression."""
    usage_memory_bytes_max: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Most memory that the embedded usage store may take; 0: its own default."""
    usage_query_s_max: Annotated[int, msgspec.Meta(ge=1)] = 30
    """Longest that one usage query may take."""
    usage_query_memory_bytes_max: Annotated[int, msgspec.Meta(ge=1_000_000)] = 512 * 1024 * 1024
    """Most memory that one usage query may take."""
    usage_query_groups_max: Annotated[int, msgspec.Meta(ge=1)] = 200_000
    """Most groups, times buckets, that one usage query may have."""
    root_profile: str = ""
    """The profile whose paths are served at the root, as its vendor serves them; empty: none."""
    profiles: str = "all"
    """The profiles that are served under `/<profile>`, separated by commas; `all` that are installed."""
    profile_settings: str = "{}"
    """JSON: profile → its own switches, e.g. `{"shoal": {"invalid_key_status": 403}}`."""
    session_jwks: str = ""
    """Public keys of another login, as an https URL or a file; empty: only our own sessions are good."""
    session_issuer: str = ""
    """The `iss` that tokens of the other login must have."""
    session_audience: str = ""
    """The `aud` that tokens of the other login must have."""
    session_account_claim: str = "account"
    """The claim of the other login's tokens that names the account, `o.id` for a nested one; or several with commas."""
    keys_per_account_max: Annotated[int, msgspec.Meta(ge=1)] = 1_000
    """Keys, ended ones not counted, that a customer's calls may bring its account to; the operator's have no bound."""
    projects_per_account_max: Annotated[int, msgspec.Meta(ge=1)] = 1_000
    """Projects that a customer's calls may bring its account to."""
    webhooks_per_account_max: Annotated[int, msgspec.Meta(ge=1)] = 20
    """Webhooks that a customer's calls may bring its account to."""
    distinct_values_per_day_max: Annotated[int, msgspec.Meta(ge=0)] = 10_000
    """Distinct routes, models, kinds and so on of an account and UTC day; beyond it `other` is stored. 0: no bound."""
    client_address_header: str = ""
    """The header in which your proxy tells the client's address, e.g. `x-forwarded-for`; empty: the peer's."""
    cors_origins: str = ""
    """Origins whose pages may call from a browser, separated by commas, e.g. `https://app.example.com`; `*`: all."""
    login_hours: Annotated[int, msgspec.Meta(ge=1, le=720)] = 12
    """Hours after which a login at the page ends, unless its key ends before."""
    page_frame_ancestors: str = ""
    """Origins whose pages may show the page in a frame, separated by commas, e.g. `https://app.example.com`."""
    metrics_open: bool = False
    """Answers `/metrics` without an operator key, to every caller that can reach the port."""
    webhook_allow_private: bool = False
    """Lets webhooks have http URLs and private or loopback addresses: for tests and local use."""
    retention: str = "none"
    """How long single events are kept, e.g. `90d` or `12w`; `none`: for ever. An account may have its own."""
    backup_dir: str = ""
    """Where `POST /tk/v1/backup` writes, and nowhere else; empty: `backups` in the data directory."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What `tollkeeper serve` logs to stderr."""
    log_format: Literal["text", "json"] = "text"
    """How it logs: a line of text, or one JSON object a line."""
    access_log: bool = False
    """Logs each answered request: its method, path, status and time."""

    @property
    def ledger(self) -> str:
        return self.ledger_url or f"sqlite:///{self._path(LEDGER_FILE)}"

    @property
    def usage(self) -> str:
        return self.usage_url or f"chdb://{self._path(USAGE_DIRECTORY)}"

    @property
    def backups(self) -> str:
        return self.backup_dir or self._path(BACKUP_DIRECTORY)

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        values = ", ".join(f"{name}={_PASSWORD.sub('***', repr(value))}" for name, value in shown.items())
        return f"Settings({values})"

    def _path(self, name: str) -> str:
        return str(Path(self.data_dir).absolute() / name)


def has_password(url: str) -> bool:
    """Return whether *url* says a password."""
    return _PASSWORD.search(url) is not None


def load(values: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """
    Return the settings: those in *values*, else those of the environment, else the defaults.

    Raises:
        BadParameter: A value does not fit its setting, or a variable `TOLLKEEPER_…` is set that is no setting.
    """
    given: dict[str, Any] = {}
    environment.check_known(Settings.__struct_fields__, environ)
    for name in Settings.__struct_fields__:
        text = environment.variable(name.upper(), environ)
        if text is not None:
            given[name] = text
    explicit = {name: value for name, value in (values or {}).items() if value is not None}
    given.update(explicit)
    try:
        settings = msgspec.convert(given, Settings, strict=False)
        retention_us(settings.retention)
        return settings
    except msgspec.ValidationError as exc:
        field = str(exc).rpartition("$.")[2].rstrip("`") if "$." in str(exc) else ""
        source = "" if field in explicit or not field else f" ({environment.PREFIX}{field.upper()})"
        raise BadParameter(f"setting {field}{source}: {requirement(str(exc))}", field=field) from None
    except ValueError as exc:
        raise BadParameter(f"setting retention: {exc}", field="retention") from None
