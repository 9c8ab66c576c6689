"""Buckets: compare-and-set that holds, and views that are current or say that they are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from gati_core.errors import BrokerUnavailable, KeyConflict, MessageTooLarge, RequestError
from gati_core.fabric import EmbeddedBroker, Fabric, KvBucket, KvView, kv, open_fabric
from tests.helpers import brokers
from tests.helpers.waiting import eventually

Change = tuple[str, bytes | None]


@asynccontextmanager
async def _viewing(fabric: Fabric, changes: list[Change] | None = None) -> AsyncIterator[KvView]:
    def on_change(key: str, value: bytes | None) -> None:
        if changes is not None:
            changes.append((key, value))

    view = KvView(fabric.connection, fabric.subjects.pools_bucket, on_change=on_change)
    await view.start()
    try:
        yield view
    finally:
        await view.aclose()


def _bucket(fabric: Fabric) -> KvBucket:
    return KvBucket(fabric.connection, fabric.subjects.pools_bucket)


def _value(view: KvView, key: str) -> bytes | None:
    entry = view.get(key)
    return None if entry is None else entry.value


async def test_what_is_put_is_what_is_got(gati_open_fabric: Fabric) -> None:
    bucket = _bucket(gati_open_fabric)

    revision = await bucket.put("worker.shop.1", b"alive")

    entry = await bucket.get("worker.shop.1")
    assert entry is not None
    assert (entry.key, entry.value, entry.revision) == ("worker.shop.1", b"alive", revision)


@pytest.mark.parametrize("value", [b"", b"\x00\xff\r\n", b"x" * 500_000], ids=["empty", "binary", "large"])
async def test_any_bytes_are_a_value(gati_open_fabric: Fabric, value: bytes) -> None:
    bucket = _bucket(gati_open_fabric)
    await bucket.put("key", value)

    entry = await bucket.get("key")

    assert entry is not None
    assert entry.value == value
    async with _viewing(gati_open_fabric) as view:
        assert _value(view, "key") == value


async def test_a_key_that_is_not_there_is_none(gati_open_fabric: Fabric) -> None:
    assert await _bucket(gati_open_fabric).get("missing") is None


async def test_a_deleted_key_is_gone_and_deleting_again_is_no_error(gati_open_fabric: Fabric) -> None:
    bucket = _bucket(gati_open_fabric)
    await bucket.put("key", b"x")

    await bucket.delete("key")
    await bucket.delete("key")

    assert await bucket.get("key") is None
    assert await bucket.keys() == []


async def test_keys_lists_what_exists(gati_open_fabric: Fabric) -> None:
    bucket = _bucket(gati_open_fabric)
    assert await bucket.keys() == []
    for key in ("b.2", "a.1", "gone"):
        await bucket.put(key, b"x")
    await bucket.delete("gone")

    assert sorted(await bucket.keys()) == ["a.1", "b.2"]


@pytest.mark.parametrize("key", ["", ".a", "a.", "a b", "a*", "a>", "a\r\nb", "*"])
async def test_a_key_that_would_change_the_subject_is_refused(gati_open_fabric: Fabric, key: str) -> None:
    bucket = _bucket(gati_open_fabric)
    with pytest.raises(RequestError):
        await bucket.put(key, b"x")
    with pytest.raises(RequestError):
        await bucket.get(key)


async def test_create_refuses_a_key_that_exists(gati_open_fabric: Fabric) -> None:
    bucket = _bucket(gati_open_fabric)
    await bucket.create("key", b"mine")

    with pytest.raises(KeyConflict):
        await bucket.create("key", b"yours")

    entry = await bucket.get("key")
    assert entry is not None
    assert entry.value == b"mine"


async def test_create_takes_a_key_that_was_deleted(gati_open_fabric: Fabric) -> None:
    bucket = _bucket(gati_open_fabric)
    await bucket.create("key", b"first")
    await bucket.delete("key")

    await bucket.create("key", b"second")

    entry = await bucket.get("key")
    assert entry is not None
    assert entry.value == b"second"


async def test_update_refuses_a_revision_that_is_no_longer_the_newest(gati_open_fabric: Fabric) -> None:
    bucket = _bucket(gati_open_fabric)
    seen = await bucket.put("key", b"1")
    newest = await bucket.update("key", b"2", revision=seen)

    with pytest.raises(KeyConflict, match="'key'"):
        await bucket.update("key", b"3", revision=seen)

    assert await bucket.update("key", b"3", revision=newest) > newest


async def test_of_many_writers_with_the_same_revision_exactly_one_wins(gati_open_fabric: Fabric) -> None:
    bucket = _bucket(gati_open_fabric)
    revision = await bucket.put("key", b"0")

    results = await asyncio.gather(
        *(bucket.update("key", b"%d" % number, revision=revision) for number in range(20)), return_exceptions=True
    )

    assert sum(isinstance(result, int) for result in results) == 1
    assert sum(isinstance(result, KeyConflict) for result in results) == 19


async def test_a_value_over_the_limit_is_refused_and_the_connection_stays(gati_open_fabric: Fabric) -> None:
    """F7: the headers of compare-and-set count as well."""
    connection = gati_open_fabric.connection
    with pytest.raises(MessageTooLarge):
        await _bucket(gati_open_fabric).create("key", b"x" * connection.max_payload)

    await connection.flush()
    assert (connection.is_up, connection.health().rebuilds, connection.health().reconnects) == (True, 0, 0)


async def test_a_write_while_disconnected_is_refused_at_once_and_nothing_surfaces_later(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    """F11: nats-py would buffer it, time out, and store it all the same after the reconnect."""
    bucket = _bucket(own_fabric)
    own_broker.kill()
    await eventually(lambda: not own_fabric.connection.is_up, within_s=2)

    with anyio.fail_after(1):
        with pytest.raises(BrokerUnavailable):
            await bucket.put("ghost", b"x")
        with pytest.raises(BrokerUnavailable):
            await bucket.get("ghost")
    await brokers.start(own_broker)
    await eventually(lambda: own_fabric.connection.is_up, within_s=3)
    await bucket.put("real", b"x")

    assert await bucket.keys() == ["real"]


async def test_a_view_holds_everything_when_it_has_started(gati_open_fabric: Fabric) -> None:
    bucket = _bucket(gati_open_fabric)
    for number in range(50):
        await bucket.put(f"k.{number}", b"%d" % number)

    changes: list[Change] = []
    async with _viewing(gati_open_fabric, changes) as view:
        assert {entry.key for entry in view.entries()} == {f"k.{number}" for number in range(50)}
        assert sorted(changes) == sorted((f"k.{number}", b"%d" % number) for number in range(50))


async def test_a_view_of_an_empty_bucket_starts_at_once(gati_open_fabric: Fabric) -> None:
    with anyio.fail_after(1.5):
        async with _viewing(gati_open_fabric) as view:
            assert list(view.entries()) == []


async def test_a_view_of_a_bucket_that_does_not_exist_says_so_in_time(gati_open_fabric: Fabric) -> None:
    view = KvView(gati_open_fabric.connection, "no-such-bucket")
    try:
        with pytest.raises(BrokerUnavailable, match="no-such-bucket"):
            await view.start(within_s=0.5)
    finally:
        await view.aclose()


async def test_a_view_sees_writes_changes_and_deletions(gati_open_fabric: Fabric) -> None:
    bucket = _bucket(gati_open_fabric)
    changes: list[Change] = []
    async with _viewing(gati_open_fabric, changes) as view:
        await bucket.put("key", b"1")
        await bucket.put("key", b"2")
        await bucket.delete("key")

        await eventually(lambda: changes == [("key", b"1"), ("key", b"2"), ("key", None)], within_s=2)
        assert view.get("key") is None


async def test_a_listener_that_raises_does_not_stop_the_view(gati_open_fabric: Fabric) -> None:
    def broken(_key: str, _value: bytes | None) -> None:
        raise ValueError("a bug")

    view = KvView(gati_open_fabric.connection, gati_open_fabric.subjects.pools_bucket, on_change=broken)
    await view.start()
    try:
        await _bucket(gati_open_fabric).put("key", b"x")
        await eventually(lambda: _value(view, "key") == b"x", within_s=2)
    finally:
        await view.aclose()


async def test_a_key_whose_time_is_over_is_gone_and_the_view_sees_it_go(gati_open_fabric: Fabric) -> None:
    bucket = _bucket(gati_open_fabric)
    changes: list[Change] = []
    async with _viewing(gati_open_fabric, changes) as view:
        await bucket.put("worker", b"alive", ttl_s=1)
        await bucket.put("router", b"alive")
        await eventually(lambda: _value(view, "worker") == b"alive", within_s=2)

        await eventually(lambda: ("worker", None) in changes, within_s=4)
        assert view.get("worker") is None
        assert _value(view, "router") == b"alive"
        assert await bucket.get("worker") is None
        await bucket.create("worker", b"back")
        await eventually(lambda: _value(view, "worker") == b"back", within_s=2)


async def test_a_heartbeat_in_time_keeps_the_key(gati_open_fabric: Fabric) -> None:
    bucket = _bucket(gati_open_fabric)
    changes: list[Change] = []
    async with _viewing(gati_open_fabric, changes):
        for beat in range(6):
            await bucket.put("worker", b"%d" % beat, ttl_s=1)
            await eventually(lambda beat=beat: ("worker", b"%d" % beat) in changes, within_s=2)
            with anyio.move_on_after(0.4):
                await eventually(lambda: ("worker", None) in changes, within_s=30)

        assert ("worker", None) not in changes


async def test_a_view_is_current_within_two_seconds_after_a_killed_broker_is_ready_again(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    """F9: a bare watch saw an update 18 s late; ours reads everything again on reconnect."""
    bucket = _bucket(own_fabric)
    await bucket.put("kept", b"1")
    await bucket.put("changed", b"1")
    await bucket.put("deleted", b"1")
    changes: list[Change] = []
    async with _viewing(own_fabric, changes) as view:
        changes.clear()
        own_broker.kill()
        await eventually(lambda: not own_fabric.connection.is_up, within_s=2)
        await brokers.start(own_broker)
        async with open_fabric(own_fabric.settings, name="other", ensure=False) as other:
            with anyio.fail_after(2):
                await _bucket(other).put("changed", b"2")
                await _bucket(other).delete("deleted")
                await _bucket(other).put("new", b"1")
                await eventually(
                    lambda: {e.key: e.value for e in view.entries()} == {"kept": b"1", "changed": b"2", "new": b"1"},
                    within_s=2,
                )
        assert sorted(changes, key=str) == sorted([("changed", b"2"), ("deleted", None), ("new", b"1")], key=str)


async def test_a_view_goes_on_after_the_client_closed_for_good(gati_open_fabric: Fabric) -> None:
    """F7, F9."""
    async with _viewing(gati_open_fabric) as view:
        await gati_open_fabric.connection._client.close()
        await eventually(lambda: gati_open_fabric.connection.is_up, within_s=3)

        await _bucket(gati_open_fabric).put("key", b"x")

        await eventually(lambda: _value(view, "key") == b"x", within_s=2)


async def test_staleness_grows_while_the_broker_is_frozen_and_shrinks_when_it_wakes_up(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    async with _viewing(own_fabric) as view:
        assert view.staleness_s() < 3
        own_broker.pause()
        try:
            await eventually(lambda: view.staleness_s() > 3.5, within_s=5)
        finally:
            own_broker.resume()

        await eventually(lambda: view.staleness_s() < 1, within_s=5)


async def test_a_view_that_has_not_started_is_infinitely_stale(gati_open_fabric: Fabric) -> None:
    view = KvView(gati_open_fabric.connection, gati_open_fabric.subjects.pools_bucket)

    assert view.staleness_s() == float("inf")


async def test_a_view_whose_watch_the_server_lost_stays_stale_until_it_was_read_again(
    gati_open_fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F9: silence is noticed; meanwhile the staleness tells the truth, and afterwards the view is current."""
    async with _viewing(gati_open_fabric) as view:
        js = gati_open_fabric.connection.jetstream()
        await js.delete_consumer(f"KV_{view.bucket}", view._consumer)
        await _bucket(gati_open_fabric).put("missed", b"x")
        assert view.get("missed") is None
        await eventually(lambda: view.staleness_s() > 1, within_s=3)
        monkeypatch.setattr(kv, "_HEARTBEAT_S", 0.2)

        await eventually(lambda: _value(view, "missed") == b"x", within_s=3)
        assert view.staleness_s() < 1


async def test_a_closed_view_leaves_no_consumer_behind(gati_open_fabric: Fabric) -> None:
    """F16: views come and go; their consumers on the server must too."""
    js = gati_open_fabric.connection.jetstream()
    for _ in range(3):
        async with _viewing(gati_open_fabric):
            pass

    info = await js.stream_info(f"KV_{gati_open_fabric.subjects.pools_bucket}")
    assert info.state.consumer_count == 0


async def test_a_view_leaves_at_most_one_consumer_behind_after_reconnects(gati_open_fabric: Fabric) -> None:
    """F16: the server lived on, so the old watch must be deleted by us."""
    connection = gati_open_fabric.connection
    async with _viewing(gati_open_fabric) as view:
        for times in (1, 2, 3):
            await connection._client.force_reconnect()
            await eventually(lambda times=times: view.reloads == times + 1, within_s=3)

        async def one_consumer() -> bool:
            info = await connection.jetstream().stream_info(f"KV_{view.bucket}")
            return info.state.consumer_count == 1

        await eventually(one_consumer, within_s=3)


async def test_a_quiet_bucket_with_an_old_deleted_tail_is_not_read_again_and_again(
    gati_open_fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream's last sequence may belong to a message that is gone; that alone is no reason to reload."""
    bucket = _bucket(gati_open_fabric)
    await bucket.put("kept", b"x")
    await bucket.put("gone", b"x")
    js = gati_open_fabric.connection.jetstream()
    await js.purge_stream(f"KV_{bucket.bucket}", subject=f"$KV.{bucket.bucket}.gone")
    monkeypatch.setattr(kv, "_REVISION_CHECK_S", 0.1)
    async with _viewing(gati_open_fabric) as view:
        await eventually(lambda: view.reloads == 2, within_s=3)
        with anyio.move_on_after(2):
            await eventually(lambda: view.reloads > 2, within_s=30)
        assert view.reloads == 2
