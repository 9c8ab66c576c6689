"""An open channel at the ingress: order, windows, acknowledgements, probes and ends. No broker, no sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gati_core.errors import BrokerUnavailable, ChannelBroken, ClientGone, MessageTooLarge, ShuttingDown
from gati_core.wire import (
    CHANNEL_ACK_BYTES,
    CHANNEL_ACK_FRAMES,
    CHANNEL_PROBE_S,
    CHANNEL_WINDOW_BYTES,
    CHANNEL_WINDOW_FRAMES,
    PROTOCOL,
    Frame,
    FrameKind,
    Reply,
    ReplyError,
    decode_frame,
    encode,
)
from gati_ingress.channels import Channel, Channels

NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"


class Port:
    """Takes what is published, or refuses it."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.replies: list[bytes] = []
        self.error: Exception | None = None
        self.is_up = True

    def publish_now(self, subject: bytes, payload: bytes, reply: bytes = b"", headers: bytes = b"") -> None:
        if self.error is not None:
            raise self.error
        assert subject == b"t.channel.w.r1"
        self.frames.append(decode_frame(payload))
        self.replies.append(reply)

    def publish_or_hold(self, subject: bytes, payload: bytes) -> None:
        raise AssertionError("frames are never held")

    def kinds(self) -> list[str]:
        return [frame.kind for frame in self.frames]


class Side:
    """One channel of an ingress, with what it publishes."""

    def __init__(self) -> None:
        self.port = Port()
        self.loop: Any = asyncio.get_running_loop()
        self.channels = Channels(port=self.port, reply_to="t.reply.i.r", loop=self.loop)
        self.channel = self.channels.open("r1", "t.channel.w.r1", is_socket=True)
        self.seq = 0

    def frame(self, kind: FrameKind, data: bytes = b"", *, seq: int | None = None, text: str = "") -> Frame:
        if seq is None:
            self.seq += 1
        return Frame(PROTOCOL, "r1", self.seq if seq is None else seq, kind, data, text=text)

    def gets(self, *frames: Frame) -> None:
        for frame in frames:
            assert self.channels.on_frame(b"t.reply.i.r1", encode(frame), None)


async def ends(channel: Channel) -> ChannelBroken:
    """Take what is left; returns why there is no more."""
    try:
        while True:
            await channel.next()
    except ChannelBroken as exc:
        return exc


async def settled() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


# -- from the worker ----------------------------------------------------------------------------


async def test_frames_come_out_as_they_came_in_and_waiting_for_one_works() -> None:
    side = Side()
    waiting = asyncio.create_task(side.channel.next())
    await settled()
    side.gets(side.frame("part", b"a"), side.frame("part", b"b"), side.frame("end"))

    assert (await waiting).data == b"a"
    assert (await side.channel.next()).data == b"b"
    assert (await side.channel.next()).kind == "end"


@given(sizes=st.lists(st.integers(0, 70_000), max_size=200))
async def test_what_is_consumed_is_acknowledged_in_steps_that_never_leave_a_sender_stuck(sizes: list[int]) -> None:
    side = Side()
    unacked = 0
    for number, size in enumerate(sizes, 1):
        side.gets(side.frame("part", b"x" * size))
        side.channel.consumed(await side.channel.next())
        acked = side.port.frames[-1].seq if side.port.frames else 0
        unacked = sum(sizes[acked:number])
        assert number - acked < CHANNEL_ACK_FRAMES
        assert unacked < CHANNEL_ACK_BYTES
    assert set(side.port.kinds()) <= {"ack"}


@pytest.mark.parametrize("seq", [0, 1, 3])
async def test_a_gap_or_a_repeat_breaks_it_after_what_came_before(seq: int) -> None:
    side = Side()
    side.gets(side.frame("part", b"a"), side.frame("part", b"b", seq=seq))

    assert (await side.channel.next()).data == b"a"
    assert (await ends(side.channel)).is_mutual


async def test_a_worker_may_overrun_its_window_twice_and_no_more() -> None:
    side = Side()
    side.gets(*(side.frame("part", b"") for _ in range(2 * CHANNEL_WINDOW_FRAMES)))
    assert (await side.channel.next()).seq == 1
    side.gets(side.frame("part"), side.frame("part"))

    assert (await ends(side.channel)).is_mutual, "the frames that waited are dropped: they are too much"


async def test_bytes_count_as_well() -> None:
    side = Side()
    half = b"x" * (CHANNEL_WINDOW_BYTES // 2)
    side.gets(*(side.frame("part", half) for _ in range(4)))
    assert (await side.channel.next()).data == half
    side.gets(side.frame("part", half), side.frame("part", b"x"))

    await ends(side.channel)


@pytest.mark.parametrize("last", ["end", "close", "abort"])
async def test_nothing_counts_after_the_last_frame(last: FrameKind) -> None:
    side = Side()
    side.gets(side.frame(last), side.frame("part", seq=9), side.frame("abort", seq=0))
    side.channels.on_late_reply(Reply(PROTOCOL, "r1", 502))
    assert side.channels.on_frame(b"t.reply.i.r1", b"", NO_RESPONDERS)
    side.channel.probe()
    side.channel.close(1000, "")

    assert (await side.channel.next()).kind == last
    assert side.port.frames == []


async def test_frames_of_requests_that_are_over_are_nobodys() -> None:
    side = Side()
    side.channels.forget(side.channel)

    assert not side.channels.on_frame(b"t.reply.i.r1", encode(side.frame("part")), None)
    assert not side.channels.on_frame(b"t.reply.i.r1", b"", NO_RESPONDERS)
    assert not side.channels.on_late_reply(Reply(PROTOCOL, "r1", 502))
    assert len(side.channels) == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 1011), (ReplyError("worker.crashed", "died"), 1011), (ReplyError("worker.leaving", "bye"), 1012)],
)
async def test_a_second_reply_ends_it(error: ReplyError | None, code: int) -> None:
    side = Side()
    assert side.channels.on_late_reply(Reply(PROTOCOL, "r1", 502, error=error))

    broken = await ends(side.channel)
    assert (broken.close_code, broken.is_mutual) == (code, False)


# -- to the worker ------------------------------------------------------------------------------


async def fill(channel: Channel, sizes: list[int]) -> None:
    for size in sizes:
        await channel.send("binary", b"x" * size)


@pytest.mark.parametrize(
    ("sizes", "most"),
    [
        ([1] * 100, CHANNEL_WINDOW_FRAMES),
        ([0] * 100, CHANNEL_WINDOW_FRAMES),
        ([CHANNEL_WINDOW_BYTES] * 3, 1),
        ([CHANNEL_WINDOW_BYTES - 1] * 3, 2),
        ([CHANNEL_WINDOW_BYTES * 3, 1], 1),
        ([100_000] * 9, 3),
    ],
)
async def test_a_full_window_makes_the_sender_wait_until_frames_are_acknowledged(sizes: list[int], most: int) -> None:
    side = Side()
    sending = asyncio.create_task(fill(side.channel, sizes))
    await settled()
    assert (len(side.port.frames), side.channel.unacked) == (most, most)

    while not sending.done():
        side.gets(side.frame("ack", seq=side.port.frames[-1].seq))
        assert side.channel.unacked == 0
        await settled()
    await sending

    assert [frame.seq for frame in side.port.frames] == list(range(1, len(sizes) + 1))


async def test_old_acks_are_ignored_and_impossible_ones_break_it() -> None:
    side = Side()
    await fill(side.channel, [1, 1, 1])
    side.gets(side.frame("ack", seq=2), side.frame("ack", seq=1))
    assert side.channel.unacked == 1

    side.gets(side.frame("ack", seq=4))
    assert (await ends(side.channel)).is_mutual


async def test_a_broken_channel_wakes_a_sender_that_waits() -> None:
    side = Side()
    sending = asyncio.create_task(fill(side.channel, [1] * 100))
    await settled()
    side.channel.fail(ClientGone("gone"))

    with pytest.raises(ClientGone):
        await sending


class Clock:
    """A loop whose time the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.create_future: Callable[[], asyncio.Future[None]] = asyncio.get_running_loop().create_future

    def time(self) -> float:
        return self.now


async def test_a_frame_waits_for_a_broker_that_is_away_but_not_for_ever() -> None:
    side = Side()
    side.channels.loop = clock = Clock()  # type: ignore[assignment]
    side.port.error = BrokerUnavailable("away")
    sending = asyncio.create_task(side.channel.send("text", b"a"))
    await settled()
    clock.now += 1
    side.channels.tick(clock.now)
    await settled()
    side.port.error = None
    side.channels.tick(clock.now)
    await sending
    assert side.port.kinds() == ["text"]

    side.port.error = BrokerUnavailable("away")
    sending = asyncio.create_task(side.channel.send("text", b"b"))
    await settled()
    clock.now += 6
    side.channels.tick(clock.now)
    with pytest.raises(BrokerUnavailable):
        await sending
    assert not side.channels.stuck


async def test_after_a_reconnect_frames_wait_for_the_worker_to_be_back_as_well() -> None:
    side = Side()
    side.channels.loop = clock = Clock()  # type: ignore[assignment]
    side.channels.went_down()
    side.channels.came_up()
    sending = asyncio.create_task(side.channel.send("text", b"a"))
    await settled()
    assert side.port.frames == []
    assert side.channels.on_frame(b"t.reply.i.r1", b"", NO_RESPONDERS), "it proves nothing yet"

    clock.now += 1.1
    side.channels.tick(clock.now)
    await sending
    assert side.port.kinds() == ["text"]


async def test_a_message_that_the_broker_does_not_take_is_the_senders_error() -> None:
    side = Side()
    side.port.error = MessageTooLarge("too large")

    with pytest.raises(MessageTooLarge):
        await side.channel.send("text", b"a")


async def test_only_the_first_close_is_sent_and_it_needs_no_room() -> None:
    side = Side()
    await fill(side.channel, [1] * CHANNEL_WINDOW_FRAMES)
    side.channel.close(4000, "because")
    side.channel.close(1006, "")

    assert side.port.frames[CHANNEL_WINDOW_FRAMES:] == [
        Frame(PROTOCOL, "r1", CHANNEL_WINDOW_FRAMES + 1, "close", b"", 4000, "because")
    ]


# -- probes and ends ----------------------------------------------------------------------------


async def test_a_probe_says_how_much_was_sent_and_its_answer_shows_what_was_lost() -> None:
    side = Side()
    await side.channel.send("text", b"one")
    side.gets(side.frame("text"), side.frame("probe", seq=1))
    side.channel.probe()

    assert (side.port.frames[-1].kind, side.port.frames[-1].seq) == ("probe", 1)
    side.gets(side.frame("probe", seq=3))
    assert "has sent 3 frames, and 1 came" in str(await ends(side.channel))


async def test_every_channel_is_probed_in_its_turn_with_where_to_report_and_the_last_ack() -> None:
    side = Side()
    due = side.loop.time() + CHANNEL_PROBE_S + 1
    side.channels.tick(due - 1.5)
    assert side.port.frames == []

    side.channels.tick(due)
    side.channels.tick(due + 1)
    assert (side.port.kinds(), side.port.replies) == (["probe"], [b"t.reply.i.r1"])

    side.gets(side.frame("part"))
    side.channel.consumed(await side.channel.next())
    side.channels.tick(due + CHANNEL_PROBE_S)
    assert [(frame.kind, frame.seq) for frame in side.port.frames[1:]] == [("probe", 0), ("ack", 1)]

    side.channels.forget(side.channel)
    side.channels.tick(due + 3 * CHANNEL_PROBE_S)
    assert len(side.port.frames) == 3


async def test_nobody_listening_means_that_the_worker_is_gone() -> None:
    side = Side()
    assert side.channels.on_frame(b"t.reply.i.r1", b"", NO_RESPONDERS)

    assert str(await ends(side.channel)) == "the worker is gone"


async def test_to_be_cut_drops_what_waits_and_the_connection_and_the_first_reason_stays() -> None:
    side = Side()
    cuts: list[int] = []
    side.channel.on_cut = lambda: cuts.append(1)
    side.gets(side.frame("part", b"a"))
    side.channel.cut(ShuttingDown("leaving"))
    side.channel.fail(ClientGone("gone"))

    with pytest.raises(ShuttingDown):
        await side.channel.next()
    assert cuts == [1]
