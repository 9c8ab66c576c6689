"""A lock that one process of the whole fabric holds: a key with a time to live, renewed as long as it is needed.

A process that dies stops renewing. Whoever waits then sees one revision for as long as the lock may live, by its own
clock, and takes the lock over; where nobody waits, the key deletes itself. (The key's time to live alone would not do:
in a bucket that keeps history, the broker raises it to that of its delete markers.) A process that is cut off from the
broker knows that it holds the lock no longer before anybody else can have it.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import anyio
import msgspec
import structlog

from gati_core.errors import KeyConflict, SchemaError, TransientError
from gati_core.fabric import Entry
from gati_core.ids import new_instance_id

log = structlog.get_logger(__name__)

_RELEASED = b""
"""A lock that was given back; the key goes away by itself a moment later."""
_RELEASED_TTL_S = 1
_RELEASE_WITHIN_S = 3.0
_RENEWALS = 4
"""In the time to live, so that more than one may fail."""
_POLL_S = (0.05, 0.5)


class LockBucket(Protocol):
    """Where locks are kept; a `KvBucket` is one."""

    async def get(self, key: str) -> Entry | None:
        """The key, or None."""

    async def create(self, key: str, value: bytes, *, ttl_s: int = 0) -> int:
        """Write a key that is not there, else raise `KeyConflict`."""

    async def update(self, key: str, value: bytes, *, revision: int, ttl_s: int = 0) -> int:
        """Write a key that is still of this revision, else raise `KeyConflict`."""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """What a lock's key says."""

    actor: str
    host: str
    pid: int
    since_ms: int
    """Unix time."""
    token: str
    ttl_s: int
    """How long it lives without being renewed."""


class Lease:
    """A lock as its holder sees it."""

    __slots__ = ("_clock", "_valid_until", "is_forsaken", "revision")

    def __init__(self, revision: int, valid_until: float, clock: Callable[[], float]) -> None:
        self.revision = revision
        self._valid_until = valid_until
        self._clock = clock
        self.is_forsaken = False
        """Set to let it expire instead of giving it back, because something may still be at work."""

    @property
    def is_valid(self) -> bool:
        """Whether nobody else can hold the lock now. Any thread may ask."""
        return self._clock() < self._valid_until

    def renewed(self, revision: int, valid_until: float) -> None:
        """It holds on."""
        self.revision, self._valid_until = revision, valid_until

    def lose(self) -> None:
        """Somebody else has it."""
        self._valid_until = float("-inf")


class ClusterLock:
    """See the module. Not reentrant.

    Args:
        what: what it guards, for messages.
        actor: who asks for it, for the messages of others.
        ttl_s: how long it outlives its holder.
    """

    def __init__(
        self,
        bucket: LockBucket,
        key: str,
        *,
        what: str,
        actor: str,
        ttl_s: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bucket = bucket
        self._key = key
        self._what = what
        self._ttl_s = ttl_s
        self._clock = clock
        self._token = new_instance_id()
        self._seen = (0, 0.0)
        """The revision of somebody else's lock, and when it was first seen."""
        self._value = msgspec.json.encode(
            Holder(
                actor=actor,
                host=socket.gethostname(),
                pid=os.getpid(),
                since_ms=time.time_ns() // 1_000_000,
                token=self._token,
                ttl_s=ttl_s,
            )
        )

    @asynccontextmanager
    async def hold(self, *, within_s: float) -> AsyncIterator[Lease]:
        """Wait for the lock, and hold it.

        Raises:
            SchemaError: somebody else held it all the time; says who.
            BrokerUnavailable: the broker was away all the time.
        """
        lease = await self._acquire(within_s)
        enough = asyncio.Event()
        renewing = asyncio.get_running_loop().create_task(self._renew(lease, enough), name=f"lock {self._key}")
        try:
            yield lease
        finally:
            enough.set()
            with anyio.CancelScope(shield=True):
                # Not cancelled at once: a renewal that is on its way changes the revision.
                await asyncio.wait([renewing], timeout=_RELEASE_WITHIN_S)
                while not renewing.done():
                    renewing.cancel()
                    await asyncio.wait([renewing], timeout=0.1)
                if not lease.is_forsaken:
                    await self._release(lease)

    async def _acquire(self, within_s: float) -> Lease:
        until = self._clock() + within_s
        delay_s, is_told = _POLL_S[0], False
        while True:
            problem: TransientError | None = None
            holder: Holder | None = None
            try:
                taken = await self._take()
                if isinstance(taken, Lease):
                    return taken
                holder = taken
            except TransientError as exc:
                problem = exc
            if holder is not None and not is_told:
                is_told = True
                log.info("schema_lock_awaited", lock=self._key, holder=holder.actor, host=holder.host)
            if self._clock() >= until:
                if problem is not None:
                    raise problem
                raise SchemaError(
                    f"{self._what} is being changed by {_described(holder)}, which was not done within {within_s:g} s:"
                    " the next attempt finds it done, or this lock expired"
                )
            # Spread out: all workers of a package start at once.
            await anyio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311  (not a secret)
            delay_s = min(delay_s * 1.5, _POLL_S[1])

    async def _take(self) -> Lease | Holder | None:
        began = self._clock()
        try:
            revision = await self._bucket.create(self._key, self._value, ttl_s=self._ttl_s)
        except KeyConflict:
            entry = await self._bucket.get(self._key)
            if entry is None:
                return None  # it has just expired
            holder = _read(entry.value)
            if not self._may_take(entry, holder):
                return holder
            try:
                began = self._clock()
                revision = await self._bucket.update(self._key, self._value, revision=entry.revision, ttl_s=self._ttl_s)
            except KeyConflict:
                return None
        return Lease(revision, began + self._ttl_s, self._clock)

    def _may_take(self, entry: Entry, holder: Holder | None) -> bool:
        """Whether the lock that is there has ended."""
        if entry.value == _RELEASED or (holder is not None and holder.token == self._token):
            return True  # our own is a write that was stored although its confirmation was lost
        if self._seen[0] != entry.revision:
            self._seen = (entry.revision, self._clock())
        return self._clock() - self._seen[1] > (self._ttl_s if holder is None else holder.ttl_s)

    async def _renew(self, lease: Lease, enough: asyncio.Event) -> None:
        while lease.is_valid:
            with anyio.move_on_after(self._ttl_s / _RENEWALS):
                await enough.wait()
            if enough.is_set():
                return
            began = self._clock()
            try:
                revision = await self._bucket.update(self._key, self._value, revision=lease.revision, ttl_s=self._ttl_s)
                lease.renewed(revision, began + self._ttl_s)
            except KeyConflict:
                await self._look_again(lease)
            except TransientError as exc:
                log.warning("schema_lock_not_renewed", lock=self._key, error=str(exc))
        log.error("schema_lock_lost", lock=self._key)

    async def _look_again(self, lease: Lease) -> None:
        """It was written since: by us, in a renewal that was not confirmed, or by somebody else."""
        try:
            entry = await self._bucket.get(self._key)
        except TransientError:
            return
        holder = None if entry is None else _read(entry.value)
        if entry is not None and holder is not None and holder.token == self._token:
            lease.revision = entry.revision
        else:
            lease.lose()

    async def _release(self, lease: Lease) -> None:
        with anyio.move_on_after(_RELEASE_WITHIN_S):
            for _ in range(2):
                if not lease.is_valid:
                    return
                try:
                    # With its revision, so that it is never somebody else's that is given back.
                    await self._bucket.update(self._key, _RELEASED, revision=lease.revision, ttl_s=_RELEASED_TTL_S)
                    return
                except KeyConflict:
                    await self._look_again(lease)
                except TransientError as exc:
                    log.debug("schema_lock_not_released", lock=self._key, error=str(exc))
                    return


def _read(value: bytes) -> Holder | None:
    try:
        return msgspec.json.decode(value, type=Holder)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _described(holder: Holder | None) -> str:
    if holder is None:
        return "somebody else"
    return f"{holder.actor} (process {holder.pid} on {holder.host})"
