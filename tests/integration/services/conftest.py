"""Whole fabrics as real processes: one shared by the module where tests leave it whole, else one each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gati_core.fabric import Fabric, open_fabric
from tests.helpers.postgres import Postgres, running_postgres
from tests.helpers.processes import FabricUnderTest, running_fabric

StartFabric = Callable[..., AbstractAsyncContextManager[FabricUnderTest]]


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """One ingress, one router, one worker with both packages; tests leave it as they found it."""
    directory = tmp_path_factory.mktemp("shared")
    packages = ["ledger_app.py", "echo_app.py"]
    environment = {
        "GATI_INGRESS_REQUEST_TIMEOUT_S": "8",
        "GATI_INGRESS_HEAD_TIMEOUT_S": "0.6",
        "GATI_INGRESS_BODY_TIMEOUT_S": "0.6",
    }
    async with running_fabric(directory, packages=packages, environment=environment) as fabric:
        yield fabric


@pytest.fixture(scope="module")
async def client(shared: FabricUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client for the module's fabric."""
    async with shared.client() as client:
        yield client


@pytest.fixture
async def inside(shared: FabricUnderTest) -> AsyncIterator[Fabric]:
    """The module's fabric from within: its streams, buckets and dead letters."""
    async with open_fabric(shared.settings, name="test") as fabric:
        yield fabric


@pytest.fixture
def start(tmp_path: Path) -> StartFabric:
    """Start a fabric of the test's own, to break."""

    def begin(**options: Any) -> AbstractAsyncContextManager[FabricUnderTest]:
        return running_fabric(tmp_path, **options)

    return begin


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for the session; every test makes a database of its own."""
    with running_postgres() as server:
        yield server
