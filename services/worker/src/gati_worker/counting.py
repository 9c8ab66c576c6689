"""What one process has counted for metrics, and how its supervisor learns of it: by a file, now and then.

A process that ends takes nothing back: its supervisor keeps the last it has written, or a counter would fall.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from gati_core.lifecycle import HopCounts
from gati_core.observe import Durations
from gati_worker.running import ExecutionStats

log = structlog.get_logger(__name__)

REQUEST_BOUNDS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
_MAX_SERIES = 2000
_OTHER = "other"


class VersionCounts(msgspec.Struct, kw_only=True):
    """The answers of one version of a handler."""

    handler: str
    version: str
    statuses: dict[int, int] = {}
    durations: Durations = msgspec.field(default_factory=lambda: Durations(REQUEST_BOUNDS_S))

    def add(self, status: int, seconds: float) -> None:
        """Count an answer, or the beginning of one that is a stream or a socket."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.durations.add(seconds)


class HopTotals(msgspec.Struct, kw_only=True):
    """The transformers from one version to its neighbour."""

    from_version: str
    to_version: str
    counts: HopCounts


class ProcessCounts(msgspec.Struct, kw_only=True):
    """What one process has counted since it started."""

    app: str
    stats: ExecutionStats = msgspec.field(default_factory=ExecutionStats)
    versions: list[VersionCounts] = []
    hops: list[HopTotals] = []


def write_counts(counts: ProcessCounts, file: Path) -> None:
    """Leave them where the supervisor reads them; it never sees half of them."""
    draft = file.with_suffix(".draft")
    draft.write_bytes(msgspec.json.encode(counts))
    draft.replace(file)


def read_counts(file: Path) -> ProcessCounts | None:
    """What a process has written last; None where it has written nothing."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=ProcessCounts)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as exc:
        log.warning("counts_not_read", file=str(file), error=str(exc))
        return None


class WorkerTotals:
    """What all processes of one supervisor have counted, those that have ended as well."""

    def __init__(self) -> None:
        self.stats: dict[str, ExecutionStats] = {}
        """By app."""
        self.versions: dict[tuple[str, str], VersionCounts] = {}
        """By `app:handler` and version."""
        self.hops: dict[tuple[str, str], HopCounts] = {}
        """By the versions from and to which transformers lead."""

    def add(self, counts: ProcessCounts) -> None:
        """Count all that a process has counted."""
        stats = self.stats.setdefault(counts.app, ExecutionStats())
        for name in ExecutionStats.__struct_fields__:
            setattr(stats, name, getattr(stats, name) + getattr(counts.stats, name))
        for each in counts.versions:
            key = (f"{counts.app}:{each.handler}", each.version)
            if key not in self.versions and len(self.versions) >= _MAX_SERIES:
                key = (key[0], _OTHER)
            mine = self.versions.setdefault(key, VersionCounts(handler=key[0], version=key[1]))
            for status, count in each.statuses.items():
                mine.statuses[status] = mine.statuses.get(status, 0) + count
            mine.durations.merge(each.durations)
        for hop in counts.hops:
            ends = (hop.from_version, hop.to_version)
            if ends not in self.hops and len(self.hops) >= _MAX_SERIES:
                ends = (_OTHER, _OTHER)
            sum_ = self.hops.setdefault(ends, HopCounts())
            sum_.done += hop.counts.done
            sum_.failed += hop.counts.failed
            sum_.durations.merge(hop.counts.durations)


class Counting(Protocol):
    """A process, as far as it counts."""

    def counts(self) -> ProcessCounts | None:
        """What it has written last; None where that is nothing."""


class WorkerCounts:
    """All that a supervisor knows. `totals` is made anew by `look`, so that another thread may read it meanwhile."""

    def __init__(self) -> None:
        self._living: set[Counting] = set()
        self._ended = WorkerTotals()
        self.totals = WorkerTotals()
        self.processes: dict[str, int] = {}
        """Those that serve, by package."""
        self.crashes: dict[str, int] = {}
        """Processes that ended unasked, by package."""

    def follow(self, process: Counting) -> None:
        """It counts from now on, until `keep`."""
        self._living.add(process)

    def keep(self, process: Counting) -> None:
        """It has ended; what it has written last stays counted."""
        if process in self._living:
            self._living.remove(process)
            self._add(self._ended, process)

    def crashed(self, package: str) -> None:
        """A process of this package ended unasked."""
        self.crashes = {**self.crashes, package: self.crashes.get(package, 0) + 1}

    def look(self, serving: Iterable[str]) -> None:
        """Sum up those that have ended and those that live.

        Args:
            serving: the package of each process that serves.
        """
        totals = copy.deepcopy(self._ended)
        for process in self._living:
            self._add(totals, process)
        self.totals = totals
        self.processes = dict(Counter(serving))

    def _add(self, totals: WorkerTotals, process: Counting) -> None:
        counts = process.counts()
        if counts is not None:
            totals.add(counts)
