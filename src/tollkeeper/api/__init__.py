"""
What HTTP and the command line share: one form for each thing that both show or take.

A server's answer and a command on a data directory must not differ, so each form stands here once, below both. This
room turns values of the domain into JSON, CSV or text and back. It is not a surface: it knows no request, no
credential and no terminal, decides nothing, and reads no store.

Invariants:

* Money is text in answers, since JavaScript loses integers above 2**53.
* Text cells of CSV that a spreadsheet would run are quoted.
* A key never shows its hash.

Files: `paths.py` (the prefix of the API), `entry_json.py` (catalog entries, changes and issued secrets),
`usage_params.py` (a usage query from parameters), `usage_answer.py` (a usage report as JSON and CSV),
`events_answer.py` (the result of an ingest), `adjustments.py` (what moves money without a request),
`verify_answer.py` (the result of verify), `backup_answer.py` (a backup that was taken), `csv_cells.py` (one cell).

It may import every room and no adapter. Imports of heavy rooms stand in functions or under `TYPE_CHECKING` in the files
that the command line loads at its start.
"""
