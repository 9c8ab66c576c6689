"""What a worker process does besides requests: start-up and shutdown hooks, health, configuration, memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import structlog

from gati_core.contexts import (
    ErrorWindow,
    GlobalContext,
    HealthFacts,
    HealthReport,
    load_config,
    memory_limit,
    memory_used,
)
from gati_core.errors import GatiError
from gati_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

_LOOK_EVERY_S = 1.0


class ProcessDuties:
    """Looks after one process while it serves. `start`, `tick`, then `pre_shutdown` and `shutdown`.

    Args:
        counts: requests answered and failed since the start.
        handlers: number of registered handlers.
    """

    def __init__(
        self,
        *,
        gctx: GlobalContext,
        settings: WorkerSettings,
        handlers: int,
        counts: Callable[[], tuple[int, int]],
    ) -> None:
        self._gctx = gctx
        self._settings = settings
        self._handlers = handlers
        self._counts = counts
        self._started = time.monotonic()
        self._window = ErrorWindow()
        self._memory_limit = memory_limit(settings.memory_limit_mb)
        self._config_seen: object = None
        self._checked_at = float("-inf")
        self._looked_at = 0.0
        self._round: asyncio.Task[None] | None = None
        self.report: HealthReport | None = None
        """Of the last round of health checks."""

    async def start(self) -> None:
        """Run the start-up hooks and the first health checks.

        Raises:
            StartupFailed: a start-up hook failed; the shutdown hooks have run.
        """
        self._config_seen = await self._config_stamp()
        await self._gctx.lifecycle.run_startup(self._gctx)
        await self._check_health()

    def tick(self, now: float) -> None:
        """Begin a round of looking after things when one is due; one at a time."""
        if now - self._looked_at < _LOOK_EVERY_S or (self._round is not None and not self._round.done()):
            return
        self._looked_at = now
        self._round = asyncio.Task(self._look(), loop=asyncio.get_running_loop())

    async def pre_shutdown(self) -> None:
        """The process begins to leave; requests still run."""
        if self._round is not None:
            self._round.cancel()
        with anyio.move_on_after(self._settings.shutdown_hooks_s) as limit:
            await self._gctx.lifecycle.run_pre_shutdown(self._gctx)
        if limit.cancelled_caught:
            log.error("pre_shutdown_hooks_cut_off", after_s=self._settings.shutdown_hooks_s)

    async def shutdown(self) -> None:
        """The last request is done."""
        with anyio.move_on_after(self._settings.shutdown_hooks_s) as limit:
            await self._gctx.lifecycle.run_shutdown(self._gctx)
        if limit.cancelled_caught:
            log.error("shutdown_hooks_cut_off", after_s=self._settings.shutdown_hooks_s)

    async def _look(self) -> None:
        try:
            await self._reload_if_changed()
            await self._gctx.lifecycle.update_memory(self._gctx, memory_used(), self._memory_limit)
            if time.monotonic() - self._checked_at >= self._settings.health_every_s:
                await self._check_health()
        except Exception:
            log.exception("process_round_failed")

    async def _check_health(self) -> None:
        self._checked_at = time.monotonic()
        requests, errors = self._counts()
        recent, failed = self._window.observe(self._checked_at, requests, errors)
        facts = HealthFacts(
            handlers=self._handlers,
            uptime_s=self._checked_at - self._started,
            requests=requests,
            recent_requests=recent,
            recent_errors=failed,
        )
        before = self.report.status if self.report is not None else "healthy"
        self.report = await self._gctx.lifecycle.check_health(self._gctx, facts)
        if self.report.status != before:
            log.warning("health_changed", health=self.report.status, notes=self.report.notes)

    async def _config_stamp(self) -> object:
        if not self._settings.config_file:
            return None
        try:
            found = await anyio.Path(self._settings.config_file).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    async def _reload_if_changed(self) -> None:
        stamp = await self._config_stamp()
        if stamp is None or stamp == self._config_seen:
            return
        self._config_seen = stamp
        try:
            config = await anyio.to_thread.run_sync(load_config, Path(self._settings.config_file))
            await self._gctx.lifecycle.reload_config(self._gctx, config)
        except GatiError as exc:
            log.error("config_refused", error=str(exc), kept="the previous configuration")
        else:
            log.info("config_reloaded", file=self._settings.config_file)


def first_config(settings: WorkerSettings) -> Any:
    """The configuration to start with.

    Raises:
        ConfigInvalid: the file cannot be used; a process does not start without its configuration.
    """
    return load_config(settings.config_file) if settings.config_file else None
