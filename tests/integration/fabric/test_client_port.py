"""The client port: our parser and our way out, on a real connection."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gati_core.fabric import Fabric, format_headers, parse_headers
from gati_core.fabric._client import DirectClient
from tests.helpers.waiting import eventually

Message = tuple[bytes, bytes, bytes, bytes | None]


async def test_messages_of_all_sizes_arrive_whole_and_in_order(gati_open_fabric: Fabric) -> None:
    """Sizes around the read buffer's, so that messages are split and joined in every way."""
    connection = gati_open_fabric.connection
    chance = random.Random(7)
    bodies = [chance.randbytes(chance.choice([0, 1, 17, 4_000, 65_535, 65_536, 200_000])) for _ in range(120)]
    got: list[bytes] = []
    await connection.subscribe("sizes", lambda _s, _r, data, _h: got.append(data))

    for body in bodies:
        connection.publish_now(b"sizes", body)

    await eventually(lambda: len(got) == len(bodies), within_s=10)
    assert got == bodies


async def test_bodies_that_look_like_protocol_are_only_bodies(gati_open_fabric: Fabric) -> None:
    connection = gati_open_fabric.connection
    bodies = [b"\r\n", b"MSG x 1 2\r\nhi\r\n", b"PING\r\n", b"HMSG a 1 4 4\r\n", b"-ERR 'x'\r\n", b"\r\n\r\n\r\n"]
    got: list[bytes] = []
    await connection.subscribe("odd", lambda _s, _r, data, _h: got.append(data))

    for body in bodies:
        connection.publish_now(b"odd", body)

    await eventually(lambda: got == bodies, within_s=2)


async def test_nats_pys_own_subscriptions_still_work_beside_the_direct_ones(gati_open_fabric: Fabric) -> None:
    client = gati_open_fabric.connection._client
    theirs = await client.subscribe("both")
    got: list[bytes] = []
    await gati_open_fabric.connection.subscribe("both", lambda _s, _r, data, _h: got.append(data))

    await client.publish("both", b"x", headers={"A": "b"})

    message = await theirs.next_msg(timeout=2)
    assert (message.data, message.headers) == (b"x", {"A": "b"})
    assert got == [b"x"]


async def test_everything_published_in_one_turn_leaves_in_one_write(
    gati_open_fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = gati_open_fabric.connection._client
    writes: list[int] = []
    transport = client._transport
    assert transport is not None
    write = transport.write

    def counted(data: bytes) -> None:
        writes.append(len(data))
        write(data)

    monkeypatch.setattr(transport, "write", counted)

    for _ in range(50):
        client.publish_now(b"plain", b"x")
    assert client.buffered_bytes > 0
    await eventually(lambda: client.buffered_bytes == 0, within_s=1)

    assert len(writes) == 1


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64])
async def test_the_parser_takes_the_stream_in_any_pieces(step: int) -> None:
    client = DirectClient()
    got: list[Message] = []
    client._direct[1] = lambda *message: got.append(message)
    headers = b"NATS/1.0\r\nA: b\r\n\r\n"
    stream = (
        b"MSG a.b 1 5\r\nhello\r\n"
        + b"MSG a.b 1 back 0\r\n\r\n"
        + b"+OK\r\n"
        + b"HMSG a.b 1 %d %d\r\n%bdata\r\n" % (len(headers), len(headers) + 4, headers)
        + b"HMSG a.b 1 back %d %d\r\n%b\r\n" % (len(headers), len(headers), headers)
        + b"MSG a.b 1 2\r\n\r\n\r\n"
    )

    for at in range(0, len(stream), step):
        await client._ps.parse(stream[at : at + step])

    assert got == [
        (b"a.b", b"", b"hello", None),
        (b"a.b", b"back", b"", None),
        (b"a.b", b"", b"data", headers),
        (b"a.b", b"back", b"", headers),
        (b"a.b", b"", b"\r\n", None),
    ]


_names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True)
_plain = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), max_size=40)


@given(headers=st.dictionaries(_names, _plain, max_size=5))
def test_headers_come_back_as_they_were(headers: dict[str, str]) -> None:
    assert parse_headers(format_headers(headers)) == (0, headers)


@given(name=st.text(max_size=20), value=st.text(max_size=60))
def test_no_header_can_smuggle_in_another_or_end_the_block(name: str, value: str) -> None:
    block = format_headers({name: value, "Last": "seen"})
    _, found = parse_headers(block)

    assert block.count(b"\r\n\r\n") == 1
    assert block.endswith(b"\r\n\r\n")
    assert found["Last"] == "seen"
    assert len(found) <= 2


def test_line_breaks_in_a_value_become_spaces() -> None:
    _, found = parse_headers(format_headers({"Cause": "one\r\nNats-Msg-Id: evil\nthree"}))

    assert found == {"Cause": "one  Nats-Msg-Id: evil three"}


@pytest.mark.parametrize(
    ("raw", "status", "fields"),
    [
        (b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 7\r\n\r\n", 100, {"Nats-Last-Consumer": "7"}),
        (b"NATS/1.0 503\r\n\r\n", 503, {}),
        (b"NATS/1.0\r\nA:b\r\nA: c\r\nno colon\r\n\r\n", 0, {"A": "c"}),
        (b"", 0, {}),
        (b"NATS/1.0 x\r\n\xff\xfe: \xff\r\n\r\n", 0, None),
    ],
)
def test_statuses_and_headers_are_read_and_never_raise(raw: bytes, status: int, fields: dict[str, str] | None) -> None:
    found_status, found = parse_headers(raw)

    assert found_status == status
    if fields is not None:
        assert found == fields
