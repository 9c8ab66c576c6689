"""The global context: what all requests of one worker process share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, Protocol, TypeVar, overload

import msgspec
import structlog

from gati_core.contexts._config import Config, freeze
from gati_core.contexts._metrics import InProcessMetrics, Metrics
from gati_core.contexts._process import ProcessLifecycle
from gati_core.contexts._registry import Kind, Registry
from gati_core.contexts._subscriptions import QUEUE_LIMIT, Callback, Subscription
from gati_core.contexts._tasks import unowned_task
from gati_core.contexts._topics import Topics
from gati_core.errors import ConfigInvalid, NotConfigured, Overloaded, RegistrationError
from gati_core.fabric import Entry

log = structlog.get_logger("gati.handler")

MAX_SPAWNED = 1000
"""Tasks that `gctx.spawn` runs at once in one process."""
T = TypeVar("T")


class Bucket(Protocol):
    """A durable key-value bucket, as `gctx.buckets[name]` gives it."""

    async def get(self, key: str) -> Entry | None:
        """The key's value and revision, or None."""

    async def put(self, key: str, value: bytes, *, ttl_s: int = 0) -> int:
        """Write whatever is there; returns the revision."""

    async def create(self, key: str, value: bytes, *, ttl_s: int = 0) -> int:
        """Write only if the key does not exist; `KeyConflict` otherwise."""

    async def update(self, key: str, value: bytes, *, revision: int, ttl_s: int = 0) -> int:
        """Write only if the revision is still this one; `KeyConflict` otherwise."""

    async def delete(self, key: str) -> None:
        """Remove the key."""

    async def keys(self) -> list[str]:
        """All keys; reads the whole bucket."""


class TimescapeClient(Protocol):
    """What `gctx.timescape` answers: which versions there are, and how they differ."""

    async def query_versions(self, handler_id: str) -> list[Any]:
        """The versions of a handler, oldest first."""

    async def request_version(self, handler_id: str, version: str) -> Any:
        """One version's record."""

    async def get_transformers(self, from_version: str, to_version: str) -> list[Any]:
        """The transformers from one version to another, in the order in which they are applied."""

    async def resolve_version(self, handler_id: str, preference: str = "") -> Any:
        """The version that a request with this preference gets."""

    async def diff_schemas(self, from_version: str, to_version: str) -> Any:
        """What changed between the schemas of two versions."""


class Instance(msgspec.Struct, frozen=True):
    """Which process this is."""

    id: str
    app: str
    pool: str
    host: str
    started_ms: int
    region: str = ""
    zone: str = ""


class _Buckets(Mapping[str, Bucket]):
    def __init__(self, buckets: Mapping[str, Bucket]) -> None:
        self._buckets = dict(buckets)

    def __getitem__(self, name: str) -> Bucket:
        try:
            return self._buckets[name]
        except KeyError:
            known = ", ".join(sorted(self._buckets)) or "none"
            raise RegistrationError(
                f"bucket {name!r} is not declared (declared: {known}); add app.bucket({name!r})"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._buckets

    def __iter__(self) -> Iterator[str]:
        return iter(self._buckets)

    def __len__(self) -> int:
        return len(self._buckets)


class GlobalContext:
    """Given to a handler as `gctx`.

    Args:
        instance: which process this is.
        buckets: durable key-value buckets by name.
        config: becomes deeply read-only; see `freeze`.
        modules: stubs by name.
        services: clients by name: `cache`, `database`, …
        metrics: an `InProcessMetrics` by default.
        lifecycle: what runs at start, at the end and in between; the app's.
        timescape: versions; access without one raises `NotConfigured`.
        topics: what publishing and subscribing stand on.
    Raises:
        ConfigInvalid: the configuration cannot be made read-only.
    """

    __slots__ = (
        "_config",
        "_timescape",
        "_topics",
        "buckets",
        "instance",
        "lifecycle",
        "metrics",
        "modules",
        "services",
        "spawned",
        "state",
    )

    def __init__(
        self,
        instance: Instance,
        *,
        buckets: Mapping[str, Bucket] | None = None,
        config: Mapping[str, Any] | None = None,
        modules: Registry[Any] | None = None,
        services: Registry[Any] | None = None,
        metrics: Metrics | None = None,
        lifecycle: ProcessLifecycle | None = None,
        timescape: TimescapeClient | None = None,
        topics: Topics | None = None,
    ) -> None:
        self.instance = instance
        self.buckets: Mapping[str, Bucket] = _Buckets(buckets or {})
        self.modules: Registry[Any] = Registry("module") if modules is None else modules
        self.services: Registry[Any] = Registry("service") if services is None else services
        """Clients by name. Start-up hooks fill it: `gctx.services.register("database", pool)`."""
        self.state: dict[str, Any] = {}
        self.spawned: set[asyncio.Task[Any]] = set()
        """What `spawn` started and has not ended."""
        self.metrics: Metrics = InProcessMetrics() if metrics is None else metrics
        self.lifecycle = ProcessLifecycle() if lifecycle is None else lifecycle
        self._timescape = timescape
        self._topics = topics
        _set_config(self, _frozen(config))

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration: read-only at every depth, `gctx.config["database"]["host"]`.

        A reload puts another one in its place; hold on to this object for one consistent view.
        """
        config: Config = _config_of(self)
        return config

    @overload
    def get_module(self, name: str) -> Any: ...
    @overload
    def get_module(self, name: str, kind: Kind[T]) -> T: ...
    def get_module(self, name: str, kind: Any = None) -> Any:
        """The module `name`, checked to be a `kind`: a class, or a `runtime_checkable` Protocol.

        Raises:
            NotRegistered: there is no such module; lists the ones there are.
            WrongKind: it is something else.
        """
        return self.modules.of_kind(name) if kind is None else self.modules.of_kind(name, kind)

    @property
    def timescape(self) -> TimescapeClient:
        """Versions of handlers and schemas.

        Raises:
            NotConfigured: this process was given no client.
        """
        if self._timescape is None:
            raise NotConfigured("gctx.timescape: this process was started without a Timescape client")
        return self._timescape

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str = "") -> asyncio.Task[Any]:
        """Run `work` beside all requests; it belongs to the process and may outlive this request.

        What it raises is logged. When the process leaves it waits for what runs, as long as it waits
        for handlers, and then cancels it.

        Args:
            name: for the log; the coroutine's own by default.
        Raises:
            Overloaded: 1000 run already.
        """
        name = name or getattr(work, "__qualname__", "work")
        if len(self.spawned) >= MAX_SPAWNED:
            work.close()
            raise Overloaded(f"{MAX_SPAWNED} spawned tasks run already; {name} was not started")
        task = unowned_task(work, name)
        self.spawned.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.spawned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("spawned_task_failed", task=task.get_name(), exc_info=error)

    def publish(self, topic: str, payload: Any = None, *, request_id: str = "") -> None:
        """Send an event to whoever listens to the topic now, in every process; nothing is kept.

        Args:
            topic: a name without dots: letters, digits, `_` and `-`.
            payload: anything that msgspec encodes.
            request_id: publish on that request's topic instead, as its `lctx.publish` would.
        Raises:
            BrokerUnavailable: the broker is away; nothing was sent.
            MessageTooLarge: the event is larger than the broker takes.
            TopicError: the name or the payload cannot be used.
            NotConfigured: this process is not connected to a fabric.
        """
        self._connected().publish(topic, payload, request_id=request_id)

    async def publish_durable(self, topic: str, payload: Any = None, message_id: str = "") -> None:
        """Send an event that is kept for the topic's durable groups; returns when it is stored.

        Args:
            message_id: the same id within 30 seconds is stored once.
        Raises:
            Backpressure: the topic stream is full.
            BrokerUnavailable, PublishUnconfirmed, MessageTooLarge, TopicError, NotConfigured.
        """
        await self._connected().publish_durable(topic, payload, message_id)

    def subscribe(
        self,
        topic: str,
        callback: Callback | None = None,
        *,
        type: Any = None,
        limit: int = QUEUE_LIMIT,
        request_id: str = "",
    ) -> Subscription:
        """Listen to a topic: `async with gctx.subscribe("orders", type=Order) as events: ...`.

        Args:
            callback: called with one event after another, instead of taking them from the result.
            type: what payloads are read as; an event that does not fit is dropped and counted.
            limit: events kept while nobody takes them; then the newest are dropped and counted.
            request_id: listen to that request's topic instead.
        Raises:
            TopicError: the name, the type or the limit cannot be used.
            NotConfigured: this process is not connected to a fabric.
        """
        return self._connected().subscribe(topic, callback, type=type, limit=limit, request_id=request_id)

    def _connected(self) -> Topics:
        if self._topics is None:
            raise NotConfigured("gctx.publish, gctx.subscribe: this process was started without topics")
        return self._topics


# As in `_config`: with the descriptor off the class, a handler has no name to write to.
_config_of = GlobalContext.__dict__["_config"].__get__
_set_config = GlobalContext.__dict__["_config"].__set__
del GlobalContext._config  # type: ignore[attr-defined]


def replace_config(gctx: GlobalContext, config: Mapping[str, Any]) -> Config:
    """Put a configuration in the place of another; for whoever runs the process. Returns the old one.

    Raises:
        ConfigInvalid: it cannot be made read-only; the old one stays.
    """
    old: Config = _config_of(gctx)
    _set_config(gctx, _frozen(config))
    return old


def _frozen(config: Mapping[str, Any] | None) -> Config:
    frozen = freeze({} if config is None else config)
    if not isinstance(frozen, Config):
        raise ConfigInvalid(f"a configuration is a mapping, not {type(config).__name__}")
    return frozen
