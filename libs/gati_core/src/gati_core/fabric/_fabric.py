"""Everything of the fabric that one process needs, opened and closed as one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gati_core.fabric.bodies import Bodies
from gati_core.fabric.connection import Connection, open_connection
from gati_core.fabric.dead_letters import DeadLetters
from gati_core.fabric.packages import PackageStore
from gati_core.fabric.ports import DeliveryPort, MessagePort, PublisherPort
from gati_core.fabric.publisher import WindowedPublisher
from gati_core.fabric.pull import Delivery
from gati_core.fabric.topology import Topology
from gati_core.settings import FabricSettings
from gati_core.wire import Subjects


def _conform(
    connection: Connection, publisher: WindowedPublisher, delivery: Delivery
) -> tuple[MessagePort, PublisherPort, DeliveryPort]:
    """Never called: here the type checker compares the parts with the ports that services see."""
    return connection, publisher, delivery


class Fabric:
    """One process's access to the broker. Made by `open_fabric`."""

    def __init__(self, connection: Connection, publisher: WindowedPublisher) -> None:
        self.connection = connection
        self.publisher = publisher
        self.topology = Topology(connection)
        self.dead_letters = DeadLetters(connection, publisher)
        self.bodies = Bodies(connection)
        self.packages = PackageStore(connection)
        self.snapshots = PackageStore(
            connection,
            bucket=connection.subjects.snapshots_bucket,
            noun="snapshot",
            remedy="import it again from its file, or take another one (gati versions snapshot create)",
        )

    @property
    def subjects(self) -> Subjects:
        """The names of this namespace."""
        return self.connection.subjects

    @property
    def settings(self) -> FabricSettings:
        """What the fabric was opened with."""
        return self.connection.settings


@asynccontextmanager
async def open_fabric(settings: FabricSettings, *, name: str, ensure: bool = True) -> AsyncIterator[Fabric]:
    """Connect, create or verify the topology, and close in order.

    Raises:
        BrokerUnavailable: no broker within `connect_wait_s`, or JetStream did not answer.
        TopologyError: the topology cannot serve; the message says what to change.
    """
    async with open_connection(settings, name=name) as connection:
        fabric = Fabric(connection, await WindowedPublisher.open(connection))
        if ensure:
            await fabric.topology.ensure()
        yield fabric
