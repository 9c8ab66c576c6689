#!/usr/bin/env python3
"""Publish with acks and consume with acks, in one process, beside a bare nats-py loop.

The bare loop is the quickest we know with nats-py alone: every publish carries the same ack inbox
and at most a window of them is unconfirmed; the pull is topped up at half a batch. Both sides use
the same file stream, one after the other within every round, so the ratios are of one run.

    python benchmarks/fabric.py
    python benchmarks/fabric.py --messages 100000 --bytes 1024 --json
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from _common import Output, cpu_s, header, medians
from gati_core.errors import GatiError
from gati_core.fabric import Delivery, EmbeddedBroker, Fabric, PullConsumer, open_fabric, stream_state
from gati_core.settings import FabricSettings

STREAM = "BENCH"
SUBJECT = "bench.item"
DURABLE = "bench"
BATCH = 256
WITHIN_S = 60.0

_run = itertools.count()


async def prepare(url: str, *, most: int) -> None:
    """The stream and its consumer, set as those of the fabric are."""
    client = await nats.connect(url)
    js = client.jetstream()
    await js.add_stream(
        StreamConfig(
            name=STREAM,
            subjects=[SUBJECT],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            max_msgs=2 * most,
            duplicate_window=30.0,
        )
    )
    consumer = ConsumerConfig(durable_name=DURABLE, ack_policy=AckPolicy.EXPLICIT, max_ack_pending=65_536)
    await js.add_consumer(STREAM, consumer)
    await client.close()


# -- through gati_core.fabric -----------------------------------------------------------------


class OurSide:
    """The fabric's windowed publisher and its pull loop."""

    name = "gati"

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    async def publish(self, count: int, payload: bytes, *, with_id: bool) -> None:
        """Publish `count` messages and return when the broker has confirmed them all."""
        publisher, subject, run = self._fabric.publisher, SUBJECT.encode(), next(_run)
        window = self._fabric.settings.publish_window
        room = asyncio.Event()
        failures: list[GatiError] = []

        def done(_context: None, error: GatiError | None) -> None:
            if error is not None:
                failures.append(error)
            if publisher.in_flight <= window // 2:
                room.set()

        for number in range(count):
            if publisher.in_flight >= window:
                room.clear()
                await room.wait()
            publisher.publish(subject, payload, done, message_id=f"{run}-{number}" if with_id else "")
        while publisher.in_flight:
            room.clear()
            await room.wait()
        if failures:
            raise failures[0]

    async def consume(self, count: int) -> None:
        """Take and acknowledge `count` messages."""
        left = count
        done = asyncio.Event()

        def on_delivery(delivery: Delivery) -> None:
            nonlocal left
            delivery.ack()
            left -= 1
            if left == 0:
                done.set()

        consumer = PullConsumer(
            self._fabric.connection,
            stream=STREAM,
            durable=DURABLE,
            capacity=2 * BATCH,
            batch=BATCH,
            on_delivery=on_delivery,
        )
        await consumer.start()
        await done.wait()
        await self._fabric.connection.flush()
        await consumer.stop_pulling()


# -- with nats-py alone -----------------------------------------------------------------------


class BareSide:
    """nats-py without anything around it: no deadlines, no errors looked at, no health."""

    name = "bare"

    def __init__(self, client: Client, window: int) -> None:
        self._client = client
        self._window = window
        self._unconfirmed = 0
        self._room = asyncio.Event()
        self._inbox = client.new_inbox()

    async def start(self) -> None:
        """Listen for publish acks."""
        await self._client.subscribe(self._inbox, cb=self._on_ack, pending_msgs_limit=10**7, pending_bytes_limit=10**9)

    async def _on_ack(self, _message: Msg) -> None:
        self._unconfirmed -= 1
        if self._unconfirmed <= self._window // 2:
            self._room.set()

    async def publish(self, count: int, payload: bytes, *, with_id: bool) -> None:
        """Publish `count` messages and return when the broker has answered them all."""
        client, run = self._client, next(_run)
        for number in range(count):
            if self._unconfirmed >= self._window:
                self._room.clear()
                await self._room.wait()
            headers = {"Nats-Msg-Id": f"{run}-{number}"} if with_id else None
            self._unconfirmed += 1
            await client.publish(SUBJECT, payload, reply=self._inbox, headers=headers)
        while self._unconfirmed:
            self._room.clear()
            await self._room.wait()

    async def consume(self, count: int) -> None:
        """Take and acknowledge `count` messages."""
        client, inbox = self._client, self._client.new_inbox()
        ask = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{DURABLE}"
        request = json.dumps({"batch": BATCH, "expires": 30_000_000_000}).encode()
        wanted, left = BATCH, count
        done = asyncio.Event()

        async def on(message: Msg) -> None:
            nonlocal wanted, left
            if not message.reply:
                return
            wanted -= 1
            if wanted < BATCH // 2:
                wanted += BATCH
                await client.publish(ask, request, reply=inbox)
            await client.publish(message.reply, b"+ACK")
            left -= 1
            if left == 0:
                done.set()

        subscription = await client.subscribe(inbox, cb=on, pending_msgs_limit=10**6, pending_bytes_limit=10**9)
        await client.publish(ask, request, reply=inbox)
        await done.wait()
        await client.flush()
        await subscription.unsubscribe()


# -- the run ----------------------------------------------------------------------------------

Side = OurSide | BareSide
Case = Callable[[Side, int, bytes], Awaitable[None]]
CASES: dict[str, Case] = {
    "publish": lambda side, count, payload: side.publish(count, payload, with_id=False),
    "publish with id": lambda side, count, payload: side.publish(count, payload, with_id=True),
    "consume": lambda side, count, _payload: side.consume(count),
}


async def measure(
    side: Side, case: str, count: int, payload: bytes, *, fabric: Fabric, broker: EmbeddedBroker
) -> dict[str, float]:
    """One case on one side, from an empty stream to an empty stream."""
    if case == "consume":
        await OurSide(fabric).publish(count, payload, with_id=False)
        await asyncio.sleep(0.2)
    before, own, started = cpu_s([broker.pid]), time.process_time(), time.perf_counter()
    async with asyncio.timeout(WITHIN_S):
        await CASES[case](side, count, payload)
    elapsed = time.perf_counter() - started
    own_us = (time.process_time() - own) / count * 1e6
    broker_us = (cpu_s([broker.pid]) - before) / count * 1e6
    expected = 0 if case == "consume" else count
    give_up_at = time.monotonic() + 5
    while (stored := (await stream_state(fabric.connection, STREAM)).messages) != expected:
        if time.monotonic() > give_up_at:
            raise SystemExit(f"{side.name}, {case}: the stream holds {stored} messages instead of {expected}")
        await asyncio.sleep(0.05)
    await fabric.connection.jetstream().purge_stream(STREAM)
    return {"messages_per_s": count / elapsed, "client_cpu_us": own_us, "broker_cpu_us": broker_us}


async def run(options: argparse.Namespace, output: Output, broker: EmbeddedBroker) -> None:
    """All cases, both sides in turn."""
    settings = FabricSettings(nats_url=broker.url)
    payload = bytes(options.bytes)
    await prepare(broker.url, most=options.messages)
    async with AsyncExitStack() as cleanup:
        fabric = await cleanup.enter_async_context(open_fabric(settings, name="gati-bench", ensure=False))
        client = await nats.connect(broker.url, pending_size=8 << 20)
        cleanup.push_async_callback(client.close)
        bare = BareSide(client, settings.publish_window)
        await bare.start()
        sides: list[Side] = [bare, OurSide(fabric)]
        warm_up = max(1, options.messages // 5)
        for case, side in itertools.product(CASES, sides):
            await measure(side, case, warm_up, payload, fabric=fabric, broker=broker)
        output.columns(["case", "side", "body_bytes", "msgs/s", "client µs", "broker µs", "msgs/s / bare"])
        for case in CASES:
            found: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
            for round_ in range(options.rounds):
                for side in sides if round_ % 2 == 0 else reversed(sides):
                    found[side.name].append(
                        await measure(side, case, options.messages, payload, fabric=fabric, broker=broker)
                    )
            share = median(
                ours["messages_per_s"] / theirs["messages_per_s"]
                for ours, theirs in zip(found["gati"], found["bare"], strict=True)
            )
            for side in sides:
                row = medians(found[side.name])
                ratio = {"of_bare": round(share, 3)} if side.name == "gati" else {}
                output.row(
                    [
                        case,
                        side.name,
                        str(options.bytes),
                        f"{row['messages_per_s']:,.0f}",
                        f"{row['client_cpu_us']:.1f}",
                        f"{row['broker_cpu_us']:.1f}",
                        f"{share:.2f}" if ratio else "",
                    ],
                    {"case": case, "side": side.name, "body_bytes": options.bytes, **row, **ratio},
                )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=50_000, help="per measurement")
    parser.add_argument("--bytes", type=int, default=256, help="of each message's body")
    parser.add_argument("--rounds", type=int, default=5, help="measurements per row; the row shows medians")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    options = parser.parse_args()

    output = Output(as_json=options.json)
    what = f"{options.messages} messages each, file storage"
    output.header(header(warm_up="a fifth of the messages", rounds=options.rounds, others=what))
    with tempfile.TemporaryDirectory(prefix="gati-bench-") as name, EmbeddedBroker(Path(name)) as broker:
        uvloop.run(run(options, output, broker))


if __name__ == "__main__":
    main()
