#!/usr/bin/env python3
"""HTTP end to end: wrk, ingress, stream REQ, router, stream WORK, worker, reply.

Every part is a process of its own, started as in production with default settings: an embedded
broker, one ingress process, one router, and one worker (a supervisor with one child).

    python benchmarks/round_trip.py
    python benchmarks/round_trip.py --connections 128 --route orders-again --json
    python benchmarks/round_trip.py --versions 50    # with so many versions of the handlers alive
    python benchmarks/round_trip.py --route two-hops # clients of an old version, and two transformers on the way
    python benchmarks/round_trip.py --floor PATH     # beside a script that measures the least possible
    python benchmarks/round_trip.py --against PATH   # beside another checkout, such as one of an older commit

Machines are noisy, so a ratio only counts within one run: with `--floor` or `--against` both stacks are started
once, and for every number of connections the two are measured in turn, while the other one is idle.
The floor script must offer `prepare`, `ingress`, `router`, `worker` and `run`. The other checkout needs its
`.venv` (`make test PYTEST_ARGS=--version` there makes one); the run ends with 1 when ours has lost more than 5 %.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import uvloop

from _common import Output, cpu_s, header, medians, rss_mib
from _stack import open_stack, wait_ready
from gati_core.fabric import EmbeddedBroker, free_port

PARTS = ("ingress", "router", "worker", "broker")
POST = """wrk.method = "POST"
wrk.body = '{"sku":"ada-42","quantity":3}'
wrk.headers["Content-Type"] = "application/json"
"""
OLD_CLIENT = POST + 'wrk.headers["x-gati-version"] = "v1"\n'
ROUTES = {
    "orders": ("/orders", POST),
    "orders-again": ("/orders-again", POST),
    "hello": ("/hello/ada", ""),
    "two-hops": ("/changed", OLD_CLIENT),
}
KEPT = 0.95
"""Of the other checkout's requests per second; the run fails below it."""
QUIET_S = 0.3
"""Between two measurements, so that the acknowledgements of one do not count for the next."""


class Stack(NamedTuple):
    """Something that answers HTTP, and its processes by part."""

    name: str
    url: str
    script: Path
    pids: dict[str, list[int]]


class Row(NamedTuple):
    """One measurement of one stack, or the medians of several."""

    figures: dict[str, float]
    cpu_us: dict[str, float]
    rss_mib: dict[str, float]


# -- the two stacks ---------------------------------------------------------------------------


@contextmanager
def open_product(folder: Path, route: str, *, checkout: Path | None = None, versions: int = 1) -> Iterator[Stack]:
    """Our own processes, or those of another checkout, on free ports, until the end of the block."""
    path, lua = ROUTES[route]
    name = "gati" if checkout is None else "other"
    script = folder / f"{name}.lua"
    script.write_text(lua)
    renamed = route == "two-hops"
    with open_stack(folder / name, {}, checkout=checkout, versions=versions, renamed=renamed) as stack:
        url = f"http://127.0.0.1:{stack.port}{path}"
        if renamed:
            told = wait_ready(url, b'{"sku":"ada-42","quantity":3}', {"x-gati-version": "v1"})
            if "x-gati-handler-version" not in told:
                raise SystemExit("the old version ran itself: nothing was translated")
        yield Stack(name, url, script, stack.pids)


@contextmanager
def open_floor(folder: Path, path: Path) -> Iterator[Stack]:
    """The processes of the floor script, on a broker of their own."""
    # Its processes are spawned and import their function by name, so the name must be importable.
    sys.path.insert(0, str(path.resolve().parent))
    floor: Any = importlib.import_module(path.stem)
    script = folder / "floor.lua"
    script.write_text(POST)
    port = free_port()
    with ExitStack() as cleanup:
        broker = cleanup.enter_context(EmbeddedBroker(folder / "floor"))
        uvloop.run(floor.prepare(broker.url, floor.StorageType.FILE))
        context = multiprocessing.get_context("spawn")
        parts = [
            context.Process(target=floor.ingress, args=(broker.url, port), name="ingress"),
            context.Process(target=floor.run, args=(floor.router, broker.url), name="router"),
            context.Process(target=floor.run, args=(floor.worker, broker.url), name="worker"),
        ]
        for part in parts:
            part.start()
            cleanup.callback(part.join, 5)
            cleanup.callback(part.kill)
        url = f"http://127.0.0.1:{port}/echo"
        wait_ready(url, b"{}")
        pids = {part.name: [part.pid or 0] for part in parts}
        yield Stack("floor", url, script, {**pids, "broker": [broker.pid]})


# -- one measurement --------------------------------------------------------------------------


def wrk(stack: Stack, connections: int, seconds: int) -> dict[str, float]:
    """Load one stack; ends the run when a single answer was not good."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(stack.script), stack.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    count = re.search(r"(\d+) requests in", done.stdout)
    failed = done.returncode or "Non-2xx" in done.stdout or "Socket errors" in done.stdout
    if failed or rate is None or count is None:
        raise SystemExit(f"{stack.name} did not answer well at {connections} connections:\n{done.stdout}{done.stderr}")
    units = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    found = re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)\b", done.stdout)
    quantiles = {quantile: float(value) * units[unit] for quantile, value, unit in found}
    return {
        "requests_per_s": float(rate[1]),
        "requests": int(count[1]),
        "p50_ms": quantiles["50"],
        "p99_ms": quantiles["99"],
    }


def measure(stack: Stack, connections: int, seconds: int) -> Row:
    """wrk, and what the processes used meanwhile."""
    time.sleep(QUIET_S)
    before = {part: cpu_s(pids) for part, pids in stack.pids.items()}
    figures = wrk(stack, connections, seconds)
    used = {part: (cpu_s(pids) - before[part]) / figures["requests"] * 1e6 for part, pids in stack.pids.items()}
    return Row(figures, used, {part: rss_mib(pids) for part, pids in stack.pids.items()})


def of_floor(product: list[Row], floor: list[Row]) -> dict[str, float]:
    """The product in proportion to the floor: the median over rounds of the ratio within each round."""
    pairs = list(zip(product, floor, strict=True))
    found = {
        key: [ours.figures[key] / theirs.figures[key] for ours, theirs in pairs]
        for key in ("requests_per_s", "p50_ms", "p99_ms")
    }
    found["cpu_us"] = [sum(ours.cpu_us.values()) / sum(theirs.cpu_us.values()) for ours, theirs in pairs]
    shares = {key: median(ratios) for key, ratios in found.items()}
    # How far the rounds lie apart says how much the median is worth.
    rates = found["requests_per_s"]
    shares |= {"requests_per_s_least": min(rates), "requests_per_s_most": max(rates)}
    return {key: round(value, 3) for key, value in shares.items()}


# -- the run ----------------------------------------------------------------------------------


def report(output: Output, stack: Stack, connections: int, rows: list[Row], shares: dict[str, float] | None) -> None:
    """The row of one stack at one number of connections."""
    figures, cpu, rss = (medians([row[place] for row in rows]) for place in range(3))
    record = {"case": stack.name, "connections": connections, **figures, "cpu_us": cpu, "rss_mib": rss}
    if shares is not None:
        record["of_floor"] = shares
    share = [""] * 5
    if shares is not None:
        spread = f"{shares['requests_per_s_least']:.2f}–{shares['requests_per_s_most']:.2f}"
        share = [f"{shares['requests_per_s']:.2f}", spread]
        share += [f"{shares[key]:.2f}" for key in ("p50_ms", "p99_ms", "cpu_us")]
    cells = [
        stack.name,
        str(connections),
        f"{figures['requests_per_s']:,.0f}",
        f"{figures['p50_ms']:.2f}",
        f"{figures['p99_ms']:.2f}",
        *(f"{cpu[part]:.0f}" for part in PARTS),
        f"{sum(cpu.values()):.0f}",
        *(f"{rss[part]:.0f}" for part in PARTS),
        *share,
    ]
    output.row(cells, record)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=6, help="of each measurement")
    parser.add_argument("--connections", default="1,32,128", help="comma separated")
    parser.add_argument("--rounds", type=int, default=3, help="measurements per row; the row shows medians")
    parser.add_argument("--warm-up", type=int, default=3, help="seconds of load at 32 connections beforehand")
    parser.add_argument("--route", choices=sorted(ROUTES), default="orders")
    parser.add_argument("--versions", type=int, default=1, help="of the handlers that live at once")
    beside = parser.add_mutually_exclusive_group()
    beside.add_argument("--floor", type=Path, metavar="PATH", help="a floor script to measure in turn with ours")
    beside.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="another checkout to measure in turn with ours"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    options = parser.parse_args()

    output = Output(as_json=options.json)
    lost = False
    with tempfile.TemporaryDirectory(prefix="gati-bench-") as name, ExitStack() as cleanup:
        folder = Path(name)
        stacks = [cleanup.enter_context(open_floor(folder, options.floor))] if options.floor else []
        if options.against:
            stacks.append(
                cleanup.enter_context(open_product(folder, options.route, checkout=options.against.resolve()))
            )
        stacks.append(cleanup.enter_context(open_product(folder, options.route, versions=options.versions)))
        what = f"{options.seconds} s each; route {ROUTES[options.route][0]}; {options.versions} versions"
        output.header(header(warm_up=f"{options.warm_up} s", rounds=options.rounds, others=what))
        for stack in stacks:
            wrk(stack, 32, options.warm_up)
        output.columns(
            ["case", "connections", "req/s", "p50 ms", "p99 ms"]
            + [f"{part} µs" for part in (*PARTS, "all")]
            + [f"{part} MiB" for part in PARTS]
            + [f"{figure} / {stacks[0].name}" for figure in ("req/s", "least–most", "p50", "p99", "CPU")]
        )
        for connections in map(int, options.connections.split(",")):
            rows: dict[str, list[Row]] = {stack.name: [] for stack in stacks}
            for round_ in range(options.rounds):
                # The one that goes first changes, so that a drift of the machine favours neither.
                for stack in stacks if round_ % 2 == 0 else reversed(stacks):
                    rows[stack.name].append(measure(stack, connections, options.seconds))
            for stack in stacks:
                compared = len(stacks) == 2 and stack is stacks[-1]
                shares = of_floor(rows[stack.name], rows[stacks[0].name]) if compared else None
                report(output, stack, connections, rows[stack.name], shares)
                lost = lost or (options.against and shares is not None and shares["requests_per_s"] < KEPT)
    if lost:
        raise SystemExit(f"less than {KEPT:g} of the other checkout's requests per second")


if __name__ == "__main__":
    main()
