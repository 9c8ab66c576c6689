"""The supervisor: one child per package, restarted after a crash, replaced after a change.

It never imports user code, and it answers for children that cannot: what a crashed child had
started at most once gets its 502 at once, and what may run again is given back to the queue.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import anyio
import structlog
import watchfiles

from gati_core.app.packages import PackageSpec
from gati_core.errors import TransientError, WorkerCrashed
from gati_core.fabric import Fabric, KvBucket
from gati_core.wire import encode, problem_reply
from gati_worker.care import Care
from gati_worker.child import ENDED_EARLY, Child
from gati_worker.counting import WorkerCounts
from gati_worker.runner import Status
from gati_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

_QUICK_CRASH_S = 5.0
_CRASHES = 3
_GIVE_BACK = b'-NAK {"delay": 150000000}'
"""Deliver again in 150 ms: at once, the broker may not have noticed yet that the dead child's connection
is gone, and the redelivery would go there, at the cost of an attempt and a lease."""
_SPARES = 2
"""Children started ahead in watch mode: two saves in a row find one each."""
_SPARE_DELAY_S = 1.0
_COUNT_EVERY_S = 1.0


class Supervisor:
    """Hosts packages until `stop`.

    Args:
        watch: replace a package's child when its files change (packages with a `root` only).
        first_child: one that was started while the broker was still awaited.
        counts: what its processes count; summed up every second where metrics are served.
    """

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        fabric: Fabric,
        specs: list[PackageSpec],
        watch: bool = False,
        first_child: asyncio.Task[Child] | None = None,
        counts: WorkerCounts | None = None,
    ) -> None:
        self._settings = settings
        self._fabric = fabric
        self._watch = watch
        self._spares: deque[asyncio.Task[Child]] = deque([first_child] if first_child is not None else [])
        self._spare_wanted = asyncio.Event()
        self._is_starting = True
        self._hosted = [Hosted(self, spec) for spec in specs]
        self._stopping = asyncio.Event()
        self._farewells: dict[asyncio.Task[None], Child] = {}
        self._added: dict[Hosted, asyncio.Task[None]] = {}
        self.counts = counts or WorkerCounts()

    def add(self, hosted: Hosted) -> None:
        """Host one more package, until `remove` or the end."""
        self._added[hosted] = asyncio.create_task(hosted.run(), name=hosted.spec.name)

    async def remove(self, hosted: Hosted) -> None:
        """Host a package no more: its child drains in the background."""
        task = self._added.pop(hosted, None)
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        child, hosted.current = hosted.current, None
        if child is not None:
            self.say_farewell(child)

    async def run(self) -> None:
        """Start everything and keep it running; returns after `stop`, with all children gone."""
        tasks = [asyncio.create_task(hosted.run(), name=hosted.spec.name) for hosted in self._hosted]
        if self._watch:
            tasks += [asyncio.create_task(self._follow(hosted)) for hosted in self._hosted if hosted.spec.root]
        tasks.append(asyncio.create_task(self._keep_healthy()))
        if self._settings.metrics_port:
            tasks.append(asyncio.create_task(self._keep_counts()))
        care = Care(settings=self._settings, children=self._children, publish=self._fabric.connection.publish_or_hold)
        looks = asyncio.create_task(care.run())
        try:
            await self._stopping.wait()
        finally:
            tasks += self._added.values()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            within_s = self._settings.drain_grace_s + 2 * self._settings.shutdown_hooks_s + 6
            await asyncio.gather(*(hosted.leave(within_s=within_s) for hosted in (*self._hosted, *self._added)))
            if self._farewells:
                await asyncio.wait(list(self._farewells), timeout=within_s)
            self._spare_wanted.set()
            for spare in self._spares:
                await (await spare).dismiss()
            looks.cancel()  # last: a child that drains keeps its leases too
            await asyncio.wait([looks])

    def stop(self) -> None:
        """Begin to leave."""
        self._stopping.set()

    async def kill(self) -> None:
        """Leave now: a second signal."""
        for child in self._children():
            await child.kill()

    def _children(self) -> list[Child]:
        """Those that serve, and those that were replaced and drain."""
        hosted = (*self._hosted, *self._added)
        serving = [each.current for each in hosted if each.current is not None]
        return [*serving, *self._farewells.values()]

    async def new_child(self) -> Child:
        """A child to assign; in watch mode one that was started ahead of time."""
        if not self._watch:
            return await Child.spawn()
        self._spare_wanted.set()
        while self._spares:
            child = await self._spares.popleft()
            if child.is_alive:
                return child
        return await Child.spawn()

    def prepare_spares(self) -> None:
        """Have the next children ready before they are needed, but not before those needed now have started."""
        if not self._watch or self._stopping.is_set():
            return
        self._spare_wanted.clear()
        delay_s = _SPARE_DELAY_S if self._is_starting else 0.0
        self._is_starting = False
        while len(self._spares) < _SPARES:
            self._spares.append(asyncio.create_task(self._spawn_spare(delay_s)))
            delay_s += _SPARE_DELAY_S

    async def _spawn_spare(self, delay_s: float) -> Child:
        try:
            await asyncio.wait_for(self._spare_wanted.wait(), delay_s)
        except TimeoutError:
            pass
        return await Child.spawn()

    def say_farewell(self, child: Child) -> None:
        """Drain a replaced child in the background."""
        task = asyncio.create_task(self._drain(child))
        self._farewells[task] = child
        task.add_done_callback(self._farewells.pop)

    async def _drain(self, child: Child) -> None:
        await child.drain(within_s=self._settings.drain_grace_s + 2 * self._settings.shutdown_hooks_s + 6)
        await self.settle_for(child, crashed=False)

    async def settle_for(self, child: Child, *, crashed: bool) -> None:
        """Answer and give back what a dead child left, and take its announcement down."""
        unfinished = child.unfinished()
        now_ms = time.time() * 1000
        connection = self._fabric.connection
        for entry in unfinished:
            if not entry.is_once:
                connection.publish_or_hold(entry.ack_subject, _GIVE_BACK)
            elif entry.deadline_ms > now_ms:
                error = WorkerCrashed("the worker died while it ran this request; it is not run again")
                connection.publish_or_hold(entry.reply_to.encode(), encode(problem_reply(error, entry.request_id)))
        if unfinished:
            once = sum(entry.is_once for entry in unfinished)
            log.warning("requests_settled_for_child", answered=once, given_back=len(unfinished) - once)
        self.counts.keep(child)
        child.forget()
        if crashed:
            await self._take_down(child)

    async def _take_down(self, child: Child) -> None:
        """Remove the announcement of a child that ended without doing so: routers would go on counting on it."""
        members = KvBucket(self._fabric.connection, self._fabric.subjects.pools_bucket)
        try:
            if child.ready is not None:
                await members.delete(self._fabric.subjects.member_key("worker", child.ready.pool, child.worker_id))
                return
            # It announces itself before it tells us that it is ready, and only then do we know its pool.
            for key in await members.keys():
                if key.endswith(f".{child.worker_id}"):
                    await members.delete(key)
        except TransientError as exc:
            log.debug("announcement_not_removed", worker=child.worker_id, error=str(exc))

    async def _follow(self, hosted: Hosted) -> None:
        root = Path(hosted.spec.root)
        is_polling = False
        while True:
            try:
                await self._follow_once(hosted, root, is_polling=is_polling)
            except Exception as exc:
                # For example no inotify watches left, or a file system that has none.
                log.warning("watch_failed", app=hosted.spec.name, error=str(exc) or repr(exc), fallback="polling")
                is_polling = True
            # The directory itself was removed or replaced, and with it what was watched.
            await anyio.sleep(0.2)
            if await anyio.Path(root).exists():
                hosted.changed.set()

    async def _follow_once(self, hosted: Hosted, root: Path, *, is_polling: bool) -> None:
        # Editors replace a file instead of writing into it, which ends a watch on the file itself.
        is_file = hosted.spec.root.endswith(".py")
        place = anyio.Path(root.parent if is_file else root)
        if not await place.exists():
            return
        identity = (await place.stat()).st_ino
        async for changes in watchfiles.awatch(
            str(place),
            debounce=200,
            step=20,
            rust_timeout=1000,
            yield_on_timeout=True,
            recursive=not is_file,
            force_polling=is_polling or None,
            watch_filter=source_filter(root, is_file=is_file),
        ):
            if changes:
                names = sorted({Path(path).name for _, path in changes})
                log.debug("package_changed", app=hosted.spec.name, files=names)
                hosted.changed.set()
            try:
                if (await place.stat()).st_ino != identity:
                    return
            except OSError:
                return

    async def _keep_healthy(self) -> None:
        while True:
            if self._settings.health_file and all(hosted.is_healthy for hosted in self._hosted):
                await anyio.Path(self._settings.health_file).touch()
            await anyio.sleep(self._settings.heartbeat_s)

    async def _keep_counts(self) -> None:
        while True:
            self.counts.look(child.app for child in self._children() if not child.is_leaving)
            await anyio.sleep(_COUNT_EVERY_S)

    @property
    def settings(self) -> WorkerSettings:
        """What the children get as well."""
        return self._settings

    @property
    def fabric(self) -> Fabric:
        """The supervisor's own connection."""
        return self._fabric

    @property
    def watches(self) -> bool:
        """Whether children are replaced when files change."""
        return self._watch


class Hosted:
    """One package and the child that serves it.

    Args:
        python: the interpreter of its environment; the worker's own otherwise.
        wheel: what it was installed from; the child checks that it is what its manifest says.
        on_status: told of each attempt to start it.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        spec: PackageSpec,
        *,
        python: Path | None = None,
        wheel: Path | None = None,
        on_status: Callable[[Status], None] = lambda _status: None,
    ) -> None:
        self._supervisor = supervisor
        self.spec = spec
        self._python = python
        self._wheel = wheel
        self._on_status = on_status
        self.current: Child | None = None
        self.changed = asyncio.Event()
        self._delay_s = supervisor.settings.restart_delay_s
        self._crashes: deque[float] = deque(maxlen=_CRASHES)

    @property
    def is_healthy(self) -> bool:
        """Whether a child serves this package now."""
        return self.current is not None and self.current.is_alive

    async def run(self) -> None:
        """Keep one ready child; replace it when the package changes or it dies."""
        while True:
            started_at = time.monotonic()
            if self.current is None and not await self._start():
                await self._pause_before_retry()
                continue
            child = self.current
            if child is None:
                continue
            causes = [
                asyncio.create_task(child.wait()),
                asyncio.create_task(self.changed.wait()),
                asyncio.create_task(child.worn_out(self._on_status)),
            ]
            if self._is_crashing:
                causes.append(asyncio.create_task(asyncio.sleep(self._supervisor.settings.crash_window_s)))
            try:
                await asyncio.wait(causes, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for cause in causes:
                    cause.cancel()
                await asyncio.gather(*causes, return_exceptions=True)
            if not child.is_alive:
                await self._mourn(child, lived_s=time.monotonic() - started_at)
            elif self.changed.is_set():
                await self._replace(child, "package_reloaded")
            elif not causes[2].cancelled() and causes[2].done():
                await self._replace(child, "worker_replaced")
            else:
                self._crashes.clear()
                log.info("crash_loop_over", app=self.spec.name)
                self._on_status(Status(event="steady"))

    @property
    def _is_crashing(self) -> bool:
        return len(self._crashes) == _CRASHES

    async def leave(self, *, within_s: float) -> None:
        """Drain the child, if there is one."""
        if self.current is not None:
            await self.current.drain(within_s=within_s)
            await self._supervisor.settle_for(self.current, crashed=True)

    async def _start(self) -> bool:
        self.changed.clear()
        began = time.monotonic()
        if self._python is None:
            child = await self._supervisor.new_child()
        else:
            child = await Child.spawn(python=self._python)
        self._supervisor.counts.follow(child)
        try:
            status = await child.assign(
                self.spec, self._supervisor.settings, self._supervisor.fabric.settings, wheel=self._wheel
            )
            if status.event == "ready":
                self.current = child
        finally:
            if self.current is not child:
                await child.dismiss()
                # It pulls before it says that it is ready: what it had begun wants its answer too.
                await self._supervisor.settle_for(child, crashed=True)
        self._supervisor.prepare_spares()
        took_ms = round((time.monotonic() - began) * 1000)
        if status.event == "ready":
            log.info("package_started", app=self.spec.name, pool=status.pool, pid=child.pid, took_ms=took_ms)
            self._on_status(status)
            return True
        self._report("package_failed", status)
        self._on_status(status)
        if status.error == ENDED_EARLY:
            # It works on requests before it says that it is ready, and may die of them.
            self._note_crash(await child.wait())
        return False

    async def _replace(self, old: Child, event: str) -> None:
        """Start a new child beside the old; the old leaves only when the new is ready."""
        if await self._start():
            log.info(event, app=self.spec.name)
            self._supervisor.say_farewell(old)
        else:
            log.warning("package_reload_refused", app=self.spec.name, still_serving=old.ready.pool if old.ready else "")

    async def _mourn(self, child: Child, *, lived_s: float) -> None:
        self.current = None
        code = await child.wait()
        if lived_s > _QUICK_CRASH_S:
            self._delay_s = self._supervisor.settings.restart_delay_s
        log.error("worker_crashed", app=self.spec.name, pid=child.pid, exit_code=code, lived_s=round(lived_s, 1))
        self._supervisor.counts.crashed(self.spec.name)
        await self._supervisor.settle_for(child, crashed=True)
        self._note_crash(code)
        await self._pause_before_retry(can_wait_for_change=False)

    def _note_crash(self, code: int) -> None:
        """Report it, where there were too many lately."""
        was_crashing = self._is_crashing
        now, window_s = time.monotonic(), self._supervisor.settings.crash_window_s
        while self._crashes and now - self._crashes[0] > window_s:
            self._crashes.popleft()
        self._crashes.append(now)
        if self._is_crashing and not was_crashing:
            error = f"its process died {_CRASHES} times within {window_s:g} s, last with {_how(code)}"
            log.error("crash_loop", app=self.spec.name, error=error, hint="it is started again, at longer intervals")
            self._on_status(Status(event="crashing", error=error))

    async def _pause_before_retry(self, *, can_wait_for_change: bool = True) -> None:
        settings = self._supervisor.settings
        if can_wait_for_change and self._supervisor.watches and self.spec.root:
            await self.changed.wait()  # the same files would fail the same way
            return
        await anyio.sleep(self._delay_s)
        self._delay_s = min(max(self._delay_s, 0.05) * 2, settings.restart_delay_max_s)

    def _report(self, event: str, status: Status) -> None:
        fields = {"app": self.spec.name, "error": status.error}
        if status.where:
            fields["where"] = status.where
        if status.excerpt:
            fields["exception"] = status.excerpt
        log.error(event, **fields)


def _how(code: int) -> str:
    """How a process ended."""
    try:
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def source_filter(root: Path, *, is_file: bool) -> Callable[[watchfiles.Change, str], bool]:
    """What counts as a change of the package at `root`: its Python files, its migrations and its `pyproject.toml`.

    Hidden directories below the root do not count; where the root itself lies does not matter.
    """

    def is_source(_change: watchfiles.Change, path: str) -> bool:
        file = Path(path)
        if is_file:
            return file == root
        if file.name != "pyproject.toml" and file.suffix not in (".py", ".sql"):
            return False
        inside = file.relative_to(root).parts if file.is_relative_to(root) else file.parts[-1:]
        return not any(part.startswith(".") or part in ("__pycache__", "node_modules") for part in inside)

    return is_source
