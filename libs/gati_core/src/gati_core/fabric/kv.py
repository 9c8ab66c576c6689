"""Key-value buckets: a handle to read and write, and a view that follows a bucket in memory.

A view is a watch plus what a watch lacks: after a reconnect everything is read again (F9), a silent
watch is replaced, the last revision is compared with the stream's own now and then, and how stale
the view may be is a number that `/metrics` shows. One view per bucket and process (F16).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator

import anyio
import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from gati_core.errors import BrokerUnavailable, GatiError, KeyConflict, MessageTooLarge, RequestError
from gati_core.fabric._client import ack_fields, format_headers, parse_headers
from gati_core.fabric.connection import Connection, Subscription
from gati_core.ids import new_instance_id

log = structlog.get_logger(__name__)

_HEARTBEAT_S = 2.0
_REVISION_CHECK_S = 10.0
_WRONG_LAST = (10071, 10164)
_KEY = re.compile(r"[A-Za-z0-9/_=.-]+")


class Entry(msgspec.Struct, frozen=True):
    """One key: its value and the revision that compare-and-set needs."""

    key: str
    value: bytes
    revision: int


class PastEntry(msgspec.Struct, frozen=True):
    """What a key held at some time; no value when it was deleted. `written_ms` is Unix time."""

    revision: int
    value: bytes | None
    written_ms: int


class KvBucket:
    """Reads and writes of one bucket. The bucket must exist: the topology module makes it."""

    def __init__(self, connection: Connection, bucket: str) -> None:
        self._connection = connection
        self.bucket = bucket
        self._prefix = f"$KV.{bucket}."

    async def get(self, key: str) -> Entry | None:
        """The key's newest value, or None when it does not exist or was deleted.

        Raises:
            BrokerUnavailable: the broker is away, or did not answer.
        """
        self._connection.require_up(f"reading key {key!r} of bucket {self.bucket}")
        try:
            message = await self._connection.jetstream().get_last_msg(
                f"KV_{self.bucket}", self._prefix + checked_key(key), direct=True
            )
        except nats.js.errors.NotFoundError:
            return None
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise self._unavailable("reading", key, exc) from exc
        headers = message.headers or {}
        if "KV-Operation" in headers or "Nats-Marker-Reason" in headers:
            return None
        return Entry(key, message.data or b"", message.seq or 0)

    async def put(self, key: str, value: bytes, *, ttl_s: int = 0) -> int:
        """Write the key whatever it holds; returns its revision. After `ttl_s` it deletes itself."""
        return await self._write(key, value, {}, ttl_s)

    async def create(self, key: str, value: bytes, *, ttl_s: int = 0) -> int:
        """Write the key only if it does not exist.

        Raises:
            KeyConflict: it exists.
        """
        try:
            return await self._write(key, value, {"Nats-Expected-Last-Subject-Sequence": "0"}, ttl_s)
        except KeyConflict:
            tombstone = await self._tombstone(key)
            if tombstone is None:
                raise
            return await self._write(key, value, {"Nats-Expected-Last-Subject-Sequence": str(tombstone)}, ttl_s)

    async def update(self, key: str, value: bytes, *, revision: int, ttl_s: int = 0) -> int:
        """Write the key only if its revision is still `revision`; returns the new one.

        Raises:
            KeyConflict: somebody else wrote it since.
        """
        return await self._write(key, value, {"Nats-Expected-Last-Subject-Sequence": str(revision)}, ttl_s)

    async def delete(self, key: str) -> None:
        """Delete the key; deleting a key that is not there is no error."""
        await self._write(key, b"", {"KV-Operation": "DEL"}, 0)

    async def history(self, key: str, *, at_most: int = 64) -> list[PastEntry]:
        """The revisions of a key that the bucket still has, oldest first.

        Raises:
            BrokerUnavailable: the broker is away, or did not answer.
        """
        self._connection.require_up(f"reading key {key!r} of bucket {self.bucket}")
        found: list[PastEntry] = []
        subject, following = self._prefix + checked_key(key), 1
        while len(found) < at_most:
            try:
                message = await self._connection.jetstream().get_msg(
                    f"KV_{self.bucket}", seq=following, subject=subject, next=True
                )
            except nats.js.errors.NotFoundError:
                break
            except (nats.errors.Error, OSError, TimeoutError) as exc:
                raise self._unavailable("reading", key, exc) from exc
            headers = message.headers or {}
            is_gone = "KV-Operation" in headers or "Nats-Marker-Reason" in headers
            revision = message.seq or 0
            written_ms = int(message.time.timestamp() * 1000) if message.time is not None else 0
            found.append(PastEntry(revision, None if is_gone else message.data or b"", written_ms))
            following = revision + 1
        return found

    async def keys(self) -> list[str]:
        """All keys, in no order. Reads the whole bucket: for tools and tests, not for requests."""
        view = KvView(self._connection, self.bucket)
        try:
            await view.start()
            return [entry.key for entry in view.entries()]
        finally:
            await view.aclose()

    async def _tombstone(self, key: str) -> int | None:
        try:
            message = await self._connection.jetstream().get_last_msg(f"KV_{self.bucket}", self._prefix + key)
        except nats.js.errors.NotFoundError:
            return 0
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise self._unavailable("reading", key, exc) from exc
        headers = message.headers or {}
        return message.seq if "KV-Operation" in headers or "Nats-Marker-Reason" in headers else None

    async def _write(self, key: str, value: bytes, headers: dict[str, str], ttl_s: int) -> int:
        # Refused at once: buffered by the client, it would surface after the outage (F11).
        self._connection.require_up(f"writing key {key!r} of bucket {self.bucket}")
        if ttl_s:
            headers["Nats-TTL"] = str(ttl_s)
        size = len(value) + len(format_headers(headers))
        if size > self._connection.max_payload:  # nats-py looks at the value only (F7)
            raise MessageTooLarge(
                f"value and headers of {size} bytes exceed max_payload of {self._connection.max_payload}"
            )
        try:
            ack = await self._connection.jetstream().publish(
                self._prefix + checked_key(key), value, headers=headers or None
            )
        except nats.js.errors.APIError as exc:
            if exc.err_code in _WRONG_LAST:
                raise KeyConflict(f"key {key!r} of bucket {self.bucket} changed since it was read") from exc
            raise self._unavailable("writing", key, exc) from exc
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise self._unavailable("writing", key, exc) from exc
        return ack.seq

    def _unavailable(self, doing: str, key: str, exc: Exception) -> BrokerUnavailable:
        return BrokerUnavailable(f"{doing} key {key!r} of bucket {self.bucket}: {str(exc) or repr(exc)}")


class KvView:
    """A bucket in memory, kept current.

    Args:
        on_change: called as `on_change(key, value)` for every change, with None when the key is
            gone; also for the first reading, and for what a re-read finds different.
    """

    def __init__(
        self,
        connection: Connection,
        bucket: str,
        *,
        on_change: Callable[[str, bytes | None], None] | None = None,
    ) -> None:
        self._connection = connection
        self.bucket = bucket
        self._stream = f"KV_{bucket}"
        self._prefix = len(f"$KV.{bucket}.")
        self._on_change = on_change
        self._entries: dict[str, Entry] = {}
        self.generation = 0
        """Grows whenever an entry changes: whoever has worked something out of them sees whether it still holds."""
        self._loading: dict[str, Entry] | None = None
        self._subscription: Subscription | None = None
        self._consumer = ""
        self._next_delivery = 1
        self._heard_at = 0.0
        self._checked_at = 0.0
        self._last_revision = 0
        self._loaded = asyncio.Event()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self._confirmed_at = 0.0
        self._loop = asyncio.get_running_loop()
        self.reloads = 0

    async def start(self, *, within_s: float = 10.0) -> None:
        """Read the whole bucket and begin to follow it.

        Raises:
            BrokerUnavailable: the bucket could not be read in time.
        """
        self._connection.on_up(self._reload)
        self._connection.on_tick(self._check)
        self._task = self._loop.create_task(self._keep_loading(), name=f"kv-view {self.bucket}")
        self._wake.set()
        try:
            with anyio.fail_after(within_s):
                await self._loaded.wait()
        except TimeoutError as exc:
            raise BrokerUnavailable(f"bucket {self.bucket} could not be read within {within_s:g} s") from exc

    async def aclose(self) -> None:
        """Stop following. The entries stay as they were."""
        self._connection.off(self._reload)
        self._connection.off(self._check)
        # A cancel that meets an answer of the broker gets lost (nats-py turns it into a timeout, and so
        # does wait_for before Python 3.12), hence the flag, and hence more than one cancel.
        self._is_closed = True
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.1)
        await self._leave()

    def get(self, key: str) -> Entry | None:
        """The key's value as last seen; never leaves the process."""
        return self._entries.get(key)

    def entries(self) -> Iterator[Entry]:
        """All entries as last seen."""
        return iter(list(self._entries.values()))

    def staleness_s(self) -> float:
        """Seconds since the broker last confirmed that this view is current (heartbeats count)."""
        return max(0.0, self._loop.time() - self._confirmed_at) if self._loaded.is_set() else float("inf")

    # -- reading everything -------------------------------------------------------------------

    def _reload(self) -> None:
        self._wake.set()

    async def _keep_loading(self) -> None:
        delay_s = 0.05
        while not self._is_closed:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._leave()
                await self._load()
                delay_s = 0.05
            except (GatiError, nats.errors.Error, OSError, TimeoutError) as exc:
                log.warning("kv_view_reload_failed", bucket=self.bucket, error=str(exc) or repr(exc))
                await anyio.sleep(delay_s)
                delay_s = min(delay_s * 2, 1.0)
                self._wake.set()

    async def _load(self) -> None:
        inbox = f"{self._connection.inbox}.k.{new_instance_id()}"
        self._loading = {}
        self._next_delivery = 1
        self._heard_at = self._checked_at = self._loop.time()
        self._subscription = await self._connection.subscribe(inbox, self._on_message)
        js = self._connection.jetstream()
        info = await js.add_consumer(
            self._stream,
            ConsumerConfig(
                deliver_subject=inbox,
                deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
                filter_subject=f"$KV.{self.bucket}.>",
                ack_policy=AckPolicy.NONE,
                max_deliver=1,
                idle_heartbeat=_HEARTBEAT_S,
                inactive_threshold=30.0,
                mem_storage=True,
                num_replicas=1,
            ),
        )
        self._consumer = info.name or ""
        self.reloads += 1
        # The count is of the moment of creation: messages that come later are changes, not loading.
        if (info.num_pending or 0) == 0 and self._next_delivery == 1:
            self._finish_loading()

    async def _leave(self) -> None:
        subscription, self._subscription = self._subscription, None
        consumer, self._consumer = self._consumer, ""
        if subscription is not None:
            await subscription.aclose()
        if consumer and self._connection.is_up:
            try:
                await self._connection.jetstream().delete_consumer(self._stream, consumer)
            except (nats.errors.Error, OSError, TimeoutError) as exc:
                log.debug("kv_consumer_not_deleted", bucket=self.bucket, error=repr(exc))

    def _on_message(self, subject: bytes, reply: bytes, data: bytes, raw: bytes | None) -> None:
        self._heard_at = self._loop.time()
        headers: dict[str, str] = {}
        if raw is not None:
            status, headers = parse_headers(raw)
            if status == 100:
                if int(headers.get("Nats-Last-Consumer", "0")) != self._next_delivery - 1:
                    self._wake.set()  # a message was lost on the way
                elif self._loading is not None:
                    self._finish_loading()  # the last keys expired before their turn came
                else:
                    self._confirmed_at = self._heard_at
                return
        fields = ack_fields(reply)
        revision, delivery, pending = int(fields[1]), int(fields[2]), int(fields[4])
        if delivery != self._next_delivery:
            self._wake.set()
            return
        self._next_delivery += 1
        # Never lower than a revision that a check has found: its message may be gone.
        self._last_revision = max(self._last_revision, revision)
        key = subject[self._prefix :].decode()
        is_gone = "KV-Operation" in headers or "Nats-Marker-Reason" in headers
        target = self._entries if self._loading is None else self._loading
        if is_gone:
            known = target.pop(key, None)
        else:
            known = target.get(key)
            target[key] = Entry(key, data, revision)
        if self._loading is None:
            self.generation += 1
            self._confirmed_at = self._heard_at
            if not is_gone or known is not None:
                self._changed(key, None if is_gone else data)
        elif pending == 0:
            self._finish_loading()

    def _finish_loading(self) -> None:
        fresh, self._loading = self._loading or {}, None
        before, self._entries = self._entries, fresh
        self.generation += 1
        for key in before.keys() - fresh.keys():
            self._changed(key, None)
        for key, entry in fresh.items():
            old = before.get(key)
            if old is None or old.value != entry.value or old.revision != entry.revision:
                self._changed(key, entry.value)
        self._confirmed_at = self._heard_at
        self._loaded.set()

    def _changed(self, key: str, value: bytes | None) -> None:
        if self._on_change is not None:
            try:
                self._on_change(key, value)
            except Exception:
                log.exception("kv_listener_failed", bucket=self.bucket, key=key)

    # -- staying current ----------------------------------------------------------------------

    def _check(self, now: float) -> None:
        if not self._connection.is_up:
            return
        if now - self._heard_at > 2.5 * _HEARTBEAT_S:
            self._heard_at = now
            self._wake.set()
        elif now - self._checked_at > _REVISION_CHECK_S and self._loading is None:
            self._checked_at = now
            self._revision_check = self._loop.create_task(self._compare_revisions())

    async def _compare_revisions(self) -> None:
        """Read again when the stream has moved on and the watch has not said so."""
        try:
            behind = (await self._connection.jetstream().stream_info(self._stream)).state.last_seq
            await anyio.sleep(1.0)  # what was under way has arrived by now
        except (nats.errors.Error, OSError, TimeoutError):
            return
        if behind > self._last_revision and self._loading is None and self._last_revision > 0:
            log.warning("kv_view_behind", bucket=self.bucket, stream=behind, view=self._last_revision)
            self._last_revision = behind
            self._wake.set()


def checked_key(key: str) -> str:
    if _KEY.fullmatch(key) is None or key.startswith(".") or key.endswith(".") or ".." in key:
        raise RequestError(f"{key!r} is not a key: letters, digits and - / _ = . only, no dot at either end")
    return key


__all__ = ["Entry", "KvBucket", "KvView"]
