"""Versions that sleep: no process runs, their place among the workers is kept, and work wakes them.

A version that sleeps is announced by its supervisor, so that routers go on sending it work, which waits in the
stream. Whoever sends work also says so on a subject of its own. That may get lost, or come a moment too early, so
the supervisor looks at the stream as well.
"""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from gati_core.errors import GatiError
from gati_core.fabric import Fabric, KvBucket, waiting_work
from gati_core.ids import new_instance_id
from gati_core.manifests import WorkerAnnouncement, parse_announcement
from gati_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)


class Bells:
    """Hears which pools are to be woken."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._bells: dict[str, asyncio.Event] = {}

    async def listen(self) -> None:
        """Subscribe; the connection keeps the subscription over reconnects."""
        await self._fabric.connection.subscribe(self._fabric.subjects.wake_any, self._on_wake)

    def bell(self, pool: str) -> asyncio.Event:
        """What is set when there is work for a pool."""
        return self._bells.setdefault(pool, asyncio.Event())

    def ring(self, pool: str) -> None:
        """Wake a pool, if it sleeps."""
        bell = self._bells.get(pool)
        if bell is not None:
            bell.set()

    def forget(self, pool: str) -> None:
        """Nobody waits for it any more."""
        self._bells.pop(pool, None)

    def _on_wake(self, subject: bytes, _reply: bytes, _data: bytes, _headers: bytes | None) -> None:
        self.ring(self._fabric.subjects.pool_of(subject.decode(errors="replace")))


class Sleeper:
    """The place of one pool that sleeps. `announce`, then `until_woken`, and `leave` when a process is ready."""

    def __init__(self, fabric: Fabric, settings: WorkerSettings, pool: str, bell: asyncio.Event) -> None:
        self._fabric = fabric
        self._members = KvBucket(fabric.connection, fabric.subjects.pools_bucket)
        self._pool = pool
        self._bell = bell
        self._beat_s = settings.heartbeat_s
        self._announcement: WorkerAnnouncement | None = None
        self._beats: asyncio.Task[None] | None = None
        self._id = new_instance_id()

    async def announce(self, worker_id: str) -> bool:
        """Take the place of a worker that is about to leave; False where it has not announced itself.

        Raises:
            BrokerUnavailable: no answer; the worker must not leave.
        """
        key = self._fabric.subjects.member_key("worker", self._pool, worker_id)
        entry = await self._members.get(key)
        if entry is None:
            return False
        told = parse_announcement(entry.value, key=key)
        self._announcement = msgspec.structs.replace(
            told, worker=self._id, state="asleep", pid=0, in_flight=0, handled=0, failed=0, abandoned=0, counts={}
        )
        await self._beat()
        self._beats = asyncio.create_task(self._keep_announcing(), name=f"place of {self._pool}")
        return True

    async def until_woken(self) -> None:
        """Wait for work."""
        while not self._bell.is_set():
            try:
                async with asyncio.timeout(self._beat_s):
                    await self._bell.wait()
            except TimeoutError:
                pass
            try:
                if await waiting_work(self._fabric.connection, self._pool):
                    return
            except GatiError as exc:
                log.debug("work_not_looked_for", pool=self._pool, error=str(exc))

    async def leave(self) -> None:
        """A process has taken over, or none will."""
        beats, self._beats = self._beats, None
        if beats is not None:
            beats.cancel()
            await asyncio.gather(beats, return_exceptions=True)
        try:
            await self._members.delete(self._fabric.subjects.member_key("worker", self._pool, self._id))
        except GatiError as exc:
            log.debug("goodbye_failed", error=str(exc))  # it expires by itself

    async def _keep_announcing(self) -> None:
        """Until `leave`: also while a process starts, which may take longer than an announcement lives."""
        while True:
            await asyncio.sleep(self._beat_s)
            try:
                await self._beat()
            except GatiError as exc:
                log.warning("heartbeat_failed", pool=self._pool, error=str(exc))

    async def _beat(self) -> None:
        if self._announcement is not None:
            key = self._fabric.subjects.member_key("worker", self._pool, self._id)
            ttl_s = max(2, int(self._beat_s * 4))
            await self._members.put(key, msgspec.json.encode(self._announcement), ttl_s=ttl_s)
