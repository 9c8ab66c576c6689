"""The response as a handler builds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import msgspec

from gati_core.errors import GatiError
from gati_core.wire import HeaderPairs, header_pair

if TYPE_CHECKING:
    from gati_core.lifecycle.stream import BodyStream

R = TypeVar("R")
BodyKind = Literal["none", "json", "text", "bytes", "stream"]
_encode_json = msgspec.json.Encoder().encode
_JSON = ("content-type", "application/json")
_TEXT = ("content-type", "text/plain; charset=utf-8")
_BYTES = ("content-type", "application/octet-stream")


class ResponseAlreadySent(GatiError):
    """A second terminal call (`json`, `text`, `send`, `stream`, `end`, `redirect`), or a change after the first."""

    code = "handler.response_already_sent"


class Response(Generic[R]):
    """Given to a handler as `res`. `status` and `header` chain; one terminal call ends it.

    A handler that makes no terminal call answers 204 with no body.
    """

    __slots__ = ("_body", "_closed", "_headers", "_is_sent", "_kind", "_late_headers", "_open_stream", "_status")

    def __init__(self, open_stream: Callable[[], BodyStream] | None = None) -> None:
        self._status = 0
        self._headers: HeaderPairs = []
        self._body = b""
        self._kind: BodyKind = "none"
        self._is_sent = False
        self._closed = ""
        self._late_headers = False
        self._open_stream = open_stream

    def status(self, code: int) -> Response[R]:
        """Set the status, 200 to 599."""
        self._must_be_open()
        given: Any = code  # whatever its annotation promises
        if not isinstance(given, int) or not 200 <= code <= 599:
            raise ValueError(f"status {code} is not between 200 and 599")
        self._status = code
        return self

    def header(self, name: str, value: str) -> Response[R]:
        """Add a header; a repeated name sends both. After hooks may still add some, except to a stream,
        whose headers have left: there it does nothing.

        Raises:
            ValueError: the name or value cannot be sent, or the ingress sets this header itself.
        """
        if not self._late_headers or self._closed:
            self._must_be_open()
        pair = header_pair(name, value)
        if not (self._late_headers and self._kind == "stream"):  # whose head has left with its first part
            self._headers.append(pair)
        return self

    def headers(self, headers: Mapping[str, str]) -> Response[R]:
        """Add several headers."""
        for name, value in headers.items():
            self.header(name, value)
        return self

    def json(self, value: R) -> None:
        """End with `value` as JSON (structs, dataclasses, dicts, lists, dates, UUIDs, decimals, …)."""
        self._end(_encode_json(value), _JSON, "json")

    def text(self, text: str) -> None:
        """End with UTF-8 text."""
        self._end(text.encode(), _TEXT, "text")

    def send(self, body: str | bytes) -> None:
        """End with text or bytes; set `content-type` before, for anything but text or octets."""
        if isinstance(body, str):
            self._end(body.encode(), _TEXT, "text")
        else:
            self._end(body if type(body) is bytes else bytes(memoryview(body)), _BYTES, "bytes")

    def stream(self, *, content_type: str = "") -> BodyStream:
        """Answer in parts: `async with res.stream() as stream: await stream.write(...)`.

        Status and headers as set so far; the content type is `application/octet-stream` unless said
        otherwise. Writing waits for a slow client, so memory stays bounded. A plain `def` handler
        reaches the stream with `anyio.from_thread.run(stream.write, data)`.

        Raises:
            ResponseAlreadySent: there was a terminal call before.
            GatiError: this response cannot be streamed (no fabric, or the handler has failed).
        """
        self._must_be_open()
        if self._open_stream is None:
            raise GatiError("this response cannot be streamed")
        if content_type:
            self.header("content-type", content_type)
        self._end(b"", _BYTES, "stream")
        return self._open_stream()

    def end(self) -> None:
        """End with no body: 204 unless a status was set."""
        self._must_be_open()
        self._status = self._status or 204
        self._is_sent = True

    def redirect(self, url: str, status: int = 302) -> None:
        """End by sending the client elsewhere (301, 302, 303, 307 or 308)."""
        if status not in (301, 302, 303, 307, 308):
            raise ValueError(f"status {status} is no redirect")
        self._must_be_open()
        self.header("location", url)
        self._status = status
        self._is_sent = True

    def is_sent(self) -> bool:
        """Whether a terminal call was made."""
        return self._is_sent

    @property
    def headers_sent(self) -> bool:
        """The same as `is_sent()`: status and headers leave with the body."""
        return self._is_sent

    def _end(self, body: bytes, content_type: tuple[str, str], kind: BodyKind) -> None:
        self._must_be_open()
        if not self._headers:
            self._headers = [content_type]
        elif not any(name == "content-type" for name, _ in self._headers):
            self._headers.append(content_type)
        self._status = self._status or 200
        self._body = body
        self._kind = kind
        self._is_sent = True

    def _must_be_open(self) -> None:
        if self._closed:
            raise ResponseAlreadySent(self._closed)
        if self._is_sent:
            raise ResponseAlreadySent("the response was already sent")

    # -- for the lifecycle ----------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """From now on every change raises, with this reason."""
        self._closed = reason
        self._open_stream = None

    def added_headers(self) -> HeaderPairs:
        """What was added to an answer that was not given; not its content type."""
        return [pair for pair in self._headers if pair[0] != "content-type"]

    def discard(self) -> None:
        """Forget the terminal call that was made."""
        self._is_sent = False

    def allow_late_headers(self) -> None:
        """Let after hooks add headers to an answer that has not left yet."""
        self._late_headers = True

    def checkable(self) -> tuple[int, BodyKind, bytes]:
        """Status, kind and bytes of the body, for validation."""
        return self._status or 204, self._kind, self._body

    def replace_json(self, body: bytes) -> None:
        """Another body in the place of the one that was given."""
        self._body = body

    def parts(self) -> tuple[int, HeaderPairs, bytes]:
        """Status, headers and body; 204 when no terminal call was made."""
        return self._status or (200 if self._is_sent else 204), self._headers, self._body
