"""The installation of the HTTP tests on each SQL engine, called with any bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines import SHARED_ENGINES, fresh_engine
from tests.fuzz.asgi import Caller
from tests.http.conftest import OPERATOR_KEY, Api, api, world
from tollkeeper import testing
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.clock import SystemClock
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.installation import Installation

__all__ = ["api", "world"]


@pytest.fixture(scope="module", params=SHARED_ENGINES)
def installation(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    usage_store: ClickHouseUsageStore,
) -> Iterator[Installation]:
    """What one engine takes, another may refuse: PostgreSQL has no NUL in its text, for one."""
    directory = tmp_path_factory.mktemp("fuzz")
    with fresh_engine(request.param, directory, tables=False) as engine:
        url = engine.url.render_as_string(hide_password=False)
        with testing.installation(
            directory, clock=SystemClock(), store=usage_store, ledger_url=url
        ) as opened:
            ensure_operator_key(opened, OPERATOR_KEY)
            yield opened


@pytest.fixture(scope="module")
def call(api: Api) -> Iterator[Caller]:
    caller = Caller(api.app)
    yield caller
    caller.close()
