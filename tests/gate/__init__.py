"""The gate: exact counters, routes, and nothing overshot however many ask at once."""
