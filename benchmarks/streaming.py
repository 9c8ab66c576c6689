#!/usr/bin/env python3
"""Streamed answers end to end: one and many at once, the first byte, and clients that do not read.

An embedded broker, one ingress process, one router, and one worker with one child, each a process of its
own with default settings. The clients run in this process and throw away what they read, so on few cores
they take part of the time that they measure.

    python benchmarks/streaming.py
    python benchmarks/streaming.py --megabytes 256 --streams 1,10,100 --part-bytes 1024,65536 --json

The last table has clients that ask for an endless stream and stop reading at once: how much the handlers
could send until nothing moved any more, and what the processes hold meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

import uvloop

from _common import Output, cpu_s, header, medians
from _stack import Http, Stack, connected, need_files, open_stack

MB = 1_000_000
ENDLESS = 1_000_000
"""Parts of a stream that nobody reads: more than can ever be sent."""
DONE_WITHIN_S = 120.0
STILL_FOR_S = 1.0
STILL_WITHIN_S = 30.0
PARTS = ("ingress", "worker", "broker")


async def throughput(stack: Stack, streams: int, part_bytes: int, megabytes: int) -> dict[str, float]:
    """So many streams at once, which together carry so many megabytes."""
    clients = [await connected(stack.port) for _ in range(streams)]
    parts = max(1, megabytes * MB // streams // part_bytes)
    total_mb = parts * part_bytes * streams / MB
    used = {part: cpu_s(stack.pids[part]) for part in PARTS}
    began = time.perf_counter()
    answers = [client.begin("GET", f"/stream/{parts}/{part_bytes}") for client in clients]
    async with asyncio.timeout(DONE_WITHIN_S):
        statuses = set(await asyncio.gather(*answers))
    took_s = time.perf_counter() - began
    cpu_ms = {f"{part}_cpu_ms": (cpu_s(stack.pids[part]) - used[part]) * 1000 / total_mb for part in PARTS}
    short = sum(client.received < parts * part_bytes for client in clients)
    for client in clients:
        client.abort()
    if statuses != {200} or short:
        raise SystemExit(f"statuses {sorted(statuses)}, and {short} of {streams} bodies were too short")
    return {"mb_per_s": total_mb / took_s, **cpu_ms}


async def first_byte(stack: Stack, requests: int) -> dict[str, float]:
    """Milliseconds from a request to the first byte of its body, one after another on one connection."""
    client = await connected(stack.port)
    found = []
    for _ in range(requests):
        began = time.perf_counter()
        if await client.ask("GET", "/stream/1/1024") != 200:
            raise SystemExit(f"a stream was answered {client.status}: {client.body[:500]!r}")
        found.append((client.first_byte_at - began) * 1000)
    client.abort()
    found.sort()
    return {"p50_ms": found[len(found) // 2], "p99_ms": found[int(len(found) * 0.99)]}


async def unread(stack: Stack, clients: int, part_bytes: int) -> dict[str, float]:
    """Clients that read nothing: what was sent until all stood still, and the memory that it takes."""
    control = await connected(stack.port)
    sent_before, before = await _sent(control), stack.rss_kib()
    stalled: list[Http] = []
    for _ in range(clients):
        client = await connected(stack.port)
        client.pause()
        client.begin("GET", f"/stream/{ENDLESS}/{part_bytes}").add_done_callback(_note_end)
        stalled.append(client)
    sent = await _still(control, sent_before)
    after = stack.rss_kib()
    for client in stalled:
        client.abort()
    control.abort()
    kib = {f"{part}_kib": (after[part] - before[part]) / clients for part in PARTS}
    return {"sent_kib": (sent - sent_before) / 1024 / clients, **kib}


def _note_end(answer: asyncio.Future[int]) -> None:
    if not answer.cancelled():
        answer.exception()  # it is cut in the end; nobody waits for it


async def _sent(control: Http) -> int:
    await control.ask("GET", "/progress")
    return int(json.loads(control.body)["sent"])


async def _still(control: Http, before: int) -> int:
    """Bytes sent once that number has not moved for a while.

    Raises:
        SystemExit: it never stood still, so nothing bounds it.
    """
    give_up_at = time.monotonic() + STILL_WITHIN_S
    last, since = before, time.monotonic()
    while time.monotonic() - since < STILL_FOR_S:
        if time.monotonic() > give_up_at:
            raise SystemExit(f"handlers still send after {STILL_WITHIN_S:g} s to clients that do not read")
        await asyncio.sleep(0.05)
        sent = await _sent(control)
        if sent != last:
            last, since = sent, time.monotonic()
    return last


# -- the run ----------------------------------------------------------------------------------


async def measure_throughput(options: argparse.Namespace, output: Output, stack: Stack) -> None:
    """All numbers of streams with all sizes of parts, in turn within every round."""
    cases = [(streams, part_bytes) for streams in options.streams for part_bytes in options.part_bytes]
    found: dict[tuple[int, int], list[dict[str, float]]] = {case: [] for case in cases}
    for round_ in range(options.rounds + 1):
        for streams, part_bytes in cases if round_ % 2 == 0 else reversed(cases):
            megabytes = options.megabytes if part_bytes >= 16_384 else max(1, options.megabytes // 8)
            row = await throughput(stack, streams, part_bytes, megabytes)
            if round_:
                found[streams, part_bytes].append(row)
    output.columns(["streams", "part bytes", "MB/s", *(f"{part} ms/MB" for part in PARTS)])
    for (streams, part_bytes), rows in found.items():
        row = medians(rows)
        cells = [f"{streams:,}", f"{part_bytes:,}", f"{row['mb_per_s']:.1f}"]
        cells += [f"{row[f'{part}_cpu_ms']:.2f}" for part in PARTS]
        output.row(cells, {"case": "throughput", "streams": streams, "part_bytes": part_bytes, **row})


async def run(options: argparse.Namespace, output: Output, stack: Stack) -> None:
    """The tables of clients that read."""
    await measure_throughput(options, output, stack)

    await first_byte(stack, max(1, options.requests // 5))
    row = medians([await first_byte(stack, options.requests) for _ in range(options.rounds)])
    output.columns(["first byte", "p50 ms", "p99 ms"])
    cells = [f"{options.requests} requests", f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}"]
    output.row(cells, {"case": "first byte", "requests": options.requests, **row})


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", default="1,100", help="at once, comma separated", type=_numbers)
    parser.add_argument("--part-bytes", default="1024,65536", help="of each write, comma separated", type=_numbers)
    parser.add_argument("--megabytes", type=int, default=128, help="per measurement; an eighth for small parts")
    parser.add_argument("--requests", type=int, default=300, help="for the first byte, per measurement")
    parser.add_argument("--unread", type=int, default=50, help="clients that do not read")
    parser.add_argument("--rounds", type=int, default=5, help="measurements per row; the row shows medians")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    options = parser.parse_args()

    need_files(4 * max(*options.streams, options.unread) + 1024)
    output = Output(as_json=options.json)
    what = f"{options.megabytes} MB each"
    output.header(header(warm_up="1 round", rounds=options.rounds, others=what))
    with tempfile.TemporaryDirectory(prefix="gati-bench-") as name, open_stack(Path(name), {}) as stack:
        uvloop.run(run(options, output, stack))
    rows = []
    for _ in range(options.rounds):  # memory that was once used is not given back: new processes each time
        with tempfile.TemporaryDirectory(prefix="gati-bench-") as name, open_stack(Path(name), {}) as stack:
            uvloop.run(first_byte(stack, 50))
            rows.append(uvloop.run(unread(stack, options.unread, 65_536)))
    row = medians(rows)
    output.columns(["clients that do not read", "sent KiB/client", *(f"{part} KiB/client" for part in PARTS)])
    cells = [f"{options.unread:,}", f"{row['sent_kib']:,.0f}", *(f"{row[f'{part}_kib']:,.0f}" for part in PARTS)]
    output.row(cells, {"case": "unread", "clients": options.unread, **row})


if __name__ == "__main__":
    main()
