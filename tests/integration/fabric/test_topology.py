"""The provisioner: everything is there afterwards, and what would lose messages is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import structs
from nats.js.api import ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig

from gati_core.errors import BrokerUnavailable, TopologyError
from gati_core.fabric import Fabric, open_fabric, stream_state
from gati_core.fabric.topology import MAX_ATTEMPTS
from gati_core.settings import FabricSettings
from tests.helpers.collecting import collecting
from tests.helpers.waiting import eventually


async def _consumers(fabric: Fabric) -> dict[str, ConsumerConfig]:
    js = fabric.connection.jetstream()
    names = fabric.subjects
    found = {}
    for stream in (names.req_stream, names.work_stream, names.advisory_stream):
        for info in await js.consumers_info(stream):
            found[f"{stream}/{info.name}"] = info.config
    return found


def _filters(config: ConsumerConfig) -> set[str]:
    return set(config.filter_subjects or ([config.filter_subject] if config.filter_subject else []))


async def test_streams_refuse_instead_of_forgetting_and_have_one_kind_of_limit(gati_open_fabric: Fabric) -> None:
    """F6, F15."""
    js = gati_open_fabric.connection.jetstream()
    names = gati_open_fabric.subjects
    for stream in (names.req_stream, names.work_stream, names.dead_stream, names.advisory_stream):
        config = (await js.stream_info(stream)).config
        limits = [config.max_msgs, config.max_bytes, config.max_msgs_per_subject]
        assert config.discard == DiscardPolicy.NEW
        assert sum(limit is not None and limit > 0 for limit in limits) == 1, (stream, limits)


async def test_no_consumer_has_a_backoff_and_all_leave_room_above_our_own_attempts(gati_open_fabric: Fabric) -> None:
    """F4, F19: the last attempt must reach our code, which buries the message. At most once means once."""
    await gati_open_fabric.topology.ensure_pool("p", {"often": "at_least_once", "once": "at_most_once"})

    consumers = await _consumers(gati_open_fabric)

    assert len(consumers) == 6
    for name, config in consumers.items():
        assert not config.backoff, name
        if name.endswith("-once"):
            assert config.max_deliver == 1
        else:
            assert config.max_deliver == -1 or (config.max_deliver or 0) > MAX_ATTEMPTS, name


async def test_consumers_of_one_queue_never_overlap(gati_open_fabric: Fabric) -> None:
    """F2: the server refuses a second consumer on a subject; we make one per disjoint slice."""
    await gati_open_fabric.topology.ensure_pool("p", {"often": "at_least_once", "once": "at_most_once"})
    await gati_open_fabric.topology.ensure_pool("p2", {"often": "at_least_once"})

    seen: set[str] = set()
    for name, config in (await _consumers(gati_open_fabric)).items():
        if not name.startswith(gati_open_fabric.subjects.advisory_stream):
            assert not seen & _filters(config)
            seen |= _filters(config)
    assert len(seen) == 11 + 3


async def test_the_server_would_refuse_an_overlapping_consumer(gati_open_fabric: Fabric) -> None:
    """F2: this is what the provisioner keeps from happening, as our own error."""
    js = gati_open_fabric.connection.jetstream()
    names = gati_open_fabric.subjects
    await js.add_consumer(names.work_stream, ConsumerConfig(durable_name="intruder", filter_subject=names.work_all))

    with pytest.raises(TopologyError, match="10100"):
        await gati_open_fabric.topology.ensure_pool("p", {"h": "at_least_once"})


async def test_ensuring_again_changes_nothing(gati_open_fabric: Fabric) -> None:
    await gati_open_fabric.topology.ensure_pool("p", {"h": "at_least_once"})
    before = await _consumers(gati_open_fabric)

    await gati_open_fabric.topology.ensure()
    await gati_open_fabric.topology.ensure_pool("p", {"h": "at_least_once"})

    assert await _consumers(gati_open_fabric) == before


async def test_many_processes_may_prepare_the_same_namespace_at_once(gati_fabric_settings: FabricSettings) -> None:
    async def start(number: int) -> None:
        async with open_fabric(gati_fabric_settings, name=f"process {number}") as fabric:
            await fabric.topology.ensure_pool("p", {"a": "at_least_once", "b": "at_most_once"})

    await asyncio.gather(*(start(number) for number in range(6)))


async def test_changed_limits_are_applied_and_stored_messages_stay(gati_open_fabric: Fabric) -> None:
    await gati_open_fabric.publisher.send(gati_open_fabric.subjects.req(5), b"x")

    async with open_fabric(structs.replace(gati_open_fabric.settings, req_max_msgs=7), name="test") as again:
        config = (await again.connection.jetstream().stream_info(again.subjects.req_stream)).config
        assert config.max_msgs == 7
        assert (await stream_state(again.connection, again.subjects.req_stream)).messages == 1


@pytest.mark.parametrize("mode", ["apply", "bind"])
async def test_a_stream_that_discards_old_messages_is_refused(gati_open_fabric: Fabric, mode: Any) -> None:
    """F6: acknowledged requests would vanish from it."""
    js = gati_open_fabric.connection.jetstream()
    name = gati_open_fabric.subjects.req_stream
    config = (await js.stream_info(name)).config
    await js.delete_stream(name)
    config.discard = DiscardPolicy.OLD
    await js.add_stream(config)

    with pytest.raises(TopologyError, match=rf"{name} has discard=old.*discard=new"):
        async with open_fabric(structs.replace(gati_open_fabric.settings, topology=mode), name="test"):
            pass


async def test_a_stream_of_another_kind_is_refused(gati_open_fabric: Fabric) -> None:
    js = gati_open_fabric.connection.jetstream()
    names = gati_open_fabric.subjects
    await js.delete_stream(names.work_stream)
    await js.add_stream(
        StreamConfig(
            name=names.work_stream,
            subjects=[names.work_all],
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
        )
    )

    with pytest.raises(TopologyError, match="retention=limits"):
        await gati_open_fabric.topology.ensure()


async def test_a_consumer_with_a_backoff_is_refused(gati_open_fabric: Fabric) -> None:
    """F4: it would shorten the lease without a word."""
    js = gati_open_fabric.connection.jetstream()
    names = gati_open_fabric.subjects
    await js.add_consumer(
        names.work_stream,
        ConsumerConfig(durable_name="pool-p", filter_subject=names.work("p", "h"), backoff=[2, 5], max_deliver=6),
    )

    with pytest.raises(TopologyError, match="backoff"):
        await gati_open_fabric.topology.ensure_pool("p", {"h": "at_least_once"})


async def test_bind_creates_nothing_and_says_what_is_missing(gati_fabric_settings: FabricSettings) -> None:
    settings = structs.replace(gati_fabric_settings, topology="bind")

    with pytest.raises(TopologyError, match=r"_REQ does not exist.*GATI_FABRIC_TOPOLOGY=apply"):
        async with open_fabric(settings, name="test"):
            pass
    async with open_fabric(settings, name="test", ensure=False) as fabric:
        with pytest.raises(TopologyError, match="does not exist"):
            await stream_state(fabric.connection, fabric.subjects.req_stream)


async def test_bind_accepts_what_another_process_applied(gati_open_fabric: Fabric) -> None:
    await gati_open_fabric.topology.ensure_pool("p", {"h": "at_least_once"})

    async with open_fabric(structs.replace(gati_open_fabric.settings, topology="bind"), name="test") as bound:
        assert await bound.topology.ensure_pool("p", {"h": "at_least_once"}) == {"at_least_once": "pool-p"}
        with pytest.raises(TopologyError, match="does not exist"):
            await bound.topology.ensure_pool("other", {"h": "at_least_once"})
        with pytest.raises(TopologyError, match="does not exist"):
            await bound.topology.ensure_bucket("no-such-bucket")


async def test_bind_refuses_an_at_most_once_consumer_that_would_deliver_twice(gati_open_fabric: Fabric) -> None:
    js = gati_open_fabric.connection.jetstream()
    names = gati_open_fabric.subjects
    await js.add_consumer(
        names.work_stream,
        ConsumerConfig(durable_name="pool-p-once", filter_subject=names.work("p", "h"), max_deliver=6),
    )

    async with open_fabric(structs.replace(gati_open_fabric.settings, topology="bind"), name="test") as bound:
        with pytest.raises(TopologyError, match="max_deliver"):
            await bound.topology.ensure_pool("p", {"h": "at_most_once"})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"h": "at_least_once"}, {"h": "at_most_once"}),
        ({"h": "at_most_once"}, {"h": "at_least_once"}),
        ({"h": "at_least_once", "i": "at_most_once"}, {"h": "at_most_once", "i": "at_least_once"}),
        ({"h": "at_least_once", "i": "at_least_once"}, {"h": "at_most_once", "i": "at_least_once"}),
        ({"h": "at_most_once", "i": "at_most_once"}, {"h": "at_least_once", "i": "at_most_once"}),
    ],
)
async def test_a_handler_may_change_its_delivery_mode(
    gati_open_fabric: Fabric, before: dict[str, str], after: dict[str, str]
) -> None:
    """F2: the consumer of the old mode makes way first, as the two must never overlap."""
    await gati_open_fabric.topology.ensure_pool("p", before)

    await gati_open_fabric.topology.ensure_pool("p", after)

    mode = after["h"]
    consumers = await _consumers(gati_open_fabric)
    durable = "pool-p" + ("-once" if mode == "at_most_once" else "")
    assert gati_open_fabric.subjects.work("p", "h") in _filters(
        consumers[f"{gati_open_fabric.subjects.work_stream}/{durable}"]
    )
    if len(after) == 1:
        async with collecting(gati_open_fabric, mode=mode) as got:
            await gati_open_fabric.publisher.send(gati_open_fabric.subjects.work("p", "h"), b"x")
            assert (await got.next()).data == b"x"


async def test_a_pool_may_gain_and_lose_handlers(gati_open_fabric: Fabric) -> None:
    await gati_open_fabric.topology.ensure_pool("p", {"a": "at_least_once"})
    await gati_open_fabric.topology.ensure_pool("p", {"a": "at_least_once", "b": "at_least_once"})
    await gati_open_fabric.topology.ensure_pool("p", {"b": "at_least_once"})

    config = (await _consumers(gati_open_fabric))[f"{gati_open_fabric.subjects.work_stream}/pool-p"]
    assert _filters(config) == {gati_open_fabric.subjects.work("p", "b")}


async def test_namespaces_do_not_see_each_others_messages(gati_open_fabric: Fabric) -> None:
    other_settings = structs.replace(gati_open_fabric.settings, namespace=f"{gati_open_fabric.settings.namespace}x")
    async with open_fabric(other_settings, name="test") as other:
        await other.publisher.send(other.subjects.req(5), b"x")

        assert (await stream_state(gati_open_fabric.connection, gati_open_fabric.subjects.req_stream)).messages == 0


async def test_a_message_that_exhausted_its_deliveries_stays_and_the_advisory_is_kept(gati_open_fabric: Fabric) -> None:
    """F3: the server only mentions it on a core subject; our stream remembers that for the mover."""
    js = gati_open_fabric.connection.jetstream()
    names = gati_open_fabric.subjects
    async with collecting(gati_open_fabric) as got:
        await gati_open_fabric.publisher.send(names.work("p", "h"), b"x")
        limit = (await _consumers(gati_open_fabric))[f"{names.work_stream}/pool-p"].max_deliver or 0
        for attempt in range(1, limit + 1):
            delivery = await got.next()
            assert delivery.attempt == attempt
            delivery.nak()

        async def advisory_kept() -> bool:
            return (await stream_state(gati_open_fabric.connection, names.advisory_stream)).messages == 1

        await eventually(advisory_kept, within_s=3)
        advisory = await js.get_msg(names.advisory_stream, seq=1)
        assert b'"stream_seq":1' in (advisory.data or b"")
        assert (await stream_state(gati_open_fabric.connection, names.work_stream)).messages == 1
        assert len(got.seen) == limit


async def test_without_jetstream_the_start_fails_with_what_to_do(gati_open_fabric: Fabric) -> None:
    with pytest.raises(TopologyError, match="no-such-stream"):
        await stream_state(gati_open_fabric.connection, "no-such-stream")
    await gati_open_fabric.connection._client.close()
    with pytest.raises((BrokerUnavailable, TopologyError)):
        await gati_open_fabric.topology.ensure()
