"""`gati routes` and `gati doctor`: what they conclude from what lies on the broker."""

from __future__ import annotations

import msgspec

from gati_cli.dead import hex_dump, readable
from gati_cli.doctor import consumer_checks, member_checks, stream_check
from gati_cli.routes import build_report
from gati_core.fabric import DeadLetter
from gati_core.fabric.inspection import ConsumerReport, StreamReport
from gati_core.manifests import HandlerManifest, PoolManifest, WorkerAnnouncement
from gati_core.wire import PROTOCOL, RequestDescriptor, WorkItem, encode


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
