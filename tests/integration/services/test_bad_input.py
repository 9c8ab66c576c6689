"""Whatever comes in, from the outside or onto the streams: a clear answer or a dead letter, and life goes on."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable

import httpx
import msgspec
import pytest

from gati_core.fabric import DeadLetter, Fabric, KvBucket
from gati_core.wire import PROTOCOL, encode
from tests.helpers.processes import FabricUnderTest
from tests.helpers.waiting import eventually
from tests.helpers.wire import descriptor, pool_of, work_item

LIMIT = 10 * 1024 * 1024


@pytest.fixture(autouse=True)
async def and_then_a_good_request(shared: FabricUnderTest, client: httpx.AsyncClient) -> AsyncIterator[None]:
    """After every test of this module: all processes are still the same ones, and they work."""
    before = [(service.pid, service.children()) for service in shared.services]
    yield
    answer = await client.post("/orders", json={"sku": "ada-42", "quantity": 3})
    assert (answer.status_code, answer.json()) == (201, {"sku": "ada-42", "quantity": 3})
    assert [(service.pid, service.children()) for service in shared.services] == before
    assert not any("Traceback" in service.log() for service in shared.services)


async def exchange(fabric: FabricUnderTest, *parts: bytes, within_s: float = 5.0) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes on a connection of their own and read the one answer: status, headers, body."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        async with asyncio.timeout(within_s):
            await loop.sock_connect(sock, ("127.0.0.1", fabric.port))
            try:
                for part in parts:
                    await loop.sock_sendall(sock, part)
            except ConnectionError:
                pass  # refused while we were still sending; the answer is there to be read
            received = b""
            while b"\r\n\r\n" not in received:
                received += await loop.sock_recv(sock, 65_536) or _nothing_more(received)
            raw_head, _, body = received.partition(b"\r\n\r\n")
            first, *lines = raw_head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            while len(body) < int(headers.get("content-length", "0")):
                body += await loop.sock_recv(sock, 65_536) or _nothing_more(received)
            return int(first.split(" ")[1]), headers, body


def _nothing_more(received: bytes) -> bytes:
    raise AssertionError(f"the connection was closed after {received!r}")


def head(method: str = "GET", target: str = "/text", **headers: str) -> bytes:
    """A request head with these headers; `_` in a name stands for `-`."""
    lines = [f"{method} {target} HTTP/1.1", "host: gati"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


# -- HTTP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # somebody speaks TLS
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  /two  spaces HTTP/1.1\r\n\r\n",
        b"GET /text HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET /text HTTP/1.1\r\nhost: a\r\nbad name: x\r\n\r\n",
        b"GET /text HTTP/1.1\r\nhost: a\r\nx: a\x00b\r\n\r\n",
        b"GET /te\x00xt HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST /orders HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"POST /orders HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST /orders HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"POST /orders HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nnot hex\r\n",
        b"POST /orders HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    ],
)
async def test_malformed_http_gets_a_400_problem_and_the_connection_closes(
    shared: FabricUnderTest, garbage: bytes
) -> None:
    status, headers, body = await exchange(shared, garbage)

    problem = json.loads(body)
    assert (status, problem["code"], headers["connection"]) == (400, "request.bad", "close")
    assert headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == headers["x-request-id"]


async def test_malformed_http_is_counted_and_cannot_fill_the_log(
    shared: FabricUnderTest, client: httpx.AsyncClient
) -> None:
    def counted(text: str) -> float:
        lines = [line for line in text.splitlines() if line.startswith('gati_ingress_errors_total{code="request.bad",')]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    before, log = counted((await client.get("/metrics")).text), shared.ingresses[0].log()

    for _ in range(3):
        await exchange(shared, b"this is no HTTP\r\n\r\n")

    assert counted((await client.get("/metrics")).text) - before == 3
    assert shared.ingresses[0].log() == log


async def test_ten_thousand_headers_get_431(shared: FabricUnderTest) -> None:
    many = "".join(f"h{number}: x\r\n" for number in range(10_000)).encode()

    status, _, body = await exchange(shared, b"GET /text HTTP/1.1\r\nhost: a\r\n" + many + b"\r\n")

    assert (status, json.loads(body)["code"]) == (431, "request.headers_too_large")


async def test_one_header_more_than_the_limit_gets_431_and_the_limit_itself_is_served(shared: FabricUnderTest) -> None:
    at_limit = {f"h{number}": "x" for number in range(99)}  # and host

    served, _, _ = await exchange(shared, head(**at_limit))
    refused, _, body = await exchange(shared, head(**at_limit, one_more="x"))

    assert (served, refused) == (200, 431)
    assert "101 headers" in json.loads(body)["detail"]


@pytest.mark.parametrize("size", [40_000, 1_000_000])
async def test_a_huge_request_line_gets_431(shared: FabricUnderTest, size: int) -> None:
    status, _, body = await exchange(shared, head(target="/" + "a" * size))

    assert (status, json.loads(body)["code"]) == (431, "request.headers_too_large")


async def test_a_huge_header_gets_431(shared: FabricUnderTest) -> None:
    status, _, _ = await exchange(shared, head(x_large="a" * 100_000))

    assert status == 431


async def test_a_request_line_that_never_ends_gets_431_not_memory(shared: FabricUnderTest) -> None:
    status, _, _ = await exchange(shared, b"GET /", *[b"a" * 10_000] * 20)

    assert status == 431


async def test_a_body_announced_above_the_limit_gets_413_before_it_is_sent(shared: FabricUnderTest) -> None:
    status, headers, body = await exchange(shared, head("POST", "/digest", content_length=str(LIMIT + 1)))

    assert (status, headers["connection"]) == (413, "close")
    assert str(LIMIT + 1) in json.loads(body)["detail"]
    assert str(LIMIT) in json.loads(body)["detail"]


async def test_a_chunked_body_above_the_limit_gets_413(shared: FabricUnderTest) -> None:
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"

    status, _, body = await exchange(
        shared, head("POST", "/digest", transfer_encoding="chunked"), *[chunk] * 12, within_s=10.0
    )

    assert (status, json.loads(body)["code"]) == (413, "request.body_too_large")


async def test_a_client_that_sends_everything_before_it_reads_sees_the_refusal_too(shared: FabricUnderTest) -> None:
    """A connection closed on unread bytes is reset, and the answer is lost with it."""
    async with shared.client() as client:
        for _ in range(3):
            large_body = await client.post("/digest", content=bytes(3 * LIMIT))
            many_headers = await client.get("/text", headers=[(f"h{number}", "x" * 100) for number in range(5000)])

            assert (large_body.status_code, many_headers.status_code) == (413, 431)


async def test_a_body_of_exactly_the_limit_is_served(client: httpx.AsyncClient) -> None:
    answer = await client.post("/digest", content=bytes(LIMIT))

    assert (answer.status_code, answer.json()["bytes"]) == (200, LIMIT)


async def test_a_head_that_trickles_gets_408(shared: FabricUnderTest) -> None:
    began = time.monotonic()

    status, _, body = await exchange(shared, b"GET /text HTTP/1.1\r\nhost: a\r\nx-slow: ")

    assert (status, json.loads(body)["code"]) == (408, "request.timeout")
    assert time.monotonic() - began < 2


async def test_a_body_that_trickles_gets_408(shared: FabricUnderTest) -> None:
    began = time.monotonic()

    status, headers, body = await exchange(shared, head("POST", "/digest", content_length="100"), b"half")

    assert (status, json.loads(body)["code"], headers["connection"]) == (408, "request.timeout", "close")
    assert time.monotonic() - began < 2


async def test_a_body_that_never_begins_gets_408(shared: FabricUnderTest) -> None:
    status, _, _ = await exchange(shared, head("POST", "/digest", content_length="100"))

    assert status == 408


@pytest.mark.parametrize("target", ["/items/%/x", "/items/%g1/x", "/items/%2/x", "/items/%ff/x", "/items/a%00b/x"])
async def test_a_path_that_does_not_decode_gets_400(shared: FabricUnderTest, target: str) -> None:
    status, _, body = await exchange(shared, head(target=target))

    assert (status, json.loads(body)["code"]) == (400, "request.bad_path")


@pytest.mark.parametrize(
    "target", ["/no-such-path", "/", "/items", "/items/a/b/c", "/text/", "//text//more", "/%74ext"]
)
async def test_paths_that_no_route_has_get_404_and_spellings_of_one_do_not(
    shared: FabricUnderTest, target: str
) -> None:
    status, _, body = await exchange(shared, head(target=target))

    if target in ("/text/", "/%74ext"):
        assert status == 200
    else:
        assert (status, json.loads(body)["code"]) == (404, "route.not_found")


async def test_a_known_path_with_another_method_gets_405_and_allow(client: httpx.AsyncClient) -> None:
    wrong = await client.delete("/text")
    head_of_post = await client.head("/orders")

    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD")
    assert wrong.json()["code"] == "route.method_not_allowed"
    assert (head_of_post.status_code, head_of_post.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND"])
async def test_methods_that_no_handler_can_have_are_refused(shared: FabricUnderTest, method: str) -> None:
    status, _, _ = await exchange(shared, head(method, "/text"))

    assert status in (400, 405)


async def test_nul_bytes_in_a_body_are_data(client: httpx.AsyncClient) -> None:
    answer = await client.post("/mirror", content=b"\0\0a\0")

    assert answer.content == b"\0\0a\0"


async def test_a_client_that_leaves_after_half_a_body_leaves_nothing_behind(shared: FabricUnderTest) -> None:
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", shared.port)
        writer.write(head("POST", "/digest", content_length="100000") + bytes(50_000))
        await writer.drain()
        writer.transport.abort()

    async with shared.client() as client:

        async def nothing_in_flight() -> bool:
            return _metric((await client.get("/metrics")).text, "gati_ingress_in_flight") == 0

        await eventually(nothing_in_flight, within_s=5)


async def test_pipelined_requests_are_answered_in_their_order(shared: FabricUnderTest) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", shared.port)

    writer.write(b"".join(head(target=f"/items/{number}/x") for number in range(5)))
    found = []
    for _ in range(5):
        answer_head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode().lower()
        length = int(answer_head.partition("content-length: ")[2].partition("\r\n")[0])
        found.append(json.loads(await reader.readexactly(length))["item"])
    writer.close()
    await writer.wait_closed()

    assert found == ["0", "1", "2", "3", "4"]


def _metric(text: str, name: str) -> float:
    return sum(float(line.split(" ")[-1]) for line in text.splitlines() if line.startswith((name + " ", name + "{")))


# -- by hand, onto the streams -------------------------------------------------------------------


async def next_dead_letter(inside: Fabric, is_it: Callable[[DeadLetter], bool]) -> DeadLetter:
    """The newest dead letter that is meant."""
    found: list[DeadLetter] = []

    async def there() -> bool:
        found[:] = [letter for letter in await inside.dead_letters.newest() if is_it(letter)]
        return bool(found)

    await eventually(there, within_s=5)
    return found[0]


GARBAGE = {
    "empty": b"",
    "text": b"hello, is this thing on?",
    "json": b'{"protocol": 1}',
    "zeros": bytes(100),
    "nested": b"\x91" * 50_000 + b"\xc0",
    "truncated": encode(descriptor())[:20],
    "other types": msgspec.msgpack.encode([PROTOCOL, 7, None, "soon", [], {}, 1.5]),
    "too few": msgspec.msgpack.encode([PROTOCOL]),
}


@pytest.mark.parametrize("payload", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_on_the_request_stream_becomes_a_dead_letter_with_its_reason(
    inside: Fabric, payload: bytes
) -> None:
    await inside.publisher.send(inside.subjects.req(5), payload)

    letter = await next_dead_letter(inside, lambda letter: letter.stage == "req" and letter.data == payload)

    assert (letter.code, letter.attempts) == ("wire.malformed_descriptor", 1)
    assert letter.cause.startswith(f"{len(payload)} bytes on {inside.subjects.req(5)}: ")


async def test_a_descriptor_of_another_protocol_becomes_a_dead_letter_that_names_both(inside: Fabric) -> None:
    payload = encode(descriptor(protocol=99))
    await inside.publisher.send(inside.subjects.req(5), payload)

    letter = await next_dead_letter(inside, lambda letter: letter.data == payload)

    assert letter.code == "wire.malformed_descriptor"
    assert "protocol 99" in letter.cause
    assert f"protocol {PROTOCOL}" in letter.cause


@pytest.mark.parametrize(
    "reply_to",
    ["", "evil", "two words", "x\r\nPUB evil 0\r\n\r\n", "a\0b", "ü", "x" * 300],
    ids=lambda value: repr(value)[:20],
)
@pytest.mark.parametrize("stage", ["req", "work"])
async def test_a_hostile_reply_subject_is_never_published_to(inside: Fabric, stage: str, reply_to: str) -> None:
    request = descriptor(reply_to=reply_to)
    subject, payload = inside.subjects.req(5), encode(request)
    if stage == "work":
        pool = await pool_of(inside, "echo")
        subject, payload = inside.subjects.work(pool, "text"), encode(work_item(request, "text"))
    heard: list[bytes] = []
    evil = await inside.connection.subscribe("evil", lambda *message: heard.append(message[2]))

    await inside.publisher.send(subject, payload)
    letter = await next_dead_letter(inside, lambda letter: letter.data == payload)

    assert (letter.stage, letter.code.startswith("wire.malformed")) == (stage, True)
    assert letter.cause == f"{reply_to[:80]!r} is no reply subject of this fabric"
    await inside.connection.flush()
    assert heard == []
    await evil.aclose()


@pytest.mark.parametrize("payload", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize(("app", "handler"), [("echo", "text"), ("ledger", "once")])
async def test_garbage_on_the_work_stream_becomes_a_dead_letter_with_its_reason(
    inside: Fabric, payload: bytes, app: str, handler: str
) -> None:
    pool = await pool_of(inside, app)
    await inside.publisher.send(inside.subjects.work(pool, handler), payload)

    letter = await next_dead_letter(
        inside, lambda letter: letter.stage == "work" and letter.pool == pool and letter.data == payload
    )

    assert (letter.code, letter.attempts) == ("wire.malformed_work_item", 1)


async def test_a_work_item_of_another_protocol_becomes_a_dead_letter(inside: Fabric) -> None:
    pool = await pool_of(inside, "echo")
    payload = encode(work_item(descriptor(), "text", protocol=2))
    await inside.publisher.send(inside.subjects.work(pool, "text"), payload)

    letter = await next_dead_letter(inside, lambda letter: letter.data == payload)

    assert letter.code == "wire.malformed_work_item"
    assert "protocol 2" in letter.cause


@pytest.mark.parametrize(
    "inner",
    [b"\xc0", b"\x93\x01\x02\x03", encode(descriptor(protocol=2))],
    ids=["a reserved byte", "three numbers", "another protocol"],
)
async def test_a_work_item_around_a_broken_descriptor_becomes_a_dead_letter_and_is_answered(
    inside: Fabric, inner: bytes
) -> None:
    pool = await pool_of(inside, "echo")
    answers: list[bytes] = []
    reply_to = inside.subjects.reply("here", "r")
    inbox = await inside.connection.subscribe(reply_to, lambda *message: answers.append(message[2]))
    request = descriptor(reply_to=reply_to)
    payload = encode(work_item(request, "text", descriptor=msgspec.Raw(inner)))

    await inside.publisher.send(inside.subjects.work(pool, "text"), payload)
    letter = await next_dead_letter(inside, lambda letter: letter.data == payload)
    await eventually(lambda: answers, within_s=2)
    await inbox.aclose()

    assert (letter.code, letter.request_id) == ("wire.malformed_descriptor", request.request_id)
    assert [msgspec.msgpack.decode(answer)[2] for answer in answers] == [502]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"not json",
        b"[]",
        b'{"worker": "w", "manifest": {}}',
        b'{"protocol": 9, "worker": "w", "manifest": {"app": "a", "pool": "p", "handlers": []}}',
        b'{"worker": "w", "manifest": {"app": "a", "pool": "p.*.>", "handlers": []}}',
        b'{"worker": "w", "manifest": {"app": "a", "pool": "p", "handlers":'
        b' [{"id": "h", "methods": ["STEAL"], "path": "/text", "mode": "at_most_once"}]}}',
        b'{"worker": "w", "manifest": {"app": "a", "pool": "p", "handlers":'
        b' [{"id": "h", "methods": ["GET"], "path": "no slash", "mode": "at_most_once"}]}}',
        b"\xff\xfe\x00",
        b"[" * 200_000,
    ],
    ids=lambda value: repr(value[:24]),
)
async def test_a_malformed_announcement_is_refused_and_its_neighbours_keep_serving(
    shared: FabricUnderTest, inside: Fabric, client: httpx.AsyncClient, document: bytes
) -> None:
    router = shared.routers[0]
    refused = len(router.events("announcement_refused"))

    await KvBucket(inside.connection, inside.subjects.pools_bucket).put("worker.evil.w1", document, ttl_s=2)
    await eventually(lambda: len(router.events("announcement_refused")) > refused, within_s=5)

    assert "worker.evil.w1" in str(router.events("announcement_refused")[-1]["error"])
    assert (await client.get("/text")).status_code == 200


async def test_a_malformed_manifest_is_refused_and_its_neighbours_keep_serving(
    shared: FabricUnderTest, inside: Fabric, client: httpx.AsyncClient
) -> None:
    bucket = KvBucket(inside.connection, inside.subjects.manifests_bucket)

    await bucket.put("current.evil", b'{"app": "evil"}')
    await eventually(lambda: shared.routers[0].events("manifest_refused"), within_s=5)

    assert (await client.get("/text")).status_code == 200
    await bucket.delete("current.evil")


@pytest.mark.parametrize("payload", [b"", b"garbage", msgspec.msgpack.encode([9, "id", "reason", 0])])
async def test_a_malformed_cancellation_is_refused(
    shared: FabricUnderTest, inside: Fabric, client: httpx.AsyncClient, payload: bytes
) -> None:
    refused = len(shared.routers[0].events("cancel_refused"))

    inside.connection.publish_now(inside.subjects.cancel_any.encode(), payload)

    await eventually(lambda: len(shared.routers[0].events("cancel_refused")) > refused, within_s=2)
    assert (await client.get("/text")).status_code == 200


async def test_an_unreadable_reply_is_counted_and_the_ingress_goes_on(
    shared: FabricUnderTest, inside: Fabric, client: httpx.AsyncClient
) -> None:
    ingress = str(shared.ingresses[0].events("ingress_started")[0]["ingress"])

    inside.connection.publish_now(inside.subjects.reply(ingress, "r").encode(), b"garbage")

    await eventually(lambda: shared.ingresses[0].events("reply_refused"), within_s=2)
    assert 'code="wire.malformed_reply"' in (await client.get("/metrics")).text
