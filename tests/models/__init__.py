"""Stateful models: after any sequence of calls the real thing agrees with plain integers."""
