#!/usr/bin/env python3
"""Many requests that wait in async handlers of one worker process at once, through the whole fabric.

An embedded broker, one ingress process, one router, and one worker with one child, as in production,
except for the limits: as many requests may be in flight, and unconfirmed by the broker, as wait here. All
connections are opened first, then each sends one request in the same moment; when all handlers wait they are
released together. An answer that is not 200, and a connection that is cut, is a failure; one ends the run.

    python benchmarks/waiting.py
    python benchmarks/waiting.py --requests 1000,5000 --rounds 5 --json

Memory is resident memory when all wait, less what it was before, divided by the requests: of the ingress
with the connection that each has, which is also shown alone. Every round has processes of its own, because
memory that was once used is not given back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import uvloop

from _common import Output, header, medians
from _stack import Http, Stack, connected, need_files, open_stack

CONNECTING = 200
"""Connections being opened at once."""
WARM_UP = 50
ACCEPT_WITHIN_S = 60.0
RELEASE_WITHIN_S = 60.0
SETTLE_S = 1.0
"""Between two readings of memory, so that what just ended does not count."""
SPARE = 64
"""Slots beyond the requests that wait: for those that ask how many do."""
TARGET_KIB = 20


async def open_clients(port: int, count: int) -> list[Http]:
    """So many connections; those that cannot be opened end the run."""
    slots = asyncio.Semaphore(CONNECTING)

    async def one() -> Http:
        async with slots:
            return await connected(port)

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def all_wait(control: Http, count: int) -> int:
    """Return once so many handlers wait, or when no more come; returns how many do."""
    give_up_at = time.monotonic() + ACCEPT_WITHIN_S
    while True:
        await control.ask("GET", "/progress")
        waiting = int(json.loads(control.body)["waiting"]) if control.status == 200 else 0
        if waiting >= count or time.monotonic() > give_up_at:
            return waiting
        await asyncio.sleep(0.02)


async def wave(clients: list[Http], control: Http, stack: Stack | None = None) -> dict[str, float]:
    """One request on each connection, all released together.

    Args:
        stack: read its memory while all wait.
    """
    began = time.perf_counter()
    answers = [client.begin("GET", "/wait") for client in clients]
    waiting = await all_wait(control, len(clients))
    accepted_s = time.perf_counter() - began
    memory: dict[str, float] = {}
    if stack is not None:
        await asyncio.sleep(SETTLE_S)
        memory = stack.rss_kib()
    began = time.perf_counter()
    await control.ask("POST", "/release")
    _, late = await asyncio.wait(answers, timeout=RELEASE_WITHIN_S)
    released_s = time.perf_counter() - began
    for each in late:
        each.cancel()
    outcomes = Counter(_outcome(each, client) for each, client in zip(answers, clients, strict=True))
    failures = outcomes.total() - outcomes["200"]
    if failures:
        print(f"# not all were 200: {dict(outcomes)}", file=sys.stderr)
    return {
        "waiting": waiting,
        "failures": failures,
        "accept_s": accepted_s,
        "release_s": released_s,
        **{f"{part}_kib": kib for part, kib in memory.items()},
    }


def _outcome(answer: asyncio.Future[int], client: Http) -> str:
    """The status, and why it is none or not 200."""
    if answer.cancelled():
        return "no answer"
    error = answer.exception()
    if error is not None:
        return type(error).__name__
    if answer.result() == 200:
        return "200"
    try:
        return f"{answer.result()} {json.loads(client.body)['code']}"
    except (ValueError, KeyError, TypeError):
        return str(answer.result())


async def run(stack: Stack, requests: int) -> dict[str, float]:
    """Warm up, connect, wait, release."""
    control = await connected(stack.port)
    warm = await open_clients(stack.port, min(WARM_UP, requests))
    await wave(warm, control)
    for client in warm:
        client.abort()
    await asyncio.sleep(SETTLE_S)
    idle = stack.rss_kib()
    clients = await open_clients(stack.port, requests)
    await asyncio.sleep(SETTLE_S)
    connected_kib = stack.rss_kib()["ingress"] - idle["ingress"]
    found = await wave(clients, control, stack)
    for client in clients:
        client.abort()
    control.abort()
    per_request = {f"{part}_kib": (found.pop(f"{part}_kib") - idle[part]) / requests for part in stack.pids}
    return {**found, **per_request, "connection_kib": connected_kib / requests}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", default="5000", help="that wait at once, comma separated; at most 8,000")
    parser.add_argument("--rounds", type=int, default=3, help="measurements per row; the row shows medians")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    options = parser.parse_args()

    numbers = [int(text) for text in options.requests.split(",")]
    if not all(1 <= number <= 8000 for number in numbers):
        parser.error("--requests takes numbers from 1 to 8000")
    need_files(max(numbers) + WARM_UP + 1024)
    output = Output(as_json=options.json)
    what = "new processes in every round"
    output.header(header(warm_up=f"{WARM_UP} requests", rounds=options.rounds, others=what))
    parts = ("worker", "ingress", "router", "broker")
    output.columns(
        ["waiting", "failures", "accept s", "release s"]
        + [f"{part} KiB/request" for part in parts]
        + ["of it connection", "target worker KiB"]
    )
    for number in numbers:
        settings = {
            "GATI_INGRESS_MAX_IN_FLIGHT": str(number + SPARE),
            "GATI_INGRESS_REQUEST_TIMEOUT_S": "240",
            "GATI_WORKER_MAX_IN_FLIGHT": str(number + SPARE),
            "GATI_FABRIC_PUBLISH_WINDOW": str(number + SPARE),
        }
        rows = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory(prefix="gati-bench-") as name, open_stack(Path(name), settings) as stack:
                rows.append(uvloop.run(run(stack, number)))
        row = medians(rows)
        row["failures"] = sum(each["failures"] for each in rows)  # not one in any round
        row["waiting"] = min(each["waiting"] for each in rows)
        cells = [f"{row['waiting']:,.0f}", f"{row['failures']:,.0f}", f"{row['accept_s']:.2f}"]
        cells += [f"{row['release_s']:.2f}", *(f"{row[f'{part}_kib']:.1f}" for part in parts)]
        output.row([*cells, f"{row['connection_kib']:.1f}", f"≤ {TARGET_KIB}"], {"requests": number, **row})
        if row["failures"]:
            raise SystemExit(f"{row['failures']:,.0f} of {number:,} requests failed")


if __name__ == "__main__":
    main()
