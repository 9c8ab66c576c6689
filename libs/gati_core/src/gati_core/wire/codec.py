"""Bytes to messages and back, in msgpack for the wire and JSON for people.

Decoding validates: what it returns has every field of the right type. What does not fit raises the
message's own `Malformed…` error, which is permanent: redelivery sends the same bytes again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

from gati_core.errors import MalformedDescriptor, MalformedMessage, MalformedReply, MalformedWorkItem
from gati_core.wire.messages import (
    PROTOCOL,
    Cancel,
    Frame,
    Reply,
    RequestDescriptor,
    RoutingView,
    StoredRun,
    TopicMessage,
    TraceRecord,
    WorkItem,
)

M = TypeVar("M", bound=msgspec.Struct)

encode = msgspec.msgpack.Encoder().encode
"""A message as msgpack. Several messages are encoded per request, so this is one shared encoder."""

_DESCRIPTOR_FIELD = WorkItem.__struct_fields__.index("descriptor")

# RecursionError: nesting thousands of levels deep, which reaches even the fields that a reader skips.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Versioned(Protocol):
    protocol: int


V = TypeVar("V", bound=_Versioned)


def _reader(kind: type[V], error: type[MalformedMessage]) -> Callable[[bytes | msgspec.Raw, str], V]:
    """What every message has in common: bytes and their subject in, a message of this protocol out."""
    decode = msgspec.msgpack.Decoder(kind).decode

    def read(data: bytes | msgspec.Raw, subject: str) -> V:
        try:
            message = decode(data)
        except _UNREADABLE as exc:
            raise _malformed(error, data, subject, exc) from exc
        if message.protocol != PROTOCOL:
            raise error(f"protocol {message.protocol} on {subject}: this process reads protocol {PROTOCOL}")
        return message

    return read


_descriptor = _reader(RequestDescriptor, MalformedDescriptor)
_routing = _reader(RoutingView, MalformedDescriptor)
_work = _reader(WorkItem, MalformedWorkItem)
_reply = _reader(Reply, MalformedReply)
_cancel = _reader(Cancel, MalformedMessage)
_frame = _reader(Frame, MalformedMessage)
_trace = _reader(TraceRecord, MalformedMessage)
_stored = _reader(StoredRun, MalformedMessage)
_topic = _reader(TopicMessage, MalformedMessage)


def decode_descriptor(data: bytes | msgspec.Raw, *, subject: str) -> RequestDescriptor:
    """Read one request as published by an ingress.

    Shape: a msgpack array in field order, protocol version first.

    Args:
        data: the payload.
        subject: where it came from; only used to describe a failure.
    Raises:
        MalformedDescriptor: not msgpack, another protocol, or a field is missing or mistyped.
    Source: ADR-0006, the wire format.

    >>> decode_descriptor(b"{}", subject="gati.req.5.0")
    Traceback (most recent call last):
    gati_core.errors.MalformedDescriptor: 2 bytes on gati.req.5.0: Expected `array`, got `int`
    """
    return _descriptor(data, subject)


def decode_routing(data: bytes, *, subject: str) -> RoutingView:
    """Read what a router needs from a descriptor and skip the rest.

    Raises:
        MalformedDescriptor: as `decode_descriptor`, for the fields that it reads.
    """
    return _routing(data, subject)


def decode_work(data: bytes, *, subject: str) -> WorkItem:
    """Read one work item; its descriptor stays raw.

    Raises:
        MalformedWorkItem: not msgpack, another protocol, or a field is missing or mistyped.
    """
    return _work(data, subject)


def decode_reply(data: bytes, *, subject: str = "the reply subject") -> Reply:
    """Read one reply.

    Raises:
        MalformedReply: not msgpack, another protocol, or a field is missing or mistyped.
    """
    return _reply(data, subject)


def decode_cancel(data: bytes) -> Cancel:
    """Read one cancellation.

    Raises:
        MalformedMessage: not msgpack, another protocol, or a field is missing or mistyped.
    """
    return _cancel(data, "the cancel subject")


def decode_frame(data: bytes, *, subject: str = "a channel") -> Frame:
    """Read one frame of a channel.

    Raises:
        MalformedMessage: not msgpack, another protocol, or a field is missing or mistyped.
    """
    return _frame(data, subject)


def decode_trace(data: bytes, *, subject: str = "the trace stream") -> TraceRecord:
    """Read one event of a traced request.

    Raises:
        MalformedMessage: not msgpack, another protocol, or a field is missing or mistyped.
    """
    return _trace(data, subject)


def decode_topic(data: bytes, *, subject: str = "a topic") -> TopicMessage:
    """Read one event of a topic; its payload stays encoded.

    Raises:
        MalformedMessage: not msgpack, another protocol, or a field is missing or mistyped.
    """
    return _topic(data, subject)


def decode_stored_run(data: bytes, *, subject: str = "the trace stream") -> StoredRun:
    """Read one stored request.

    Raises:
        MalformedMessage: not msgpack, another protocol, or a field is missing or mistyped.
    """
    return _stored(data, subject)


def to_json(message: msgspec.Struct) -> bytes:
    """A message as indented JSON, for people: the same array, bytes as base64, a raw descriptor decoded."""
    fields: list[Any] = list(msgspec.structs.astuple(message))
    if isinstance(message, WorkItem):
        fields[_DESCRIPTOR_FIELD] = decode_descriptor(message.descriptor, subject="a work item")
    return msgspec.json.format(msgspec.json.encode(fields), indent=2)


def from_json(data: bytes, kind: type[M]) -> M:
    """The message that `to_json` wrote.

    Raises:
        MalformedMessage: not JSON of this kind.
    """
    try:
        if kind is not WorkItem:
            return msgspec.json.decode(data, type=kind)
        fields = msgspec.json.decode(data, type=list[Any])
        descriptor = msgspec.convert(fields[_DESCRIPTOR_FIELD], RequestDescriptor)
        fields[_DESCRIPTOR_FIELD] = msgspec.Raw(encode(descriptor))
        return msgspec.msgpack.decode(encode(fields), type=kind)
    except (*_UNREADABLE, IndexError) as exc:
        raise _malformed(MalformedMessage, data, "JSON", exc) from exc


def _malformed(kind: type[MalformedMessage], data: object, subject: str, exc: Exception) -> MalformedMessage:
    size = len(bytes(data)) if isinstance(data, (bytes, msgspec.Raw)) else 0
    return kind(f"{size} bytes on {subject}: {exc}")
