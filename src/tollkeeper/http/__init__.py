"""
The HTTP surface: `tollkeeper serve`. It translates between requests and the rooms, and decides nothing.

It knows no SQL and prices nothing. What it shares with the command line is in `api`.

Invariants:

* An error or denial becomes an answer in one place each: `problems.py` and `denials.py`.
* No SQL runs on the event loop, and no kind of call waits behind another kind.
* A body is read within bounds only, before anything is parsed.

Files:

* `server` (granian in this process), `app` (the dispatcher), `api` (the Litestar application) and `routes/` (one module
  per topic of `/tk/v1`, with `openapi`), `hot` (authorize, settle, void, events) over `wire` (their JSON).
* `auth` (which key calls, and the 429 of failing credentials), `credentials`, `forwarding` (the client's address).
* `problems` (status and document of an error), `denials` (of a refusal of the gate), `metrics`,
  `observed` (latencies and the access log).
* `bodies`, `paths`, `asgi_types`; `executors` and `fair_queue` (threads and turns).
* `profiles` (a vendor's usage endpoints), `metered` (the provider's own traffic in a dialect).
* `mounted` (the surface inside another application), `control` (through the socket in the data directory).
* `doors` (the gate as the middleware uses it), `embedded_door` (of this process); `unix_socket` (its file).
* `environs` (a WSGI request as ASGI has it), `interfaces` (tells the two kinds of application apart).
* `handshakes` (a refused WebSocket), `forked` (the 503 of a forked process).

Imports: every room; of the adapters none.
"""
