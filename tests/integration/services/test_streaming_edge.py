"""Streamed answers at the ingress: order, windows, clients and workers that vanish, and leaving."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gati_core.wire import (
    CHANNEL_WINDOW_BYTES,
    CHANNEL_WINDOW_FRAMES,
    PROTOCOL,
    WEBSOCKET,
    Frame,
    ReplyError,
    encode,
)
from tests.helpers.fake_worker import FakeCall, FakeWorker, fake_worker
from tests.helpers.processes import FabricUnderTest, running_fabric
from tests.helpers.waiting import eventually
from tests.integration.services.test_operations import samples

ROUTES = [("GET", "/stream"), ("POST", "/stream"), ("GET", "/other")]


@pytest.fixture(scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """An ingress and a router; a client that reads nothing is cut after a second."""
    environment = {"GATI_INGRESS_STREAM_STALL_S": "1", "GATI_INGRESS_MAX_STREAMS": "3"}
    directory = tmp_path_factory.mktemp("edge")
    async with running_fabric(directory, packages=(), workers=0, environment=environment) as fabric:
        yield fabric


@pytest.fixture(scope="module")
async def worker(edge: FabricUnderTest) -> AsyncIterator[FakeWorker]:
    async with fake_worker(edge.settings, ROUTES) as worker:
        await routed(edge, worker)
        yield worker


@pytest.fixture
async def client(edge: FabricUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    async with edge.client() as client:
        yield client


async def routed(fabric: FabricUnderTest, worker: FakeWorker) -> None:
    """Return once the router sends this worker its requests."""

    def is_known() -> bool:
        events = fabric.routers[-1].events("catalogue_rebuilt")
        return bool(events) and worker.pool in events[-1]["live_pools"]  # type: ignore[operator]

    await eventually(is_known, within_s=20)


@asynccontextmanager
async def edge_of_its_own(directory: Path, **environment: str) -> AsyncIterator[tuple[FabricUnderTest, FakeWorker]]:
    """An ingress, a router and a fake for one test, to break."""
    async with (
        running_fabric(directory, packages=(), workers=0, environment=environment) as fabric,
        fake_worker(fabric.settings, [*ROUTES, (WEBSOCKET, "/chat")]) as worker,
    ):
        await routed(fabric, worker)
        yield fabric, worker


async def metric(client: httpx.AsyncClient, name: str, label: str = "") -> float:
    text = (await client.get("/metrics")).text
    return sum(value for labels, value in samples(text, name).items() if label in labels)


class Reading:
    """A raw connection that sent one request, and reads when it is told to."""

    def __init__(self, fabric: FabricUnderTest, request: bytes, *, receive_buffer: int = 0) -> None:
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.connect(("127.0.0.1", fabric.port))
        self.sock.sendall(request)
        self.sock.setblocking(False)
        self.data = bytearray()
        self.is_reset = False

    async def until(self, mark: bytes, *, within_s: float = 15.0) -> bytes:
        """Read until this was received."""
        async with asyncio.timeout(within_s):
            looked_at = 0
            while self.data.find(mark, looked_at) < 0:
                looked_at = max(0, len(self.data) - len(mark))
                assert await self._more(), f"the connection ended: {self.data[-300:]!r}"
        return bytes(self.data)

    async def to_the_end(self, *, within_s: float = 15.0) -> bytes:
        """Read until the connection ends."""
        async with asyncio.timeout(within_s):
            while await self._more():
                pass
        return bytes(self.data)

    async def _more(self) -> bool:
        try:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        except ConnectionError:
            self.is_reset = True
            return False
        self.data += data
        return bool(data)

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


GET = b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n"


# -- the ordinary case --------------------------------------------------------------------------


async def test_head_and_parts_reach_the_client_as_they_come(edge: FabricUnderTest, worker: FakeWorker) -> None:
    with Reading(edge, GET) as reading:
        call = await worker.next_call()
        call.open(200, [("content-type", "text/plain"), ("x-mine", "1")])
        head = await reading.until(b"\r\n\r\n")
        call.send("part", b"one")
        await reading.until(b"3\r\none\r\n")
        call.send("part", b"two!")
        await reading.until(b"4\r\ntwo!\r\n")
        call.send("end")
        whole = await reading.until(b"0\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"transfer-encoding: chunked\r\n" in head
    assert b"x-mine: 1\r\n" in head
    assert b"x-request-id: " + call.request.request_id.encode() in head
    assert whole.count(b"transfer-encoding") == 1


async def test_a_long_answer_arrives_whole_and_in_order_and_the_connection_is_used_again(
    client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    parts = [b"%06d" % number * 3000 for number in range(300)]  # 5.4 MB, many windows
    request = asyncio.create_task(client.get("/stream"))
    call = await worker.next_call()
    call.open()
    most = 0
    for part in parts:
        await call.send_in_window("part", part)
        most = max(most, call.unacked[0])
    call.send("end")
    answer = await request
    again = asyncio.create_task(client.get("/other"))
    (await worker.next_call()).reply(200, body=b"plain")

    assert answer.content == b"".join(parts)
    assert most <= CHANNEL_WINDOW_FRAMES
    assert (await again).content == b"plain"
    assert await metric(client, "gati_ingress_streams") == 0


async def test_many_small_parts_are_acknowledged_and_none_is_lost(
    client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    request = asyncio.create_task(client.get("/stream"))
    call = await worker.next_call()
    call.open()
    for number in range(1000):
        await call.send_in_window("part", b"%d," % number)
    call.send("end")

    assert (await request).text == "".join(f"{number}," for number in range(1000))


async def test_a_content_length_of_the_handler_is_kept(edge: FabricUnderTest, worker: FakeWorker) -> None:
    with Reading(edge, GET) as reading:
        call = await worker.next_call()
        call.open(200, [("Content-Length", "6")])
        call.send("part", b"abc")
        call.send("part", b"def")
        call.send("end")
        data = await reading.until(b"abcdef")

    assert b"content-length: 6\r\n" in data
    assert b"chunked" not in data


async def test_the_requests_deadline_ends_with_the_head(tmp_path: Path) -> None:
    async with (
        edge_of_its_own(tmp_path, GATI_INGRESS_REQUEST_TIMEOUT_S="1") as (fabric, worker),
        fabric.client() as client,
    ):
        request = asyncio.create_task(client.get("/stream"))
        call = await worker.next_call()
        late = asyncio.create_task(client.get("/other"))
        await worker.next_call()
        call.open()
        assert (await late).status_code == 504  # a later deadline has passed
        call.send("part", b"late")
        call.send("end")

        assert (await request).text == "late"


async def test_head_gets_the_headers_and_the_worker_is_told_to_stop(edge: FabricUnderTest, worker: FakeWorker) -> None:
    with Reading(edge, b"HEAD /stream HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n") as reading:
        call = await worker.next_call()
        call.open(200, [("x-mine", "1")])
        data = await reading.to_the_end()

    assert data.endswith(b"\r\n\r\n")
    assert b"x-mine: 1\r\n" in data
    assert await call.was_cancelled() == "head_only"


async def test_an_http_1_0_client_gets_the_bytes_without_chunks(edge: FabricUnderTest, worker: FakeWorker) -> None:
    with Reading(edge, b"GET /stream HTTP/1.0\r\n\r\n") as reading:
        call = await worker.next_call()
        call.open()
        call.send("part", b"one,")
        call.send("part", b"two")
        call.send("end")
        data = await reading.to_the_end()

    assert data.endswith(b"\r\n\r\none,two")
    assert b"chunked" not in data
    assert b"connection: close" in data


async def test_a_status_without_a_body_ends_with_its_head(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    request = asyncio.create_task(client.get("/stream"))
    call = await worker.next_call()
    call.open(304, [("content-length", "5")])

    assert (await request).status_code == 304
    assert await call.was_cancelled()


# -- slow and vanished clients ------------------------------------------------------------------


async def test_a_slow_client_stalls_the_worker_at_the_window_and_gets_everything(
    edge: FabricUnderTest, worker: FakeWorker
) -> None:
    part = b"~" * 16_000
    with Reading(edge, GET, receive_buffer=4096) as reading:
        call = await worker.next_call()
        call.open()
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            for _ in range(600):
                await call.send_in_window("part", part, within_s=40)
                sent += 1
            call.send("end")

        sending = asyncio.create_task(send_all())
        await reading.until(b"\r\n\r\n")
        seen = -1

        async def is_stalled() -> bool:
            nonlocal seen
            before, seen = seen, sent
            return before == sent and not call.has_room

        await eventually(is_stalled, within_s=10, every_s=0.2)
        stalled_at = sent
        frames, size = call.unacked
        data = await reading.until(b"\r\n0\r\n\r\n", within_s=40)
        await sending

    assert stalled_at < 600, "the ingress took everything"
    assert frames <= CHANNEL_WINDOW_FRAMES
    assert size < CHANNEL_WINDOW_BYTES + len(part)
    assert data.count(b"~") == 600 * len(part)


async def test_a_client_that_reads_nothing_is_cut_and_counted(
    edge: FabricUnderTest, worker: FakeWorker, client: httpx.AsyncClient
) -> None:
    code = 'code="request.client_stalled"'
    before = await metric(client, "gati_ingress_errors_total", code)
    with Reading(edge, GET, receive_buffer=4096):
        call = await worker.next_call()
        call.open()

        async def is_cut() -> bool:
            while call.has_room:
                call.send("part", b"x" * 60_000)
            return call.request.request_id in worker.cancels

        await eventually(is_cut, within_s=10)

    assert await metric(client, "gati_ingress_errors_total", code) == before + 1
    assert await metric(client, "gati_ingress_streams") == 0


async def test_a_client_that_vanishes_in_mid_stream_cancels_the_worker(
    edge: FabricUnderTest, worker: FakeWorker, client: httpx.AsyncClient
) -> None:
    with Reading(edge, GET) as reading:
        call = await worker.next_call()
        call.open()
        call.send("part", b"one")
        await reading.until(b"one")

    assert await call.was_cancelled() == "client_gone"
    await eventually(lambda: no_streams(client), within_s=5)


async def no_streams(client: httpx.AsyncClient) -> bool:
    return await metric(client, "gati_ingress_streams") == 0


# -- answers that break off ---------------------------------------------------------------------


def wrong_request(call: FakeCall) -> None:
    call.raw(encode(Frame(PROTOCOL, "somebody-else", 2, "part", b"x")))


def overrun(call: FakeCall) -> None:
    for _ in range(300):
        call.send("part", b"x" * 60_000)


BREAKS = {
    "abort": (lambda call: call.send("abort", text="boom"), False),
    "gap": (lambda call: call.send("part", b"x", seq=3), True),
    "repeat": (lambda call: call.send("part", b"x", seq=1), True),
    "garbage": (lambda call: call.raw(b"\xc1garbage"), True),
    "another protocol": (lambda call: call.raw(encode(Frame(99, "x", 2, "part"))), True),
    "another request": (wrong_request, True),
    "another kind": (lambda call: call.send("text", b"x"), True),
    "unknown channel": (lambda call: call.raw(encode(Frame(PROTOCOL, call.request.request_id, 0, "abort"))), False),
    "late 502": (lambda call: call.reply(502, error=ReplyError("worker.crashed", "the worker died")), False),
    "second run": (lambda call: call.open(), True),
    "ack of nothing": (lambda call: call.ack(7), True),
}


@pytest.mark.parametrize("name", BREAKS)
async def test_an_answer_that_breaks_off_is_cut_without_its_final_chunk(
    edge: FabricUnderTest, worker: FakeWorker, name: str
) -> None:
    break_off, is_cancelled = BREAKS[name]
    with Reading(edge, GET) as reading:
        call = await worker.next_call()
        call.open()
        call.send("part", b"one")
        await reading.until(b"3\r\none\r\n")
        break_off(call)
        data = await reading.to_the_end()

    assert data.endswith(b"3\r\none\r\n")
    if is_cancelled:
        assert await call.was_cancelled() == "client_gone"


async def test_a_worker_that_overruns_its_window_is_cut_off(edge: FabricUnderTest, worker: FakeWorker) -> None:
    with Reading(edge, GET, receive_buffer=4096) as reading:
        call = await worker.next_call()
        call.open()
        await reading.until(b"\r\n\r\n")
        overrun(call)
        await call.was_cancelled()
        data = await reading.to_the_end()

    assert not data.endswith(b"\r\n0\r\n\r\n")


async def test_parts_that_came_before_the_break_are_still_delivered(edge: FabricUnderTest, worker: FakeWorker) -> None:
    with Reading(edge, GET) as reading:
        call = await worker.next_call()
        call.open()
        for _ in range(20):
            call.send("part", b"0123456789")
        call.send("abort")
        data = await reading.to_the_end()

    assert data.count(b"0123456789") == 20
    assert not data.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(("length", "parts"), [("5", [b"abc"]), ("5", [b"abc", b"defg"])])
async def test_an_answer_that_does_not_keep_its_content_length_is_cut(
    edge: FabricUnderTest, worker: FakeWorker, length: str, parts: list[bytes]
) -> None:
    with Reading(edge, GET) as reading:
        call = await worker.next_call()
        call.open(200, [("content-length", length)])
        for part in parts:
            call.send("part", part)
        call.send("end")
        data = await reading.to_the_end()

    assert data.endswith(b"abc")


async def test_frames_behind_the_end_change_nothing(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    request = asyncio.create_task(client.get("/stream"))
    call = await worker.next_call()
    call.open()
    call.send("part", b"all")
    call.send("end")
    call.send("abort")
    call.reply(502)

    assert (await request).text == "all"


async def test_a_worker_that_is_gone_is_noticed_by_a_probe(edge: FabricUnderTest) -> None:
    async with fake_worker(edge.settings, [("GET", "/deaf")], deaf=True) as worker:
        await routed(edge, worker)
        with Reading(edge, b"GET /deaf HTTP/1.1\r\nhost: x\r\n\r\n") as reading:
            call = await worker.next_call()
            call.open()
            call.send("part", b"one")
            began = time.monotonic()
            data = await reading.to_the_end(within_s=20)

    assert data.endswith(b"3\r\none\r\n")
    assert time.monotonic() - began < 10


async def test_an_idle_stream_is_probed_and_stays_open(edge: FabricUnderTest, worker: FakeWorker) -> None:
    with Reading(edge, GET) as reading:
        call = await worker.next_call()
        call.open()
        await eventually(lambda: call.probes >= 1, within_s=15)
        call.send("part", b"still here")
        call.send("end")
        data = await reading.until(b"0\r\n\r\n")

    assert b"still here" in data


# -- what is refused before a head was sent -----------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "channel"),
    [
        (200, [], "elsewhere.channel.x"),
        (200, [], ""),
        (101, [], None),
        (99, [], None),
        (200, [("x-bad", "a\r\nset-cookie: b")], None),
        (200, [("bad name", "a")], None),
        (200, [("content-length", "many")], None),
        (200, [("content-length", "1"), ("content-length", "2")], None),
    ],
)
async def test_a_head_that_cannot_be_sent_is_answered_502(
    client: httpx.AsyncClient, worker: FakeWorker, status: int, headers: list[tuple[str, str]], channel: str | None
) -> None:
    request = asyncio.create_task(client.get("/stream"))
    call = await worker.next_call()
    call.reply(status, headers, more=True, channel=channel)
    answer = await request

    assert (answer.status_code, answer.json()["code"]) == (502, "wire.malformed_reply")
    assert await call.was_cancelled()


async def test_one_stream_more_than_allowed_is_refused(
    edge: FabricUnderTest, worker: FakeWorker, client: httpx.AsyncClient
) -> None:
    readings = [Reading(edge, GET) for _ in range(3)]
    calls = [await worker.next_call() for _ in readings]
    for call in calls:
        call.open()
    for reading in readings:
        await reading.until(b"\r\n\r\n")
    request = asyncio.create_task(client.get("/stream"))
    fourth = await worker.next_call()
    fourth.open()
    answer = await request
    for call in calls:
        call.send("end")
    for reading in readings:
        await reading.until(b"0\r\n\r\n")
        reading.sock.close()

    assert (answer.status_code, answer.json()["code"]) == (503, "ingress.overloaded")
    assert await fourth.was_cancelled()


# -- leaving ------------------------------------------------------------------------------------


async def test_an_ingress_that_leaves_gives_streams_the_grace_and_then_cuts_them(tmp_path: Path) -> None:
    async with edge_of_its_own(tmp_path, GATI_INGRESS_DRAIN_GRACE_S="2") as (fabric, worker):
        with (
            Reading(fabric, GET) as quick,
            Reading(fabric, GET) as endless,
            Reading(fabric, GET, receive_buffer=4096) as stuck,
        ):
            calls = [await worker.next_call() for _ in range(3)]
            for call in calls:
                call.open()
            for reading in (quick, endless, stuck):
                await reading.until(b"\r\n\r\n")
            # Which call belongs to which connection shows in what they send.
            for number, call in enumerate(calls):
                call.send("part", b"call%d" % number)
            order = [int((await each.until(b"call")).partition(b"call")[2][:1]) for each in (quick, endless, stuck)]
            for _ in range(12):
                calls[order[2]].send("part", b"x" * 20_000)
            fabric.ingresses[0].terminate()
            await eventually(lambda: fabric.ingresses[0].events("ingress_draining"), within_s=5)
            calls[order[0]].send("part", b"in time")
            calls[order[0]].send("end")
            data = await quick.to_the_end()
            cut = await endless.to_the_end()

            assert data.endswith(b"in time\r\n0\r\n\r\n")
            assert not cut.endswith(b"0\r\n\r\n")
            assert await calls[order[1]].was_cancelled() == "shutting_down"
            assert await calls[order[2]].was_cancelled() == "shutting_down"
            assert await fabric.ingresses[0].wait(within_s=5) == 0
        assert "Exception in ASGI" not in fabric.ingresses[0].log()
