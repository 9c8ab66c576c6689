"""What the fabric promises of any broker: run on the embedded one and on one in a container."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gati_core.errors import Backpressure, KeyConflict, PoisonMessage, TopologyError
from gati_core.fabric import Fabric, KvBucket, KvView, Topology, stream_state
from gati_core.ids import new_request_id
from gati_core.wire import PROTOCOL, RequestDescriptor, encode
from tests.helpers.collecting import collecting
from tests.helpers.waiting import eventually

Contract = Callable[[Fabric], Awaitable[None]]


async def what_is_published_is_delivered_until_it_is_acked(fabric: Fabric) -> None:
    """In order, at least once, with the attempt counted; gone after the ack."""
    subject = fabric.subjects.work("p", "h")
    async with collecting(fabric) as got:
        for body in (b"a", b"b"):
            await fabric.publisher.send(subject, body)

        first, second = await got.next(), await got.next()
        assert [first.data, second.data] == [b"a", b"b"]
        second.ack()
        first.nak(delay_s=0.05)
        again = await got.next()
        assert (again.data, again.attempt) == (b"a", 2)
        again.ack()

        await eventually(lambda: _is_empty(fabric, fabric.subjects.work_stream), within_s=3)


async def what_may_run_once_is_delivered_once(fabric: Fabric) -> None:
    """The server keeps to one delivery by itself, even after a nak."""
    async with collecting(fabric, mode="at_most_once") as got:
        await fabric.publisher.send(fabric.subjects.work("p", "h"), b"x")
        (await got.next()).nak()

        await got.expect_none(for_s=0.5)


async def a_message_id_is_stored_once(fabric: Fabric) -> None:
    """A second publish under the same id is confirmed and dropped."""
    subject = fabric.subjects.work("p", "h")

    sequences = [await fabric.publisher.send(subject, b"x", message_id="one") for _ in range(3)]

    assert len(set(sequences)) == 1
    assert (await stream_state(fabric.connection, fabric.subjects.work_stream)).messages == 1


async def a_full_stream_refuses_and_keeps_what_it_has(fabric: Fabric) -> None:
    """Discard is `new`: the publisher hears of it, and nothing accepted is thrown away."""
    subject = fabric.subjects.work("p", "h")
    limit = fabric.settings.work_max_msgs_per_handler
    await asyncio.gather(*(fabric.publisher.send(subject, b"%d" % number) for number in range(limit)))

    with pytest.raises(Backpressure):
        await fabric.publisher.send(subject, b"one more")

    await fabric.publisher.send(fabric.subjects.work("p", "other"), b"its neighbour has room")
    assert (await stream_state(fabric.connection, fabric.subjects.work_stream)).messages == limit + 1


async def keys_are_compared_and_set(fabric: Fabric) -> None:
    """Create only what is not there, update only what was read, delete what is left."""
    bucket = KvBucket(fabric.connection, fabric.subjects.manifests_bucket)

    revision = await bucket.create("a", b"1")
    with pytest.raises(KeyConflict):
        await bucket.create("a", b"other")
    newer = await bucket.update("a", b"2", revision=revision)
    with pytest.raises(KeyConflict):
        await bucket.update("a", b"3", revision=revision)

    entry = await bucket.get("a")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"2", newer)
    await bucket.delete("a")
    assert await bucket.get("a") is None


async def a_view_follows_its_bucket_and_sees_keys_expire(fabric: Fabric) -> None:
    """What the catalogue of live workers stands on."""
    bucket = KvBucket(fabric.connection, fabric.subjects.pools_bucket)
    await bucket.put("early", b"1")
    changes: list[tuple[str, bytes | None]] = []
    view = KvView(fabric.connection, bucket.bucket, on_change=lambda key, value: changes.append((key, value)))
    await view.start()
    try:
        await bucket.put("short", b"2", ttl_s=1)
        await eventually(lambda: ("short", None) in changes, within_s=5)
        assert changes == [("early", b"1"), ("short", b"2"), ("short", None)]
        assert [entry.key for entry in view.entries()] == ["early"]
    finally:
        await view.aclose()


async def preparing_twice_changes_nothing_and_old_messages_are_never_discarded(fabric: Fabric) -> None:
    """The provisioner finds what it made, and refuses a stream that would lose requests."""
    await Topology(fabric.connection).ensure()
    await fabric.topology.ensure_pool("p", {"h": "at_least_once", "o": "at_most_once"})
    await fabric.topology.ensure_pool("p", {"h": "at_least_once", "o": "at_most_once"})

    js = fabric.connection.jetstream()
    config = (await js.stream_info(fabric.subjects.req_stream)).config
    assert str(config.discard).endswith("new")
    config.discard = type(config.discard)("old")  # type: ignore[misc]
    await js.update_stream(config)
    with pytest.raises(TopologyError, match="discard"):
        await Topology(fabric.connection).ensure()


async def a_dead_letter_keeps_its_cause_and_runs_again(fabric: Fabric) -> None:
    """Buried with why, whence and how often; requeued as a request of its own."""
    request = RequestDescriptor(PROTOCOL, new_request_id(), "nobody.listens", 1, 1, "GET", "/text")
    error = PoisonMessage("delivered 3 times, “never” finished")
    sequence = await fabric.dead_letters.bury(
        stage="req", pool="-", subject="where.it.was", data=encode(request), error=error, attempts=3, request_id="r"
    )

    (letter,) = await fabric.dead_letters.newest()
    assert (letter.sequence, letter.code, letter.cause) == (sequence, error.code, str(error))
    assert (letter.subject, letter.attempts, letter.request_id) == ("where.it.was", 3, "r")

    again = await fabric.dead_letters.requeue(sequence)
    assert again != request.request_id
    assert await fabric.dead_letters.newest() == []
    assert (await stream_state(fabric.connection, fabric.subjects.req_stream)).messages == 1


async def a_body_of_twice_the_largest_message_waits_for_its_ticket(fabric: Fabric) -> None:
    """The claim check: put, read and kept, read and gone."""
    body = bytes(range(256)) * (2 * fabric.connection.max_payload // 256)

    ticket = await fabric.bodies.put("ticket", body)

    assert await fabric.bodies.take(ticket, keep=True) == body
    assert await fabric.bodies.take(ticket) == body


async def _is_empty(fabric: Fabric, stream: str) -> bool:
    return (await stream_state(fabric.connection, stream)).messages == 0


CONTRACTS: list[Contract] = [
    what_is_published_is_delivered_until_it_is_acked,
    what_may_run_once_is_delivered_once,
    a_message_id_is_stored_once,
    a_full_stream_refuses_and_keeps_what_it_has,
    keys_are_compared_and_set,
    a_view_follows_its_bucket_and_sees_keys_expire,
    preparing_twice_changes_nothing_and_old_messages_are_never_discarded,
    a_dead_letter_keeps_its_cause_and_runs_again,
    a_body_of_twice_the_largest_message_waits_for_its_ticket,
]
"""Each runs on a fabric of its own: a namespace that nobody else has, and streams of twenty messages."""
