"""Rules about the health of a process. Pure: the numbers come as arguments."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

CheckStatus = Literal["pass", "warn", "fail"]
Health = Literal["healthy", "degraded", "unhealthy"]
MemoryLevel = Literal["low", "medium", "high"]

WINDOW_S = 60.0
MIN_REQUESTS = 20
DEGRADED_ABOVE = 0.10
UNHEALTHY_ABOVE = 0.50
BUILT_IN = ("handlers", "error_rate")
_MEMORY_LEVELS: tuple[tuple[int, MemoryLevel], ...] = ((95, "high"), (85, "medium"), (70, "low"))
_MAX_SAMPLES = 128


class CheckResult(msgspec.Struct, frozen=True):
    """What one health check said."""

    name: str
    status: CheckStatus
    message: str = ""
    duration_ms: float = 0.0


class HealthFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the process knows about itself."""

    handlers: int
    """Registered ones; without any it is unhealthy."""
    uptime_s: float
    requests: int
    """Finished since the start."""
    recent_requests: int = 0
    """Finished within the window of the error rate."""
    recent_errors: int = 0

    @property
    def error_rate(self) -> float:
        """Share of the recent requests that failed, from 0 to 1."""
        return self.recent_errors / self.recent_requests if self.recent_requests else 0.0


class HealthReport(msgspec.Struct, frozen=True):
    """The health of a process, and why."""

    status: Health
    checks: list[CheckResult]
    facts: HealthFacts

    @property
    def notes(self) -> list[str]:
        """One line for each check that did not pass: `db: fail: no answer within 5 s`."""
        return [f"{each.name}: {each.status}: {each.message}" for each in self.checks if each.status != "pass"]

    @property
    def only_errors(self) -> bool:
        """Whether all that fails is the share of its requests that failed."""
        return [each.name for each in self.checks if each.status == "fail"] == ["error_rate"]


class ErrorWindow:
    """Requests and errors of the last minute, out of totals that only grow.

    Args:
        window_s: how far back it looks. Up to 128 samples are kept; with more in a window it looks
            a little less far back.
    """

    __slots__ = ("_samples", "_window_s")

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, int, int]] = deque([(float("-inf"), 0, 0)], maxlen=_MAX_SAMPLES)

    def observe(self, now_s: float, requests: int, errors: int) -> tuple[int, int]:
        """Note the totals at `now_s` (monotonic); requests and errors within the window."""
        self._samples.append((now_s, requests, errors))
        # The newest sample from before the window is the base that the others are counted from.
        while len(self._samples) > 2 and self._samples[1][0] <= now_s - self._window_s:
            self._samples.popleft()
        _, base_requests, base_errors = self._samples[0]
        return max(0, requests - base_requests), max(0, errors - base_errors)


def built_in_checks(facts: HealthFacts) -> list[CheckResult]:
    """What the facts alone say: no handlers fail; of at least 20 requests, above 10 % errors warn, above 50 % fail."""
    handlers = (
        CheckResult("handlers", "pass", f"{facts.handlers} registered")
        if facts.handlers > 0
        else CheckResult("handlers", "fail", "no handler is registered")
    )
    status: CheckStatus = "pass"
    if facts.recent_requests >= MIN_REQUESTS:
        if facts.error_rate > UNHEALTHY_ABOVE:
            status = "fail"
        elif facts.error_rate > DEGRADED_ABOVE:
            status = "warn"
    message = f"{facts.recent_errors} of {facts.recent_requests} recent requests failed"
    return [handlers, CheckResult("error_rate", status, message)]


def overall(checks: Iterable[CheckResult]) -> Health:
    """The worst check decides."""
    found = {check.status for check in checks}
    return "unhealthy" if "fail" in found else "degraded" if "warn" in found else "healthy"


def memory_pressure(used: int, limit: int) -> MemoryLevel | None:
    """How tight memory is: from 70 % low, from 85 % medium, from 95 % high; below that, or without a limit, None.

    >>> [memory_pressure(used, 100) for used in (69, 70, 85, 95)]
    [None, 'low', 'medium', 'high']
    """
    if limit <= 0:
        return None
    return next((level for percent, level in _MEMORY_LEVELS if used * 100 >= limit * percent), None)


def memory_used(statm: Path = Path("/proc/self/statm")) -> int | None:
    """Resident bytes of this process; None where the system does not say."""
    import resource  # not there on every platform, and only needed where /proc is

    try:
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return None


def memory_limit(
    setting_mb: int = 0, *, membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that this process may use: the setting, else the tightest limit of its cgroups (version 2), else None."""
    if setting_mb > 0:
        return setting_mb * 1024 * 1024
    try:
        lines = membership.read_text().splitlines()
    except (OSError, ValueError):
        return None
    group = next((line.removeprefix("0::") for line in lines if line.startswith("0::/")), None)
    if group is None:
        return None
    limits: list[int] = []
    parts = [part for part in group.split("/") if part not in ("", "..")]
    for depth in range(len(parts) + 1):
        try:
            limits.append(int(root.joinpath(*parts[:depth], "memory.max").read_text()))
        except (OSError, ValueError):
            continue  # "max", or a group that is not visible from here
    return min(limits, default=None)
