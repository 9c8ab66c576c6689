"""Tasks that a handler starts: waited for, tracked, left behind on purpose, or leaked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from gati_core.contexts import MAX_OPERATIONS, LocalContext
from gati_core.errors import RegistrationError
from gati_core.lifecycle import controller, outliving_request, watch_tasks
from tests.helpers.handling import Desk, descriptor, shop


@pytest.fixture(autouse=True)
async def watched() -> Any:
    """The loop tells owners of their tasks, as in a worker."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    watch_tasks(loop)
    yield
    loop.set_task_factory(before)


async def forever() -> None:
    await asyncio.Event().wait()


def leaks(lines: list[Any]) -> list[list[str]]:
    return [line["tasks"] for line in lines if line["event"] == "tasks_leaked"]


async def test_a_task_that_outlives_its_request_is_named_and_cancelled() -> None:
    tasks: list[asyncio.Task[None]] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        tasks.append(asyncio.create_task(forever()))
        res.text("ok")

    with capture_logs() as lines:
        reply = await Desk().handle(shop(handler))

    assert (reply.body, leaks(lines), tasks[0].cancelled()) == (b"ok", [["forever"]], True)


async def test_so_is_the_task_of_a_task_and_of_a_hook() -> None:
    async def parent() -> None:
        asyncio.get_running_loop().create_task(forever())

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        await asyncio.create_task(parent())

    app = shop(handler)
    app.before(lambda gctx, lctx: asyncio.ensure_future(forever()) and None)
    underway = Desk().begin(app)
    with capture_logs() as lines:
        await underway.reply()

    assert leaks(lines) == [["forever"]]
    assert not underway.run.tasks


@pytest.mark.parametrize("reason", ["deadline", "client_gone"])
async def test_so_are_the_tasks_of_a_cancelled_handler(reason: str) -> None:
    started = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        tasks.append(asyncio.create_task(forever()))
        started.set()
        await forever()

    underway = Desk().begin(shop(handler))
    await started.wait()
    underway.cancel(reason)
    await underway.reply()

    assert tasks[0].cancelled()


async def test_tasks_that_were_waited_for_are_no_leak() -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))

    with capture_logs() as lines:
        await Desk().handle(shop(handler))

    assert lines == []


async def test_a_task_may_outlive_the_request_when_somebody_else_owns_it() -> None:
    release = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        with outliving_request():
            tasks.append(asyncio.create_task(release.wait()))
        tasks.append(asyncio.create_task(forever()))

    with capture_logs() as lines:
        await Desk().handle(shop(handler))
    release.set()

    assert (await tasks[0], tasks[1].cancelled(), leaks(lines)) == (True, True, [["forever"]])


async def test_no_request_is_blamed_for_anothers_tasks() -> None:
    both = asyncio.Barrier(2)

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        if lctx.request_id == "bad":
            asyncio.create_task(forever())  # noqa: RUF006 - that is the mistake
        await both.wait()

    desk, app = Desk(), shop(handler)
    with capture_logs() as lines:
        await asyncio.gather(desk.handle(app, request_id="bad"), desk.handle(app, request_id="good"))

    assert [line["request_id"] for line in lines if line["event"] == "tasks_leaked"] == ["bad"]


async def test_a_leaked_task_that_does_not_obey_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "_LEAK_GRACE_S", 0.01)
    release = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def deaf() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        tasks.append(asyncio.create_task(deaf()))
        await asyncio.sleep(0)

    await Desk().handle(shop(handler))

    assert not tasks[0].done()
    release.set()
    await tasks[0]


async def test_the_tasks_of_catch_hooks_of_an_abandoned_run_are_found_too() -> None:
    started, release = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        started.set()
        try:
            await release.wait()
        except asyncio.CancelledError:
            await release.wait()

    app = shop(handler)
    app.catch(lambda error, gctx, lctx: tasks.append(asyncio.create_task(forever())))
    underway = Desk().begin(app)
    await started.wait()
    underway.cancel("deadline")
    await asyncio.sleep(0)
    underway.run.abandon()
    await underway.run.give_up()
    await underway.run.cleanup()

    assert tasks[0].cancelled()
    release.set()
    assert await underway.reply() is None


# -- tracked operations -------------------------------------------------------------------------


async def test_a_tracked_operation_is_ended_with_the_request_and_is_no_leak() -> None:
    tasks: list[asyncio.Task[None]] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        tasks.append(lctx.track(forever(), "query"))

    with capture_logs() as lines:
        await Desk().handle(shop(handler))

    assert (tasks[0].cancelled(), lines) == (True, [])


async def test_an_operation_is_pending_until_it_ends_in_one_of_two_ways() -> None:
    async def fails() -> None:
        raise ValueError("no")

    async def fails_unreadably() -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")

    async def gives() -> int:
        return 7

    lctx = LocalContext(descriptor())
    works = [lctx.track(gives(), "good"), lctx.track(fails(), "bad"), lctx.track(forever(), "cut")]
    before = [(each.id, each.status) for each in lctx.operations]
    works[2].cancel()
    await asyncio.gather(*works, return_exceptions=True)

    assert before == [("good", "pending"), ("bad", "pending"), ("cut", "pending")]
    assert [(each.status, each.result, each.error) for each in lctx.operations] == [
        ("fulfilled", 7, None),
        ("rejected", None, "ValueError: no"),
        ("rejected", None, "cancelled"),
    ]


async def test_operations_without_a_name_are_counted_around_those_that_have_one() -> None:
    lctx = LocalContext(descriptor())
    for name in (None, "op-3", None, None):
        lctx.track(asyncio.sleep(0), name)

    assert [each.id for each in lctx.operations] == ["op-1", "op-3", "op-4", "op-5"]
    await lctx.operations.aclose()


async def test_an_id_that_is_taken_is_refused() -> None:
    lctx = LocalContext(descriptor())
    lctx.track(asyncio.sleep(0), "query")

    with pytest.raises(RegistrationError, match="'query' is taken"):
        lctx.track(asyncio.sleep(0), "query")
    await lctx.operations.aclose()


async def test_one_request_tracks_a_thousand_operations_and_not_more() -> None:
    lctx = LocalContext(descriptor())
    for _ in range(MAX_OPERATIONS):
        lctx.track(asyncio.sleep(0))

    with pytest.raises(RegistrationError, match=str(MAX_OPERATIONS)):
        lctx.track(asyncio.sleep(0))
    await lctx.operations.aclose()


async def test_a_thread_cannot_track_and_is_told_why() -> None:
    refused: list[str] = []

    def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        try:
            lctx.track(forever())
        except RegistrationError as exc:
            refused.append(str(exc))

    await Desk().handle(shop(handler))

    assert "event loop" in refused[0]


async def test_an_operation_that_began_after_a_snapshot_is_forgotten_and_still_ended() -> None:
    lctx = LocalContext(descriptor())
    early = lctx.track(forever(), "early")
    token = lctx.snapshot()
    late = lctx.track(forever(), "late")

    lctx.restore(token)
    again = lctx.track(forever(), "late")
    await lctx.operations.aclose()

    assert [each.id for each in lctx.operations] == ["early", "late"]
    assert [task.cancelled() for task in (early, late, again)] == [True, True, True]


async def test_an_operation_goes_on_under_its_id_after_a_restore() -> None:
    lctx = LocalContext(descriptor())
    release = asyncio.Event()
    task = lctx.track(release.wait(), "query")
    token = lctx.snapshot()

    lctx.restore(token)
    release.set()
    await task

    assert lctx.operations["query"].status == "fulfilled"


async def test_names_are_found_and_counted() -> None:
    lctx = LocalContext(descriptor())

    assert ("x" in lctx.operations, len(lctx.operations)) == (False, 0)


@pytest.fixture(autouse=True)
def no_loop_complaints(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """A refused coroutine is closed, so that Python does not say that nobody awaited it."""
    yield
    assert [str(each.message) for each in recwarn] == []
