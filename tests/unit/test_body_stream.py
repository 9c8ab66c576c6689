"""`res.stream()`: heads, parts, endings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio.from_thread
import pytest
from structlog.testing import capture_logs

from gati_core.errors import GatiError
from gati_core.lifecycle import ResponseAlreadySent
from gati_core.wire import CHANNEL_FRAME_BYTES, CHANNEL_WINDOW_FRAMES
from tests.helpers.handling import Desk, problem, shop


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def streamed(desk: Desk, function: Callable[..., Any], **options: Any) -> Any:
    """What the request came to: None once its head has left."""
    return await desk.begin(shop(function), **options).reply()


async def test_head_parts_and_end_leave_in_this_order(desk: Desk) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        async with res.status(201).header("x-one", "1").stream(content_type="text/csv") as stream:
            await stream.write("a,b\n")
            await stream.write(b"1,2\n")

    assert await streamed(desk, handler) is None
    (head,) = desk.wire.heads
    assert (head.status, head.more, head.body, head.route) == (201, True, b"", "/orders/{id}")
    assert head.headers == [("x-one", "1"), ("content-type", "text/csv")]
    assert head.channel == "gati.channel.w.r-1"
    assert desk.wire.sent == [("part", b"a,b\n"), ("part", b"1,2\n"), ("end", b"")]
    assert desk.wire.closed == ["r-1"]


async def test_the_head_leaves_when_the_block_is_entered(desk: Desk) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        stream = res.stream()
        before = len(desk.wire.heads)
        async with stream:
            await stream.write(f"{before} {len(desk.wire.heads)} {stream.has_begun}")

    await streamed(desk, handler)

    assert desk.wire.sent[0] == ("part", b"0 1 True")
    assert desk.wire.heads[0].headers == [("content-type", "application/octet-stream")]


async def test_a_large_part_travels_in_frames_that_are_not_larger_than_one_may_be(desk: Desk) -> None:
    body = bytes(range(256)) * (CHANNEL_FRAME_BYTES // 100)

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        stream = res.stream()
        await stream.write(body)
        await stream.write(b"")
        assert stream.bytes_sent == len(body)

    await streamed(desk, handler)

    parts = [data for kind, data in desk.wire.sent if kind == "part"]
    assert max(map(len, parts)) == CHANNEL_FRAME_BYTES
    assert (b"".join(parts), desk.wire.sent[-1][0]) == (body, "end")


async def test_concurrent_writes_do_not_mix(desk: Desk) -> None:
    sizes = (2 * CHANNEL_FRAME_BYTES + 7, 3, CHANNEL_FRAME_BYTES * 6)

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        async with res.stream() as stream:
            await asyncio.gather(*(stream.write(b"%d" % number * size) for number, size in enumerate(sizes)))

    await streamed(desk, handler)

    body = b"".join(data for kind, data in desk.wire.sent if kind == "part")
    assert body == b"".join(b"%d" % number * size for number, size in enumerate(sizes))


async def test_a_slow_client_slows_the_handler(desk: Desk) -> None:
    desk.wire.acks_at_once = False
    written: list[int] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        async with res.stream() as stream:
            for number in range(CHANNEL_WINDOW_FRAMES * 2):
                await stream.write(b"x")
                written.append(number)

    underway = desk.begin(shop(handler))
    for _ in range(CHANNEL_WINDOW_FRAMES * 8):
        await asyncio.sleep(0)

    assert len(written) == CHANNEL_WINDOW_FRAMES
    underway.cancel("client_gone")
    assert await underway.reply() is None
    assert desk.wire.sent[-1][0] == "abort"


@pytest.mark.parametrize("ending", ["raises", "deadline", "leaving", "block"])
async def test_a_stream_that_breaks_off_is_cut_so_that_the_client_sees_it(desk: Desk, ending: str) -> None:
    begun = asyncio.Event()

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        stream = res.stream()
        if ending == "block":
            async with stream:
                raise ValueError
        await stream.write("half")
        begun.set()
        if ending == "raises":
            raise ValueError
        await asyncio.Event().wait()

    underway = desk.begin(shop(handler))
    if ending in ("deadline", "leaving"):
        await begun.wait()
        underway.cancel(ending)

    assert await underway.reply() is None
    assert [kind for kind, _ in desk.wire.sent][-1] == "abort"


async def test_catch_hooks_cannot_answer_once_the_head_has_left(desk: Desk) -> None:
    refused: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        await res.stream().write("half")
        raise ValueError

    def answer(error: Any, gctx: Any, lctx: Any) -> None:
        try:
            lctx.response.text("sorry")
        except ResponseAlreadySent as exc:
            refused.append(str(exc))

    app = shop(handler)
    app.catch(answer)

    assert (await desk.begin(app).reply(), len(refused)) == (None, 1)


@pytest.mark.parametrize("use", ["nothing", "end"])
async def test_a_stream_without_a_part_is_an_empty_body(desk: Desk, use: str) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        stream = res.status(202).header("x-one", "1").stream()
        if use == "end":
            await stream.end()
            await stream.end()

    reply = await streamed(desk, handler)

    answer = desk.wire.heads[0] if use == "end" else reply
    assert (answer.status, answer.body, ("x-one", "1") in answer.headers) == (202, b"", True)
    assert desk.wire.sent == ([("end", b"")] if use == "end" else [])


@pytest.mark.parametrize("ending", ["raises", "aborts"])
async def test_a_stream_that_fails_before_its_first_part_is_answered_like_any_failure(desk: Desk, ending: str) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        stream = res.header("x-half", "done").stream()
        if ending == "raises":
            raise ValueError
        stream.abort()

    reply = await streamed(desk, handler)

    assert (reply.status, problem(reply)["code"], reply.route, desk.wire.heads) == (500, "internal", "/orders/{id}", [])


async def test_a_head_that_cannot_be_sent_is_a_failure_that_is_answered(desk: Desk) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        desk.wire.is_up = False
        async with res.stream() as stream:
            await stream.write("x")

    reply = await streamed(desk, handler)

    assert (reply.status, desk.wire.closed) == (500, ["r-1"])


async def test_a_client_that_leaves_ends_the_write_and_is_no_failure_of_the_handlers(desk: Desk) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        async with res.stream() as stream:
            await stream.write("x")
            desk.wire.hang_up(1006)
            await stream.write("y")

    with capture_logs() as lines:
        assert await streamed(desk, handler) is None
    assert [(line["event"], line["log_level"]) for line in lines] == [("client_left_stream", "info")]


async def test_nothing_is_written_after_the_end(desk: Desk) -> None:
    outcomes: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        async with res.stream() as stream:
            await stream.write("x")
        try:
            await stream.write("y")
        except GatiError as exc:
            outcomes.append(exc.code)
        stream.abort()

    await streamed(desk, handler)

    assert (outcomes, [kind for kind, _ in desk.wire.sent]) == (["channel.closed"], ["part", "end"])


@pytest.mark.parametrize("call", ["json", "text", "stream", "status"])
async def test_a_stream_is_a_terminal_call(desk: Desk, call: str) -> None:
    outcomes: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.stream()
        try:
            getattr(res, call)(*{"json": (1,), "text": ("x",), "stream": (), "status": (200,)}[call])
        except ResponseAlreadySent:
            outcomes.append("refused")

    await streamed(desk, handler)

    assert outcomes == ["refused"]


@pytest.mark.parametrize("data", [7, None, ["x"], 1.5])
async def test_what_is_neither_text_nor_bytes_cannot_be_written(desk: Desk, data: Any) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        await res.stream().write(data)

    assert (await streamed(desk, handler)).status == 500


async def test_a_def_handler_streams_through_the_loop(desk: Desk) -> None:
    def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        stream = res.stream()
        anyio.from_thread.run(stream.write, b"x")
        anyio.from_thread.run(stream.end)

    assert await streamed(desk, handler) is None
    assert desk.wire.sent == [("part", b"x"), ("end", b"")]


# -- server-sent events -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "sent"),
    [
        ({"data": "hello"}, "data: hello\n\n"),
        ({"data": {"tick": 1}}, 'data: {"tick":1}\n\n'),
        ({"data": "two\nlines"}, "data: two\ndata: lines\n\n"),
        ({"data": "a\r\nb\rc"}, "data: a\ndata: b\ndata: c\n\n"),
        ({"data": ""}, "data: \n\n"),
        (
            {"data": "x", "event": "tick", "id": "7", "retry_ms": 100},
            "event: tick\nid: 7\nretry: 100\ndata: x\n\n",
        ),
    ],
)
async def test_an_event_is_written_as_browsers_read_it(desk: Desk, event: dict[str, Any], sent: str) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        async with res.stream(content_type="text/event-stream") as stream:
            await stream.event(event.pop("data"), **event)

    await streamed(desk, handler)

    assert desk.wire.sent[0] == ("part", sent.encode())


@pytest.mark.parametrize("field", ["event", "id"])
@pytest.mark.parametrize("mark", ["\n", "\r", "\0"])
async def test_a_field_of_an_event_cannot_smuggle_in_another(desk: Desk, field: str, mark: str) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        await res.stream().event("x", **{field: f"a{mark}data: b"})

    assert ((await streamed(desk, handler)).status, desk.wire.sent) == (500, [])
