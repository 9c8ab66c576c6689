"""Published packages: which of them this worker runs, each version in an environment and a child of its own.

What runs follows from the documents in `{ns}_timescape`, the records of packages and the timelines of their handlers,
and from the rollouts in `{ns}_config`. A package runs while it is pending or active and clients may still get any of
its handlers' versions that no later package brings as well; when all of them are deactivated, its children drain and
leave, and the database schemas that nobody else uses are rolled back. An old version that has not been asked for in a
while sleeps.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import structlog

from gati_core.app.packages import PackageSpec
from gati_core.app.publishing import PREFIX, PackageRecord, fabric_records, read_record
from gati_core.app.wheels import WheelInfo, read_wheel
from gati_core.errors import GatiError, MalformedManifest, PackageError
from gati_core.fabric import Fabric, KvView, PackageLost
from gati_core.schemas import SchemaRecord, is_record_key, read_schema_record
from gati_core.timescape import Rollout, Timeline, read_rollout, read_timeline, rollout_names, timeline_names
from gati_worker.child import Child
from gati_worker.environments import Environment, prepare, prune
from gati_worker.runner import Status
from gati_worker.settings import WorkerSettings
from gati_worker.sleeping import Bells, Sleeper
from gati_worker.supervisor import Hosted, Supervisor

log = structlog.get_logger(__name__)

_RETRY_FIRST_S = 0.5
_RETRY_LAST_S = 30.0
_PRUNE_EVERY_S = 3600.0
_DECOMMISSION_S = 180.0
"""For rollbacks, and for others that hold the locks."""


class PublishedPackages:
    """See the module. `run` until cancelled.

    Args:
        cache: a directory for wheels, environments and downloads, of this worker or of several.
    """

    def __init__(self, supervisor: Supervisor, *, settings: WorkerSettings, fabric: Fabric, cache: Path) -> None:
        self._supervisor = supervisor
        self._fabric = fabric
        self._cache = cache
        self._wheelhouse = Path(settings.wheelhouse) if settings.wheelhouse else None
        self._offline = settings.offline
        self._apps = (
            None if settings.published.strip() == "*" else {each.strip() for each in settings.published.split(",")}
        )
        self._records: dict[str, PackageRecord] = {}
        self._timelines: dict[tuple[str, str], Timeline] = {}
        self._rollouts: dict[tuple[str, str], Rollout] = {}
        self._schemas: dict[str, SchemaRecord] = {}
        self._bells = Bells(fabric)
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._wanted: dict[str, PackageRecord] = {}
        self._changed = asyncio.Event()
        self._pruned_at = 0.0

    async def run(self) -> None:
        """Follow the records, start what is published and stop what has ended, until cancelled."""
        subjects, connection = self._fabric.subjects, self._fabric.connection
        views = [
            KvView(connection, subjects.config_bucket, on_change=self._on_config),
            KvView(connection, subjects.timescape_bucket, on_change=self._on_change),
        ]
        try:
            await self._bells.listen()
            for view in views:
                await self._follow(view)
            while True:
                await self._changed.wait()
                self._changed.clear()
                self._settle()
        finally:
            with anyio.CancelScope(shield=True):
                tasks = [*self._running.values(), *self._ending.values()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for view in views:
                    await view.aclose()

    async def _follow(self, view: KvView) -> None:
        delay_s = _RETRY_FIRST_S
        while True:
            try:
                await view.start()
            except GatiError as exc:
                log.warning("published_packages_unknown", error=str(exc))
                await anyio.sleep(delay_s)
                delay_s = min(delay_s * 2, _RETRY_LAST_S)
            else:
                return

    # -- which ----------------------------------------------------------------------------------

    def _on_change(self, key: str, value: bytes | None) -> None:
        names = timeline_names(key)
        try:
            if names is not None:
                if value is None:
                    self._timelines.pop(names, None)
                else:
                    self._timelines[names] = read_timeline(key, value)
            elif key.startswith(PREFIX):
                if value is None:
                    self._records.pop(key, None)
                else:
                    self._records[key] = read_record(key, value)
            elif is_record_key(key):
                if value is None:
                    self._schemas.pop(key, None)
                else:
                    self._schemas[key] = read_schema_record(key, value)
            else:
                return
        except MalformedManifest as exc:
            log.warning("package_record_refused", key=key, error=str(exc))
            return
        self._changed.set()

    def _on_config(self, key: str, value: bytes | None) -> None:
        names = rollout_names(key)
        if names is None:
            return
        try:
            if value is None:
                self._rollouts.pop(names, None)
            else:
                self._rollouts[names] = read_rollout(key, value)
        except MalformedManifest as exc:
            log.warning("rollout_refused", key=key, error=str(exc))
            return
        self._changed.set()

    def _is_wanted(self, record: PackageRecord) -> bool:
        if record.state == "failed" or (self._apps is not None and record.app not in self._apps):
            return False
        if record.state == "pending":
            return True
        for handler, fingerprint in record.handlers.items():
            timeline = self._timelines.get((record.app, handler))
            known = timeline.with_fingerprint(fingerprint) if timeline is not None else None
            if known is None:
                return True
            if known.is_active and not self._is_brought_later(record, handler):
                return True
        return False

    def _is_brought_later(self, record: PackageRecord, handler: str) -> bool:
        """Whether a later package that runs has the same version of a handler."""
        return any(
            each.app == record.app
            and each.state == "active"
            and each.published_ms > record.published_ms
            and each.handlers.get(handler) == record.handlers[handler]
            for each in self._records.values()
        )

    def _must_be_ready(self, record: PackageRecord) -> bool:
        """Whether it must not sleep: one of its versions is the newest of its handler, or somebody holds on to it."""
        for handler, fingerprint in record.handlers.items():
            timeline = self._timelines.get((record.app, handler))
            known = timeline.with_fingerprint(fingerprint) if timeline is not None else None
            if timeline is None or known is None:
                return True
            if not known.is_active or self._is_brought_later(record, handler):
                continue
            rollout = self._rollouts.get((record.app, handler))
            named = {rollout.version, rollout.baseline, *rollout.weights} if rollout is not None else set()
            if (
                known is timeline.newest
                or known.override == "keep"
                or timeline.is_protected(known.tsv)
                or not named.isdisjoint({known.tsv, *timeline.tags_of(known.tsv)})
            ):
                return True
        return False

    def _settle(self) -> None:
        """Start and stop what the documents ask for."""
        for key, record in self._records.items():
            running = self._wanted.get(key)
            if not self._is_wanted(record):
                continue
            if running is None or running.sha256 != record.sha256 or self._is_over(key):
                self._stop(key)
                self._wanted[key] = record
                self._running[key] = _started(self._host(record), f"{record.app} {record.version}")
        for key in list(self._wanted):
            known = self._records.get(key)
            if known is None or not self._is_wanted(known):
                self._stop(key)
            elif known.pool and self._must_be_ready(known):
                self._bells.ring(known.pool)
        self._end()

    def _end(self) -> None:
        """Have the schemas of packages that have ended rolled back, where nobody has done so."""
        used = {user for record in self._schemas.values() for user in record.used_by}
        for key, record in self._records.items():
            is_due = record.state == "active" and record.pool in used and not self._is_wanted(record)
            if is_due and self._apps is not None and record.app not in self._apps:
                continue
            task = self._ending.get(key)
            if is_due and (task is None or task.done()):
                self._ending[key] = _started(self._decommission(record), f"end of {key}")
            elif task is not None and self._is_wanted(record):
                del self._ending[key]
                task.cancel()

    def _is_over(self, key: str) -> bool:
        """Whether it was given up here, and is asked for again."""
        task = self._running.get(key)
        return task is None or task.done()

    def _stop(self, key: str) -> None:
        self._wanted.pop(key, None)
        task = self._running.pop(key, None)
        if task is not None:
            task.cancel()

    # -- running one ----------------------------------------------------------------------------

    async def _host(self, record: PackageRecord) -> None:
        """Fetch, install, start and keep one package, until cancelled or refused."""
        delay_s = _RETRY_FIRST_S
        about = {"app": record.app, "version": record.version}
        while True:
            try:
                began = time.monotonic()
                wheel, info = await self._fetch(record)
                environment = await prepare(
                    wheel, info, cache=self._cache, wheelhouse=self._wheelhouse, offline=self._offline
                )
            except (PackageError, PackageLost) as exc:
                log.error("package_refused", **about, error=str(exc))
                await self._tell_refused(record, Status(event="failed", error=str(exc)))
                return
            except GatiError as exc:
                log.warning("package_delayed", **about, error=str(exc), again_in_s=delay_s)
                await anyio.sleep(delay_s)
                delay_s = min(delay_s * 2, _RETRY_LAST_S)
                continue
            took_ms = round((time.monotonic() - began) * 1000)
            log.info("package_installed", **about, is_new=environment.is_new, took_ms=took_ms)
            await self._keep(record, environment, wheel)
            return

    async def _decommission(self, record: PackageRecord) -> None:
        """Roll back what only this package used, once its last worker has left. Tried again until that is so."""
        delay_s = _RETRY_FIRST_S
        about = {"app": record.app, "version": record.version}
        while True:
            try:
                wheel, info = await self._fetch(record)
                environment = await prepare(
                    wheel, info, cache=self._cache, wheelhouse=self._wheelhouse, offline=self._offline
                )
                try:
                    status = await self._run_decommission(record, environment, wheel)
                finally:
                    environment.close()
            except GatiError as exc:
                status = Status(event="failed", error=str(exc))
            if status.event == "done":
                log.info("package_decommissioned", **about)
                return
            log.warning("decommission_failed", **about, error=status.error, again_in_s=delay_s)
            await anyio.sleep(delay_s)
            delay_s = min(delay_s * 2, _RETRY_LAST_S)

    async def _run_decommission(self, record: PackageRecord, environment: Environment, wheel: Path) -> Status:
        settings = self._supervisor.settings
        child = await Child.spawn(python=environment.python)
        try:
            return await child.assign(
                self._spec(record),
                settings,
                self._fabric.settings,
                wheel=wheel,
                purpose="decommission",
                within_s=_DECOMMISSION_S + settings.drain_grace_s + 2 * settings.shutdown_hooks_s,
            )
        finally:
            with anyio.CancelScope(shield=True):
                await child.dismiss()
                child.forget()

    @staticmethod
    def _spec(record: PackageRecord) -> PackageSpec:
        return PackageSpec(name=record.entry_point, target=record.target, version=record.version)

    async def _keep(self, record: PackageRecord, environment: Environment, wheel: Path) -> None:
        try:
            sleeper: Sleeper | None = None
            while True:
                sleeper = await self._serve(record, environment, wheel, sleeper)
                if sleeper is None:
                    return
                log.info("package_asleep", app=record.app, version=record.version)
                began = time.monotonic()
                try:
                    await sleeper.until_woken()
                except BaseException:
                    with anyio.CancelScope(shield=True):
                        await sleeper.leave()
                    raise
                slept_s = round(time.monotonic() - began, 1)
                log.info("package_woken", app=record.app, version=record.version, slept_s=slept_s)
        finally:
            with anyio.CancelScope(shield=True):
                environment.close()
                await self._prune()

    async def _serve(
        self, record: PackageRecord, environment: Environment, wheel: Path, sleeper: Sleeper | None
    ) -> Sleeper | None:
        """Run it until it may sleep, and return what keeps its place then; None where it has failed.

        Args:
            sleeper: keeps its place until a process is ready.
        """
        told: asyncio.Queue[Status] = asyncio.Queue(maxsize=100)

        def on_status(status: Status) -> None:
            if not told.full():
                told.put_nowait(status)

        def host() -> Hosted:
            return Hosted(
                self._supervisor, self._spec(record), python=environment.python, wheel=wheel, on_status=on_status
            )

        instances = [host()]
        self._supervisor.add(instances[0])
        try:
            while True:
                status = await told.get()
                match status.event:
                    case "ready":
                        if sleeper is not None:
                            await sleeper.leave()
                            sleeper = None
                        self._bells.forget(status.pool)
                        await self._tell_started(record, status.pool)
                        # One that starts is enough to know that the others do.
                        while len(instances) < self._instances_of(record):
                            instances.append(host())
                            self._supervisor.add(instances[-1])
                    case "idle":
                        place = await self._put_to_sleep(record, instances)
                        if place is not None:
                            return place
                    case "crashing" | "steady":
                        await self._tell_trouble(record, status.error)
                    case _:
                        if sleeper is not None:  # whoever asks is to hear that nobody is there
                            await sleeper.leave()
                            sleeper = None
                        if await self._tell_refused(record, status):
                            return None
        finally:
            with anyio.CancelScope(shield=True):
                for hosted in instances:
                    await self._supervisor.remove(hosted)
                if sleeper is not None:
                    await sleeper.leave()

    def _instances_of(self, record: PackageRecord) -> int:
        return self._supervisor.settings.min_instances if self._must_be_ready(record) else 1

    async def _put_to_sleep(self, record: PackageRecord, instances: list[Hosted]) -> Sleeper | None:
        """What keeps the place of a package whose processes may leave now; None where they must stay."""
        while len(instances) > 1 and not self._must_be_ready(record):
            await self._supervisor.remove(instances.pop())  # it was the newest, and is no longer
        child = instances[0].current
        if child is None or child.ready is None or self._must_be_ready(record):
            return None
        pool = child.ready.pool
        sleeper = Sleeper(self._fabric, self._supervisor.settings, pool, self._bells.bell(pool))
        try:
            return sleeper if await sleeper.announce(child.worker_id) else None
        except GatiError as exc:
            log.warning("package_stays_awake", app=record.app, version=record.version, error=str(exc))
            return None

    async def _fetch(self, record: PackageRecord) -> tuple[Path, WheelInfo]:
        """The wheel in this worker's cache; the broker's checksum and the record's must agree with it."""
        place = self._cache / "wheels" / record.sha256 / record.filename

        def cached() -> WheelInfo | None:
            try:
                info = read_wheel(place) if place.is_file() else None
            except PackageError:
                return None
            return info if info is not None and info.sha256 == record.sha256 else None

        info = await anyio.to_thread.run_sync(cached)
        if info is not None:
            return place, info
        data = await self._fabric.packages.get(record.stored)
        info = await anyio.to_thread.run_sync(read_wheel, data)
        if info.sha256 != record.sha256:
            raise PackageError(f"{record.stored} is not the wheel that was published: its checksum is another")

        def keep() -> None:
            place.parent.mkdir(parents=True, exist_ok=True)
            half = place.with_name(f".{place.name}.{os.getpid()}")
            half.write_bytes(data)
            half.replace(place)

        try:
            await anyio.to_thread.run_sync(keep)
        except OSError as exc:
            raise PackageError(
                f"{exc.filename or place}: {exc.strerror or exc}: set GATI_WORKER_CACHE_DIR to a directory that the"
                " worker may write"
            ) from exc
        return place, info

    async def _tell_started(self, record: PackageRecord, pool: str) -> None:
        """Whoever published it waits for this, and so it is tried until the broker takes it."""
        while True:
            try:
                await fabric_records(self._fabric).started(record, pool=pool, by=self._name)
            except GatiError as exc:
                log.warning("package_state_not_told", app=record.app, version=record.version, error=str(exc))
                await anyio.sleep(_RETRY_FIRST_S)
            else:
                return

    async def _tell_refused(self, record: PackageRecord, status: Status) -> bool:
        """Whether it has failed for the whole fabric; what is active goes on being tried."""
        error = f"{status.error}\n{status.excerpt}".strip()
        try:
            return await fabric_records(self._fabric).refused(record, error, where=status.where, by=self._name)
        except GatiError as exc:
            log.warning("package_state_not_told", app=record.app, version=record.version, error=str(exc))
            return False

    async def _tell_trouble(self, record: PackageRecord, trouble: str) -> None:
        try:
            await fabric_records(self._fabric).troubled(record, trouble, by=self._name)
        except GatiError as exc:
            log.warning("package_state_not_told", app=record.app, version=record.version, error=str(exc))

    @property
    def _name(self) -> str:
        return f"worker:{os.uname().nodename}:{os.getpid()}"

    async def _prune(self) -> None:
        if time.monotonic() - self._pruned_at < _PRUNE_EVERY_S and self._pruned_at:
            return
        self._pruned_at = time.monotonic()
        try:
            await prune(self._cache, keep={each.sha256 for each in self._wanted.values()})
        except (GatiError, OSError) as exc:
            log.warning("cache_not_pruned", error=str(exc))


def _started(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task whose failure is not overlooked."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_note_failure)
    return task


def _note_failure(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("package_task_failed", task=task.get_name(), exc_info=error)
