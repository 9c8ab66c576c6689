"""Deliveries of a pull consumer, kept until a test takes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio

from gati_core.fabric import Delivery, Fabric, PullConsumer

Collect = Callable[..., AbstractAsyncContextManager["Collector"]]


class Collector:
    """Pulls, and leaves every settlement to the test."""

    def __init__(
        self, fabric: Fabric, *, stream: str, durable: str, capacity: int, batch: int, once: bool = False
    ) -> None:
        self._queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self.seen: list[Delivery] = []
        self.most_busy = 0
        self.consumer = PullConsumer(
            fabric.connection,
            stream=stream,
            durable=durable,
            capacity=capacity,
            on_delivery=self._on_delivery,
            batch=batch,
            delivers_once=once,
        )

    def _on_delivery(self, delivery: Delivery) -> None:
        self.seen.append(delivery)
        self.most_busy = max(self.most_busy, self.consumer.busy)
        self._queue.put_nowait(delivery)

    async def next(self, *, within_s: float = 3.0) -> Delivery:
        """The next delivery that was not taken yet."""
        with anyio.fail_after(within_s):
            return await self._queue.get()

    async def expect_none(self, *, for_s: float) -> None:
        """Nothing is delivered for this long: that something never happens can only be waited out."""
        with anyio.move_on_after(for_s):
            delivery = await self._queue.get()
            raise AssertionError(f"delivered: {delivery.data!r}, attempt {delivery.attempt}")

    @property
    def bodies(self) -> list[bytes]:
        """Payloads in the order delivered."""
        return [delivery.data for delivery in self.seen]


@asynccontextmanager
async def collecting(
    fabric: Fabric, *, pool: str = "p", mode: str = "at_least_once", capacity: int = 8, batch: int = 256
) -> AsyncIterator[Collector]:
    """Pull the work of handler `h` of a pool, whose consumer is created when it is missing."""
    durables = await fabric.topology.ensure_pool(pool, {"h": mode})
    stream = fabric.subjects.work_stream
    once = mode == "at_most_once"
    collector = Collector(fabric, stream=stream, durable=durables[mode], capacity=capacity, batch=batch, once=once)
    await collector.consumer.start()
    try:
        yield collector
    finally:
        await collector.consumer.stop_pulling()
