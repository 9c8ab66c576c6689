"""`gati routes` and `gati doctor`: what they conclude from what lies on the broker."""

from __future__ import annotations

import msgspec

from gati_cli.dead import hex_dump, readable
from gati_cli.doctor import consumer_checks, member_checks, stream_check, worker_check
from gati_cli.routes import build_report
from gati_cli.trace import nested, render, runs
from gati_core.fabric import DeadLetter
from gati_core.fabric.inspection import ConsumerReport, StreamReport
from gati_core.manifests import HandlerManifest, HookRecord, PoolManifest, WorkerAnnouncement
from gati_core.wire import PROTOCOL, RequestDescriptor, TopicMessage, TraceRecord, WorkItem, encode


def manifest(app: str, pool: str, path: str = "/a/{x}", *, published_ms: int = 1) -> PoolManifest:
    handler = HandlerManifest(id="h", methods=["GET"], path=path, mode="at_least_once")
    return PoolManifest(app=app, pool=pool, handlers=[handler], published_ms=published_ms)


def announced(manifest: PoolManifest, worker: str = "w1", state: str = "ready") -> tuple[str, bytes]:
    document = WorkerAnnouncement(worker=worker, manifest=manifest, state=state)  # type: ignore[arg-type]
    return f"worker.{manifest.pool}.{worker}", msgspec.json.encode(document)


def test_live_workers_of_a_pool_are_counted() -> None:
    pool = manifest("shop", "shop-1")

    report = build_report(dict([announced(pool), announced(pool, "w2"), announced(pool, "w3", "draining")]), {})

    assert [(route.path, route.workers, route.is_live) for route in report.routes] == [("/a/{x}", 2, True)]


def test_an_app_without_workers_is_remembered_as_not_live() -> None:
    report = build_report({}, {"current.shop": msgspec.json.encode(manifest("shop", "shop-1"))})

    assert [(route.app, route.workers, route.is_live) for route in report.routes] == [("shop", 0, False)]


def test_the_newer_version_of_an_app_hides_the_older_one_without_a_conflict() -> None:
    old, new = manifest("shop", "shop-1", published_ms=1), manifest("shop", "shop-2", "/a/{y}", published_ms=2)

    report = build_report(dict([announced(old), announced(new)]), {})

    assert [(route.pool, route.shadowed_by) for route in report.routes] == [("shop-2", "")]


def test_the_latest_date_of_a_pool_counts_whichever_of_its_workers_is_read_first() -> None:
    """A version that comes back is published again; a worker from before still says the old date."""
    back, between = manifest("shop", "shop-1", published_ms=3), manifest("shop", "shop-2", published_ms=2)
    pools = dict(
        [
            announced(manifest("shop", "shop-1", published_ms=1), "w1"),
            announced(back, "w2"),
            announced(between, "w3"),
        ]
    )

    report = build_report(pools, {})

    assert [route.pool for route in report.routes] == ["shop-1"]


def test_two_apps_on_one_route_are_a_conflict_that_the_newer_one_wins() -> None:
    old, new = manifest("old", "old-1", published_ms=1), manifest("new", "new-1", "/a/{y}", published_ms=2)

    report = build_report(dict([announced(old), announced(new)]), {})

    assert {(route.app, route.shadowed_by) for route in report.routes} == {("new", ""), ("old", "new")}
    assert [check.status for check in member_checks(dict([announced(old), announced(new)]), {})][-1] == "warn"


def test_sockets_and_the_number_of_hooks_are_part_of_the_report() -> None:
    hooks = [HookRecord(id=name, type="before", level="route", timeout_s=5) for name in ("one", "two")]
    handler = HandlerManifest(id="chat", methods=["WEBSOCKET"], path="/chat", mode="at_most_once", hooks=hooks)
    pool = PoolManifest(app="shop", pool="shop-1", handlers=[handler])

    report = build_report(dict([announced(pool)]), {})

    assert [(route.method, route.path, route.hooks) for route in report.routes] == [("WEBSOCKET", "/chat", 2)]


def test_a_malformed_announcement_is_told_and_its_neighbours_count() -> None:
    pools = dict([announced(manifest("shop", "shop-1")), ("worker.x.y", b'{"worker": 1}')])

    report = build_report(pools, {})

    assert len(report.routes) == 1
    assert "worker.x.y" in report.malformed[0]


def stream(name: str = "gati_REQ", **more: object) -> StreamReport:
    fields: dict[str, object] = {
        "name": name,
        "messages": 0,
        "bytes": 0,
        "max_messages": 100,
        "max_messages_per_subject": 0,
        "discard": "new",
        "retention": "workqueue",
        "replicas": 1,
        "consumers": [],
    }
    return msgspec.convert(fields | more, StreamReport)


def test_a_stream_that_discards_old_messages_fails() -> None:
    check = stream_check("gati_REQ", stream(discard="old"))

    assert (check.status, "--discard=new" in check.fix) == ("fail", True)


def test_a_nearly_full_stream_warns_and_a_missing_one_fails() -> None:
    assert stream_check("gati_REQ", stream(messages=80)).status == "warn"
    assert stream_check("gati_REQ", stream(messages=79)).status == "ok"
    assert stream_check("gati_REQ", None).status == "fail"


def test_a_consumer_that_nobody_reads_warns() -> None:
    idle = ConsumerReport(name="pool-a", pending=3, in_flight=0, redelivered=0, clients_waiting=0)
    busy = ConsumerReport(name="router-high", pending=3, in_flight=1, redelivered=0, clients_waiting=0)

    checks = consumer_checks({"gati_REQ": stream(consumers=[idle, busy])}, req="gati_REQ", lanes=["router-high"])

    assert [check.status for check in checks] == ["warn", "ok"]


def test_missing_router_consumers_fail() -> None:
    checks = consumer_checks({"gati_REQ": stream()}, req="gati_REQ", lanes=["router-high", "router-low"])

    assert [(check.status, "router-high, router-low" in check.detail) for check in checks] == [("fail", True)]


def test_no_router_fails_and_no_worker_warns() -> None:
    assert [(check.name, check.status) for check in member_checks({}, {})] == [("routers", "fail"), ("workers", "warn")]


def worker(**more: object) -> WorkerAnnouncement:
    fields: dict[str, object] = {"worker": "w1", "manifest": manifest("shop", "shop-1"), "host": "h", "capacity": 4}
    return msgspec.convert({**fields, **more}, WorkerAnnouncement)


def test_a_workers_health_and_what_its_checks_noted_are_shown() -> None:
    sound = worker_check(worker())
    degraded = worker_check(worker(health="degraded", health_notes=["database: slow\x1b[2J", "memory: 93 %"]))
    unhealthy = worker_check(worker(health="unhealthy"))

    assert (sound.status, "healthy, 0 of 4 in flight" in sound.detail) == ("ok", True)
    assert (degraded.status, degraded.fix) == ("warn", "database: slow [2J; memory: 93 %")
    assert (unhealthy.status, bool(unhealthy.fix)) == ("fail", True)


def test_abandoned_handlers_and_a_worker_without_a_free_slot_are_warned_of() -> None:
    abandoned, full = worker_check(worker(abandoned=2)), worker_check(worker(in_flight=4))

    assert (abandoned.status, "2 abandoned" in abandoned.detail) == ("warn", True)
    assert (full.status, "slot" in full.fix) == ("warn", True)


def test_every_worker_has_its_own_line_also_while_it_drains() -> None:
    pool = manifest("shop", "shop-1")

    checks = member_checks(dict([announced(pool), announced(pool, "w2", "draining")]), {})

    details = [check.detail for check in checks if check.name == "worker"]
    assert ["draining" in detail for detail in details] == [False, True]


def test_a_stream_that_fills_says_what_fills_it() -> None:
    fixes = [stream_check(name, stream(name, messages=90)).fix for name in ("gati_TOPICS", "gati_TRACE", "gati_WORK")]

    assert ["TOPICS_MAX_MSGS" in fixes[0], "TRACE_MAX_MSGS" in fixes[1], "workers" in fixes[2]] == [True] * 3


def letter(stage: str, data: bytes) -> DeadLetter:
    return DeadLetter(
        sequence=1,
        stage=stage,
        pool="-",
        subject="s",
        code="c",
        cause="",
        attempts=1,
        request_id="",
        time="",
        headers={},
        data=data,
    )


def test_a_dead_request_is_shown_decoded() -> None:
    descriptor = RequestDescriptor(PROTOCOL, "r-1", "reply", 2, 1, "POST", "/orders", body=b"x")
    item = WorkItem(PROTOCOL, "r-1", "reply", 2, "h", "at_most_once", msgspec.Raw(encode(descriptor)))

    assert "/orders" in readable(letter("req", encode(descriptor)))
    assert "/orders" in readable(letter("work", encode(item)))


def test_a_dead_event_is_shown_with_its_payload() -> None:
    plain = TopicMessage(PROTOCOL, "orders", 1, "w1", "", encode({"sku": "ada-42"}))
    no_json = TopicMessage(PROTOCOL, "orders", 1, "w1", "", encode({(1, 2): 3}))
    broken = TopicMessage(PROTOCOL, "orders", 1, "w1", "", b"\xc1")

    assert '"sku": "ada-42"' in readable(letter("topic", encode(plain)))
    assert no_json.payload.hex() in readable(letter("topic", encode(no_json)))
    assert '"payload": "c1"' in readable(letter("topic", encode(broken)))
    assert "not readable" in readable(letter("topic", b"\x00"))


def test_garbage_is_shown_as_hexadecimal_with_the_reason() -> None:
    shown = readable(letter("req", b"\x00garbage"))

    assert "not readable" in shown
    assert "00 67 61 72" in shown
    assert ".garbage" in shown


def test_a_long_dump_is_cut_and_says_so() -> None:
    shown = hex_dump(bytes(2000))

    assert len(shown.splitlines()) == 65
    assert "976 more bytes" in shown
    assert hex_dump(b"") == "  (empty)"


def record(seq: int, event: str, stage: str = "", *, instance: str = "w1", **more: object) -> TraceRecord:
    fields: dict[str, object] = {"duration_us": -1, "error": "", "metadata": {}}
    return TraceRecord(PROTOCOL, "r-1", "worker", instance, seq, 1_000_000 + seq * 250, event, stage, **(fields | more))  # type: ignore[arg-type]


def test_events_are_nested_in_the_stages_that_surround_them() -> None:
    run = [
        record(1, "handler:start", "h"),
        record(2, "hook:start", "audit"),
        record(3, "hook:retry", "audit"),
        record(4, "hook:error", "audit"),
        record(5, "handler:error", "h"),
        record(6, "compensation:start", "refund"),
        record(7, "compensation:end", "refund"),
        record(8, "request:end"),
    ]

    assert [line.depth for line in nested(run)] == [0, 1, 2, 1, 0, 0, 0, 0]


def test_a_detached_hook_does_not_surround_what_comes_after_it() -> None:
    run = [
        record(1, "hook:start", "mail", metadata={"detached": True}),
        record(2, "handler:start", "h"),
        record(3, "hook:end", "mail", metadata={"detached": True}),
        record(4, "handler:end", "h"),
    ]

    assert [line.depth for line in nested(run)] == [0, 0, 1, 0]


def test_an_end_without_its_start_and_a_start_without_its_end_are_shown() -> None:
    run = [record(4, "hook:end", "lost"), record(5, "handler:start", "h"), record(6, "hook:start", "cut")]

    assert [line.depth for line in nested(run)] == [0, 0, 1]


def test_a_request_that_ran_again_has_a_part_for_each_run() -> None:
    first = [record(1, "handler:start", "h"), record(2, "handler:end", "h")]
    again = [record(1, "handler:start", "h")]
    elsewhere = [record(1, "handler:start", "h", instance="w2")]

    assert list(runs([*first, *elsewhere, *again])) == [first, elsewhere, again]


def test_a_trace_is_printed_with_times_durations_and_facts_on_one_line_each() -> None:
    lines = render(
        [
            record(1, "handler:start", "h"),
            record(2, "handler:error", "h", duration_us=1250, error="two\nlines\x1b[2J"),
            record(3, "request:end", metadata={"status": 500}),
        ]
    )

    assert lines[0] == "request r-1"
    assert len(lines) == 6
    assert lines[4].split() == ["0.250", "1.250", "handler:error", "h", "error:", "two", "lines", "[2J"]
    assert lines[5].split() == ["0.500", "request:end", "status=500"]
