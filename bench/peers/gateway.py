"""
LiteLLM's proxy in front of a mock model, beside a minimal reverse proxy with our middleware in front of the same.

LiteLLM pins much of what it needs, so it gets an environment of its own in `build/litellm`, made on first use.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import load
from bench.fixture import KEYS, directory
from bench.peers.comparison import Absent, Comparison, Found, Scale
from bench.processes import free_port, started

TITLE = "A gateway in front of a model"
PACKAGES = ("granian", "aiohttp")
SECONDS_MAX = 900
INSTALL_S_MAX = 420
CONNECTIONS = 32
ROUNDS = 3
REPOSITORY = Path(__file__).parent.parent.parent
ENVIRONMENT = REPOSITORY / "build" / "litellm"
CONSTRAINTS = Path(__file__).parent / "litellm-constraints.txt"
RPM = 1_000_000_000
BUDGET_USD = 1_000_000
SETTINGS = f"""
* The model is a mock on granian that answers a fixed chat completion (812 + 97 tokens) at once; {CONNECTIONS}
  keep-alive connections, {KEYS} keys, the variants in turn, the median of {ROUNDS} rounds; one worker process
  each.
* Ours: `bench/peers/proxy.py`, some 60 lines of ASGI with our middleware on granian and aiohttp's client to the
  model. Per request: key, a limit per minute and one per hour, a budget held by estimate and charged by the
  tokens of the answer at the model's price. "Durable": the answer waits for the fsync. It passes bytes through
  and knows one route.
* LiteLLM: one worker under its own default server (uvicorn with uvloop and httptools) and under
  `--run_granian`; `LITELLM_MODE=PRODUCTION`, `LITELLM_LOG=ERROR`, its bundled price list, telemetry off, no
  retries, no callbacks, no cache. It translates between vendors, routes and logs, which ours does not.
* Its keys with budgets live in PostgreSQL behind Prisma, whose engine is downloaded from a host of its own when
  it is set up; this run works without a database. So each key comes from LiteLLM's `custom_auth` hook with an
  rpm limit ({RPM:,}) and a budget ({BUDGET_USD:,} USD), and `custom_auth_run_common_checks` is on. Both are
  enforced (checked before the run: a key with a limit of 2 gets 429 for its third request, one whose budget is
  spent is refused), **in the memory of the one worker**: keys are not stored, spend is not written down
  anywhere, and both start from nothing after a restart.
"""
AUTH = f"""
from litellm.proxy._types import UserAPIKeyAuth

LIMITS = {{"sk-rpm": (2, {BUDGET_USD}), "sk-budget": ({RPM}, 0.0000001)}}


async def check(request, api_key):
    if not api_key.startswith("sk-"):
        raise ValueError("unknown key")
    rpm, budget = LIMITS.get(api_key, ({RPM}, {BUDGET_USD}))
    return UserAPIKeyAuth(
        api_key=api_key, token=api_key, key_alias=api_key, rpm_limit=rpm, max_budget=budget, spend=0.0
    )
"""
CONFIGURATION = """
model_list:
  - model_name: gpt-4o-mini
    litellm_params:
      model: openai/gpt-4o-mini
      api_base: http://127.0.0.1:{port}/v1
      api_key: upstream
litellm_settings:
  num_retries: 0
  request_timeout: 30
general_settings:
  custom_auth: bench_auth.check
  custom_auth_run_common_checks: true
"""
CHAT = "/v1/chat/completions"
BODY = json.dumps(
    {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
).encode()
OURS = {"durable": "durable", "booked within ms": "async"}
THEIRS = {"LiteLLM": [], "LiteLLM on granian": ["--run_granian"]}


class Failed(Exception):
    """A peer cannot be measured; the text says why."""


def run(scale: Scale) -> Found:
    absent, versions = [], {}
    with ExitStack() as stack:
        upstream = free_port()
        command = [sys.executable, "-m", "bench.peers.proxy", "model", str(upstream), str(upstream)]
        stack.enter_context(started(command, upstream, stack.enter_context(directory())))
        steps = {"the model itself": (upstream, _step(["none"]))}
        for name, variant in {"the proxy without a gate": "bare", **OURS}.items():
            port, path = free_port(), stack.enter_context(directory())
            command = [sys.executable, "-m", "bench.peers.proxy", variant, str(port), str(upstream)]
            stack.enter_context(started(command, port, path))
            steps[name] = port, _step(json.loads((path / "secrets.json").read_text()))
        try:
            versions["litellm"] = _install()
            for name, options in THEIRS.items():
                port = stack.enter_context(_litellm(upstream, options))
                _check_enforced(port)
                steps[name] = port, _step([f"sk-bench-{number}" for number in range(KEYS)])
        except (Failed, RuntimeError) as exc:
            absent.append(Absent("LiteLLM", str(exc)))
        runs: dict[str, list[load.Load]] = {name: [] for name in steps}
        for port, step in steps.values():
            load.run(port, [step], connections=8, seconds=1)
        for _ in range(ROUNDS):
            for name, (port, step) in steps.items():
                runs[name].append(load.run(port, [step], connections=CONNECTIONS, seconds=scale.seconds))
    for name, found in runs.items():
        if any(one.failures for one in found):
            raise RuntimeError(f"{name}: requests failed: {[one.failures for one in found]}")
    peers = [name for name in steps if name not in OURS]
    figures = [row for ours in OURS for peer in reversed(peers) for row in _rows(ours, peer, runs)]
    return Found(figures, versions, absent)


def _rows(ours: str, peer: str, runs: dict[str, list[load.Load]]) -> Iterator[Comparison]:
    def pair(what: Callable[[load.Load], float]) -> tuple[float, float]:
        return statistics.median(map(what, runs[peer])), statistics.median(map(what, runs[ours]))

    what, baseline = f"proxy, {ours}", peer not in THEIRS
    yield Comparison(
        f"{what}: requests/s", peer, *pair(lambda one: one.steps_per_s), "/s", more=True, baseline=baseline
    )
    yield Comparison(f"{what}: p50", peer, *pair(lambda one: one.p50_ms), "ms", baseline=baseline)
    yield Comparison(f"{what}: p99", peer, *pair(lambda one: one.p99_ms), "ms", baseline=baseline)


def _step(secrets: Sequence[str]) -> load.Step:
    requests = [
        load.request("POST", CHAT, BODY, Authorization=f"Bearer {secret}", Content_Type="application/json")
        for secret in secrets
    ]
    return lambda number, answer: requests[number % len(requests)]


def _install() -> str:
    """Make sure that LiteLLM is installed; return its version."""
    python = str(ENVIRONMENT / "bin" / "python")
    ready = ENVIRONMENT / ".ready"
    if not ready.exists():
        venv.create(ENVIRONMENT, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS)]
        try:
            subprocess.run(
                [*install, "litellm[proxy]", "httptools"], check=True, capture_output=True, text=True,
                timeout=INSTALL_S_MAX,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Failed(f"not installed within {INSTALL_S_MAX} s") from None
        except subprocess.CalledProcessError as exc:
            raise Failed(f"pip cannot install it: {exc.stderr.strip().splitlines()[-1:]}") from exc
        ready.touch()
    asked = "import importlib.metadata; print(importlib.metadata.version('litellm'))"
    return subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def _litellm(upstream: int, options: Sequence[str]) -> Iterator[int]:
    with directory() as path:
        (path / "bench_auth.py").write_text(AUTH)
        (path / "config.yaml").write_text(CONFIGURATION.format(port=upstream))
        port = free_port()
        command = [
            str(ENVIRONMENT / "bin" / "litellm"), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port),
            "--num_workers", "1", "--telemetry", "False", *options,
        ]  # fmt: skip
        environment = {
            "LITELLM_MASTER_KEY": "sk-"
            + "0123456789abcdef" * 3,  # It does not start without one that is long.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
        }
        with started(command, port, path, answers="/health/liveliness", environment=environment):
            yield port


def _check_enforced(port: int) -> None:
    """Check that both limits of a key are enforced, so that what is measured does what the page says."""
    refused: dict[str, list[int]] = {"sk-rpm": [], "sk-budget": []}
    for key, statuses in refused.items():
        for _ in range(4):
            statuses.append(_status(port, key))
    if refused["sk-rpm"] != [200, 200, 429, 429] or 200 in refused["sk-budget"][1:]:
        raise Failed(f"its limits are not enforced: {refused}")


def _status(port: int, key: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(
        "POST", CHAT, BODY, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    )
    status: int = connection.getresponse().status
    connection.close()
    return status
