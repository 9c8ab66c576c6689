"""Counters, from where they are counted to what a scrape tells."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import CollectorRegistry

from gati_core.fabric import Entry
from gati_core.lifecycle import HopCounts
from gati_core.observe import Durations
from gati_core.timescape import HandlerUsage, Status, SweepPolicy, Timeline, VersionRecord, VersionUsage
from gati_ingress.stats import IngressStats, exposition
from gati_router.metrics import RouterMetrics, count_versions
from gati_router.stats import Decisions, RouterStats
from gati_worker.counting import (
    HopTotals,
    ProcessCounts,
    VersionCounts,
    WorkerCounts,
    read_counts,
    write_counts,
)
from gati_worker.metrics import WorkerMetrics
from gati_worker.running import ExecutionStats
from tests.helpers.samples import samples

DAY_S = 86_400
NOW_S = 1_800_000_000


class Process:
    """A worker process, as far as it counts."""

    def __init__(self, counts: ProcessCounts | None) -> None:
        self.said = counts

    def counts(self) -> ProcessCounts | None:
        return self.said


def counted(*, status: int = 200, times: int = 1, seconds: float = 0.002, version: str = "tsv:1-one-001") -> Process:
    one = VersionCounts(handler="one", version=version)
    for _ in range(times):
        one.add(status, seconds)
    hops = HopCounts(done=times, failed=1)
    for _ in range(times + 1):
        hops.durations.add(0.0002)
    return Process(
        ProcessCounts(
            app="shop",
            stats=ExecutionStats(received=times, replied=times),
            versions=[one],
            hops=[HopTotals(from_version="a", to_version="b", counts=hops)],
        )
    )


def scraped(counts: WorkerCounts, name: str) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(WorkerMetrics(counts))
    return samples(generate_latest(registry).decode(), name)


def test_durations_count_each_bound_inclusively_and_all_above_the_last() -> None:
    durations = Durations((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        durations.add(seconds)

    assert durations.cumulative == [("0.1", 2.0), ("1.0", 3.0), ("+Inf", 4.0)]
    assert durations.seconds == pytest.approx(7.65)
    durations.merge(durations)
    assert durations.cumulative[-1] == ("+Inf", 8.0)


def test_counts_go_through_a_file_and_what_is_no_file_of_counts_is_none(tmp_path: Path) -> None:
    file = tmp_path / "one.counts"
    assert read_counts(file) is None

    said = counted(times=3).said
    assert said is not None
    write_counts(said, file)
    assert read_counts(file) == said
    assert [each.name for each in tmp_path.iterdir()] == ["one.counts"]

    file.write_bytes(b'{"app": 1}')
    assert read_counts(file) is None


def test_what_processes_have_counted_is_summed_up_and_stays_when_they_end() -> None:
    counts = WorkerCounts()
    first, second, silent = counted(times=3), counted(times=2, status=503), Process(None)
    for each in (first, second, silent):
        counts.follow(each)
    counts.look(["shop", "shop"])
    answers = scraped(counts, "gati_timescape_version_requests_total")
    assert answers == {
        '{handler_path="shop:one",status="200",version="tsv:1-one-001"}': 3,
        '{handler_path="shop:one",status="503",version="tsv:1-one-001"}': 2,
    }
    assert scraped(counts, "gati_worker_processes") == {'{package="shop"}': 2}

    counts.keep(first)
    first.said = None  # its file is gone
    counts.crashed("shop")
    counts.look(["shop"])
    assert scraped(counts, "gati_timescape_version_requests_total") == answers
    assert scraped(counts, "gati_worker_received_total") == {'{app="shop"}': 5}
    assert scraped(counts, "gati_worker_crashes_total") == {'{package="shop"}': 1}
    hops = scraped(counts, "gati_timescape_transformer_executions_total")
    assert hops == {
        '{from_version="a",success="true",to_version="b"}': 5,
        '{from_version="a",success="false",to_version="b"}': 2,
    }
    took = scraped(counts, "gati_timescape_transformer_duration_seconds_bucket")
    assert took['{from_version="a",le="0.0001",to_version="b"}'] == 0
    assert took['{from_version="a",le="0.0005",to_version="b"}'] == 7

    counts.keep(first)  # twice counts once
    counts.look(["shop"])
    assert scraped(counts, "gati_timescape_version_requests_total") == answers


def test_versions_without_end_are_counted_as_other() -> None:
    counts = WorkerCounts()
    for number in range(2005):
        process = counted(version=f"tsv:{number}-one-001")
        counts.follow(process)
        counts.keep(process)
    counts.look([])

    series = scraped(counts, "gati_timescape_version_requests_total")
    assert len(series) == 2001
    assert series['{handler_path="shop:one",status="200",version="other"}'] == 5


def test_decisions_without_end_are_counted_as_other() -> None:
    decisions = Decisions()
    for number in range(2005):
        decisions.add("shop", "one", f"tsv:{number}-one-001", "header")
    decisions.add("shop", "one", "tsv:3-one-001", "header")

    assert decisions.counts["shop", "one", "tsv:3-one-001", "header"] == 2
    assert decisions.counts["", "other", "other", "header"] == 5


def test_versions_are_counted_by_what_was_asked_of_them_lately() -> None:
    def version(number: int, *, age_days: int, status: Status = "warm") -> VersionRecord:
        return VersionRecord(
            tsv=f"tsv:{number}-one-00{number}",
            fingerprint=str(number),
            methods=["GET"],
            path="/one",
            registered_ms=(NOW_S - age_days * DAY_S) * 1000,
            status=status,
        )

    timeline = Timeline(
        app="shop",
        handler="one",
        versions=[
            version(1, age_days=60, status="deactivated"),
            version(2, age_days=30),  # cold, whatever the last sweep has made of it
            version(3, age_days=20),
            version(4, age_days=1),
        ],
    )
    other = Timeline(app="shop", handler="two", versions=[version(5, age_days=1)])
    busy = VersionUsage()
    busy.add(100, NOW_S)
    stored = msgspec.json.encode(HandlerUsage(app="shop", handler="one", versions={"tsv:3-one-003": busy}))
    usage = {
        ("shop", "one"): Entry("usage.one", stored, 1),
        ("shop", "two"): Entry("usage.two", b"no usage", 1),  # counts for nothing
    }

    versions = count_versions([timeline, other], usage, SweepPolicy(), now_s=NOW_S)

    assert versions["shop:one"] == {"deactivated": 1, "cold": 1, "hot": 1, "warm": 1}
    assert versions["_global"] == {"deactivated": 1, "cold": 1, "hot": 1, "warm": 2}
    registry = CollectorRegistry()
    registry.register(
        RouterMetrics(
            stats=RouterStats(routed=7),
            decisions=Decisions(),
            workers=lambda: {"shop": 0},
            routes=lambda: 4,
            versions=lambda: versions,
        )
    )
    text = generate_latest(registry).decode()
    assert samples(text, "gati_timescape_active_versions") == {
        '{handler_path="_global"}': 4,
        '{handler_path="shop:one"}': 3,
        '{handler_path="shop:two"}': 1,
    }
    assert samples(text, "gati_timescape_cold_versions")['{handler_path="shop:one"}'] == 1
    assert samples(text, "gati_timescape_version_status")['{handler_path="shop:two",status="cold"}'] == 0
    assert samples(text, "gati_router_routed_total") == {"": 7}
    assert samples(text, "gati_router_healthy_workers") == {'{app="shop"}': 0}


def test_the_page_about_metrics_names_each_series_and_no_other() -> None:
    router = RouterMetrics(stats=RouterStats(), decisions=Decisions(), workers=dict, routes=lambda: 0, versions=dict)
    families = [*WorkerMetrics(WorkerCounts()).collect(), *router.collect()]
    names = {f"{each.name}_total" if each.type == "counter" else each.name for each in families}
    names |= set(re.findall(r"^# HELP (\S+)", exposition(IngressStats(), "").decode(), re.MULTILINE))

    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"`(gati_\w+)`", page)) == names
