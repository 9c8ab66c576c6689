"""The response as a handler builds it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Generic, TypeVar

import msgspec

from gati_core.errors import GatiError
from gati_core.wire import HeaderPairs

R = TypeVar("R")
_encode_json = msgspec.json.Encoder().encode
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]")
_OURS = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive", "x-request-id", "upgrade", "te"})
_JSON = ("content-type", "application/json")
_TEXT = ("content-type", "text/plain; charset=utf-8")
_BYTES = ("content-type", "application/octet-stream")


class ResponseAlreadySent(GatiError):
    """A second terminal call (`json`, `text`, `send`, `end`, `redirect`), or a change after the first."""

    code = "handler.response_already_sent"


class Response(Generic[R]):
    """Given to a handler as `res`. `status` and `header` chain; one terminal call ends it.

    A handler that makes no terminal call answers 204 with no body.
    """

    __slots__ = ("_body", "_headers", "_is_sent", "_status")

    def __init__(self) -> None:
        self._status = 0
        self._headers: HeaderPairs = []
        self._body = b""
        self._is_sent = False

    def status(self, code: int) -> Response[R]:
        """Set the status, 200 to 599."""
        self._must_be_open()
        if not 200 <= code <= 599:
            raise ValueError(f"status {code} is not between 200 and 599")
        self._status = code
        return self

    def header(self, name: str, value: str) -> Response[R]:
        """Add a header; a repeated name sends both.

        Raises:
            ValueError: the name or value cannot be sent, or the ingress sets this header itself.
        """
        self._must_be_open()
        lower = name.lower()
        if lower in _OURS:
            raise ValueError(f"header {lower!r} is set by the ingress")
        if _NAME.fullmatch(lower) is None:
            raise ValueError(f"{name!r} is not a header name")
        if _BAD_VALUE.search(value):
            raise ValueError(f"the value of header {lower!r} has characters that cannot be sent: {value!r}")
        self._headers.append((lower, value))
        return self

    def headers(self, headers: Mapping[str, str]) -> Response[R]:
        """Add several headers."""
        for name, value in headers.items():
            self.header(name, value)
        return self

    def json(self, value: R) -> None:
        """End with `value` as JSON (structs, dataclasses, dicts, lists, dates, UUIDs, decimals, …)."""
        self._end(_encode_json(value), _JSON)

    def text(self, text: str) -> None:
        """End with UTF-8 text."""
        self._end(text.encode(), _TEXT)

    def send(self, body: str | bytes) -> None:
        """End with text or bytes; set `content-type` before, for anything but text or octets."""
        if isinstance(body, str):
            self._end(body.encode(), _TEXT)
        else:
            self._end(bytes(body), _BYTES)

    def end(self) -> None:
        """End with no body: 204 unless a status was set."""
        self._must_be_open()
        self._status = self._status or 204
        self._is_sent = True

    def redirect(self, url: str, status: int = 302) -> None:
        """End by sending the client elsewhere (301, 302, 303, 307 or 308)."""
        if status not in (301, 302, 303, 307, 308):
            raise ValueError(f"status {status} is no redirect")
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

    def _end(self, body: bytes, content_type: tuple[str, str]) -> None:
        self._must_be_open()
        if not self._headers:
            self._headers = [content_type]
        elif not any(name == "content-type" for name, _ in self._headers):
            self._headers.append(content_type)
        self._status = self._status or 200
        self._body = body
        self._is_sent = True

    def _must_be_open(self) -> None:
        if self._is_sent:
            raise ResponseAlreadySent("the response was already sent")

    def parts(self) -> tuple[int, HeaderPairs, bytes]:
        """Status, headers and body; 204 when no terminal call was made."""
        return self._status or (200 if self._is_sent else 204), self._headers, self._body
