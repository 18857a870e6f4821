"""
What the commands share: how they find their installation, print, and fail.

`cli` has the commands themselves; `demo` and `prove` are two of them that are programs of their own, below `cli`. All
three build on this room. It is no command, and holds no rule of the product: it shows what `api` says.

Invariants:

* No text of stored data can act: no terminal obeys it and no spreadsheet runs it.
* A failure is one line on stderr and an exit code, without a traceback.
* Nothing heavy (stores, Arrow, the HTTP server) is imported at the top of a file, so that help and mistakes are
  answered at once; a test says so.

Files: `options.py` (options of several commands), `target.py` (a data directory or a server), `server_client.py` (the
API of a server), `server_defaults.py` (where `serve` listens), `output.py` (tables, JSON, CSV, progress),
`usage_table.py`, `verify_table.py`, `failures.py` (exit codes).

It may import every room, the surfaces' `embedded`, and `api`.
"""
