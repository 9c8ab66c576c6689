"""What the broker and its client do that bites, and that our code is safe against it.

Each test names its row of the list of measured facts. The rows whose proof belongs to one module
of the fabric are proven in that module's tests, too; here they meet as a whole.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from msgspec import structs

from gati_core.errors import Backpressure, BrokerUnavailable, MessageTooLarge, PublishUnconfirmed
from gati_core.fabric import EmbeddedBroker, Fabric, KvView, open_fabric, stream_state
from gati_core.fabric.topology import MAX_ATTEMPTS
from gati_core.settings import FabricSettings
from gati_core.wire import PROTOCOL, Reply, decode_reply, encode
from tests.helpers import brokers
from tests.helpers.collecting import collecting
from tests.helpers.waiting import eventually


async def test_a_reply_travels_on_its_own_subject_and_not_as_the_publish_ack(gati_open_fabric: Fabric) -> None:
    """F1: a request on a stream's subject would be answered by the stream."""
    names = gati_open_fabric.subjects
    replies: list[bytes] = []
    await gati_open_fabric.connection.subscribe(names.reply_filter("i"), lambda _s, _r, data, _h: replies.append(data))
    async with collecting(gati_open_fabric) as got:
        sequence = await gati_open_fabric.publisher.send(names.work("p", "h"), names.reply("i", "1").encode())
        delivery = await got.next()
        answer = encode(Reply(PROTOCOL, "r-1", 200))
        gati_open_fabric.connection.publish_or_hold(delivery.data, answer)
        delivery.ack()

        await eventually(lambda: replies == [answer], within_s=2)
        assert sequence == 1
        assert decode_reply(replies[0]).status == 200


async def test_two_pools_with_the_same_handler_names_never_share_a_message(gati_open_fabric: Fabric) -> None:
    """F2: one durable per disjoint slice."""
    async with collecting(gati_open_fabric, pool="one") as one, collecting(gati_open_fabric, pool="two") as two:
        await gati_open_fabric.publisher.send(gati_open_fabric.subjects.work("one", "h"), b"1")
        await gati_open_fabric.publisher.send(gati_open_fabric.subjects.work("two", "h"), b"2")

        assert ((await one.next()).data, (await two.next()).data) == (b"1", b"2")
        assert (len(one.seen), len(two.seen)) == (1, 1)


async def test_the_attempt_after_our_last_one_still_reaches_our_code(gati_open_fabric: Fabric) -> None:
    """F3, F19: our limit is below the server's, so a crash on our last attempt is still seen by us."""
    async with collecting(gati_open_fabric) as got:
        await gati_open_fabric.publisher.send(gati_open_fabric.subjects.work("p", "h"), b"x")
        for _ in range(MAX_ATTEMPTS):
            (await got.next()).nak()

        delivery = await got.next()
        assert delivery.attempt == MAX_ATTEMPTS + 1
        delivery.term()


async def test_the_same_id_after_the_ack_is_swallowed_so_a_new_run_needs_a_new_one(gati_open_fabric: Fabric) -> None:
    """F5: confirmed, and never delivered."""
    subject = gati_open_fabric.subjects.work("p", "h")
    async with collecting(gati_open_fabric) as got:
        await gati_open_fabric.publisher.send(subject, b"first", message_id="r-1")
        (await got.next()).ack()

        await gati_open_fabric.publisher.send(subject, b"swallowed", message_id="r-1")
        await gati_open_fabric.publisher.send(subject, b"again", message_id="r-1#2")

        assert (await got.next()).data == b"again"
        assert got.bodies == [b"first", b"again"]


async def test_every_stream_with_a_limit_really_refuses_when_it_is_full(gati_fabric_settings: FabricSettings) -> None:
    """F6, F15: the start-up probe of limits, on a fabric small enough to fill."""
    settings = structs.replace(gati_fabric_settings, req_max_msgs=2, work_max_msgs_per_handler=2, dead_max_msgs=2)
    async with open_fabric(settings, name="test") as fabric:
        names = fabric.subjects
        for subject in (names.req(0), names.work("p", "h"), names.dead("work", "p")):
            for _ in range(2):
                await fabric.publisher.send(subject, b"accepted")
            for _ in range(3):
                with pytest.raises(Backpressure):
                    await fabric.publisher.send(subject, b"refused")
        for stream in (names.req_stream, names.work_stream, names.dead_stream):
            state = await stream_state(fabric.connection, stream)
            assert (state.messages, state.first_seq) == (2, 1)


async def test_a_full_stream_takes_messages_again_as_soon_as_one_is_acked(
    gati_fabric_settings: FabricSettings,
) -> None:
    """F6: backpressure ends by itself."""
    settings = structs.replace(gati_fabric_settings, work_max_msgs_per_handler=1)
    async with open_fabric(settings, name="test") as fabric, collecting(fabric) as got:
        subject = fabric.subjects.work("p", "h")
        await fabric.publisher.send(subject, b"1")
        with pytest.raises(Backpressure):
            await fabric.publisher.send(subject, b"2")
        (await got.next()).ack()

        async def accepted() -> bool:
            try:
                return bool(await fabric.publisher.send(subject, b"2"))
            except Backpressure:
                return False

        await eventually(accepted, within_s=2)


@pytest.mark.parametrize("spare_bytes", [0, 1, 50])
async def test_a_body_just_under_the_limit_with_an_id_never_cuts_the_connection(
    gati_open_fabric: Fabric, spare_bytes: int
) -> None:
    """F7: nats-py would count the body alone, and be closed for good by the server."""
    connection = gati_open_fabric.connection
    body = b"x" * (connection.max_payload - spare_bytes)

    if spare_bytes < 50:
        with pytest.raises(MessageTooLarge):
            await gati_open_fabric.publisher.send(gati_open_fabric.subjects.req(5), body, message_id="r-1")
    else:
        await gati_open_fabric.publisher.send(gati_open_fabric.subjects.req(5), body, message_id="r-1")

    await connection.flush()
    health = connection.health()
    assert (health.is_up, health.reconnects, health.rebuilds) == (True, 0, 0)


async def test_everything_flows_within_two_seconds_after_a_killed_broker_is_ready_again(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    """F9, F10: publishing, pulling, plain subjects and a view, all on one connection."""
    names = own_fabric.subjects
    view = KvView(own_fabric.connection, names.pools_bucket)
    await view.start()
    replies: list[bytes] = []
    await own_fabric.connection.subscribe(names.reply_filter("i"), lambda _s, _r, data, _h: replies.append(data))
    async with collecting(own_fabric) as got, open_fabric(own_fabric.settings, name="other") as other:
        for turn in range(2):
            await brokers.kill_and_restart(own_broker)

            with anyio.fail_after(2):
                await eventually(lambda: own_fabric.connection.is_up and other.connection.is_up, within_s=2)
                await other.publisher.send(names.work("p", "h"), b"%d" % turn)
                delivery = await got.next()
                own_fabric.connection.publish_or_hold(names.reply("i", "1").encode(), delivery.data)
                delivery.ack()
                await eventually(lambda: len(replies) == turn + 1, within_s=2)  # noqa: B023
            assert replies[turn] == b"%d" % turn
    await view.aclose()


async def test_what_was_refused_while_the_broker_was_away_is_never_delivered(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    """F11: no ghost comes out of a client's buffer."""
    subject = own_fabric.subjects.work("p", "h")
    async with collecting(own_fabric) as got:
        own_broker.kill()
        await eventually(lambda: not own_fabric.connection.is_up, within_s=2)
        for number in range(10):
            with pytest.raises(BrokerUnavailable):
                await own_fabric.publisher.send(subject, b"ghost", message_id=f"m-{number}")
        await brokers.start(own_broker)
        await eventually(lambda: own_fabric.connection.is_up, within_s=3)

        await own_fabric.publisher.send(subject, b"real", message_id="m-0")

        assert (await got.next()).data == b"real"
        assert got.bodies == [b"real"]
        assert (await stream_state(own_fabric.connection, own_fabric.subjects.work_stream)).last_seq == 1


async def test_a_window_full_of_lost_acks_is_free_again_after_their_deadline(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    """F12: a leaking window would refuse everything from then on."""
    settings = structs.replace(own_fabric.settings, publish_window=8)
    async with open_fabric(settings, name="small window", ensure=False) as fabric:
        subject = fabric.subjects.req(5)
        own_broker.pause()
        try:
            results = await asyncio.gather(
                *(fabric.publisher.send(subject, b"x") for _ in range(9)), return_exceptions=True
            )
        finally:
            own_broker.resume()
        kinds = [type(result) for result in results]
        assert kinds == [PublishUnconfirmed] * 8 + [Backpressure]
        await eventually(lambda: fabric.connection.is_up, within_s=3)

        assert fabric.publisher.in_flight == 0
        assert len(await asyncio.gather(*(fabric.publisher.send(subject, b"x") for _ in range(8)))) == 8


async def test_closing_a_fabric_hands_its_open_requests_back_at_once(gati_open_fabric: Fabric) -> None:
    """F13, F18: a whole process leaves, without a word to its consumers; the next message goes to who is left."""
    async with collecting(gati_open_fabric) as stayer:
        async with open_fabric(gati_open_fabric.settings, name="leaver", ensure=False) as leaver, collecting(leaver):
            pass
        for number in range(10):
            await gati_open_fabric.publisher.send(gati_open_fabric.subjects.work("p", "h"), b"%d" % number)
            delivery = await stayer.next(within_s=1)
            assert (delivery.data, delivery.attempt) == (b"%d" % number, 1)
            delivery.ack()


async def test_a_reply_nobody_waits_for_vanishes_without_harm(gati_open_fabric: Fabric) -> None:
    """F14."""
    gati_open_fabric.connection.publish_or_hold(gati_open_fabric.subjects.reply("gone", "1").encode(), b"x")

    await gati_open_fabric.connection.flush()
    assert gati_open_fabric.connection.is_up


async def test_reconnects_leave_no_consumer_behind(own_fabric: Fabric, own_broker: EmbeddedBroker) -> None:
    """F16: one watch per bucket, whatever happened."""
    bucket = own_fabric.subjects.pools_bucket
    view = KvView(own_fabric.connection, bucket)
    await view.start()
    for turn in range(3):
        await brokers.kill_and_restart(own_broker)
        await eventually(lambda: view.reloads == turn + 2, within_s=3)  # noqa: B023

    async def one_consumer() -> bool:
        return (await stream_state(own_fabric.connection, f"KV_{bucket}")).consumers == 1

    await eventually(one_consumer, within_s=3)
    await view.aclose()


async def test_a_started_broker_answers_stream_operations_at_once(tmp_path: Path) -> None:
    """F17: its port is open before JetStream is ready; `start` waits for the latter."""
    with EmbeddedBroker(tmp_path) as broker:
        for _ in range(3):
            await brokers.kill_and_restart(broker)
            url = f"http://127.0.0.1:{broker.monitor_port}/healthz?js-enabled-only=true"
            answer = await to_thread.run_sync(lambda url=url: urllib.request.urlopen(url).read())  # type: ignore[misc]
            assert json.loads(answer)["status"] == "ok"
            async with open_fabric(FabricSettings(nats_url=broker.url), name="test") as fabric:
                assert await fabric.publisher.send(fabric.subjects.req(5), b"x")


async def test_an_ack_is_explicit_and_nothing_is_settled_by_delivery_alone(gati_open_fabric: Fabric) -> None:
    """F13: a message that was only delivered is still there when its reader is gone."""
    async with (
        open_fabric(gati_open_fabric.settings, name="leaving", ensure=False) as leaving,
        collecting(leaving) as got,
    ):
        await gati_open_fabric.publisher.send(gati_open_fabric.subjects.work("p", "h"), b"x")
        await got.next()

    assert (await stream_state(gati_open_fabric.connection, gati_open_fabric.subjects.work_stream)).messages == 1


async def test_deadlines_of_acks_need_no_broker(own_fabric: Fabric, own_broker: EmbeddedBroker) -> None:
    """F12: the ack timeout of one second holds while nothing answers at all."""
    own_broker.pause()
    try:
        started_at = time.monotonic()
        with pytest.raises(PublishUnconfirmed):
            await own_fabric.publisher.send(own_fabric.subjects.req(5), b"x")
        assert 0.9 < time.monotonic() - started_at < 1.6
    finally:
        own_broker.resume()
