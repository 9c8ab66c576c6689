"""Published packages: which of them this worker runs, each version in an environment and a child of its own.

What runs follows from two kinds of documents in `{ns}_timescape`: the records of packages, and the timelines of
their handlers. A package runs while it is pending or active and clients may still get any of its handlers'
versions; when all of them are deactivated, its child drains and leaves.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from gati_core.app.packages import PackageSpec
from gati_core.app.publishing import PREFIX, PackageRecord, fabric_records, read_record
from gati_core.app.wheels import WheelInfo, read_wheel
from gati_core.errors import GatiError, MalformedManifest, PackageError
from gati_core.fabric import Fabric, KvView, PackageLost
from gati_core.timescape import Timeline, read_timeline, timeline_names
from gati_worker.environments import Environment, prepare, prune
from gati_worker.runner import Status
from gati_worker.settings import WorkerSettings
from gati_worker.supervisor import Hosted, Supervisor

log = structlog.get_logger(__name__)

_RETRY_FIRST_S = 0.5
_RETRY_LAST_S = 30.0
_PRUNE_EVERY_S = 3600.0


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
        self._running: dict[str, asyncio.Task[None]] = {}
        self._wanted: dict[str, PackageRecord] = {}
        self._changed = asyncio.Event()
        self._pruned_at = 0.0

    async def run(self) -> None:
        """Follow the records, start what is published and stop what has ended, until cancelled."""
        bucket = self._fabric.subjects.timescape_bucket
        view = KvView(self._fabric.connection, bucket, on_change=self._on_change)
        try:
            await self._follow(view)
            while True:
                await self._changed.wait()
                self._changed.clear()
                self._settle()
        finally:
            with anyio.CancelScope(shield=True):
                tasks = list(self._running.values())
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
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
            else:
                return
        except MalformedManifest as exc:
            log.warning("package_record_refused", key=key, error=str(exc))
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
            if known is None or known.is_active:
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
                self._running[key] = asyncio.create_task(self._host(record), name=f"{record.app} {record.version}")
        for key in list(self._wanted):
            known = self._records.get(key)
            if known is None or not self._is_wanted(known):
                self._stop(key)

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

    async def _keep(self, record: PackageRecord, environment: Environment, wheel: Path) -> None:
        told: asyncio.Queue[Status] = asyncio.Queue(maxsize=100)

        def on_status(status: Status) -> None:
            if not told.full():
                told.put_nowait(status)

        spec = PackageSpec(name=record.entry_point, target=record.target, version=record.version)
        hosted = Hosted(self._supervisor, spec, python=environment.python, wheel=wheel, on_status=on_status)
        self._supervisor.add(hosted)
        try:
            while True:
                status = await told.get()
                if status.event == "ready":
                    await self._tell_started(record)
                elif await self._tell_refused(record, status):
                    return
        finally:
            with anyio.CancelScope(shield=True):
                await self._supervisor.remove(hosted)
                environment.close()
                await self._prune()

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

    async def _tell_started(self, record: PackageRecord) -> None:
        """Whoever published it waits for this, and so it is tried until the broker takes it."""
        while True:
            try:
                await fabric_records(self._fabric).started(record, by=self._name)
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
