"""
The variables `TOLLKEEPER_…` of a process: settings, the address of a server, keys.

Each can be given as a file too, `TOLLKEEPER_<NAME>_FILE=/path`, as secrets of containers are. A variable of ours that
nothing reads is an error: a setting with a wrong name would be ignored without a word.

Kubernetes sets variables for each service of a namespace, so a service that is called `tollkeeper` makes
`TOLLKEEPER_SERVICE_HOST`, `TOLLKEEPER_PORT=tcp://…` and others. They are not ours, and are passed over.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from tollkeeper.errors import BadParameter

PREFIX: Final = "TOLLKEEPER_"
FILE_SUFFIX: Final = "_FILE"
SECRETS: Final = ("OPERATOR_KEY", "KEY")
"""What must not be on a command line."""
OTHERS: Final = ("HOST", "PORT", "UDS", "URL", *SECRETS)
"""Variables that are no settings, without the prefix."""
FILE_BYTES_MAX: Final = 1_000_000

_OF_KUBERNETES: Final = re.compile(
    PREFIX + r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)\Z"
)
_ADDRESS_OF_KUBERNETES: Final = re.compile(r"(tcp|udp|sctp)://")


def variable(name: str, environ: Mapping[str, str]) -> str | None:
    """
    Return what `TOLLKEEPER_<name>` says, or the file that `TOLLKEEPER_<name>_FILE` names, without its last line end.

    None when neither is set.

    Raises:
        BadParameter: Both are set, or the file cannot be read, or is no text.
    """
    full = PREFIX + name
    text, path = environ.get(full), environ.get(full + FILE_SUFFIX)
    if name == "PORT" and text is not None and _ADDRESS_OF_KUBERNETES.match(text):
        text = None
    if path is None:
        return text
    if text is not None:
        raise BadParameter(f"{full} and {full}{FILE_SUFFIX} are both set: keep one of them.", field=full)
    return _content(Path(path), full + FILE_SUFFIX)


def check_known(settings: Collection[str], environ: Mapping[str, str]) -> None:
    """
    Raise `BadParameter` when a variable `TOLLKEEPER_…` is set that means nothing, with the name that it is like.

    Args:
        settings: The names of all settings, in lower case.
    """
    known = [*(setting.upper() for setting in settings), *OTHERS]
    taken = {PREFIX + name + suffix for name in known for suffix in ("", FILE_SUFFIX)}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in taken or _OF_KUBERNETES.match(name):
            continue
        near = difflib.get_close_matches(name.removeprefix(PREFIX).upper(), known, 1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else "docs/settings.md lists those that are."
        raise BadParameter(f"{name} is set and is no setting: {hint} Remove it or name it right.", field=name)


def _content(path: Path, of: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        text = content.decode()
    except OSError as exc:
        raise BadParameter(f"{of}: {path} cannot be read: {exc.strerror}.", field=of) from None
    except UnicodeDecodeError:
        raise BadParameter(f"{of}: {path} must be UTF-8 text.", field=of) from None
    if len(content) > FILE_BYTES_MAX:
        raise BadParameter(f"{of}: {path} must have at most {FILE_BYTES_MAX} bytes.", field=of)
    return text.removesuffix("\n").removesuffix("\r")
