"""Virtual time: sleeping costs nothing, order is kept, and what cannot end is told."""

from __future__ import annotations

import asyncio
import doctest
import itertools
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from gati_testing import _virtual_loop
from gati_testing._virtual_loop import (
    STARTS_AT_S,
    VirtualDeadlock,
    VirtualLoop,
    VirtualLoopStuck,
    VirtualTimeError,
    VirtualTimeLimit,
)


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    """A loop that is left empty."""
    virtual = VirtualLoop()
    virtual.start()
    yield virtual
    assert virtual.close() == []


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What a blocked thread waits for; set at the end at the latest."""
    event = threading.Event()
    yield event
    event.set()


# -- the clock --------------------------------------------------------------------------------------


def test_the_example_is_true() -> None:
    assert doctest.testmod(_virtual_loop).failed == 0


@pytest.mark.parametrize("sleep", [asyncio.sleep, anyio.sleep])
def test_an_hour_passes_in_no_time(loop: VirtualLoop, sleep: Callable[[float], Coroutine[Any, Any, None]]) -> None:
    began = time.monotonic()

    loop.call(sleep(3600))

    assert loop.now() == STARTS_AT_S + 3600
    assert loop.now_ms() == round(STARTS_AT_S + 3600) * 1000
    assert time.monotonic() - began < 2


def test_timers_fire_in_the_order_of_their_time(loop: VirtualLoop) -> None:
    async def sleepers() -> list[tuple[float, float]]:
        woken: list[tuple[float, float]] = []

        async def sleeper(delay_s: float) -> None:
            await anyio.sleep(delay_s)
            woken.append((delay_s, loop.now() - STARTS_AT_S))

        async with anyio.create_task_group() as tasks:
            for delay_s in (30, 0.25, 86_000, 7, 0.5, 7200):
                tasks.start_soon(sleeper, delay_s)
        return woken

    assert loop.call(sleepers()) == [(each, pytest.approx(each)) for each in (0.25, 0.5, 7, 30, 7200, 86_000)]


def test_timeouts_of_asyncio_and_anyio_follow_the_virtual_clock(loop: VirtualLoop) -> None:
    async def timeouts() -> list[float]:
        at = [loop.now()]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.sleep(61)
        at.append(loop.now())
        with pytest.raises(TimeoutError), anyio.fail_after(600):
            await anyio.Event().wait()
        at.append(loop.now())
        with anyio.move_on_after(5) as scope:
            await anyio.sleep(4)
        assert not scope.cancelled_caught
        at.append(loop.now())
        slow = asyncio.create_task(asyncio.sleep(100))
        done, pending = await asyncio.wait({slow}, timeout=10)
        assert (done, pending) == (set(), {slow})
        at.append(loop.now())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow, 30)
        at.append(loop.now())
        return [after - before for before, after in itertools.pairwise(at)]

    assert loop.call(timeouts()) == [60, 600, 4, 10, 30]


def test_time_stands_still_between_calls(loop: VirtualLoop) -> None:
    ticks = []

    async def tick() -> None:
        while True:
            await asyncio.sleep(1)
            ticks.append(loop.now())

    async def begin() -> asyncio.Task[None]:
        return asyncio.create_task(tick())

    async def end(task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait({task})

    ticking = loop.call(begin())
    assert (loop.now(), ticks) == (STARTS_AT_S, [])

    loop.call(asyncio.sleep(3.5))

    assert len(ticks) == 3
    loop.call(end(ticking))


# -- results ----------------------------------------------------------------------------------------


def test_a_call_returns_the_result_and_raises_the_error(loop: VirtualLoop) -> None:
    async def fails() -> None:
        raise LookupError("nothing there")

    assert loop.call(asyncio.sleep(1, "slept")) == "slept"
    with pytest.raises(LookupError, match="nothing there"):
        loop.call(fails())


def test_a_timeout_of_the_coroutine_is_not_taken_for_one_of_the_call(loop: VirtualLoop) -> None:
    async def fails() -> None:
        raise TimeoutError("the handler's")

    with pytest.raises(TimeoutError, match="the handler's"):
        loop.call(fails())


def test_the_loop_outlives_an_exit(loop: VirtualLoop) -> None:
    async def leaves() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        loop.call(leaves())

    assert loop.call(asyncio.sleep(1, "alive")) == "alive"


async def test_async_tests_may_overlap_their_calls(loop: VirtualLoop) -> None:
    async def meet(barrier: asyncio.Barrier) -> float:
        async with barrier:
            await asyncio.sleep(60)
        return loop.now()

    barrier = asyncio.Barrier(3)

    assert len(await asyncio.gather(*(loop.acall(meet(barrier)) for _ in range(3)))) == 3


async def test_a_cancelled_call_is_cancelled_inside(loop: VirtualLoop) -> None:
    began, cancelled = threading.Event(), threading.Event()

    async def waits(sock: socket.socket) -> None:
        began.set()
        try:
            await asyncio.get_running_loop().sock_recv(sock, 1)  # really waits: no deadlock, no timer
        finally:
            cancelled.set()

    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        calling = asyncio.create_task(loop.acall(waits(left)))
        await anyio.to_thread.run_sync(began.wait, 10)

        calling.cancel()

        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await anyio.to_thread.run_sync(cancelled.wait, 10)


# -- threads and sockets ----------------------------------------------------------------------------


async def in_anyio_thread(work: Callable[[], object]) -> object:
    return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)


async def in_executor(work: Callable[[], object]) -> object:
    return await asyncio.get_running_loop().run_in_executor(None, work)


RUNNERS = [in_anyio_thread, asyncio.to_thread, in_executor]


@pytest.mark.parametrize("run", RUNNERS)
def test_a_thread_is_waited_for_and_takes_no_virtual_time(
    loop: VirtualLoop, run: Callable[[Callable[[], object]], Coroutine[Any, Any, object]]
) -> None:
    async def works() -> tuple[object, float]:
        with anyio.fail_after(1000):
            done = await run(lambda: threading.Event().wait(0.05) or "worked")
        return done, loop.now()

    assert loop.call(works()) == ("worked", STARTS_AT_S)


@pytest.mark.parametrize("run", RUNNERS)
def test_a_timer_beside_a_blocked_thread_fires_after_as_much_real_time(
    loop: VirtualLoop,
    release: threading.Event,
    run: Callable[[Callable[[], object]], Coroutine[Any, Any, object]],
) -> None:
    """And then the thread is abandoned: it holds up nothing any more."""

    async def hangs() -> float:
        with pytest.raises(TimeoutError), anyio.fail_after(0.2):
            await run(lambda: release.wait(50))
        after = loop.now()
        await asyncio.sleep(3600)
        return after

    began = time.monotonic()

    assert loop.call(hangs()) == pytest.approx(STARTS_AT_S + 0.2)
    assert 0.15 < time.monotonic() - began < 20


def test_a_thread_that_calls_back_does_not_stop_the_clock(loop: VirtualLoop) -> None:
    def work() -> str:
        anyio.from_thread.run(anyio.sleep, 3600)
        return anyio.from_thread.run_sync(lambda: "called back")

    async def works() -> tuple[str, float]:
        return await anyio.to_thread.run_sync(work), loop.now()

    assert loop.call(works()) == ("called back", STARTS_AT_S + 3600)


def test_waiting_for_a_free_thread_is_virtual_and_the_limit_holds(loop: VirtualLoop) -> None:
    limiter_at: list[int] = []

    async def works() -> None:
        limiter = anyio.CapacityLimiter(2)

        def work() -> None:
            limiter_at.append(limiter.borrowed_tokens)
            anyio.from_thread.run(anyio.sleep, 600)

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(lambda: anyio.to_thread.run_sync(work, limiter=limiter))

    loop.call(works())

    assert max(limiter_at) == 2
    assert loop.now() == STARTS_AT_S + 1800


def test_open_sockets_are_waited_for(loop: VirtualLoop) -> None:
    async def talks() -> tuple[bytes, float]:
        left, right = socket.socketpair()
        with left, right:
            left.setblocking(False)
            sending = threading.Timer(0.05, right.sendall, [b"x"])
            sending.start()
            with anyio.fail_after(1000):
                data = await asyncio.get_running_loop().sock_recv(left, 1)
            sending.join()
        return data, loop.now()

    assert loop.call(talks()) == (b"x", STARTS_AT_S)


async def test_other_loops_keep_their_threads_and_their_time(loop: VirtualLoop) -> None:
    before = loop.now()

    assert await anyio.to_thread.run_sync(lambda: "real") == "real"
    assert await anyio.to_thread.run_sync(lambda: anyio.from_thread.run_sync(lambda: "back")) == "back"
    assert loop.now() == before


# -- what cannot end --------------------------------------------------------------------------------


def test_a_deadlock_is_told_with_the_line_that_waits(loop: VirtualLoop) -> None:
    async def waits_for_ever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(VirtualDeadlock, match=r"test_virtual_clock\.py:\d+ in .*waits_for_ever"):
        loop.call(waits_for_ever())

    assert loop.call(asyncio.sleep(1, "alive")) == "alive"


def test_a_deadlocked_call_may_clean_up(loop: VirtualLoop) -> None:
    cleaned = []

    async def waits_for_ever() -> None:
        try:
            await anyio.Event().wait()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(10)
            cleaned.append(loop.now())

    with pytest.raises(VirtualDeadlock):
        loop.call(waits_for_ever())

    assert cleaned == [STARTS_AT_S + 10]


def test_a_wake_up_by_a_thread_of_its_own_is_no_deadlock(loop: VirtualLoop) -> None:
    async def woken() -> str:
        event, running = asyncio.Event(), asyncio.get_running_loop()
        threading.Timer(0.02, running.call_soon_threadsafe, [event.set]).start()
        await event.wait()
        return "woken"

    assert loop.call(woken()) == "woken"


def test_virtual_time_is_bounded() -> None:
    async def for_ever() -> None:
        for _ in itertools.count():
            await asyncio.sleep(10)

    with VirtualLoop(limit_s=1000) as loop:
        with pytest.raises(VirtualTimeLimit, match="more than 1000 virtual seconds"):
            loop.call(for_ever())

        loop.call(asyncio.sleep(999))

        assert loop.now() == pytest.approx(STARTS_AT_S + 1999)


def test_a_call_that_swallows_its_cancellation_is_given_up_and_reported() -> None:
    asked = []

    async def stubborn() -> None:
        while len(asked) < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                asked.append(loop.now())

    loop = VirtualLoop()
    loop.start()

    with pytest.raises(VirtualDeadlock):
        loop.call(stubborn())

    (leaked,) = loop.close()
    assert "stubborn" in leaked


def test_a_blocked_loop_is_told_with_the_line_that_blocks(loop: VirtualLoop, release: threading.Event) -> None:
    async def blocks() -> None:
        release.wait(50)

    with pytest.raises(VirtualLoopStuck, match=r"(?s)the loop itself is busy:.*release\.wait\(50\)"):
        loop.call(blocks(), within_s=0.3)

    release.set()


def test_waiting_for_a_thread_that_never_ends_is_told(loop: VirtualLoop, release: threading.Event) -> None:
    async def waits() -> None:
        await anyio.to_thread.run_sync(release.wait, 50)

    with pytest.raises(VirtualLoopStuck, match="1 job in threads"):
        loop.call(waits(), within_s=0.3)

    release.set()


# -- the end ----------------------------------------------------------------------------------------


def test_tasks_left_behind_are_cancelled_and_reported() -> None:
    cancelled = []

    async def lingers() -> None:
        try:
            await asyncio.sleep(50_000)
        finally:
            cancelled.append(True)

    async def leaks() -> None:
        leaked = asyncio.create_task(lingers(), name="audit")
        await asyncio.sleep(0)
        assert not leaked.done()

    with pytest.warns(ResourceWarning, match=r"task 'audit' waits at .*lingers"), VirtualLoop() as loop:
        loop.call(leaks())

    assert cancelled == [True]


def test_a_closed_loop_takes_no_calls() -> None:
    with VirtualLoop() as loop:
        pass

    assert loop.close() == []
    with pytest.raises(RuntimeError, match="does not run"):
        loop.call(asyncio.sleep(1))


def test_a_loop_that_was_never_started_closes() -> None:
    assert VirtualLoop().close() == []


def test_a_call_from_within_the_loop_is_refused(loop: VirtualLoop) -> None:
    async def calls() -> None:
        loop.call(asyncio.sleep(1))

    with pytest.raises(RuntimeError, match="await the coroutine instead"):
        loop.call(calls())


def test_a_call_that_cancels_itself_says_so(loop: VirtualLoop) -> None:
    async def cancels() -> None:
        raise asyncio.CancelledError

    with pytest.raises(VirtualTimeError, match="cancelled from within"):
        loop.call(cancels())


def test_something_else_than_a_coroutine_is_refused(loop: VirtualLoop) -> None:
    with pytest.raises(TypeError, match="expected a coroutine"):
        loop.call(asyncio.sleep)  # type: ignore[arg-type]
