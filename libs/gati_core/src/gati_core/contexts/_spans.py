"""Spans as `InProcessMetrics` keeps them: measured with the monotonic clock, always ended once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Literal, Protocol, Self

import msgspec

from gati_core.errors import MetricInvalid

Attribute = str | int | float | bool
SpanStatus = Literal["UNSET", "OK", "ERROR"]

MAX_ATTRIBUTES = 64
MAX_EXCEPTIONS = 8
MAX_CHARS = 1024


class Span(Protocol):
    """One measured stretch of work."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits that all spans of one trace share."""

    @property
    def span_id(self) -> str:
        """16 hexadecimal digits."""

    def set_attribute(self, name: str, value: Attribute) -> None:
        """Attach a fact; the last value of a name counts."""

    def record_exception(self, error: BaseException) -> None:
        """Attach type and message of an error; the status stays what it is."""

    def set_status(self, status: Literal["OK", "ERROR"], message: str = "") -> None:
        """Say how it went."""

    def end(self) -> None:
        """End it; a second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ExceptionRecord(msgspec.Struct, frozen=True):
    """An error that happened within a span."""

    type: str
    message: str


class SpanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A span that has ended."""

    name: str
    trace_id: str
    span_id: str
    parent_span_id: str
    """Empty for the first span of a trace."""
    start_ns: int
    """Unix time."""
    duration_ns: int
    status: SpanStatus
    status_message: str
    attributes: dict[str, Attribute]
    exceptions: list[ExceptionRecord]


_current: ContextVar[InProcessSpan | None] = ContextVar("gati_span", default=None)


def current_span() -> InProcessSpan | None:
    """The innermost span that this task has entered and not left."""
    return _current.get()


class InProcessSpan:
    """A `Span`; once it ends, `on_end` is given its record."""

    __slots__ = (
        "_attributes",
        "_began_ns",
        "_exceptions",
        "_is_ended",
        "_message",
        "_name",
        "_on_end",
        "_parent",
        "_start_ns",
        "_status",
        "_token",
        "span_id",
        "trace_id",
    )

    def __init__(
        self, name: str, attributes: Mapping[str, Attribute] | None, on_end: Callable[[SpanRecord], object]
    ) -> None:
        if not _is_name(name):
            raise MetricInvalid(f"a span's name must be a string of 1 to {MAX_CHARS} characters, not {name!r:.80}")
        parent = _current.get()
        self._name = name
        self._on_end = on_end
        self.trace_id: str = secrets.token_hex(16) if parent is None else parent.trace_id
        self.span_id: str = secrets.token_hex(8)
        self._parent = "" if parent is None else parent.span_id
        self._attributes: dict[str, Attribute] = {}
        self._exceptions: list[ExceptionRecord] = []
        self._status: SpanStatus = "UNSET"
        self._message = ""
        self._is_ended = False
        self._token: Token[InProcessSpan | None] | None = None
        for key, value in (attributes or {}).items():
            self.set_attribute(key, value)
        self._start_ns = time.time_ns()
        self._began_ns = time.monotonic_ns()

    def set_attribute(self, name: str, value: Attribute) -> None:
        """Attach a fact; the last value of a name counts."""
        if not _is_name(name) or not _is_value(value):
            raise MetricInvalid(f"span {self._name}: attribute {name!r:.80} must be text, a number or a bool")
        if name in self._attributes or len(self._attributes) < MAX_ATTRIBUTES:
            self._attributes[name] = value[:MAX_CHARS] if isinstance(value, str) else value

    def record_exception(self, error: BaseException) -> None:
        """Attach type and message of an error; the status stays what it is."""
        if len(self._exceptions) < MAX_EXCEPTIONS:
            self._exceptions.append(ExceptionRecord(type(error).__qualname__, _message(error)))

    def set_status(self, status: Literal["OK", "ERROR"], message: str = "") -> None:
        """Say how it went."""
        if status not in ("OK", "ERROR"):
            raise MetricInvalid(f"span {self._name}: status {status!r} is neither 'OK' nor 'ERROR'")
        self._status = status
        self._message = message[:MAX_CHARS]

    def end(self) -> None:
        """End it; a second call does nothing."""
        if self._is_ended:
            return
        self._is_ended = True
        self._on_end(
            SpanRecord(
                name=self._name,
                trace_id=self.trace_id,
                span_id=self.span_id,
                parent_span_id=self._parent,
                start_ns=self._start_ns,
                duration_ns=time.monotonic_ns() - self._began_ns,
                status=self._status,
                status_message=self._message,
                attributes=dict(self._attributes),
                exceptions=list(self._exceptions),
            )
        )

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            try:
                _current.reset(self._token)
            except ValueError:
                pass  # entered in another context, as in an async generator that was moved
            self._token = None
        if error is not None:
            self.record_exception(error)
            self.set_status("ERROR", _message(error))
        elif self._status == "UNSET":
            self.set_status("OK")
        self.end()


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 1 <= len(name) <= MAX_CHARS


def _is_value(value: object) -> bool:
    return isinstance(value, (str, int, float))


def _message(error: BaseException) -> str:
    try:
        return str(error)[:MAX_CHARS]
    except Exception:  # an error whose text fails must not keep its span open
        return ""
