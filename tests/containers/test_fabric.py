"""The fabric's contracts on a broker in a container."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gati_core.fabric import Fabric, open_fabric
from gati_core.settings import FabricSettings
from tests.helpers.contracts import CONTRACTS, Contract


@pytest.fixture
async def fabric(nats_url: str, gati_namespace: str) -> AsyncIterator[Fabric]:
    """A fabric in a namespace of its own, with little room."""
    settings = FabricSettings(nats_url=nats_url, namespace=gati_namespace, work_max_msgs_per_handler=20)
    async with open_fabric(settings, name="test") as fabric:
        yield fabric


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
async def test_contract(fabric: Fabric, contract: Contract) -> None:
    await contract(fabric)
