"""Claim checks: a body of any size comes back as it was, or its loss is named."""

from __future__ import annotations

import random

import anyio
import pytest

from gati_core.errors import BrokerUnavailable
from gati_core.fabric import BodyLost, EmbeddedBroker, Fabric
from gati_core.ids import new_request_id
from tests.helpers import brokers
from tests.helpers.waiting import eventually


@pytest.mark.parametrize("size", [0, 1, 131_071, 131_072, 131_073, 262_145, 1_048_577, 3_000_000])
async def test_a_body_of_any_size_comes_back_as_it_was(gati_open_fabric: Fabric, size: int) -> None:
    body = random.Random(size).randbytes(size)

    ticket = await gati_open_fabric.bodies.put(new_request_id(), body)

    assert await gati_open_fabric.bodies.take(ticket) == body


async def test_a_body_is_taken_once(gati_open_fabric: Fabric) -> None:
    ticket = await gati_open_fabric.bodies.put("t-1", b"x")
    await gati_open_fabric.bodies.take(ticket)

    with pytest.raises(BodyLost, match="t-1"):
        await gati_open_fabric.bodies.take(ticket)


async def test_a_body_that_is_kept_can_be_taken_again_by_a_redelivery(gati_open_fabric: Fabric) -> None:
    ticket = await gati_open_fabric.bodies.put("t-1", b"x")

    assert await gati_open_fabric.bodies.take(ticket, keep=True) == b"x"
    assert await gati_open_fabric.bodies.take(ticket) == b"x"


async def test_a_ticket_that_never_was_is_a_lost_body(gati_open_fabric: Fabric) -> None:
    with pytest.raises(BodyLost, match="never-was"):
        await gati_open_fabric.bodies.take("never-was")


async def test_a_dropped_body_is_lost_and_dropping_again_is_no_error(gati_open_fabric: Fabric) -> None:
    ticket = await gati_open_fabric.bodies.put("t-1", b"x")
    await gati_open_fabric.bodies.drop(ticket)
    await gati_open_fabric.bodies.drop(ticket)

    with pytest.raises(BodyLost):
        await gati_open_fabric.bodies.take(ticket)


async def test_a_body_whose_chunks_are_gone_is_lost_and_nobody_waits_for_them(gati_open_fabric: Fabric) -> None:
    """The entry outlives its chunks for a moment when their time to live ends."""
    ticket = await gati_open_fabric.bodies.put("t-1", b"x" * 300_000)
    bucket = gati_open_fabric.subjects.bodies_bucket
    await gati_open_fabric.connection.jetstream().purge_stream(f"OBJ_{bucket}", subject=f"$O.{bucket}.C.>")

    with anyio.fail_after(5), pytest.raises(BodyLost, match="t-1"):
        await gati_open_fabric.bodies.take(ticket)


async def test_a_body_that_lost_a_part_is_lost(gati_open_fabric: Fabric) -> None:
    ticket = await gati_open_fabric.bodies.put("t-1", b"x" * 300_000)
    await gati_open_fabric.connection.jetstream().delete_msg(f"OBJ_{gati_open_fabric.subjects.bodies_bucket}", 2)

    with anyio.fail_after(5), pytest.raises(BodyLost, match="t-1"):
        await gati_open_fabric.bodies.take(ticket)


async def test_a_body_under_a_used_ticket_replaces_the_one_before(gati_open_fabric: Fabric) -> None:
    """A redelivered request stores its body again under the same ticket."""
    await gati_open_fabric.bodies.put("t-1", b"first")
    await gati_open_fabric.bodies.put("t-1", b"second")

    assert await gati_open_fabric.bodies.take("t-1") == b"second"


async def test_a_taken_body_leaves_no_bytes_behind(gati_open_fabric: Fabric) -> None:
    ticket = await gati_open_fabric.bodies.put("t-1", b"x" * 500_000)
    await gati_open_fabric.bodies.take(ticket)

    info = await gati_open_fabric.connection.jetstream().stream_info(f"OBJ_{gati_open_fabric.subjects.bodies_bucket}")
    assert info.state.bytes < 10_000


async def test_without_a_broker_storing_and_taking_is_refused_at_once(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    """F11: and nothing is stored later."""
    own_broker.kill()
    await eventually(lambda: not own_fabric.connection.is_up, within_s=2)

    with anyio.fail_after(1):
        with pytest.raises(BrokerUnavailable):
            await own_fabric.bodies.put("t-1", b"ghost")
        with pytest.raises(BrokerUnavailable):
            await own_fabric.bodies.take("t-1")
    await brokers.start(own_broker)
    await eventually(lambda: own_fabric.connection.is_up, within_s=3)

    with pytest.raises(BodyLost):
        await own_fabric.bodies.take("t-1")


async def test_a_body_survives_a_killed_broker(own_fabric: Fabric, own_broker: EmbeddedBroker) -> None:
    ticket = await own_fabric.bodies.put("t-1", b"x" * 300_000)
    await brokers.kill_and_restart(own_broker)
    await eventually(lambda: own_fabric.connection.is_up, within_s=3)

    assert await own_fabric.bodies.take(ticket) == b"x" * 300_000
