"""The one provisioner: every stream, consumer and bucket is created or verified here.

`apply` creates what is missing and updates what may be updated; `bind` only verifies, for
infrastructure that others own. Both refuse a stream that discards old messages, because acked
requests would vanish from it (F6), and a consumer with `backoff`, which silently shortens the
lease (F4).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Iterable
from typing import Any

import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    ConsumerInfo,
    DeliverPolicy,
    DiscardPolicy,
    KeyValueConfig,
    ObjectStoreConfig,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)

from gati_core.errors import BrokerUnavailable, TopologyError
from gati_core.fabric.connection import Connection
from gati_core.wire import LANES

log = structlog.get_logger(__name__)

REQ_ACK_WAIT_S = 3.0
"""A router holds a request for milliseconds; after this another router takes it over."""
WORK_ACK_WAIT_S = 4.0
"""A worker renews its lease long before; after this the pool's next worker takes over."""
MAX_ATTEMPTS = 3
"""Deliveries that our code tries; then the message is a dead letter."""
MAX_DELIVER = 6
"""The server's own limit, above ours (F19), for messages that never reach our code."""
DUPLICATE_WINDOW_S = 30.0
"""How long a stream remembers message ids; longer than a router's lease times its attempts."""
STREAM_MAX_AGE_S = 3600.0
BODIES_TTL_S = 900.0
POOLS_MARKER_TTL_S = 30.0
POOL_CONSUMER_INACTIVE_S = 3600.0
TOPIC_MAX_AGE_S = 86_400.0
TOPIC_ACK_WAIT_S = 4.0
"""A subscriber renews its lease long before; after this the group's next member takes over."""
TOPIC_GROUP_INACTIVE_S = 7 * 86_400.0
"""A durable group that nobody belonged to for this long is forgotten, and begins anew."""
CHANGES_MAX_MSGS = 1_000_000
"""Lines of the change log of all handlers."""
TRACE_MAX_AGE_S = 3600.0
_MIN_SERVER = (2, 12)
_HEAD_ROOM = 64 * 1024
"""Bytes kept free beside a body for everything else in its message: the head of a request has a limit."""
_ALREADY_EXISTS = 10058
_STREAM_NOT_FOUND = 10059
_CONSUMER_NOT_FOUND = 10014


class Topology:
    """Creates or verifies what lies on the broker, for one namespace."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._settings = connection.settings
        self._subjects = connection.subjects
        self._applies = connection.settings.topology == "apply"

    async def ensure(self) -> None:
        """Everything that all processes share: streams, router consumers, buckets.

        Raises:
            TopologyError: something is missing in `bind` mode, or differs in a way that loses messages.
            BrokerUnavailable: JetStream did not answer.
        """
        self._check_server()
        try:
            await _all_of(self._stream(config) for config in self._streams())
            await _all_of(
                [
                    *(self._consumer(self._subjects.req_stream, self._lane(lane)) for lane in LANES),
                    self._consumer(self._subjects.advisory_stream, self._advisory_consumer()),
                    self.ensure_bucket(self._subjects.manifests_bucket, history=5),
                    self.ensure_bucket(self._subjects.pools_bucket, marker_ttl_s=POOLS_MARKER_TTL_S),
                    self.ensure_bucket(self._subjects.timescape_bucket, history=5, marker_ttl_s=POOLS_MARKER_TTL_S),
                    self.ensure_bucket(self._subjects.config_bucket, history=5),
                    self._objects(self._subjects.bodies_bucket, ttl_s=BODIES_TTL_S),
                    self._objects(self._subjects.packages_bucket),
                    self._objects(self._subjects.snapshots_bucket),
                ]
            )
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise _as_gati_error(exc, "preparing the streams") from exc

    async def ensure_pool(self, pool: str, handlers: dict[str, str]) -> dict[str, str]:
        """The consumers of one pool, one per delivery mode in use.

        At-most-once handlers have a consumer of their own with `max_deliver=1`: as long as it lives,
        the server never hands such a message over twice, whatever happens to workers, acks or clocks
        (ADR-0003; for a server that dies, ADR-0009).

        Args:
            handlers: handler token → delivery mode.
        Returns:
            Delivery mode → durable name, for the modes that this pool uses.
        """
        durables: dict[str, str] = {}
        wanted = {
            mode: {self._subjects.work(pool, handler) for handler, of in handlers.items() if of == mode}
            for mode in ("at_least_once", "at_most_once")
        }
        try:
            for mode, subjects in wanted.items():
                await self._make_way(self._pool_consumer(pool, mode), subjects)
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise _as_gati_error(exc, f"preparing the consumers of pool {pool}") from exc
        for mode in sorted(set(handlers.values())):
            durable = self._pool_consumer(pool, mode)
            filters = sorted(wanted[mode])
            config = ConsumerConfig(
                durable_name=durable,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=WORK_ACK_WAIT_S,
                max_deliver=1 if mode == "at_most_once" else MAX_DELIVER,
                max_ack_pending=65_536,
                filter_subjects=filters,
                inactive_threshold=POOL_CONSUMER_INACTIVE_S,
            )
            try:
                await self._consumer(self._subjects.work_stream, config)
            except (nats.errors.Error, OSError, TimeoutError) as exc:
                raise _as_gati_error(exc, f"preparing the consumer of pool {pool}") from exc
            durables[mode] = durable
        return durables

    async def ensure_topic_group(self, app: str, group: str, topic: str) -> str:
        """The consumer that all members of a durable group share on one topic; returns its name.

        A new group begins with what is published after this. Its `max_deliver` is unlimited: a
        member counts the attempts and buries what exhausted them, also when it was its predecessors
        who died of the message.
        """
        durable = self._subjects.topic_consumer(app, group, topic)
        config = ConsumerConfig(
            durable_name=durable,
            deliver_policy=DeliverPolicy.NEW,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=TOPIC_ACK_WAIT_S,
            max_deliver=-1,
            max_ack_pending=65_536,
            filter_subjects=[
                self._subjects.topic_durable(topic),
                self._subjects.topic_group(app, group, topic),
            ],
            inactive_threshold=TOPIC_GROUP_INACTIVE_S,
        )
        try:
            await self._consumer(self._subjects.topic_stream, config)
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise _as_gati_error(exc, f"preparing group {group} of topic {topic}") from exc
        return durable

    def _pool_consumer(self, pool: str, mode: str) -> str:
        return self._subjects.work_consumer(pool) + ("-once" if mode == "at_most_once" else "")

    async def _make_way(self, durable: str, wanted: set[str]) -> None:
        """Take from a pool's consumer the handlers that it no longer serves.

        A handler that changed its delivery mode moves to the pool's other consumer, which the server
        refuses as long as the two overlap (F2).
        """
        if not self._applies:
            return
        js = self._connection.jetstream()
        try:
            config = (await js.consumer_info(self._subjects.work_stream, durable)).config
        except nats.js.errors.NotFoundError:
            return
        found = set(config.filter_subjects or ([config.filter_subject] if config.filter_subject else []))
        if found <= wanted:
            return
        kept = sorted(found & wanted)
        if kept:
            config.filter_subject, config.filter_subjects = None, kept
            await js.add_consumer(self._subjects.work_stream, config)
        else:
            await js.delete_consumer(self._subjects.work_stream, durable)

    async def ensure_bucket(self, bucket: str, *, marker_ttl_s: float = 0.0, history: int = 1) -> None:
        """A key-value bucket. With `marker_ttl_s`, watchers see keys expire."""
        js = self._connection.jetstream()
        try:
            await js.stream_info(f"KV_{bucket}")
            return
        except nats.js.errors.NotFoundError:
            self._require_apply(f"bucket {bucket}")
        config = KeyValueConfig(
            bucket=bucket,
            history=history,
            direct=True,
            storage=StorageType.FILE,
            replicas=self._settings.replicas,
            limit_marker_ttl=marker_ttl_s or None,
        )
        try:
            await js.create_key_value(config)
        except nats.js.errors.APIError as exc:
            if exc.err_code != _ALREADY_EXISTS:  # another process was faster
                raise
        log.info("bucket_created", bucket=bucket)

    # -- what there is ------------------------------------------------------------------------

    def _streams(self) -> list[StreamConfig]:
        subjects, settings = self._subjects, self._settings
        shared: dict[str, Any] = {
            "storage": StorageType.FILE,
            "num_replicas": settings.replicas,
            "discard": DiscardPolicy.NEW,
            "duplicate_window": DUPLICATE_WINDOW_S,
        }
        return [
            StreamConfig(
                name=subjects.req_stream,
                subjects=[subjects.req_all],
                retention=RetentionPolicy.WORK_QUEUE,
                max_msgs=settings.req_max_msgs,
                max_age=STREAM_MAX_AGE_S,
                **shared,
            ),
            StreamConfig(
                name=subjects.work_stream,
                subjects=[subjects.work_all],
                retention=RetentionPolicy.WORK_QUEUE,
                max_msgs_per_subject=settings.work_max_msgs_per_handler,
                discard_new_per_subject=True,
                max_age=STREAM_MAX_AGE_S,
                **shared,
            ),
            StreamConfig(
                name=subjects.dead_stream,
                subjects=[subjects.dead_all],
                retention=RetentionPolicy.LIMITS,
                max_msgs=settings.dead_max_msgs,
                max_age=7 * 86_400.0,
                **shared,
            ),
            StreamConfig(
                name=subjects.advisory_stream,
                subjects=subjects.advisories,
                retention=RetentionPolicy.WORK_QUEUE,
                max_msgs=settings.dead_max_msgs,
                max_age=86_400.0,
                **shared,
            ),
            StreamConfig(
                name=subjects.topic_stream,
                subjects=[subjects.topic_durable_all, subjects.topic_group_all],
                retention=RetentionPolicy.LIMITS,
                max_msgs=settings.topics_max_msgs,
                max_age=TOPIC_MAX_AGE_S,
                **shared,
            ),
            StreamConfig(
                name=subjects.changes_stream,
                subjects=[subjects.change_all],
                retention=RetentionPolicy.LIMITS,
                deny_delete=True,
                max_msgs=CHANGES_MAX_MSGS,
                # The oldest lines make room: a full log must not keep versions from being changed.
                **(shared | {"discard": DiscardPolicy.OLD}),
            ),
            StreamConfig(
                name=subjects.trace_stream,
                subjects=[subjects.trace_all],
                retention=RetentionPolicy.LIMITS,
                max_msgs=settings.trace_max_msgs,
                max_age=TRACE_MAX_AGE_S,
                **shared,
            ),
        ]

    def _lane(self, lane: str) -> ConsumerConfig:
        return ConsumerConfig(
            durable_name=self._subjects.lane_consumer(lane),
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=REQ_ACK_WAIT_S,
            max_deliver=MAX_DELIVER,
            max_ack_pending=65_536,
            filter_subjects=self._subjects.lane_filters(lane),
        )

    def _advisory_consumer(self) -> ConsumerConfig:
        return ConsumerConfig(
            durable_name=self._subjects.advisory_consumer,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=30.0,
            max_deliver=-1,
            max_ack_pending=1024,
        )

    # -- create or verify ---------------------------------------------------------------------

    def _check_server(self) -> None:
        version = self._connection.health().server_version
        found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if found and found < _MIN_SERVER:
            raise TopologyError(f"nats-server {version} is too old: gati needs 2.12 or newer")

        needed = self._settings.claim_check_bytes + _HEAD_ROOM
        if self._connection.max_payload < needed:
            raise TopologyError(
                f"the server takes {self._connection.max_payload} bytes in a message, and bodies of up to"
                f" {self._settings.claim_check_bytes} bytes with their headers need {needed}: raise max_payload on the"
                f" server, or set GATI_FABRIC_CLAIM_CHECK_BYTES to at most {self._connection.max_payload - _HEAD_ROOM}"
            )

    async def _stream(self, wanted: StreamConfig) -> None:
        js = self._connection.jetstream()
        name = wanted.name or ""
        try:
            found = (await js.stream_info(name)).config
        except nats.js.errors.NotFoundError:
            self._require_apply(f"stream {name}")
            try:
                await js.add_stream(wanted)
            except nats.js.errors.APIError as exc:
                if exc.err_code != _ALREADY_EXISTS:
                    raise
            else:
                log.info("stream_created", stream=name)
                return
            found = (await js.stream_info(name)).config
        if found.discard != wanted.discard and wanted.discard == DiscardPolicy.NEW:
            raise TopologyError(
                f"stream {name} has discard={found.discard}: a full stream would throw away accepted requests."
                f" Set discard=new (nats stream edit {name} --discard=new) or remove the stream"
            )
        if found.retention != wanted.retention:
            raise TopologyError(
                f"stream {name} has retention={found.retention}, gati needs {wanted.retention}: remove or rename it"
            )
        if set(wanted.subjects or []) - set(found.subjects or []):
            raise TopologyError(f"stream {name} has subjects {found.subjects}, gati needs {wanted.subjects}")
        if self._applies and _differs(wanted, found):
            await js.update_stream(wanted)
            log.info("stream_updated", stream=name)

    async def _consumer(self, stream: str, wanted: ConsumerConfig) -> None:
        js = self._connection.jetstream()
        name = wanted.durable_name or ""
        found: ConsumerInfo | None
        try:
            found = await js.consumer_info(stream, name)
        except nats.js.errors.NotFoundError:
            found = None
        if found is not None and found.config.backoff:
            raise TopologyError(f"consumer {name} of {stream} has a backoff, which shortens its ack_wait: remove it")
        if found is not None and not self._applies:
            if (wanted.max_deliver == 1) != (found.config.max_deliver == 1):
                raise TopologyError(
                    f"consumer {name} of {stream} has max_deliver={found.config.max_deliver}, gati needs"
                    f" {wanted.max_deliver}: remove it"
                )
            return
        if found is None:
            self._require_apply(f"consumer {name} of {stream}")
        elif not _consumer_differs(wanted, found.config):
            return
        await js.add_consumer(stream, wanted)

    async def _objects(self, bucket: str, *, ttl_s: float | None = None) -> None:
        js = self._connection.jetstream()
        try:
            await js.stream_info(f"OBJ_{bucket}")
            return
        except nats.js.errors.NotFoundError:
            self._require_apply(f"object store {bucket}")
        try:
            await js.create_object_store(
                bucket,
                config=ObjectStoreConfig(
                    bucket=bucket, ttl=ttl_s, storage=StorageType.FILE, replicas=self._settings.replicas
                ),
            )
        except nats.js.errors.APIError as exc:
            if exc.err_code != _ALREADY_EXISTS:
                raise

    def _require_apply(self, what: str) -> None:
        if not self._applies:
            raise TopologyError(
                f"{what} does not exist, and GATI_FABRIC_TOPOLOGY=bind forbids creating it:"
                " run any gati process once with GATI_FABRIC_TOPOLOGY=apply, or create it"
            )


async def _all_of(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Take the steps at once; of several failures, the first in their order is raised.

    One after another they would cost a round trip each, which every starting process pays.
    """
    for outcome in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _differs(wanted: StreamConfig, found: StreamConfig) -> bool:
    names = ("max_msgs", "max_msgs_per_subject", "max_age", "duplicate_window", "num_replicas")
    return any(getattr(wanted, name) is not None and getattr(wanted, name) != getattr(found, name) for name in names)


def _consumer_differs(wanted: ConsumerConfig, found: ConsumerConfig) -> bool:
    filters = set(found.filter_subjects or ([found.filter_subject] if found.filter_subject else []))
    return (
        wanted.ack_wait != found.ack_wait
        or wanted.max_deliver != found.max_deliver
        or wanted.max_ack_pending != found.max_ack_pending
        or set(wanted.filter_subjects or []) != filters
    )


def _as_gati_error(exc: Exception, doing: str) -> TopologyError | BrokerUnavailable:
    if isinstance(exc, nats.js.errors.APIError) and not isinstance(exc, nats.js.errors.ServiceUnavailableError):
        return TopologyError(f"{doing}: the broker refused: {exc.description} (error {exc.err_code})")
    return BrokerUnavailable(f"{doing}: {str(exc) or repr(exc)}; is JetStream enabled (nats-server -js)?")


class StreamState(msgspec.Struct, frozen=True):
    """Messages in a stream, for `gati doctor`, metrics and tests."""

    messages: int
    bytes: int
    first_seq: int
    last_seq: int
    consumers: int


async def stream_state(connection: Connection, stream: str) -> StreamState:
    """Read a stream's counters from the broker.

    Raises:
        TopologyError: there is no such stream.
        BrokerUnavailable: no answer.
    """
    try:
        state = (await connection.jetstream().stream_info(stream)).state
    except nats.js.errors.NotFoundError as exc:
        raise TopologyError(f"stream {stream} does not exist") from exc
    except (nats.errors.Error, OSError, TimeoutError) as exc:
        raise BrokerUnavailable(f"reading stream {stream}: {exc!r}") from exc
    return StreamState(state.messages, state.bytes, state.first_seq, state.last_seq, state.consumer_count)


async def waiting_work(connection: Connection, pool: str) -> int:
    """How much work for a pool has not been done yet, whether its consumers are there or not.

    Raises:
        BrokerUnavailable: no answer.
    """
    subjects = connection.subjects
    try:
        info = await connection.jetstream().stream_info(
            subjects.work_stream, subjects_filter=subjects.work_filter(pool)
        )
    except (nats.errors.Error, OSError, TimeoutError) as exc:
        raise BrokerUnavailable(f"reading stream {subjects.work_stream}: {exc!r}") from exc
    return sum((info.state.subjects or {}).values())
