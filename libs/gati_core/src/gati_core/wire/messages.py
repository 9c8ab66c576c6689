"""What travels: request descriptor, work item, reply, cancellation.

All are msgpack arrays, protocol version first. Fields are only ever appended and every appended
field has a default, so that processes one version apart understand each other: a reader ignores
extra trailing elements and fills in missing ones (F20). `tests/unit/test_golden_bytes.py` keeps the
format from drifting unseen.

The order of a descriptor's fields is part of the design: what a router reads comes first, so that
`RoutingView` can decode a prefix and skip headers and body.
"""

from __future__ import annotations

from typing import Literal

import msgspec

PROTOCOL = 1
"""Version of the wire format. Raised only by a change that old readers must refuse."""

WEBSOCKET = "WEBSOCKET"
"""Stands where a method stands, in descriptors, manifests and routes of WebSocket handlers."""

DeliveryMode = Literal["at_least_once", "at_most_once"]
HeaderPairs = list[tuple[str, str]]
"""Lower-case name and value, in the order received; a repeated header is repeated here."""


class Principal(msgspec.Struct, array_like=True, gc=False):
    """Who calls, as the ingress authenticated it."""

    subject: str
    roles: list[str] = []
    scheme: str = ""


class RequestDescriptor(msgspec.Struct, array_like=True, gc=False):
    """One HTTP request, as the ingress publishes it. Times are Unix milliseconds."""

    protocol: int
    request_id: str
    reply_to: str
    """Subject the answer goes to."""
    deadline_ms: int
    received_ms: int
    method: str
    path: str
    """Percent-encoded, without the query string."""
    priority: int = 5
    version: str = ""
    """The client's version preference, verbatim; after `?` where it came in the query."""
    principal: Principal | None = None
    # -- above: the part that routers read; below: the part that only workers read --
    query: str = ""
    headers: HeaderPairs = []
    body: bytes = b""
    body_ticket: str = ""
    """Name of the object that holds the body, when it is too large for a message."""
    client_ip: str = ""
    traceparent: str = ""
    flags: list[str] = []
    idempotency_key: str = ""


class RoutingView(msgspec.Struct, array_like=True, gc=False):
    """The prefix of a `RequestDescriptor` that routing needs; must mirror its first fields."""

    protocol: int
    request_id: str
    reply_to: str
    deadline_ms: int
    received_ms: int
    method: str
    path: str
    priority: int = 5
    version: str = ""
    principal: Principal | None = None


class WorkItem(msgspec.Struct, array_like=True, gc=False):
    """One request on its way to one handler.

    The reply subject and the deadline are repeated from the descriptor so that a supervisor or a
    dead-letter tool can answer without decoding it.
    """

    protocol: int
    request_id: str
    reply_to: str
    deadline_ms: int
    handler: str
    """The handler's token: the function's name unless it was registered under another."""
    mode: DeliveryMode
    descriptor: msgspec.Raw
    """The `RequestDescriptor`, byte for byte as the ingress encoded it."""
    params: dict[str, str] = {}
    """Decoded path parameters."""
    routed_ms: int = 0
    tsv: str = ""
    """The version that runs; empty means the pool's only one."""
    manifest_hash: str = ""
    version_headers: HeaderPairs = []
    """What the answer says of its version; the first names it."""
    source: str = ""
    """What decided on the version: `query`, `header`, `tag`, `timestamp`, `latest`; empty where there are none."""
    hops: list[str] = []
    """Versions from the one that the client gets to the one that runs, both included, when transformers lead there."""
    fallback: str = ""
    """With `hops`: the subject on which the client's own version takes work, while it lives."""


class ReplyError(msgspec.Struct, array_like=True, gc=False):
    """Why a reply is not the handler's own answer; the ingress counts by `code`."""

    code: str
    message: str


class Timing(msgspec.Struct, array_like=True, gc=False):
    """Unix milliseconds at which each stage was reached; 0 where it was not."""

    received_ms: int = 0
    routed_ms: int = 0
    started_ms: int = 0
    finished_ms: int = 0


class Reply(msgspec.Struct, array_like=True, gc=False):
    """The one answer to a request."""

    protocol: int
    request_id: str
    status: int
    headers: HeaderPairs = []
    body: bytes = b""
    body_ticket: str = ""
    timing: Timing | None = None
    more: bool = False
    """This is only the head: frames follow on the request's own reply subject (ADR-0010)."""
    error: ReplyError | None = None
    route: str = ""
    """The route's pattern (`/orders/{id}`), for metrics; empty when none matched."""
    channel: str = ""
    """With `more`: the subject on which the worker listens for this request's frames."""


HEAD_ONLY = "head_only"
"""Reason of a `Cancel` by an ingress that has what it needs: the head of a stream that was asked for by HEAD."""


class Cancel(msgspec.Struct, array_like=True, gc=False):
    """Nobody waits for this request any more."""

    protocol: int
    request_id: str
    reason: str
    """`deadline`, `client_gone`, …; or `HEAD_ONLY`, which is no failure."""
    deadline_ms: int
    """Until when the cancellation must be remembered."""


CHANNEL_WINDOW_FRAMES = 64
"""Frames that a sender may have unacknowledged."""
CHANNEL_WINDOW_BYTES = 256 * 1024
"""Bytes that a sender may have unacknowledged; a single frame may always go."""
CHANNEL_ACK_FRAMES = 16
"""A receiver acknowledges after this many frames consumed …"""
CHANNEL_ACK_BYTES = 64 * 1024
"""… or this many bytes."""
CHANNEL_FRAME_BYTES = 64 * 1024
"""The most that one frame carries of a streamed body."""
CHANNEL_PROBE_S = 5.0
"""An ingress says this often on every open channel that it is there."""
CHANNEL_SILENCE_S = 20.0
"""A worker that hears nothing for this long on a channel takes the client for gone."""

FrameKind = Literal["part", "end", "abort", "text", "binary", "close", "ack", "probe"]
"""`part`, `end`, `abort`: a streamed body. `text`, `binary`, `close`: a socket. `ack`, `probe`: both."""


class Frame(msgspec.Struct, array_like=True, gc=False):
    """One message of an open channel, in either direction (ADR-0010)."""

    protocol: int
    request_id: str
    seq: int
    """Counts the sender's frames from 1; of an `ack`, the last frame consumed; of a `probe`, the last frame sent."""
    kind: FrameKind
    data: bytes = b""
    """A part of the body, or one whole socket message; text as UTF-8."""
    code: int = 0
    """Of `close`: the close code (RFC 6455); of `abort`: the status that would have been sent."""
    text: str = ""
    """Of `close` and `abort`: the reason."""


class TraceRecord(msgspec.Struct, array_like=True, gc=False):
    """One event of one traced request, as kept in `{ns}_TRACE`."""

    protocol: int
    request_id: str
    source: str
    """`ingress`, `router` or `worker`."""
    instance: str
    seq: int
    """Counts the source's events of this request from 1."""
    at_us: int
    """Unix microseconds."""
    event: str
    """`hook:start`, `handler:end`, `request:cancelled`, …"""
    stage: str = ""
    """Which hook, action or handler; empty for the request as a whole."""
    duration_us: int = -1
    error: str = ""
    metadata: dict[str, str | int | float | bool] = {}


class StoredRun(msgspec.Struct, array_like=True, gc=False):
    """One request as a worker ran it, complete enough to look at it again or to run it again.

    Kept beside its trace for requests with the flag `snapshot`, where the worker's settings allow it.
    """

    protocol: int
    request_id: str
    handler: str
    version: str
    instance: str
    at_ms: int
    """Unix milliseconds at which it ended."""
    status: int
    """What it answered; 0 when nobody waited for an answer."""
    descriptor: RequestDescriptor
    """As received, with the values of credential headers left out."""
    params: dict[str, str] = {}
    snapshot: bytes = b""
    """The local context at the end, as `gati_core.contexts.to_bytes` wrote it; empty when it could not be kept."""
    events: list[TraceRecord] = []
    """What the lifecycle did, in order."""


class TopicMessage(msgspec.Struct, array_like=True, gc=False):
    """One event on a topic, global or of one request."""

    protocol: int
    topic: str
    """The topic's name, or the type of a request's event."""
    published_ms: int
    """Unix milliseconds."""
    publisher: str
    """Instance id of the process that published."""
    request_id: str = ""
    """Whose event it is; empty on a global topic."""
    payload: bytes = b""
    """The value, as msgpack of its own: only who reads it knows its type."""
