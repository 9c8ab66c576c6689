"""Handlers that swallow their cancellation, block their thread, or raise what is no `Exception`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from gati_core.lifecycle import HandlerRun
from tests.helpers.handling import WITHIN_S, Desk, Underway, shop

REASONS = ["deadline", "client_gone", "leaving"]


# -- handlers that do not obey ------------------------------------------------------------------


async def test_a_handler_that_swallows_its_cancellation_and_answers_is_heard() -> None:
    started = asyncio.Event()
    ran: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        async def slowly() -> None:
            await asyncio.sleep(0)
            ran.append("cleanup")

        lctx.lifecycle.on_cleanup(slowly)
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            res.text("all the same")

    app = shop(handler)

    @app.after(timeout_s=5)
    async def after(gctx: Any, lctx: Any) -> None:
        await asyncio.sleep(0)
        ran.append("after")

    underway = Desk().begin(app)
    await started.wait()
    underway.cancel("deadline")
    reply = await underway.reply()

    assert reply is not None
    assert (reply.body, ran) == (b"all the same", ["after", "cleanup"])


async def test_a_handler_that_swallows_its_cancellation_and_says_nothing_has_not_succeeded() -> None:
    started = asyncio.Event()

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

    underway = Desk().begin(shop(handler))
    await started.wait()
    underway.cancel("deadline")
    reply = await underway.reply()

    assert reply is not None
    assert reply.status == 504


class Deaf:
    """Waits for an event whatever anybody says."""

    def __init__(self) -> None:
        self.started, self.release = asyncio.Event(), asyncio.Event()
        self.ran: list[str] = []

    async def wait(self) -> None:
        self.started.set()
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.ran.append("ignored")

    async def give_up(self, underway: Underway) -> Any:
        """What a worker does with it."""
        await self.started.wait()
        underway.cancel("deadline")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        underway.run.abandon()
        reply = await underway.run.give_up()
        await underway.run.cleanup()
        return reply


async def test_a_deaf_handler_is_answered_for_and_not_heard_any_more() -> None:
    deaf, desk = Deaf(), Desk(observed=True)
    outcomes: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.lifecycle.on_cleanup(lambda: deaf.ran.append("cleanup"))
        await deaf.wait()
        try:
            res.text("too late")
        except Exception as exc:
            outcomes.append(type(exc).__name__)

    app = shop(handler)
    app.after(lambda gctx, lctx: deaf.ran.append("after"))
    underway = desk.begin(app)
    with capture_logs() as lines:
        reply = await deaf.give_up(underway)
    steps = desk.steps
    deaf.release.set()

    assert (reply.status, await underway.reply()) == (504, None)
    assert outcomes == ["ResponseAlreadySent"]
    assert deaf.ran == ["ignored", "cleanup"]
    assert desk.steps == steps
    assert lines[0]["event"] == "cancellation_ignored"


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("ending", ["returns", "raises"])
@pytest.mark.parametrize("observed", [False, True])
async def test_after_a_deaf_before_hook_neither_hooks_nor_handler_run(
    observed: bool, ending: str, retries: int
) -> None:
    deaf, desk = Deaf(), Desk(observed=observed)

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        deaf.ran.append("handler")

    app = shop(handler)

    @app.before(id="deaf", retries=retries, backoff_s=0)
    async def hook(gctx: Any, lctx: Any) -> None:
        await deaf.wait()
        if ending == "raises":
            raise ValueError

    app.before(lambda gctx, lctx: deaf.ran.append("next"))
    app.catch(id="c", retries=1, backoff_s=0)(lambda error, gctx, lctx: deaf.ran.append("catch"))
    underway = desk.begin(app)
    reply = await deaf.give_up(underway)
    steps = desk.steps
    deaf.release.set()

    assert (reply.status, await underway.reply()) == (504, None)
    assert deaf.ran == ["ignored", "catch"]
    assert desk.steps == steps
    if observed:
        assert steps[2:] == [
            *("hook:start deaf", "hook:error deaf", "request:cancelled", "hook:start c", "hook:end c", "request:end")
        ]


@pytest.mark.parametrize("reason", ["deadline", "client_gone"])
async def test_a_def_handler_is_left_behind_in_its_thread_and_its_slot_is_free(reason: str) -> None:
    desk = Desk(threads=1)
    started, release, ended = threading.Event(), threading.Event(), threading.Event()
    outcomes: list[str] = []

    def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.lifecycle.on_cleanup(lambda: outcomes.append("cleanup"))
        started.set()
        release.wait(WITHIN_S)
        try:
            res.text("too late")
        except Exception as exc:
            outcomes.append(type(exc).__name__)
        ended.set()

    try:
        underway = desk.begin(shop(handler))
        await asyncio.to_thread(started.wait, WITHIN_S)
        underway.cancel(reason)
        reply = await underway.reply()

        assert (reply.status if reply else None) == (504 if reason == "deadline" else None)
        assert (desk.threads.abandoned, desk.threads.running) == (1, 0)
        assert (await desk.handle(shop(lambda req, res, gctx, lctx: res.text("next")))).body == b"next"
    finally:
        release.set()
    await asyncio.to_thread(ended.wait, WITHIN_S)
    assert outcomes == ["cleanup", "ResponseAlreadySent"]


# -- exceptions that are no `Exception` ---------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize("kind", [BaseException, GeneratorExit, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["handler", "before", "after", "catch"])
async def test_no_exception_of_a_handler_or_hook_gets_past_the_run(
    where: str, kind: type[BaseException], is_async: bool
) -> None:
    ran: list[str] = []

    def fails(*arguments: Any) -> None:
        raise kind

    async def fails_later(*arguments: Any) -> None:
        raise kind

    def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.lifecycle.on_cleanup(lambda: ran.append("cleanup"))
        if where in ("handler", "catch"):
            fails()

    async def handler_later(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        handler(req, res, gctx, lctx)

    app = shop(handler_later if is_async else handler)
    bad: Callable[..., Any] = fails_later if is_async else fails
    if where != "handler":
        getattr(app, where)(bad)
    underway = Desk().begin(app)
    reply = await underway.reply()

    assert reply is not None
    assert (reply.status, ran) == (500, [] if where == "before" else ["cleanup"])


async def test_a_run_whose_coroutine_is_closed_ends_quietly() -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        await asyncio.Event().wait()

    underway = Desk().begin(shop(handler))
    run: HandlerRun = underway.run
    underway.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await underway.task  # cancelled before its first step: nothing ran

    coroutine = run.execute()
    coroutine.send(None)
    coroutine.close()
