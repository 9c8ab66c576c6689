"""Hooks as they run: order, answers, failures, retries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gati_core import App
from gati_core.errors import Forbidden, HandlerError
from gati_core.lifecycle import hooking
from tests.helpers.handling import Desk, problem, shop
from tests.helpers.recorder import Recorder


@pytest.fixture
def seen() -> Recorder:
    return Recorder()


# -- order --------------------------------------------------------------------------------------


async def test_hooks_run_from_wide_to_narrow_and_unwind_in_exact_reverse(seen: Recorder) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        seen.ran.append("handler")
        lctx.after(seen.note("local a1"))
        lctx.after(seen.note("local a2"))

    app = App("shop")
    route = app.post("/x", id="h")(handler)
    for number in (1, 2):
        route.before(seen.note(f"route b{number}"))
        route.after(seen.note(f"route a{number}"))
        app.before(seen.note(f"global b{number}"))
        app.after(seen.note(f"global a{number}"))

    await Desk().handle(app)

    assert seen.ran == [
        *("global b1", "global b2", "route b1", "route b2", "handler"),
        *("local a2", "local a1", "route a2", "route a1", "global a2", "global a1"),
    ]


async def test_hooks_that_before_hooks_register_run_in_their_level(seen: Recorder) -> None:
    def register(gctx: Any, lctx: Any) -> None:
        seen.ran.append("first")
        lctx.before(seen.note("local"))
        lctx.before(seen.note("route, late"), level="route")
        lctx.before(seen.note("global, late"), level="global")

    app = App("shop")
    route = app.post("/x", id="h")(seen.handler)
    app.before(register)
    app.before(seen.note("second"))
    route.before(seen.note("route"))

    await Desk().handle(app)

    assert seen.ran == ["first", "second", "global, late", "route", "route, late", "local", "handler"]


async def test_a_hook_may_register_the_next_one_of_its_level(seen: Recorder) -> None:
    def grow(gctx: Any, lctx: Any) -> None:
        seen.ran.append("grow")
        if len(seen.ran) < 4:
            lctx.before(grow)

    app = shop(seen.handler)
    app.before(grow)

    await Desk().handle(app)

    assert seen.ran == ["grow"] * 4 + ["handler"]


async def test_hooks_without_end_are_stopped_by_the_limit(seen: Recorder) -> None:
    def grow(gctx: Any, lctx: Any) -> None:
        lctx.before(grow)

    app = shop(seen.handler)
    app.before(grow)

    assert ((await Desk().handle(app)).status, seen.ran) == (500, [])


async def test_a_hook_that_removes_itself_does_not_make_the_next_one_vanish(seen: Recorder) -> None:
    def register(gctx: Any, lctx: Any) -> None:
        lctx.before(lambda gctx, lctx: seen.ran.append(f"once {lctx.remove_hook('once')}"), id="once")
        lctx.before(seen.note("taken back"), id="gone")
        lctx.before(seen.note("next"))
        lctx.remove_hook("gone")

    app = shop(seen.handler)
    app.before(register)

    await Desk().handle(app)

    assert seen.ran == ["once False", "next", "handler"]


async def test_a_hook_that_cannot_be_taken_back_any_more_says_so(seen: Recorder) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.after(seen.note("first registered"), id="x")
        lctx.after(lambda gctx, lctx: seen.ran.append(str(lctx.remove_hook("x"))))

    await Desk().handle(shop(handler))

    assert seen.ran == ["False", "first registered"]


async def test_the_position_counts_every_hook_that_has_run(seen: Recorder) -> None:
    positions = []
    app = shop(seen.handler)
    for register in (app.before, app.before, app.after):
        register(lambda gctx, lctx: positions.append(lctx.last_hook_index))

    underway = Desk().begin(app)
    await underway.reply()

    assert (positions, underway.run.lctx.last_hook_index) == ([-1, 0, 1], 2)


# -- answers ------------------------------------------------------------------------------------


async def test_a_before_hook_that_answers_takes_the_place_of_later_hooks_and_handler(seen: Recorder) -> None:
    def answer(gctx: Any, lctx: Any) -> None:
        lctx.response.status(304).end()

    app = shop(seen.handler)
    app.before(seen.note("first"))
    app.before(answer)
    app.before(seen.note("never"))
    app.after(seen.note("after"))

    assert ((await Desk().handle(app)).status, seen.ran) == (304, ["first", "after"])


async def test_a_before_hook_of_the_request_that_answers_does_so_too(seen: Recorder) -> None:
    app = shop(seen.handler)

    @app.before
    def register(gctx: Any, lctx: Any) -> None:
        lctx.before(lambda gctx, lctx: lctx.response.text("cached"))
        lctx.before(seen.note("never"))

    assert ((await Desk().handle(app)).body, seen.ran) == (b"cached", [])


async def test_after_hooks_add_headers_and_change_nothing_else(seen: Recorder) -> None:
    app = shop(seen.handler)
    app.after(lambda gctx, lctx: lctx.response.header("x-served-by", "i"))

    reply = await Desk().handle(app)

    assert ("x-served-by", "i") in reply.headers
    app.after(lambda gctx, lctx: lctx.response.text("other"))
    assert (await Desk().handle(app)).status == 500


@pytest.mark.parametrize("level", ["global", "local"])
async def test_a_failing_after_hook_drops_the_answer(seen: Recorder, level: str) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        if level == "local":
            lctx.after(seen.note("fails", raises=ValueError()))
        res.header("x-half", "done").text("secret")

    app = shop(handler)
    app.after(seen.note("wider"))
    app.catch(seen.catch("catch"))
    if level == "global":
        app.after(seen.note("fails", raises=ValueError()))

    reply = await Desk().handle(app)

    assert (reply.status, problem(reply)["code"], "x-half" in dict(reply.headers)) == (500, "internal", False)
    assert seen.ran == ["fails", "catch"]  # wider after hooks have nothing left to follow


@pytest.mark.parametrize("answers_first", [False, True])
async def test_a_failing_before_hook_keeps_the_handler_from_running(seen: Recorder, answers_first: bool) -> None:
    app = shop(seen.handler)

    @app.before
    def refuse(gctx: Any, lctx: Any) -> None:
        if answers_first:
            lctx.response.text("half an answer")
        raise Forbidden("not you")

    reply = await Desk().handle(app)

    assert (reply.status, problem(reply)["detail"], seen.ran) == (403, "not you", [])


@pytest.mark.parametrize("nonsense", [7, "text", object(), [1]])
async def test_what_a_hook_returns_is_ignored(seen: Recorder, nonsense: object) -> None:
    app = shop(seen.handler)
    app.before(lambda gctx, lctx: nonsense)

    assert (await Desk().handle(app)).body == b"ok"


@pytest.mark.parametrize("observed", [False, True])
async def test_an_awaitable_that_a_plain_hook_returns_is_awaited(seen: Recorder, observed: bool) -> None:
    async def later() -> None:
        await asyncio.sleep(0)
        seen.ran.append("later")

    app = shop(seen.handler)
    app.before(lambda gctx, lctx: later())

    await Desk(observed=observed).handle(app)

    assert seen.ran == ["later", "handler"]


# -- retries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("retries", "status", "runs"), [(0, 500, 1), (1, 500, 2), (2, 200, 3), (9, 200, 3)])
async def test_a_failed_hook_is_tried_again_as_often_as_it_says(
    seen: Recorder, retries: int, status: int, runs: int
) -> None:
    app = shop(seen.handler)

    @app.before(retries=retries, backoff_s=0)
    def third_time(gctx: Any, lctx: Any) -> None:
        seen.ran.append("try")
        if seen.ran.count("try") < 3:
            raise ConnectionError

    reply = await Desk().handle(app)

    assert (reply.status, seen.ran.count("try")) == (status, runs)


async def test_the_pause_between_attempts_doubles_up_to_a_limit(
    seen: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = []

    async def sleep(delay_s: float) -> None:
        pauses.append(delay_s)

    app = shop(seen.handler)
    app.before(retries=6, backoff_s=0.1)(seen.note("try", raises=ValueError()))
    monkeypatch.setattr(hooking.asyncio, "sleep", sleep)  # type: ignore[attr-defined]
    await Desk().begin(app).task

    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]


@pytest.mark.parametrize("error", [HandlerError("no", 409), Forbidden("no")], ids=lambda error: type(error).__name__)
async def test_an_answer_that_a_hook_decided_on_is_not_asked_for_again(seen: Recorder, error: Exception) -> None:
    app = shop(seen.handler)
    app.before(retries=5, backoff_s=0)(seen.note("try", raises=error))

    assert (await Desk().handle(app)).status in (403, 409)
    assert seen.ran == ["try"]
