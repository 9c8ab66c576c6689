"""Dead letters: kept with their cause, listed, and able to run again."""

from __future__ import annotations

import time
from datetime import datetime

import msgspec
import pytest

from gati_core.errors import GatiError, MalformedMessage, MalformedWorkItem, PoisonMessage, RequestError
from gati_core.fabric import Fabric, stream_state
from gati_core.wire import PROTOCOL, RequestDescriptor, WorkItem, decode_descriptor, encode

DESCRIPTOR = RequestDescriptor(
    PROTOCOL, "r-1", "gati.reply.i.1", 2, 1, "POST", "/orders", priority=8, body=b"\x00body", headers=[("a", "b")]
)
WORK = WorkItem(PROTOCOL, "r-1", "gati.reply.i.1", 2, "h", "at_least_once", msgspec.Raw(encode(DESCRIPTOR)))


async def _bury(
    fabric: Fabric,
    *,
    stage: str = "work",
    data: bytes = b"data",
    error: GatiError | None = None,
    headers: dict[str, str] | None = None,
) -> int:
    return await fabric.dead_letters.bury(
        stage=stage,
        pool="shop",
        subject="gati.work.shop.place_order",
        data=data,
        error=error or PoisonMessage("tried 3 times"),
        attempts=3,
        request_id="r-1",
        headers=headers,
    )


async def test_a_buried_message_keeps_everything_about_it(gati_open_fabric: Fabric) -> None:
    sequence = await _bury(gati_open_fabric, data=b"\x00\xff", headers={"Traceparent": "00-1", "Nats-Msg-Id": "r-1"})

    letter = await gati_open_fabric.dead_letters.get(sequence)

    assert (letter.stage, letter.pool, letter.subject) == ("work", "shop", "gati.work.shop.place_order")
    assert (letter.code, letter.cause, letter.attempts) == ("worker.poison", "tried 3 times", 3)
    assert (letter.request_id, letter.data) == ("r-1", b"\x00\xff")
    assert letter.headers == {"Traceparent": "00-1"}
    assert abs(datetime.fromisoformat(letter.time).timestamp() - time.time()) < 60
    assert gati_open_fabric.dead_letters.buried == 1


@pytest.mark.parametrize(
    ("cause", "shown"),
    [
        ("zeile eins\r\nNats-Msg-Id: evil\n\nzwei", "zeile eins  Nats-Msg-Id: evil  zwei"),
        ("Größe ≠ 3 → 日本語 🎉", "Größe ≠ 3 → 日本語 🎉"),
        ("=?utf-8?q?not_mail?=", "=?utf-8?q?not_mail?="),
        ("a\x0bb\x1cc\x85d\u2028e", "a\x0bb\x1cc\x85d\u2028e"),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ("colon: and: more", "colon: and: more"),
        ("", ""),
        ("x" * 5000, "x" * 1000),
        ("ü" * 1000, "ü" * 1000),
        ("NUL \0 byte", "NUL \0 byte"),
    ],
    ids=["line breaks", "other scripts", "mail", "odd breaks", "surrogate", "colons", "empty", "long", "wide", "NUL"],
)
async def test_any_cause_is_kept_and_none_forges_a_header(gati_open_fabric: Fabric, cause: str, shown: str) -> None:
    sequence = await _bury(gati_open_fabric, error=PoisonMessage(cause), headers={"X-Cause": cause})

    letter = await gati_open_fabric.dead_letters.get(sequence)

    assert letter.cause == shown
    assert type(letter.cause) is str
    assert letter.attempts == 3
    if len(cause) <= 1000:
        assert letter.headers == {"X-Cause": shown}
    assert await _bury(gati_open_fabric) == sequence + 1


async def test_headers_with_impossible_names_do_not_keep_a_message_from_being_buried(gati_open_fabric: Fabric) -> None:
    sequence = await _bury(gati_open_fabric, headers={"a b\r\nEvil: 1": "x", "": "y", "grün": "z", "ok": "v"})

    letter = await gati_open_fabric.dead_letters.get(sequence)

    assert letter.headers["ok"] == "v"
    assert "Evil" not in letter.headers
    assert letter.data == b"data"


async def test_an_empty_message_can_be_buried(gati_open_fabric: Fabric) -> None:
    letter = await gati_open_fabric.dead_letters.get(await _bury(gati_open_fabric, data=b""))

    assert letter.data == b""


async def test_a_message_without_a_known_pool_can_be_buried(gati_open_fabric: Fabric) -> None:
    sequence = await gati_open_fabric.dead_letters.bury(
        stage="req", pool="", subject="gati.req.5.0", data=b"garbage", error=MalformedWorkItem("no"), attempts=1
    )

    letter = await gati_open_fabric.dead_letters.get(sequence)

    assert (letter.stage, letter.pool, letter.code) == ("req", "-", "wire.malformed_work_item")


async def test_the_newest_are_listed_first_and_deleted_ones_are_skipped(gati_open_fabric: Fabric) -> None:
    letters = gati_open_fabric.dead_letters
    assert await letters.newest() == []
    for number in range(5):
        await _bury(gati_open_fabric, data=b"%d" % number)
    await letters.delete(3)

    assert [letter.data for letter in await letters.newest()] == [b"4", b"3", b"1", b"0"]
    assert [letter.sequence for letter in await letters.newest(limit=2)] == [5, 4]


async def test_a_letter_that_is_not_there_is_a_clear_error(gati_open_fabric: Fabric) -> None:
    letters = gati_open_fabric.dead_letters
    for act in (letters.get, letters.requeue, letters.requeue_event, letters.delete):
        with pytest.raises(RequestError, match="no dead letter 7"):
            await act(7)


@pytest.mark.parametrize(("stage", "data"), [("work", encode(WORK)), ("req", encode(DESCRIPTOR))])
async def test_a_requeued_request_runs_again_under_another_id_with_time_to_run(
    gati_open_fabric: Fabric, stage: str, data: bytes
) -> None:
    """F5: within the duplicate window the old id would be accepted and never delivered."""
    sequence = await _bury(gati_open_fabric, stage=stage, data=data)

    request_id = await gati_open_fabric.dead_letters.requeue(sequence)

    stored = await gati_open_fabric.connection.jetstream().get_msg(gati_open_fabric.subjects.req_stream, seq=1)
    again = decode_descriptor(stored.data or b"", subject="s")
    assert stored.subject == gati_open_fabric.subjects.req(8)
    assert again.request_id == request_id != "r-1"
    assert again.deadline_ms > time.time() * 1000 + 20_000
    assert again.reply_to != DESCRIPTOR.reply_to
    assert (again.method, again.path, again.body, again.headers) == ("POST", "/orders", b"\x00body", [("a", "b")])
    assert await gati_open_fabric.dead_letters.newest() == []


async def test_a_request_that_died_again_can_be_requeued_again(gati_open_fabric: Fabric) -> None:
    """F5: each run has an id of its own, so none is taken for a duplicate."""
    for _ in range(3):
        await gati_open_fabric.dead_letters.requeue(await _bury(gati_open_fabric, data=encode(WORK)))

    assert (await stream_state(gati_open_fabric.connection, gati_open_fabric.subjects.req_stream)).messages == 3


@pytest.mark.parametrize(("stage", "data"), [("work", b"garbage"), ("req", b""), ("else", encode(DESCRIPTOR))])
async def test_what_is_no_request_cannot_be_requeued_and_stays(
    gati_open_fabric: Fabric, stage: str, data: bytes
) -> None:
    sequence = await _bury(gati_open_fabric, stage=stage, data=data)

    with pytest.raises(MalformedMessage):
        await gati_open_fabric.dead_letters.requeue(sequence)

    assert (await gati_open_fabric.dead_letters.get(sequence)).data == data


@pytest.mark.parametrize("priority", [99, -1])
async def test_a_request_with_a_priority_that_no_router_reads_is_not_requeued_into_nowhere(
    gati_open_fabric: Fabric, priority: int
) -> None:
    data = encode(msgspec.structs.replace(DESCRIPTOR, priority=priority))
    sequence = await _bury(gati_open_fabric, stage="req", data=data)

    with pytest.raises(MalformedMessage, match=str(priority)):
        await gati_open_fabric.dead_letters.requeue(sequence)

    assert (await gati_open_fabric.dead_letters.get(sequence)).data == data
