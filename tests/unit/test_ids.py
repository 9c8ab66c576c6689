"""Request ids and instance ids."""

from __future__ import annotations

import multiprocessing
import re
import time
import uuid

from hypothesis import given

from gati_core.ids import new_instance_id, new_request_id
from gati_core.wire import token
from gati_testing import strategies


@given(now_ms=strategies.unix_ms())
def test_request_id_is_a_uuid7_that_carries_its_time(now_ms: int) -> None:
    found = uuid.UUID(new_request_id(now_ms))

    assert str(found) == new_request_id(now_ms)[:13] + str(found)[13:]
    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert found.int >> 80 == now_ms


def test_request_id_carries_the_present_time_unless_told_otherwise() -> None:
    before_ms = time.time_ns() // 1_000_000

    carried_ms = uuid.UUID(new_request_id()).int >> 80

    assert before_ms <= carried_ms <= time.time_ns() // 1_000_000


@given(earlier_ms=strategies.unix_ms(), later_ms=strategies.unix_ms())
def test_request_ids_sort_by_time_of_creation(earlier_ms: int, later_ms: int) -> None:
    earlier_ms, later_ms = sorted((earlier_ms, later_ms))
    if earlier_ms != later_ms:
        assert new_request_id(earlier_ms) < new_request_id(later_ms)


def test_request_ids_of_one_millisecond_are_distinct() -> None:
    assert len({new_request_id(1) for _ in range(20_000)}) == 20_000


def test_ids_are_tokens_of_a_subject() -> None:
    assert token(new_request_id(), "request id")
    assert token(new_instance_id(), "instance id")
    assert re.fullmatch(r"[0-9a-f]{12}", new_instance_id())


def test_a_forked_process_does_not_repeat_its_parents_ids() -> None:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send([new_request_id(0) for _ in range(100)]))
    child.start()
    ours = {new_request_id(0) for _ in range(100)}
    theirs = set(receiver.recv())
    child.join(10)

    assert not ours & theirs
