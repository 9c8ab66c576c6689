"""Facts about one request, as its local context shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from gati_core.contexts._local import LocalContext


class ClientInfo(msgspec.Struct, frozen=True):
    """Who sent the request, as far as the network tells."""

    ip: str
    user_agent: str
    region: str


class References(msgspec.Struct):
    """Ids of what the request is about: references, never the data. Hooks may fill them in."""

    session_id: str | None = None
    user_id: str | None = None
    tenant_id: str | None = None


class VersionInfo(msgspec.Struct, frozen=True):
    """Which version of the handler runs, and how it was chosen."""

    requested: str
    """The client's preference, verbatim; empty for the newest."""
    resolved: str
    """The version that was chosen."""
    handler_version: str
    """What runs: the TSV, or the package's version where there is none."""
    source: str
    """What decided: `query`, `header`, `tag`, `timestamp`, `latest`; empty where the handler has no versions."""
    chain_length: int = 0
    """Transformers between the two."""
    transform_ms: float = 0.0


class TransformerChain(Protocol):
    """The way from the client's version to the one that runs."""

    @property
    def resolved(self) -> str:
        """The client's version."""

    @property
    def length(self) -> int:
        """How many transformers there are on it."""

    @property
    def spent_s(self) -> float:
        """Seconds that they took so far."""


class RequestMeta:
    """Facts about the request, as `lctx.meta`; read-only."""

    __slots__ = ("_lctx",)

    def __init__(self, lctx: LocalContext) -> None:
        self._lctx = lctx

    @property
    def request_id(self) -> str:
        """The id that the ingress gave it."""
        return self._lctx._descriptor.request_id

    @property
    def method(self) -> str:
        """`GET`, `POST`, …, or `WEBSOCKET`."""
        return self._lctx._descriptor.method

    @property
    def path(self) -> str:
        """Percent-encoded, without the query."""
        return self._lctx._descriptor.path

    @property
    def version(self) -> str:
        """The version that runs."""
        return self._lctx._version

    @property
    def flags(self) -> tuple[str, ...]:
        """What `x-gati-flags` held, in lower case."""
        return tuple(self._lctx._descriptor.flags)

    @property
    def received_ms(self) -> int:
        """Unix milliseconds at which the ingress accepted it."""
        return self._lctx._descriptor.received_ms

    @property
    def timestamp(self) -> int:
        """The same as `received_ms`."""
        return self._lctx._descriptor.received_ms

    @property
    def start_time(self) -> int:
        """Unix milliseconds at which this worker began with it."""
        return self._lctx._started_ms

    @property
    def timeout(self) -> int:
        """Milliseconds from that start to the deadline."""
        return max(0, self._lctx.deadline_ms - self._lctx._started_ms)

    @property
    def attempt(self) -> int:
        """1, or more when an earlier attempt did not finish (at-least-once handlers only)."""
        return self._lctx._attempt

    @property
    def instance_id(self) -> str:
        """The process that runs it."""
        return self._lctx._instance_id

    @property
    def region(self) -> str:
        """Where that process runs; empty when nobody said."""
        return self._lctx._region

    @property
    def phase(self) -> str:
        """Where the request is now."""
        return self._lctx.phase
