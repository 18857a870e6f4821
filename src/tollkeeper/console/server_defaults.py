"""Where a server listens, and how it gets its operator key, unless the command line says otherwise."""

from __future__ import annotations

from typing import Final

OPERATOR_KEY_VARIABLE: Final = "TOLLKEEPER_OPERATOR_KEY"
HOST: Final = "127.0.0.1"
PORT: Final = 8080
