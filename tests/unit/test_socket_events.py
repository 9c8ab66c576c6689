"""`lctx.websocket`: waiting for events and emitting them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from gati_core.contexts import WebSocket
from gati_core.contexts._socket import MAX_SET_ASIDE
from gati_core.errors import (
    ChannelClosed,
    EventTimeout,
    GatiError,
)
from gati_core.lifecycle import watch_tasks
from tests.helpers.handling import WITHIN_S, Desk
from tests.helpers.line import Line, Talk, settle

SHORT_S = 0.02


@pytest.fixture
async def line() -> Line:
    return Line()


# -- events -------------------------------------------------------------------------------------


def waiting_for(kind: str, outcomes: list[Any], **options: Any) -> Talk:
    async def talk(socket: WebSocket, lctx: Any) -> None:
        await socket.accept()
        try:
            event = await socket.wait_for_event(kind, **options)
        except GatiError as exc:
            outcomes.append(type(exc))
        else:
            outcomes.append((event.type, event.request_id, event.data))

    return talk


async def test_an_event_comes_from_the_client(line: Line) -> None:
    outcomes: list[Any] = []
    underway = await line.accepted(waiting_for("move", outcomes))
    line.wire.say('{"type": "move", "data": {"x": 1}}')
    await underway.reply()

    assert outcomes == [("move", "r-1", {"x": 1})]


async def test_an_event_comes_from_any_process(line: Line) -> None:
    outcomes: list[Any] = []
    underway = await line.accepted(waiting_for("move", outcomes))
    line.topics.local("r-1").events.emit_event("move", [1])
    await underway.reply()

    assert outcomes == [("move", "r-1", [1])]


async def test_an_event_of_another_request_or_type_is_not_the_one(line: Line) -> None:
    outcomes: list[Any] = []
    underway = await line.accepted(waiting_for("move", outcomes, timeout_s=SHORT_S))
    line.topics.local("r-2").events.emit_event("move")
    line.topics.local("r-1").events.emit_event("other")
    line.wire.say('{"type": "other"}')
    await underway.reply()

    assert outcomes == [EventTimeout]


async def test_an_event_is_emitted_to_the_client_and_to_who_waits(line: Line) -> None:
    outcomes: list[Any] = []

    async def talk(socket: WebSocket, lctx: Any) -> None:
        waiting = asyncio.ensure_future(waiting_for("move", outcomes)(_Accepted(socket), lctx))
        await settle()
        await socket.emit_event("move", 7)
        await waiting

    await line.begin(talk).reply()

    assert outcomes == [("move", "r-1", 7)]
    sent = json.loads(line.messages[0])
    assert (sent["type"], sent["request_id"], sent["data"], type(sent["timestamp"])) == ("move", "r-1", 7, int)


class _Accepted:
    """The same socket for a second task that accepts as well."""

    def __init__(self, socket: WebSocket) -> None:
        self.wait_for_event = socket.wait_for_event

    async def accept(self) -> None: ...


OTHERS = ["text", '{"type": "other"}', "[1]", "{", '{"type": 7}', b'{"type": "move"}', '{"a":' * 100_000]


async def test_other_messages_are_set_aside_for_receive_in_their_order(line: Line) -> None:
    received: list[Any] = []

    async def talk(socket: WebSocket, lctx: Any) -> None:
        await socket.accept()
        await socket.wait_for_event("move")
        received.extend([await socket.receive() for _ in OTHERS])
        received.append(await socket.receive())

    underway = await line.accepted(talk)
    for message in [*OTHERS, '{"type": "move"}']:
        line.wire.say(message)
    await settle()
    line.wire.say("last")
    await underway.reply()

    assert received == [*OTHERS, "last"]


async def test_two_who_wait_for_a_type_get_one_event_each(line: Line) -> None:
    got: list[Any] = []

    async def talk(socket: WebSocket, lctx: Any) -> None:
        await socket.accept()
        events = await asyncio.gather(*(socket.wait_for_event("move") for _ in range(2)))
        got.extend(event.data for event in events)

    underway = await line.accepted(talk)
    for number in (1, 2):
        line.wire.say(json.dumps({"type": "move", "data": number}))
    await underway.reply()

    assert sorted(got) == [1, 2]


async def test_messages_that_nobody_takes_slow_the_client_down(line: Line) -> None:
    outcomes: list[Any] = []

    async def talk(socket: WebSocket, lctx: Any) -> None:
        await waiting_for("never", outcomes, timeout_s=10)(socket, lctx)

    underway = await line.accepted(talk)
    for _ in range(MAX_SET_ASIDE + 40):
        line.wire.say("x")
    await settle()
    channel, socket = line.wire.channels["r-1"], underway.run.lctx.websocket

    assert (len(socket._aside), len(channel._inbox)) == (MAX_SET_ASIDE, 39)  # and one on its way between them
    underway.cancel("client_gone")
    await underway.reply()


async def test_what_was_set_aside_can_be_taken_after_the_client_left(line: Line) -> None:
    received: list[Any] = []

    async def talk(socket: WebSocket, lctx: Any) -> None:
        await socket.accept()
        with pytest.raises(ChannelClosed):
            await socket.wait_for_event("move")
        with pytest.raises(ChannelClosed):
            await socket.wait_for_event("move", timeout_s=60)
        received.extend([message async for message in socket])

    underway = await line.accepted(talk)
    line.wire.say("a")
    line.wire.say("b")
    line.wire.hang_up()
    with anyio.fail_after(WITHIN_S):
        await underway.reply()

    assert received == ["a", "b"]


@pytest.mark.parametrize("kind", ["", "a.b", "a b"])
async def test_an_event_type_that_cannot_be_one_is_refused(line: Line, kind: str) -> None:
    outcomes: list[Any] = []
    await line.begin(waiting_for(kind, outcomes)).reply()

    assert [issubclass(outcome, GatiError) for outcome in outcomes] == [True]


async def test_a_wait_that_failed_takes_no_later_event_away() -> None:
    line = Line()
    line.desk = Desk()  # connected to no fabric
    line.wire = line.desk.wire
    received: list[Any] = []

    async def talk(socket: WebSocket, lctx: Any) -> None:
        await socket.accept()
        with pytest.raises(GatiError, match="not connected"):
            await socket.wait_for_event("move")
        received.append(await socket.receive())

    underway = await line.accepted(talk)
    line.wire.say('{"type": "move"}')
    await underway.reply()

    assert received == ['{"type": "move"}']


async def test_a_wait_that_was_answered_is_no_leaked_task(line: Line) -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    watch_tasks(loop)
    try:
        outcomes: list[Any] = []
        underway = await line.accepted(waiting_for("move", outcomes))
        line.wire.say('{"type": "move"}')
        with capture_logs() as lines:
            await underway.reply()
    finally:
        loop.set_task_factory(before)

    assert (len(outcomes), lines) == (1, [])
