"""The registry over a real broker: publishers at once, tag races, the change log, a broker that was killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from gati_core.errors import VersionConflict, VersionNotFound
from gati_core.fabric import EmbeddedBroker, Fabric, open_fabric
from gati_core.settings import FabricSettings
from gati_core.timescape import (
    Registry,
    Timeline,
    VersionRecord,
    fabric_registry,
    fabric_turns,
    fabric_usage,
    with_status,
    with_tag,
    with_version,
    without_tag,
)
from tests.helpers import brokers

PUBLISHERS = 4
EACH = 15


def version(fingerprint: str) -> VersionRecord:
    return VersionRecord(tsv="", fingerprint=fingerprint, methods=["GET"], path="/")


async def publish(registry: Registry, fingerprint: str, actor: str) -> Timeline:
    return await registry.change(
        "shop", "order", lambda it: with_version(it, version(fingerprint), now_ms=registry.now_ms(), actor=actor)
    )


@pytest.fixture
async def fabrics(gati_fabric_settings: FabricSettings) -> AsyncIterator[list[Fabric]]:
    """Connections of several publishers."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(open_fabric(gati_fabric_settings, name=f"publisher-{number}"))
            for number in range(PUBLISHERS)
        ]


async def test_publishers_at_once_come_one_after_another_and_lose_nothing(fabrics: list[Fabric]) -> None:
    async def publish_all(number: int, registry: Registry) -> None:
        for count in range(EACH):
            await publish(registry, f"own-{number}-{count}", f"user:{number}")
            await publish(registry, f"shared-{count}", f"user:{number}")  # the others publish the same

    registries = [fabric_registry(fabric) for fabric in fabrics]
    await asyncio.gather(*(publish_all(number, registry) for number, registry in enumerate(registries)))

    timeline = await registries[0].timeline("shop", "order")
    expected = {f"own-{number}-{count}" for number in range(PUBLISHERS) for count in range(EACH)}
    expected |= {f"shared-{count}" for count in range(EACH)}
    assert sorted(each.fingerprint for each in timeline.versions) == sorted(expected)
    assert [each.order.sequence for each in timeline.versions] == list(range(1, len(expected) + 1))
    assert [each.parent for each in timeline.versions[1:]] == [each.tsv for each in timeline.versions[:-1]]
    for number in range(PUBLISHERS):  # each publisher's own in its own order
        mine = [each.fingerprint for each in timeline.versions if each.fingerprint.startswith(f"own-{number}-")]
        assert mine == [f"own-{number}-{count}" for count in range(EACH)]

    changes = await registries[1].changes("shop", "order", at_most=1000)
    assert [each.n for each in changes] == list(range(1, len(expected) + 1))
    assert [each.tsv for each in changes] == [each.tsv for each in timeline.versions]
    assert {each.actor for each in changes} == {f"user:{number}" for number in range(PUBLISHERS)}


async def test_of_two_who_give_the_same_tag_one_has_it_and_the_other_is_told(fabrics: list[Fabric]) -> None:
    registries = [fabric_registry(fabric) for fabric in fabrics]
    for number in range(PUBLISHERS):
        timeline = await publish(registries[0], f"f{number}", "user:ann")

    async def tag(number: int) -> str:
        tsv = timeline.versions[number].tsv
        try:
            await registries[number].change(
                "shop", "order", lambda it: with_tag(it, tsv, "stable", now_ms=1, actor=f"user:{number}")
            )
        except VersionConflict as exc:
            return str(exc)
        return tsv

    said = await asyncio.gather(*(tag(number) for number in range(PUBLISHERS)))

    (has_it,) = (await registries[0].timeline("shop", "order")).tags
    assert said.count(has_it.tsv) == 1
    assert all(f"has the tag 'stable' on {has_it.tsv}" in each for each in said if each != has_it.tsv)


async def test_every_change_is_in_the_log_with_who_and_why_also_one_that_a_crash_left_out(
    fabrics: list[Fabric],
) -> None:
    registry = fabric_registry(fabrics[0])
    tsv = (await publish(registry, "a", "user:ann")).versions[0].tsv
    await publish(registry, "b", "user:ann")
    await registry.change("shop", "order", lambda it: with_tag(it, tsv, "old", now_ms=2, actor="user:bob"))
    await registry.change("shop", "order", lambda it: without_tag(it, "old", now_ms=3, actor="user:bob"))

    class Dies(Registry):
        async def _note(self, timeline: Timeline) -> None:
            """The process ends between the change and the log."""

    dying = Dies(registry._backend, registry._changes)
    await dying.change(
        "shop",
        "order",
        lambda it: with_status(it, tsv, "deactivated", now_ms=4, actor="user:eve", reason="wrong totals"),
    )

    changes = await fabric_registry(fabrics[1]).changes("shop", "order", at_most=100)

    assert [(each.type, each.actor, each.reason) for each in changes] == [
        ("registered", "user:ann", ""),
        ("registered", "user:ann", ""),
        ("tagged", "user:bob", ""),
        ("untagged", "user:bob", ""),
        ("deactivated", "user:eve", "wrong totals"),
    ]


async def test_a_refused_change_changes_nothing(fabrics: list[Fabric]) -> None:
    registry = fabric_registry(fabrics[0])
    before = await publish(registry, "a", "user:ann")

    with pytest.raises(VersionConflict, match="newest version"):
        await registry.change(
            "shop",
            "order",
            lambda it: with_status(it, it.versions[0].tsv, "deactivated", now_ms=1, actor="user:ann"),
        )
    with pytest.raises(VersionNotFound, match="has no version tsv:1-order-001"):
        await registry.change("shop", "order", lambda it: with_tag(it, "tsv:1-order-001", "x", now_ms=1, actor="a"))

    assert await registry.timeline("shop", "order") == before


async def test_a_publisher_whose_clock_is_behind_does_not_write_into_the_past(fabrics: list[Fabric]) -> None:
    ahead, behind = fabric_registry(fabrics[0]), fabric_registry(fabrics[1])
    behind.now_ms = lambda: ahead.now_ms() - 3_600_000

    await publish(ahead, "a", "user:ann")
    timeline = await publish(behind, "b", "user:bob")

    first, second = timeline.versions
    assert second.order > first.order
    assert second.order.seconds == first.order.seconds


async def test_all_of_it_is_there_after_the_broker_was_killed(own_broker: EmbeddedBroker, gati_namespace: str) -> None:
    settings = FabricSettings(nats_url=own_broker.url, namespace=gati_namespace, connect_wait_s=10.0)
    async with open_fabric(settings, name="before") as fabric:
        registry = fabric_registry(fabric)
        for number in range(5):
            timeline = await publish(registry, f"f{number}", "user:ann")
        await fabric_usage(fabric).add("shop", "order", {timeline.versions[0].tsv: 3}, at_s=1_750_000_000)
        changes = await registry.changes("shop", "order", at_most=100)

    await brokers.kill_and_restart(own_broker)

    async with open_fabric(settings, name="after") as fabric:
        registry = fabric_registry(fabric)
        assert await registry.timeline("shop", "order") == timeline
        assert await registry.changes("shop", "order", at_most=100) == changes
        assert (await fabric_usage(fabric).read("shop", "order")).of(timeline.versions[0].tsv).total == 3


async def test_routers_that_count_at_once_lose_no_request(fabrics: list[Fabric]) -> None:
    async def count(fabric: Fabric) -> None:
        for _ in range(10):
            await fabric_usage(fabric).add("shop", "order", {"tsv:1-order-001": 2}, at_s=1_750_000_000)

    await asyncio.gather(*(count(fabric) for fabric in fabrics))

    assert (await fabric_usage(fabrics[0]).read("shop", "order")).of("tsv:1-order-001").total == PUBLISHERS * 20


async def test_of_several_routers_one_takes_the_turn_to_sweep(fabrics: list[Fabric]) -> None:
    taken = await asyncio.gather(
        *(fabric_turns(fabric).take(by=str(number), every_s=60) for number, fabric in enumerate(fabrics))
    )
    again = await asyncio.gather(*(fabric_turns(fabric).take(by="x", every_s=60) for fabric in fabrics))
    later = await asyncio.gather(*(fabric_turns(fabric).take(by="x", every_s=0) for fabric in fabrics[:1]))

    assert taken.count(True) == 1
    assert again == [False] * PUBLISHERS
    assert later == [True]
