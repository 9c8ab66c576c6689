"""The channels of one worker process."""

from __future__ import annotations

import pytest

from gati_core.fabric import ChannelHost
from gati_core.wire import (
    CHANNEL_SILENCE_S,
    PROTOCOL,
    Frame,
    FrameKind,
    decode_frame,
    encode,
    for_namespace,
)


def frame(seq: int, kind: FrameKind = "text", data: bytes = b"", *, code: int = 0, text: str = "") -> Frame:
    return Frame(PROTOCOL, "r-1", seq, kind, data, code, text)


# -- the channels of a process ------------------------------------------------------------------


class Port:
    """Stands for the connection: keeps what is published."""

    def __init__(self) -> None:
        self.published: list[tuple[bytes, Frame]] = []

    def publish_now(self, subject: bytes, data: bytes) -> None:
        self.published.append((subject, decode_frame(data, subject=subject.decode())))


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


@pytest.fixture
def host(port: Port, clock: list[float]) -> ChannelHost:
    return ChannelHost(port, for_namespace("gati"), "w1", now=lambda: clock[0])  # type: ignore[arg-type]


def arrive(host: ChannelHost, request_id: str, data: Frame | bytes) -> None:
    raw = data if isinstance(data, bytes) else encode(data)
    host.on_message(f"gati.channel.w1.{request_id}".encode(), b"", raw, None)


async def test_a_channel_sends_to_the_ingress_that_waits_for_the_reply(host: ChannelHost, port: Port) -> None:
    channel = host.open("r-1", "gati.reply.ingress7.r")
    await channel.send("part", b"x")

    assert (channel.subject, host.filter) == ("gati.channel.w1.r-1", "gati.channel.w1.*")
    assert port.published == [(b"gati.reply.ingress7.r-1", frame(1, "part", b"x"))]


async def test_each_message_goes_to_the_channel_of_its_request(host: ChannelHost) -> None:
    one, two = host.open("r-1", "gati.reply.i.r"), host.open("r-2", "gati.reply.i.r")
    arrive(host, "r-2", frame(1, data=b"two"))
    arrive(host, "r-1", frame(1, data=b"one"))
    arrive(host, "r-3", frame(1, data=b"nobody"))

    assert [(await one.receive()).data, (await two.receive()).data] == [b"one", b"two"]


async def test_a_channel_that_was_closed_hears_nothing_more(host: ChannelHost) -> None:
    channel = host.open("r-1", "gati.reply.i.r")
    host.close("r-1")
    host.close("r-1")
    arrive(host, "r-1", frame(9))

    assert (len(host), channel.is_open) == (0, True)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"{}", encode([2, "r-1", 1, "text"])], ids=str)
async def test_what_is_no_frame_breaks_its_channel_and_no_other(host: ChannelHost, data: bytes) -> None:
    bad, good = host.open("r-1", "gati.reply.i.r"), host.open("r-2", "gati.reply.i.r")
    arrive(host, "r-1", data)

    assert (bad.is_open, good.is_open) == (False, True)


async def test_an_ingress_that_is_silent_for_too_long_is_given_up(host: ChannelHost, clock: list[float]) -> None:
    quiet, alive = host.open("r-1", "gati.reply.i.r"), host.open("r-2", "gati.reply.i.r")
    clock[0] += CHANNEL_SILENCE_S
    arrive(host, "r-2", frame(0, "probe"))
    host.tick(clock[0])
    assert (quiet.is_open, alive.is_open) == (True, True)

    host.tick(clock[0] + 0.05)

    assert (quiet.is_open, alive.is_open) == (False, True)
    assert quiet.closed is not None
    assert (quiet.closed.code, "silent" in quiet.closed.text) == (1006, True)
