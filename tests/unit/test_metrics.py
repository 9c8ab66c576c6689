"""Metrics kept in the process: right, bounded, and strict about what an exporter could not carry."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
from structlog.testing import capture_logs

from gati_core.contexts import GlobalContext, InProcessMetrics, Instance, Metrics
from gati_core.contexts._metrics import BUCKETS_S, MAX_AUDITS, MAX_LABELS, MAX_SERIES, MAX_SPANS
from gati_core.contexts._spans import MAX_ATTRIBUTES, MAX_CHARS, MAX_EXCEPTIONS, current_span
from gati_core.errors import MetricInvalid


@pytest.fixture
def metrics() -> InProcessMetrics:
    """Empty ones."""
    return InProcessMetrics()


# -- counters, gauges, histograms ---------------------------------------------------------------


def test_a_counter_adds_up_per_label_set(metrics: InProcessMetrics) -> None:
    metrics.increment_counter("hits", {"route": "/a"})
    metrics.increment_counter("hits", {"route": "/a"}, 2)
    metrics.counter("hits", {"route": "/b"})
    metrics.counter("hits")

    found = metrics.snapshot()
    assert [found.value("hits", route="/a"), found.value("hits", route="/b"), found.value("hits")] == [3, 1, 1]
    assert found.value("other") == 0


def test_the_order_of_labels_and_dots_in_names_make_no_difference(metrics: InProcessMetrics) -> None:
    metrics.counter("gati.cache.hit", {"a": 1, "b": "x"})
    metrics.counter("gati_cache_hit", {"b": "x", "a": "1"})

    assert [(each.name, each.labels, each.value) for each in metrics.snapshot().series] == [
        ("gati_cache_hit", {"a": "1", "b": "x"}, 2)
    ]


def test_a_gauge_keeps_the_last_value(metrics: InProcessMetrics) -> None:
    metrics.set_gauge("depth", 7)
    metrics.gauge("depth", -2.5)

    assert metrics.snapshot().value("depth") == -2.5


def test_a_histogram_counts_each_observation_in_its_bucket(metrics: InProcessMetrics) -> None:
    for seconds in (0.0005, 0.001, 0.002, 5, 6):
        metrics.record_histogram("took", seconds, {"route": "/a"})
    metrics.histogram("took", 0.3, {"route": "/a"})

    found = metrics.snapshot().find("took", route="/a")
    assert list(BUCKETS_S) == [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5]
    assert found is not None
    assert found.buckets == (2, 1, 0, 0, 0, 1, 0, 1, 1)
    assert found.count == 6
    assert found.value == pytest.approx(11.3035)


def test_counts_from_threads_are_not_lost(metrics: InProcessMetrics) -> None:
    def work() -> None:
        for _ in range(2_000):
            metrics.counter("hits", {"route": "/a"})
            metrics.histogram("took", 0.1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = metrics.snapshot()
    took = found.find("took")
    assert took is not None
    assert (found.value("hits", route="/a"), took.count, sum(took.buckets)) == (16_000, 16_000, 16_000)


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "ä", "a" * 201, 7, None])
def test_a_name_that_no_exporter_could_carry_is_refused(metrics: InProcessMetrics, name: Any) -> None:
    with pytest.raises(MetricInvalid, match="counter name"):
        metrics.counter(name)


@pytest.mark.parametrize(
    "labels",
    [
        {"a-b": "x"},
        {"__a": "x"},
        {1: "x"},
        {"a": 1.5},
        {"a": True},
        {"a": None},
        {"a": ["x"]},
        {f"l{number}": "x" for number in range(MAX_LABELS + 1)},
        [("a", "x")],
        "a",
    ],
)
def test_labels_that_no_exporter_could_carry_are_refused(metrics: InProcessMetrics, labels: Any) -> None:
    with pytest.raises(MetricInvalid, match="metric hits"):
        metrics.counter("hits", labels)

    assert metrics.snapshot().series == []


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_a_counter_does_not_go_backwards(metrics: InProcessMetrics, value: float) -> None:
    with pytest.raises(MetricInvalid, match="0 or more and finite"):
        metrics.counter("hits", value=value)

    assert metrics.snapshot().value("hits") == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_are_finite(metrics: InProcessMetrics, value: float) -> None:
    with pytest.raises(MetricInvalid):
        metrics.gauge("depth", value)
    with pytest.raises(MetricInvalid):
        metrics.histogram("took", value)


def test_a_metric_stays_of_its_kind(metrics: InProcessMetrics) -> None:
    metrics.counter("hits")

    with pytest.raises(MetricInvalid, match="hits is a counter already, so it cannot be a gauge"):
        metrics.gauge("hits", 1)
    with pytest.raises(MetricInvalid, match="cannot be a histogram"):
        metrics.histogram("hits", 1, {"route": "/a"})


# -- bounds -------------------------------------------------------------------------------------


def test_series_beyond_the_limit_share_one_per_metric(metrics: InProcessMetrics) -> None:
    for number in range(MAX_SERIES + 50):
        metrics.counter("hits", {"user": number})
    metrics.counter("hits", {"user": 1})
    metrics.counter("new", {"user": 1})
    metrics.gauge("newer", 4)

    found = metrics.snapshot()
    assert len(found.series) == MAX_SERIES + 3
    assert found.value("hits", other="true") == 50
    assert found.value("hits", user=1) == 2
    assert found.value("gati_metrics_other_counter", other="true") == 1
    assert found.value("gati_metrics_other_gauge", other="true") == 4
    assert found.overflowed == 52


def test_label_sets_in_many_orders_and_long_values_are_not_remembered_for_ever(metrics: InProcessMetrics) -> None:
    for number in range(100):
        metrics.counter("hits", {"path": "x" * 300 + str(number)})

    assert len(metrics.snapshot().series) == 1
    assert metrics._seen["counter"] == {}


def test_spans_and_audits_are_kept_in_bounds(metrics: InProcessMetrics) -> None:
    for number in range(MAX_SPANS + 10):
        metrics.create_span(f"span {number}").end()
    with capture_logs():
        for number in range(MAX_AUDITS + 10):
            metrics.record_audit("login", {"number": number})

    found = metrics.snapshot()
    assert (len(found.spans), found.spans[0].name) == (MAX_SPANS, "span 10")
    assert (len(found.audits), found.audits[0].context) == (MAX_AUDITS, {"number": 10})


# -- spans --------------------------------------------------------------------------------------


def test_a_span_measures_and_keeps_its_facts(metrics: InProcessMetrics) -> None:
    span = metrics.create_span("query", {"table": "users"})
    span.set_attribute("rows", 3)
    span.set_status("OK", "fine")
    span.end()
    span.end()

    (found,) = metrics.snapshot().spans
    assert (found.name, found.status, found.status_message) == ("query", "OK", "fine")
    assert found.attributes == {"table": "users", "rows": 3}
    assert found.duration_ns >= 0
    assert (len(found.trace_id), len(found.span_id), found.parent_span_id) == (32, 16, "")


def test_a_span_that_has_ended_does_not_change(metrics: InProcessMetrics) -> None:
    span = metrics.create_span("query")
    span.end()

    span.set_attribute("late", 1)
    span.record_exception(ValueError())

    (found,) = metrics.snapshot().spans
    assert (found.attributes, found.exceptions) == ({}, [])


async def test_spans_nest(metrics: InProcessMetrics) -> None:
    with metrics.create_span("outer") as outer:
        await metrics.with_span("inner", lambda span: None)
    metrics.create_span("alone").end()

    inner, out, alone = metrics.snapshot().spans
    assert (inner.trace_id, inner.parent_span_id) == (outer.trace_id, outer.span_id)
    assert out.parent_span_id == ""
    assert alone.trace_id != out.trace_id
    assert current_span() is None


async def test_with_span_gives_back_the_result_of_plain_and_async_functions(metrics: InProcessMetrics) -> None:
    async def fetch(span: Any) -> int:
        span.set_attribute("rows", 2)
        return 7

    assert await metrics.with_span("fetch", fetch, {"table": "users"}) == 7
    assert await metrics.with_span("count", lambda span: 8) == 8

    fetched, counted = metrics.snapshot().spans
    assert (fetched.status, fetched.attributes) == ("OK", {"table": "users", "rows": 2})
    assert counted.status == "OK"


async def test_a_failure_in_a_span_is_recorded_and_raised(metrics: InProcessMetrics) -> None:
    async def fetch(span: Any) -> None:
        raise LookupError("no table")

    with pytest.raises(LookupError):
        await metrics.with_span("fetch", fetch)

    (found,) = metrics.snapshot().spans
    assert (found.status, found.status_message) == ("ERROR", "no table")
    assert [(each.type, each.message) for each in found.exceptions] == [("LookupError", "no table")]


async def test_a_span_ends_even_when_the_error_has_no_text(metrics: InProcessMetrics) -> None:
    class Mute(BaseException):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def fail(span: Any) -> None:
        raise Mute

    with pytest.raises(Mute):
        await metrics.with_span("fetch", fail)

    assert metrics.snapshot().spans[0].status == "ERROR"
    assert current_span() is None


def test_a_span_holds_only_so_much(metrics: InProcessMetrics) -> None:
    span = metrics.create_span("query")
    for number in range(MAX_ATTRIBUTES + 5):
        span.set_attribute(f"a{number}", "x" * (MAX_CHARS + 5))
        span.record_exception(ValueError("y" * (MAX_CHARS + 5)))
    span.set_attribute("a1", "last")
    span.end()

    (found,) = metrics.snapshot().spans
    assert (len(found.attributes), len(found.exceptions)) == (MAX_ATTRIBUTES, MAX_EXCEPTIONS)
    assert (found.attributes["a1"], len(str(found.attributes["a2"]))) == ("last", MAX_CHARS)
    assert len(found.exceptions[0].message) == MAX_CHARS


def test_what_no_span_can_carry_is_refused(metrics: InProcessMetrics) -> None:
    bad: Any = ["x"]
    span = metrics.create_span("query")

    with pytest.raises(MetricInvalid, match="a span's name"):
        metrics.create_span("")
    with pytest.raises(MetricInvalid, match="attribute 'rows'"):
        span.set_attribute("rows", bad)
    with pytest.raises(MetricInvalid, match="neither 'OK' nor 'ERROR'"):
        span.set_status(bad)


# -- logs and audit -----------------------------------------------------------------------------


def test_a_log_line_carries_the_ids_of_the_current_span(metrics: InProcessMetrics) -> None:
    with capture_logs() as lines:
        with metrics.create_span("query") as span:
            metrics.log_with_context("warn", "slow_query", {"rows": 3, "event": "mine"})
        metrics.log_with_context("fatal", "gone")

    assert lines == [
        {
            "event": "slow_query",
            "log_level": "warning",
            "rows": 3,
            "context_event": "mine",
            "trace_id": span.trace_id,
            "span_id": span.span_id,
        },
        {"event": "gone", "log_level": "critical"},
    ]


def test_an_unknown_level_is_refused(metrics: InProcessMetrics) -> None:
    with pytest.raises(MetricInvalid, match="log level 'loud' is none of trace"):
        metrics.log_with_context("loud", "x")


def test_an_audit_record_is_counted_logged_and_kept(metrics: InProcessMetrics) -> None:
    with capture_logs() as lines:
        metrics.record_audit("login", {"action": "create", "result": "denied", "user_id": "u-1"})

    found = metrics.snapshot()
    assert found.value("audit_events_total", event="login", action="create", result="denied") == 1
    assert found.audits[0].context == {"action": "create", "result": "denied", "user_id": "u-1"}
    assert lines[0]["audit_event"] == "login"
    with pytest.raises(MetricInvalid, match="an audit event"):
        metrics.record_audit("")


def test_the_global_context_offers_every_method_of_the_protocol() -> None:
    metrics: Metrics = GlobalContext(Instance("i", "shop", "shop-1", "host", 0)).metrics

    promised = [name for name in vars(Metrics) if not name.startswith("_")]
    assert len(promised) == 10
    assert [name for name in promised if not callable(getattr(metrics, name, None))] == []
