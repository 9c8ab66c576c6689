"""Code that swallows its cancellation while a request is settled or cleaned up: it is left alone and counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from gati_core import App
from gati_core.fabric.pull import Delivery
from gati_core.lifecycle import bounding, controller, failing, watch_tasks
from tests.helpers.handling import Desk, problem, shop


class Gate:
    """What the deaf code of one test waits for; an event belongs to the loop of its test."""

    event: asyncio.Event


@pytest.fixture(autouse=True)
async def quick(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Short limits, and a loop that tells owners of their tasks, as in a worker."""
    monkeypatch.setattr(failing, "CALLBACK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(bounding, "DEAF_AFTER_S", 0.05)
    monkeypatch.setattr(controller, "_LEAK_GRACE_S", 0.05)
    Gate.event = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    watch_tasks(loop)
    yield
    Gate.event.set()
    loop.set_task_factory(before)


async def deaf(*_: Any) -> None:
    while not Gate.event.is_set():
        try:
            await Gate.event.wait()
        except asyncio.CancelledError:
            continue


def failing_app(register: Callable[[App, Any], None]) -> tuple[App, list[str]]:
    """A handler that fails after `register(app, lctx)`; notes when it is cleaned up."""
    ran: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.compensate(lambda: ran.append("undone"))
        lctx.lifecycle.on_cleanup(lambda: ran.append("cleaned"))
        register(app, lctx)
        raise ValueError

    app = shop(handler)
    return app, ran


@pytest.mark.parametrize(
    "register",
    [
        lambda app, lctx: lctx.compensate(deaf),
        lambda app, lctx: lctx.lifecycle.on_error(deaf),
        lambda app, lctx: lctx.lifecycle.on_cleanup(deaf),
        lambda app, lctx: lctx.catch(deaf, timeout_s=0.05),
    ],
    ids=["compensation", "on_error", "on_cleanup", "catch hook"],
)
async def test_it_does_not_hold_up_the_answer_the_cleanup_or_the_rest(register: Any) -> None:
    app, ran = failing_app(register)
    desk = Desk()

    with capture_logs() as lines:
        reply = await desk.handle(app)

    assert problem(reply)["code"] == "internal"
    assert ran == ["undone", "cleaned"]
    assert len(desk.lifecycle.deaf) == 1
    assert [line["event"] for line in lines].count("cancellation_ignored") == 1

    Gate.event.set()
    await asyncio.wait(desk.lifecycle.deaf)
    assert desk.lifecycle.deaf == set()


async def test_middleware_for_errors_and_alerts_are_bounded_as_well() -> None:
    def fails() -> None:
        raise ValueError("cannot be undone")

    app, ran = failing_app(lambda app, lctx: lctx.compensate(fails))
    app.use_for_errors()(deaf)
    app.on_alert(deaf)
    desk = Desk()

    assert (await desk.handle(app)).status == 500
    assert (ran, len(desk.lifecycle.deaf)) == (["undone", "cleaned"], 2)


async def test_a_detached_hook_does_not_hold_up_who_waits_for_detached_hooks() -> None:
    app, _ = failing_app(lambda app, lctx: None)
    app.before(detached=True, timeout_s=0.05, id="mail")(deaf)
    desk = Desk()

    with capture_logs() as lines:
        await desk.handle(app)
        await asyncio.wait_for(asyncio.wait(desk.lifecycle.detached), 5)

    assert len(desk.lifecycle.deaf) == 1
    assert "detached_hook_failed" in [line["event"] for line in lines]


async def test_what_reacts_to_its_cancellation_is_not_counted() -> None:
    app, ran = failing_app(lambda app, lctx: lctx.compensate(Gate.event.wait))
    desk = Desk()

    assert (await desk.handle(app)).status == 500
    assert (ran, desk.lifecycle.deaf) == (["undone", "cleaned"], set())


async def test_tasks_and_operations_that_do_not_end_with_their_request_are_counted() -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        asyncio.get_running_loop().create_task(deaf())
        lctx.track(deaf())
        await asyncio.sleep(0)
        res.end()

    desk = Desk()
    reply = await desk.handle(shop(handler))

    assert (reply.status, len(desk.lifecycle.deaf)) == (204, 2)


async def test_tasks_that_a_cleanup_callback_forgets_end_with_the_request() -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def leave_one_behind() -> None:
        tasks.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.lifecycle.on_cleanup(leave_one_behind)
        res.end()

    with capture_logs() as lines:
        await Desk().handle(shop(handler))

    assert tasks[0].cancelled()
    assert [line["event"] for line in lines] == ["tasks_leaked"]


async def test_a_place_is_freed_once() -> None:
    freed: list[int] = []

    class Consumer:
        def _release(self) -> None:
            freed.append(1)

    delivery = Delivery(Consumer(), b"s", b"a", b"", None)  # type: ignore[arg-type]  # all that it asks of one
    delivery.release()
    delivery.release()

    assert freed == [1]
