"""An open channel at the worker: windows, probes and losses. No broker, no sleeping."""

from __future__ import annotations

import asyncio

import pytest

from gati_core.errors import BrokerUnavailable, ChannelClosed
from gati_core.fabric import Channel, ChannelHost
from gati_core.wire import (
    CHANNEL_ACK_BYTES,
    CHANNEL_SILENCE_S,
    CHANNEL_WINDOW_BYTES,
    CHANNEL_WINDOW_FRAMES,
    PROTOCOL,
    Frame,
    FrameKind,
    Subjects,
    decode_frame,
    encode,
)

SUBJECTS = Subjects("t")
PROBE_REPLY = b"t.reply.i.r1"


class Side:
    """A worker with one channel, and what it publishes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.frames: list[Frame] = []
        self.is_away = False
        self.lost: list[str] = []
        self.host = ChannelHost(self, SUBJECTS, "w", now=lambda: self.now)  # type: ignore[arg-type]
        self.channel: Channel = self.host.open("r1", "t.reply.i.r")
        self.channel.on_lost = self.lost.append

    def publish_now(self, subject: bytes, payload: bytes, reply: bytes = b"", headers: bytes = b"") -> None:
        if self.is_away:
            raise BrokerUnavailable("away")
        assert subject == PROBE_REPLY
        self.frames.append(decode_frame(payload))

    def gets(self, kind: FrameKind, seq: int, data: bytes = b"", *, request: str = "r1") -> None:
        reply = PROBE_REPLY if kind == "probe" else b""
        frame = encode(Frame(PROTOCOL, request, seq, kind, data))
        self.host.on_message(f"t.channel.w.{request}".encode(), reply, frame, None)

    def last(self) -> tuple[str, int]:
        return self.frames[-1].kind, self.frames[-1].seq


async def test_a_frame_leaves_whenever_less_than_the_window_is_out() -> None:
    """However large: the receiver acknowledges by 64 KiB, and would say nothing of what is out."""
    side = Side()
    await side.channel.send("binary", bytes(CHANNEL_ACK_BYTES - 1))
    await asyncio.wait_for(side.channel.send("binary", bytes(2 * CHANNEL_WINDOW_BYTES)), 1)

    waiting = asyncio.create_task(side.channel.send("binary", b"x"))
    await asyncio.sleep(0)
    assert not waiting.done()
    side.gets("ack", 2)
    await asyncio.wait_for(waiting, 1)
    assert [len(frame.data) for frame in side.frames] == [CHANNEL_ACK_BYTES - 1, 2 * CHANNEL_WINDOW_BYTES, 1]


async def test_frames_are_bounded_as_well_as_bytes() -> None:
    side = Side()
    for _ in range(CHANNEL_WINDOW_FRAMES):
        await asyncio.wait_for(side.channel.send("text", b""), 1)
    waiting = asyncio.create_task(side.channel.send("text", b""))
    await asyncio.sleep(0)
    assert not waiting.done()

    side.channel.lose("gone")
    with pytest.raises(ChannelClosed, match="gone"):
        await waiting


async def test_a_probe_is_answered_with_how_much_was_sent() -> None:
    side = Side()
    side.gets("probe", 0)
    assert side.last() == ("probe", 0)

    await side.channel.send("text", b"x")
    side.gets("text", 1)
    side.gets("probe", 1)
    assert side.last() == ("probe", 1)
    assert side.channel.is_open


async def test_a_probe_shows_that_the_clients_last_frames_were_lost() -> None:
    side = Side()
    side.gets("text", 1)
    side.gets("probe", 3)

    assert side.last() == ("abort", 0)
    assert "has sent 3 frames, and 1 came" in side.lost[0]
    assert (await side.channel.receive()).seq == 1
    with pytest.raises(ChannelClosed):
        await side.channel.receive()


async def test_a_channel_that_was_lost_or_has_ended_says_so_to_whoever_asks() -> None:
    side = Side()
    side.channel.lose("the broker is away")
    side.gets("probe", 0)
    assert (*side.last(), side.frames[-1].text) == ("abort", 0, "the broker is away")

    side.host.close("r1")
    side.frames.clear()
    side.gets("text", 1)
    assert not side.frames
    side.gets("probe", 1)
    assert side.last() == ("abort", 0)


async def test_a_broker_that_is_away_makes_no_noise_in_the_read_loop() -> None:
    side = Side()
    side.is_away = True
    side.gets("probe", 0)
    side.host.close("r1")
    side.gets("probe", 0)

    assert not side.frames


async def test_silence_for_long_enough_is_a_loss() -> None:
    side = Side()
    side.now = CHANNEL_SILENCE_S - 1
    side.gets("probe", 0)
    side.host.tick(2 * CHANNEL_SILENCE_S - 2)
    assert side.channel.is_open

    side.host.tick(2 * CHANNEL_SILENCE_S)
    assert not side.channel.is_open
    assert len(side.lost) == 1
