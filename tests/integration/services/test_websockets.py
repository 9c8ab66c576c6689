"""WebSockets from a handler to a client: messages, closes, events, pace, and what happens when a process goes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gati_core.contexts import Topics
from gati_core.fabric import Fabric, FabricTopics, open_fabric
from gati_core.wire import CHANNEL_WINDOW_BYTES
from tests.helpers.brokers import kill_and_restart
from tests.helpers.notes import Notes, rss_mb
from tests.helpers.processes import FabricUnderTest, running_fabric
from tests.helpers.waiting import eventually
from tests.integration.services.test_streams import (
    BUFFERS,
    MEGABYTE,
    child_after,
    child_of,
    id_of_socket,
)
from tests.integration.services.test_websocket_edge import closed, dial

AT_ONCE_S = 2.0
"""An answer that waited for nothing, on a busy machine."""


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """One process of each kind; tests that kill one of them wait until it is back."""
    environment = {"GATI_WORKER_RESTART_DELAY_S": "0", "GATI_WORKER_DRAIN_GRACE_S": "2"}
    directory = tmp_path_factory.mktemp("live")
    async with running_fabric(directory, packages=["live_app.py"], environment=environment) as fabric:
        yield fabric


@pytest.fixture
async def client(live: FabricUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    async with live.client() as client:
        yield client


@pytest.fixture
async def inside(live: FabricUnderTest) -> AsyncIterator[Fabric]:
    async with open_fabric(live.settings, name="test") as fabric:
        yield fabric


@pytest.fixture
def notes(live: FabricUnderTest) -> Notes:
    return Notes(live.ledger.path)


async def echoes(live: FabricUnderTest) -> bool:
    """Whether a new socket works."""
    async with asyncio.timeout(10), dial(live, "/echo") as socket:
        await socket.send("there?")
        return await socket.recv() == "there?"


# -- messages -----------------------------------------------------------------------------------


async def test_text_and_binary_come_back_in_order(live: FabricUnderTest) -> None:
    messages = [str(number) if number % 2 else number.to_bytes(4) for number in range(600)]
    messages += ["", b"", "ä€😀" * 1000, os.urandom(200_000), "x" * 200_000]
    async with dial(live, "/echo") as socket:

        async def send_all() -> None:
            for message in messages:
                await socket.send(message)

        sending = asyncio.create_task(send_all())
        async with asyncio.timeout(20):
            answers = [await socket.recv() for _ in messages]
        await sending

    assert answers == messages


async def test_a_large_message_behind_a_small_one_does_not_wait(live: FabricUnderTest) -> None:
    async with dial(live, "/mirror") as socket:
        for small, large in ((1000, 300_000), (60_000, 512 * 1024), (50_000, 250_000)):
            began = time.monotonic()
            await socket.send(str(small))
            await socket.send(str(large))
            async with asyncio.timeout(20):
                assert [len(await socket.recv()) for _ in range(2)] == [small, large]
            assert time.monotonic() - began < AT_ONCE_S


async def test_two_hundred_sockets_at_once_lose_and_mix_nothing(live: FabricUnderTest, notes: Notes) -> None:
    count, rounds = 200, 20
    sockets = await asyncio.gather(*(connected(live, "/echo") for _ in range(count)))
    try:
        answers: list[list[str | bytes]] = [[] for _ in sockets]
        for number in range(rounds):
            await asyncio.gather(*(socket.send(f"{at}:{number}") for at, socket in enumerate(sockets)))

        async def collect(at: int) -> None:
            async with asyncio.timeout(30):
                answers[at] = [await sockets[at].recv() for _ in range(rounds)]

        await asyncio.gather(*(collect(at) for at in range(count)))
        assert answers == [[f"{at}:{number}" for number in range(rounds)] for at in range(count)]
    finally:
        await asyncio.gather(*(socket.close() for socket in sockets))
    ids = [id_of_socket(socket) for socket in sockets]
    await eventually(lambda: {line.split(" ")[0] for line in notes.lines()} >= set(ids), within_s=15)
    assert all(notes.of(request_id) == ["echo-cleanup 1000"] for request_id in ids)


async def connected(live: FabricUnderTest, path: str) -> ClientConnection:
    return await dial(live, path)


# -- the handshake and the close ----------------------------------------------------------------


async def test_the_handler_chooses_the_subprotocol_and_adds_headers(live: FabricUnderTest) -> None:
    async with dial(live, "/protocols", subprotocols=["one", "two", "three"]) as socket:  # type: ignore[list-item]
        assert await socket.recv() == "one,two,three"
        assert socket.response is not None
        assert (socket.subprotocol, socket.response.headers["x-chosen"]) == ("three", "last")
        assert (await closed(socket))[0] == 1000


@pytest.mark.parametrize("status", [401, 403, 429, 503])
async def test_a_refusal_has_the_handlers_status_and_a_problem_as_its_body(live: FabricUnderTest, status: int) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await dial(live, f"/refuses/{status}")

    response = caught.value.response
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = json.loads(response.body)
    assert (problem["code"], problem["request_id"]) == ("live.refused", response.headers["x-request-id"])


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1012, 3000, 4999])
async def test_the_handlers_close_code_reaches_the_client(live: FabricUnderTest, code: int) -> None:
    async with dial(live, f"/close/{code}") as socket:
        await socket.send("x")
        assert await closed(socket) == (code, "as asked")


async def test_a_close_code_that_may_not_be_sent_is_the_handlers_failure(live: FabricUnderTest) -> None:
    async with dial(live, "/close/1006") as socket:
        await socket.send("x")
        assert (await closed(socket))[0] == 1011


@pytest.mark.parametrize("code", [1000, 1001, 4321])
async def test_the_clients_close_code_reaches_the_handler(live: FabricUnderTest, notes: Notes, code: int) -> None:
    async with dial(live, "/echo") as socket:
        await socket.close(code, "bye")

    await eventually(lambda: notes.of(id_of_socket(socket)) == [f"echo-cleanup {code}"], within_s=10)


async def test_a_client_that_vanishes_is_a_1006_to_the_handler(live: FabricUnderTest, notes: Notes) -> None:
    socket = await dial(live, "/echo")
    socket.transport.abort()

    await eventually(lambda: notes.of(id_of_socket(socket)) == ["echo-cleanup 1006"], within_s=10)


async def test_a_failure_after_the_handshake_is_a_1011_that_tells_nothing(live: FabricUnderTest) -> None:
    async with dial(live, "/breaks-late") as socket:
        await socket.send("x")
        code, reason = await closed(socket)

    assert code == 1011
    assert "hunter2" not in reason
    assert "RuntimeError" not in reason
    failures = [each for each in live.workers[0].events("handler_failed") if each["handler"] == "breaks_late"]
    assert failures[-1]["request_id"] == id_of_socket(socket)
    assert "hunter2" in str(failures[-1]["exception"])


async def test_a_socket_that_is_open_for_as_long_as_it_may_is_closed_with_1001(
    live: FabricUnderTest, notes: Notes
) -> None:
    async with dial(live, "/brief") as socket:
        await socket.send("still here")
        assert await socket.recv() == "still here"
        assert (await closed(socket, within_s=5))[0] == 1001

    await notes.said(id_of_socket(socket), "brief-cleanup")
    assert notes.of(id_of_socket(socket)) == ["brief-cleanup"]


async def test_a_deaf_handler_is_ended_some_time_after_its_client_left(live: FabricUnderTest, notes: Notes) -> None:
    async with dial(live, "/deaf") as socket:
        pass

    await notes.said(id_of_socket(socket), "deaf-cleanup", within_s=15)
    assert notes.of(id_of_socket(socket)) == ["deaf-cleanup"]


# -- events -------------------------------------------------------------------------------------


async def test_a_handler_waits_for_an_event_of_its_client_and_answers_with_one(live: FabricUnderTest) -> None:
    async with dial(live, "/greeter") as socket:
        request_id = await socket.recv()
        await socket.send("no event")
        await socket.send(json.dumps({"type": "other", "data": 1}))
        await socket.send(json.dumps({"type": "hello", "data": {"name": "ada"}}))
        greeting = json.loads(await socket.recv())
        code, _ = await closed(socket)

    assert (greeting["type"], greeting["request_id"]) == ("greeting", request_id)
    assert (greeting["data"], code) == ({"to": {"name": "ada"}}, 1000)


async def test_events_of_a_socket_cross_processes_both_ways(live: FabricUnderTest, inside: Fabric) -> None:
    topics = Topics(FabricTopics(inside), publisher="test")
    async with dial(live, "/greeter") as socket, dial(live, "/greeter") as other:
        request_id = str(await socket.recv())
        events = topics.local(request_id).events
        waiting = asyncio.create_task(events.wait_for_event("greeting", timeout_s=15))

        def is_greeted() -> bool:
            events.emit_event("hello", "from afar")  # again, until the handler waits for it
            return waiting.done()

        await eventually(is_greeted, within_s=10, every_s=0.1)
        greeting = await waiting
        told = json.loads(await socket.recv())

        assert (greeting.request_id, greeting.data) == (request_id, {"to": "from afar"})
        assert told["data"] == {"to": "from afar"}
        assert await other.recv() != request_id
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await other.recv()
    await topics.aclose()


# -- pace ---------------------------------------------------------------------------------------


async def test_a_handler_that_does_not_read_stops_its_client_and_then_gets_everything(
    live: FabricUnderTest, client: httpx.AsyncClient
) -> None:
    count, padding = 1500, "x" * 60_000
    processes = {"ingress": live.ingresses[0].pid, "worker": child_of(live)}
    before = {name: rss_mb(pid) for name, pid in processes.items()}
    async with dial(live, "/gated") as socket:
        sent: list[int] = []

        async def flood() -> None:
            for number in range(count):
                await socket.send(f"{number}:{padding}")
                sent.append(number)
            await socket.send("-1:")

        flooding = asyncio.create_task(flood())
        await stopped(lambda: len(sent))
        stopped_at = len(sent) * len(padding)
        grown = {name: rss_mb(pid) - before[name] for name, pid in processes.items()}
        assert 0 < stopped_at < 2 * CHANNEL_WINDOW_BYTES + BUFFERS
        assert all(megabytes < 8 for megabytes in grown.values()), grown

        await client.post(f"/gates/{id_of_socket(socket)}")
        async with asyncio.timeout(30):
            assert await socket.recv() == f"all {count}"
        await flooding
    print(f"\na client of a handler that reads nothing stopped after {stopped_at / MEGABYTE:.1f} MB; grew by {grown}")


async def test_a_client_that_does_not_read_stops_its_handler_and_then_gets_everything(
    live: FabricUnderTest, client: httpx.AsyncClient
) -> None:
    count, size = 1500, 60_000
    processes = {"ingress": live.ingresses[0].pid, "worker": child_of(live)}
    before = {name: rss_mb(pid) for name, pid in processes.items()}
    async with dial(live, f"/ticker/{count}/{size}", max_queue=4) as socket:
        progress = f"/progress/{id_of_socket(socket)}"

        async def sent() -> int:
            return int((await client.get(progress)).text)

        await stopped(sent)
        stopped_at = await sent() * size
        grown = {name: rss_mb(pid) - before[name] for name, pid in processes.items()}
        assert 0 < stopped_at < 2 * CHANNEL_WINDOW_BYTES + BUFFERS
        assert all(megabytes < 8 for megabytes in grown.values()), grown

        async with asyncio.timeout(30):
            for number in range(count):
                assert str(await socket.recv()).startswith(f"{number}:")
        assert (await closed(socket))[0] == 1000
    print(f"\na handler whose client reads nothing stopped after {stopped_at / MEGABYTE:.1f} MB; grew by {grown}")


async def stopped(count: object) -> None:
    """Return once the count has not moved for a second."""
    seen: list[int] = []

    async def has_stopped() -> bool:
        now = count()  # type: ignore[operator]
        seen.append(await now if asyncio.iscoroutine(now) else now)
        return len(seen) > 20 and seen[-20] == seen[-1] > 0

    await eventually(has_stopped, within_s=20, every_s=0.05)


# -- processes that go --------------------------------------------------------------------------


async def test_a_worker_that_dies_closes_its_sockets_with_1011(live: FabricUnderTest) -> None:
    child = child_of(live)
    async with dial(live, "/echo") as socket, dial(live, "/deaf") as deaf:
        await socket.send("x")
        await socket.recv()
        os.kill(child, signal.SIGKILL)

        codes = [(await closed(each, within_s=4))[0] for each in (socket, deaf)]

    assert codes == [1011, 1011]
    await child_after(live, child)
    assert await echoes(live)


async def test_a_router_that_restarts_disturbs_no_open_socket(live: FabricUnderTest) -> None:
    async with dial(live, "/echo") as socket:
        live.routers[0].kill()
        for number in range(50):
            await socket.send(str(number))
            assert await socket.recv() == str(number)
        live.routers.insert(0, live.start_router())
        live.routers.pop()
        await live.serving()
        await socket.send("still here")
        assert await socket.recv() == "still here"

    assert await echoes(live)


async def test_a_worker_that_leaves_lets_sockets_finish_and_closes_the_others_with_1012(
    live: FabricUnderTest, notes: Notes
) -> None:
    async with dial(live, "/linger/0.7") as short, dial(live, "/linger/60") as long:
        await asyncio.gather(short.recv(), long.recv())
        leaving = live.workers[0]
        leaving.terminate()
        live.workers.insert(0, live.start_worker("live_app.py"))
        live.workers.pop()

        assert await short.recv() == "done"
        assert (await closed(short))[0] == 1000
        assert (await closed(long))[0] == 1012

    await notes.said(id_of_socket(long), "linger-cleanup")
    assert notes.of(id_of_socket(long)) == ["linger-begun", "linger-cleanup"]
    assert await leaving.wait(within_s=10) == 0
    await live.serving()
    assert await echoes(live)


async def test_a_crash_of_the_broker_loses_nothing_of_a_socket_or_stream_without_ending_it(tmp_path: Path) -> None:
    async with running_fabric(tmp_path, packages=["live_app.py"]) as fabric:
        notes = Notes(fabric.ledger.path)
        # Large messages: a close waits behind all that the kernel holds, which would be a million small ones.
        async with dial(fabric, "/echo") as idle, dial(fabric, "/ticker/10000000/1000") as ticker:
            ticks, lines = 0, 0

            async def follow_socket() -> int:
                nonlocal ticks
                try:
                    async for message in ticker:
                        assert str(message).startswith(f"{ticks}:")
                        ticks += 1
                except ConnectionClosed:
                    pass
                return ticker.close_code or 0

            async def follow_stream() -> None:
                nonlocal lines
                async with fabric.client() as client, client.stream("GET", "/count/10000000") as answer:
                    try:
                        async for line in answer.aiter_lines():
                            assert line == str(lines)
                            lines += 1
                    except httpx.TransportError:
                        pass

            sockets, streams = asyncio.create_task(follow_socket()), asyncio.create_task(follow_stream())
            await eventually(lambda: ticks > 100 and lines > 100, within_s=10)
            await kill_and_restart(fabric.broker)
            seen = ticks, lines
            # Whoever nobody spoke to meanwhile has lost nothing.
            async with asyncio.timeout(15):
                await idle.send("after")
                assert await idle.recv() == "after"
            await eventually(lambda: ticks > seen[0] + 1000 or sockets.done(), within_s=20)
            await eventually(lambda: lines > seen[1] + 1000 or streams.done(), within_s=20)
            if not streams.done():
                streams.cancel()
            await asyncio.wait([streams])
            assert streams.cancelled() or streams.exception() is None
            await idle.close()
            await ticker.close()  # now that its messages have this loop for themselves: all in flight come first
            assert await sockets in (1000, 1011, 1012, 1013)
        await notes.said(id_of_socket(ticker), "ticker", within_s=15)
        await notes.said(id_of_socket(idle), "echo-cleanup", within_s=15)
        await fabric.serving()
        assert await echoes(fabric)
