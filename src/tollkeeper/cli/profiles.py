"""`tollkeeper profiles`: the dialects that can be served, with their paths, credentials, settings and calls."""

from __future__ import annotations

import json
from typing import Annotated, Final

import msgspec
import typer

from tollkeeper.console import options
from tollkeeper.console.failures import misused
from tollkeeper.console.output import Column, plain, print_json, print_table
from tollkeeper.console.program import program
from tollkeeper.console.server_defaults import HOST, PORT

URL: Final = f"http://{HOST}:{PORT}"

group = typer.Typer(
    name="profiles",
    help="The vendors' dialects: their paths, credentials, settings and calls.",
    invoke_without_command=True,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The profile, e.g. shoal.")]


@group.callback()
def list_when_alone(context: typer.Context) -> None:
    """The vendors' dialects: their paths, credentials, settings and calls."""
    if context.invoked_subcommand is None:
        list_profiles(as_json=False)


@group.command("list")
def list_profiles(as_json: options.AsJson = False) -> None:
    """List the profiles."""
    from tollkeeper.api.profile_guide import guide_of
    from tollkeeper.profiles import load, names

    guides = [guide_of(load(name), URL) for name in names()]
    if as_json:
        print_json(msgspec.to_builtins(guides))
        return
    rows = []
    for guide in guides:
        first = guide.endpoints[0]
        rows.append(
            [
                guide.name,
                f"{first.method} {first.path}",
                first.header,
                f"{guide.key_prefix}…",
                len(guide.endpoints) - 1,
            ]
        )
    headings = ("profile", "usage endpoint", "credential", "keys", "other endpoints")
    print_table([Column(heading, heading.startswith("other")) for heading in headings], rows)
    print(
        f"One in full: {program()} profiles show NAME. To serve one: {program()} serve --root-profile NAME."
    )


@group.command("show")
def show_profile(
    name: Name,
    catalog: Annotated[
        bool,
        typer.Option("--catalog", help="Print its declarative file: the vendor's plans and routes."),
    ] = False,
    sample: Annotated[
        bool,
        typer.Option("--sample", help="Print a declarative file with an account and keys, as an example."),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show a profile: its paths, how a call is authenticated, its settings, and each call as curl."""
    from tollkeeper.api.profile_guide import guide_of
    from tollkeeper.profiles import load, names

    if name not in names():
        raise misused(f"{name} is no profile: NAME must be one of {', '.join(names())}.")
    profile = load(name)
    if catalog or sample:
        if as_json:
            raise misused("--json and --catalog or --sample ask for two formats: drop one.")
        texts = ([profile.catalog] if catalog else []) + ([getattr(profile, "sample", "")] if sample else [])
        print("\n".join(text.strip() for text in texts))
        return
    guide = guide_of(profile, URL)
    if as_json:
        print_json(msgspec.to_builtins(guide))
        return
    print_table(
        [Column("method"), Column("path"), Column("credential")],
        [[e.method, e.path, e.credential] for e in guide.endpoints],
        title=f"{guide.name}: at these paths with --root-profile {guide.name}, "
        f"below /{guide.name} with --profiles {guide.name}",
    )
    print("\nCredentials:")
    for kind, header in dict.fromkeys((e.credential, e.header) for e in guide.endpoints):
        print(f"  {kind}: {header}" if header else f"  {kind}: the call needs none")
    print(f"  A key of this profile begins with {plain(guide.key_prefix)}")
    print()
    if guide.settings:
        print_table(
            [Column("setting"), Column("default"), Column("allowed")],
            [[s.name, json.dumps(s.default, ensure_ascii=False), s.allowed] for s in guide.settings],
            title="Settings, by --profile-settings",
        )
        first = guide.settings[0]
        example = json.dumps({guide.name: {first.name: first.default}})
        print(f"\n  {program()} serve --root-profile {guide.name} --profile-settings '{example}'")
    print("\nCalls:")
    for endpoint in guide.endpoints:
        print(f"  {endpoint.curl}")
    print(
        f"\nSet up: {program()} profiles show {guide.name} --catalog --sample > {guide.name}.toml, then edit it."
    )
    print(f"See it work: {program()} demo --profile {guide.name}")
