"""Plain counters of one ingress process, and their Prometheus form.

The request path adds to integers and dictionaries; only a scrape turns them into metrics. Each
process also writes a snapshot to a shared directory once a second, so that a scrape that reaches
one process of several reports them all, told apart by the label `process`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from gati_core.observe import cumulative

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_MAX_SERIES = 2000
_MAX_CODES = 500


class RouteStats(msgspec.Struct):
    """One method, route and status."""

    method: str
    route: str
    status: int
    count: int = 0
    seconds: float = 0.0
    request_bytes: int = 0
    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))


class IngressStats(msgspec.Struct):
    """Everything one process counts."""

    process: str = ""
    routes: dict[str, RouteStats] = {}
    errors: dict[str, int] = {}
    in_flight: int = 0
    connections: int = 0
    streams: int = 0
    websockets: int = 0
    ws_messages_in: int = 0
    ws_messages_out: int = 0
    late_replies: int = 0
    cancelled: int = 0
    publish_in_flight: int = 0
    published: int = 0
    publish_refused_full: int = 0
    publish_unconfirmed: int = 0
    broker_up: bool = False
    broker_reconnects: int = 0
    pools_view_staleness_s: float = 0.0


class Recorder:
    """Adds requests to an `IngressStats`."""

    def __init__(self, process: str) -> None:
        self.stats = IngressStats(process=process, routes={}, errors={})
        self._by_key: dict[tuple[str, str, int], RouteStats] = {}

    def request(self, method: str, route: str, status: int, seconds: float, size: int) -> None:
        """One answered request. `route` is the pattern, never the raw path: that has no bound."""
        key = (method, route, status)
        entry = self._by_key.get(key)
        if entry is None:
            if len(self._by_key) >= _MAX_SERIES:
                key = ("other", "other", status)
            entry = self._by_key.get(key) or RouteStats(*key)
            self._by_key[key] = self.stats.routes[" ".join(map(str, key))] = entry
        entry.count += 1
        entry.seconds += seconds
        entry.request_bytes += size
        entry.buckets[bisect_left(BUCKETS_S, seconds)] += 1

    def error(self, code: str) -> None:
        """One request answered with an error of this code."""
        errors = self.stats.errors
        if code not in errors and len(errors) >= _MAX_CODES:
            code = "other"  # handlers choose codes of their own
        errors[code] = errors.get(code, 0) + 1


def write_snapshot(stats: IngressStats, directory: str) -> None:
    """Leave this process's counters where the others find them."""
    target = Path(directory) / f"{stats.process}.json"
    draft = target.with_suffix(".tmp")
    draft.write_bytes(msgspec.json.encode(stats))
    draft.replace(target)


def exposition(own: IngressStats, directory: str) -> bytes:
    """Prometheus text of this process and, from their snapshots, of its siblings."""
    everyone = {own.process: own}
    if directory:
        for file in Path(directory).glob("*.json"):
            try:
                stats = msgspec.json.decode(file.read_bytes(), type=IngressStats)
            except (OSError, msgspec.DecodeError):
                continue
            everyone.setdefault(stats.process, stats)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(list(everyone.values())))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, everyone: list[IngressStats]) -> None:
        self._everyone = everyone

    def collect(self) -> Iterator[Metric]:
        labels = ["method", "path", "status", "process"]
        total = CounterMetricFamily("gati_ingress_requests", "Requests answered", labels=labels)
        size = CounterMetricFamily("gati_ingress_request_size_bytes", "Bytes of request bodies", labels=labels)
        duration = HistogramMetricFamily(
            "gati_ingress_request_duration_seconds", "From the head read to the answer sent", labels=labels
        )
        errors = CounterMetricFamily(
            "gati_ingress_errors", "Requests answered with an error, by its code", labels=["code", "process"]
        )
        for stats in self._everyone:
            for route in stats.routes.values():
                values = [route.method, route.route, str(route.status), stats.process]
                total.add_metric(values, route.count)
                size.add_metric(values, route.request_bytes)
                duration.add_metric(values, cumulative(BUCKETS_S, route.buckets), route.seconds)
            for code, count in stats.errors.items():
                errors.add_metric([code, stats.process], count)
        yield from (total, size, duration, errors)
        yield self._gauge("gati_ingress_in_flight", "Requests waiting for an answer", "in_flight")
        yield self._gauge("gati_ingress_active_connections", "Open client connections", "connections")
        yield self._gauge("gati_ingress_streams", "Streamed answers that are open", "streams")
        yield self._gauge("gati_ingress_websockets", "WebSockets that are open", "websockets")
        messages = CounterMetricFamily(
            "gati_ingress_ws_messages",
            "WebSocket messages, from (in) and to (out) clients",
            labels=["direction", "process"],
        )
        for stats in self._everyone:
            messages.add_metric(["in", stats.process], stats.ws_messages_in)
            messages.add_metric(["out", stats.process], stats.ws_messages_out)
        yield messages
        yield self._gauge("gati_ingress_broker_up", "1 while the broker makes progress", "broker_up")
        yield self._gauge("gati_fabric_publish_in_flight", "Publishes not yet confirmed", "publish_in_flight")
        yield self._gauge(
            "gati_fabric_kv_staleness_seconds", "Age of the view of live processes", "pools_view_staleness_s"
        )
        yield self._counter("gati_fabric_published", "Messages published to streams", "published")
        yield self._counter("gati_fabric_rejected", "Publishes refused by a full stream", "publish_refused_full")
        yield self._counter("gati_fabric_unconfirmed", "Publishes without an ack in time", "publish_unconfirmed")
        yield self._counter("gati_fabric_reconnects", "Reconnects to the broker", "broker_reconnects")
        yield self._counter("gati_ingress_late_replies", "Replies that nobody waited for any more", "late_replies")
        yield self._counter("gati_ingress_cancelled", "Requests cancelled by client or deadline", "cancelled")

    def _gauge(self, name: str, text: str, field: str) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=["process"])
        for stats in self._everyone:
            family.add_metric([stats.process], float(getattr(stats, field)))
        return family

    def _counter(self, name: str, text: str, field: str) -> CounterMetricFamily:
        family = CounterMetricFamily(name, text, labels=["process"])
        for stats in self._everyone:
            family.add_metric([stats.process], float(getattr(stats, field)))
        return family
