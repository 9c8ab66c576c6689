"""Messages as they lie in a stream, for the tools and movers that work on them by number."""

from __future__ import annotations

from collections.abc import Mapping
from email.header import decode_header
from typing import Any

import msgspec
import nats.errors
import nats.js.errors

from gati_core.errors import BrokerUnavailable
from gati_core.fabric.connection import Connection


class StoredMessage(msgspec.Struct, frozen=True):
    """One message of a stream."""

    sequence: int
    subject: str
    data: bytes
    headers: dict[str, str]


async def read_stored(connection: Connection, stream: str, sequence: int) -> StoredMessage | None:
    """A message by its number, or None when it is gone.

    Raises:
        BrokerUnavailable: no answer.
    """
    try:
        message = await connection.jetstream().get_msg(stream, seq=sequence)
    except nats.js.errors.NotFoundError:
        return None
    except (nats.errors.Error, OSError, TimeoutError) as exc:
        raise BrokerUnavailable(f"reading message {sequence} of {stream}: {exc!r}") from exc
    return StoredMessage(sequence, message.subject or "", message.data or b"", text_headers(message.headers))


def text_headers(headers: Mapping[str, Any] | None) -> dict[str, str]:
    """Headers of a message read by nats-py, all of them text.

    nats-py reads headers as if they were mail: a value with UTF-8 in it comes back as a `Header`
    object, in spite of its types.
    """
    return {name: value if isinstance(value, str) else _decoded(value) for name, value in (headers or {}).items()}


def _decoded(value: Any) -> str:
    parts = [part.encode() if isinstance(part, str) else part for part, _ in decode_header(value)]
    return b"".join(parts).decode(errors="replace")


async def delete_stored(connection: Connection, stream: str, sequence: int) -> None:
    """Delete a message by its number; no error when it is gone already.

    Raises:
        BrokerUnavailable: no answer.
    """
    try:
        await connection.jetstream().delete_msg(stream, sequence)
    except (nats.js.errors.NotFoundError, nats.js.errors.APIError):
        return
    except (nats.errors.Error, OSError, TimeoutError) as exc:
        raise BrokerUnavailable(f"deleting message {sequence} of {stream}: {exc!r}") from exc
