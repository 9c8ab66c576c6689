"""The bucket in memory, beyond what it shares with the broker's (see the contracts of both)."""

from __future__ import annotations

import pytest

from gati_core.contexts import Bucket
from gati_core.errors import KeyConflict, MessageTooLarge
from gati_testing import MemoryBucket


def test_it_is_a_bucket() -> None:
    bucket: Bucket = MemoryBucket("b")  # for the type checker
    assert isinstance(bucket, MemoryBucket)


async def test_time_is_what_it_is_told() -> None:
    now = [0.0]
    bucket = MemoryBucket("b", now=lambda: now[0])
    await bucket.put("k", b"v", ttl_s=10)

    now[0] = 9.99
    assert await bucket.get("k") is not None
    now[0] = 10.0
    assert await bucket.get("k") is None
    assert await bucket.keys() == []


async def test_limits_are_what_it_is_told() -> None:
    bucket = MemoryBucket("b", max_payload=100)

    await bucket.put("k", bytes(80))
    with pytest.raises(MessageTooLarge, match="max_payload of 100"):
        await bucket.put("k", bytes(101))


async def test_conflicts_name_bucket_and_key() -> None:
    bucket = MemoryBucket("orders")
    await bucket.create("k", b"v")

    with pytest.raises(KeyConflict, match=r"'k' of bucket orders"):
        await bucket.create("k", b"v")


async def test_what_was_stored_does_not_change_with_what_was_passed() -> None:
    value = bytearray(b"a")
    bucket = MemoryBucket("b")
    await bucket.put("k", value)  # type: ignore[arg-type]
    value[0] = 0

    entry = await bucket.get("k")
    assert entry is not None
    assert entry.value == b"a"
    with pytest.raises(TypeError):
        await bucket.put("k", "text")  # type: ignore[arg-type]
