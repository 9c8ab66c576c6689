"""The local context: state of one request, private to it, gone when it ends."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import structlog

_log = structlog.get_logger("gati.handler")


class RequestMeta(msgspec.Struct, frozen=True, gc=False):
    """Facts about the request that handlers may read."""

    request_id: str
    method: str
    path: str
    version: str
    flags: tuple[str, ...]
    received_ms: int
    """Unix time at which the ingress accepted it."""
    attempt: int
    """1, or more when an earlier attempt did not finish (at-least-once handlers only)."""


class LocalContext:
    """Given to a handler as `lctx`."""

    __slots__ = ("_state", "client_ip", "deadline_ms", "meta", "traceparent")

    def __init__(self, meta: RequestMeta, *, deadline_ms: int, client_ip: str = "", traceparent: str = "") -> None:
        self.meta = meta
        self.deadline_ms = deadline_ms
        self.client_ip = client_ip
        self.traceparent = traceparent
        self._state: dict[str, Any] | None = None

    @property
    def request_id(self) -> str:
        """The id that the ingress gave this request; in every log line and error about it."""
        return self.meta.request_id

    def remaining_s(self) -> float:
        """Seconds until the deadline; 0 when it has passed."""
        return max(0.0, self.deadline_ms / 1000 - time.time())

    def get(self, key: str, default: Any = None) -> Any:
        """What `set` stored under `key` during this request, else `default`."""
        return default if self._state is None else self._state.get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Keep `value` until the request ends; no other request sees it."""
        if self._state is None:
            self._state = {}
        self._state[key] = value

    def delete(self, key: str) -> None:
        """Forget `key`; no error when it is not there."""
        if self._state is not None:
            self._state.pop(key, None)

    def clean(self) -> None:
        """Forget everything that was set."""
        self._state = None

    def log(self, message: str, level: str = "info", **fields: Any) -> None:
        """Write one structured line that carries the request id."""
        getattr(_log, level)(message, request_id=self.meta.request_id, **fields)
