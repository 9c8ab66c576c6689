"""Hot, warm, cold: which versions are used, and which are so little used that they end.

Decisions are pure (`plan_sweep`); `Sweeper` reads, decides and writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
import structlog
from msgspec import Meta

from gati_core.errors import GatiError, KeyConflict, VersionConflict
from gati_core.fabric import Fabric
from gati_core.timescape._registry import Backend, BucketBackend, Registry
from gati_core.timescape._rollout import Rollout
from gati_core.timescape._timeline import PROTECTED_TAGS, Status, Timeline, VersionRecord, with_status
from gati_core.timescape._usage import HandlerUsage, UsageBook, VersionUsage

log = structlog.get_logger(__name__)

_TURN_KEY = "sweep.last"

Reason = Literal["cold", "low_usage", "manual", "hot", "warm"]


class SweepPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a version counts as used, and when it ends."""

    enabled: bool = True
    """Whether versions are deactivated; they are classified all the same."""
    hot_requests: Annotated[int, Meta(ge=1)] = 100
    """Requests within the window from which a version is hot."""
    window_s: Annotated[float, Meta(gt=0)] = 86_400.0
    cold_after_s: Annotated[float, Meta(gt=0)] = 7 * 86_400.0
    """Seconds without a request after which it is cold."""
    min_requests: Annotated[int, Meta(ge=0)] = 10
    """Fewer than these in all its time, and it is swept, too."""
    grace_s: Annotated[float, Meta(ge=0)] = 86_400.0
    """Seconds for which a fresh version is left alone."""
    protected_tags: tuple[str, ...] = tuple(sorted(PROTECTED_TAGS))
    excluded: tuple[str, ...] = ()
    """Handlers whose versions are never deactivated: `app:handler`, or `app`."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep makes of one version."""

    app: str
    handler: str
    tsv: str
    before: Status
    status: Status
    reason: Reason
    spared: str = ""
    """Why it goes on although it is hardly used."""

    @property
    def is_change(self) -> bool:
        """Whether anything is to be written."""
        return self.before != self.status


def classify(version: VersionRecord, usage: VersionUsage, policy: SweepPolicy, *, now_s: float) -> Status:
    """Hot, warm or cold, by what was asked of a version lately."""
    if usage.within(policy.window_s, now_s) >= policy.hot_requests:
        return "hot"
    last_s = max(usage.last_s, version.registered_ms // 1000)
    return "cold" if now_s - last_s > policy.cold_after_s else "warm"


def plan_sweep(
    timeline: Timeline, usage: HandlerUsage, policy: SweepPolicy, *, now_s: float, rollout: Rollout | None = None
) -> list[Verdict]:
    """What becomes of the versions of one handler. The newest active one always goes on."""
    newest = timeline.newest
    named = set() if rollout is None else {rollout.version, rollout.baseline, *rollout.weights}
    verdicts = []
    for version in timeline.versions:
        if not version.is_active:
            continue
        used = usage.of(version.tsv)
        status: Status = classify(version, used, policy, now_s=now_s)
        reason: Reason = "cold" if status == "cold" else "hot" if status == "hot" else "warm"
        spared = ""
        if version.override == "deactivate":
            status, reason = "deactivated", "manual"
        elif status == "cold" or used.total < policy.min_requests:
            spared = _spared(timeline, version, policy, now_s=now_s, is_newest=version is newest, named=named)
            if not spared:
                reason = "cold" if status == "cold" else "low_usage"
                status = "deactivated"
        verdicts.append(
            Verdict(
                app=timeline.app,
                handler=timeline.handler,
                tsv=version.tsv,
                before=version.status,
                status=status,
                reason=reason,
                spared=spared,
            )
        )
    return verdicts


def _spared(
    timeline: Timeline,
    version: VersionRecord,
    policy: SweepPolicy,
    *,
    now_s: float,
    is_newest: bool,
    named: set[str],
) -> str:
    tags = timeline.tags_of(version.tsv)
    if not policy.enabled:
        return "sweeping is off"
    if is_newest:
        return "it is the newest"
    if version.override == "keep":
        return "it is kept by hand"
    protecting = sorted(set(tags) & set(policy.protected_tags))
    if protecting:
        return f"it has the tag {protecting[0]}"
    if timeline.app in policy.excluded or f"{timeline.app}:{timeline.handler}" in policy.excluded:
        return "its handler is excluded"
    if named & {version.tsv, *tags}:
        return "its handler's rollout names it"
    if now_s - version.registered_ms / 1000 < policy.grace_s:
        return "it is fresh"
    return ""


class Sweeper:
    """Classifies the versions of all handlers, and deactivates those that have ended.

    Args:
        rollout_of: how the traffic of a handler is shared now.
        on_deactivated: told of each version that ended.
    """

    def __init__(
        self,
        registry: Registry,
        usage: UsageBook,
        policy: SweepPolicy,
        *,
        rollout_of: Callable[[str, str], Rollout | None] = lambda _app, _handler: None,
        on_deactivated: Callable[[Verdict], None] = lambda _verdict: None,
    ) -> None:
        self._registry = registry
        self._usage = usage
        self._policy = policy
        self._rollout_of = rollout_of
        self._on_deactivated = on_deactivated

    async def run(self, *, dry_run: bool = False) -> list[Verdict]:
        """One sweep. Returns what it found, of all active versions; with `dry_run` nothing is changed.

        A handler that cannot be read or written is logged and left for the next time.
        """
        found: list[Verdict] = []
        for app, handler in await self._registry.handlers():
            try:
                found += await self._sweep(app, handler, dry_run=dry_run)
            except GatiError as exc:
                log.warning("sweep_incomplete", app=app, handler=handler, error=str(exc))
        return found

    async def _sweep(self, app: str, handler: str, *, dry_run: bool) -> list[Verdict]:
        usage = await self._usage.read(app, handler)
        rollout = self._rollout_of(app, handler)
        verdicts: list[Verdict] = []

        def edit(timeline: Timeline) -> Timeline:
            now_ms = self._registry.now_ms()
            verdicts[:] = plan_sweep(timeline, usage, self._policy, now_s=now_ms / 1000, rollout=rollout)
            after = timeline
            for each in verdicts:
                if not each.is_change or dry_run:
                    continue
                try:
                    after = with_status(after, each.tsv, each.status, now_ms=now_ms, actor="sweep", reason=each.reason)
                except VersionConflict as exc:  # a rule of the timeline's own beats the policy
                    log.debug("version_spared", version=each.tsv, reason=str(exc))
            return after

        await self._registry.change(app, handler, edit)
        for each in verdicts:
            if each.status == "deactivated" and each.is_change and not dry_run:
                log.info("version_deactivated", app=app, handler=handler, version=each.tsv, reason=each.reason)
                self._on_deactivated(each)
        return verdicts


class _Turn(msgspec.Struct, frozen=True, kw_only=True):
    at_ms: int
    by: str


class SweepTurns:
    """Whose turn it is: the time of the last sweep, changed by compare-and-set.

    Args:
        now_ms: Unix milliseconds, by this process's clock.
    """

    def __init__(self, backend: Backend, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._backend = backend
        self._now_ms = now_ms

    async def take(self, *, by: str, every_s: float) -> bool:
        """Take the turn if the last one was taken `every_s` ago or longer.

        Returns:
            Whether it is the caller's; of several callers at once it is one's.
        Raises:
            BrokerUnavailable: it could not be read or written.
        """
        now_ms = self._now_ms()
        entry = await self._backend.newest(_TURN_KEY)
        if entry is not None and not _is_over(entry.value, every_s, now_ms):
            return False
        data = msgspec.json.encode(_Turn(at_ms=now_ms, by=by))
        try:
            if entry is None:
                await self._backend.create(_TURN_KEY, data)
            else:
                await self._backend.update(_TURN_KEY, data, revision=entry.revision)
        except KeyConflict:
            return False
        return True


def _is_over(value: bytes, every_s: float, now_ms: int) -> bool:
    try:
        last = msgspec.json.decode(value, type=_Turn)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return True  # nobody could ever take a turn again
    # A clock far ahead must not stop the sweep for as long as it is ahead.
    return not 0 <= now_ms - last.at_ms < every_s * 1000


def fabric_turns(fabric: Fabric) -> SweepTurns:
    """The turns of all routers of a fabric."""
    return SweepTurns(BucketBackend(fabric))
