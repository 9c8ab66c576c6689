"""One suite over the broker's buckets and over the bucket in memory that stands for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gati_core.contexts import Bucket
from gati_core.errors import KeyConflict, MessageTooLarge, RequestError
from gati_core.fabric import Fabric, KvBucket, format_headers
from gati_testing import MemoryBucket
from tests.helpers.waiting import eventually

MAX_PAYLOAD = 1024 * 1024


class Case:
    """A bucket, and how to wait until a key's second is over."""

    def __init__(self, bucket: Bucket, expired: Callable[[str], Awaitable[None]]) -> None:
        self.bucket = bucket
        self.expired = expired


@pytest.fixture(params=["memory", "broker"])
def case(request: pytest.FixtureRequest) -> Case:
    """Each of the two, empty."""
    if request.param == "memory":
        now = [1000.0]

        async def pass_a_second(_key: str) -> None:
            now[0] += 1

        return Case(MemoryBucket("b", now=lambda: now[0], max_payload=MAX_PAYLOAD), pass_a_second)
    fabric: Fabric = request.getfixturevalue("gati_open_fabric")
    bucket = KvBucket(fabric.connection, fabric.subjects.pools_bucket)

    async def wait_for_a_second(key: str) -> None:
        async def is_gone() -> bool:
            return await bucket.get(key) is None

        await eventually(is_gone, within_s=5)

    return Case(bucket, wait_for_a_second)


async def value(bucket: Bucket, key: str) -> bytes | None:
    """What is there."""
    entry = await bucket.get(key)
    return None if entry is None else entry.value


async def test_what_is_put_is_got_with_its_revision(case: Case) -> None:
    first = await case.bucket.put("a.b", b"1")
    second = await case.bucket.put("a.b", b"2")

    entry = await case.bucket.get("a.b")
    assert entry is not None
    assert (entry.key, entry.value, entry.revision) == ("a.b", b"2", second)
    assert second > first
    assert await case.bucket.get("other") is None


@pytest.mark.parametrize("data", [b"", b"\x00\xff\r\n", b"x" * 200_000])
async def test_any_bytes_are_a_value(case: Case, data: bytes) -> None:
    await case.bucket.put("key", data)

    assert await value(case.bucket, "key") == data


async def test_revisions_grow_over_all_keys(case: Case) -> None:
    revisions = [await case.bucket.put(key, b"x") for key in ("a", "b", "a", "c")]

    assert revisions == sorted(set(revisions))


async def test_create_refuses_what_exists_and_takes_what_was_deleted(case: Case) -> None:
    await case.bucket.create("key", b"1")
    with pytest.raises(KeyConflict, match="'key'"):
        await case.bucket.create("key", b"2")
    await case.bucket.delete("key")

    await case.bucket.create("key", b"3")

    assert await value(case.bucket, "key") == b"3"


async def test_update_takes_the_newest_revision_only(case: Case) -> None:
    first = await case.bucket.put("key", b"1")
    second = await case.bucket.update("key", b"2", revision=first)
    for revision in (first, 0, second + 1):
        with pytest.raises(KeyConflict):
            await case.bucket.update("key", b"3", revision=revision)

    assert await value(case.bucket, "key") == b"2"


async def test_update_of_a_key_that_never_was_takes_revision_0(case: Case) -> None:
    with pytest.raises(KeyConflict):
        await case.bucket.update("key", b"1", revision=7)
    await case.bucket.update("key", b"1", revision=0)

    assert await value(case.bucket, "key") == b"1"


async def test_update_refuses_what_was_deleted(case: Case) -> None:
    revision = await case.bucket.put("key", b"1")
    await case.bucket.delete("key")

    for wrong in (revision, 0):
        with pytest.raises(KeyConflict):
            await case.bucket.update("key", b"2", revision=wrong)
    assert await case.bucket.get("key") is None


async def test_deleting_what_is_not_there_is_no_error(case: Case) -> None:
    await case.bucket.delete("key")
    await case.bucket.delete("key")

    assert await case.bucket.get("key") is None
    await case.bucket.create("key", b"1")


async def test_keys_are_the_ones_that_exist(case: Case) -> None:
    assert await case.bucket.keys() == []
    for key in ("b.2", "a.1", "gone"):
        await case.bucket.put(key, b"x")
    await case.bucket.delete("gone")

    assert sorted(await case.bucket.keys()) == ["a.1", "b.2"]


async def test_a_key_whose_time_is_over_is_gone(case: Case) -> None:
    revision = await case.bucket.put("short", b"1", ttl_s=1)
    await case.bucket.put("long", b"1", ttl_s=3600)
    assert await value(case.bucket, "short") == b"1"
    await case.expired("short")

    assert await case.bucket.get("short") is None
    assert await case.bucket.keys() == ["long"]
    with pytest.raises(KeyConflict):
        await case.bucket.update("short", b"2", revision=revision)
    await case.bucket.create("short", b"2")
    assert await value(case.bucket, "short") == b"2"


async def test_a_write_without_a_time_takes_the_time_away(case: Case) -> None:
    await case.bucket.put("kept", b"1", ttl_s=1)
    await case.bucket.put("kept", b"2")
    await case.bucket.put("gone", b"1", ttl_s=1)
    await case.expired("gone")

    assert await value(case.bucket, "kept") == b"2"


async def test_create_and_update_take_a_time_as_well(case: Case) -> None:
    await case.bucket.create("a", b"1", ttl_s=1)
    revision = await case.bucket.put("b", b"1")
    await case.bucket.update("b", b"2", revision=revision, ttl_s=1)

    await case.expired("a")
    await case.expired("b") if isinstance(case.bucket, KvBucket) else None
    assert await case.bucket.keys() == []


@pytest.mark.parametrize("key", ["", ".a", "a.", "a..b", "a b", "a*", "a>", "a\r\nb", "ä"])
async def test_what_cannot_be_a_key_is_refused_everywhere(case: Case, key: str) -> None:
    bucket = case.bucket
    for work in (
        bucket.get(key),
        bucket.put(key, b"x"),
        bucket.create(key, b"x"),
        bucket.update(key, b"x", revision=0),
        bucket.delete(key),
    ):
        with pytest.raises(RequestError):
            await work
    assert await bucket.keys() == []


async def test_a_value_takes_what_a_message_takes_and_not_a_byte_more(case: Case) -> None:
    headers = len(format_headers({}))
    await case.bucket.put("key", b"x" * (MAX_PAYLOAD - headers))
    with pytest.raises(MessageTooLarge):
        await case.bucket.put("key", b"x" * (MAX_PAYLOAD - headers + 1))
    with pytest.raises(MessageTooLarge):
        await case.bucket.create("other", b"x" * (MAX_PAYLOAD - headers))

    assert len(await value(case.bucket, "key") or b"") == MAX_PAYLOAD - headers


async def test_of_many_writers_of_one_revision_one_wins(case: Case) -> None:
    revision = await case.bucket.put("key", b"0")

    results = await asyncio.gather(
        *(case.bucket.update("key", b"%d" % number, revision=revision) for number in range(20)), return_exceptions=True
    )

    assert sum(isinstance(result, int) for result in results) == 1
    assert sum(isinstance(result, KeyConflict) for result in results) == 19


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(("get", "put", "create", "update", "stale", "delete", "keys")),
            st.sampled_from(("a", "b")),
            st.binary(max_size=4),
        ),
        max_size=12,
    )
)
async def test_any_steps_have_the_same_outcome(steps: list[tuple[str, str, bytes]], gati_open_fabric: Fabric) -> None:
    """Both are told the same; revisions are compared by their order."""
    real = KvBucket(gati_open_fabric.connection, gati_open_fabric.subjects.pools_bucket)
    for key in ("a", "b"):
        await real.delete(key)
    memory = MemoryBucket("b")
    for key in ("a", "b"):
        await memory.delete(key)

    assert [await _outcomes(real, steps)] == [await _outcomes(memory, steps)]


async def _outcomes(bucket: Bucket, steps: list[tuple[str, str, bytes]]) -> list[object]:
    outcomes: list[object] = []
    seen: dict[str, int] = {}
    for do, key, data in steps:
        try:
            if do == "get":
                outcomes.append(await value(bucket, key))
            elif do == "keys":
                outcomes.append(sorted(await bucket.keys()))
            elif do == "delete":
                outcomes.append(await bucket.delete(key))  # type: ignore[func-returns-value]
            elif do == "update":
                entry = await bucket.get(key)
                seen[key] = await bucket.update(key, data, revision=entry.revision if entry is not None else 0)
            elif do == "stale":
                await bucket.update(key, data, revision=seen.get(key, 0))
            elif do == "put":
                await bucket.put(key, data)
            else:
                await bucket.create(key, data)
        except KeyConflict:
            outcomes.append("conflict")
        else:
            outcomes.append("done")
    return outcomes
