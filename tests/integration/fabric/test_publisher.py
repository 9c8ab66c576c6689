"""The windowed publisher: every publish is confirmed, refused, or failed by its deadline, exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from msgspec import structs

from gati_core.errors import Backpressure, BrokerUnavailable, GatiError, MessageTooLarge, PublishUnconfirmed
from gati_core.fabric import (
    Connection,
    EmbeddedBroker,
    Fabric,
    WindowedPublisher,
    open_connection,
    open_fabric,
    stream_state,
)
from gati_core.settings import FabricSettings
from tests.helpers import brokers
from tests.helpers.waiting import eventually

Outcome = tuple[object, GatiError | None]


@asynccontextmanager
async def _publisher(
    fabric: Fabric, *, window: int, ack_timeout_s: float = 5.0
) -> AsyncIterator[tuple[WindowedPublisher, Connection]]:
    """A publisher with a window and an ack timeout of the test's, on a connection of its own."""
    settings = structs.replace(fabric.settings, publish_window=window, publish_ack_timeout_s=ack_timeout_s)
    async with open_connection(settings, name="test publisher") as connection:
        yield await WindowedPublisher.open(connection), connection


async def test_every_publish_is_confirmed_once_with_its_own_context(gati_open_fabric: Fabric) -> None:
    outcomes: list[Outcome] = []
    subject = gati_open_fabric.subjects.req(5).encode()

    for number in range(500):
        gati_open_fabric.publisher.publish(subject, b"x", lambda *outcome: outcomes.append(outcome), number)

    await eventually(lambda: len(outcomes) == 500, within_s=5)
    assert sorted(outcomes, key=str) == sorted(((number, None) for number in range(500)), key=str)
    assert gati_open_fabric.publisher.in_flight == 0
    assert (await stream_state(gati_open_fabric.connection, gati_open_fabric.subjects.req_stream)).messages == 500


async def test_send_returns_the_sequence_in_the_stream(gati_open_fabric: Fabric) -> None:
    subject = gati_open_fabric.subjects.req(5)

    assert [await gati_open_fabric.publisher.send(subject, b"x") for _ in range(3)] == [1, 2, 3]


async def test_a_repeated_message_id_is_stored_once(gati_open_fabric: Fabric) -> None:
    subject = gati_open_fabric.subjects.req(5)

    first = await gati_open_fabric.publisher.send(subject, b"x", message_id="m-1")
    again = await gati_open_fabric.publisher.send(subject, b"x", message_id="m-1")

    assert first == again == 1
    assert (await stream_state(gati_open_fabric.connection, gati_open_fabric.subjects.req_stream)).messages == 1


async def test_the_callback_form_knows_message_ids_too(gati_open_fabric: Fabric) -> None:
    outcomes: list[Outcome] = []
    for number in range(3):
        gati_open_fabric.publisher.publish(
            gati_open_fabric.subjects.req(5).encode(), b"x", lambda *o: outcomes.append(o), number, message_id="m-1"
        )

    await eventually(lambda: len(outcomes) == 3, within_s=2)
    assert {error for _, error in outcomes} == {None}
    assert (await stream_state(gati_open_fabric.connection, gati_open_fabric.subjects.req_stream)).messages == 1


async def test_a_full_window_is_backpressure_and_nothing_is_sent(gati_open_fabric: Fabric) -> None:
    async with _publisher(gati_open_fabric, window=4) as (publisher, _):
        subject = gati_open_fabric.subjects.req(5).encode()
        outcomes: list[Outcome] = []

        for number in range(4):
            publisher.publish(subject, b"x", lambda *o: outcomes.append(o), number)
        with pytest.raises(Backpressure, match="4 publishes"):
            publisher.publish(subject, b"one too many", lambda *o: outcomes.append(o), 4)

        await eventually(lambda: len(outcomes) == 4, within_s=2)
        publisher.publish(subject, b"x", lambda *o: outcomes.append(o), 5)
        await eventually(lambda: len(outcomes) == 5, within_s=2)
        assert (await stream_state(gati_open_fabric.connection, gati_open_fabric.subjects.req_stream)).messages == 5


async def test_a_refused_publish_takes_no_slot(gati_open_fabric: Fabric) -> None:
    async with _publisher(gati_open_fabric, window=1) as (publisher, _):
        subject = gati_open_fabric.subjects.req(5)

        for _ in range(3):
            with pytest.raises(MessageTooLarge):
                await publisher.send(subject, b"x" * (gati_open_fabric.connection.max_payload + 1))

        assert publisher.in_flight == 0
        assert await publisher.send(subject, b"fits") == 1


async def test_a_message_id_counts_towards_the_size_limit(gati_open_fabric: Fabric) -> None:
    """F7: the id travels as a header."""
    with pytest.raises(MessageTooLarge):
        await gati_open_fabric.publisher.send(
            gati_open_fabric.subjects.req(5), b"x" * gati_open_fabric.connection.max_payload, message_id="m-1"
        )
    assert gati_open_fabric.connection.is_up


async def test_a_full_stream_is_backpressure(gati_fabric_settings: FabricSettings) -> None:
    """F6: the refusal comes with the publish ack; what was accepted before is all still there."""
    settings = _with(gati_fabric_settings, req_max_msgs=3)
    async with open_fabric(settings, name="test") as fabric:
        subject = fabric.subjects.req(5)
        for _ in range(3):
            await fabric.publisher.send(subject, b"x")

        with pytest.raises(Backpressure, match="full") as refused:
            await fabric.publisher.send(subject, b"one too many")

        assert (refused.value.status, refused.value.facts["err_code"]) == (503, 10077)
        assert (await stream_state(fabric.connection, fabric.subjects.req_stream)).messages == 3
        assert fabric.publisher.stats.refused_full == 1


async def test_a_slow_handler_fills_only_its_own_share_of_the_work_stream(
    gati_fabric_settings: FabricSettings,
) -> None:
    """F6, per subject: one handler's backlog is refused while its neighbours go on."""
    settings = _with(gati_fabric_settings, work_max_msgs_per_handler=2)
    async with open_fabric(settings, name="test") as fabric:
        slow, quick = fabric.subjects.work("shop", "slow"), fabric.subjects.work("shop", "quick")
        for _ in range(2):
            await fabric.publisher.send(slow, b"x")

        with pytest.raises(Backpressure):
            await fabric.publisher.send(slow, b"one too many")

        assert await fabric.publisher.send(quick, b"x") == 3


async def test_the_callback_form_gets_backpressure_as_its_error(gati_fabric_settings: FabricSettings) -> None:
    settings = _with(gati_fabric_settings, req_max_msgs=1)
    async with open_fabric(settings, name="test") as fabric:
        outcomes: list[Outcome] = []
        for number in range(2):
            fabric.publisher.publish(fabric.subjects.req(5).encode(), b"x", lambda *o: outcomes.append(o), number)

        await eventually(lambda: len(outcomes) == 2, within_s=2)
        assert outcomes[0] == (0, None)
        assert isinstance(outcomes[1][1], Backpressure)


async def test_a_subject_that_no_stream_takes_is_refused_at_once(gati_open_fabric: Fabric) -> None:
    with anyio.fail_after(1), pytest.raises(BrokerUnavailable, match="no stream"):
        await gati_open_fabric.publisher.send("nobody.listens.here", b"x")


async def test_an_ack_that_never_comes_is_unconfirmed_after_the_deadline(gati_open_fabric: Fabric) -> None:
    """F12: acks time out. A plain subscriber swallows the publish, so no stream ever answers."""
    async with _publisher(gati_open_fabric, window=2, ack_timeout_s=0.3) as (publisher, connection):
        await connection.subscribe("swallowed", lambda *_: None)

        for _ in range(5):
            with anyio.fail_after(1), pytest.raises(PublishUnconfirmed, match=r"0\.3 s"):
                await publisher.send("swallowed", b"x")

        assert publisher.in_flight == 0
        assert publisher.stats.unconfirmed == 5


async def test_a_late_ack_never_confirms_another_publish(gati_open_fabric: Fabric) -> None:
    """The slot of a publish that timed out is retired together with its reply subject."""
    async with _publisher(gati_open_fabric, window=1, ack_timeout_s=0.3) as (publisher, connection):
        acks: list[bytes] = []
        await connection.subscribe("swallowed", lambda _s, reply, _d, _h: acks.append(reply))
        with pytest.raises(PublishUnconfirmed):
            await publisher.send("swallowed", b"first")
        outcomes: list[Outcome] = []
        publisher.publish(b"swallowed", b"second", lambda *o: outcomes.append(o), "second")
        await eventually(lambda: len(acks) == 2, within_s=2)

        connection.publish_now(acks[0], b'{"stream":"S","seq":7}')

        await eventually(lambda: publisher.stats.late_acks == 1, within_s=2)
        assert outcomes == []
        await eventually(lambda: len(outcomes) == 1, within_s=2)
        assert isinstance(outcomes[0][1], PublishUnconfirmed)
        assert acks[0] != acks[1]


async def test_an_ack_that_comes_twice_confirms_once(gati_open_fabric: Fabric) -> None:
    async with _publisher(gati_open_fabric, window=1) as (publisher, connection):

        def answer_twice(_subject: bytes, reply: bytes, _data: bytes, _headers: bytes | None) -> None:
            for _ in range(2):
                connection.publish_now(reply, b'{"stream":"S","seq":7}')

        await connection.subscribe("doubled", answer_twice)

        assert await publisher.send("doubled", b"x") == 7
        await eventually(lambda: publisher.stats.late_acks == 1, within_s=2)
        assert publisher.in_flight == 0


@pytest.mark.parametrize("ack", [b"", b"{", b'{"error":', b'{"error":{"code":"x"}}', b"\xff\xfe", b"[]"])
async def test_an_ack_that_cannot_be_read_still_settles_the_publish(gati_open_fabric: Fabric, ack: bytes) -> None:
    async with _publisher(gati_open_fabric, window=1) as (publisher, connection):
        await connection.subscribe("odd", lambda _s, reply, _d, _h: connection.publish_now(reply, ack))

        with anyio.fail_after(2):
            try:
                await publisher.send("odd", b"x")
            except GatiError:
                pass

        assert publisher.in_flight == 0


async def test_a_cancelled_send_frees_its_slot(gati_open_fabric: Fabric) -> None:
    """F12: nothing leaks, however often callers lose patience, and cancellation stays cancellation."""
    async with _publisher(gati_open_fabric, window=2) as (publisher, _):
        subject = gati_open_fabric.subjects.req(5)

        for _ in range(10):
            task = asyncio.create_task(publisher.send(subject, b"x"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await eventually(lambda: publisher.in_flight == 0, within_s=2)

        assert await publisher.send(subject, b"x") == 11


async def test_a_cancelled_send_whose_ack_never_comes_frees_its_slot_too(gati_open_fabric: Fabric) -> None:
    """F12."""
    async with _publisher(gati_open_fabric, window=1, ack_timeout_s=0.3) as (publisher, connection):
        await connection.subscribe("swallowed", lambda *_: None)

        with anyio.move_on_after(0.05) as patience:
            await publisher.send("swallowed", b"x")

        assert patience.cancelled_caught
        await eventually(lambda: publisher.in_flight == 0, within_s=2)
        assert await publisher.send(gati_open_fabric.subjects.req(5), b"x") == 1


async def test_publishes_under_way_when_the_broker_dies_are_all_settled(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    outcomes: list[Outcome] = []
    own_broker.pause()
    for number in range(50):
        own_fabric.publisher.publish(own_fabric.subjects.req(5).encode(), b"x", lambda *o: outcomes.append(o), number)
    await own_fabric.connection._client._flush_pending()
    await brokers.kill_and_restart(own_broker)

    await eventually(lambda: len(outcomes) == 50, within_s=5)
    assert own_fabric.publisher.in_flight == 0
    assert sorted(number for number, _ in outcomes if isinstance(number, int)) == list(range(50))
    await eventually(lambda: own_fabric.connection.is_up, within_s=3)
    assert await own_fabric.publisher.send(own_fabric.subjects.req(5), b"x") >= 1


async def test_the_same_id_again_after_an_unconfirmed_publish_stores_one_message(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    """F11: a frozen broker may have read the first one; the id makes the repeat harmless."""
    subject = own_fabric.subjects.req(5)
    own_broker.pause()
    try:
        with pytest.raises(PublishUnconfirmed):
            await own_fabric.publisher.send(subject, b"x", message_id="m-1")
    finally:
        own_broker.resume()
    await eventually(lambda: own_fabric.connection.is_up, within_s=3)

    await own_fabric.publisher.send(subject, b"x", message_id="m-1")

    assert (await stream_state(own_fabric.connection, own_fabric.subjects.req_stream)).messages == 1
    await eventually(lambda: own_fabric.publisher.stats.late_acks == 1, within_s=2)


def _with(settings: FabricSettings, **changes: int) -> FabricSettings:
    return structs.replace(settings, **changes)
