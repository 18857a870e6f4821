"""
Tollkeeper beside what else one would use, in the same run on the same machine: `python -m bench peers [NAME …]`.

Each peer runs in a process of its own with a bound on its time; one that is missing or fails is named with the
reason, and the others go on. The result is `docs/peers.md`.
"""

from __future__ import annotations

from bench.peers.report import main

__all__ = ["main"]
