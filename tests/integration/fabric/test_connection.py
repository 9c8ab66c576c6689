"""The connection: healthy while there is progress, and back by itself after whatever happens to the broker."""

from __future__ import annotations

import asyncio
import itertools

import anyio
import pytest

from gati_core.errors import BrokerUnavailable, MessageTooLarge
from gati_core.fabric import QUIET_TICK_S, EmbeddedBroker, Fabric, free_port, open_connection, open_fabric
from gati_core.settings import FabricSettings
from tests.helpers import brokers
from tests.helpers.waiting import eventually


async def test_messages_reach_every_subscription(gati_open_fabric: Fabric) -> None:
    connection = gati_open_fabric.connection
    got: list[tuple[bytes, bytes, bytes, bytes | None]] = []
    await connection.subscribe("plain.*", lambda *message: got.append(message))

    connection.publish_now(b"plain.a", b"one")
    connection.publish_now(b"plain.b", b"two", b"answer.here")
    connection.publish_now(b"plain.c", b"", b"", b"NATS/1.0\r\nA: b\r\n\r\n")

    await eventually(lambda: len(got) == 3, within_s=2)
    assert got == [
        (b"plain.a", b"", b"one", None),
        (b"plain.b", b"answer.here", b"two", None),
        (b"plain.c", b"", b"", b"NATS/1.0\r\nA: b\r\n\r\n"),
    ]


async def test_a_closed_subscription_gets_nothing_more(gati_open_fabric: Fabric) -> None:
    connection = gati_open_fabric.connection
    left: list[bytes] = []
    kept: list[bytes] = []
    leaving = await connection.subscribe("plain", lambda _s, _r, data, _h: left.append(data))
    await connection.subscribe("plain", lambda _s, _r, data, _h: kept.append(data))

    connection.publish_now(b"plain", b"before")
    await leaving.aclose()
    connection.publish_now(b"plain", b"after")

    await eventually(lambda: kept == [b"before", b"after"], within_s=2)
    assert left == [b"before"]


async def test_one_member_of_a_queue_group_gets_each_message(gati_open_fabric: Fabric) -> None:
    connection = gati_open_fabric.connection
    got: list[bytes] = []
    for _ in range(3):
        await connection.subscribe("shared", lambda _s, _r, data, _h: got.append(data), queue="hosts")

    for number in range(20):
        connection.publish_now(b"shared", b"%d" % number)
    await connection.flush()

    await eventually(lambda: len(got) == 20, within_s=2)
    assert sorted(got) == sorted(b"%d" % number for number in range(20))


async def test_a_callback_that_raises_does_not_stop_the_ones_after_it(gati_open_fabric: Fabric) -> None:
    """F8: callbacks run one after another, so each must survive the one before."""
    got: list[bytes] = []

    def callback(_subject: bytes, _reply: bytes, data: bytes, _headers: bytes | None) -> None:
        got.append(data)
        if data == b"bad":
            raise ValueError("a bug")

    await gati_open_fabric.connection.subscribe("plain", callback)
    for data in (b"bad", b"good"):
        gati_open_fabric.connection.publish_now(b"plain", data)

    await eventually(lambda: got == [b"bad", b"good"], within_s=2)
    assert gati_open_fabric.connection.is_up


async def test_health_tells_where_it_is_connected(gati_open_fabric: Fabric, gati_broker: EmbeddedBroker) -> None:
    health = gati_open_fabric.connection.health()

    assert (health.is_connected, health.is_up) == (True, True)
    assert health.server_url == f"127.0.0.1:{gati_broker.port}"
    assert health.server_version
    assert (health.reconnects, health.rebuilds, health.held_messages, health.dropped_messages) == (0, 0, 0, 0)


async def test_without_a_broker_opening_fails_in_time_and_says_what_to_do() -> None:
    settings = FabricSettings(nats_url=f"nats://127.0.0.1:{free_port()}", connect_wait_s=0.5)

    with anyio.fail_after(5), pytest.raises(BrokerUnavailable, match=r"within 0\.5 s .*GATI_NATS_URL"):
        async with open_connection(settings, name="test"):
            pass


async def test_opening_waits_for_a_broker_that_is_still_starting(own_broker: EmbeddedBroker) -> None:
    """F17: the port being open is not enough; `open_fabric` returns when a stream operation worked."""
    own_broker.kill()
    settings = FabricSettings(nats_url=own_broker.url, connect_wait_s=10)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(brokers.start, own_broker)
        async with open_fabric(settings, name="test") as fabric:
            assert await fabric.publisher.send(fabric.subjects.req(5), b"x") == 1


async def test_passwords_in_the_address_stay_out_of_errors() -> None:
    settings = FabricSettings(nats_url=f"nats://gati:hunter2@127.0.0.1:{free_port()}", connect_wait_s=0.1)

    with pytest.raises(BrokerUnavailable) as refused:
        async with open_connection(settings, name="test"):
            pass

    assert "hunter2" not in str(refused.value)
    assert "127.0.0.1" in str(refused.value)


async def test_errors_of_the_caller_come_out_as_they_are(gati_fabric_settings: FabricSettings) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_connection(gati_fabric_settings, name="test"):
            raise ZeroDivisionError


async def test_messages_published_right_before_closing_arrive(gati_open_fabric: Fabric) -> None:
    got: list[bytes] = []
    await gati_open_fabric.connection.subscribe("last.words", lambda _s, _r, data, _h: got.append(data))

    async with open_connection(gati_open_fabric.settings, name="leaving") as leaving:
        leaving.publish_now(b"last.words", b"bye")

    await eventually(lambda: got == [b"bye"], within_s=2)


async def test_subscriptions_and_listeners_survive_a_killed_broker(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    connection = own_fabric.connection
    got: list[bytes] = []
    seen: list[str] = []
    await connection.subscribe("plain", lambda _s, _r, data, _h: got.append(data))
    connection.on_down(lambda: seen.append("down"))
    connection.on_up(lambda: seen.append("up"))

    await brokers.kill_and_restart(own_broker)
    await eventually(lambda: seen == ["down", "up"], within_s=2)
    connection.publish_now(b"plain", b"again")

    await eventually(lambda: got == [b"again"], within_s=2)
    assert connection.health().reconnects == 1


async def test_a_listener_that_was_taken_off_or_raises_does_not_disturb_the_others(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    connection = own_fabric.connection
    seen: list[str] = []

    def broken() -> None:
        raise ValueError("a bug")

    def removed() -> None:
        seen.append("removed")

    connection.on_up(broken)
    connection.on_up(removed)
    connection.on_up(lambda: seen.append("kept"))
    connection.off(removed)

    await brokers.kill_and_restart(own_broker)

    await eventually(lambda: seen == ["kept"], within_s=2)


async def test_publishing_while_disconnected_is_refused_and_nothing_surfaces_later(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    """F11: nothing is buffered for later, neither for streams nor for plain subjects."""
    got: list[bytes] = []
    connection = own_fabric.connection
    await connection.subscribe("plain", lambda _s, _r, data, _h: got.append(data))
    own_broker.kill()
    await eventually(lambda: not connection.is_up, within_s=2)

    with pytest.raises(BrokerUnavailable):
        connection.publish_now(b"plain", b"ghost")
    with pytest.raises(BrokerUnavailable):
        await own_fabric.publisher.send(own_fabric.subjects.req(5), b"ghost")
    await brokers.start(own_broker)
    await eventually(lambda: connection.is_up, within_s=2)
    connection.publish_now(b"plain", b"real")

    await eventually(lambda: b"real" in got, within_s=2)
    assert got == [b"real"]
    assert await own_fabric.publisher.send(own_fabric.subjects.req(5), b"real") == 1


async def test_held_messages_are_sent_in_order_when_the_broker_is_back(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    connection = own_fabric.connection
    got: list[bytes] = []
    await connection.subscribe("replies", lambda _s, _r, data, _h: got.append(data))
    own_broker.kill()
    await eventually(lambda: not connection.is_up, within_s=2)

    for number in range(5):
        connection.publish_or_hold(b"replies", b"%d" % number)
    assert connection.health().held_messages == 5
    await brokers.start(own_broker)

    await eventually(lambda: got == [b"0", b"1", b"2", b"3", b"4"], within_s=3)
    assert connection.health().held_messages == 0


async def test_a_held_message_that_is_too_large_does_not_keep_the_others_back(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    """F7: it is dropped and counted; what was held behind it and the listeners still get their turn."""
    connection = own_fabric.connection
    got: list[bytes] = []
    ups: list[str] = []
    await connection.subscribe("replies", lambda _s, _r, data, _h: got.append(data))
    connection.on_up(lambda: ups.append("up"))
    own_broker.kill()
    await eventually(lambda: not connection.is_up, within_s=2)

    connection.publish_or_hold(b"replies", b"x" * (connection.max_payload + 1))
    connection.publish_or_hold(b"replies", b"fits")
    await brokers.start(own_broker)

    await eventually(lambda: got == [b"fits"] and ups == ["up"], within_s=3)
    assert connection.health().dropped_messages == 1


async def test_what_is_held_is_bounded_and_the_oldest_give_way(own_fabric: Fabric, own_broker: EmbeddedBroker) -> None:
    connection = own_fabric.connection
    own_broker.kill()
    await eventually(lambda: not connection.is_up, within_s=2)

    for number in range(20_005):
        connection.publish_or_hold(b"replies", b"%d" % number)

    assert (connection.health().held_messages, connection.health().dropped_messages) == (20_000, 5)


async def test_payload_and_headers_over_the_limit_are_refused_and_the_connection_stays(
    gati_open_fabric: Fabric,
) -> None:
    """F7: the body alone would fit; sent as it is, the server would cut the link for good."""
    connection = gati_open_fabric.connection
    headers = b"NATS/1.0\r\nA: " + b"b" * 1000 + b"\r\n\r\n"
    body = b"x" * (connection.max_payload - 500)

    with pytest.raises(MessageTooLarge, match=rf"{len(body) + len(headers)} bytes exceed .* {connection.max_payload}"):
        connection.publish_now(b"plain", body, b"", headers)

    await connection.flush()
    assert connection.health().reconnects == 0
    assert await gati_open_fabric.publisher.send(gati_open_fabric.subjects.req(5), b"still here") == 1


async def test_a_message_of_exactly_the_limit_goes_through(gati_open_fabric: Fabric) -> None:
    connection = gati_open_fabric.connection
    sizes: list[int] = []
    await connection.subscribe("plain", lambda _s, _r, data, headers: sizes.append(len(data) + len(headers or b"")))
    headers = b"NATS/1.0\r\nA: b\r\n\r\n"

    connection.publish_now(b"plain", b"x" * connection.max_payload)
    connection.publish_now(b"plain", b"x" * (connection.max_payload - len(headers)), b"", headers)

    await eventually(lambda: sizes == [connection.max_payload] * 2, within_s=5)


async def test_a_client_that_closed_for_good_is_replaced_with_its_subscriptions(gati_open_fabric: Fabric) -> None:
    """F7: nats-py gives up for ever on some errors, whatever its reconnect settings are."""
    connection = gati_open_fabric.connection
    got: list[bytes] = []
    ups: list[str] = []
    await connection.subscribe("plain", lambda _s, _r, data, _h: got.append(data))
    connection.on_up(lambda: ups.append("up"))

    await connection._client.close()
    with pytest.raises(BrokerUnavailable):
        connection.publish_now(b"plain", b"too early")
    await eventually(lambda: ups == ["up"], within_s=3)
    connection.publish_now(b"plain", b"again")

    await eventually(lambda: got == [b"again"], within_s=2)
    assert await gati_open_fabric.publisher.send(gati_open_fabric.subjects.req(5), b"x") == 1
    assert (connection.is_up, connection.health().rebuilds) == (True, 1)


async def test_a_client_is_replaced_again_and_again(gati_open_fabric: Fabric) -> None:
    connection = gati_open_fabric.connection
    for times in (1, 2, 3):
        await connection._client.close()
        await eventually(lambda times=times: connection.health().rebuilds == times, within_s=3)
    assert await gati_open_fabric.publisher.send(gati_open_fabric.subjects.req(5), b"x") == 1


async def test_subscribing_while_the_client_is_closed_is_refused_with_our_error(gati_open_fabric: Fabric) -> None:
    connection = gati_open_fabric.connection
    await connection._client.close()

    with pytest.raises(BrokerUnavailable):
        await connection.subscribe("plain", lambda *_: None)

    await eventually(lambda: connection.is_up, within_s=3)
    await connection.subscribe("plain", lambda *_: None)


async def test_a_client_is_rebuilt_after_the_broker_was_away_meanwhile(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    connection = own_fabric.connection
    own_broker.kill()
    await connection._client.close()
    await brokers.start(own_broker)

    await eventually(lambda: connection.is_up, within_s=5)
    assert await own_fabric.publisher.send(own_fabric.subjects.req(5), b"x") == 1


async def test_a_frozen_broker_counts_as_away_until_it_answers_again(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    connection = own_fabric.connection
    own_broker.pause()
    try:
        await eventually(lambda: not connection.is_up, within_s=4)
        assert connection.health().is_connected
        assert connection.health().since_progress_s >= 2
        with pytest.raises(BrokerUnavailable, match="does not answer"):
            connection.publish_now(b"plain", b"x")
        with pytest.raises(BrokerUnavailable):
            await own_fabric.publisher.send(own_fabric.subjects.req(5), b"x")
        with pytest.raises(BrokerUnavailable):
            await connection.flush(timeout_s=0.2)
    finally:
        own_broker.resume()

    await eventually(lambda: connection.is_up, within_s=3)
    assert await own_fabric.publisher.send(own_fabric.subjects.req(5), b"x") == 1


async def test_a_process_that_has_nothing_to_do_ticks_seldom_until_it_has(gati_open_fabric: Fabric) -> None:
    connection, loop = gati_open_fabric.connection, asyncio.get_running_loop()
    ticks: list[float] = []
    is_quiet = True
    connection.on_tick(ticks.append)
    connection.quiet_while(lambda _now: is_quiet)
    await eventually(lambda: len(ticks) >= 6, within_s=5)
    assert min(later - earlier for earlier, later in itertools.pairwise(ticks[1:])) >= QUIET_TICK_S * 0.9

    # It has just ticked: the next one would be almost a whole pause away.
    seen = len(ticks)
    await eventually(lambda: len(ticks) > seen, within_s=2, every_s=0.001)
    is_quiet = False
    at = loop.time()
    connection.quicken()
    seen = len(ticks)
    await eventually(lambda: len(ticks) >= seen + 9, within_s=5)
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise([at, *ticks[seen:]]))
    assert gaps[len(gaps) // 2] < QUIET_TICK_S * 0.75


async def test_a_process_that_cannot_say_whether_it_has_something_to_do_goes_on_ticking(
    gati_open_fabric: Fabric,
) -> None:
    def broken(_now: float) -> bool:
        raise RuntimeError("nobody knows")

    ticks: list[float] = []
    gati_open_fabric.connection.on_tick(ticks.append)
    gati_open_fabric.connection.quiet_while(broken)

    await eventually(lambda: len(ticks) >= 5, within_s=5)
