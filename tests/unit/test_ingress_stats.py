"""Counters of the ingress, and the text that a scrape reads."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gati_ingress.stats import BUCKETS_S, IngressStats, Recorder, exposition, write_snapshot

DURATION = "gati_ingress_request_duration_seconds"


def _samples(text: bytes) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def _scrape(recorder: Recorder, directory: str = "") -> dict[str, list[Sample]]:
    return _samples(exposition(recorder.stats, directory))


def test_a_process_that_did_nothing_exposes_every_metric_without_series_per_route() -> None:
    found = _scrape(Recorder("p1"))

    assert "gati_ingress_requests_total" not in found
    for name in (
        "gati_ingress_in_flight",
        "gati_ingress_active_connections",
        "gati_ingress_streams",
        "gati_ingress_websockets",
        "gati_ingress_broker_up",
        "gati_fabric_publish_in_flight",
        "gati_fabric_kv_staleness_seconds",
        "gati_fabric_published_total",
        "gati_fabric_rejected_total",
        "gati_fabric_unconfirmed_total",
        "gati_fabric_reconnects_total",
        "gati_ingress_late_replies_total",
        "gati_ingress_cancelled_total",
    ):
        assert [(sample.labels, sample.value) for sample in found[name]] == [({"process": "p1"}, 0.0)]


def test_requests_are_counted_by_method_route_and_status() -> None:
    recorder = Recorder("p1")
    recorder.request("GET", "/orders/{id}", 200, 0.01, 0)
    recorder.request("GET", "/orders/{id}", 200, 0.02, 0)
    recorder.request("GET", "/orders/{id}", 404, 0.01, 0)
    recorder.request("POST", "/orders", 201, 0.01, 30)
    recorder.request("POST", "/orders", 201, 0.01, 12)

    found = _scrape(recorder)

    labels = ("method", "path", "status", "process")
    counts = {
        tuple(sample.labels[name] for name in labels): sample.value for sample in found["gati_ingress_requests_total"]
    }
    assert counts == {
        ("GET", "/orders/{id}", "200", "p1"): 2.0,
        ("GET", "/orders/{id}", "404", "p1"): 1.0,
        ("POST", "/orders", "201", "p1"): 2.0,
    }
    sizes = {s.labels["path"]: s.value for s in found["gati_ingress_request_size_bytes_total"] if s.value}
    assert sizes == {"/orders": 42.0}


@given(seconds=st.lists(st.floats(0, 20) | st.sampled_from(BUCKETS_S), min_size=1, max_size=50))
def test_buckets_are_cumulative_and_end_with_the_count(seconds: list[float]) -> None:
    recorder = Recorder("p1")
    for each in seconds:
        recorder.request("GET", "/x", 200, each, 0)

    found = _scrape(recorder)

    buckets = [(float(sample.labels["le"]), sample.value) for sample in found[f"{DURATION}_bucket"]]
    assert buckets == [(bound, sum(each <= bound for each in seconds)) for bound in (*BUCKETS_S, math.inf)]
    assert found[f"{DURATION}_count"][0].value == len(seconds)
    assert found[f"{DURATION}_sum"][0].value == pytest.approx(sum(seconds))


@pytest.mark.parametrize("route", ['/a"b', "/a\\b", "/grüße/{x}", "/a{b}", "/a,b=c", ""])
def test_any_route_can_be_a_label(route: str) -> None:
    recorder = Recorder("p1")

    recorder.request("GET", route, 200, 0.01, 0)

    assert _scrape(recorder)["gati_ingress_requests_total"][0].labels["path"] == route


def test_series_are_bounded_and_no_request_is_lost() -> None:
    recorder = Recorder("p1")
    for number in range(5000):
        recorder.request("GET", f"/{number}", 200 if number % 2 else 404, 0.01, 1)

    series = list(recorder.stats.routes.values())

    assert len(series) == 2002
    assert sum(entry.count for entry in series) == 5000
    rest = {(entry.method, entry.route, entry.status): entry.count for entry in series if entry.count > 1}
    assert rest == {("other", "other", 200): 1500, ("other", "other", 404): 1500}


def test_a_series_that_exists_goes_on_counting_when_there_is_no_room_for_more() -> None:
    recorder = Recorder("p1")
    for number in range(3000):
        recorder.request("GET", f"/{number}", 200, 0.01, 0)

    recorder.request("GET", "/0", 200, 0.01, 0)

    assert {entry.route: entry.count for entry in recorder.stats.routes.values()}["/0"] == 2


def test_errors_are_counted_by_code() -> None:
    recorder = Recorder("p1")
    for code in ("route.not_found", "shop.sold_out", "route.not_found"):
        recorder.error(code)

    counts = {s.labels["code"]: s.value for s in _scrape(recorder)["gati_ingress_errors_total"]}
    assert counts == {"route.not_found": 2.0, "shop.sold_out": 1.0}


def test_codes_that_handlers_make_up_are_bounded() -> None:
    recorder = Recorder("p1")
    for number in range(2000):
        recorder.error(f"shop.order_{number}")
    recorder.error("shop.order_0")

    counts = {s.labels["code"]: s.value for s in _scrape(recorder)["gati_ingress_errors_total"]}
    assert (len(counts), counts["other"], counts["shop.order_0"]) == (501, 1500.0, 2.0)


def test_two_recorders_share_nothing() -> None:
    one, two = Recorder("p1"), Recorder("p2")

    one.request("GET", "/x", 200, 0.01, 0)
    one.error("internal")

    assert (two.stats.routes, two.stats.errors, IngressStats().routes) == ({}, {}, {})


# -- siblings -----------------------------------------------------------------------------------


def test_a_scrape_reports_all_processes_told_apart_by_label(tmp_path: Path) -> None:
    one, two = Recorder("p1"), Recorder("p2")
    one.request("GET", "/x", 200, 0.01, 0)
    for _ in range(3):
        two.request("GET", "/x", 200, 0.01, 0)
    two.stats.in_flight = 7
    write_snapshot(one.stats, str(tmp_path))
    write_snapshot(two.stats, str(tmp_path))

    found = _scrape(one, str(tmp_path))

    assert {s.labels["process"]: s.value for s in found["gati_ingress_requests_total"]} == {"p1": 1.0, "p2": 3.0}
    assert {s.labels["process"]: s.value for s in found["gati_ingress_in_flight"]} == {"p1": 0.0, "p2": 7.0}


def test_the_process_that_is_asked_reports_itself_as_of_now_and_not_as_of_its_snapshot(tmp_path: Path) -> None:
    recorder = Recorder("p1")
    write_snapshot(recorder.stats, str(tmp_path))

    recorder.request("GET", "/x", 200, 0.01, 0)

    samples = _scrape(recorder, str(tmp_path))["gati_ingress_requests_total"]
    assert [sample.value for sample in samples] == [1.0]


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"routes": 7}', b"\xff\xfe"])
def test_a_snapshot_that_cannot_be_read_does_not_spoil_the_scrape(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "p2.json").write_bytes(garbage)
    recorder = Recorder("p1")
    recorder.request("GET", "/x", 200, 0.01, 0)

    assert len(_scrape(recorder, str(tmp_path))["gati_ingress_requests_total"]) == 1


def test_a_snapshot_replaces_the_one_before_and_leaves_no_draft(tmp_path: Path) -> None:
    recorder = Recorder("p1")
    write_snapshot(recorder.stats, str(tmp_path))
    recorder.request("GET", "/x", 200, 0.01, 0)
    write_snapshot(recorder.stats, str(tmp_path))

    assert [file.name for file in tmp_path.iterdir()] == ["p1.json"]
    assert len(_scrape(Recorder("p2"), str(tmp_path))["gati_ingress_requests_total"]) == 1


def test_socket_messages_are_counted_by_direction() -> None:
    recorder = Recorder("p1")
    recorder.stats.ws_messages_in = 3
    recorder.stats.ws_messages_out = 5

    found = _scrape(recorder)["gati_ingress_ws_messages_total"]

    assert {sample.labels["direction"]: sample.value for sample in found} == {"in": 3.0, "out": 5.0}
