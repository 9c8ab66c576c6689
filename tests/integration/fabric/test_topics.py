"""Topics: one list of contracts, kept by the broker's port and by the simulator's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import pytest
from msgspec import structs
from structlog.testing import capture_logs

from gati_core.contexts import Event, GlobalContext, Instance, TopicHandler, TopicHost, TopicPort, Topics
from gati_core.contexts._topics import HEAD_ROOM_BYTES, MAX_REQUEST_SUBSCRIPTIONS
from gati_core.errors import (
    Backpressure,
    BrokerUnavailable,
    EventTimeout,
    MalformedMessage,
    MessageTooLarge,
    NotConfigured,
    PermanentError,
    RegistrationError,
    TopicError,
    TopologyError,
)
from gati_core.fabric import EmbeddedBroker, Fabric, FabricTopics, open_fabric, stream_state
from gati_core.fabric.topology import MAX_ATTEMPTS, TOPIC_ACK_WAIT_S
from gati_core.ids import new_request_id
from gati_core.settings import FabricSettings
from gati_testing._memory_topics import MemoryTopics
from tests.helpers import brokers
from tests.helpers.collecting import Collector
from tests.helpers.waiting import eventually


class Backend:
    """Where processes meet: a broker, or the simulator's stand-in for one."""

    async def port(self) -> TopicPort:
        """The port of one more process."""
        raise NotImplementedError

    async def process(self, name: str = "p") -> Topics:
        """The topics of one more process."""
        return Topics(await self.port(), publisher=name)

    async def go_away(self) -> None:
        """Let no process reach the broker, and return when they have noticed."""
        raise NotImplementedError

    async def come_back(self) -> None:
        """Undo `go_away`, and return when all have noticed."""
        raise NotImplementedError

    async def dead(self) -> list[tuple[str, int]]:
        """Causes and attempts of the dead letters, oldest first."""
        raise NotImplementedError


class Memory(Backend):
    def __init__(self, max_messages: int) -> None:
        self.topics = MemoryTopics(max_messages=max_messages)

    async def port(self) -> TopicPort:
        return self.topics

    async def go_away(self) -> None:
        self.topics.go_away()

    async def come_back(self) -> None:
        self.topics.come_back()

    async def dead(self) -> list[tuple[str, int]]:
        return [(str(each.error), each.attempts) for each in self.topics.dead]


class Broker(Backend):
    def __init__(self, settings: FabricSettings, stack: AsyncExitStack, broker: EmbeddedBroker | None) -> None:
        self._settings = settings
        self._stack = stack
        self._broker = broker
        self.fabrics: list[Fabric] = []

    async def port(self) -> TopicPort:
        fabric = await self._stack.enter_async_context(open_fabric(self._settings, name="test"))
        self.fabrics.append(fabric)
        return FabricTopics(fabric)

    async def go_away(self) -> None:
        assert self._broker is not None
        await anyio.to_thread.run_sync(self._broker.kill)
        await eventually(lambda: not any(fabric.connection.is_up for fabric in self.fabrics), within_s=5)

    async def come_back(self) -> None:
        assert self._broker is not None
        await brokers.start(self._broker)
        await eventually(lambda: all(fabric.connection.is_up for fabric in self.fabrics), within_s=10)
        for fabric in self.fabrics:
            await fabric.connection.flush()
            await eventually(lambda fabric=fabric: _answers(fabric), within_s=10)

    async def dead(self) -> list[tuple[str, int]]:
        letters = await self.fabrics[0].dead_letters.newest()
        return [(letter.cause, letter.attempts) for letter in reversed(letters)]


async def _answers(fabric: Fabric) -> bool:
    try:
        await stream_state(fabric.connection, fabric.subjects.topic_stream)
    except BrokerUnavailable:
        return False
    return True


@pytest.fixture(params=["memory", "broker"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Each of the two, with room for 20 durable events."""
    if request.param == "memory":
        yield Memory(max_messages=20)
        return
    settings: FabricSettings = request.getfixturevalue("gati_fabric_settings")
    async with AsyncExitStack() as stack:
        yield Broker(structs.replace(settings, topics_max_msgs=20), stack, None)


@pytest.fixture(params=["memory", "broker"])
async def own_backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Each of the two, to be taken away and given back."""
    if request.param == "memory":
        yield Memory(max_messages=20)
        return
    settings: FabricSettings = request.getfixturevalue("own_settings")
    async with AsyncExitStack() as stack:
        yield Broker(settings, stack, request.getfixturevalue("own_broker"))


class Seen:
    """Collects payloads; a callback, and a handler of a `TopicHost`."""

    def __init__(self) -> None:
        self.payloads: list[Any] = []
        self.events: list[Event] = []

    def __call__(self, event: Event, _gctx: Any = None) -> None:
        self.events.append(event)
        self.payloads.append(event.payload)


async def _host(backend: Backend, *handlers: TopicHandler, app: str = "shop") -> TopicHost:
    port = await backend.port()
    host = TopicHost(topics=Topics(port, publisher="host"), port=port, app=app, handlers=handlers, gctx="gctx")
    await host.start()
    return host


def _async(seen: Callable[[Event], None]) -> Callable[..., Any]:
    async def function(event: Event, gctx: Any) -> None:
        assert gctx == "gctx"
        seen(event)

    return function


# -- live ---------------------------------------------------------------------------------------


async def test_events_arrive_in_order_with_where_they_come_from(backend: Backend) -> None:
    topics, other = await backend.process("a"), await backend.process("b")

    async with topics.subscribe("orders") as events:
        for number in range(50):
            other.publish("orders", number)
        await other.publish_durable("orders", 50)
        got = [await events.next(timeout_s=5) for _ in range(51)]

    assert [event.payload for event in got] == list(range(51))
    sources = {(event.topic, event.publisher, event.request_id, event.attempt) for event in got}
    assert sources == {("orders", "b", "", 1)}
    assert got == sorted(got, key=lambda event: event.published_ms)


async def test_every_subscription_of_every_process_gets_a_global_event_once(backend: Backend) -> None:
    processes = [await backend.process(f"p{number}") for number in range(3)]
    async with AsyncExitStack() as stack:
        subscriptions = [
            await stack.enter_async_context(process.subscribe("news")) for process in processes for _ in range(2)
        ]

        processes[0].publish("news", "hello")
        processes[0].publish("other", "not this one")
        processes[0].publish("news", "end")

        for subscription in subscriptions:
            assert [(await subscription.next(5)).payload for _ in range(2)] == ["hello", "end"]


async def test_a_subscription_hears_what_follows_its_opening_and_nothing_after_its_end(backend: Backend) -> None:
    topics, port = await backend.process(), await backend.port()
    other = Topics(port, publisher="other")
    other.publish("t", "before")
    await port.flush()
    subscription = topics.subscribe("t")

    async with subscription:
        other.publish("t", "within")
        assert (await subscription.next(5)).payload == "within"
        with pytest.raises(TopicError, match="already open"):
            await subscription
    other.publish("t", "after")
    await port.flush()

    with pytest.raises(TopicError, match="closed"):
        await subscription.next(5)
    async with topics.subscribe("t") as again:
        other.publish("t", "again")
        assert (await again.next(5)).payload == "again"


async def test_iteration_ends_when_the_subscription_is_closed(backend: Backend) -> None:
    topics = await backend.process()
    subscription = await topics.subscribe("t")
    seen = Seen()

    async def read() -> None:
        async for event in subscription:
            seen(event)

    reader = asyncio.create_task(read())
    topics.publish("t", 1)
    await eventually(lambda: seen.payloads == [1], within_s=5)

    await topics.aclose()

    await asyncio.wait_for(reader, 5)
    with pytest.raises(TopicError, match="this process has ended"):
        await topics.subscribe("t")


async def test_an_event_that_does_not_come_is_a_timeout(backend: Backend) -> None:
    topics = await backend.process()
    async with topics.subscribe("t") as events:
        with pytest.raises(EventTimeout, match=r"'t' within 0\.05 s"):
            await events.next(timeout_s=0.05)


async def test_callbacks_are_called_one_after_another_and_may_fail(backend: Backend) -> None:
    topics = await backend.process()
    seen = Seen()
    running = 0

    async def callback(event: Event) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await anyio.lowlevel.checkpoint()
        seen(event)
        running -= 1
        if event.payload == 1:
            raise RuntimeError("a callback's own mistake")
        if event.payload == 2:
            raise asyncio.CancelledError

    with capture_logs() as logs:
        async with topics.subscribe("t", callback), topics.subscribe("t", seen):
            for number in range(5):
                topics.publish("t", number)
            await eventually(lambda: sorted(seen.payloads) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], within_s=5)
    assert [line["event"] for line in logs] == ["topic_callback_failed", "topic_callback_cancelled"]


async def test_a_callback_may_close_its_own_subscription(backend: Backend) -> None:
    topics = await backend.process()
    seen = Seen()

    async def callback(event: Event) -> None:
        seen(event)
        await subscription.aclose()

    subscription = await topics.subscribe("t", callback)
    async with topics.subscribe("t") as witness:
        topics.publish("t", 1)
        topics.publish("t", 2)
        await witness.next(5)
        await witness.next(5)
        await eventually(lambda: seen.payloads == [1], within_s=5)


async def test_a_full_queue_drops_the_newest_counts_them_and_says_so_once(backend: Backend) -> None:
    topics = await backend.process()
    with capture_logs() as logs:
        async with topics.subscribe("t", limit=3) as slow, topics.subscribe("t") as quick:
            for number in range(10):
                topics.publish("t", number)
            for _ in range(10):
                await quick.next(5)

            await eventually(lambda: slow.dropped == 7, within_s=5)
            assert [(await slow.next(5)).payload for _ in range(3)] == [0, 1, 2]
            assert quick.dropped == 0
    assert [line["event"] for line in logs].count("topic_events_dropped") == 1


class Order(msgspec.Struct):
    sku: str
    quantity: int


async def test_payloads_are_read_as_the_wanted_type_and_others_are_skipped(backend: Backend) -> None:
    topics = await backend.process()
    async with topics.subscribe("orders", type=Order) as orders, topics.subscribe("orders") as plain:
        topics.publish("orders", Order("ada", 2))
        topics.publish("orders", "no order")
        topics.publish("orders", {"sku": "bob", "quantity": 1})

        assert [(await orders.next(5)).payload for _ in range(2)] == [Order("ada", 2), Order("bob", 1)]
        assert orders.malformed == 1
        assert (await plain.next(5)).payload == {"sku": "ada", "quantity": 2}


async def test_bytes_that_are_no_event_are_skipped(backend: Backend) -> None:
    port = await backend.port()
    topics = Topics(port, publisher="p")
    async with topics.subscribe("t") as events:
        port.publish(port.subjects.topic("t"), b"{}")
        topics.publish("t", 1)

        assert (await events.next(5)).payload == 1
        assert events.malformed == 1


@pytest.mark.parametrize("payload", [object(), 2**70, {"a": object()}, "\ud800", lambda: None], ids=lambda _: "")
async def test_what_cannot_be_encoded_is_refused(backend: Backend, payload: Any) -> None:
    topics = await backend.process()
    with pytest.raises(TopicError, match="payload of an event on 't'"):
        topics.publish("t", payload)
    with pytest.raises(TopicError):
        await topics.publish_durable("t", payload)


async def test_what_is_larger_than_the_broker_takes_is_refused_with_both_numbers(backend: Backend) -> None:
    port = await backend.port()
    topics = Topics(port, publisher="p")
    most = port.max_payload - HEAD_ROOM_BYTES
    async with topics.subscribe("t") as events:
        for publish in (topics.publish, topics.local("r").publish, topics.local("r").events.emit_event):
            with pytest.raises(MessageTooLarge, match=rf"{most + 1}\d\d? bytes.*exceeds the {most}|exceeds the {most}"):
                publish("t", b"x" * most)
        with pytest.raises(MessageTooLarge):
            await topics.publish_durable("t", b"x" * most)

        topics.publish("t", b"x" * (most - 200))
        assert len((await events.next(5)).payload) == most - 200


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", ">", "_a", "ä", "a" * 65])
async def test_a_name_that_is_no_token_is_refused_with_how_to_name_it(backend: Backend, name: str) -> None:
    topics = await backend.process()
    local = topics.local("r-1")
    for attempt in (
        lambda: topics.publish(name, 1),
        lambda: topics.subscribe(name),
        lambda: local.publish(name, 1),
        lambda: local.subscribe(name),
        lambda: local.events.emit_event(name, 1),
    ):
        with pytest.raises(TopicError, match="name it like 'order-placed'"):
            attempt()
    with pytest.raises(TopicError, match="event type"):
        await local.events.wait_for_event(name)
    with pytest.raises(TopicError):
        await topics.publish_durable(name, 1)


async def test_other_misuse_is_refused(backend: Backend) -> None:
    topics = await backend.process()
    with pytest.raises(TopicError, match="limit"):
        topics.subscribe("t", limit=0)
    with pytest.raises(TopicError, match="cannot be read as"):
        topics.subscribe("t", type=3)
    with pytest.raises(TopicError, match="no request id"):
        topics.publish("t", 1, request_id="a.b")
    with pytest.raises(TopicError, match="message id"):
        await topics.publish_durable("t", 1, message_id="a\r\nb")


async def test_a_handlers_thread_may_publish(backend: Backend) -> None:
    topics = await backend.process()
    async with topics.subscribe("t") as events:
        await anyio.to_thread.run_sync(topics.publish, "t", "from a thread")
        assert (await events.next(5)).payload == "from a thread"

        with pytest.raises(MessageTooLarge):
            await anyio.to_thread.run_sync(topics.publish, "t", b"x" * 2_000_000)


# -- of one request -----------------------------------------------------------------------------


async def test_a_requests_events_reach_its_subscribers_in_any_process_and_nobody_else(backend: Backend) -> None:
    here, there = await backend.process("here"), await backend.process("there")
    mine, yours = new_request_id(), new_request_id()
    async with AsyncExitStack() as stack:
        opened = stack.enter_async_context
        local = await opened(here.local(mine).subscribe("step"))
        remote = await opened(there.subscribe("step", request_id=mine))
        strangers = [
            await opened(here.local(yours).subscribe("step")),
            await opened(there.subscribe("step", request_id=yours)),
            await opened(here.subscribe("step")),
            await opened(there.subscribe("step")),
            await opened(here.local(mine).subscribe("other")),
        ]

        here.local(mine).publish("step", 1)
        there.publish("step", 2, request_id=mine)

        for subscription in (local, remote):
            got = [await subscription.next(5) for _ in range(2)]
            assert sorted((event.payload, event.publisher) for event in got) == [(1, "here"), (2, "there")]
            assert {event.request_id for event in got} == {mine}
        for process in (here, there):  # whatever was on its way before has arrived when this has
            process.publish("step", "mark")
            process.publish("step", "mark", request_id=yours)
            process.publish("other", "mark", request_id=mine)
        for stranger in strangers:
            assert [(await stranger.next(5)).payload for _ in range(2)] == ["mark", "mark"]


async def test_everything_of_a_request_ends_with_it(backend: Backend) -> None:
    topics = await backend.process()
    local = topics.local("r-1")
    subscription = await local.subscribe("a")
    waiting = asyncio.create_task(local.events.wait_for_event("b"))
    await eventually(lambda: len(local._owner.open) == 2, within_s=5)

    await local.aclose()

    with pytest.raises(TopicError):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(TopicError):
        await subscription.next(5)
    with pytest.raises(TopicError, match="request r-1 has ended"):
        await local.subscribe("a")
    assert not local._owner.open


async def test_a_request_has_a_limited_number_of_subscriptions(backend: Backend) -> None:
    local = (await backend.process()).local("r-1")
    await asyncio.gather(*(local.subscribe("a").__aenter__() for _ in range(MAX_REQUEST_SUBSCRIPTIONS)))

    with pytest.raises(TopicError, match="256 open subscriptions"):
        await local.subscribe("a")

    await local.aclose()


async def test_a_request_that_ends_while_it_opens_a_subscription_leaves_nothing_behind(backend: Backend) -> None:
    local = (await backend.process()).local("r-1")
    subscription = local.subscribe("a")
    opening = asyncio.create_task(subscription.__aenter__())
    await anyio.lowlevel.checkpoint()

    await local.aclose()

    await asyncio.wait([opening], timeout=5)
    assert opening.done()
    assert opening.exception() is None or isinstance(opening.exception(), TopicError)
    assert (subscription._listeners, local._owner.open) == ([], set())
    with pytest.raises(TopicError, match="closed"):
        await subscription.next(5)


async def test_the_global_context_publishes_and_subscribes(backend: Backend) -> None:
    instance = Instance("i-1", "shop", "shop-1", "host", 5)
    gctx = GlobalContext(instance, topics=await backend.process())
    async with gctx.subscribe("t", type=int) as events, gctx.subscribe("t", request_id="r-1") as local:
        gctx.publish("t", 1)
        await gctx.publish_durable("t", 2, message_id="m")
        gctx.publish("t", "of a request", request_id="r-1")

        assert [(await events.next(5)).payload for _ in range(2)] == [1, 2]
        assert (await local.next(5)).payload == "of a request"


async def test_a_global_context_without_topics_says_so() -> None:
    gctx = GlobalContext(Instance("i-1", "shop", "shop-1", "host", 5))
    with pytest.raises(NotConfigured, match="topics"):
        gctx.publish("t", 1)
    with pytest.raises(NotConfigured):
        gctx.subscribe("t")


async def test_waiters_of_a_request_get_its_event_from_any_process(backend: Backend) -> None:
    here, there = await backend.process("here"), await backend.process("there")
    local = here.local("r-1")
    waiting = [asyncio.create_task(local.events.wait_for_event("paid", timeout_s=10)) for _ in range(2)]
    foreign = asyncio.create_task(here.local("r-2").events.wait_for_event("paid", timeout_s=10))
    namesake = await local.subscribe("paid")
    await _heard(backend, there, waiting)

    got = [await each for each in waiting]

    assert {(event.type, event.request_id, event.data) for event in got} == {("paid", "r-1", 7)}
    assert all(event.timestamp > 0 for event in got)
    assert not foreign.done()
    there.local("r-9").events.emit_event("paid", 8, request_id="r-2")
    await _heard(backend, there, [foreign], request_id="r-2", data=8)
    assert (await foreign).data == 8
    there.publish("paid", "topic", request_id="r-1")
    assert (await namesake.next(5)).payload == "topic"
    assert local._owner.open == {namesake}
    await local.aclose()


async def _heard(
    backend: Backend, topics: Topics, waiting: list[asyncio.Task[Any]], *, request_id: str = "r-1", data: Any = 7
) -> None:
    """Emit until all have heard: there is no telling from outside when a wait has begun."""

    def all_heard() -> bool:
        topics.local(request_id).events.emit_event("paid", data)
        return all(each.done() for each in waiting)

    await eventually(all_heard, within_s=5)


async def test_a_wait_in_vain_times_out_and_leaves_nothing_behind(backend: Backend) -> None:
    local = (await backend.process()).local("r-1")

    with pytest.raises(EventTimeout, match=r"request r-1 waited 0\.05 s for event 'paid'"):
        await local.events.wait_for_event("paid", timeout_s=0.05)
    with anyio.move_on_after(0.05):
        await local.events.wait_for_event("paid")

    assert not local._owner.open


# -- durable ------------------------------------------------------------------------------------


async def test_a_group_shares_the_events_and_every_group_gets_all(backend: Backend) -> None:
    """Between two processes of a group, each event runs once; another group of the same app runs it, too."""
    shares, whole = [Seen(), Seen()], Seen()
    billing = [
        await _host(backend, TopicHandler(topic="orders", function=_async(share), durable="billing"))
        for share in shares
    ]
    shipping = await _host(backend, TopicHandler(topic="orders", function=whole, durable="shipping"))
    topics = await backend.process()

    topics.publish("orders", "a live event is for live subscribers")
    for number in range(20):
        await topics.publish_durable("orders", number)

    await eventually(lambda: sorted(shares[0].payloads + shares[1].payloads) == list(range(20)), within_s=10)
    await eventually(lambda: whole.payloads == list(range(20)), within_s=10)
    for host in (*billing, shipping):
        await host.aclose()


async def test_what_is_published_while_a_group_is_away_waits_for_it(backend: Backend) -> None:
    seen = Seen()
    handler = TopicHandler(topic="orders", function=_async(seen), durable="billing", type=Order)
    topics = await backend.process()
    await topics.publish_durable("orders", Order("before the group", 0))
    host = await _host(backend, handler)
    await topics.publish_durable("orders", Order("ada", 1))
    await eventually(lambda: seen.payloads == [Order("ada", 1)], within_s=5)
    await host.aclose()

    await topics.publish_durable("orders", Order("bob", 2))
    host = await _host(backend, handler)

    await eventually(lambda: seen.payloads == [Order("ada", 1), Order("bob", 2)], within_s=5)
    await host.aclose()


async def test_a_message_id_is_delivered_to_a_group_once(backend: Backend) -> None:
    seen = Seen()
    host = await _host(backend, TopicHandler(topic="orders", function=_async(seen), durable="billing"))
    topics = await backend.process()

    for message_id in ("1", "1", "2", "1", ""):
        await topics.publish_durable("orders", message_id, message_id=message_id)

    await eventually(lambda: seen.payloads == ["1", "2", ""], within_s=5)
    await host.aclose()


async def test_a_failing_event_is_tried_again_and_then_set_aside(backend: Backend) -> None:
    attempts: list[tuple[Any, int]] = []

    async def on_order(event: Event, _gctx: Any) -> None:
        attempts.append((event.payload, event.attempt))
        if event.payload == "never" or (event.payload == "later" and event.attempt == 1):
            raise RuntimeError("not now")
        if event.payload == "wrong":
            raise PermanentError("never ever")

    handler = TopicHandler(topic="orders", function=on_order, durable="billing", concurrency=4)
    host = await _host(backend, handler)
    topics = await backend.process()

    for payload in ("never", "later", "wrong"):
        await topics.publish_durable("orders", payload)

    async def all_dead() -> bool:
        return sorted(await backend.dead()) == sorted(dead)

    cause = "not now" if isinstance(backend, Memory) else "RuntimeError: not now"
    dead = [(cause, MAX_ATTEMPTS), ("never ever", 1)]
    await eventually(all_dead, within_s=10)
    await eventually(lambda: ("later", 2) in attempts, within_s=5)
    assert sorted(attempts) == [("later", 1), ("later", 2), ("never", 1), ("never", 2), ("never", 3), ("wrong", 1)]
    await host.aclose()


async def test_an_event_that_does_not_fit_the_groups_type_is_set_aside_at_once(backend: Backend) -> None:
    seen = Seen()
    host = await _host(backend, TopicHandler(topic="orders", function=_async(seen), durable="billing", type=Order))
    topics = await backend.process()
    await topics.publish_durable("orders", "no order")
    await topics.publish_durable("orders", Order("ada", 1))

    await eventually(lambda: seen.payloads == [Order("ada", 1)], within_s=5)

    ((cause, attempts),) = await backend.dead()
    assert "payload of an event on 'orders' cannot be read" in cause
    assert attempts == 1
    await host.aclose()


async def test_a_function_that_takes_too_long_has_failed(backend: Backend) -> None:
    seen = Seen()

    async def hang_once(event: Event, _gctx: Any) -> None:
        if event.attempt == 1:
            await asyncio.Event().wait()
        seen(event)

    host = await _host(backend, TopicHandler(topic="orders", function=hang_once, durable="billing", timeout_s=0.05))
    await (await backend.process()).publish_durable("orders", 1)

    await eventually(lambda: [event.attempt for event in seen.events] == [2], within_s=5)
    await host.aclose()


async def test_a_full_stream_refuses_and_the_publisher_hears_of_it(backend: Backend) -> None:
    topics = await backend.process()
    for number in range(20):
        await topics.publish_durable("t", number)

    with pytest.raises(Backpressure):
        await topics.publish_durable("t", 20)

    async with topics.subscribe("t") as events:
        topics.publish("t", "live events go on")
        assert (await events.next(5)).payload == "live events go on"


async def test_declared_live_subscribers_get_both_kinds_of_events(backend: Backend) -> None:
    one, two = Seen(), Seen()
    hosts = [
        await _host(backend, TopicHandler(topic="t", function=one)),
        await _host(backend, TopicHandler(topic="t", function=_async(two), concurrency=3)),
    ]
    topics = await backend.process()

    topics.publish("t", 1)
    await topics.publish_durable("t", 2)

    await eventually(lambda: one.payloads == [1, 2] and sorted(two.payloads) == [1, 2], within_s=5)
    for host in hosts:
        await host.aclose()


async def test_leaving_waits_for_what_runs(backend: Backend) -> None:
    begun, may_end, seen = asyncio.Event(), asyncio.Event(), Seen()

    async def slow(event: Event, _gctx: Any) -> None:
        begun.set()
        await may_end.wait()
        seen(event)

    host = await _host(
        backend,
        TopicHandler(topic="orders", function=slow, durable="billing"),
        TopicHandler(topic="orders", function=slow),
    )
    await (await backend.process()).publish_durable("orders", 1)
    await begun.wait()

    closing = asyncio.create_task(host.aclose())
    asyncio.get_running_loop().call_later(0.05, may_end.set)
    await asyncio.wait_for(closing, 5)

    assert seen.payloads == [1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topic": "a.b"}, "order-placed"),
        ({"durable": "a b"}, "durable group"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"type": 3}, "cannot be read as"),
        ({"function": lambda event: None}, r"must take \(event, gctx\)"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RegistrationError, match=message):
        TopicHandler(**{"topic": "t", "function": Seen(), **changes})


# -- without a broker ---------------------------------------------------------------------------


async def test_while_the_broker_is_away_publishing_and_subscribing_are_refused_at_once(own_backend: Backend) -> None:
    topics = await own_backend.process()
    local = topics.local("r-1")
    await own_backend.go_away()

    with pytest.raises(BrokerUnavailable):
        topics.publish("t", 1)
    with pytest.raises(BrokerUnavailable):
        await topics.publish_durable("t", 1)
    with pytest.raises(BrokerUnavailable):
        await topics.subscribe("t")
    with pytest.raises(BrokerUnavailable):
        await local.events.wait_for_event("e")
    assert not local._owner.open
    await own_backend.come_back()


async def test_subscriptions_live_through_a_crash_of_the_broker(own_backend: Backend) -> None:
    seen = Seen()
    topics, other = await own_backend.process(), await own_backend.process()
    host = await _host(own_backend, TopicHandler(topic="orders", function=_async(seen), durable="billing"))
    async with topics.subscribe("t") as events, topics.subscribe("t", request_id="r-1") as local:
        await own_backend.go_away()
        await own_backend.come_back()

        other.publish("t", 1)
        other.publish("t", 2, request_id="r-1")
        await other.publish_durable("orders", 3)

        assert (await events.next(5)).payload == 1
        assert (await local.next(5)).payload == 2
        await eventually(lambda: seen.payloads == [3], within_s=10)
    await host.aclose()


# -- what only the broker has -------------------------------------------------------------------


async def test_what_its_members_died_of_is_set_aside_by_the_next_without_running(gati_open_fabric: Fabric) -> None:
    """The server has no limit of its own here; deliveries that ended with their process count as attempts."""
    seen = Seen()
    port = FabricTopics(gati_open_fabric)
    topics = Topics(port, publisher="p")
    durable = await gati_open_fabric.topology.ensure_topic_group("shop", "billing", "orders")
    await topics.publish_durable("orders", "poison")
    stream = gati_open_fabric.subjects.topic_stream
    dying = Collector(gati_open_fabric, stream=stream, durable=durable, capacity=1, batch=1)
    await dying.consumer.start()
    for _ in range(MAX_ATTEMPTS):
        (await dying.next()).nak()
    await dying.consumer.stop_pulling()
    for delivery in dying.seen[MAX_ATTEMPTS:]:
        delivery.nak()

    host = TopicHost(
        topics=topics,
        port=port,
        app="shop",
        handlers=[TopicHandler(topic="orders", function=_async(seen), durable="billing")],
        gctx="gctx",
    )
    await host.start()
    await topics.publish_durable("orders", "sound")

    await eventually(lambda: seen.payloads == ["sound"], within_s=5)
    (letter,) = await gati_open_fabric.dead_letters.newest()
    assert (letter.stage, letter.pool) == ("topic", "shop~billing")
    assert letter.attempts > MAX_ATTEMPTS
    assert letter.subject == gati_open_fabric.subjects.topic_durable("orders")
    await host.aclose()


async def test_an_event_that_is_requeued_reaches_the_group_that_gave_it_up_and_nobody_else(
    gati_open_fabric: Fabric,
) -> None:
    port = FabricTopics(gati_open_fabric)
    topics = Topics(port, publisher="p")
    billed: list[tuple[Any, int]] = []
    shipped, live = Seen(), Seen()
    is_repaired = False

    async def bill(event: Event, _gctx: Any) -> None:
        if not is_repaired:
            raise PermanentError("no such account")
        billed.append((event.payload, event.attempt))

    handlers = [
        TopicHandler(topic="orders", function=bill, durable="billing"),
        TopicHandler(topic="orders", function=_async(shipped), durable="shipping"),
        TopicHandler(topic="orders", function=_async(live)),
    ]
    host = TopicHost(topics=topics, port=port, app="shop", handlers=handlers, gctx="gctx")
    await host.start()
    await topics.publish_durable("orders", "first", message_id="1")
    await eventually(lambda: gati_open_fabric.dead_letters.buried == 1, within_s=5)
    (letter,) = await gati_open_fabric.dead_letters.newest()
    is_repaired = True

    group = await gati_open_fabric.dead_letters.requeue_event(letter.sequence)
    await topics.publish_durable("orders", "second")

    assert group == "shop~billing"
    await eventually(lambda: sorted(billed) == [("first", 1), ("second", 1)], within_s=5)
    await eventually(lambda: shipped.payloads == live.payloads == ["first", "second"], within_s=5)
    assert await gati_open_fabric.dead_letters.newest() == []
    await host.aclose()


async def test_an_event_whose_group_is_gone_stays_a_dead_letter(gati_open_fabric: Fabric) -> None:
    letters, names = gati_open_fabric.dead_letters, gati_open_fabric.subjects

    async def bury(pool: str, subject: str) -> int:
        error = PermanentError("never")
        return await letters.bury(stage="topic", pool=pool, subject=subject, data=b"", error=error, attempts=1)

    gone = await bury("shop~billing", names.topic_durable("orders"))
    elsewhere = await bury("shop~billing", "other.topic.orders.durable")
    nobody = await bury("-", names.topic_durable("orders"))

    with pytest.raises(TopologyError, match="start a worker of that app"):
        await letters.requeue_event(gone)
    for number in (elsewhere, nobody):
        with pytest.raises(MalformedMessage, match="no event of a durable group"):
            await letters.requeue_event(number)
    assert len(await letters.newest()) == 3


async def test_a_long_event_is_not_delivered_again_while_it_runs(
    gati_open_fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease is renewed; without that, the group's other member would get it after the ack wait."""
    monkeypatch.setattr("gati_core.fabric.topology.TOPIC_ACK_WAIT_S", 0.4)
    monkeypatch.setattr("gati_core.fabric.topics._RENEW_EVERY_S", 0.1)
    assert TOPIC_ACK_WAIT_S > 0.4
    begun: list[int] = []
    may_end = asyncio.Event()

    async def slow(event: Event, _gctx: Any) -> None:
        begun.append(event.attempt)
        await may_end.wait()

    port = FabricTopics(gati_open_fabric)
    topics = Topics(port, publisher="p")
    handler = TopicHandler(topic="orders", function=slow, durable="billing")
    hosts = [TopicHost(topics=topics, port=port, app="shop", handlers=[handler], gctx=None) for _ in range(2)]
    for host in hosts:
        await host.start()
    await topics.publish_durable("orders", 1)

    with anyio.move_on_after(1.5):  # that it never comes again can only be waited out
        await eventually(lambda: len(begun) > 1, within_s=2)

    assert begun == [1]
    may_end.set()
    for host in hosts:
        await host.aclose()


async def test_bind_mode_refuses_a_group_that_nobody_made(gati_open_fabric: Fabric) -> None:
    async with open_fabric(structs.replace(gati_open_fabric.settings, topology="bind"), name="test") as bound:
        with pytest.raises(PermanentError, match=r"topic-shop~billing~orders.*does not exist"):
            await bound.topology.ensure_topic_group("shop", "billing", "orders")


async def test_topics_and_traces_refuse_instead_of_forgetting(gati_open_fabric: Fabric) -> None:
    """F6, F15: as the other streams."""
    js = gati_open_fabric.connection.jetstream()
    names = gati_open_fabric.subjects
    for stream, subjects in (
        (names.topic_stream, [names.topic_durable_all, names.topic_group_all]),
        (names.trace_stream, [names.trace_all]),
    ):
        config = (await js.stream_info(stream)).config
        assert str(config.discard).endswith("new")
        assert (config.subjects, config.max_msgs, config.max_bytes) == (subjects, 100_000, -1)
