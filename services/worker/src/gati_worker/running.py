"""One request in a child, from its delivery to its settling, and what is counted about all of them."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import msgspec

from gati_core.fabric import Channel, DeliveryPort
from gati_core.lifecycle import HandlerRun
from gati_core.wire import Reply, WorkItem


class Answering(Protocol):
    """Who lets an answer begin: the executor."""

    def begin_answer(self, running: Running, reply: Reply, channel: Channel) -> None:
        """The head of a stream or the acceptance of a socket leaves: nobody else may run this now."""


class ExecutionStats(msgspec.Struct):
    """Plain counters, read by the announcements."""

    received: int = 0
    replied: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    redelivered: int = 0
    dead: int = 0
    fallbacks: int = 0
    """Requests handed to the client's own version, because a transformer failed."""
    abandoned: int = 0
    """Handlers that did not react to being cancelled; their tasks may still run."""


class Running:
    """One request in this process; also what its run and its canceller share (`Control`)."""

    __slots__ = (
        "began_at",
        "cancel_reason",
        "cancelled_at",
        "channel",
        "deadline_ms",
        "delivery",
        "executor",
        "has_begun",
        "is_forgotten",
        "is_once",
        "is_own_limit",
        "is_settling",
        "item",
        "leased_at",
        "lost_at",
        "own_deadline_ms",
        "run",
        "slot",
        "task",
    )

    def __init__(
        self,
        executor: Answering,
        delivery: DeliveryPort,
        item: WorkItem,
        own_deadline_ms: float,
        leased_at: float,
        slot: int,
    ) -> None:
        self.executor = executor
        self.delivery = delivery
        self.item = item
        self.own_deadline_ms = own_deadline_ms
        self.is_own_limit = own_deadline_ms < item.deadline_ms
        self.deadline_ms = own_deadline_ms if self.is_own_limit else float(item.deadline_ms)
        self.began_at = time.perf_counter()  # the loop's own time stands still within a turn, and counts milliseconds
        self.leased_at = leased_at
        self.slot = slot
        self.is_once = item.mode == "at_most_once"
        self.cancel_reason = ""
        self.cancelled_at = 0.0
        self.lost_at = 0.0
        self.has_begun = False
        self.is_settling = False
        self.is_forgotten = False
        self.channel: Channel | None = None
        self.run: HandlerRun | None = None
        self.task: asyncio.Task[None] | None = None

    def send_head(self, reply: Reply, channel: Channel) -> None:
        """See `Control`."""
        self.executor.begin_answer(self, reply, channel)
