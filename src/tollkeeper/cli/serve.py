"""`tollkeeper serve`: run the server until SIGINT or SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tollkeeper import environment
from tollkeeper.api.paths import PREFIX
from tollkeeper.console import options
from tollkeeper.console.output import plain
from tollkeeper.console.program import program
from tollkeeper.console.server_defaults import HOST, PORT
from tollkeeper.errors import BadParameter
from tollkeeper.settings import has_password, load


def _setting(name: str, help: str, *, min: int | None = None, max: int | None = None) -> Any:
    text = f"{help} [{_variable_of(name)}]"
    return typer.Option(f"--{name}", help=text, show_default=False, min=min, max=max)


def _variable_of(option: str) -> str:
    return f"${environment.PREFIX}{option.replace('-', '_').upper()}"


def serve(
    data: options.Data = None,
    host: Annotated[str | None, _setting("host", f"Address to listen on; {HOST} unless given.")] = None,
    port: Annotated[
        int | None, _setting("port", f"Port to listen on; {PORT} unless given.", min=1, max=65535)
    ] = None,
    uds: Annotated[
        Path | None,
        typer.Option(
            "--uds",
            metavar="PATH",
            help="Unix socket to listen on beside the port, for programs of the same user and machine. "
            "[$TOLLKEEPER_UDS]",
            show_default=False,
        ),
    ] = None,
    ledger_url: Annotated[
        str | None, _setting("ledger-url", "sqlite:///path or postgresql://…; SQLite in DIR unless given.")
    ] = None,
    usage_url: Annotated[
        str | None, _setting("usage-url", "chdb:///path or clickhouse://…; chDB in DIR unless given.")
    ] = None,
    unknown_route: Annotated[
        Literal["deny", "allow"] | None,
        _setting("unknown-route", "A request to a route that no policy matches; deny unless given."),
    ] = None,
    unknown_price: Annotated[
        Literal["deny", "allow"] | None,
        _setting("unknown-price", "A model without a price; deny unless given."),
    ] = None,
    hold_s: Annotated[
        int | None, _setting("hold-s", "Seconds that a hold stays open unless it says; 300 unless given.")
    ] = None,
    body_bytes_max: Annotated[
        int | None, _setting("body-bytes-max", "Largest request body; 64 MiB unless given.")
    ] = None,
    usage_memory_bytes_max: Annotated[
        int | None, _setting("usage-memory-bytes-max", "Most memory for the embedded usage store.")
    ] = None,
    usage_query_s_max: Annotated[
        int | None, _setting("usage-query-s-max", "Longest usage query, in seconds; 30 unless given.")
    ] = None,
    usage_query_memory_bytes_max: Annotated[
        int | None,
        _setting("usage-query-memory-bytes-max", "Most memory of one usage query; 512 MiB unless given."),
    ] = None,
    usage_query_groups_max: Annotated[
        int | None,
        _setting("usage-query-groups-max", "Most groups of one usage query; 200,000 unless given."),
    ] = None,
    root_profile: Annotated[
        str | None, _setting("root-profile", "The profile that is served at the root; none unless given.")
    ] = None,
    profiles: Annotated[
        str | None, _setting("profiles", "Profiles served under /<profile>, separated by commas.")
    ] = None,
    profile_settings: Annotated[
        str | None, _setting("profile-settings", "JSON: profile → its own switches.")
    ] = None,
    session_jwks: Annotated[
        str | None, _setting("session-jwks", "Public keys of another login: an https URL or a file.")
    ] = None,
    session_issuer: Annotated[
        str | None, _setting("session-issuer", "The iss that its tokens must have.")
    ] = None,
    session_audience: Annotated[
        str | None, _setting("session-audience", "The aud that its tokens must have.")
    ] = None,
    session_account_claim: Annotated[
        str | None,
        _setting("session-account-claim", "The claim that names the account, or several: o.id,org_id,sub."),
    ] = None,
    keys_per_account_max: Annotated[
        int | None,
        _setting("keys-per-account-max", "Keys that a customer may bring its account to; 1000 unless given."),
    ] = None,
    projects_per_account_max: Annotated[
        int | None,
        _setting("projects-per-account-max", "The same for projects; 1000 unless given."),
    ] = None,
    webhooks_per_account_max: Annotated[
        int | None,
        _setting("webhooks-per-account-max", "The same for webhooks; 20 unless given."),
    ] = None,
    distinct_values_per_day_max: Annotated[
        int | None,
        _setting(
            "distinct-values-per-day-max",
            "Distinct values of each label of an account and day; 10000 unless given, 0: no bound.",
        ),
    ] = None,
    client_address_header: Annotated[
        str | None,
        _setting("client-address-header", "The header in which your proxy tells the client's address."),
    ] = None,
    cors_origins: Annotated[
        str | None,
        _setting(
            "cors-origins", "Origins whose pages may call from a browser, separated by commas; * for all."
        ),
    ] = None,
    login_hours: Annotated[
        int | None, _setting("login-hours", "Hours after which a login at the page ends; 12 unless given.")
    ] = None,
    page_frame_ancestors: Annotated[
        str | None,
        _setting(
            "page-frame-ancestors", "Origins whose pages may show the page in a frame, separated by commas."
        ),
    ] = None,
    metrics_open: Annotated[
        bool | None,
        _setting("metrics-open", "Answer /metrics without a key, to every caller that can reach the port."),
    ] = None,
    webhook_allow_private: Annotated[
        bool | None,
        _setting("webhook-allow-private", "Let webhooks go to http URLs and to private addresses."),
    ] = None,
    retention: Annotated[
        str | None,
        _setting("retention", "How long single events are kept, such as 90d or 12w; for ever unless given."),
    ] = None,
    backup_dir: Annotated[
        str | None,
        _setting("backup-dir", "Where `POST /tk/v1/backup` may write; backups in DIR unless given."),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        _setting("log-level", "What is logged to stderr; info unless given."),
    ] = None,
    log_format: Annotated[
        Literal["text", "json"] | None,
        _setting("log-format", "How it is logged: text, or one JSON object a line; text unless given."),
    ] = None,
    access_log: Annotated[
        bool | None,
        _setting("access-log", "Log each answered request: its method, path, status and time."),
    ] = None,
) -> None:
    """
    Run the server until SIGINT or SIGTERM.

    The operator key is taken from TOLLKEEPER_OPERATOR_KEY, or from the file that TOLLKEEPER_OPERATOR_KEY_FILE
    names; without these, the first start makes one and shows it once.
    """
    # What is made from here on is its owner's, in a data directory that others may enter too.
    os.umask(0o077)
    _warn_of_passwords(ledger_url, usage_url)
    # Until the server sets its own: a stop while stores are being opened is clean too.
    signal.signal(signal.SIGTERM, _stop)
    settings = load(
        {
            "data_dir": data,
            "ledger_url": ledger_url,
            "usage_url": usage_url,
            "unknown_route": unknown_route,
            "unknown_price": unknown_price,
            "hold_s": hold_s,
            "body_bytes_max": body_bytes_max,
            "usage_memory_bytes_max": usage_memory_bytes_max,
            "usage_query_s_max": usage_query_s_max,
            "usage_query_memory_bytes_max": usage_query_memory_bytes_max,
            "usage_query_groups_max": usage_query_groups_max,
            "root_profile": root_profile,
            "profiles": profiles,
            "profile_settings": profile_settings,
            "session_jwks": session_jwks,
            "session_issuer": session_issuer,
            "session_audience": session_audience,
            "session_account_claim": session_account_claim,
            "keys_per_account_max": keys_per_account_max,
            "projects_per_account_max": projects_per_account_max,
            "webhooks_per_account_max": webhooks_per_account_max,
            "distinct_values_per_day_max": distinct_values_per_day_max,
            "client_address_header": client_address_header,
            "cors_origins": cors_origins,
            "login_hours": login_hours,
            "page_frame_ancestors": page_frame_ancestors,
            "metrics_open": metrics_open,
            "webhook_allow_private": webhook_allow_private,
            "retention": retention,
            "backup_dir": backup_dir,
            "log_level": log_level,
            "log_format": log_format,
            "access_log": access_log,
        }
    )
    host = host or environment.variable("HOST", os.environ) or HOST
    port = port or _port(environment.variable("PORT", os.environ)) or PORT
    socket_path = environment.variable("UDS", os.environ) if uds is None else None
    uds = Path(socket_path) if socket_path else uds
    if uds is not None:
        from tollkeeper.http.unix_socket import claim

        # Refused before the stores are opened, which takes longer.
        claim(uds)
    from tollkeeper.cli.logs import log_to_stderr
    from tollkeeper.http.control import open_control
    from tollkeeper.http.server import ensure_operator_key, trim_memory
    from tollkeeper.http.server import serve as serve_installation
    from tollkeeper.installation import build

    operator_key = environment.variable("OPERATOR_KEY", os.environ)
    log_to_stderr(settings.log_level, settings.log_format)
    installation = build(settings, trim_memory=trim_memory)
    control = open_control(installation)
    try:
        fresh = ensure_operator_key(installation, operator_key)
        serve_installation(
            installation,
            host=host,
            port=port,
            uds=uds,
            ready=lambda url: _greet(url, settings.data_dir, fresh, uds),
        )
    finally:
        control.close()
        installation.close()
    print("Stopped; everything acknowledged is stored.", flush=True)


def _port(text: str | None) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:6]) <= 65535):
        raise BadParameter(
            f"TOLLKEEPER_PORT must be a whole number from 1 to 65535, not {text!r}.", field="TOLLKEEPER_PORT"
        )
    return int(text)


def _warn_of_passwords(ledger_url: str | None, usage_url: str | None) -> None:
    for option, url in (("ledger-url", ledger_url), ("usage-url", usage_url)):
        if url and has_password(url):
            print(
                f"warning: --{option} has a password, which every user of this machine can read with ps. "
                f"Use the variable {_variable_of(option)[1:]}, or {_variable_of(option)[1:]}_FILE, instead.",
                file=sys.stderr,
                flush=True,
            )


def _stop(signal_number: int, frame: object) -> None:
    raise typer.Exit(0)


def _greet(url: str, data_dir: str, fresh_key: str | None, uds: Path | None) -> None:
    lines = [f"Tollkeeper serves {url} on {plain(data_dir)}", ""]
    if uds is not None:
        lines[1:1] = [f"and unix:{plain(str(uds.absolute()))} to programs of this user"]
    if fresh_key is not None:
        lines += [
            f"  operator key:  {fresh_key}",
            "  It is shown now and never again. Commands and curl use it as:",
            f"  export TOLLKEEPER_URL={url} TOLLKEEPER_KEY={fresh_key}",
            "",
        ]
    else:
        lines += [f"  export TOLLKEEPER_URL={url} TOLLKEEPER_KEY=<your operator key>", ""]
    lines += [
        f"  set up     {program()} apply FILE.toml",
        f"  usage      {program()} usage --account ACCOUNT --group-by key",
        f"  API        {url}{PREFIX}/openapi.json",
        "",
        "Ctrl-C stops it.",
    ]
    print("\n".join(lines), flush=True)
