"""What the runs of one process share, and what a run and its canceller tell each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from gati_core.contexts import GlobalContext, LocalTopics
from gati_core.errors import GatiError
from gati_core.fabric import Channel, ChannelPort
from gati_core.lifecycle.events import Observers
from gati_core.lifecycle.threads import HandlerThreads
from gati_core.observe import Durations
from gati_core.wire import Reply

_HOP_BOUNDS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1)

Alert = Callable[[str, str, BaseException], Any]
"""Called with request id, action id and error when a compensating action failed."""


class Control(Protocol):
    """What the run and whoever cancels it tell each other."""

    cancel_reason: str
    """Why the task was cancelled: `deadline`, `client_gone`, `leaving`, …; empty when it was not."""
    is_settling: bool
    """Set by the run once the handler has ended: cancelling it now would only cut its settling."""
    is_own_limit: bool
    """Whether the deadline is the handler's own limit, and not the client's."""

    def send_head(self, reply: Reply, channel: Channel) -> None:
        """The answer begins: publish its head. From here on it cannot be repeated elsewhere.

        Raises:
            BrokerUnavailable: the head could not be sent; nothing has begun.
        """


class QuietControl:
    """A `Control` for runs that nobody cancels from outside and that do not stream."""

    def __init__(self) -> None:
        self.cancel_reason = ""
        self.is_settling = False
        self.is_own_limit = False

    def send_head(self, reply: Reply, channel: Channel) -> None:
        """There is nobody to send it to."""
        raise GatiError("this run cannot stream")


class HopCounts(msgspec.Struct):
    """What transformers from one version to its neighbour have done in one process."""

    done: int = 0
    failed: int = 0
    """These raised, took too long, returned nonsense, or were cut off by the end of the request."""
    durations: Durations = msgspec.field(default_factory=lambda: Durations(_HOP_BOUNDS_S))


class Lifecycle:
    """What the runs of one process share."""

    __slots__ = (
        "alerts",
        "channels",
        "clock",
        "deaf",
        "detached",
        "gctx",
        "instance_id",
        "observers",
        "odd_returns",
        "region",
        "threads",
        "topics",
        "transforms",
        "version",
    )

    def __init__(
        self,
        *,
        gctx: GlobalContext,
        threads: HandlerThreads,
        version: str = "",
        observers: Observers | None = None,
        channels: ChannelPort | None = None,
        topics: Callable[[str], LocalTopics] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.gctx = gctx
        self.threads = threads
        self.version = version
        self.observers = observers or Observers()
        self.channels = channels
        self.topics = topics
        self.clock = clock
        self.instance_id = gctx.instance.id
        self.region = gctx.instance.region
        self.alerts: list[Alert] = []
        self.deaf: set[asyncio.Task[Any]] = set()
        """Tasks of settled requests that run on although they were cancelled."""
        self.detached: set[asyncio.Task[None]] = set()
        self.transforms: dict[tuple[str, str], HopCounts] = {}
        """By the versions from and to which a transformer leads."""
        self.odd_returns: set[str] = set()
