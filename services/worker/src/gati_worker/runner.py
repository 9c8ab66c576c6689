"""The child process: loads one package, announces it, runs its work, leaves in order.

Started by the supervisor, which writes one `Assignment` as a JSON line to standard input and reads
`Status` lines from the file descriptor named in it. The end of standard input means that the
supervisor is gone; SIGTERM means drain. Everything is imported before the assignment is read, so
that a child started ahead of time takes over within milliseconds.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import anyio
import anyio.to_thread
import msgspec
import structlog
import uvloop

from gati_core import App
from gati_core.app.inspection import report_on
from gati_core.app.packages import LoadError, PackageSpec, fingerprint, load
from gati_core.app.versioning import PackageVersions
from gati_core.app.wheels import check_report, read_wheel
from gati_core.contexts import Bucket, GlobalContext, Instance, TopicHost, Topics, memory_used
from gati_core.errors import GatiError, MessageTooLarge, PackageError, SchemaError, TransientError
from gati_core.fabric import QUIET_TICK_S, ChannelHost, Fabric, KvBucket, PullConsumer, open_fabric
from gati_core.fabric.topics import FabricTopics
from gati_core.lifecycle import HandlerThreads, Lifecycle, Observers, watch_tasks
from gati_core.manifests import PoolManifest, WorkerAnnouncement, pool_name, publishing_store
from gati_core.observe import set_up_logging, settle_garbage_collector
from gati_core.settings import FabricSettings
from gati_core.timescape import fabric_registry
from gati_core.wire import StoredRun, TraceRecord, encode
from gati_worker.counting import HopTotals, ProcessCounts, write_counts
from gati_worker.duties import ProcessDuties, first_config
from gati_worker.execution import Executor
from gati_worker.ledger import CrashLedger
from gati_worker.schemas import activate_schemas, decommission_schemas, schema_user
from gati_worker.settings import WorkerSettings
from gati_worker.watchdog import known_code, open_watchdog

log = structlog.get_logger(__name__)

_SPENT = 4
_WEIGH_EVERY_S = 1.0
_ASK_AGAIN_S = 30.0
_QUIET_AFTER_S = 1.0
_MAX_STORED_RUN = 512 * 1024


class Assignment(msgspec.Struct, kw_only=True):
    """What the supervisor asks of a child."""

    spec: PackageSpec
    settings: WorkerSettings
    fabric: FabricSettings
    ledger: str
    status_fd: int
    worker: str
    """The id under which it announces itself: the supervisor takes that down if the child cannot."""
    wheel: str = ""
    """What the package was installed from, if it was published."""
    purpose: Literal["serve", "decommission"] = "serve"
    counts: str = ""
    """The file in which it leaves what it has counted; none when empty."""


class Status(msgspec.Struct, kw_only=True):
    """What a child tells its supervisor."""

    event: Literal["ready", "failed", "worn_out", "preparing", "idle", "crashing", "steady", "done"]
    """`idle`: no request for `idle_s`. `crashing` and `steady` come from the supervisor: it has died again and again,
    and no longer does. `done`: what was asked for besides serving."""
    pool: str = ""
    worker: str = ""
    routes: list[str] = []
    error: str = ""
    where: str = ""
    excerpt: str = ""
    within_s: float = 0.0
    """When it is preparing: what it may still need for that, beside the usual."""


class Runner:
    """One package in this process. `start`, then `drain`."""

    def __init__(
        self,
        *,
        app: App,
        pool: str,
        worker_id: str,
        spec: PackageSpec,
        settings: WorkerSettings,
        fabric: Fabric,
        ledger: CrashLedger,
        environ: Mapping[str, str],
        on_progress: Callable[[float], None] = lambda _seconds: None,
        on_idle: Callable[[], None] = lambda: None,
        is_published: bool = False,
        counts_file: Path | None = None,
    ) -> None:
        self.app = app
        self.pool = pool
        self.id = worker_id
        self._spec = spec
        self._version = spec.version
        self._versions = PackageVersions(app, fabric_registry(fabric), publishing_store(fabric))
        self._settings = settings
        self._fabric = fabric
        self._ledger = ledger
        self._environ = environ
        self._on_progress = on_progress
        self._on_idle = on_idle
        self._is_published = is_published
        self._counts_file = counts_file
        self._started_ms = time.time_ns() // 1_000_000
        self._manifest = PoolManifest(app=app.name, pool=pool, version=spec.version, handlers=[])
        self._members = KvBucket(fabric.connection, fabric.subjects.pools_bucket)
        self._consumers: list[PullConsumer] = []
        self._state: Literal["ready", "draining"] = "ready"
        self._beat_at = 0.0
        self._beats: asyncio.Task[None] | None = None
        self._executor: Executor | None = None
        self._most_requests = settings.max_requests + random.randrange(settings.max_requests // 10 + 1)  # noqa: S311
        self._weighed_at = 0.0
        self._busy_at = 0.0
        self._seen = -1
        self._taken = -1
        self._taken_at = 0.0
        self.worn_out = asyncio.Event()
        """Set when this process should be replaced: too many handlers run on after their cancellation, or it has
        served or grown as much as it may."""
        self.is_spent = asyncio.Event()
        """Set when there are twice as many: it leaves, replaced or not."""

    @property
    def executor(self) -> Executor:
        """What runs the handlers; there after `start`."""
        if self._executor is None:
            raise RuntimeError("start() first")
        return self._executor

    async def start(self) -> None:
        """Prepare buckets and consumers, begin to pull, and announce this worker.

        Raises:
            GatiError: the broker or the topology does not allow it, or a schema of a database cannot be migrated.
        """
        subjects, connection = self._fabric.subjects, self._fabric.connection
        # First of all: start-up hooks use the databases.
        await activate_schemas(
            self._fabric,
            self.app,
            user=schema_user(self._spec, self.app.name, self.pool),
            actor=f"worker:{self.id}",
            environ=self._environ,
            on_progress=self._on_progress,
        )
        handlers = [handler.manifest for handler in self.app.handlers.values()]
        buckets = {}
        for name in self.app.buckets:
            await self._fabric.topology.ensure_bucket(subjects.app_bucket(name))
            buckets[name] = KvBucket(connection, subjects.app_bucket(name))
        durables = await self._fabric.topology.ensure_pool(self.pool, {each.id: each.mode for each in handlers})
        lifecycle = await self._prepare_lifecycle(buckets)
        self._executor = Executor(
            app=self.app,
            pool=self.pool,
            fabric=self._fabric,
            lifecycle=lifecycle,
            ledger=self._ledger,
            versions=self._versions,
            max_channels=self._settings.max_channels,
        )
        self._duties = ProcessDuties(
            gctx=lifecycle.gctx,
            settings=self._settings,
            handlers=len(handlers),
            counts=lambda: (self.executor.stats.replied, self.executor.stats.failed),
        )
        await self._duties.start()
        for subject in (subjects.cancel_any, subjects.cancel(self.pool)):
            await connection.subscribe(subject, self._executor.on_cancel)
        await self._register()
        self._manifest = await self._publish_manifest(
            PoolManifest(
                app=self.app.name,
                pool=self.pool,
                version=self._version,
                handlers=handlers,
                published_ms=self._started_ms,
            )
        )
        await self._topic_host.start()
        for mode, durable in durables.items():
            consumer = PullConsumer(
                connection,
                stream=subjects.work_stream,
                durable=durable,
                capacity=self._settings.max_in_flight,
                on_delivery=self._executor.on_delivery,
                delivers_once=mode == "at_most_once",
            )
            self._consumers.append(consumer)
            await consumer.start()
        await self._announce()
        connection.on_tick(self._tick)
        if self._settings.block_warn_s > 2 * QUIET_TICK_S:  # else quiet would look like blocked
            connection.quiet_while(self._is_quiet)

    async def _prepare_lifecycle(self, buckets: Mapping[str, Bucket]) -> Lifecycle:
        """What handlers are given: contexts, topics, channels, threads; and who observes them."""
        subjects, connection, settings = self._fabric.subjects, self._fabric.connection, self._settings
        port = FabricTopics(self._fabric)
        self._topics = Topics(port, publisher=self.id)
        gctx = GlobalContext(
            Instance(
                self.id,
                self.app.name,
                self.pool,
                socket.gethostname(),
                self._started_ms,
                settings.region,
                settings.zone,
            ),
            buckets=buckets,
            config=await anyio.to_thread.run_sync(first_config, settings),
            lifecycle=self.app.lifecycle,
            topics=self._topics,
        )
        self._topic_host = TopicHost(
            topics=self._topics, port=port, app=self.app.name, handlers=self.app.subscribers, gctx=gctx
        )
        self._channels = ChannelHost(connection, subjects, self.id)
        await connection.subscribe(self._channels.filter, self._channels.on_message)
        observers = Observers(
            instance=self.id,
            trace=self._keep_trace,
            keep=None if settings.store_runs == "off" else self._keep_run,
            keeps_all=settings.store_runs == "all",
        )
        for listener in self.app.listeners:
            observers.listen(listener)
        lifecycle = Lifecycle(
            gctx=gctx,
            threads=HandlerThreads(settings.threads),
            version=self._version,
            observers=observers,
            channels=self._channels,
            topics=self._topics.local,
        )
        lifecycle.alerts.extend(self.app.alerts)
        watch_tasks(asyncio.get_running_loop())
        return lifecycle

    def _keep_trace(self, record: TraceRecord) -> None:
        subject = self._fabric.subjects.trace(record.request_id).encode()
        self._fabric.publisher.publish(subject, encode(record), _note_trace)

    def _keep_run(self, run: StoredRun) -> None:
        data = encode(run)
        if len(data) > _MAX_STORED_RUN:
            raise MessageTooLarge(f"a stored run of {len(data)} bytes exceeds the limit of {_MAX_STORED_RUN}")
        subject = self._fabric.subjects.stored_run(run.request_id).encode()
        self._fabric.publisher.publish(subject, data, _note_trace)

    async def _publish_manifest(self, manifest: PoolManifest) -> PoolManifest:
        """Make this the app's newest version, unless it is already: then keep its date.

        Workers of one version must agree on its date, or each restart would look like a release.
        """
        bucket = KvBucket(self._fabric.connection, self._fabric.subjects.manifests_bucket)
        key = f"current.{self.app.name}"
        known = await bucket.get(key)
        if known is not None:
            try:
                current = msgspec.json.decode(known.value, type=PoolManifest)
            except msgspec.DecodeError:
                current = None
            if current is not None and current.pool == manifest.pool:
                return current
        await bucket.put(key, msgspec.json.encode(manifest))
        return manifest

    async def _register(self) -> None:
        """Make the handlers versions, unless they are. Routers send nothing to what is none."""
        spec = self._spec
        # A package that is being edited goes through many versions under one number.
        tags = [f"v{self._version}"] if self._version and not spec.root else []
        await self._versions.store_documents()
        done = await self._versions.register(
            package=self._version, actor=f"worker:{self.id}", tags=tags, is_published=self._is_published
        )
        new = [each for each in done if each.is_new]
        if new:
            log.info("versions_registered", app=self.app.name, new=len(new), unchanged=len(done) - len(new))
        for each in new:
            if each.diff is not None and each.diff.breaking:
                told = [change.description for change in each.diff.breaking]
                log.warning(
                    "version_breaks_clients",
                    app=self.app.name,
                    handler=each.handler,
                    version=each.tsv,
                    before=each.parent,
                    changes=told[:5],
                    hint="clients that ask for the version before get it as long as it runs, or with a transformer",
                )

    async def drain(self) -> None:
        """Say so, take nothing more, finish what runs, say goodbye."""
        self._fabric.connection.off(self._tick)
        self._fabric.connection.quiet_while(None)
        self._state = "draining"
        try:
            await self._announce()
            await asyncio.gather(*(consumer.stop_pulling() for consumer in self._consumers))
        except TransientError as exc:
            log.warning("goodbye_failed", error=str(exc))
        connection = self._fabric.connection
        connection.on_tick(self._tick_requests)
        await self._duties.pre_shutdown()
        await self.executor.drain(grace_s=self._settings.drain_grace_s)
        await self._topic_host.aclose()
        connection.off(self._tick_requests)
        await self._duties.shutdown()
        await self._topics.aclose()
        try:
            await self._members.delete(self._key)
        except TransientError as exc:
            log.debug("goodbye_failed", error=str(exc))

    @property
    def _key(self) -> str:
        return self._fabric.subjects.member_key("worker", self.pool, self.id)

    def _is_quiet(self, now: float) -> bool:
        """Whether it has had nothing to do for a moment."""
        executor = self.executor
        taken = executor.stats.received
        if taken != self._taken or executor.in_flight or len(self._channels) or executor.abandoned:
            self._taken, self._taken_at = taken, now
        return now - self._taken_at > _QUIET_AFTER_S

    def _tick(self, now: float) -> None:
        self._tick_requests(now)
        self._duties.tick(now)
        abandoned, limit = self.executor.abandoned, self._settings.max_abandoned
        if abandoned >= limit and not self.worn_out.is_set():
            log.error("worker_worn_out", abandoned=abandoned, hint="this process is being replaced")
            self.worn_out.set()
        self._look_at_age(now)
        self._look_for_work(now)
        if abandoned >= 2 * limit:
            self.is_spent.set()
        if now - self._beat_at > self._settings.heartbeat_s and (self._beats is None or self._beats.done()):
            self._beat_at = now
            self.write_counts()
            self._beats = asyncio.get_running_loop().create_task(self._announce_quietly())

    def _look_at_age(self, now: float) -> None:
        """Whether it has served or grown as much as it may."""
        settings, handled = self._settings, self.executor.stats.replied
        if self.worn_out.is_set() or now - self._weighed_at < _WEIGH_EVERY_S:
            return
        self._weighed_at = now
        if settings.max_requests and handled >= self._most_requests:
            log.info("worker_recycled", handled=handled, max_requests=settings.max_requests)
            self.worn_out.set()
        elif settings.max_rss_mb and (used := memory_used() or 0) > settings.max_rss_mb * 1024 * 1024:
            log.warning("worker_recycled", rss_mb=used // (1024 * 1024), max_rss_mb=settings.max_rss_mb)
            self.worn_out.set()

    def _look_for_work(self, now: float) -> None:
        """Say so when there was none for long. What listens to topics has work of another kind."""
        executor = self.executor
        if executor.in_flight or len(self._channels) or executor.stats.replied != self._seen or self.app.subscribers:
            self._seen, self._busy_at = executor.stats.replied, now
        elif self._settings.idle_s and now - self._busy_at > self._settings.idle_s:
            self._busy_at = now
            self._on_idle()

    def _tick_requests(self, now: float) -> None:
        self.executor.tick(now)
        if len(self._channels):
            self._channels.tick(now)

    def write_counts(self) -> None:
        """Leave what was counted to the supervisor."""
        if self._counts_file is None:
            return
        executor = self.executor
        hops = [
            HopTotals(from_version=start, to_version=end, counts=counts)
            for (start, end), counts in executor.transforms.items()
        ]
        counts = ProcessCounts(
            app=self.app.name, stats=executor.stats, versions=list(executor.by_version.values()), hops=hops
        )
        try:
            write_counts(counts, self._counts_file)
        except OSError as exc:
            log.warning("counts_not_written", file=str(self._counts_file), error=str(exc))

    async def _announce_quietly(self) -> None:
        try:
            await self._announce()
        except TransientError as exc:
            log.warning("heartbeat_failed", error=str(exc))

    async def _announce(self) -> None:
        stats, report = self.executor.stats, self._duties.report
        announcement = WorkerAnnouncement(
            worker=self.id,
            manifest=self._manifest,
            state=self._state,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_ms=self._started_ms,
            in_flight=self.executor.in_flight,
            capacity=self._settings.max_in_flight,
            handled=stats.replied,
            failed=stats.failed,
            health=report.status if report is not None else "healthy",
            health_notes=report.notes[:20] if report is not None else [],
            is_last_resort=report is not None and report.only_errors,
            abandoned=self.executor.abandoned,
            counts={name: each for name, each in self.executor.by_handler.items() if each.answers},
        )
        ttl_s = max(2, int(self._settings.heartbeat_s * 4))
        await self._members.put(self._key, msgspec.json.encode(announcement), ttl_s=ttl_s)


def _note_trace(_context: object, error: GatiError | None) -> None:
    if error is not None:
        log.debug("trace_record_dropped", error=str(error))


async def _run(assignment: Assignment, app: App, pool: str) -> None:
    ledger = CrashLedger(Path(assignment.ledger), assignment.settings.ledger_slots)
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, leave.set)
    # Ctrl-C goes to the whole process group; the supervisor decides when we leave.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_reader(sys.stdin.fileno(), leave.set)  # end of file: the supervisor is gone
    name = f"gati-worker {assignment.spec.name}"
    known = known_code(_functions(app))
    async with (
        open_fabric(assignment.fabric, name=name, ensure=False) as fabric,
        open_watchdog(fabric.connection, ledger, known, warn_s=assignment.settings.block_warn_s),
    ):
        runner = Runner(
            app=app,
            pool=pool,
            spec=assignment.spec,
            settings=assignment.settings,
            fabric=fabric,
            ledger=ledger,
            worker_id=assignment.worker,
            environ=os.environ,
            is_published=bool(assignment.wheel),
            counts_file=Path(assignment.counts) if assignment.counts else None,
            on_idle=lambda: _tell(assignment.status_fd, Status(event="idle", pool=pool)),
            on_progress=lambda seconds: _tell(
                assignment.status_fd, Status(event="preparing", pool=pool, within_s=seconds)
            ),
        )
        await runner.start()
        settle_garbage_collector()
        routes = [f"{','.join(h.manifest.methods)} {h.manifest.path}" for h in app.handlers.values()]
        _tell(assignment.status_fd, Status(event="ready", pool=pool, worker=runner.id, routes=routes))
        asking = loop.create_task(_ask_for_replacement(runner, assignment.status_fd))
        waiting = [loop.create_task(leave.wait()), loop.create_task(runner.is_spent.wait())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in (asking, *waiting):
            task.cancel()
        loop.remove_reader(sys.stdin.fileno())
        settings = assignment.settings
        with anyio.move_on_after(settings.drain_grace_s + 2 * settings.shutdown_hooks_s + 5):
            await runner.drain()
    runner.write_counts()
    ledger.close()
    if runner.executor.abandoned or app.lifecycle.abandoned:
        _exit(_SPENT if runner.is_spent.is_set() else 0)


async def _ask_for_replacement(runner: Runner, status_fd: int) -> None:
    """The supervisor starts another child and drains this one when that is ready, as after a change.

    A child that could not be started does not make this one any younger, so it asks again.
    """
    await runner.worn_out.wait()
    while True:
        _tell(status_fd, Status(event="worn_out", pool=runner.pool, worker=runner.id))
        await asyncio.sleep(_ASK_AGAIN_S)


async def _decommission(assignment: Assignment, app: App, pool: str) -> None:
    """End what a version that has ended used beside its requests; no worker of it may be left.

    Raises:
        SchemaError: a rollback failed; it can be tried again.
    """
    async with open_fabric(assignment.fabric, name=f"gati-worker {assignment.spec.name}", ensure=False) as fabric:
        members = KvBucket(fabric.connection, fabric.subjects.pools_bucket)
        prefix = fabric.subjects.member_key("worker", pool, "")
        with anyio.fail_after(assignment.settings.drain_grace_s + 2 * assignment.settings.shutdown_hooks_s + 10):
            while True:
                if not any(key.startswith(prefix) for key in await members.keys()):
                    break
                await anyio.sleep(0.2)
        results = await decommission_schemas(
            fabric,
            app,
            user=schema_user(assignment.spec, app.name, pool),
            actor=f"worker:{assignment.worker}",
            environ=os.environ,
        )
    failed = next((each for each in results if not each.success), None)
    if failed is not None:
        raise SchemaError(failed.error, schema=failed.schema, script=failed.failed_script)
    _tell(assignment.status_fd, Status(event="done", pool=pool))


def _check_wheel(app: App, wheel: Path) -> None:
    """Whether the package is what its wheel's manifest says, by which it was let in.

    Raises:
        PackageError: it is not, or the wheel cannot be read.
    """
    differences = check_report(read_wheel(wheel).report, report_on(app))
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise PackageError(
            f"the package is not what the manifest in its wheel says: {'; '.join(differences[:5])}{more};"
            " build it again with `gati build`"
        )


def _exit(code: int) -> NoReturn:
    """End now: a thread that does not return would keep the interpreter from ending."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _functions(app: App) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What of the package may run on the loop, with the name by which a block is blamed on it."""
    for name, handler in app.handlers.items():
        yield name, handler.call.function
        plan = handler.plan()
        for hook in plan.hooks():
            yield f"hook {hook.id}", hook.function
        for each in (*plan.middleware, *plan.error_middleware):
            yield f"middleware {getattr(each.function, '__qualname__', each.function)}", each.function
    for transformer in app.transformers:
        for name, function in transformer.functions.items():
            yield f"transformer {transformer.name}.{name}", function
    for subscriber in app.subscribers:
        yield f"subscriber of {subscriber.topic}", subscriber.function
    for listener in app.listeners:
        yield "event listener", listener
    for alert in app.alerts:
        yield "alert", alert
    yield from app.lifecycle.functions()


def _tell(fd: int, status: Status) -> None:
    try:
        os.write(fd, msgspec.json.encode(status) + b"\n")
    except OSError as exc:  # the supervisor is gone; standard input says so as well
        log.debug("status_not_sent", error=repr(exc))


def main() -> None:
    """Entry point of the child: exit code 0 after a drain, 3 when the package could not be started."""
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            # What a handler prints appears when it happens, and a line in one piece.
            output.reconfigure(line_buffering=True, write_through=False)
    line = sys.stdin.buffer.readline()
    if not line.strip():
        return  # a spare that was not needed
    assignment = msgspec.json.decode(line, type=Assignment)
    settings = assignment.settings
    set_up_logging(service=f"worker/{assignment.spec.name}", level=settings.log_level, log_format=settings.log_format)
    try:
        app = load(assignment.spec)
        if assignment.wheel:
            _check_wheel(app, Path(assignment.wheel))
        pool = pool_name(app.name, fingerprint(assignment.spec))
        uvloop.run((_run if assignment.purpose == "serve" else _decommission)(assignment, app, pool))
    except LoadError as exc:
        _tell(assignment.status_fd, Status(event="failed", error=str(exc), where=exc.where, excerpt=exc.excerpt))
        sys.exit(3)
    except TimeoutError:
        _tell(assignment.status_fd, Status(event="failed", error="workers of this version are still there"))
        _exit(3)
    except GatiError as exc:
        _tell(assignment.status_fd, Status(event="failed", error=str(exc)))
        _exit(3)  # a start-up hook may have left a thread behind


if __name__ == "__main__":
    main()
