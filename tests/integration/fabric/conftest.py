"""A fabric on a broker of the test's own, for tests that kill, pause or misconfigure it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gati_core.fabric import EmbeddedBroker, Fabric, open_fabric
from gati_core.settings import FabricSettings


@pytest.fixture
def own_settings(own_broker: EmbeddedBroker, gati_namespace: str) -> FabricSettings:
    """Settings that reach the test's own broker; acks time out early."""
    return FabricSettings(
        nats_url=own_broker.url, namespace=gati_namespace, connect_wait_s=10.0, publish_ack_timeout_s=1.0
    )


@pytest.fixture
async def own_fabric(own_settings: FabricSettings) -> AsyncIterator[Fabric]:
    """A fabric on the test's own broker."""
    async with open_fabric(own_settings, name="test") as fabric:
        yield fabric
