"""The connection: one per process, rebuilt when the client closes, healthy while there is progress.

nats-py reconnects by itself but closes for good on some errors (F7), and a broker that is frozen
rather than dead keeps its TCP connection. So the health here is progress: a ping every half second
must come back; and a closed client is replaced by a new one with the same subscriptions.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import msgspec
import nats.errors
import structlog
from nats.aio.subscription import Subscription as NatsSubscription
from nats.js import JetStreamContext

from gati_core.errors import BrokerUnavailable, MessageTooLarge
from gati_core.fabric._client import DirectClient
from gati_core.fabric.ports import RawCallback
from gati_core.ids import new_instance_id
from gati_core.settings import FabricSettings
from gati_core.wire import Subjects, for_namespace

log = structlog.get_logger(__name__)

_TICK_S = 0.05
QUIET_TICK_S = 0.2
"""Between two ticks of a process that has nothing to do: many may live beside one that has."""
_PING_EVERY_S = 0.5
_SETTLE_S = 0.25
"""After a reconnect, replies wait this long: the ingress they are for may still be reconnecting, and a
reply to a subject that nobody listens on vanishes without a word (F14)."""
_HOLD_MESSAGES = 20_000
_CONNECT_TIMEOUT_S = 2.0


class ConnectionHealth(msgspec.Struct, frozen=True):
    """A snapshot for readiness probes, metrics and `gati doctor`."""

    is_connected: bool
    is_up: bool
    since_progress_s: float
    reconnects: int
    rebuilds: int
    held_messages: int
    dropped_messages: int
    server_version: str
    server_url: str


class Subscription:
    """A core subscription; the connection renews it on every new client."""

    def __init__(self, connection: Connection, subject: str, callback: RawCallback, queue: str) -> None:
        self._connection = connection
        self.subject = subject
        self.callback = callback
        self.queue = queue
        self._current: NatsSubscription | None = None

    async def _attach(self, client: DirectClient) -> None:
        self._current = await client.subscribe_direct(self.subject, self.callback, queue=self.queue)

    async def aclose(self) -> None:
        """Leave the subject; what was already on its way is still handled."""
        self._connection._subscriptions.discard(self)
        current, self._current = self._current, None
        if current is not None:
            try:
                await self._connection._client.unsubscribe_direct(current)
            except (nats.errors.Error, OSError, TimeoutError) as exc:
                log.debug("unsubscribe_failed", subject=self.subject, error=repr(exc))


class Connection:
    """See the module. Made by `open_connection`, which owns its tasks."""

    def __init__(self, settings: FabricSettings, *, name: str) -> None:
        self.settings = settings
        self.subjects: Subjects = for_namespace(settings.namespace)
        self.name = name
        self.id = new_instance_id()
        self.inbox = f"_INBOX.{self.id}"
        self._client = DirectClient()
        self._subscriptions: set[Subscription] = set()
        self._on_up: list[Callable[[], None]] = []
        self._on_down: list[Callable[[], None]] = []
        self._tickers: list[Callable[[float], None]] = []
        self._is_quiet: Callable[[float], bool] | None = None
        self._is_ticking_slowly = False
        self._quickened = asyncio.Event()
        self._held: deque[tuple[bytes, bytes]] = deque()
        self._dropped = 0
        self._rebuilds = 0
        self._reconnects = 0
        self._server_id = ""
        self.server_changed_ms = 0
        """Unix milliseconds at which we found another server process than before; 0 when we never did.

        A lone broker that was killed forgets the last acks and deliveries that it confirmed, and which
        message ids it has seen: what must not run twice may then not be taken from before. Copies on
        other servers (`replicas` above 1) remember.
        """
        self._progress_at = 0.0
        self._stalled = False
        self._is_settling = False
        self._closing = False
        self._client_closed = anyio.Event()
        self._last_error = ""

    # -- what services use ------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Connected, and the broker has shown progress within `stalled_after_s`."""
        return self._client.is_connected and not self._stalled

    @property
    def max_payload(self) -> int:
        """Bytes that the server takes in one message, headers included."""
        return int(self._client.max_payload)

    def publish_now(self, subject: bytes, payload: bytes, reply: bytes = b"", headers: bytes = b"") -> None:
        """Buffer one message for the end of this turn of the loop.

        Raises:
            BrokerUnavailable: not connected, or the broker has stalled. Nothing was buffered (F11).
            MessageTooLarge: more than the server takes (F7).
        """
        if self._stalled:
            raise BrokerUnavailable("the broker is connected but does not answer")
        self._client.publish_now(subject, payload, reply, headers)

    def require_up(self, doing: str) -> None:
        """Refuse now what nats-py would keep, let us time out on, and send after a reconnect (F11).

        Raises:
            BrokerUnavailable: the broker is away; `doing` begins the message.
        """
        if not self.is_up:
            raise BrokerUnavailable(f"{doing}: the broker is away")

    def publish_or_hold(self, subject: bytes, payload: bytes) -> None:
        """Send now, or when the broker is back; for acks and replies, which are worth being late.

        At most 20,000 messages are held; the oldest give way, and are counted as dropped.
        """
        if self._is_settling:
            self._hold(subject, payload)
            return
        try:
            self._client.publish_now(subject, payload)
        except BrokerUnavailable:
            self._hold(subject, payload)

    def _hold(self, subject: bytes, payload: bytes) -> None:
        if len(self._held) >= _HOLD_MESSAGES:
            self._held.popleft()
            self._dropped += 1
        self._held.append((subject, payload))

    async def subscribe(self, subject: str, callback: RawCallback, *, queue: str = "") -> Subscription:
        """Call `callback` from the read loop for every message, across reconnects and rebuilds.

        Raises:
            BrokerUnavailable: the client has just closed and is being replaced; nothing was subscribed.
        """
        subscription = Subscription(self, subject, callback, queue)
        try:
            await subscription._attach(self._client)
        except (nats.errors.Error, OSError) as exc:
            raise BrokerUnavailable(f"subscribing to {subject}: {str(exc) or repr(exc)}") from exc
        self._subscriptions.add(subscription)
        return subscription

    def on_up(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every reconnect or rebuild, when subscriptions are in place again."""
        self._on_up.append(listener)

    def on_down(self, listener: Callable[[], None]) -> None:
        """Call `listener` when the connection is lost."""
        self._on_down.append(listener)

    def on_tick(self, listener: Callable[[float], None]) -> None:
        """Call `listener(now)` every 50 ms with the loop's monotonic time: deadlines without timers.

        Every 200 ms while `quiet_while` says that there is nothing to do.
        """
        self._tickers.append(listener)

    def quiet_while(self, is_quiet: Callable[[float], bool] | None) -> None:
        """Tick seldom while `is_quiet(now)`, which is asked at each tick; never when None.

        Whoever says so calls `quicken` as soon as there is something to do.
        """
        self._is_quiet = is_quiet
        self.quicken()

    def quicken(self) -> None:
        """Tick at once, and every 50 ms from now on."""
        if self._is_ticking_slowly:
            self._is_ticking_slowly = False
            self._quickened.set()

    def off(self, listener: Callable[..., None]) -> None:
        """Remove a listener from wherever it was added."""
        for group in (self._on_up, self._on_down, self._tickers):
            if listener in group:
                group.remove(listener)

    def jetstream(self) -> JetStreamContext:
        """The management API of the current client. Fetch it anew for every use: clients are replaced."""
        return self._client.jetstream(timeout=5.0)

    async def flush(self, timeout_s: float = 2.0) -> None:
        """Wait until the broker has read everything sent so far.

        Raises:
            BrokerUnavailable: it did not within `timeout_s`.
        """
        try:
            await self._client.flush(timeout=timeout_s)
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise BrokerUnavailable(f"the broker did not answer a ping within {timeout_s} s") from exc

    def health(self) -> ConnectionHealth:
        """A snapshot; costs no round trip."""
        url = self._client.connected_url if self._client.is_connected else None
        return ConnectionHealth(
            is_connected=self._client.is_connected,
            is_up=self.is_up,
            since_progress_s=max(0.0, asyncio.get_running_loop().time() - self._progress_at),
            reconnects=self._reconnects,
            rebuilds=self._rebuilds,
            held_messages=len(self._held),
            dropped_messages=self._dropped,
            server_version=str(self._client._server_info.get("version", "")),
            server_url=f"{url.hostname}:{url.port}" if url else "",
        )

    def _servers(self) -> str:
        """The addresses for people: without user and password, which end up in logs otherwise."""
        return re.sub(r"//[^/@,]*@", "//", self.settings.nats_url)

    # -- the life of the client ---------------------------------------------------------------

    async def _connect(self, client: DirectClient) -> None:
        async def on_error(exc: Exception) -> None:
            self._last_error = str(exc) or repr(exc)
            log.debug("broker_error_seen", error=self._last_error)

        async def on_disconnect() -> None:
            if client is self._client and not self._closing:
                log.warning("broker_disconnected", servers=self._servers())
                self._tell(self._on_down)

        async def on_reconnect() -> None:
            self._reconnects += 1
            self._came_up()

        async def on_closed() -> None:
            self._client_closed.set()

        await client.connect(
            servers=[url.strip() for url in self.settings.nats_url.split(",")],
            name=self.name,
            error_cb=on_error,
            disconnected_cb=on_disconnect,
            reconnected_cb=on_reconnect,
            closed_cb=on_closed,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            # Jittered, so that a fleet does not come back as one (F16).
            reconnect_time_wait=0.1 + random.random() * 0.1,  # type: ignore[arg-type]  # noqa: S311
            connect_timeout=_CONNECT_TIMEOUT_S,  # type: ignore[arg-type]
            ping_interval=20,
            max_outstanding_pings=2,
            pending_size=64 * 1024 * 1024,
            flush_timeout=5,
        )

    async def _connect_first(self) -> None:
        """Connect, waiting for a broker that is still starting.

        Raises:
            BrokerUnavailable: none answered within `connect_wait_s`; the message says why.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self.settings.connect_wait_s
        was_said = False
        while True:
            with anyio.move_on_after(_CONNECT_TIMEOUT_S):
                try:
                    await self._connect(self._client)
                except (nats.errors.Error, OSError, TimeoutError) as exc:
                    self._last_error = str(exc) or repr(exc)
                else:
                    self._server_id = str(self._client._server_info.get("server_id", ""))
                    self._progress_at = loop.time()
                    return
            if loop.time() >= give_up_at:
                raise BrokerUnavailable(
                    f"no broker at {self._servers()} within {self.settings.connect_wait_s:g} s"
                    f" ({self._last_error or 'no answer'}); is nats-server running, and is GATI_NATS_URL right?"
                )
            if not was_said:
                log.info("broker_awaited", servers=self._servers(), error=self._last_error)
                was_said = True
            await anyio.sleep(0.2)
            self._client = DirectClient()

    def _came_up(self) -> None:
        server_id = str(self._client._server_info.get("server_id", ""))
        if server_id != self._server_id:
            self._server_id = server_id
            if self.settings.replicas == 1:
                self.server_changed_ms = time.time_ns() // 1_000_000
        self._progress_at = asyncio.get_running_loop().time()
        self._stalled = False
        self._is_settling = True
        asyncio.get_running_loop().call_later(_SETTLE_S, self._send_held)
        log.info("broker_connected", server=self.health().server_url)
        self._tell(self._on_up)

    def _send_held(self) -> None:
        self._is_settling = False
        while self._held and self._client.is_connected:
            subject, payload = self._held.popleft()
            try:
                self._client.publish_now(subject, payload)
            except MessageTooLarge as exc:
                # It must not keep back what was held behind it, nor the listeners below.
                self._dropped += 1
                log.warning("held_message_dropped", subject=subject.decode(errors="replace"), error=str(exc))

    @staticmethod
    def _tell(listeners: list[Callable[[], None]]) -> None:
        for listener in list(listeners):
            try:
                listener()
            except Exception:
                log.exception("connection_listener_failed")

    async def _keep_rebuilding(self) -> None:
        """Replace a client that closed for good (F7, authorisation errors)."""
        while not self._closing:  # asked as well as cancelled, as in `_keep_probing`: connecting waits, too
            await self._client_closed.wait()
            self._client_closed = anyio.Event()
            log.warning("broker_client_closed", error=self._last_error)
            self._tell(self._on_down)
            delay_s = 0.1
            while not self._closing:
                client = DirectClient()
                try:
                    with anyio.fail_after(_CONNECT_TIMEOUT_S):
                        await self._connect(client)
                        for subscription in list(self._subscriptions):
                            await subscription._attach(client)
                except (nats.errors.Error, OSError, TimeoutError) as exc:
                    self._last_error = str(exc) or repr(exc)
                    await anyio.sleep(delay_s + random.random() * 0.1)  # noqa: S311
                    delay_s = min(delay_s * 2, 2.0)
                    continue
                self._client = client
                self._client_closed = anyio.Event()
                self._rebuilds += 1
                self._came_up()
                break

    async def _keep_ticking(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._closing:
            if self._has_nothing_to_do(loop.time()):
                self._is_ticking_slowly = True
                self._quickened.clear()
                with anyio.move_on_after(QUIET_TICK_S):
                    await self._quickened.wait()
                self._is_ticking_slowly = False
            else:
                await anyio.sleep(_TICK_S)
            now = loop.time()
            for ticker in list(self._tickers):
                try:
                    ticker(now)
                except Exception:
                    log.exception("connection_ticker_failed")

    def _has_nothing_to_do(self, now: float) -> bool:
        try:
            return self._is_quiet is not None and self._is_quiet(now)
        except Exception:
            log.exception("quiet_not_known")
            self._is_quiet = None
            return False

    async def _keep_probing(self) -> None:
        """Turn "no progress" into `is_up = False`, and a long stall into a new connection."""
        loop = asyncio.get_running_loop()
        seen = -1
        while not self._closing:  # asked as well as cancelled: `wait_for` of Python 3.11 can swallow a cancellation
            await anyio.sleep(_PING_EVERY_S)
            client = self._client
            if not client.is_connected:
                continue
            if client.received == seen:
                try:
                    await client.flush(timeout=_PING_EVERY_S)
                except (nats.errors.Error, OSError, TimeoutError):
                    pass
            if client.received != seen:
                seen = client.received
                self._progress_at = loop.time()
                if self._stalled:
                    self._stalled = False
                    log.info("broker_progress_resumed")
                continue
            stalled_s = loop.time() - self._progress_at
            if stalled_s > self.settings.stalled_after_s and not self._stalled:
                self._stalled = True
                log.warning("broker_stalled", stalled_s=round(stalled_s, 1))
            if stalled_s > 5 * self.settings.stalled_after_s:
                self._progress_at = loop.time()
                await client.force_reconnect()

    async def _close(self) -> None:
        self._closing = True
        with anyio.move_on_after(2, shield=True):
            try:
                self._send_held()
                if self._client.is_connected:
                    await self._client.flush(timeout=1)
                else:
                    # nats-py would write what is buffered to a socket that is gone, and fail.
                    self._client.discard_buffered()
                await self._client.close()
            except (nats.errors.Error, OSError, TimeoutError, RuntimeError) as exc:
                log.debug("broker_close_failed", error=repr(exc))


@asynccontextmanager
async def open_connection(settings: FabricSettings, *, name: str) -> AsyncIterator[Connection]:
    """Connect, keep connected, and close with the last messages flushed.

    Raises:
        BrokerUnavailable: no broker answered within `connect_wait_s`.
    """
    connection = Connection(settings, name=name)
    await connection._connect_first()
    # Plain tasks with one owner instead of a task group: an error of the caller's must come out as
    # it is, not wrapped in an ExceptionGroup.
    duties = [
        asyncio.create_task(duty(), name=f"{name} {duty.__name__}")
        for duty in (connection._keep_rebuilding, connection._keep_ticking, connection._keep_probing)
    ]
    try:
        yield connection
    finally:
        connection._closing = True
        for duty_task in duties:
            duty_task.cancel()
        await asyncio.gather(*duties, return_exceptions=True)
        await connection._close()
