"""What would end a program ends only the task in which it was raised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from gati_core.contexts import GlobalContext, Instance, ProcessLifecycle, TopicHandler, TopicHost, Topics, watch_tasks
from gati_core.contexts._tasks import unowned_task
from gati_core.errors import StartupFailed
from gati_testing import eventually
from gati_testing._memory_topics import MemoryTopics
from tests.helpers.handling import Desk, shop

ENDS = (SystemExit(4), KeyboardInterrupt())


@pytest.fixture(autouse=True)
async def watched() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    watch_tasks(loop)
    yield
    loop.set_task_factory(before)


async def ending(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


@pytest.mark.parametrize("error", ENDS, ids=repr)
@pytest.mark.parametrize("start", [asyncio.create_task, lambda work: unowned_task(work, "spawned")])
async def test_a_task_fails_with_an_error_that_says_so(error: BaseException, start: Callable[[Any], Any]) -> None:
    task = start(ending(error))

    with pytest.raises(RuntimeError, match=f"{type(error).__name__} was raised where it may not end the process"):
        await task


async def test_other_errors_results_and_cancellations_pass_as_they_are() -> None:
    async def work(outcome: Any) -> Any:
        await asyncio.sleep(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    assert await asyncio.create_task(work(5)) == 5
    with pytest.raises(ValueError, match="no"):
        await asyncio.create_task(work(ValueError("no")))
    task = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    never_begun = asyncio.create_task(work(1))
    never_begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await never_begun


async def test_a_tracked_operation_and_a_forgotten_task_of_a_handler_end_alone() -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        operation = lctx.track(ending(SystemExit(4)))
        forgotten = asyncio.create_task(ending(SystemExit(5)))
        await asyncio.wait([forgotten])
        with pytest.raises(RuntimeError, match="SystemExit"):
            await operation
        res.text("still here")

    reply = await Desk().handle(shop(handler))

    assert reply.body == b"still here"


@pytest.mark.parametrize("is_async", [True, False])
async def test_hooks_of_the_process_fail_as_with_any_other_error(is_async: bool) -> None:
    lifecycle = ProcessLifecycle()

    async def leave(gctx: Any) -> None:
        raise SystemExit(3)

    def leave_at_once(gctx: Any) -> None:
        raise SystemExit(3)

    lifecycle.on_startup(leave if is_async else leave_at_once)

    with pytest.raises(StartupFailed, match="SystemExit"):
        await lifecycle.run_startup(GlobalContext(Instance("i", "shop", "p", "host", 0)))


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_subscriber_goes_on_with_the_next_event(is_async: bool) -> None:
    seen: list[Any] = []

    async def hear(event: Any, gctx: Any) -> None:
        note(event, gctx)

    def note(event: Any, gctx: Any) -> None:
        seen.append(event.payload)
        if event.payload == 1:
            raise SystemExit(3)

    port = MemoryTopics()
    topics = Topics(port, publisher="p")
    handler = TopicHandler(topic="news", function=hear if is_async else note)
    host = TopicHost(topics=topics, port=port, app="shop", handlers=[handler], gctx=None)
    await host.start()
    with capture_logs() as lines:
        topics.publish("news", 1)
        topics.publish("news", 2)
        await eventually(lambda: seen == [1, 2], within_s=5)
        await host.aclose()

    assert [line["event"] for line in lines] == ["topic_handler_failed"]


async def test_a_callback_goes_on_with_the_next_event() -> None:
    seen: list[Any] = []

    def callback(event: Any) -> None:
        seen.append(event.payload)
        raise KeyboardInterrupt

    topics = Topics(MemoryTopics(), publisher="p")
    with capture_logs() as lines:
        subscription = await topics.subscribe("news", callback)
        topics.publish("news", 1)
        topics.publish("news", 2)
        await eventually(lambda: seen == [1, 2], within_s=5)
        await subscription.aclose()
        await topics.aclose()

    assert [line["event"] for line in lines] == ["topic_callback_failed"] * 2


async def test_a_subscriber_that_swallows_its_cancellation_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gati_core.contexts._topic_host._STOP_WITHIN_S", 0.05)
    monkeypatch.setattr("gati_core.contexts._topic_host._CANCEL_WITHIN_S", 0.05)
    began, release = asyncio.Event(), asyncio.Event()

    async def deaf(event: Any, gctx: Any) -> None:
        began.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    port = MemoryTopics()
    topics = Topics(port, publisher="p")
    host = TopicHost(
        topics=topics, port=port, app="shop", handlers=[TopicHandler(topic="news", function=deaf)], gctx=None
    )
    await host.start()
    topics.publish("news", 1)
    await began.wait()

    with capture_logs() as lines:
        await asyncio.wait_for(host.aclose(), timeout=5)

    assert [line["event"] for line in lines] == ["topic_handler_abandoned"]
    release.set()


async def test_emitting_an_event_of_the_request_may_be_awaited_or_not() -> None:
    topics = Topics(MemoryTopics(), publisher="p")
    events = topics.local("r-1").events
    waiting = asyncio.create_task(events.wait_for_event("paid", timeout_s=5))
    await asyncio.sleep(0)

    await events.emit_event("paid", 5)
    events.emit_event("other")

    assert (await waiting).data == 5
    await topics.aclose()


async def test_a_level_that_does_not_exist_is_refused_and_named() -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        with pytest.raises(ValueError, match="level 'bind' is none of debug, info"):
            lctx.log("hello", level="bind")
        lctx.log("hello", level="warning")
        res.end()

    with capture_logs() as lines:
        assert (await Desk().handle(shop(handler))).status == 204
    assert [(line["log_level"], line["event"]) for line in lines] == [("warning", "hello")]
