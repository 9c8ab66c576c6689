"""Settings of the ingress; every process of one ingress has the same."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gati_ingress.head import VERSION_QUERY_NAMES


class IngressSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read once at start from `GATI_INGRESS_*`."""

    host: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` in a container."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    processes: Annotated[int, Meta(ge=1, le=64)] = 1
    """Processes that share the port."""
    max_in_flight: Annotated[int, Meta(ge=1, le=65_536)] = 1024
    """Requests waiting for an answer at once, per process; one more is answered 503 at once."""
    request_timeout_s: Annotated[float, Meta(gt=0, le=300)] = 10.0
    """The deadline of a request, counted from when its head was read; 504 when it passes."""
    max_body_bytes: Annotated[int, Meta(ge=0)] = 10 * 1024 * 1024
    """Larger bodies are answered 413."""
    max_head_bytes: Annotated[int, Meta(ge=256)] = 32 * 1024
    """Request line and headers together; more is answered 431."""
    max_headers: Annotated[int, Meta(ge=1)] = 100
    """Number of headers; more is answered 431."""
    head_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    """Seconds a client may take to send the head once it began."""
    body_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    """Seconds a client may take to send the body; 408 when it passes."""
    keep_alive_s: Annotated[int, Meta(ge=1)] = 75
    """Seconds an idle connection is kept."""
    backlog: Annotated[int, Meta(ge=1)] = 2048
    """Connections that the kernel queues before they are accepted."""
    drain_grace_s: Annotated[float, Meta(ge=0)] = 10.0
    """Seconds left to requests in flight once shutdown begins."""
    max_streams: Annotated[int, Meta(ge=1, le=65_536)] = 2048
    """Streamed answers open at once, per process; each may hold twice its window of 256 KiB."""
    stream_stall_s: Annotated[float, Meta(gt=0)] = 60.0
    """A client that reads nothing of a stream or socket for so many seconds is cut."""
    max_websockets: Annotated[int, Meta(ge=1, le=65_536)] = 10_000
    """WebSockets open or being opened at once, per process; one more handshake is answered 503."""
    ws_max_message_bytes: Annotated[int, Meta(ge=1, le=900_000)] = 256 * 1024
    """A socket whose client sends a larger message is closed with 1009."""
    ws_ping_interval_s: Annotated[float, Meta(gt=0)] = 20.0
    """Seconds between two pings to the client of a socket."""
    ws_ping_timeout_s: Annotated[float, Meta(gt=0)] = 20.0
    """Seconds that its pong may take."""
    version_query: str = ",".join(VERSION_QUERY_NAMES)
    """Parameters of a query that ask for a version, comma-separated, first before last; empty where handlers have
    parameters of these names themselves. Headers ask as well."""
    openapi_path: str = "/openapi.json"
    """Where the API's description is served; nowhere when empty."""
    docs_path: str = "/docs"
    """Where the page is that shows it; nowhere when empty."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    log_sample: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of requests that get a log line; those answered 500 and above always do."""
