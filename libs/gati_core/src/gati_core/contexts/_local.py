"""The local context: state of one request, private to it, gone when it ends."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import structlog

from gati_core.contexts._hooks import LEVELS, Hook, HookKind, HookLevel, is_async_callable, make_hook
from gati_core.contexts._meta import ClientInfo, References, RequestMeta, TransformerChain, VersionInfo
from gati_core.contexts._operations import Operations, refused
from gati_core.contexts._request_lifecycle import RequestLifecycle
from gati_core.contexts._snapshots import Snapshot, copy_state, take_snapshot
from gati_core.errors import GatiError, RegistrationError, SnapshotError, TooLate
from gati_core.wire import RequestDescriptor

if TYPE_CHECKING:
    from gati_core.contexts._subscriptions import Subscription
    from gati_core.contexts._topics import LocalTopics, RequestEvents

_LEVELS = ("debug", "info", "warning", "error", "critical")
_log = structlog.get_logger("gati.handler")
_bound: Any = structlog.get_logger("gati.handler").bind

MAX_REGISTRATIONS = 1000
"""Hooks, callbacks and compensations that one request may register, taken together."""

Stage = Literal["before", "handler", "after", "failed", "cleanup"]
_TOO_LATE: dict[HookKind, tuple[Stage, ...]] = {
    "before": ("handler", "after", "failed", "cleanup"),
    "after": ("after", "failed", "cleanup"),
    "catch": ("failed", "cleanup"),
}
T = TypeVar("T")


class LocalContext:
    """Given to a handler as `lctx`, and to its hooks. Belongs to one request and ends with it."""

    __slots__ = (
        "_after",
        "_attempt",
        "_before",
        "_catch",
        "_chain",
        "_clock",
        "_compensations",
        "_descriptor",
        "_events",
        "_hook_index",
        "_instance_id",
        "_is_timed_out",
        "_level",
        "_lifecycle",
        "_operations",
        "_refs",
        "_region",
        "_registrations",
        "_source",
        "_stage",
        "_started_ms",
        "_state",
        "_topics",
        "_topics_of",
        "_uses_threads",
        "_version",
        "_websocket",
        "deadline_ms",
        "phase",
        "request",
        "response",
    )

    def __init__(
        self,
        descriptor: RequestDescriptor,
        *,
        deadline_ms: int | None = None,
        started_ms: int = 0,
        attempt: int = 1,
        version: str = "",
        source: str = "",
        instance_id: str = "",
        region: str = "",
        clock: Callable[[], float] = time.time,
        topics: Callable[[str], LocalTopics] | None = None,
        uses_threads: bool = False,
    ) -> None:
        self._descriptor = descriptor
        self.deadline_ms = descriptor.deadline_ms if deadline_ms is None else deadline_ms
        """Unix milliseconds until which an answer is of use."""
        self.phase: str = "received"
        self.request: Any = None
        """What the handler gets as `req`."""
        self.response: Any = None
        """What the handler gets as `res`."""
        self._started_ms = started_ms or descriptor.received_ms
        self._attempt = attempt
        self._version = version
        self._source = source
        self._chain: TransformerChain | None = None
        self._instance_id = instance_id
        self._region = region
        self._clock = clock
        self._topics_of = topics
        self._uses_threads = uses_threads
        self._stage: Stage = "before"
        self._level = 0
        self._hook_index = -1
        self._is_timed_out = False
        self._registrations = 0
        self._state: dict[str, Any] | None = None
        self._before: list[Hook] | None = None
        self._after: list[Hook] | None = None
        self._catch: list[Hook] | None = None
        self._compensations: list[tuple[str, Callable[[], Any]]] | None = None
        self._operations: Operations | None = None
        self._lifecycle: RequestLifecycle | None = None
        self._refs: References | None = None
        self._topics: LocalTopics | None = None
        self._events: RequestEvents | None = None
        self._websocket: Any = None

    # -- identity -----------------------------------------------------------------------------

    @property
    def request_id(self) -> str:
        """The id that the ingress gave this request; in every log line and error about it."""
        return self._descriptor.request_id

    @property
    def trace_id(self) -> str:
        """The W3C trace id, 32 hexadecimal digits; derived from the request id where none came in."""
        parts = self._descriptor.traceparent.split("-")
        if len(parts) >= 4 and len(parts[1]) == 32:
            return parts[1]
        return hashlib.sha256(self._descriptor.request_id.encode()).hexdigest()[:32]

    @property
    def parent_span_id(self) -> str:
        """The caller's span id, 16 hexadecimal digits; empty where none came in."""
        parts = self._descriptor.traceparent.split("-")
        return parts[2] if len(parts) >= 4 else ""

    @property
    def traceparent(self) -> str:
        """The `traceparent` header as received."""
        return self._descriptor.traceparent

    @property
    def client_id(self) -> str:
        """Who calls, stable across requests: the principal, else a digest of the address."""
        principal = self._descriptor.principal
        if principal is not None:
            return principal.subject
        return "client_" + hashlib.sha256(self._descriptor.client_ip.encode()).hexdigest()[:16]

    @property
    def client_ip(self) -> str:
        """The client's address as the ingress saw it."""
        return self._descriptor.client_ip

    @property
    def client(self) -> ClientInfo:
        """Address, user agent and region of the client."""
        fields = {name: value for name, value in self._descriptor.headers if name in ("user-agent", "x-client-region")}
        return ClientInfo(
            self._descriptor.client_ip, fields.get("user-agent", ""), fields.get("x-client-region", self._region)
        )

    @property
    def timestamp(self) -> int:
        """Unix milliseconds at which the ingress accepted the request."""
        return self._descriptor.received_ms

    @property
    def refs(self) -> References:
        """Ids of session, user and tenant; the user is the principal unless a hook says otherwise."""
        if self._refs is None:
            principal = self._descriptor.principal
            self._refs = References(user_id=principal.subject if principal else None)
        return self._refs

    @property
    def meta(self) -> RequestMeta:
        """Path, version, flags and other facts about the request."""
        return RequestMeta(self)

    @property
    def timescape(self) -> VersionInfo:
        """Which version runs, and why."""
        chain = self._chain
        return VersionInfo(
            requested=self._descriptor.version.removeprefix("?"),
            resolved=chain.resolved if chain is not None else self._version,
            handler_version=self._version,
            source=self._source,
            chain_length=chain.length if chain is not None else 0,
            transform_ms=chain.spent_s * 1000 if chain is not None else 0.0,
        )

    def remaining_s(self) -> float:
        """Seconds until the deadline; 0 when it has passed."""
        return max(0.0, self.deadline_ms / 1000 - self._clock())

    # -- state --------------------------------------------------------------------------------

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

    # -- hooks and what happens on failure ----------------------------------------------------

    def before(self, function: Callable[..., Any], **options: Any) -> str:
        """Run `function(gctx, lctx)` before the handler; only of use while before hooks run.

        Args:
            options: `id`, `level` (local unless said otherwise), `timeout_s`, `retries`, `backoff_s`,
                `threaded`, `detached`; see `App.before`.
        Returns:
            The hook's id, for `remove_hook`.
        Raises:
            TooLate: the handler has started, or the hooks of that level have run.
            RegistrationError: the function or an option is not right.
        """
        return self._hook("before", function, options)

    def after(self, function: Callable[..., Any], **options: Any) -> str:
        """Run `function(gctx, lctx)` after the handler, before hooks of wider levels. See `before`."""
        return self._hook("after", function, options)

    def catch(self, function: Callable[..., Any], **options: Any) -> str:
        """Run `function(error, gctx, lctx)` if the request fails. See `before`."""
        return self._hook("catch", function, options)

    def remove_hook(self, hook_id: str) -> bool:
        """Take back hooks of this request by their id; returns whether there was one that had yet to run."""
        found = False
        groups: dict[HookKind, list[Hook] | None] = {
            "before": self._before,
            "after": self._after,
            "catch": self._catch,
        }
        for kind, group in groups.items():
            if group is None or self._stage in _TOO_LATE[kind]:
                continue
            kept = [hook for hook in group if hook.id != hook_id]
            found = found or len(kept) < len(group)
            group[:] = kept
        return found

    def _hook(self, kind: HookKind, function: Callable[..., Any], options: dict[str, Any]) -> str:
        level: HookLevel = options.pop("level", "local")
        if self._uses_threads:
            options.setdefault("threaded", not is_async_callable(function))
        try:
            hook = make_hook(function, kind=kind, level=level, **options)
        except TypeError as exc:
            raise RegistrationError(f"lctx.{kind}: {exc}") from exc
        if self._stage in _TOO_LATE[kind] or (kind == "before" and LEVELS.index(level) < self._level):
            raise TooLate(f"{hook!r} was registered when it could no longer run (the request is at: {self._stage})")
        self._count_registration(f"{kind} hook")
        group = getattr(self, "_" + kind)
        if group is None:
            group = []
            setattr(self, "_" + kind, group)
        group.append(hook)
        return hook.id

    def register_compensating_action(self, function: Callable[[], Any], id: str | None = None) -> str:
        """Undo something if this request fails: last registered, first run, before the catch hooks.

        Args:
            function: takes nothing; plain or async, with 5 seconds.
        Returns:
            Its id, as events and logs name it.
        Raises:
            TooLate: the request is over or has failed already.
        """
        if not callable(function):
            raise RegistrationError(f"a compensating action must be a function, not {function!r}")
        if self._stage in ("failed", "cleanup"):
            raise TooLate("a compensating action was registered after the request had failed or ended")
        self._count_registration("compensating action")
        if self._compensations is None:
            self._compensations = []
        name = id or f"{getattr(function, '__name__', 'action')}-{len(self._compensations) + 1}"
        self._compensations.append((name, function))
        return name

    compensate = register_compensating_action

    def _count_registration(self, what: str) -> None:
        if self._stage == "cleanup":
            raise TooLate(f"a {what} was registered after the request had ended")
        if self._registrations >= MAX_REGISTRATIONS:
            raise RegistrationError(f"one request may register {MAX_REGISTRATIONS} hooks and callbacks, not more")
        self._registrations += 1

    @property
    def lifecycle(self) -> RequestLifecycle:
        """Callbacks for cleanup, timeout, error and phase changes of this request."""
        if self._lifecycle is None:
            self._lifecycle = RequestLifecycle(self)
        return self._lifecycle

    def enter(self, phase: str) -> None:
        """Change the phase and tell whoever asked to be told."""
        previous, self.phase = self.phase, phase
        if self._lifecycle is not None and self._lifecycle.phases and phase != previous:
            self._lifecycle.announce(phase, previous)

    # -- operations and snapshots -------------------------------------------------------------

    def track(self, work: Awaitable[T], id: str | None = None) -> asyncio.Task[T]:
        """Run `work` beside the handler; snapshots hold its status, and the request's end cancels it.

        Args:
            id: names it in snapshots; unique within the request. Counted when left out.
        Raises:
            RegistrationError: the id is taken, there are 1000 already, or this is a handler's thread.
            TooLate: the request is over.
        """
        if self._stage == "cleanup":
            raise refused(work, TooLate("an operation was started after the request had ended"))
        if self._operations is None:
            self._operations = Operations()
        return self._operations.track(work, id)

    @property
    def operations(self) -> Operations:
        """The tracked operations and what is known of them."""
        if self._operations is None:
            self._operations = Operations()
        return self._operations

    def snapshot(self) -> Snapshot:
        """State, outstanding operations, hook position and phase as of now; later changes do not show.

        Raises:
            SnapshotError: a value cannot be copied; names its key.
        """
        return take_snapshot(
            request_id=self.request_id,
            timestamp=int(self._clock() * 1000),
            state=self._state,
            outstanding=self._operations.records() if self._operations is not None else (),
            last_hook_index=self._hook_index,
            handler_version=self._version,
            phase=self.phase,
            trace_id=self.trace_id,
            client_id=self.client_id,
        )

    def restore(self, token: Snapshot) -> None:
        """Go back to a snapshot: same state, operations, hook position and phase.

        Operations that were pending then and have ended since are pending again in the record; what
        they did is not undone.

        Raises:
            SnapshotError: not a snapshot, or one that cannot be copied.
        """
        if not isinstance(token, Snapshot):
            raise SnapshotError(f"restore() takes what snapshot() returned, not {type(token).__name__}")
        self._state = copy_state(token.state) or None
        if token.outstanding or self._operations is not None:
            self.operations.restore(token.outstanding)
        self._hook_index = token.last_hook_index
        self.enter(token.phase)

    @property
    def last_hook_index(self) -> int:
        """Position of the hook that finished last, counted over all hooks of this request; -1 before."""
        return self._hook_index

    # -- messages -----------------------------------------------------------------------------

    @property
    def _local_topics(self) -> LocalTopics:
        if self._topics is None:
            if self._topics_of is None:
                raise GatiError("this context is not connected to a fabric: nothing can be published")
            self._topics = self._topics_of(self.request_id)
        return self._topics

    def publish(self, event: str, payload: Any = None) -> None:
        """Publish to whoever listens to this request's topic `event`, in whichever process; nobody else.

        Raises:
            BrokerUnavailable: the broker is away.
        """
        self._local_topics.publish(event, payload)

    def subscribe(self, event: str, callback: Callable[..., Any] | None = None, **options: Any) -> Subscription:
        """Listen to this request's topic `event`; see `GlobalContext.subscribe`. Ends with the request."""
        return self._local_topics.subscribe(event, callback, **options)

    @property
    def websocket(self) -> Any:
        """The client's socket in a `websocket` handler; elsewhere the events of this request alone."""
        if self._websocket is not None:
            return self._websocket
        if self._events is None:
            self._events = self._local_topics.events
        return self._events

    # -- log ----------------------------------------------------------------------------------

    def log(self, message: str, level: str = "info", **fields: Any) -> None:
        """Write one structured line that carries the request id.

        Raises:
            ValueError: the level is none of debug, info, warning, error, critical.
        """
        if level not in _LEVELS:
            raise ValueError(f"level {level!r} is none of {', '.join(_LEVELS)}")
        getattr(_log, level)(message, request_id=self._descriptor.request_id, **fields)

    @property
    def logger(self) -> Any:
        """A logger with `info`, `warning`, `error` and `debug` whose lines carry the request id."""
        return _bound(request_id=self._descriptor.request_id)
