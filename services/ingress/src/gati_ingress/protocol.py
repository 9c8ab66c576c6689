"""uvicorn's HTTP protocol with limits on the head, problem details for malformed requests, checked
WebSocket handshakes, and a word to the application when the client goes away.

The limits have to be here: an application only sees a request once its whole head is in memory.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gati_core.errors import GatiError, HeadersTooLarge, RequestError, RequestTimeout
from gati_core.ids import new_request_id
from gati_core.wire import problem_parts
from gati_ingress.handshake import check_handshake
from gati_ingress.settings import IngressSettings
from gati_ingress.socket_protocol import GuardedSocket


class _Refused(Exception):
    """Stops the parser; the reason is in `_refusal`."""


_LINGER_S = 2.0


class _HeadHolder:
    """A transport that keeps back a response's head until its body comes: one system call, not two.

    uvicorn writes them one after the other; measured at 8 % of an ingress's time. An application
    that wants its head to leave early sends an empty first part of the body.
    """

    __slots__ = ("_close", "_held", "_transport")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self._close = close
        self._held: bytes | None = b""  # nothing yet; None once the head has left

    def write(self, data: bytes) -> None:
        held = self._held
        if held is None or data.startswith(b"HTTP/1.1 100 "):
            self._transport.write(data)
        elif not held:
            self._held = data
        else:
            self._held = None
            self._transport.write(held + data if data else held)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        if self._held:
            self._transport.write(self._held)
            self._held = None
        self._close()


class GuardedProtocol(HttpToolsProtocol):
    """One client connection. Subclass it with `settings` bound: see `guarded_protocol`."""

    settings: IngressSettings
    count_refusal: Callable[[str], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_gone: Callable[[], None] | None = None
        """Set by the application while a request waits; called once if the client leaves."""
        self._head_bytes = 0
        self._is_head_open = False
        self._head_timer: TimerHandle | None = None
        self._refusal: GatiError | None = None
        self._linger_timer: TimerHandle | None = None
        self._max_head = self.settings.max_head_bytes
        self._max_headers = self.settings.max_headers

    def data_received(self, data: bytes) -> None:
        if self._linger_timer is not None:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._is_head_open and self._refusal is None and self.parser is not None:
            if self._head_bytes > self._max_head:
                self._refuse(HeadersTooLarge(f"the request head exceeds {self._max_head} bytes"))
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(self.settings.head_timeout_s, self._head_too_slow)

    def on_message_begin(self) -> None:
        self._is_head_open = True
        super().on_message_begin()
        self.scope["gati.connection"] = self  # type: ignore[typeddict-unknown-key]

    def on_headers_complete(self) -> None:
        self._is_head_open = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if len(self.headers) > self._max_headers:
            self._refusal = HeadersTooLarge(f"{len(self.headers)} headers exceed the limit of {self._max_headers}")
            raise _Refused
        if self._head_bytes > self._max_head:
            # What arrived may include the body: only now is it worth counting the head alone.
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._max_head:
                self._refusal = HeadersTooLarge(f"a request head of {size} bytes exceeds {self._max_head}")
                raise _Refused
        self._head_bytes = 0
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before and self.scope["method"] != "HEAD":  # there uvicorn writes a head and no body
            self.cycle.transport = _HeadHolder(self.transport, self._close)  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        self.scope["gati.is_whole"] = True  # type: ignore[typeddict-unknown-key]
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        gone, self.on_gone = self.on_gone, None
        super().connection_lost(exc)
        if gone is not None:
            gone()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or RequestError("the bytes received are no valid HTTP/1.1 request"))

    def _should_upgrade(self) -> bool:
        # Only a GET can be a handshake (RFC 6455, section 4.1); with others the offer is declined as below.
        return self.scope["method"] == "GET" and super()._should_upgrade()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over. uvicorn would write the head out again to have it parsed a second time,

        under the limits of another library. The head has been checked here: the other side gets the
        least that makes a handshake, and the application gets what the client sent.
        """
        cycle: RequestResponseCycle | None = self.cycle
        try:
            if cycle is not None and not cycle.response_complete:
                raise RequestError("a WebSocket handshake cannot follow a request that is not answered yet")
            key = check_handshake(self.headers, self.scope["http_version"])
            url = httptools.parse_url(self.url)
            raw_path: bytes = url.path
            raw_path.decode("ascii")
        except (httptools.HttpParserInvalidURLError, AttributeError, UnicodeDecodeError):
            self._refuse(RequestError("the target of the WebSocket handshake is not valid"))
            return
        except GatiError as exc:
            self._refuse(exc)
            return
        self.connections.discard(self)
        socket: GuardedSocket = self.ws_protocol_class(  # type: ignore[call-arg, misc, assignment]
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        socket.connection_made(self.transport)
        socket.begin(key, raw_path, url.query or b"", self.headers)
        self.transport.set_protocol(socket)

    def cut(self, *, at_once: bool) -> None:
        """Close without completing the answer, so that the client can tell.

        Args:
            at_once: without what is still to be written; else it has two seconds to leave.
        """
        if self.cycle is not None:
            self.cycle.disconnected = True
        if at_once or self.scope["http_version"] == "1.0":  # there, only a reset tells a cut from an end
            self.transport.abort()
            return
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(_LINGER_S, self.transport.abort)

    def set_unframed(self, scope: Any, left: int) -> None:
        """Have the answer to this request end with the connection, as HTTP/1.0 has it.

        Args:
            left: bytes that uvicorn is to expect: more than will come, and 0 before the last part.
        """
        if self.cycle.scope is scope:
            self.cycle.chunked_encoding = False
            self.cycle.expected_content_length = left

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade is an offer: declined by answering the request as plain HTTP, no news for the log."""

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self._is_head_open and not self.transport.is_closing():
            self._refuse(RequestTimeout(f"the request head was not complete after {self.settings.head_timeout_s:g} s"))

    def _refuse(self, error: GatiError) -> None:
        self._refusal = error
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever uvicorn's types say
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()  # in the middle of another answer: nothing sensible can be sent
            return
        self.count_refusal(error.code)
        request_id = new_request_id()
        status, headers, body = problem_parts(error, request_id)
        lines = [STATUS_LINE[status]]
        headers += [("x-request-id", request_id), ("content-length", str(len(body))), ("connection", "close")]
        lines += [f"{name}: {value}\r\n".encode("latin-1") for name, value in headers]
        self.transport.write(b"".join([*lines, b"\r\n", body]))
        self._linger()

    def _close(self) -> None:
        if "gati.is_whole" in self.scope:
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Close so that the answer arrives: our half now, the other once the client has stopped sending.

        Closed at once, what is still on its way to us would be answered with a reset, and most clients
        then report that instead of the answer, which they have not read yet (RFC 9112, section 9.6).
        """
        if self._linger_timer is None and not self.transport.is_closing():
            self._linger_timer = self.loop.call_later(_LINGER_S, self.transport.close)
            self.transport.write_eof()
            self.flow.resume_reading()  # to drop it: a full buffer would keep the client from reading


def guarded_protocol(settings: IngressSettings, count_refusal: Callable[[str], None]) -> type[GuardedProtocol]:
    """The protocol class with these settings, as uvicorn wants it: a class, not an instance.

    Args:
        count_refusal: called with the error code of every request that ends before the application.
    """
    bound = {"settings": settings, "count_refusal": staticmethod(count_refusal)}
    return type("GuardedProtocol", (GuardedProtocol,), bound)
