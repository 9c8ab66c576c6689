"""What a supervisor knows of its processes, as Prometheus wants it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gati_worker.counting import WorkerCounts, WorkerTotals

_OUTCOMES = {
    "received": "Requests taken from the queue",
    "replied": "Requests answered",
    "failed": "Requests answered with a status from 500 on",
    "expired": "Requests whose deadline had passed before they ran",
    "cancelled": "Requests cancelled by their client or their deadline",
    "redelivered": "Requests that had been delivered before",
    "dead": "Requests given up and put among the dead letters",
    "fallbacks": "Requests handed to the client's own version, because a transformer failed",
    "abandoned": "Handlers that did not react to being cancelled",
}


class WorkerMetrics(Collector):
    """See the module. Scrapes come in a thread of their own, and read what the loop has summed up."""

    def __init__(self, counts: WorkerCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """All series."""
        totals = self._counts.totals
        yield from _processes(self._counts)
        for name, text in _OUTCOMES.items():
            family = CounterMetricFamily(f"gati_worker_{name}", text, labels=["app"])
            for app, stats in totals.stats.items():
                family.add_metric([app], getattr(stats, name))
            yield family
        yield from _versions(totals)
        yield from _transformers(totals)


def _processes(counts: WorkerCounts) -> Iterator[Metric]:
    processes = GaugeMetricFamily("gati_worker_processes", "Processes that serve a package", labels=["package"])
    for package, count in counts.processes.items():
        processes.add_metric([package], count)
    crashes = CounterMetricFamily("gati_worker_crashes", "Processes that ended unasked", labels=["package"])
    for package, count in counts.crashes.items():
        crashes.add_metric([package], count)
    yield from (processes, crashes)


def _versions(totals: WorkerTotals) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "gati_timescape_version_requests",
        "Requests answered by a version of a handler",
        labels=["handler_path", "version", "status"],
    )
    durations = HistogramMetricFamily(
        "gati_timescape_version_request_duration_seconds",
        "From a request's start in the worker to its answer, or to the beginning of a streamed one",
        labels=["handler_path", "version"],
    )
    for (handler, version), counts in totals.versions.items():
        for status, count in counts.statuses.items():
            requests.add_metric([handler, version, str(status)], count)
        durations.add_metric([handler, version], counts.durations.cumulative, counts.durations.seconds)
    yield from (requests, durations)


def _transformers(totals: WorkerTotals) -> Iterator[Metric]:
    executions = CounterMetricFamily(
        "gati_timescape_transformer_executions",
        "Transformers run, from a version to its neighbour",
        labels=["from_version", "to_version", "success"],
    )
    durations = HistogramMetricFamily(
        "gati_timescape_transformer_duration_seconds",
        "What they took",
        labels=["from_version", "to_version"],
    )
    for ends, counts in totals.hops.items():
        executions.add_metric([*ends, "true"], counts.done)
        executions.add_metric([*ends, "false"], counts.failed)
        durations.add_metric([*ends], counts.durations.cumulative, counts.durations.seconds)
    yield from (executions, durations)
