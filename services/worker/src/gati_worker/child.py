"""One child process, as its supervisor sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import anyio
import msgspec
import structlog

from gati_core.app.packages import PackageSpec
from gati_core.ids import new_instance_id
from gati_core.settings import FabricSettings
from gati_worker.counting import ProcessCounts, read_counts
from gati_worker.ledger import CrashLedger, LedgerEntry
from gati_worker.runner import Assignment, Status
from gati_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

ENDED_EARLY = "the worker process ended before it was ready"


class Child:
    """A `gati_worker.runner` process: spare until assigned, then one package's worker."""

    def __init__(self, process: asyncio.subprocess.Process, status: asyncio.StreamReader, status_fd: int) -> None:
        self._process = process
        self._status = status
        self._status_fd = status_fd
        self._ledger: CrashLedger | None = None
        self._counts: Path | None = None
        self.app = ""
        self.ready: Status | None = None
        self.worker_id = new_instance_id()
        """Under which it will announce itself."""
        self.is_leaving = False

    @classmethod
    async def spawn(cls, *, python: Path | None = None) -> Child:
        """Start a child that imports what it will need and then waits for its assignment.

        Args:
            python: the interpreter of a prepared environment; the worker's own otherwise.
        """
        read_fd, write_fd = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                str(python or sys.executable),
                "-m",
                "gati_worker.runner",
                stdin=asyncio.subprocess.PIPE,
                pass_fds=(write_fd,),
            )
        finally:
            os.close(write_fd)
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb"))
        return cls(process, reader, write_fd)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.returncode is None

    async def assign(
        self,
        spec: PackageSpec,
        settings: WorkerSettings,
        fabric: FabricSettings,
        *,
        wheel: Path | None = None,
        purpose: Literal["serve", "decommission"] = "serve",
        within_s: float = 0.0,
    ) -> Status:
        """Hand it a package; returns what it says: ready or done, or why not.

        Args:
            wheel: what it was installed from.
            within_s: what it may need beside the usual.
        """
        fd, name = tempfile.mkstemp(prefix=f"gati-{spec.name}-", suffix=".ledger")
        os.close(fd)
        self._ledger = CrashLedger(Path(name), settings.ledger_slots)
        self.app = spec.name
        self._counts = self._ledger.path.with_suffix(".counts") if settings.metrics_port else None
        assignment = Assignment(
            spec=spec,
            settings=settings,
            fabric=fabric,
            ledger=name,
            status_fd=self._status_fd,
            worker=self.worker_id,
            wheel=str(wheel) if wheel is not None else "",
            purpose=purpose,
            counts=str(self._counts or ""),
        )
        status = Status(event="failed", error=ENDED_EARLY)
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(msgspec.json.encode(assignment) + b"\n")
                await self._process.stdin.drain()
            with anyio.move_on_after(settings.ready_within_s + within_s) as limit:
                while line := await self._status.readline():
                    said = msgspec.json.decode(line, type=Status)
                    if said.event != "preparing":
                        status = said
                        break
                    limit.deadline = anyio.current_time() + said.within_s + settings.ready_within_s
            if limit.cancelled_caught:
                status.error = f"the worker was not ready within {settings.ready_within_s:g} s (does an import hang?)"
        except (OSError, msgspec.DecodeError) as exc:
            status.error = f"the worker process could not be started: {exc!r}"
        if status.event == "ready":
            self.ready = status
        return status

    async def worn_out(self, on_other: Callable[[Status], None]) -> None:
        """Return once it asks to be replaced; it serves on. Waits for ever where it never does.

        Args:
            on_other: hears of all else that it says.
        """
        while True:
            line = await self._status.readline()
            if not line:  # it has ended, which `wait` says
                await asyncio.Event().wait()
            try:
                said = msgspec.json.decode(line, type=Status)
            except msgspec.DecodeError:
                continue
            if said.event == "worn_out":
                return
            on_other(said)

    async def wait(self) -> int:
        """Wait for its end; returns the exit code (negative: the signal that ended it)."""
        return await self._process.wait()

    async def drain(self, *, within_s: float) -> None:
        """Ask it to leave; kill it if it does not within `within_s`."""
        self.is_leaving = True
        if self.is_alive:
            try:
                self._process.send_signal(signal.SIGTERM)
                with anyio.move_on_after(within_s):
                    await self._process.wait()
            except ProcessLookupError:
                pass
        await self.kill()

    async def kill(self) -> None:
        """End it now, if it has not ended."""
        self.is_leaving = True
        if self.is_alive:
            self.strike()
            log.warning("worker_killed", pid=self.pid)
        await self._process.wait()

    async def dismiss(self) -> None:
        """End it without a word: a spare, or one whose package could not be loaded."""
        self.strike()
        await self._process.wait()

    def strike(self) -> None:
        """Kill it, and do not wait: `wait` returns when it has ended."""
        if self.is_alive:
            try:
                self._process.kill()
            except ProcessLookupError:
                pass

    @property
    def heartbeat_s(self) -> float:
        """When its loop last turned, by the monotonic clock; 0 when no sign of life is to be expected."""
        return self._ledger.heartbeat_s if self._ledger is not None and self.ready is not None else 0.0

    def unfinished(self) -> list[LedgerEntry]:
        """What it has started and not answered, as its ledger tells."""
        return self._ledger.entries() if self._ledger is not None else []

    def counts(self) -> ProcessCounts | None:
        """What it has counted, as far as it has written that down."""
        return read_counts(self._counts) if self._counts is not None else None

    def forget(self) -> None:
        """Remove what it has written."""
        if self._counts is not None:
            self._counts.unlink(missing_ok=True)
            self._counts.with_suffix(".draft").unlink(missing_ok=True)
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            ledger.close()
            ledger.path.unlink(missing_ok=True)
