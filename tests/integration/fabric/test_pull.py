"""The pull loop: at most `capacity` unsettled messages, and none lost whoever leaves or dies."""

from __future__ import annotations

import asyncio
import random

import anyio
import pytest

from gati_core.fabric import EmbeddedBroker, Fabric, open_connection, open_fabric, pull, stream_state, topology
from gati_core.settings import FabricSettings
from tests.helpers import brokers
from tests.helpers.collecting import collecting
from tests.helpers.waiting import eventually


async def _publish(fabric: Fabric, *bodies: bytes) -> None:
    for body in bodies:
        await fabric.publisher.send(fabric.subjects.work("p", "h"), body)


async def _left(fabric: Fabric) -> int:
    return (await stream_state(fabric.connection, fabric.subjects.work_stream)).messages


async def _nothing_left(fabric: Fabric) -> bool:
    return await _left(fabric) == 0


async def test_a_delivery_carries_what_was_published(gati_open_fabric: Fabric) -> None:
    subject = gati_open_fabric.subjects.work("p", "h")
    async with collecting(gati_open_fabric) as got:
        await gati_open_fabric.publisher.send(subject, b"x", headers={"Über-Uns": "ja", "Trace": "größe"})
        delivery = await got.next()

        assert (delivery.subject, delivery.data, delivery.attempt) == (subject.encode(), b"x", 1)
        assert delivery.stream_sequence == 1
        assert delivery.header_fields()["Trace"] == "größe"


async def test_an_acked_message_is_gone_from_the_queue(gati_open_fabric: Fabric) -> None:
    async with collecting(gati_open_fabric) as got:
        await _publish(gati_open_fabric, b"x")
        (await got.next()).ack()

        await eventually(lambda: _nothing_left(gati_open_fabric), within_s=2)
        assert got.consumer.busy == 0


async def test_what_waited_before_the_start_is_delivered_in_order(gati_open_fabric: Fabric) -> None:
    await gati_open_fabric.topology.ensure_pool("p", {"h": "at_least_once"})
    await _publish(gati_open_fabric, *(b"%d" % number for number in range(20)))

    async with collecting(gati_open_fabric, capacity=50) as got:
        await eventually(lambda: len(got.seen) == 20, within_s=3)

    assert got.bodies == [b"%d" % number for number in range(20)]


async def test_naked_delivery_comes_back_at_once_with_a_higher_attempt(gati_open_fabric: Fabric) -> None:
    async with collecting(gati_open_fabric) as got:
        await _publish(gati_open_fabric, b"x")
        (await got.next()).nak()

        again = await got.next(within_s=1)
        assert (again.data, again.attempt) == (b"x", 2)


async def test_nak_with_a_delay_comes_back_after_it_and_not_before(gati_open_fabric: Fabric) -> None:
    """F4: the delay travels with the nak; a bare nak would come back at once."""
    async with collecting(gati_open_fabric) as got:
        await _publish(gati_open_fabric, b"x")
        (await got.next()).nak(delay_s=0.8)

        await got.expect_none(for_s=0.6)
        assert (await got.next(within_s=2)).attempt == 2


async def test_a_termed_message_never_comes_back(gati_open_fabric: Fabric) -> None:
    async with collecting(gati_open_fabric) as got:
        await _publish(gati_open_fabric, b"x")
        (await got.next()).term()

        await eventually(lambda: _nothing_left(gati_open_fabric), within_s=2)
        assert len(got.seen) == 1


async def test_only_the_first_settlement_counts(gati_open_fabric: Fabric) -> None:
    async with collecting(gati_open_fabric) as got:
        await _publish(gati_open_fabric, b"x")
        delivery = await got.next()
        delivery.ack()
        delivery.nak()
        delivery.term()
        delivery.in_progress()

        await eventually(lambda: _nothing_left(gati_open_fabric), within_s=2)
        assert (got.consumer.busy, len(got.seen)) == (0, 1)


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> float:
    """Consumers made by this test redeliver after a second."""
    monkeypatch.setattr(topology, "WORK_ACK_WAIT_S", 1.0)
    return 1.0


async def test_a_message_nobody_settles_goes_to_another_member_after_the_lease(
    gati_open_fabric: Fabric, short_lease: float
) -> None:
    async with collecting(gati_open_fabric, capacity=1) as first:
        await _publish(gati_open_fabric, b"x")
        await first.next()
        async with collecting(gati_open_fabric, capacity=1) as second:
            again = await second.next(within_s=4 * short_lease)

            assert (again.data, again.attempt) == (b"x", 2)
            again.ack()


async def test_in_progress_acks_keep_the_lease(gati_open_fabric: Fabric, short_lease: float) -> None:
    async with collecting(gati_open_fabric, capacity=1) as first, collecting(gati_open_fabric, capacity=1) as second:
        await _publish(gati_open_fabric, b"x")
        await eventually(lambda: len(first.seen) + len(second.seen) == 1, within_s=2)
        delivery = (first.seen + second.seen)[0]

        with anyio.move_on_after(2.5 * short_lease):
            await eventually(lambda: bool(delivery.in_progress()), within_s=30, every_s=0.2)  # type: ignore[func-returns-value]

        assert len(first.seen) + len(second.seen) == 1
        delivery.ack()
        await eventually(lambda: _nothing_left(gati_open_fabric), within_s=2)


async def test_a_message_acked_at_its_start_keeps_its_slot_until_release(gati_open_fabric: Fabric) -> None:
    async with collecting(gati_open_fabric, mode="at_most_once", capacity=1) as got:
        await _publish(gati_open_fabric, b"one", b"two")
        first = await got.next()
        first.ack_keeping_slot()
        await eventually(lambda: _waiting_is(gati_open_fabric, 1), within_s=2)
        await got.expect_none(for_s=0.3)

        first.release()

        assert (await got.next()).data == b"two"


async def _waiting_is(fabric: Fabric, count: int) -> bool:
    return await _left(fabric) == count


async def test_an_at_most_once_message_is_never_delivered_twice(gati_open_fabric: Fabric, short_lease: float) -> None:
    """Neither a nak nor a lease that runs out brings it back: its consumer allows one delivery."""
    async with collecting(gati_open_fabric, mode="at_most_once", capacity=4) as got:
        await _publish(gati_open_fabric, b"naked", b"forgotten")
        await eventually(lambda: len(got.seen) == 2, within_s=2)
        await got.next()
        await got.next()
        got.seen[0].nak()

        await got.expect_none(for_s=2.5 * short_lease)


@pytest.mark.parametrize(("capacity", "batch"), [(1, 1), (3, 256), (16, 4), (64, 64)])
async def test_never_more_than_capacity_is_unsettled_in_whatever_order_it_settles(
    gati_open_fabric: Fabric, capacity: int, batch: int
) -> None:
    chance = random.Random(capacity)
    count = 600
    async with collecting(gati_open_fabric, capacity=capacity, batch=batch) as got:
        confirmed: list[object] = []
        for number in range(count):
            gati_open_fabric.publisher.publish(
                gati_open_fabric.subjects.work("p", "h").encode(), b"%d" % number, lambda *o: confirmed.append(o)
            )
        held: list[int] = []
        taken = settled = 0
        with anyio.fail_after(20):
            while settled < count:
                await eventually(lambda: len(got.seen) > taken or bool(held), within_s=5, every_s=0.001)  # noqa: B023
                held += range(taken, len(got.seen))
                taken = len(got.seen)
                for _ in range(chance.randint(1, len(held))):
                    delivery = got.seen[held.pop(chance.randrange(len(held)))]
                    if chance.random() < 0.1 and delivery.attempt < 3:
                        delivery.nak()
                    else:
                        delivery.ack()
                        settled += 1
                await asyncio.sleep(0)

        assert got.most_busy <= capacity
        assert got.consumer._wanted <= capacity
        assert set(got.bodies) == {b"%d" % number for number in range(count)}
        await eventually(lambda: _nothing_left(gati_open_fabric), within_s=3)


async def test_members_share_the_work_and_each_message_goes_to_one(gati_open_fabric: Fabric) -> None:
    async with collecting(gati_open_fabric, capacity=4) as first, collecting(gati_open_fabric, capacity=4) as second:
        await _publish(gati_open_fabric, *(b"%d" % number for number in range(8)))

        await eventually(lambda: len(first.seen) + len(second.seen) == 8, within_s=3)
        assert len(first.seen) == len(second.seen) == 4
        assert set(first.bodies) | set(second.bodies) == {b"%d" % number for number in range(8)}


async def test_leaving_loses_no_message_the_next_ones_go_to_others_at_once(gati_open_fabric: Fabric) -> None:
    """F13, F18: the leaver's open pull requests must not swallow what comes after it left."""
    async with (
        open_fabric(gati_open_fabric.settings, name="other", ensure=False) as other,
        collecting(gati_open_fabric, capacity=32) as leaver,
        collecting(other, capacity=200) as stayer,
    ):
        await leaver.consumer.stop_pulling()
        await _publish(gati_open_fabric, *(b"%d" % number for number in range(100)))

        await eventually(lambda: len(stayer.seen) == 100, within_s=2)
        assert leaver.seen == []


@pytest.mark.parametrize("turn", range(3))
async def test_leaving_in_the_middle_of_a_stream_of_messages_loses_none(gati_open_fabric: Fabric, turn: int) -> None:
    """F13, F18: each message reaches a callback, of the leaver or of those who stay, well before any lease ends."""
    count = 400
    async with (
        open_fabric(gati_open_fabric.settings, name="other", ensure=False) as other,
        collecting(gati_open_fabric, capacity=500) as leaver,
        collecting(other, capacity=500) as stayer,
    ):
        for number in range(count):
            gati_open_fabric.publisher.publish(
                gati_open_fabric.subjects.work("p", "h").encode(), b"%d" % number, lambda *_: None
            )
        await eventually(lambda: bool(leaver.seen), within_s=2, every_s=0.0)
        await leaver.consumer.stop_pulling()

        await eventually(lambda: len(leaver.seen) + len(stayer.seen) == count, within_s=2)
        assert set(leaver.bodies) | set(stayer.bodies) == {b"%d" % number for number in range(count)}
        for delivery in leaver.seen + stayer.seen:
            delivery.ack()
        await eventually(lambda: _nothing_left(gati_open_fabric), within_s=2)


async def test_a_leaving_at_most_once_member_takes_what_its_open_requests_still_bring(gati_open_fabric: Fabric) -> None:
    """F18: left at once, the server could send to the inbox in the moment in which it is given up."""
    async with (
        collecting(gati_open_fabric, mode="at_most_once", capacity=8) as leaver,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(leaver.consumer.stop_pulling)
        await anyio.lowlevel.checkpoint()
        await _publish(gati_open_fabric, *(b"%d" % number for number in range(8)))

        await eventually(lambda: len(leaver.seen) == 8, within_s=2)
        for delivery in leaver.seen:
            delivery.ack()


async def test_members_come_and_go_and_no_at_most_once_message_is_lost(gati_open_fabric: Fabric) -> None:
    """F18: with `max_deliver=1` a message sent to an inbox that is being left would never come again."""
    count = 3000
    seen: list[bytes] = []
    async with (
        open_fabric(gati_open_fabric.settings, name="other", ensure=False) as other,
        collecting(other, mode="at_most_once", capacity=64) as stayer,
        anyio.create_task_group() as tasks,
    ):

        async def publish() -> None:
            for number in range(count):
                await gati_open_fabric.publisher.send(gati_open_fabric.subjects.work("p", "h"), b"%d" % number)

        async def acknowledge() -> None:
            for _ in range(count):
                delivery = await queue.get()
                delivery.ack()
                seen.append(delivery.data)
            tasks.cancel_scope.cancel()

        queue = stayer._queue
        tasks.start_soon(publish)
        tasks.start_soon(acknowledge)
        while len(seen) < count:
            async with collecting(gati_open_fabric, mode="at_most_once", capacity=64) as leaver:
                leaver._queue = queue
                await eventually(lambda mine=leaver: len(mine.seen) > 20 or len(seen) == count, within_s=20)

    assert sorted(seen, key=int) == [b"%d" % number for number in range(count)]


async def test_a_handed_back_message_is_delivered_elsewhere_at_once_after_leaving(gati_open_fabric: Fabric) -> None:
    """F13: stop pulling, then nak what has not started; it must not come back to the leaver."""
    async with collecting(gati_open_fabric, capacity=4) as leaver:
        await _publish(gati_open_fabric, b"x")
        delivery = await leaver.next()
        async with collecting(gati_open_fabric, capacity=4) as stayer:
            await leaver.consumer.stop_pulling()
            delivery.nak()

            again = await stayer.next(within_s=1)
            assert (again.data, again.attempt) == (b"x", 2)
            await leaver.consumer.wait_idle()


async def test_waiting_for_idle_returns_when_the_last_delivery_is_settled(gati_open_fabric: Fabric) -> None:
    async with collecting(gati_open_fabric) as got:
        await got.consumer.wait_idle()
        await _publish(gati_open_fabric, b"x", b"y")
        first, second = await got.next(), await got.next()
        first.ack()
        with anyio.move_on_after(0.1) as impatience:
            await got.consumer.wait_idle()
        assert impatience.cancelled_caught

        second.ack()

        with anyio.fail_after(1):
            await got.consumer.wait_idle()


async def test_messages_flow_within_two_seconds_after_a_killed_broker_is_ready_again(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    """F10: the pull requests died with the server; they are asked again on the new connection."""
    async with collecting(own_fabric) as got:
        await _publish(own_fabric, b"before")
        (await got.next()).ack()

        await brokers.kill_and_restart(own_broker)
        with anyio.fail_after(2):
            await eventually(lambda: own_fabric.connection.is_up, within_s=2)
            await _publish(own_fabric, b"after")
            assert (await got.next(within_s=2)).data == b"after"


async def test_a_message_stored_while_the_puller_was_cut_off_arrives_when_it_is_back(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    """F10: with a message waiting, nothing hangs until some timeout."""
    async with collecting(own_fabric) as got:
        own_broker.kill()
        await eventually(lambda: not own_fabric.connection.is_up, within_s=2)
        await brokers.start(own_broker)
        async with open_connection(own_fabric.settings, name="other") as other:
            js = other.jetstream()
            await js.publish(own_fabric.subjects.work("p", "h"), b"x")

            assert (await got.next(within_s=2)).data == b"x"


async def test_acks_given_while_the_broker_is_away_count_when_it_is_back(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    async with collecting(own_fabric) as got:
        await _publish(own_fabric, b"x")
        delivery = await got.next()
        own_broker.stop()  # in order: a killed one may forget that it ever delivered the message
        await eventually(lambda: not own_fabric.connection.is_up, within_s=2)

        delivery.ack()
        await brokers.start(own_broker)

        await eventually(lambda: own_fabric.connection.is_up, within_s=3)
        await eventually(lambda: _nothing_left(own_fabric), within_s=3)
        assert len(got.seen) == 1


async def test_capacity_holds_after_the_connection_was_cut_and_the_server_lived_on(gati_open_fabric: Fabric) -> None:
    """The server may still know the requests of the old connection, as their inbox is listened on again."""
    async with collecting(gati_open_fabric, capacity=10) as got:
        for _ in range(3):
            reconnects = gati_open_fabric.connection.health().reconnects
            await gati_open_fabric.connection._client.force_reconnect()
            await eventually(lambda: gati_open_fabric.connection.health().reconnects > reconnects, within_s=3)  # noqa: B023
        confirmed: list[object] = []
        for number in range(100):
            gati_open_fabric.publisher.publish(
                gati_open_fabric.subjects.work("p", "h").encode(), b"%d" % number, lambda *o: confirmed.append(o)
            )
        await eventually(lambda: len(confirmed) == 100 and len(got.seen) >= 10, within_s=3)
        await gati_open_fabric.connection.flush()

        assert got.most_busy <= 10


async def test_pulling_goes_on_after_the_client_closed_for_good(gati_open_fabric: Fabric) -> None:
    """F7."""
    async with collecting(gati_open_fabric) as got:
        await gati_open_fabric.connection._client.close()
        await eventually(lambda: gati_open_fabric.connection.is_up, within_s=3)

        await _publish(gati_open_fabric, b"x")

        assert (await got.next(within_s=2)).data == b"x"


async def test_pulling_goes_on_after_a_frozen_broker_wakes_up(own_fabric: Fabric, own_broker: EmbeddedBroker) -> None:
    async with collecting(own_fabric) as got:
        own_broker.pause()
        try:
            await eventually(lambda: not own_fabric.connection.is_up, within_s=4)
        finally:
            own_broker.resume()
        await eventually(lambda: own_fabric.connection.is_up, within_s=3)

        await _publish(own_fabric, b"x")

        assert (await got.next(within_s=2)).data == b"x"
        assert got.most_busy == 1


async def test_pulling_goes_on_when_the_consumer_is_deleted_and_made_again(
    gati_open_fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "_HEARTBEAT_S", 0.2)
    async with collecting(gati_open_fabric) as got:
        await gati_open_fabric.connection.jetstream().delete_consumer(gati_open_fabric.subjects.work_stream, "pool-p")
        await gati_open_fabric.topology.ensure_pool("p", {"h": "at_least_once"})

        await _publish(gati_open_fabric, b"x")

        assert (await got.next(within_s=3)).data == b"x"


async def test_a_pull_that_the_server_forgot_is_noticed_by_its_silence(
    gati_open_fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F10: no message and no heartbeat means that nobody knows our request; a new inbox asks again."""
    monkeypatch.setattr(pull, "_HEARTBEAT_S", 0.1)
    async with collecting(gati_open_fabric) as got:
        consumer = got.consumer
        inbox = consumer._inbox
        subscription = consumer._subscription
        assert subscription is not None
        # The inbox is left behind the consumer's back: as if the server had lost the request.
        assert subscription._current is not None
        await gati_open_fabric.connection._client.unsubscribe_direct(subscription._current)

        await eventually(lambda: consumer._inbox != inbox, within_s=3)
        await _publish(gati_open_fabric, b"x")

        assert (await got.next(within_s=2)).data == b"x"


async def test_a_stopped_consumer_stays_stopped_when_the_broker_comes_back(
    own_fabric: Fabric, own_broker: EmbeddedBroker, own_settings: FabricSettings
) -> None:
    async with collecting(own_fabric) as got:
        await got.consumer.stop_pulling()
        await brokers.kill_and_restart(own_broker)
        await eventually(lambda: own_fabric.connection.is_up, within_s=3)
        await _publish(own_fabric, b"x")

        async with open_fabric(own_settings, name="other", ensure=False) as other, collecting(other) as stayer:
            assert (await stayer.next(within_s=2)).attempt == 1
        assert got.seen == []
