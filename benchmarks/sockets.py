#!/usr/bin/env python3
"""WebSockets end to end: many connections, a message each second on each, echoed by a handler.

Every part is a process of its own, started as in production with default settings: an embedded
broker, one ingress process, one router, and one worker (a supervisor with one child). The clients
run in this process, so on few cores they take part of the time that they measure.

    python benchmarks/sockets.py
    python benchmarks/sockets.py --connections 100,1000,3000 --seconds 60 --json

Every message names its connection, its number and when it was sent; a reply with another number than
the next is out of order, and what has not come back at the end is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import struct
import tempfile
import time
from pathlib import Path

import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from _common import Output, cpu_s, header, rss_mib
from _stack import Stack, need_files, open_stack

SETTLE_WITHIN_S = 15.0
"""What the last echoes may take after the last message was sent."""
OPENING = 50
"""Handshakes at once."""
_STAMP = struct.Struct(">IId")


class Tally:
    """What happened on all connections of one run."""

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self.out_of_order = 0
        self.closed = 0
        self.latencies_ms: list[float] = []


# -- one run ----------------------------------------------------------------------------------


async def run(stack: Stack, connections: int, seconds: int) -> dict[str, float]:
    """Open the connections, talk, close them; returns the figures."""
    ingress = stack.pids["ingress"]
    before_mib = rss_mib(ingress)
    tally = Tally()
    clients = await _open_all(stack.port, connections)
    opened_mib = rss_mib(ingress)
    used_before = {part: cpu_s(pids) for part, pids in stack.pids.items()}
    async with asyncio.TaskGroup() as tasks:
        for number, client in enumerate(clients):
            tasks.create_task(_talk(client, number, connections, seconds, tally))
    used = {part: cpu_s(pids) - used_before[part] for part, pids in stack.pids.items()}
    busy_mib = rss_mib(ingress)
    await asyncio.gather(*(client.close() for client in clients))
    ordered = sorted(tally.latencies_ms) or [float("nan")]
    return {
        "connections": connections,
        "sent": tally.sent,
        "received": tally.received,
        "lost": tally.sent - tally.received,
        "out_of_order": tally.out_of_order,
        "closed": tally.closed,
        "p50_ms": round(ordered[len(ordered) // 2], 2),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 2),
        "kib_per_connection": round((opened_mib - before_mib) * 1024 / connections, 1),
        "kib_per_connection_busy": round((busy_mib - before_mib) * 1024 / connections, 1),
        **{f"{part}_cpu_us": round(used[part] / max(1, tally.received) * 1e6, 1) for part in used},
    }


async def _open_all(port: int, connections: int) -> list[ClientConnection]:
    slots = asyncio.Semaphore(OPENING)

    async def open_one() -> ClientConnection:
        async with slots:
            return await connect(
                f"ws://127.0.0.1:{port}/echo", proxy=None, compression=None, ping_interval=None, open_timeout=30
            )

    return list(await asyncio.gather(*(open_one() for _ in range(connections))))


async def _talk(client: ClientConnection, number: int, connections: int, seconds: int, tally: Tally) -> None:
    """One connection: a message each second, spread over it so that not all send at once."""
    loop = asyncio.get_running_loop()
    start = loop.time() + number / connections
    reading = loop.create_task(_read(client, number, seconds, tally))
    try:
        for count in range(seconds):
            await asyncio.sleep(max(0.0, start + count - loop.time()))
            await client.send(_STAMP.pack(number, count, time.perf_counter()))
            tally.sent += 1
        async with asyncio.timeout(SETTLE_WITHIN_S):
            await reading
    except (TimeoutError, ConnectionClosed):
        tally.closed += client.close_code is not None
    finally:
        reading.cancel()
        await asyncio.wait([reading])


async def _read(client: ClientConnection, number: int, seconds: int, tally: Tally) -> None:
    for expected in range(seconds):
        whose, count, sent_at = _STAMP.unpack(await client.recv(decode=False))
        tally.latencies_ms.append((time.perf_counter() - sent_at) * 1000)
        tally.received += 1
        tally.out_of_order += (whose, count) != (number, expected)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--connections", default="1000", help="comma separated")
    parser.add_argument("--seconds", type=int, default=30, help="of each run: as many messages per connection")
    parser.add_argument("--warm-up", type=int, default=3, help="seconds with 50 connections beforehand")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    options = parser.parse_args()

    has_lost = False
    numbers = [int(text) for text in options.connections.split(",")]
    need_files(2 * max(numbers) + 1024)
    output = Output(as_json=options.json)
    with tempfile.TemporaryDirectory(prefix="gati-bench-") as name, open_stack(Path(name), {}) as stack:
        what = f"{options.seconds} s each, a message of {_STAMP.size} bytes a second on each connection"
        output.header(header(warm_up=f"{options.warm_up} s", rounds=1, others=what))
        uvloop.run(run(stack, 50, options.warm_up))
        output.columns(
            ["connections", "sent", "received", "lost", "out of order", "closed", "p50 ms", "p99 ms"]
            + ["ingress KiB/conn open", "busy"]
            + [f"{part} µs/message" for part in stack.pids]
        )
        for connections in numbers:
            figures = uvloop.run(run(stack, connections, options.seconds))
            cells = [
                f"{figures[key]:,}" for key in ("connections", "sent", "received", "lost", "out_of_order", "closed")
            ]
            cells += [f"{figures[key]:.2f}" for key in ("p50_ms", "p99_ms")]
            cells += [f"{figures[key]:.1f}" for key in ("kib_per_connection", "kib_per_connection_busy")]
            cells += [f"{figures[f'{part}_cpu_us']:.0f}" for part in stack.pids]
            output.row(cells, figures)
            has_lost = has_lost or bool(figures["lost"] or figures["out_of_order"] or figures["closed"])
    if has_lost:
        raise SystemExit("messages were lost or came in another order, or connections were closed")


if __name__ == "__main__":
    main()
