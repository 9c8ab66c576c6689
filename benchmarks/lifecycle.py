#!/usr/bin/env python3
"""What happens around one handler, in one process: the lifecycle, hooks, events, snapshots, failures.

Two kinds of handlers are measured: `plain` answers a text, `typed` reads a JSON body as a struct and
answers it as the declared type. Each row is the cost of one thing: what a request takes with it, less
what a request takes without it, both measured in turn within every round.

    python benchmarks/lifecycle.py
    python benchmarks/lifecycle.py --requests 20000 --rounds 9 --json

"Calling the handler" is what cannot be left out: the request and response objects, the body decoded,
the call, and the answer's bytes; of `typed` also the comparison of the answer with its type.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import msgspec
import structlog
import uvloop

from _common import Output, header
from gati_core import App, GlobalContext, HandlerError, LocalContext, Request, Response, Route
from gati_core.contexts import Instance, Snapshot, diff, from_bytes, to_bytes
from gati_core.lifecycle import HandlerRun, HandlerThreads, Lifecycle, LifecycleEvent, Observers, Plan, QuietControl
from gati_core.wire import PROTOCOL, RequestDescriptor

HOOKS = 10
"""Of the hooks that cost little, so many are measured at once, and the cost of one is its share."""
KEYS = 100
JSON_BODY = b'{"sku":"ada-42","quantity":3}'
FAR_AWAY_MS = 2**41

Batch = Callable[[int], Awaitable[None]]
"""Does something so many times."""


class Order(msgspec.Struct):
    """What the typed handler reads and answers."""

    sku: str
    quantity: int


class Case(NamedTuple):
    """One row: `(with_it - without) / share`, in microseconds."""

    name: str
    with_it: str
    without: str = ""
    """Empty: nothing is subtracted."""
    share: int = 1
    target_us: float | None = None


CASES = [
    Case("calling the plain handler", "plain: call"),
    Case("lifecycle, plain", "plain: run", "plain: call", target_us=12),
    Case("calling the typed handler", "typed: call"),
    Case("lifecycle, typed", "typed: run", "typed: call", target_us=12),
    Case("a before hook", "plain: before", "plain: run", HOOKS, target_us=3),
    Case("a before hook, typed", "typed: before", "typed: run", HOOKS, target_us=3),
    Case("an after hook", "plain: after", "plain: run", HOOKS, target_us=3),
    Case("an async hook", "plain: async", "plain: run", HOOKS),
    Case("a threaded hook", "plain: threaded", "plain: run", HOOKS),
    Case("a detached hook, its run included", "plain: detached", "plain: run", HOOKS),
    Case("a listener, no hooks", "plain: observed", "plain: run"),
    Case("a listener, per hook", "plain: observed before", "plain: observed", HOOKS),
    Case("an error answered by HandlerError", "plain: handler error", "plain: run"),
    Case("a bug, logged, no hooks", "plain: bug", "plain: run"),
    Case("… with a compensation and a catch hook", "plain: bug, caught", "plain: bug"),
    Case("cleanup with one callback", "plain: cleanup", "plain: run"),
    Case(f"snapshot of {KEYS} keys", "snapshot", target_us=1000),
    Case(f"restore of {KEYS} keys", "restore", target_us=1000),
    Case(f"snapshot to bytes and back, {KEYS} keys", "snapshot bytes"),
    Case(f"diff of {KEYS} keys, a tenth changed", "diff"),
]
SLOW = {"plain: threaded": 20, "plain: detached": 4, "plain: bug": 4, "plain: bug, caught": 4} | dict.fromkeys(
    ("snapshot", "restore", "snapshot bytes", "diff"), 20
)
"""What takes long is done that many times less often."""


# -- what is measured -------------------------------------------------------------------------


def routes() -> tuple[App, dict[str, Route[Any]]]:
    """A package of its own, so that hooks can be given to its routes."""
    app = App("bench")

    @app.post("/plain")
    async def plain(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        res.text("done")

    @app.post("/typed")
    async def typed(req: Request[Order], res: Response[Order], gctx: GlobalContext, lctx: LocalContext) -> None:
        res.json(req.body)

    @app.post("/refused")
    async def refused(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        raise HandlerError("no such order", 404, code="bench.missing")

    @app.post("/bug")
    async def bug(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        raise ValueError("a bug")

    @app.post("/undone")
    async def undone(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        lctx.compensate(nothing)
        raise ValueError("a bug")

    @app.post("/cleaned")
    async def cleaned(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        lctx.lifecycle.on_cleanup(nothing)
        res.text("done")

    return app, {each.id: each for each in (plain, typed, refused, bug, undone, cleaned)}


def nothing() -> None:
    """A callback that costs only its call."""


def hook(gctx: GlobalContext, lctx: LocalContext) -> None:
    """A hook that costs only its call."""


async def async_hook(gctx: GlobalContext, lctx: LocalContext) -> None:
    """The same as a coroutine."""


def catch(error: BaseException, gctx: GlobalContext, lctx: LocalContext) -> None:
    """A catch hook that costs only its call."""


def with_hooks(kind: str, function: Callable[..., Any], *, handler: str = "plain", **options: Any) -> Plan:
    """The plan of one handler with `HOOKS` hooks."""
    app, found = routes()
    for number in range(HOOKS if kind != "catch" else 1):
        getattr(found[handler], kind)(id=f"hook-{number}", **options)(function)
    return app.handlers[handler].plan()


def hear(event: LifecycleEvent) -> None:
    """A listener that costs only its call."""


class Bench:
    """One process's lifecycle, observed and not, and the batches that run on it."""

    def __init__(self) -> None:
        gctx = GlobalContext(Instance("i", "bench", "bench-1", "host", 0))
        self._gctx = gctx
        self._threads = threads = HandlerThreads(4)
        self._lifecycle = Lifecycle(gctx=gctx, threads=threads)
        observers = Observers()
        observers.listen(hear)
        self._observed = Lifecycle(gctx=gctx, threads=threads, observers=observers)

    def batches(self) -> dict[str, Batch]:
        """Everything that the cases name."""
        plans = {name: registered.plan() for name, registered in routes()[0].handlers.items()}
        run, watched = partial(self._runs, self._lifecycle), partial(self._runs, self._observed)
        before = with_hooks("before", hook)
        found: dict[str, Batch] = {
            "plain: call": partial(self._calls, plans["plain"], b""),
            "plain: run": partial(run, plans["plain"], b""),
            "typed: call": partial(self._calls, plans["typed"], JSON_BODY),
            "typed: run": partial(run, plans["typed"], JSON_BODY),
            "plain: before": partial(run, before, b""),
            "typed: before": partial(run, with_hooks("before", hook, handler="typed"), JSON_BODY),
            "plain: after": partial(run, with_hooks("after", hook), b""),
            "plain: async": partial(run, with_hooks("before", async_hook), b""),
            "plain: threaded": partial(run, with_hooks("before", hook, threaded=True), b""),
            "plain: detached": partial(run, with_hooks("before", async_hook, detached=True), b""),
            "plain: observed": partial(watched, plans["plain"], b""),
            "plain: observed before": partial(watched, before, b""),
            "plain: handler error": partial(run, plans["refused"], b""),
            "plain: bug": partial(run, plans["bug"], b""),
            "plain: bug, caught": partial(run, with_hooks("catch", catch, handler="undone"), b""),
            "plain: cleanup": partial(run, plans["cleaned"], b""),
        }
        return found | self._snapshots(plans["plain"])

    async def _calls(self, plan: Plan, body: bytes, count: int) -> None:
        call, gctx, descriptor = plan.call, self._gctx, _descriptor()
        for _ in range(count):
            request: Request[Any] = Request(descriptor, {}, body)
            if call.request_reader is not None:
                call.request_reader.fill(request)
            response: Response[Any] = Response(None)
            await call.function(request, response, gctx, None)
            if call.response_check is not None:
                call.response_check.check(response)
            response.parts()

    async def _runs(self, lifecycle: Lifecycle, plan: Plan, body: bytes, count: int) -> None:
        descriptor = _descriptor()
        for _ in range(count):
            run = HandlerRun(lifecycle, plan, descriptor, {}, body, attempt=1, routed_ms=0, control=QuietControl())
            await run.execute()
            if run.needs_cleanup:
                await run.cleanup()
            if lifecycle.detached:
                await asyncio.wait(lifecycle.detached)

    def _snapshots(self, plan: Plan) -> dict[str, Batch]:
        run = HandlerRun(self._lifecycle, plan, _descriptor(), {}, b"", attempt=1, routed_ms=0, control=QuietControl())
        lctx = run.lctx
        for number in range(KEYS):
            lctx.set(f"key-{number}", {"sku": "ada-42", "quantity": number, "tags": ["a", "b"]})
        taken = lctx.snapshot()
        for number in range(0, KEYS, 10):
            lctx.set(f"key-{number}", {"sku": "ada-43", "quantity": number, "tags": ["a", "b"]})
        changed = lctx.snapshot()
        return {
            "snapshot": _repeated(lctx.snapshot),
            "restore": _repeated(partial(lctx.restore, taken)),
            "snapshot bytes": _repeated(partial(_there_and_back, taken)),
            "diff": _repeated(partial(diff, taken, changed)),
        }


def _there_and_back(snapshot: Snapshot) -> None:
    from_bytes(to_bytes(snapshot))


def _repeated(function: Callable[[], object]) -> Batch:
    async def batch(count: int) -> None:
        for _ in range(count):
            function()

    return batch


def _descriptor() -> RequestDescriptor:
    return RequestDescriptor(
        PROTOCOL,
        "01a20549-419d-7003-83a6-cebe9a149852",
        "gati.reply.x.r",
        FAR_AWAY_MS,
        1000,
        "POST",
        "/plain",
        headers=[("content-type", "application/json")],
    )


# -- the run ----------------------------------------------------------------------------------


async def measure(requests: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds of each batch in each round; the first round warms up and does not count."""
    batches = Bench().batches()
    found: dict[str, list[float]] = {name: [] for name in batches}
    names = list(batches)
    for round_ in range(rounds + 1):
        for name in names if round_ % 2 == 0 else reversed(names):
            count = max(1, requests // SLOW.get(name, 1))
            gc.collect()
            started = time.perf_counter()
            await batches[name](count)
            if round_:
                found[name].append((time.perf_counter() - started) / count * 1e6)
    return found


def costs(case: Case, found: dict[str, list[float]]) -> list[float]:
    """What the case costs in each round, in microseconds."""
    with_it = found[case.with_it]
    without = found[case.without] if case.without else [0.0] * len(with_it)
    return [(more - less) / case.share for more, less in zip(with_it, without, strict=True)]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000, help="per measurement; a part of it for what is slow")
    parser.add_argument("--rounds", type=int, default=7, help="measurements per row; the row shows medians")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    options = parser.parse_args()

    output = Output(as_json=options.json)
    with open(os.devnull, "w") as nowhere:
        # A bug is logged with its traceback, which is part of what it costs; only the terminal is not.
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
            logger_factory=structlog.PrintLoggerFactory(nowhere),
            cache_logger_on_first_use=True,
        )
        output.header(header(warm_up="1 round", rounds=options.rounds, others=f"{options.requests} requests each"))
        found = uvloop.run(measure(options.requests, options.rounds))
    output.columns(["what it costs", "µs", "least–most", "target µs"])
    for case in CASES:
        each = costs(case, found)
        us = median(each)
        output.row(
            [
                case.name,
                f"{us:.2f}",
                f"{min(each):.2f}–{max(each):.2f}",
                f"≤ {case.target_us:g}" if case.target_us is not None else "",
            ],
            {
                "case": case.name,
                "us": round(us, 3),
                "least_us": round(min(each), 3),
                "most_us": round(max(each), 3),
                "target_us": case.target_us,
            },
        )


if __name__ == "__main__":
    main()
