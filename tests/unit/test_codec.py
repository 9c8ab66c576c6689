"""Bytes to messages and back: what is decoded is valid, and what is not valid is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gati_core.errors import MalformedDescriptor, MalformedMessage, MalformedReply, MalformedWorkItem
from gati_core.wire import (
    PROTOCOL,
    Cancel,
    Reply,
    RequestDescriptor,
    RoutingView,
    TopicMessage,
    WorkItem,
    decode_cancel,
    decode_descriptor,
    decode_reply,
    decode_routing,
    decode_topic,
    decode_work,
    encode,
    from_json,
    to_json,
)
from gati_testing import strategies

Decode = Callable[[bytes], msgspec.Struct]

DECODERS: dict[str, tuple[Decode, type[MalformedMessage], msgspec.Struct]] = {
    "descriptor": (
        lambda data: decode_descriptor(data, subject="s"),
        MalformedDescriptor,
        RequestDescriptor(PROTOCOL, "r", "reply", 2, 1, "GET", "/"),
    ),
    "routing": (
        lambda data: decode_routing(data, subject="s"),
        MalformedDescriptor,
        RoutingView(PROTOCOL, "r", "reply", 2, 1, "GET", "/"),
    ),
    "work": (
        lambda data: decode_work(data, subject="s"),
        MalformedWorkItem,
        WorkItem(PROTOCOL, "r", "reply", 2, "h", "at_least_once", msgspec.Raw(b"\x90")),
    ),
    "reply": (lambda data: decode_reply(data), MalformedReply, Reply(PROTOCOL, "r", 200)),
    "cancel": (lambda data: decode_cancel(data), MalformedMessage, Cancel(PROTOCOL, "r", "deadline", 2)),
    "topic": (lambda data: decode_topic(data), MalformedMessage, TopicMessage(PROTOCOL, "t", 1, "p")),
}
each_kind = pytest.mark.parametrize(("decode", "malformed", "sample"), DECODERS.values(), ids=DECODERS.keys())


@given(message=strategies.request_descriptors())
def test_descriptor_survives_the_wire(message: RequestDescriptor) -> None:
    assert decode_descriptor(encode(message), subject="s") == message


@given(message=strategies.request_descriptors())
def test_routing_view_reads_the_same_as_the_descriptor(message: RequestDescriptor) -> None:
    view = decode_routing(encode(message), subject="s")

    assert all(getattr(view, name) == getattr(message, name) for name in RoutingView.__struct_fields__)


def test_routing_view_mirrors_the_first_fields_of_the_descriptor() -> None:
    count = len(RoutingView.__struct_fields__)

    assert RequestDescriptor.__struct_fields__[:count] == RoutingView.__struct_fields__


@given(message=strategies.work_items())
def test_work_item_survives_the_wire_with_its_descriptor_untouched(message: WorkItem) -> None:
    decoded = decode_work(encode(message), subject="s")

    assert decoded == message
    assert bytes(decoded.descriptor) == bytes(message.descriptor)
    assert decode_descriptor(decoded.descriptor, subject="s") == decode_descriptor(message.descriptor, subject="s")


@given(message=strategies.replies())
def test_reply_survives_the_wire(message: Reply) -> None:
    assert decode_reply(encode(message)) == message


@given(message=strategies.cancels())
def test_cancel_survives_the_wire(message: Cancel) -> None:
    assert decode_cancel(encode(message)) == message


@given(message=strategies.topic_messages())
def test_topic_message_survives_the_wire(message: TopicMessage) -> None:
    assert decode_topic(encode(message)) == message


@given(message=strategies.request_descriptors() | strategies.work_items() | strategies.replies() | strategies.cancels())
def test_json_for_people_reads_back_as_the_same_message(message: msgspec.Struct) -> None:
    assert from_json(to_json(message), type(message)) == message


@each_kind
@given(data=st.binary(max_size=300))
def test_garbage_is_malformed(decode: Decode, malformed: type[MalformedMessage], sample: object, data: bytes) -> None:
    try:
        decode(data)
    except malformed:
        pass


@each_kind
@given(data=st.data())
def test_a_damaged_message_is_malformed_or_still_a_message(
    decode: Decode, malformed: type[MalformedMessage], sample: msgspec.Struct, data: st.DataObject
) -> None:
    damaged = bytearray(encode(sample))
    for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(damaged))
    except malformed:
        pass


@each_kind
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xc0",
        b"\x90",
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc1" * 10,
        b"\x91" * 200_000,
        b"\xff\xfe",
    ],
    ids=["empty", "json", "nil", "no fields", "huge array", "huge text", "unused code", "deep nesting", "negative"],
)
def test_bad_bytes_by_example(decode: Decode, malformed: type[MalformedMessage], sample: object, data: bytes) -> None:
    with pytest.raises(malformed):
        decode(data)


@each_kind
def test_nesting_too_deep_in_an_ignored_field_is_malformed(
    decode: Decode, malformed: type[MalformedMessage], sample: msgspec.Struct
) -> None:
    fields = _fields(sample)
    bomb = b"\x91" * 200_000 + b"\xc0"
    data = bytes([0xDC, 0, len(fields) + 1]) + b"".join(encode(field) for field in fields) + bomb

    with pytest.raises(malformed):
        decode(data)


@each_kind
def test_text_that_is_no_utf8_is_malformed(
    decode: Decode, malformed: type[MalformedMessage], sample: msgspec.Struct
) -> None:
    fields = _fields(sample)
    data = bytes([0x90 + len(fields), PROTOCOL]) + b"\xa2\xff\xfe" + b"".join(encode(f) for f in fields[2:])

    with pytest.raises(malformed):
        decode(data)


@each_kind
@pytest.mark.parametrize("protocol", [1.5, "1", None, True, 2**64 - 1])
def test_a_protocol_that_is_no_small_number_is_malformed(
    decode: Decode, malformed: type[MalformedMessage], sample: msgspec.Struct, protocol: object
) -> None:
    fields = [protocol, *_fields(sample)[1:]]

    with pytest.raises(malformed):
        decode(encode(fields))


@each_kind
@pytest.mark.parametrize("protocol", [PROTOCOL + 1, 0, -1])
def test_another_protocol_is_refused_and_both_numbers_are_named(
    decode: Decode, malformed: type[MalformedMessage], sample: msgspec.Struct, protocol: int
) -> None:
    other = msgspec.structs.replace(sample, protocol=protocol)

    with pytest.raises(malformed, match=rf"protocol {protocol} .* reads protocol {PROTOCOL}"):
        decode(encode(other))


@each_kind
def test_fields_that_a_newer_version_appended_are_ignored(
    decode: Decode, malformed: type[MalformedMessage], sample: msgspec.Struct
) -> None:
    """F20: the rule of wire evolution, reading what is newer."""
    newer = [*_fields(sample), "appended", {"and": ["more"]}]

    assert decode(encode(newer)) == sample


@each_kind
def test_fields_that_an_older_version_did_not_have_take_their_defaults(
    decode: Decode, malformed: type[MalformedMessage], sample: msgspec.Struct
) -> None:
    """F20: the rule of wire evolution, reading what is older: the required fields alone are enough."""
    required = [field.encode_name for field in msgspec.structs.fields(type(sample)) if field.required]
    older = [getattr(sample, name) for name in required]

    assert decode(encode(older)) == sample

    with pytest.raises(malformed, match="at least"):
        decode(encode(older[:-1]))


@pytest.mark.parametrize("kind", [RequestDescriptor, WorkItem, Reply, Cancel])
@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"[1]", b'"x"', b"[1,2,3,4,5,6,7,8,9]", b"\xff"])
def test_json_of_something_else_is_malformed(kind: type[msgspec.Struct], data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        from_json(data, kind)


@pytest.mark.parametrize("kind", [RequestDescriptor, WorkItem, Reply, Cancel])
def test_json_nested_too_deep_is_malformed(kind: type[msgspec.Struct]) -> None:
    with pytest.raises(MalformedMessage):
        from_json(b"[" * 200_000, kind)


def test_a_failure_names_size_and_subject() -> None:
    with pytest.raises(MalformedDescriptor, match=r"2 bytes on gati\.req\.5\.0: Expected `array`, got `int`"):
        decode_descriptor(b"{}", subject="gati.req.5.0")


def _fields(sample: msgspec.Struct) -> list[Any]:
    return list(msgspec.structs.astuple(sample))
