"""WebSockets at the ingress: handshakes, both directions, closes, limits, and what clients and workers do wrong."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gati_core.wire import CHANNEL_WINDOW_FRAMES, PROTOCOL, WEBSOCKET, Frame, ReplyError, encode
from tests.helpers.brokers import start as start_broker
from tests.helpers.fake_worker import FakeCall, FakeWorker, fake_worker
from tests.helpers.processes import FabricUnderTest, running_fabric
from tests.helpers.waiting import eventually
from tests.integration.services.test_streaming_edge import Reading, edge_of_its_own, metric, routed

ROUTES = [(WEBSOCKET, "/chat"), ("GET", "/plain"), ("POST", "/plain"), (WEBSOCKET, "/both"), ("GET", "/both")]


@pytest.fixture(scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """An ingress and a router; small limits where a test would have to wait or to send much."""
    environment = {
        "GATI_INGRESS_STREAM_STALL_S": "1.5",
        "GATI_INGRESS_WS_MAX_MESSAGE_BYTES": "65536",
        "GATI_INGRESS_WS_PING_INTERVAL_S": "1",
        "GATI_INGRESS_WS_PING_TIMEOUT_S": "1",
        "GATI_INGRESS_HEAD_TIMEOUT_S": "0.6",
    }
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


def dial(fabric: FabricUnderTest, path: str = "/chat", **options: Any) -> connect:
    url = f"ws://127.0.0.1:{fabric.port}{path}"
    return connect(url, proxy=None, compression=None, open_timeout=15, close_timeout=5, **options)


@asynccontextmanager
async def opened(
    fabric: FabricUnderTest, worker: FakeWorker, path: str = "/chat", **options: Any
) -> AsyncIterator[tuple[ClientConnection, FakeCall]]:
    """A client's socket that the fake has accepted."""
    connecting = asyncio.ensure_future(_connected(fabric, path, **options))
    call = await worker.next_call()
    call.open(101)
    client = await connecting
    try:
        yield client, call
    finally:
        await client.close()


async def _connected(fabric: FabricUnderTest, path: str, **options: Any) -> ClientConnection:
    return await dial(fabric, path, **options)


async def closed(client: ClientConnection, *, within_s: float = 15.0) -> tuple[int, str]:
    """Read until the socket is closed; returns code and reason as the client got them."""
    async with asyncio.timeout(within_s):
        try:
            while True:
                await client.recv()
        except ConnectionClosed:
            return client.close_code or 0, client.close_reason or ""


HANDSHAKE = {
    "host": "x",
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec-websocket-version": "13",
    "sec-websocket-key": base64.b64encode(os.urandom(16)).decode(),
}


def handshake(path: str = "/chat", *, first: str = "GET {} HTTP/1.1", **changes: str | None) -> bytes:
    """The bytes of a handshake, with headers changed or, by None, left out."""
    headers = {**HANDSHAKE, **{name.replace("_", "-"): value for name, value in changes.items()}}
    lines = [first.format(path), *(f"{name}: {value}" for name, value in headers.items() if value is not None)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def client_frame(opcode: int, data: bytes, *, fin: bool = True, masked: bool = True) -> bytes:
    """One frame as a client sends it."""
    head = bytes([opcode | (0x80 if fin else 0)])
    mask = b"\0\0\0\0" if masked else b""
    bit = 0x80 if masked else 0
    if len(data) < 126:
        return head + bytes([bit | len(data)]) + mask + data
    if len(data) < 65536:
        return head + bytes([bit | 126]) + struct.pack(">H", len(data)) + mask + data
    return head + bytes([bit | 127]) + struct.pack(">Q", len(data)) + mask + data


@asynccontextmanager
async def raw_socket(
    fabric: FabricUnderTest, worker: FakeWorker, *, receive_buffer: int = 0
) -> AsyncIterator[tuple[Reading, FakeCall]]:
    """An open socket whose client writes its bytes itself."""
    with Reading(fabric, handshake(), receive_buffer=receive_buffer) as reading:
        call = await worker.next_call()
        call.open(101)
        await reading.until(b"\r\n\r\n")
        yield reading, call


async def send_all(reading: Reading, data: bytes) -> None:
    async with asyncio.timeout(30):
        await asyncio.get_running_loop().sock_sendall(reading.sock, data)


async def close_code(reading: Reading) -> int:
    """The code of the close frame with which everything ends."""
    data = await reading.to_the_end()
    at = data.rfind(b"\x88")
    assert at >= 0, f"no close frame: {data[-100:]!r}"
    return int.from_bytes(data[at + 2 : at + 4], "big")


# -- the handshake ------------------------------------------------------------------------------


async def test_a_handshake_arrives_as_a_request_and_what_the_handler_says_comes_back(
    edge: FabricUnderTest, worker: FakeWorker
) -> None:
    headers = {"x-mine": "1", "x-gati-priority": "9"}
    connecting = asyncio.ensure_future(
        _connected(edge, "/chat?room=a%20b", additional_headers=headers, subprotocols=["v1", "v2"])
    )
    call = await worker.next_call()
    call.open(101, [("sec-websocket-protocol", "v2"), ("set-cookie", "a=1"), ("set-cookie", "b=2")])
    client = await connecting
    await client.close()

    request = call.request
    names = [name for name, _ in request.headers]
    assert (request.method, request.path, request.query) == (WEBSOCKET, "/chat", "room=a%20b")
    assert ("x-mine", "1") in request.headers
    assert ("sec-websocket-protocol", "v1, v2") in request.headers
    assert not {"sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions"} & set(names)
    assert not {"connection", "upgrade"} & set(names)
    assert client.subprotocol == "v2"
    assert client.response is not None
    assert client.response.headers.get_all("set-cookie") == ["a=1", "b=2"]
    assert client.response.headers["x-request-id"] == request.request_id


@pytest.mark.parametrize("status", [200, 302, 401, 403, 404, 500, 503])
async def test_a_handler_that_refuses_decides_status_headers_and_body(
    edge: FabricUnderTest, worker: FakeWorker, status: int
) -> None:
    connecting = asyncio.ensure_future(_connected(edge, "/chat"))
    call = await worker.next_call()
    call.reply(status, [("x-why", "because"), ("content-type", "text/plain")], b"no, thank you")
    with pytest.raises(InvalidStatus) as caught:
        await connecting

    answer = caught.value.response
    assert (answer.status_code, answer.body) == (status, b"no, thank you")
    assert (answer.headers["x-why"], answer.headers["content-type"]) == ("because", "text/plain")
    assert answer.headers["x-request-id"] == call.request.request_id


@pytest.mark.parametrize("offered", [None, ["v1"]])
async def test_a_subprotocol_that_was_not_offered_refuses_the_handshake(
    edge: FabricUnderTest, worker: FakeWorker, offered: list[Any] | None
) -> None:
    connecting = asyncio.ensure_future(_connected(edge, "/chat", subprotocols=offered))
    call = await worker.next_call()
    call.open(101, [("sec-websocket-protocol", "v3")])
    with pytest.raises(InvalidStatus) as caught:
        await connecting

    assert caught.value.response.status_code == 500
    assert (await call.got_close())[0] == 1011


@pytest.mark.parametrize(
    ("status", "headers", "more"),
    [(101, [], False), (200, [], True), (101, [("x", "a\r\nb: c")], True), (99, [], False)],
)
async def test_a_reply_that_is_neither_yes_nor_no_is_a_502_or_its_own_status(
    edge: FabricUnderTest, worker: FakeWorker, status: int, headers: list[tuple[str, str]], more: bool
) -> None:
    connecting = asyncio.ensure_future(_connected(edge, "/chat"))
    call = await worker.next_call()
    call.reply(status, headers, more=more)
    with pytest.raises(InvalidStatus) as caught:
        await connecting

    assert caught.value.response.status_code == (200 if status == 200 else 502)
    if more:
        assert (await call.got_close())[0] == 1011


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (handshake(first="GET {} HTTP/1.0"), b"426", b"route.upgrade_required"),
        (handshake(sec_websocket_version="8"), b"426", b"route.upgrade_required"),
        (handshake(sec_websocket_version=None), b"426", b"route.upgrade_required"),
        (handshake(sec_websocket_key=None), b"400", b"request.bad"),
        (handshake(sec_websocket_key="short"), b"400", b"request.bad"),
        (handshake(content_length="5") + b"hello", b"400", b"request.bad"),
        (handshake("/caf\xe9"), b"400", b"request.bad"),
        (handshake(x_big="x" * 40_000), b"431", b"request.headers_too_large"),
    ],
)
async def test_a_handshake_that_is_none_is_refused_with_a_reason(
    edge: FabricUnderTest, worker: FakeWorker, request_bytes: bytes, status: bytes, code: bytes
) -> None:
    before = len(worker.calls)
    with Reading(edge, request_bytes) as reading:
        data = await reading.to_the_end()

    assert data.startswith(b"HTTP/1.1 " + status)
    assert code in data
    assert (b"sec-websocket-version: 13" in data) == (status == b"426")
    assert len(worker.calls) == before


async def test_a_handshake_with_a_header_as_long_as_the_limit_allows_is_accepted(
    edge: FabricUnderTest, worker: FakeWorker
) -> None:
    with Reading(edge, handshake(x_big="x" * 20_000)) as reading:
        call = await worker.next_call()
        call.open(101)
        data = await reading.until(b"\r\n\r\n")

    assert data.startswith(b"HTTP/1.1 101")
    assert ("x-big", "x" * 20_000) in call.request.headers


async def test_half_a_handshake_is_answered_408(edge: FabricUnderTest, worker: FakeWorker) -> None:
    with Reading(edge, handshake()[:60]) as reading:
        assert (await reading.to_the_end()).startswith(b"HTTP/1.1 408")


async def test_a_client_that_leaves_during_the_handshake_cancels_it(edge: FabricUnderTest, worker: FakeWorker) -> None:
    with Reading(edge, handshake()):
        call = await worker.next_call()

    assert await call.was_cancelled() == "client_gone"


async def test_a_method_of_that_name_is_no_request(edge: FabricUnderTest, worker: FakeWorker) -> None:
    with Reading(edge, handshake(first="WEBSOCKET {} HTTP/1.1")) as reading:
        assert (await reading.to_the_end()).startswith(b"HTTP/1.1 400")


# -- routing ------------------------------------------------------------------------------------


async def test_plain_http_on_a_path_of_sockets_is_told_to_upgrade(
    client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    answer = await client.get("/chat")

    assert (answer.status_code, answer.json()["code"]) == (426, "route.upgrade_required")
    assert (answer.headers["upgrade"], answer.headers["connection"]) == ("websocket", "Upgrade")


async def test_a_method_that_is_not_allowed_never_hears_of_sockets(
    client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    answer = await client.delete("/both")

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(("path", "status"), [("/plain", 405), ("/nowhere", 404), ("/%zz", 400)])
async def test_a_handshake_where_no_socket_is_served_is_refused_as_http_would_be(
    edge: FabricUnderTest, worker: FakeWorker, path: str, status: int
) -> None:
    with Reading(edge, handshake(path)) as reading:
        data = await reading.to_the_end()

    assert data.startswith(b"HTTP/1.1 %d" % status)
    assert b"application/problem+json" in data
    assert b"WEBSOCKET" not in data.partition(b"\r\n\r\n")[0]


async def test_a_post_with_an_upgrade_is_answered_as_plain_http(edge: FabricUnderTest, worker: FakeWorker) -> None:
    with Reading(edge, handshake("/plain", first="POST {} HTTP/1.1", content_length="0")) as reading:
        (await worker.next_call()).reply(200, body=b"plain")
        assert (await reading.until(b"plain")).startswith(b"HTTP/1.1 200")


# -- messages -----------------------------------------------------------------------------------


async def test_messages_pass_both_ways_in_order_and_none_is_lost(
    edge: FabricUnderTest, worker: FakeWorker, client: httpx.AsyncClient
) -> None:
    async with opened(edge, worker) as (ours, call):
        received: list[str | bytes] = []

        async def read() -> None:
            while len(received) < 1000:
                received.append(await ours.recv())

        async def answer() -> None:
            for number in range(1000):
                await call.send_in_window("text" if number % 2 else "binary", b"%d" % number)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            tasks.create_task(answer())
            for number in range(1000):
                await ours.send(f"grüße {number}" if number % 2 else b"\x00%d" % number)
        frames = await call.got(1000)

        assert [frame.kind for frame in frames[:2]] == ["binary", "text"]
        assert [frame.data for frame in frames] == [
            f"grüße {number}".encode() if number % 2 else b"\x00%d" % number for number in range(1000)
        ]
        assert received == [f"{number}" if number % 2 else b"%d" % number for number in range(1000)]
        assert await metric(client, "gati_ingress_websockets") == 1
    assert await metric(client, "gati_ingress_ws_messages_total", 'direction="in"') >= 1000
    assert await metric(client, "gati_ingress_ws_messages_total", 'direction="out"') >= 1000
    assert await metric(client, "gati_ingress_in_flight") == 0


async def test_messages_in_fragments_and_with_pings_between_arrive_whole(
    edge: FabricUnderTest, worker: FakeWorker
) -> None:
    async with raw_socket(edge, worker) as (reading, call):
        data = client_frame(1, b"one ", fin=False)
        data += b"".join(client_frame(0, b"%d " % n, fin=False) + client_frame(9, b"p") for n in range(200))
        data += client_frame(0, b"end") + client_frame(2, b"")
        await send_all(reading, data)
        frames = await call.got(2)

    text = "one " + "".join(f"{n} " for n in range(200)) + "end"
    assert [(frame.kind, frame.data) for frame in frames[:2]] == [("text", text.encode()), ("binary", b"")]


async def test_a_burst_of_tiny_messages_in_few_packets_arrives_whole(edge: FabricUnderTest, worker: FakeWorker) -> None:
    async with raw_socket(edge, worker) as (reading, call):
        await send_all(reading, b"".join(client_frame(2, b"%d" % n) for n in range(20_000)))
        frames = await call.got(20_000, within_s=40)

    assert [int(frame.data) for frame in frames[:20_000]] == list(range(20_000))


async def test_what_a_client_sends_before_it_is_accepted_is_kept(edge: FabricUnderTest, worker: FakeWorker) -> None:
    with Reading(edge, handshake()) as reading:
        call = await worker.next_call()
        await send_all(reading, client_frame(1, b"eager"))
        await send_all(reading, client_frame(1, b"more"))
        call.open(101)
        frames = await call.got(2)
        await reading.until(b"\r\n\r\n")

    assert [frame.data for frame in frames] == [b"eager", b"more"]


async def test_a_worker_that_takes_nothing_stalls_the_client_and_not_the_ingress(
    edge: FabricUnderTest, worker: FakeWorker
) -> None:
    async with opened(edge, worker, ping_interval=None) as (ours, call):
        call.acks_itself = False
        sent = 0
        payload = b"x" * 20_000

        async def keep_sending() -> None:
            nonlocal sent
            while sent < 2000:
                await ours.send(payload)
                sent += 1

        sending = asyncio.create_task(keep_sending())
        await call.got(14)
        seen = -1

        def is_stalled() -> bool:
            nonlocal seen
            before, seen = seen, sent
            return before == sent

        await eventually(is_stalled, within_s=20, every_s=0.5)
        arrived = len(call.frames)

        assert sent < 2000, "the ingress took everything"
        assert 256 * 1024 <= arrived * len(payload) < 256 * 1024 + len(payload)
        # Longer than ping interval and timeout together: the unread pongs are no reason to close.
        assert await pinged_for(ours, 2.5)
        call.acks_itself = True
        call.ack(len(call.frames))
        await asyncio.wait_for(sending, 40)
        await call.got(2000, within_s=40)


async def pinged_for(ours: ClientConnection, seconds: float) -> bool:
    """Whether the socket is still open after so long."""
    try:
        await asyncio.wait_for(ours.recv(), seconds)
    except TimeoutError:
        return True
    except ConnectionClosed:
        return False
    return False


async def test_small_messages_stop_at_the_frames_of_the_window(edge: FabricUnderTest, worker: FakeWorker) -> None:
    async with opened(edge, worker) as (ours, call):
        call.acks_itself = False
        for number in range(200):
            await ours.send(f"{number}")
        await call.got(CHANNEL_WINDOW_FRAMES)
        call.ack(1)
        await call.got(CHANNEL_WINDOW_FRAMES + 1)

        assert len(call.frames) == CHANNEL_WINDOW_FRAMES + 1
        call.acks_itself = True
        call.ack(CHANNEL_WINDOW_FRAMES + 1)
        await call.got(200)


async def test_a_slow_client_stalls_the_worker_at_its_window(edge: FabricUnderTest, worker: FakeWorker) -> None:
    async with raw_socket(edge, worker, receive_buffer=4096) as (reading, call):
        sent = 0

        async def keep_sending() -> None:
            nonlocal sent
            for _ in range(600):
                await call.send_in_window("binary", b"." * 16_000, within_s=40)
                sent += 1
            call.send("close", code=1000)

        sending = asyncio.create_task(keep_sending())
        seen = -1

        def is_stalled() -> bool:
            nonlocal seen
            before, seen = seen, sent
            return before == sent and not call.has_room

        await eventually(is_stalled, within_s=10, every_s=0.1)
        stalled_at = sent
        data = await reading.to_the_end(within_s=40)
        await sending

    assert stalled_at < 600
    assert data.partition(b"\r\n\r\n")[2].count(b".") == 600 * 16_000


async def test_a_client_that_reads_nothing_is_cut_and_the_worker_told(
    edge: FabricUnderTest, worker: FakeWorker, client: httpx.AsyncClient
) -> None:
    async with raw_socket(edge, worker, receive_buffer=4096) as (_reading, call):

        def is_cut() -> bool:
            while call.has_room:
                call.send("binary", b"x" * 60_000)
            return any(frame.kind == "close" for frame in call.frames)

        await eventually(is_cut, within_s=15)

    assert await call.got_close() == (1006, "")
    assert await metric(client, "gati_ingress_websockets") == 0


async def test_a_client_that_never_reads_its_pongs_is_read_no_further(
    edge: FabricUnderTest, worker: FakeWorker
) -> None:
    async with raw_socket(edge, worker, receive_buffer=4096) as (reading, call):
        pings = client_frame(9, b"p" * 125) * 2000
        while await _is_taken(reading, pings):
            pass
        reading.sock.close()
        assert (await call.got_close())[0] == 1006


async def _is_taken(reading: Reading, data: bytes) -> bool:
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(reading.sock, data), 1.5)
    except TimeoutError:
        return False
    return True


# -- closing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "leaving"), (3000, "grüße"), (4999, "x" * 123)])
async def test_a_clients_close_reaches_the_worker_after_its_last_message(
    edge: FabricUnderTest, worker: FakeWorker, code: int, reason: str
) -> None:
    async with opened(edge, worker) as (ours, call):
        for number in range(100):
            await ours.send(f"{number}")
        await ours.close(code, reason)

        assert await call.got_close() == (code, reason)
        assert len(call.frames) == 101


async def test_a_close_without_a_code_is_1005(edge: FabricUnderTest, worker: FakeWorker) -> None:
    async with raw_socket(edge, worker) as (reading, call):
        await send_all(reading, client_frame(8, b""))
        assert await call.got_close() == (1005, "")


async def test_messages_of_a_client_that_closed_are_still_passed_on_while_the_worker_is_slow(
    edge: FabricUnderTest, worker: FakeWorker
) -> None:
    async with raw_socket(edge, worker) as (reading, call):
        call.acks_itself = False
        data = b"".join(client_frame(1, b"%d" % number) for number in range(100))
        await send_all(reading, data + client_frame(8, struct.pack(">H", 1000)))
        await call.got(CHANNEL_WINDOW_FRAMES)
        call.acks_itself = True
        call.ack(CHANNEL_WINDOW_FRAMES)

        assert await call.got_close() == (1000, "")
        assert [frame.data for frame in call.frames[:-1]] == [b"%d" % number for number in range(100)]


async def test_a_client_that_vanishes_is_a_1006(
    edge: FabricUnderTest, worker: FakeWorker, client: httpx.AsyncClient
) -> None:
    async with raw_socket(edge, worker) as (reading, call):
        reading.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reading.sock.close()
        assert await call.got_close() == (1006, "")

    await eventually(lambda: none_open(client), within_s=5)


async def none_open(client: httpx.AsyncClient) -> bool:
    return await metric(client, "gati_ingress_websockets") == 0


async def test_a_client_that_answers_no_ping_is_a_1006(edge: FabricUnderTest, worker: FakeWorker) -> None:
    async with raw_socket(edge, worker) as (_reading, call):
        assert await call.got_close() == (1006, "")


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (1000, "done", (1000, "done")),
        (0, "", (1000, "")),
        (1005, "", (1000, "")),
        (4001, "grüße", (4001, "grüße")),
        (1006, "", (1011, "")),
        (70_000, "", (1011, "")),
        (4000, "ü" * 100, (4000, "ü" * 61)),
    ],
)
async def test_a_handlers_close_reaches_the_client(
    edge: FabricUnderTest, worker: FakeWorker, code: int, reason: str, expected: tuple[int, str]
) -> None:
    async with opened(edge, worker) as (ours, call):
        call.send("text", b"last words")
        call.send("close", code=code, text=reason)

        assert await ours.recv() == "last words"
        assert await closed(ours) == expected
        assert call.frames == [], "a close that the worker asked for is no news for it"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (client_frame(1, b"\xff\xfe"), 1007),
        (client_frame(1, b"ok \xc3", fin=False) + client_frame(0, b"\x28"), 1007),
        (client_frame(1, b"x", masked=False), 1002),
        (client_frame(3, b"x"), 1002),
        (client_frame(0, b"x"), 1002),
        (b"\xf1\x80\0\0\0\0", 1002),
        (client_frame(9, b"x" * 126), 1002),
        (client_frame(8, b"\x03"), 1002),
        (client_frame(8, struct.pack(">H", 999)), 1002),
        (client_frame(2, b"x" * 70_000), 1009),
        (client_frame(2, b"x" * 60_000, fin=False) + client_frame(0, b"x" * 60_000), 1009),
    ],
)
async def test_a_client_that_breaks_the_protocol_is_told_how_and_so_is_the_worker(
    edge: FabricUnderTest, worker: FakeWorker, data: bytes, code: int
) -> None:
    async with raw_socket(edge, worker) as (reading, call):
        await send_all(reading, client_frame(1, b"before") + data)

        assert await close_code(reading) == code
        assert (await call.got_close())[0] == code
        assert call.frames[0].data == b"before"


# -- workers that break off ---------------------------------------------------------------------


def wrong_request(call: FakeCall) -> None:
    call.raw(encode(Frame(PROTOCOL, "somebody-else", 2, "text", b"x")))


CRASHED = ReplyError("worker.crashed", "the worker died")
BREAKS: dict[str, tuple[Any, tuple[int, str], bool]] = {
    "gap": (lambda call: call.send("text", b"x", seq=3), (1011, "the channel broke"), True),
    "garbage": (lambda call: call.raw(b"\xc1garbage"), (1011, "the channel broke"), True),
    "another request": (wrong_request, (1011, "the channel broke"), True),
    "another kind": (lambda call: call.send("part", b"x"), (1011, "the channel broke"), True),
    "not UTF-8": (lambda call: call.send("text", b"\xff"), (1011, "the channel broke"), True),
    "ack of nothing": (lambda call: call.ack(7), (1011, "the channel broke"), True),
    "late 502": (lambda call: call.reply(502, error=CRASHED), (1011, "the worker died"), False),
    "leaving": (
        lambda call: call.reply(503, error=ReplyError("worker.leaving", "leaving")),
        (1012, "leaving"),
        False,
    ),
}


@pytest.mark.parametrize("name", BREAKS)
async def test_a_worker_that_breaks_off_closes_the_socket(edge: FabricUnderTest, worker: FakeWorker, name: str) -> None:
    break_off, expected, is_told = BREAKS[name]
    async with opened(edge, worker) as (ours, call):
        call.send("text", b"one")
        assert await ours.recv() == "one"
        break_off(call)

        assert await closed(ours) == expected
        if is_told:
            assert (await call.got_close())[0] == 1011


async def test_a_worker_that_is_gone_is_noticed_by_a_probe(edge: FabricUnderTest) -> None:
    async with fake_worker(edge.settings, [(WEBSOCKET, "/deaf")], deaf=True) as worker:
        await routed(edge, worker)
        async with opened(edge, worker, "/deaf") as (ours, _call):
            assert await closed(ours, within_s=20) == (1011, "the worker is gone")


# -- the broker ---------------------------------------------------------------------------------


async def test_a_socket_survives_a_short_outage_and_a_long_one_closes_it(tmp_path: Path) -> None:
    async with edge_of_its_own(tmp_path) as (fabric, worker), opened(fabric, worker) as (ours, call):
        fabric.broker.kill()
        await eventually(lambda: fabric.ingresses[0].events("broker_disconnected"), within_s=10)
        await ours.send("meanwhile")
        await start_broker(fabric.broker)
        await call.got(1)
        call.send("text", b"back")

        assert call.frames[0].data == b"meanwhile"
        assert await ours.recv() == "back"

        fabric.broker.kill()
        await eventually(lambda: len(fabric.ingresses[0].events("broker_disconnected")) == 2, within_s=10)
        await ours.send("lost")

        assert await closed(ours) == (1013, "try again later")
        await start_broker(fabric.broker)


# -- limits and leaving -------------------------------------------------------------------------


async def test_one_socket_more_than_allowed_is_refused_and_a_closed_one_makes_room(tmp_path: Path) -> None:
    async with (
        edge_of_its_own(tmp_path, GATI_INGRESS_MAX_WEBSOCKETS="2", GATI_INGRESS_MAX_IN_FLIGHT="1") as (fabric, worker),
        fabric.client() as client,
        opened(fabric, worker) as (first, _),
    ):
        async with opened(fabric, worker):
            with pytest.raises(InvalidStatus) as caught:
                await _connected(fabric, "/chat")
            assert caught.value.response.status_code == 503
            # Open sockets take no place from requests.
            request = asyncio.create_task(client.get("/other"))
            (await worker.next_call()).reply(200)
            assert (await request).status_code == 200
        await eventually(lambda: is_open_count(client, 1), within_s=5)
        async with opened(fabric, worker):
            await first.send("still open")


async def is_open_count(client: httpx.AsyncClient, count: int) -> bool:
    return await metric(client, "gati_ingress_websockets") == count


async def test_an_ingress_that_leaves_closes_its_sockets_with_1001(tmp_path: Path) -> None:
    async with edge_of_its_own(tmp_path) as (fabric, worker):
        async with opened(fabric, worker) as (ours, call), raw_socket(fabric, worker) as (mute, other):
            connecting = asyncio.ensure_future(_connected(fabric, "/chat"))
            late = await worker.next_call()
            call.send("text", b"before")
            assert await ours.recv() == "before"
            fabric.ingresses[0].terminate()

            assert await closed(ours) == (1001, "going away")
            assert await call.got_close() == (1001, "going away")
            assert await other.got_close() == (1001, "going away")
            late.open(101)
            assert await closed(await connecting) == (1001, "going away")
            assert await close_code(mute) == 1001
        assert await fabric.ingresses[0].wait(within_s=8) == 0
        log = fabric.ingresses[0].log()
        assert "Traceback" not in log
        assert "WebSocket" not in log, "uvicorn's access lines"


async def test_nothing_that_clients_did_was_worth_a_traceback(edge: FabricUnderTest, worker: FakeWorker) -> None:
    """Runs last: everything above went through this one ingress."""
    assert "Traceback" not in edge.ingresses[0].log()
    assert "uvicorn" not in edge.ingresses[0].log()
    assert not edge.ingresses[0].events("handshake_failed")
