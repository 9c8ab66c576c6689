"""`lctx.websocket`: the handshake, messages, events, and how a connection ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from gati_core.contexts import WebSocket
from gati_core.contexts._socket import MAX_MESSAGE_BYTES
from gati_core.errors import (
    ChannelClosed,
    Forbidden,
    GatiError,
    HandlerError,
    MessageTooLarge,
    RegistrationError,
)
from gati_core.wire import PROTOCOL, Frame
from tests.helpers.handling import problem, shop
from tests.helpers.line import Line, Talk, settle

SHORT_S = 0.02


@pytest.fixture
async def line() -> Line:
    return Line()


# -- the handshake ------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["accept", "send", "receive", "close"])
async def test_the_first_use_accepts_the_connection(line: Line, first: str) -> None:
    async def talk(socket: WebSocket, lctx: Any) -> None:
        assert (socket.is_accepted, socket.is_open, socket.close_code) == (False, False, None)
        await getattr(socket, first)(*(["x"] if first == "send" else []))

    underway = await line.accepted(talk)
    if first == "receive":
        line.wire.say("x")

    assert await underway.reply() is None
    (head,) = line.wire.heads
    assert (head.status, head.more, head.headers) == (101, True, [])


async def test_a_subprotocol_is_one_that_the_client_offers(line: Line) -> None:
    refused: list[str] = []

    async def talk(socket: WebSocket, lctx: Any) -> None:
        assert socket.subprotocols == ["chat", "superchat", "v2"]
        try:
            await socket.accept("other")
        except ValueError as exc:
            refused.append(str(exc))
        await socket.accept("superchat", {"x-one": "1"})

    headers = [("sec-websocket-protocol", "chat, superchat"), ("sec-websocket-protocol", "v2")]
    await line.begin(talk, headers=headers).reply()

    assert line.wire.heads[0].headers == [("x-one", "1"), ("sec-websocket-protocol", "superchat")]
    assert "it offers chat, superchat, v2" in refused[0]


async def test_a_connection_is_accepted_once(line: Line) -> None:
    async def talk(socket: WebSocket, lctx: Any) -> None:
        await socket.send("x")
        with pytest.raises(GatiError, match="accepted before"):
            await socket.accept()

    await line.begin(talk).reply()

    assert (len(line.wire.heads), line.closing) == (1, (1000, ""))


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Forbidden("not you"), 403, "auth.forbidden"),
        (HandlerError("no", 404), 404, "handler.error"),
        (ValueError("x"), 500, "internal"),
    ],
)
async def test_a_handler_that_raises_first_refuses_the_handshake(
    line: Line, error: Exception, status: int, code: str
) -> None:
    async def talk(socket: WebSocket, lctx: Any) -> None:
        raise error

    reply = await line.begin(talk).reply()

    assert reply is not None
    assert (reply.status, problem(reply)["code"], reply.more, reply.route) == (status, code, False, "/chat")
    assert line.wire.heads == []


@pytest.mark.parametrize("answers", [False, True])
async def test_a_handler_that_never_accepts_refuses(line: Line, answers: bool) -> None:
    async def talk(socket: WebSocket, lctx: Any) -> None:
        if answers:
            lctx.response.status(402).text("pay first")

    reply = await line.begin(talk).reply()

    assert reply is not None
    assert (reply.status, reply.more) == ((402, False) if answers else (403, False))


async def test_a_socket_is_no_stream(line: Line) -> None:
    async def talk(socket: WebSocket, lctx: Any) -> None:
        lctx.response.stream()

    reply = await line.begin(talk).reply()

    assert reply is not None
    assert reply.status == 500


def test_a_plain_function_cannot_hold_a_connection() -> None:
    with pytest.raises(RegistrationError, match="must be `async def`"):
        shop(lambda req, res, gctx, lctx: None, method="WEBSOCKET")


# -- messages -----------------------------------------------------------------------------------


async def test_text_and_bytes_come_and_go_as_what_they_are(line: Line) -> None:
    async def echo(socket: WebSocket, lctx: Any) -> None:
        async for message in socket:
            await socket.send(message)

    underway = await line.accepted(_accepting(echo))
    line.wire.say("grüße")
    line.wire.say(b"\xff")
    await settle()
    line.wire.hang_up()

    assert await underway.reply() is None
    assert line.wire.sent == [("text", "grüße".encode()), ("binary", b"\xff")]


def _accepting(talk: Talk) -> Talk:
    async def accepts(socket: WebSocket, lctx: Any) -> None:
        await socket.accept()
        await talk(socket, lctx)

    return accepts


async def test_json_comes_and_goes(line: Line) -> None:
    async def talk(socket: WebSocket, lctx: Any) -> None:
        await socket.send_json({"got": await socket.receive_json(list[int])})

    underway = await line.accepted(talk)
    line.wire.say("[1, 2]")
    await underway.reply()

    assert line.messages == [b'{"got":[1,2]}']


@pytest.mark.parametrize("message", ["{", '{"a": 1}', b"\xff", "[" * 100_000], ids=["half", "other", "bytes", "deep"])
async def test_a_message_that_is_not_what_is_expected_closes_with_1011_and_says_little(
    line: Line, message: str | bytes
) -> None:
    async def talk(socket: WebSocket, lctx: Any) -> None:
        await socket.receive_json(list[int])

    underway = await line.accepted(talk)
    line.wire.say(message)
    await underway.reply()

    code, reason = line.closing
    assert (code, len(reason.encode()) <= 123) == (1011, True)


async def test_text_that_is_no_utf_8_breaks_the_connection(line: Line) -> None:
    seen: list[type[Exception]] = []

    async def talk(socket: WebSocket, lctx: Any) -> None:
        try:
            await socket.receive()
        except ChannelClosed as exc:
            seen.append(type(exc))

    underway = await line.accepted(talk)
    line.wire.channels["r-1"].feed(Frame(PROTOCOL, "r-1", 1, "text", b"\xff"), 0.0)
    await underway.reply()

    assert seen == [ChannelClosed]


async def test_a_message_beyond_the_limit_is_refused_and_the_connection_lives(line: Line) -> None:
    async def talk(socket: WebSocket, lctx: Any) -> None:
        with pytest.raises(MessageTooLarge, match=str(MAX_MESSAGE_BYTES)):
            await socket.send(b"x" * (MAX_MESSAGE_BYTES + 1))
        await socket.send(b"x" * MAX_MESSAGE_BYTES)

    await line.begin(talk).reply()

    assert len(line.messages[0]) == MAX_MESSAGE_BYTES


@pytest.mark.parametrize("message", [7, None, ["x"]])
async def test_what_is_neither_text_nor_bytes_cannot_be_sent(line: Line, message: Any) -> None:
    async def talk(socket: WebSocket, lctx: Any) -> None:
        with pytest.raises(TypeError):
            await socket.send(message)
        await socket.close(4000)

    await line.begin(talk).reply()

    assert (line.messages, line.closing) == ([], (4000, ""))


async def test_two_tasks_cannot_receive_at_once(line: Line) -> None:
    async def talk(socket: WebSocket, lctx: Any) -> None:
        first = asyncio.ensure_future(socket.receive())
        await asyncio.sleep(0)
        for wrong in (socket.receive(), socket.wait_for_event("x")):
            with pytest.raises(GatiError, match="another task is receiving"):
                await wrong
        await socket.send(await first)

    underway = await line.accepted(talk)
    await settle()
    line.wire.say('{"type": "x"}')
    await underway.reply()

    assert line.messages == [b'{"type": "x"}']


# -- endings ------------------------------------------------------------------------------------


async def talk_on(socket: WebSocket, lctx: Any) -> None:
    await socket.accept()
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("reason", "closing"),
    [
        ("deadline", (1001, "the connection was open for as long as it may be")),
        ("leaving", (1012, "the worker is leaving")),
    ],
)
async def test_the_client_hears_why_a_connection_was_ended(line: Line, reason: str, closing: tuple[int, str]) -> None:
    underway = await line.accepted(talk_on)
    underway.cancel(reason, is_own_limit=True)

    assert await underway.reply() is None
    assert line.closing == closing


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ValueError("secret"), "Internal error"), (HandlerError("é" * 100), "é" * 61), (Forbidden("you"), "Forbidden")],
    ids=lambda value: type(value).__name__,
)
async def test_an_error_after_the_handshake_closes_with_1011(line: Line, error: Exception, reason: str) -> None:
    async def talk(socket: WebSocket, lctx: Any) -> None:
        await socket.accept()
        raise error

    await line.begin(talk).reply()

    assert line.closing == (1011, reason)


@pytest.mark.parametrize("code", [1000, 1001, 1007, 1014, 3000, 4999])
async def test_a_handler_closes_with_a_code_and_a_reason_once(line: Line, code: int) -> None:
    async def talk(socket: WebSocket, lctx: Any) -> None:
        await socket.close(code, "enough")
        await socket.close(1000)
        assert (socket.is_open, socket.close_code) == (False, None)
        with pytest.raises(ChannelClosed):
            await socket.send("x")
        with pytest.raises(ChannelClosed):
            await socket.receive()

    await line.begin(talk).reply()

    assert line.closing == (code, "enough")


@pytest.mark.parametrize(
    ("code", "reason"),
    [*((code, "") for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)), (1000, "é" * 62)],
)
async def test_a_close_that_may_not_be_sent_is_refused(line: Line, code: int, reason: str) -> None:
    async def talk(socket: WebSocket, lctx: Any) -> None:
        with pytest.raises(ValueError, match="close"):
            await socket.close(code, reason)
        await socket.send("still here")

    await line.begin(talk).reply()

    assert line.messages == [b"still here"]


@pytest.mark.parametrize("code", [1000, 1006, 4001])
async def test_the_code_of_a_client_that_left_is_known(line: Line, code: int) -> None:
    seen: list[int | None] = []

    async def talk(socket: WebSocket, lctx: Any) -> None:
        await socket.accept()
        async for _ in socket:
            pass
        seen.append(socket.close_code)

    underway = await line.accepted(talk)
    line.wire.hang_up(code)

    assert (await underway.reply(), seen) == (None, [code])
    assert "close" not in [kind for kind, _ in line.wire.sent]


async def test_a_send_that_waits_is_told_that_the_client_left(line: Line) -> None:
    line.wire.acks_at_once = False

    async def talk(socket: WebSocket, lctx: Any) -> None:
        while True:
            await socket.send("x")

    underway = await line.accepted(talk)
    await settle()
    line.wire.hang_up(1006)

    with capture_logs() as lines:
        assert await underway.reply() is None
    assert [line["event"] for line in lines] == ["client_left_stream"]
