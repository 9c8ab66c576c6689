"""A channel's worker end: order, flow control, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from gati_core.errors import BrokerUnavailable, ChannelClosed, MessageTooLarge
from gati_core.fabric import Channel
from gati_core.wire import (
    CHANNEL_ACK_BYTES,
    CHANNEL_ACK_FRAMES,
    CHANNEL_WINDOW_BYTES,
    CHANNEL_WINDOW_FRAMES,
    PROTOCOL,
    Frame,
    FrameKind,
)
from tests.helpers.handling import WITHIN_S


def frame(seq: int, kind: FrameKind = "text", data: bytes = b"", *, code: int = 0, text: str = "") -> Frame:
    return Frame(PROTOCOL, "r-1", seq, kind, data, code, text)


class End:
    """A channel whose frames are kept, and which a test feeds."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.error: Exception | None = None
        self.lost: list[str] = []
        self.channel = Channel("r-1", "subject", self._take, now=lambda: 0.0, on_lost=self.lost.append)

    def _take(self, frame: Frame) -> None:
        if self.error is not None:
            raise self.error
        self.frames.append(frame)

    def feed(self, *frames: Frame) -> None:
        for each in frames:
            self.channel.feed(each, 1.0)

    async def fill(self) -> None:
        """Send until the window is full."""
        for _ in range(CHANNEL_WINDOW_FRAMES):
            await self.channel.send("part", b"x")


@pytest.fixture
def end() -> End:
    return End()


async def waiting(work: Any) -> asyncio.Task[Any]:
    """A task that has come as far as it can by itself."""
    task = asyncio.ensure_future(work)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def finished(task: asyncio.Task[Any]) -> Any:
    with anyio.fail_after(WITHIN_S):
        return await task


# -- sending ------------------------------------------------------------------------------------


async def test_frames_are_numbered_from_one_in_the_order_sent(end: End) -> None:
    await end.channel.send("text", b"a")
    await end.channel.send("binary", b"b")
    end.channel.end("close", code=1000, text="bye")

    assert end.frames == [
        frame(1, "text", b"a"),
        frame(2, "binary", b"b"),
        frame(3, "close", code=1000, text="bye"),
    ]


async def test_a_sender_waits_once_as_many_frames_as_the_window_holds_are_unacknowledged(end: End) -> None:
    await end.fill()
    task = await waiting(end.channel.send("part", b"y"))

    assert end.channel.unacked_frames == CHANNEL_WINDOW_FRAMES
    end.feed(frame(1, "ack"))
    await finished(task)
    assert end.frames[-1] == frame(CHANNEL_WINDOW_FRAMES + 1, "part", b"y")


async def test_a_sender_waits_once_as_many_bytes_as_the_window_holds_are_unacknowledged(end: End) -> None:
    half = b"x" * (CHANNEL_WINDOW_BYTES // 2)
    await end.channel.send("part", half)
    await end.channel.send("part", half)
    task = await waiting(end.channel.send("part", b"y"))

    end.feed(frame(1, "ack"))
    await finished(task)

    assert len(end.frames) == 3


async def test_a_frame_larger_than_the_window_goes_alone(end: End) -> None:
    large = b"x" * (2 * CHANNEL_WINDOW_BYTES)
    await end.channel.send("binary", large)
    task = await waiting(end.channel.send("binary", large))

    end.feed(frame(1, "ack"))
    await finished(task)

    assert len(end.frames) == 2


async def test_one_ack_stands_for_all_frames_up_to_it(end: End) -> None:
    await end.fill()
    end.feed(frame(10, "ack"))
    assert end.channel.unacked_frames == CHANNEL_WINDOW_FRAMES - 10

    end.feed(frame(5, "ack"), frame(-1, "ack"), frame(10, "ack"))
    assert end.channel.unacked_frames == CHANNEL_WINDOW_FRAMES - 10


async def test_an_ack_of_what_was_never_sent_counts_for_what_was(end: End) -> None:
    await end.channel.send("part", b"x")
    end.feed(frame(99, "ack"))
    await end.channel.send("part", b"y")

    assert (end.channel.unacked_frames, end.channel.is_open) == (1, True)


async def test_concurrent_senders_keep_the_order_in_which_they_came(end: End) -> None:
    await end.fill()
    tasks = [await waiting(end.channel.send("part", b"%d" % number)) for number in range(20)]

    for number in range(20):
        end.feed(frame(number + 1, "ack"))
        await finished(tasks[number])

    assert [each.data for each in end.frames[CHANNEL_WINDOW_FRAMES:]] == [b"%d" % number for number in range(20)]
    assert [each.seq for each in end.frames] == list(range(1, CHANNEL_WINDOW_FRAMES + 21))


async def test_a_sender_that_is_cancelled_while_it_waits_sends_nothing_and_holds_up_nobody(end: End) -> None:
    await end.fill()
    gone, next_one = await waiting(end.channel.send("part", b"gone")), await waiting(end.channel.send("part", b"next"))

    gone.cancel()
    end.feed(frame(1, "ack"))
    await finished(next_one)

    assert end.frames[-1].data == b"next"


async def test_the_last_frame_needs_no_room(end: End) -> None:
    await end.fill()
    end.channel.end("end")

    assert end.frames[-1].kind == "end"


async def test_nothing_follows_the_last_frame(end: End) -> None:
    await end.fill()
    task = await waiting(end.channel.send("part", b"y"))
    end.channel.end("end")
    end.channel.end("abort")

    with pytest.raises(ChannelClosed, match="last frame"):
        await finished(task)
    with pytest.raises(ChannelClosed, match="last frame"):
        await end.channel.send("part", b"z")
    assert [each.kind for each in end.frames[CHANNEL_WINDOW_FRAMES:]] == ["end"]


async def test_a_broker_that_is_away_breaks_the_channel(end: End) -> None:
    end.error = BrokerUnavailable("no broker is connected")

    with pytest.raises(ChannelClosed, match="broker is away"):
        await end.channel.send("part", b"x")
    assert (end.lost, end.channel.is_open) == (["no broker is connected"], False)


async def test_the_end_that_cannot_be_sent_is_no_error(end: End) -> None:
    end.error = BrokerUnavailable("no broker is connected")

    end.channel.end("end")

    assert not end.channel.is_open


async def test_a_message_that_the_broker_refuses_does_not_use_up_a_number(end: End) -> None:
    end.error = MessageTooLarge("too large")
    with pytest.raises(MessageTooLarge):
        await end.channel.send("binary", b"x")
    end.error = None
    await end.channel.send("binary", b"y")

    assert (end.frames, end.channel.is_open) == ([frame(1, "binary", b"y")], True)


# -- receiving ----------------------------------------------------------------------------------


async def test_messages_are_received_in_their_order_whether_they_are_awaited_or_not(end: End) -> None:
    task = await waiting(end.channel.receive())
    end.feed(frame(1, data=b"a"), frame(2, "binary", b"b"))

    assert [(await finished(task)).data, (await end.channel.receive()).data] == [b"a", b"b"]


async def test_what_was_taken_is_acknowledged_every_few_frames(end: End) -> None:
    for number in range(CHANNEL_ACK_FRAMES * 2):
        end.feed(frame(number + 1, data=b"x"))
    assert end.frames == []

    for _ in range(CHANNEL_ACK_FRAMES * 2):
        await end.channel.receive()

    assert [(each.kind, each.seq) for each in end.frames] == [
        ("ack", CHANNEL_ACK_FRAMES),
        ("ack", 2 * CHANNEL_ACK_FRAMES),
    ]


async def test_what_was_taken_is_acknowledged_sooner_when_it_is_large(end: End) -> None:
    end.feed(frame(1, "binary", b"x" * CHANNEL_ACK_BYTES), frame(2, data=b"x"))
    await end.channel.receive()
    await end.channel.receive()

    assert [(each.kind, each.seq) for each in end.frames] == [("ack", 1)]


@pytest.mark.parametrize("frames", [[frame(2)], [frame(1), frame(1)], [frame(1), frame(3)], [frame(0)]], ids=str)
async def test_a_gap_or_a_repeat_breaks_the_channel(end: End, frames: list[Frame]) -> None:
    end.feed(*frames)

    assert not end.channel.is_open
    assert end.channel.closed is not None
    assert (end.channel.closed.code, len(end.lost)) == (1006, 1)
    assert "messages were lost" in end.lost[0]


@pytest.mark.parametrize("kind", ["part", "end", "abort"])
async def test_frames_that_only_a_worker_sends_break_the_channel(end: End, kind: FrameKind) -> None:
    end.feed(frame(1, kind))

    assert f"no {kind} frames" in end.lost[0]


async def test_more_than_the_window_allows_breaks_the_channel_and_memory_stays_bounded(end: End) -> None:
    for number in range(10 * CHANNEL_WINDOW_FRAMES):
        end.feed(frame(number + 1, data=b"x"))

    assert end.lost == ["the ingress sent more than the window allows"]
    assert len(end.channel._inbox) == 2 * CHANNEL_WINDOW_FRAMES


async def test_a_probe_is_a_sign_of_life_and_nothing_else(end: End) -> None:
    end.channel.feed(frame(0, "probe"), 7.0)
    end.feed(frame(1, data=b"a"))

    assert ((await end.channel.receive()).data, end.channel.heard_at) == (b"a", 1.0)


async def test_what_came_before_the_client_closed_is_received_first(end: End) -> None:
    end.feed(frame(1, data=b"a"), frame(2, "close", code=4001, text="enough"))

    assert (await end.channel.receive()).data == b"a"
    with pytest.raises(ChannelClosed, match="enough"):
        await end.channel.receive()
    assert (end.channel.closed and end.channel.closed.code, end.lost) == (4001, ["enough"])


async def test_nothing_is_taken_in_after_the_end(end: End) -> None:
    end.feed(frame(1, "close", code=1000), frame(2, data=b"late"), frame(1, "ack"))

    with pytest.raises(ChannelClosed):
        await end.channel.receive()
    assert end.lost == ["client_gone"]


async def test_an_ack_that_cannot_be_sent_breaks_the_channel_after_what_was_taken(end: End) -> None:
    end.feed(frame(1, "binary", b"x" * CHANNEL_ACK_BYTES))
    end.error = BrokerUnavailable("no broker is connected")

    assert (await end.channel.receive()).kind == "binary"
    assert not end.channel.is_open


ENDINGS: dict[str, Callable[[End], None]] = {
    "lost": lambda end: end.channel.lose("worker forgotten"),
    "closed": lambda end: end.feed(frame(1, "close", code=1000)),
    "gap": lambda end: end.feed(frame(9)),
    "ended": lambda end: end.channel.end("close", code=1000),
}


@pytest.mark.parametrize("how", ENDINGS)
async def test_the_end_of_a_channel_wakes_sender_and_receiver(end: End, how: str) -> None:
    await end.fill()
    tasks = [await waiting(end.channel.send("part", b"y")), await waiting(end.channel.send("part", b"z"))]
    tasks.append(await waiting(end.channel.receive()))

    ENDINGS[how](end)

    for task in tasks:
        with pytest.raises(ChannelClosed):
            await finished(task)


async def test_a_channel_is_lost_once(end: End) -> None:
    end.channel.lose("first")
    end.channel.lose("second")

    assert end.lost == ["first"]
