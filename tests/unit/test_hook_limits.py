"""Hooks past their limit, and hooks that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from structlog.testing import capture_logs

from gati_core.errors import HookTimeout
from gati_core.lifecycle import hooking, watch_tasks
from tests.helpers.handling import Desk, problem, shop
from tests.helpers.recorder import Recorder

SHORT_S = 0.02


@pytest.fixture
def seen() -> Recorder:
    return Recorder()


# -- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("kind", ["before", "after"])
async def test_an_async_hook_past_its_limit_is_cancelled(seen: Recorder, kind: str, observed: bool) -> None:
    app = shop(seen.handler)

    @getattr(app, kind)(timeout_s=SHORT_S)  # type: ignore[untyped-decorator]
    async def hangs(gctx: Any, lctx: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.ran.append("cancelled")
            raise

    reply = await Desk(observed=observed).handle(app)

    assert (reply.status, problem(reply)["code"]) == (504, "hook.timeout")
    assert "hangs" not in problem(reply)["detail"]
    assert seen.ran == (["cancelled"] if kind == "before" else ["handler", "cancelled"])


async def test_a_hook_that_swallows_its_cancellation_has_failed_all_the_same(seen: Recorder) -> None:
    app = shop(seen.handler)

    @app.before(timeout_s=SHORT_S)
    async def swallows(gctx: Any, lctx: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

    assert ((await Desk().handle(app)).status, seen.ran) == (504, [])


@pytest.mark.parametrize("observed", [False, True])
async def test_a_plain_hook_that_comes_back_too_late_has_failed(
    seen: Recorder, monkeypatch: pytest.MonkeyPatch, observed: bool
) -> None:
    app = shop(seen.handler)
    clock = iter(range(0, 1000, 7))
    app.before(seen.note("slow"), timeout_s=5.0)
    monkeypatch.setattr(hooking.time, "perf_counter", lambda: float(next(clock)))  # type: ignore[attr-defined]

    reply = await Desk(observed=observed).handle(app)

    assert (reply.status, problem(reply)["code"], seen.ran) == (504, "hook.timeout", ["slow"])


async def test_a_threaded_hook_past_its_limit_is_left_behind_and_its_slot_is_free(seen: Recorder) -> None:
    release, ended = threading.Event(), threading.Event()
    desk = Desk(threads=1)
    app = shop(seen.handler)

    @app.before(threaded=True, timeout_s=SHORT_S)
    def hangs(gctx: Any, lctx: Any) -> None:
        release.wait(10)
        ended.set()

    try:
        assert (await desk.handle(app)).status == 504
        assert (desk.threads.abandoned, desk.threads.running) == (1, 0)
        assert await desk.threads.run(lambda: "free") == "free"
    finally:
        release.set()
    assert await asyncio.to_thread(ended.wait, 10)


async def test_a_timeout_that_a_hook_raises_itself_is_an_error_of_its_own(seen: Recorder) -> None:
    app = shop(seen.handler)

    @app.before
    async def fails(gctx: Any, lctx: Any) -> None:
        raise TimeoutError

    assert problem(await Desk().handle(app))["code"] == "internal"


async def test_a_hook_past_its_limit_is_tried_again(seen: Recorder) -> None:
    app = shop(seen.handler)

    @app.before(timeout_s=SHORT_S, retries=1, backoff_s=0)
    async def hangs_once(gctx: Any, lctx: Any) -> None:
        seen.ran.append("try")
        if len(seen.ran) == 1:
            await asyncio.Event().wait()

    assert ((await Desk().handle(app)).status, seen.ran) == (200, ["try", "try", "handler"])


async def test_catch_hooks_are_told_which_hook_was_too_slow(seen: Recorder) -> None:
    told: list[BaseException] = []
    app = shop(seen.handler)
    app.catch(lambda error, gctx, lctx: told.append(error))

    @app.before(timeout_s=SHORT_S)
    async def hangs(gctx: Any, lctx: Any) -> None:
        await asyncio.Event().wait()

    await Desk().handle(app)

    assert isinstance(told[0], HookTimeout)
    assert "'hangs'" in str(told[0])


# -- detached -----------------------------------------------------------------------------------


async def test_the_answer_does_not_wait_for_a_detached_hook(seen: Recorder) -> None:
    release = asyncio.Event()
    desk = Desk()
    app = shop(seen.handler)

    @app.after(detached=True)
    async def slow(gctx: Any, lctx: Any) -> None:
        await release.wait()
        seen.ran.append("detached")

    reply = await desk.handle(app)
    (task,) = desk.lifecycle.detached
    release.set()
    await task

    assert (reply.body, seen.ran, desk.lifecycle.detached) == (b"ok", ["handler", "detached"], set())


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(1), KeyboardInterrupt()], ids=lambda e: type(e).__name__
)
async def test_a_detached_hook_that_fails_is_logged_and_nothing_else(seen: Recorder, error: BaseException) -> None:
    desk = Desk()
    app = shop(seen.handler)
    app.before(detached=True, id="d")(seen.note("detached", raises=error))

    with capture_logs() as lines:
        reply = await desk.handle(app)
        await asyncio.gather(*desk.lifecycle.detached)

    assert (reply.body, [(line["event"], line["hook"]) for line in lines]) == (b"ok", [("detached_hook_failed", "d")])


async def test_a_detached_hook_has_its_limit(seen: Recorder) -> None:
    desk = Desk()
    app = shop(seen.handler)

    @app.before(detached=True, timeout_s=SHORT_S)
    async def hangs(gctx: Any, lctx: Any) -> None:
        await asyncio.Event().wait()

    with capture_logs() as lines:
        await desk.handle(app)
        await asyncio.gather(*desk.lifecycle.detached)

    assert isinstance(lines[0]["exc_info"], HookTimeout)


async def test_the_tasks_of_a_detached_hook_outlive_the_request_as_it_does(seen: Recorder) -> None:
    loop = asyncio.get_running_loop()
    before, release = loop.get_task_factory(), asyncio.Event()
    watch_tasks(loop)
    desk = Desk()

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.lifecycle.on_cleanup(lambda: seen.ran.append("cleanup"))

    app = shop(handler)

    @app.after(detached=True)
    async def gathers(gctx: Any, lctx: Any) -> None:
        await asyncio.gather(release.wait(), asyncio.sleep(0))
        seen.ran.append("gathered")

    try:
        await desk.handle(app)
        release.set()
        await asyncio.gather(*desk.lifecycle.detached)
    finally:
        loop.set_task_factory(before)
    assert seen.ran == ["cleanup", "gathered"]


async def test_detached_hooks_beyond_the_limit_are_refused_and_logged(
    seen: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooking, "MAX_DETACHED", 0)
    app = shop(seen.handler)
    app.before(detached=True)(seen.note("never"))

    with capture_logs() as lines:
        reply = await Desk().handle(app)

    assert (reply.body, seen.ran, [line["event"] for line in lines]) == (b"ok", ["handler"], ["detached_hook_refused"])
