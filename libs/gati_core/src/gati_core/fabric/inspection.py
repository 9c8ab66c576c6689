"""Looking at what lies on the broker, for tools: nothing here creates or changes anything."""

from __future__ import annotations

from enum import Enum

import msgspec
import nats.errors
import nats.js.errors
from nats.js.api import ConsumerInfo

from gati_core.errors import BrokerUnavailable, TopologyError
from gati_core.fabric.connection import Connection
from gati_core.fabric.kv import KvView

_STREAM_NOT_FOUND = 10059


class ConsumerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One consumer and its counters."""

    name: str
    pending: int
    """Messages not handed over yet."""
    in_flight: int
    """Handed over and not settled."""
    redelivered: int
    clients_waiting: int
    """Pull requests that wait for a message: somebody listens."""


class StreamReport(msgspec.Struct, frozen=True, kw_only=True):
    """One stream, its limits and its consumers. A limit of 0 means none."""

    name: str
    messages: int
    bytes: int
    max_messages: int
    max_messages_per_subject: int
    discard: str
    retention: str
    replicas: int
    consumers: list[ConsumerReport]


async def jetstream_error(connection: Connection) -> str:
    """Why JetStream cannot be used; empty when it can."""
    try:
        await connection.jetstream().account_info()
    except (nats.errors.Error, OSError, TimeoutError) as exc:
        return str(exc) or repr(exc)
    return ""


async def inspect_stream(connection: Connection, stream: str) -> StreamReport | None:
    """A stream with its consumers, or None when there is none of this name.

    Raises:
        BrokerUnavailable: no answer.
    """
    js = connection.jetstream()
    consumers: list[ConsumerInfo] = []
    try:
        info = await js.stream_info(stream)
        while page := await js.consumers_info(stream, offset=len(consumers)):
            consumers += page
            if len(consumers) >= info.state.consumer_count:
                break
    except nats.js.errors.NotFoundError:
        return None
    except (nats.errors.Error, OSError, TimeoutError) as exc:
        raise BrokerUnavailable(f"reading stream {stream}: {str(exc) or repr(exc)}") from exc
    config = info.config
    return StreamReport(
        name=stream,
        messages=info.state.messages,
        bytes=info.state.bytes,
        max_messages=max(0, config.max_msgs or 0),
        max_messages_per_subject=max(0, config.max_msgs_per_subject or 0),
        discard=_text(config.discard),
        retention=_text(config.retention),
        replicas=config.num_replicas or 1,
        consumers=[
            ConsumerReport(
                name=each.name or "",
                pending=each.num_pending or 0,
                in_flight=each.num_ack_pending or 0,
                redelivered=each.num_redelivered or 0,
                clients_waiting=each.num_waiting or 0,
            )
            for each in consumers
        ],
    )


async def read_subject(connection: Connection, stream: str, subject: str, *, limit: int) -> list[bytes]:
    """The payloads of the oldest `limit` messages on one subject of a stream, in their order.

    One round trip for each: for tools, not for requests.

    Raises:
        TopologyError: there is no such stream.
        BrokerUnavailable: no answer.
    """
    js = connection.jetstream()
    found: list[bytes] = []
    sequence = 1
    try:
        while len(found) < limit:
            message = await js.get_msg(stream, seq=sequence, subject=subject, next=True)
            found.append(message.data or b"")
            sequence = (message.seq or sequence) + 1
    except nats.js.errors.NotFoundError as exc:
        if exc.err_code == _STREAM_NOT_FOUND:
            raise TopologyError(f"stream {stream} does not exist") from exc
    except (nats.errors.Error, OSError, TimeoutError) as exc:
        raise BrokerUnavailable(f"reading {subject} of stream {stream}: {str(exc) or repr(exc)}") from exc
    return found


async def read_bucket(connection: Connection, bucket: str, *, within_s: float = 3.0) -> dict[str, bytes]:
    """All keys of a key-value bucket with their values.

    Raises:
        TopologyError: there is no such bucket.
        BrokerUnavailable: no answer.
    """
    try:
        await connection.jetstream().stream_info(f"KV_{bucket}")
    except nats.js.errors.NotFoundError as exc:
        raise TopologyError(f"bucket {bucket} does not exist") from exc
    except (nats.errors.Error, OSError, TimeoutError) as exc:
        raise BrokerUnavailable(f"reading bucket {bucket}: {str(exc) or repr(exc)}") from exc
    view = KvView(connection, bucket)
    try:
        await view.start(within_s=within_s)
        return {entry.key: entry.value for entry in view.entries()}
    finally:
        await view.aclose()


def _text(value: object) -> str:
    """A policy's name: an enumeration when we set it, plain text when the server told it."""
    return str(value.value) if isinstance(value, Enum) else str(value or "")
