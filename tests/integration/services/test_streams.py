"""Streamed answers from a handler to a client: order, pace, and what happens when either of them is gone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection

from gati_core.fabric import Fabric, open_fabric
from gati_core.wire import CHANNEL_PROBE_S, CHANNEL_WINDOW_BYTES
from tests.helpers.notes import Notes, now_ms, rss_mb, trace_of
from tests.helpers.processes import FabricUnderTest, running_fabric
from tests.helpers.waiting import eventually
from tests.integration.services.test_streaming_edge import Reading
from tests.integration.services.test_websocket_edge import dial

MEGABYTE = 1024 * 1024
BUFFERS = 24 * MEGABYTE
"""Most that the kernel holds of one connection between two processes of this machine, generously."""
CANCELLED_WITHIN_MS = 1000
"""Four times what is promised: the machine that runs the tests may be busy."""


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """One process of each kind; tests that kill one of them wait until it is back."""
    environment = {"GATI_WORKER_RESTART_DELAY_S": "0", "GATI_WORKER_DRAIN_GRACE_S": "3"}
    directory = tmp_path_factory.mktemp("live")
    async with running_fabric(directory, packages=["live_app.py"], environment=environment) as fabric:
        yield fabric


@pytest.fixture
async def client(live: FabricUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    async with live.client(connections=300) as client:
        yield client


@pytest.fixture
async def inside(live: FabricUnderTest) -> AsyncIterator[Fabric]:
    async with open_fabric(live.settings, name="test") as fabric:
        yield fabric


@pytest.fixture
def notes(live: FabricUnderTest) -> Notes:
    return Notes(live.ledger.path)


def get(path: str, *, method: str = "GET", flags: str = "") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", *([f"x-gati-flags: {flags}"] if flags else [])]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def id_of(head: bytes) -> str:
    """The request id in the head of an answer."""
    return head.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()


def id_of_socket(socket: ClientConnection) -> str:
    """The request id in the answer to a handshake."""
    assert socket.response is not None
    return socket.response.headers["x-request-id"]


def child_of(fabric: FabricUnderTest) -> int:
    """The newest process that serves the package."""
    return int(fabric.workers[0].events("package_started")[-1]["pid"])


async def child_after(fabric: FabricUnderTest, old: int) -> None:
    """Return once another child serves the package and the router knows."""
    await eventually(lambda: child_of(fabric) != old, within_s=20)

    def is_known() -> bool:
        return bool(fabric.routers[0].events("catalogue_rebuilt")[-1]["live_pools"])

    await eventually(is_known, within_s=20)


# -- what arrives -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "part"),
    [(0, 1), (1, 1), (5000, 7), (65536, 65536), (65537, 65537), (3 * MEGABYTE, 1000), (20 * MEGABYTE + 1, 300_000)],
)
async def test_every_byte_arrives_once_and_in_its_place(client: httpx.AsyncClient, size: int, part: int) -> None:
    seed = f"s{size}-{part}"
    digest, length = hashlib.sha256(), 0

    async with client.stream("GET", f"/digest/{seed}/{size}/{part}") as answer:
        async for data in answer.aiter_raw():
            digest.update(data)
            length += len(data)

    assert (answer.status_code, answer.headers["content-type"]) == (202, "application/x-digest")
    assert answer.headers["transfer-encoding"] == "chunked"
    assert (length, digest.hexdigest()) == (size, hashlib.sha256(random.Random(seed).randbytes(size)).hexdigest())


async def test_head_of_a_stream_ends_the_handler_as_a_success(client: httpx.AsyncClient, notes: Notes) -> None:
    answer = await client.head("/undoable")

    assert (answer.status_code, answer.headers["x-kind"], answer.content) == (200, "undoable", b"")
    request_id = answer.headers["x-request-id"]
    assert await notes.said(request_id, "undoable-cleanup") == ["completed"]
    assert notes.of(request_id) == ["undoable-cleanup completed"]


async def test_a_parts_headers_and_status_are_the_handlers(client: httpx.AsyncClient) -> None:
    answer = await client.get("/count/3")

    assert (answer.status_code, answer.text) == (200, "0\n1\n2\n")
    assert (answer.headers["x-kind"], answer.headers["content-type"]) == ("count", "text/plain")
    assert len(answer.headers["x-request-id"]) == 36


async def test_a_plain_function_streams_from_its_thread_and_comes_back_when_the_client_leaves(
    live: FabricUnderTest, client: httpx.AsyncClient, notes: Notes
) -> None:
    answer = await client.get("/threaded/500")
    assert answer.text == "".join(f"{number}\n" for number in range(500))

    with Reading(live, get("/threaded/100000000")) as reading:
        request_id = id_of(await reading.until(b"999\n"))
    assert await notes.said(request_id, "threaded-ended") == ["ChannelClosed"]
    await notes.said(request_id, "threaded-cleanup")
    assert notes.count(request_id, "threaded-cleanup") == 1


async def test_server_sent_events_have_their_format(client: httpx.AsyncClient) -> None:
    answer = await client.get("/events/3")

    assert answer.headers["content-type"] == "text/event-stream"
    blocks = answer.text.split("\n\n")
    assert blocks.pop() == ""
    for number, block in enumerate(blocks):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        assert (fields.pop("event"), fields.pop("id")) == ("tick", str(number))
        assert json.loads(fields.pop("data")) == {"number": number}
        assert not fields


async def test_head_has_the_headers_and_ends_the_handler(
    live: FabricUnderTest, client: httpx.AsyncClient, notes: Notes
) -> None:
    answer = await client.head("/forever")

    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"", "text/plain")
    await notes.said(answer.headers["x-request-id"], "forever-cleanup")
    assert (await client.get("/count/1")).text == "0\n"


async def test_two_hundred_streams_at_once_do_not_mix(client: httpx.AsyncClient) -> None:
    async def one(number: int) -> bool:
        size = 1000 + number * 500
        body = (await client.get(f"/digest/many{number}/{size}/{50 + number * 10}")).content
        return body == random.Random(f"many{number}").randbytes(size)

    assert all(await asyncio.gather(*(one(number) for number in range(200))))


# -- pace ---------------------------------------------------------------------------------------


async def test_a_client_that_reads_nothing_stops_the_handler_and_fills_no_memory(
    live: FabricUnderTest, client: httpx.AsyncClient, notes: Notes
) -> None:
    for _ in range(2):  # what the first streams allocate is no growth
        await client.get("/flood/4")
    processes = {"ingress": live.ingresses[0].pid, "worker": child_of(live)}
    before = {name: rss_mb(pid) for name, pid in processes.items()}
    highest = dict(before)

    with Reading(live, get("/flood/200"), receive_buffer=65536) as reading:
        request_id = id_of(await reading.until(b"\r\n\r\n"))
        seen: list[int] = []

        async def has_stopped() -> bool:
            seen.append(int((await client.get(f"/progress/{request_id}")).text))
            highest.update((name, max(highest[name], rss_mb(pid))) for name, pid in processes.items())
            return len(seen) > 20 and seen[-20] == seen[-1] > 0

        await eventually(has_stopped, within_s=20, every_s=0.05)
        assert seen[-1] < 2 * CHANNEL_WINDOW_BYTES + BUFFERS
        # It goes on as soon as the client does, and no faster.
        taken = 0
        async with asyncio.timeout(30):
            while taken < 40 * MEGABYTE:
                taken += len(await asyncio.get_running_loop().sock_recv(reading.sock, 1 << 20))
        await eventually(has_stopped, within_s=20, every_s=0.05)
        assert 40 * MEGABYTE - 1024 < seen[-1] < taken + 2 * CHANNEL_WINDOW_BYTES + BUFFERS

    sent = int((await notes.said(request_id, "flood-cleanup"))[0])
    assert sent < 200 * MEGABYTE
    grown = {name: highest[name] - before[name] for name in processes}
    print(f"\nstopped after {seen[19] / MEGABYTE:.1f} MB; resident memory grew by {grown} MB")
    assert all(megabytes < 8 for megabytes in grown.values()), grown


async def test_a_flood_passes_without_being_kept(live: FabricUnderTest, client: httpx.AsyncClient) -> None:
    await client.get("/flood/4")
    processes = {"ingress": live.ingresses[0].pid, "worker": child_of(live)}
    before = {name: rss_mb(pid) for name, pid in processes.items()}
    highest, length = dict(before), 0

    async with client.stream("GET", "/flood/200") as answer:
        async for data in answer.aiter_raw():
            if length // (8 * MEGABYTE) != (length + len(data)) // (8 * MEGABYTE):
                highest.update((name, max(highest[name], rss_mb(pid))) for name, pid in processes.items())
            length += len(data)

    assert length == 200 * MEGABYTE
    grown = {name: highest[name] - before[name] for name in processes}
    print(f"\n200 MB passed; resident memory grew by {grown} MB")
    assert all(megabytes < 8 for megabytes in grown.values()), grown


# -- ends before the end ------------------------------------------------------------------------


async def test_a_client_that_vanishes_ends_the_handler_at_once_and_the_trace_says_so(
    live: FabricUnderTest, inside: Fabric, notes: Notes
) -> None:
    took_ms = []
    for _ in range(5):
        with Reading(live, get("/forever", flags="trace")) as reading:
            request_id = id_of(await reading.until(b"begun"))
            await notes.said(request_id, "begun")
            left_ms = now_ms()
        cancelled_ms = int((await notes.said(request_id, "forever-cancelled"))[0])
        took_ms.append(cancelled_ms - left_ms)

        record = await trace_of(inside, request_id, "request:cancelled")
        assert record.metadata == {"by": "client_gone"}
        await trace_of(inside, request_id, "request:end")
        await notes.said(request_id, "forever-cleanup")
        assert notes.count(request_id, "forever-cleanup") == 1
    print(f"\ncancelled {sorted(took_ms)} ms after the client had left")
    assert max(took_ms) < CANCELLED_WITHIN_MS


async def test_a_failure_in_mid_body_cuts_it_short_and_undoes_what_was_done(
    live: FabricUnderTest, notes: Notes
) -> None:
    with Reading(live, get("/breaks/5")) as reading:
        data = await reading.to_the_end()

    body = data.partition(b"\r\n\r\n")[2]
    assert b"4\n" in body
    assert not body.endswith(b"0\r\n\r\n")
    await notes.said(id_of(data), "compensated")
    assert notes.of(id_of(data)) == ["compensated"]
    failure = next(each for each in live.workers[0].events("handler_failed") if each["request_id"] == id_of(data))
    assert "in the middle" in str(failure["exception"])
    assert b"middle" not in data


@pytest.mark.parametrize("path", ["/exits", "/forever"])
async def test_a_worker_that_dies_in_mid_body_cuts_it_short_at_once(
    live: FabricUnderTest, client: httpx.AsyncClient, path: str
) -> None:
    child = child_of(live)
    with Reading(live, get(path)) as reading:
        await reading.until(b"begun")
        if path == "/forever":
            os.kill(child, signal.SIGKILL)
        # Sooner than a probe would find out: the supervisor answers for its child.
        data = await reading.to_the_end(within_s=4)

    assert not data.endswith(b"0\r\n\r\n")
    await child_after(live, child)
    assert (await client.get("/count/2")).text == "0\n1\n"


async def test_handlers_notice_that_their_ingress_has_died(tmp_path: Path) -> None:
    environment = {"GATI_TEST_SILENCE_S": str(CHANNEL_PROBE_S + 1)}
    async with running_fabric(tmp_path, packages=["live_app.py"], environment=environment) as fabric:
        notes = Notes(fabric.ledger.path)
        with Reading(fabric, get("/forever")) as idle, Reading(fabric, get("/flood/200"), receive_buffer=4096) as busy:
            socket = await dial(fabric, "/deaf")
            deaf = id_of_socket(socket)
            request_id = id_of(await idle.until(b"begun"))
            flooding = id_of(await busy.until(b"\r\n\r\n"))
            fabric.ingresses[0].kill()

            await notes.said(request_id, "forever-cleanup", within_s=CHANNEL_PROBE_S + 10)
            await notes.said(flooding, "flood-cleanup", within_s=10)
            await notes.said(deaf, "deaf-cleanup", within_s=15)
            await socket.close()
        assert [
            notes.count(each, word) for each, word in ((request_id, "forever-cleanup"), (deaf, "deaf-cleanup"))
        ] == [1, 1]


# -- leaving ------------------------------------------------------------------------------------


async def test_a_worker_that_leaves_finishes_its_streams_within_the_grace_and_cuts_the_rest(
    live: FabricUnderTest, notes: Notes
) -> None:
    with Reading(live, get("/paced/20")) as short, Reading(live, get("/paced/400")) as long:
        await short.until(b"0\n")
        request_id = id_of(await long.until(b"0\n"))
        leaving = live.workers[0]
        leaving.terminate()
        live.workers.insert(0, live.start_worker("live_app.py"))
        live.workers.pop()
        whole = await short.until(b"0\r\n\r\n")
        cut = await long.to_the_end()

    assert b"19\n" in whole
    assert not cut.endswith(b"0\r\n\r\n")
    await notes.said(request_id, "paced-cleanup")
    assert notes.count(request_id, "paced-cleanup") == 1
    assert await leaving.wait(within_s=10) == 0
    await live.serving()
    async with live.client() as client:
        assert (await client.get("/count/1")).text == "0\n"
