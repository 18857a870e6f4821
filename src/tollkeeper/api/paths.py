"""The path prefix of the API."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "/tk/v1"
"""Begins the path of every endpoint of the API, beside those of health and of profiles."""
