"""Tests of the parts that commands share: their output, and the client of a server."""
