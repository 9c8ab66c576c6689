"""What is done to a broker of one's own."""

from __future__ import annotations

import anyio.to_thread

from gati_core.fabric import EmbeddedBroker


async def start(broker: EmbeddedBroker) -> None:
    """Start it again without stopping the event loop meanwhile."""
    await anyio.to_thread.run_sync(broker.start)


async def kill_and_restart(broker: EmbeddedBroker) -> None:
    """A crash, and a supervisor that starts the server again at once."""
    await anyio.to_thread.run_sync(broker.kill)
    await start(broker)
