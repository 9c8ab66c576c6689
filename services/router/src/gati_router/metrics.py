"""What a router counts, as Prometheus wants it. Scrapes come in a thread of their own: what the loop changes is copied
before it is gone through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gati_core.errors import MalformedManifest
from gati_core.fabric import Entry
from gati_core.timescape import HandlerUsage, SweepPolicy, Timeline, classify, read_usage
from gati_router.stats import Decisions, RouterStats

log = structlog.get_logger(__name__)

_STATUSES = ("hot", "warm", "cold", "deactivated")
_ALL = "_global"
_OUTCOMES = {
    "received": "Requests taken from the lanes",
    "routed": "Requests handed to a worker's queue",
    "expired": "Requests whose deadline had passed before they were routed",
    "cancelled": "Requests cancelled by their client before they were routed",
    "refused": "Requests answered by the router itself, with an error",
    "dead": "Requests given up and put among the dead letters",
    "naked": "Requests given back to the broker, to be routed again",
    "parked": "Requests that had to wait for a worker to appear",
}

VersionsByStatus = dict[str, Counter[str]]
"""How many versions there are of each status, by `app:handler` and for all of them."""


def count_versions(
    timelines: Iterable[Timeline], usage: Mapping[tuple[str, str], Entry], policy: SweepPolicy, *, now_s: float
) -> VersionsByStatus:
    """Each version by what was asked of it lately, whatever the last sweep has made of it.

    Args:
        usage: as stored, by app and handler.
    """
    counts: VersionsByStatus = {_ALL: Counter()}
    for timeline in timelines:
        names = (timeline.app, timeline.handler)
        used = _read(names, usage.get(names))
        mine = counts[":".join(names)] = Counter(
            classify(each, used.of(each.tsv), policy, now_s=now_s) if each.is_active else "deactivated"
            for each in timeline.versions
        )
        counts[_ALL] += mine
    return counts


def _read(names: tuple[str, str], entry: Entry | None) -> HandlerUsage:
    try:
        if entry is not None:
            return read_usage(entry.key, entry.value)
    except MalformedManifest as exc:
        log.warning("usage_refused", error=str(exc))
    return HandlerUsage(app=names[0], handler=names[1])


class RouterMetrics(Collector):
    """See the module.

    Args:
        workers: healthy workers of each app, asked at each scrape.
        routes: how many routes there are.
        versions: what `count_versions` has told last.
    """

    def __init__(
        self,
        *,
        stats: RouterStats,
        decisions: Decisions,
        workers: Callable[[], Mapping[str, int]],
        routes: Callable[[], int],
        versions: Callable[[], VersionsByStatus],
    ) -> None:
        self._stats = stats
        self._decisions = decisions
        self._workers = workers
        self._routes = routes
        self._versions = versions

    def collect(self) -> Iterator[Metric]:
        """All series."""
        for name, text in _OUTCOMES.items():
            yield CounterMetricFamily(f"gati_router_{name}", text, value=getattr(self._stats, name))
        decisions = CounterMetricFamily(
            "gati_router_decisions",
            "Requests by the version that was asked for, and how it was",
            labels=["handler_path", "version", "source"],
        )
        for (app, handler, version, source), count in list(self._decisions.counts.items()):
            decisions.add_metric([f"{app}:{handler}" if app else handler, version, source], count)
        yield decisions
        workers = GaugeMetricFamily("gati_router_healthy_workers", "Workers that may get requests", labels=["app"])
        for app, number in self._workers().items():
            workers.add_metric([app], number)
        yield workers
        yield GaugeMetricFamily("gati_router_routes", "Routes of all handlers", value=self._routes())
        yield from _version_gauges(self._versions())


def _version_gauges(versions: VersionsByStatus) -> Iterator[Metric]:
    status = GaugeMetricFamily(
        "gati_timescape_version_status", "Versions by their status", labels=["handler_path", "status"]
    )
    active = GaugeMetricFamily(
        "gati_timescape_active_versions", "Versions that can be asked for", labels=["handler_path"]
    )
    cold = GaugeMetricFamily(
        "gati_timescape_cold_versions", "Active versions that nobody has asked for lately", labels=["handler_path"]
    )
    for handler, counts in versions.items():
        for each in _STATUSES:
            status.add_metric([handler, each], counts[each])
        active.add_metric([handler], counts.total() - counts["deactivated"])
        cold.add_metric([handler], counts["cold"])
    yield from (status, active, cold)
