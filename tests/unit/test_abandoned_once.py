"""A handler that is deaf to its cancellation, and comes back while its request is being settled without it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gati_core.app.versioning import PackageVersions
from gati_core.fabric.pull import Delivery
from gati_core.manifests import memory_store
from gati_core.timescape import memory_registry
from gati_core.wire import PROTOCOL, WorkItem, encode
from gati_worker import execution
from gati_worker.execution import Executor
from gati_worker.ledger import CrashLedger
from tests.helpers.handling import Desk, descriptor, shop

SLOTS = 4


class Consumer:
    """Counts what is freed and what is sent; consumer and connection at once."""

    def __init__(self) -> None:
        self.freed = 0
        self.sent: list[bytes] = []
        self.server_changed_ms = 0
        self._connection = self

    def _release(self) -> None:
        self.freed += 1

    def publish_or_hold(self, subject: bytes, data: bytes) -> None:
        self.sent.append(subject)

    def quicken(self) -> None:
        """The test calls the executor's ticks itself."""


class Undoing:
    """A handler that hears nothing until `gate`, with a compensation that takes until `may_end`."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.gate, self.began, self.may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(self, req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.compensate(self._undo)
        lctx.lifecycle.on_cleanup(lambda: self.ran.append("cleanup"))
        while not self.gate.is_set():
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                continue

    async def _undo(self) -> None:
        self.ran.append("undo begins")
        self.began.set()
        await self.may_end.wait()
        self.ran.append("undone")


def delivery(consumer: Consumer, handler: str) -> Delivery:
    """One request that has 200 ms."""
    request = descriptor()
    now = int(time.time() * 1000)
    item = WorkItem(
        PROTOCOL, request.request_id, "reply", now + 200, handler, "at_most_once", msgspec.Raw(encode(request)), {}, now
    )
    return Delivery(consumer, b"s", b"$JS.ACK.s.c.1.1.1.1.0", encode(item), None)  # type: ignore[arg-type]  # see above


async def test_its_return_does_not_conclude_the_request_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_ABANDON_AFTER_S", 0.05)
    monkeypatch.setattr(execution, "_CANCEL_AGAIN_S", 0.01)
    undoing, consumer = Undoing(), Consumer()
    app = shop(undoing.handler)
    fabric: Any = SimpleNamespace(
        connection=consumer,
        subjects=SimpleNamespace(is_reply=lambda subject: True),
        settings=SimpleNamespace(claim_check_bytes=1_000_000),
        bodies=None,
    )
    ledger = CrashLedger(tmp_path / "ledger", SLOTS)
    versions = PackageVersions(app, memory_registry(), memory_store())
    executor = Executor(app=app, pool="p", fabric=fabric, lifecycle=Desk().lifecycle, ledger=ledger, versions=versions)
    executor.on_delivery(delivery(consumer, next(iter(app.handlers))))

    async def ticks() -> None:
        while not undoing.began.is_set():
            executor.tick(asyncio.get_running_loop().time())
            await asyncio.sleep(0.01)

    await asyncio.wait_for(ticks(), 5)
    undoing.gate.set()
    for _ in range(10):  # as often as the handler's return needs to get round
        await asyncio.sleep(0)
    assert undoing.ran == ["undo begins"]
    assert consumer.freed == 0

    undoing.may_end.set()
    await asyncio.wait_for(executor.drain(grace_s=2), 5)
    await asyncio.sleep(0)

    assert undoing.ran == ["undo begins", "undone", "cleanup"]
    assert (consumer.freed, consumer.sent.count(b"reply")) == (1, 1)
    assert (executor.stats.abandoned, executor.stats.replied, executor.stats.cancelled) == (1, 1, 1)
    assert sorted(ledger._free) == list(range(SLOTS))
