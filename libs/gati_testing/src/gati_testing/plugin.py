"""The pytest plugin: a real broker for the session, a namespace of its own for every test.

Registered through the `pytest11` entry point; a project that installs `gati-testing` has these
fixtures without importing anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gati_core.fabric import EmbeddedBroker, Fabric, open_fabric
from gati_core.ids import new_instance_id
from gati_core.settings import FabricSettings
from gati_testing import _backend


def pytest_configure(config: pytest.Config) -> None:
    """Register the backend after all installed plugins: of two fixtures of a name, the later one holds."""
    config.pluginmanager.register(_backend, "gati-backend")


@pytest.fixture(scope="session")
def gati_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """One broker for the whole session. Leave it running: who kills or pauses takes `own_broker`."""
    with EmbeddedBroker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
def gati_namespace() -> str:
    """A namespace that no other test has."""
    return f"t{new_instance_id()}"


@pytest.fixture
def gati_fabric_settings(gati_broker: EmbeddedBroker, gati_namespace: str) -> FabricSettings:
    """Settings that reach the session's broker under the test's namespace."""
    return FabricSettings(nats_url=gati_broker.url, namespace=gati_namespace, connect_wait_s=10.0)


@pytest.fixture
async def gati_fabric(gati_fabric_settings: FabricSettings) -> AsyncIterator[Fabric]:
    """An open fabric with its streams and buckets in place."""
    async with open_fabric(gati_fabric_settings, name="test") as fabric:
        yield fabric


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """A broker of the test's own, to kill, pause and start again; it keeps its port and its streams."""
    with EmbeddedBroker(tmp_path / "own-broker") as broker:
        yield broker
