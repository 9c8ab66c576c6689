"""Handlers that are cancelled: who cancelled, what the client hears, and handlers that do not obey."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from gati_core import App
from gati_core.errors import ClientGone, DeadlineExceeded, HandlerTimeout, ShuttingDown
from tests.helpers.handling import WITHIN_S, Desk, Underway, problem, shop

REASONS = ["deadline", "client_gone", "leaving"]


class Waiting:
    """A handler that waits until it is cancelled, with everything registered that can be."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ran: list[str] = []
        self.told: list[BaseException] = []

    async def __call__(self, req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        self.register(lctx)
        self.started.set()
        await asyncio.Event().wait()

    def register(self, lctx: Any) -> None:
        lctx.lifecycle.on_timeout(lambda: self.ran.append(f"timeout {lctx.lifecycle.is_timed_out}"))
        lctx.lifecycle.on_error(lambda error: self.ran.append("error"))
        lctx.register_compensating_action(lambda: self.ran.append("undone"))
        lctx.catch(lambda error, gctx, lctx: self.told.append(error))
        lctx.lifecycle.on_cleanup(lambda: self.ran.append("cleanup"))

    async def begin(self, desk: Desk, app: App | None = None) -> Underway:
        """Start it, and wait until it waits."""
        underway = desk.begin(app or shop(self, id="h"))
        with anyio.fail_after(WITHIN_S):
            await self.started.wait()
        return underway


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


@pytest.mark.parametrize(
    ("reason", "is_own_limit", "status", "code", "told"),
    [
        ("deadline", False, 504, "request.deadline_exceeded", DeadlineExceeded),
        ("deadline", True, 504, "handler.timeout", HandlerTimeout),
        ("leaving", False, 503, "ingress.shutting_down", ShuttingDown),
    ],
)
async def test_the_answer_to_a_cancelled_request_says_why(
    waiting: Waiting, reason: str, is_own_limit: bool, status: int, code: str, told: type[Exception]
) -> None:
    underway = await waiting.begin(Desk())
    underway.cancel(reason, is_own_limit=is_own_limit)
    reply = await underway.reply()

    assert reply is not None
    assert (reply.status, problem(reply)["code"], reply.route) == (status, code, "/orders/{id}")
    assert [type(error) for error in waiting.told] == [told]


async def test_nobody_is_answered_when_the_client_is_gone(waiting: Waiting) -> None:
    underway = await waiting.begin(Desk())
    underway.cancel("client_gone")

    assert await underway.reply() is None
    assert isinstance(waiting.told[0], ClientGone)


@pytest.mark.parametrize("reason", REASONS)
async def test_a_cancelled_request_is_undone_and_cleaned_up_once(waiting: Waiting, reason: str) -> None:
    underway = await waiting.begin(Desk())
    underway.cancel(reason)
    await underway.reply()

    timeout = ["timeout True"] if reason == "deadline" else []
    assert waiting.ran == [*timeout, "error", "undone", "cleanup"]
    assert underway.control.is_settling


async def test_only_the_late_are_logged_and_no_stack_with_them(waiting: Waiting) -> None:
    with capture_logs() as lines:
        underway = await waiting.begin(Desk())
        underway.cancel("deadline")
        await underway.reply()

    timed_out = [line for line in lines if line["event"] == "handler_timed_out"]
    assert [(line["handler"], line["log_level"], "exc_info" in line) for line in timed_out] == [("h", "warning", False)]


async def test_a_handler_that_cancels_itself_has_failed() -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        raise asyncio.CancelledError

    with capture_logs() as lines:
        reply = await Desk().handle(shop(handler))

    assert (reply.status, [line["event"] for line in lines]) == (500, ["handler_cancelled_itself"])


@pytest.mark.parametrize("ending", ["raises", "returns"])
async def test_a_handler_that_cancels_its_own_task_and_goes_on_loses_no_cleanup(ending: str) -> None:
    ran: list[str] = []

    async def slowly(name: str) -> None:
        await asyncio.sleep(0)
        ran.append(name)

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.lifecycle.on_cleanup(lambda: slowly("first"))
        lctx.lifecycle.on_cleanup(lambda: slowly("second"))
        lctx.catch(lambda error, gctx, lctx: slowly("catch"))
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if ending == "raises":
            raise ValueError
        res.text("ok")

    reply = await Desk().handle(shop(handler))

    assert (reply.status, ran) == (
        (500, ["catch", "first", "second"]) if ending == "raises" else (200, ["first", "second"])
    )


async def test_a_cancelled_cleanup_gives_every_callback_its_turn() -> None:
    ran: list[str] = []
    waits = asyncio.Event()

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        async def hangs() -> None:
            waits.set()
            await asyncio.Event().wait()

        lctx.lifecycle.on_cleanup(hangs)
        lctx.lifecycle.on_cleanup(lambda: ran.append("second"))

    underway = Desk().begin(shop(handler))
    await waits.wait()
    underway.task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await underway.reply()
    assert ran == ["second"]


@pytest.mark.parametrize("reason", REASONS)
async def test_an_answer_that_was_given_before_the_cancellation_stands(reason: str) -> None:
    started = asyncio.Event()

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.text("done")
        started.set()
        await asyncio.Event().wait()

    underway = Desk().begin(shop(handler))
    await started.wait()
    underway.cancel(reason)
    reply = await underway.reply()

    assert reply is not None
    assert (reply.status, reply.body) == (200, b"done")
