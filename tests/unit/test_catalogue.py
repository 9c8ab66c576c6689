"""What the router knows about who lives and what they serve."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from gati_core.errors import MethodNotAllowed, RouteNotFound
from gati_core.manifests import HandlerManifest, PoolManifest, WorkerAnnouncement
from gati_core.wire import for_namespace
from gati_router.catalogue import Catalogue, Target


class _Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class _Setup:
    """A catalogue with a clock of its own, fed as the bucket views feed it."""

    def __init__(self) -> None:
        self.clock = _Clock()
        self.catalogue = Catalogue(for_namespace("t"), worker_ttl_s=6.0, now=self.clock)
        self.changes: list[tuple[str, ...]] = []
        self.catalogue.on_change(lambda: self.changes.append(self.catalogue.live_pools))

    def announce(self, worker: str, manifest: PoolManifest, *, state: str = "ready") -> str:
        key = f"worker.{manifest.pool}.{worker}"
        document = WorkerAnnouncement(worker=worker, manifest=manifest, state=state)  # type: ignore[arg-type]
        self.catalogue.pool_changed(key, msgspec.json.encode(document))
        return key

    def remember(self, manifest: PoolManifest) -> None:
        self.catalogue.manifest_changed(f"current.{manifest.app}", msgspec.json.encode(manifest))

    def target(self, path: str, method: str = "GET") -> Target:
        found = self.catalogue.find(method, path)[0].target
        assert found is not None, "known, but not live"
        return found

    def is_live(self, path: str) -> bool:
        return self.catalogue.find("GET", path)[0].target is not None

    def pool_at(self, path: str) -> str:
        return self.target(path).pool


@pytest.fixture
def setup() -> _Setup:
    return _Setup()


def _pool(
    app: str,
    version: str,
    published_ms: int,
    *routes: str,
    mode: str = "at_least_once",
    methods: tuple[str, ...] = ("GET",),
) -> PoolManifest:
    handlers = [
        HandlerManifest(id=f"h{number}", methods=list(methods), path=route, mode=mode)  # type: ignore[arg-type]
        for number, route in enumerate(routes)
    ]
    return PoolManifest(app=app, pool=f"{app}-{version}", handlers=handlers, published_ms=published_ms)


def test_an_empty_catalogue_routes_nothing(setup: _Setup) -> None:
    with pytest.raises(RouteNotFound):
        setup.target("/a")

    assert (setup.catalogue.live_pools, setup.catalogue.table.size) == ((), 0)


def test_an_announced_pool_is_live_and_its_target_is_ready_to_publish_to(setup: _Setup) -> None:
    setup.announce("w1", _pool("shop", "1", 10, "/orders/{id}", mode="at_most_once"))

    target = setup.target("/orders/7")

    assert (target.app, target.pool, target.handler, target.path) == ("shop", "shop-1", "h0", "/orders/{id}")
    assert (target.is_once, target.subject) == (True, b"t.work.shop-1.h0")
    assert setup.catalogue.live_pools == ("shop-1",)


def test_every_method_of_a_handler_is_routed(setup: _Setup) -> None:
    setup.announce("w1", _pool("shop", "1", 10, "/orders", methods=("GET", "POST")))

    assert setup.target("/orders", "POST").handler == setup.target("/orders").handler == "h0"
    with pytest.raises(MethodNotAllowed):
        setup.target("/orders", "DELETE")


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
def test_of_several_live_versions_the_newest_gets_the_traffic(setup: _Setup, order: tuple[int, ...]) -> None:
    for version in order:
        setup.announce("w", _pool("shop", str(version), version * 10, "/a"))

    assert setup.pool_at("/a") == "shop-3"
    assert setup.catalogue.live_pools == ("shop-3", "shop-2", "shop-1")


def test_an_older_version_serves_the_routes_that_the_newest_dropped(setup: _Setup) -> None:
    setup.announce("w1", _pool("shop", "1", 10, "/a", "/old"))
    setup.announce("w2", _pool("shop", "2", 20, "/a", "/new"))

    assert [setup.pool_at(path) for path in ("/a", "/old", "/new")] == ["shop-2", "shop-1", "shop-2"]


def test_the_older_version_takes_over_when_the_newest_is_gone(setup: _Setup) -> None:
    setup.announce("w1", _pool("shop", "1", 10, "/a"))
    key = setup.announce("w2", _pool("shop", "2", 20, "/a"))

    setup.catalogue.pool_changed(key, None)

    assert setup.pool_at("/a") == "shop-1"


@pytest.mark.parametrize("order", list(itertools.permutations(["old", "new", "back"])))
def test_a_version_that_comes_back_counts_by_its_latest_date_whoever_was_heard_first(
    setup: _Setup, order: tuple[str, ...]
) -> None:
    beats = {"old": ("w1", "1", 10), "new": ("w2", "2", 20), "back": ("w3", "1", 30)}
    for name in order:
        worker, version, published_ms = beats[name]
        setup.announce(worker, _pool("shop", version, published_ms, "/a"))

    assert setup.catalogue.live_pools == ("shop-1", "shop-2")


def test_a_pool_lives_as_long_as_one_of_its_workers(setup: _Setup) -> None:
    manifest = _pool("shop", "1", 10, "/a")
    first, second = setup.announce("w1", manifest), setup.announce("w2", manifest)

    setup.catalogue.pool_changed(first, None)
    assert setup.pool_at("/a") == "shop-1"

    setup.catalogue.pool_changed(second, None)
    with pytest.raises(RouteNotFound):
        setup.target("/a")


def test_a_draining_worker_gets_no_traffic(setup: _Setup) -> None:
    setup.announce("w1", _pool("shop", "1", 10, "/a"))
    setup.announce("w2", _pool("shop", "2", 20, "/a"))

    setup.announce("w2", _pool("shop", "2", 20, "/a"), state="draining")

    assert (setup.pool_at("/a"), setup.catalogue.live_pools) == ("shop-1", ("shop-1",))


def test_a_pool_that_sleeps_is_live_and_is_to_be_woken_unless_one_of_its_workers_is_ready(setup: _Setup) -> None:
    manifest = _pool("shop", "1", 10, "/a")
    setup.announce("w1", manifest, state="asleep")
    assert (setup.is_live("/a"), setup.target("/a").is_asleep) == (True, True)

    setup.announce("w2", manifest)
    assert not setup.target("/a").is_asleep

    setup.announce("w2", manifest, state="draining")
    assert setup.target("/a").is_asleep


def test_a_pool_stays_live_while_only_one_of_its_workers_drains(setup: _Setup) -> None:
    manifest = _pool("shop", "1", 10, "/a")
    setup.announce("w1", manifest, state="draining")
    setup.announce("w2", manifest)

    assert setup.is_live("/a")


def test_a_worker_silent_for_longer_than_its_time_to_live_is_gone(setup: _Setup) -> None:
    setup.announce("w1", _pool("shop", "1", 10, "/a"))

    setup.clock.now_s += 6.0
    setup.catalogue.expire()
    assert setup.pool_at("/a") == "shop-1"

    setup.clock.now_s += 0.1
    setup.catalogue.expire()
    with pytest.raises(RouteNotFound):
        setup.target("/a")


def test_a_heartbeat_starts_the_time_to_live_again(setup: _Setup) -> None:
    manifest = _pool("shop", "1", 10, "/a")
    setup.announce("w1", manifest)
    setup.clock.now_s += 5.0
    setup.announce("w1", manifest)

    setup.clock.now_s += 5.0
    setup.catalogue.expire()

    assert setup.pool_at("/a") == "shop-1"


def test_after_an_outage_no_worker_is_blamed_for_the_brokers_silence(setup: _Setup) -> None:
    setup.announce("w1", _pool("shop", "1", 10, "/a"))
    setup.clock.now_s += 3600.0

    setup.catalogue.reprieve()
    setup.catalogue.expire()
    assert setup.pool_at("/a") == "shop-1"

    setup.clock.now_s += 6.1
    setup.catalogue.expire()
    with pytest.raises(RouteNotFound):
        setup.target("/a")


def test_a_route_whose_workers_are_all_gone_is_remembered_but_not_live(setup: _Setup) -> None:
    manifest = _pool("shop", "1", 10, "/a")
    setup.remember(manifest)
    key = setup.announce("w1", manifest)
    assert setup.is_live("/a")

    setup.catalogue.pool_changed(key, None)

    assert not setup.is_live("/a")
    assert setup.catalogue.live_pools == ()


def test_a_live_pool_wins_over_a_remembered_one_whatever_their_dates(setup: _Setup) -> None:
    setup.remember(_pool("shop", "2", 20, "/a", "/b"))
    setup.announce("w1", _pool("shop", "1", 10, "/a"))

    assert setup.pool_at("/a") == "shop-1"
    assert not setup.is_live("/b")


def test_a_manifest_that_is_removed_is_forgotten(setup: _Setup) -> None:
    setup.remember(_pool("shop", "1", 10, "/a"))

    setup.catalogue.manifest_changed("current.shop", None)

    with pytest.raises(RouteNotFound):
        setup.target("/a")


def test_a_remembered_manifest_that_changes_replaces_its_routes(setup: _Setup) -> None:
    setup.remember(_pool("shop", "1", 10, "/a"))
    setup.remember(_pool("shop", "1", 10, "/b"))

    assert not setup.is_live("/b")
    with pytest.raises(RouteNotFound):
        setup.target("/a")


MALFORMED = [
    b"",
    b"not json",
    b"[]",
    b"{}",
    b"\xff\xfe",
    b'{"worker":"w","manifest":{"app":"shop"}}',
    b'{"worker":"w.x","manifest":{"app":"shop","pool":"p","handlers":[]}}',
    b'{"worker":"w","protocol":2,"manifest":{"app":"shop","pool":"p","handlers":[]}}',
    b'{"worker":"w","state":"resting","manifest":{"app":"shop","pool":"p","handlers":[]}}',
    b'{"app":"shop","pool":"no spaces","handlers":[]}',
    b'{"app":"shop","pool":"p","protocol":99,"handlers":[]}',
]


@pytest.mark.parametrize("document", MALFORMED)
def test_a_malformed_announcement_is_refused_and_its_neighbours_serve(setup: _Setup, document: bytes) -> None:
    setup.announce("w1", _pool("shop", "1", 10, "/a"))

    setup.catalogue.pool_changed("worker.shop-2.w2", document)

    assert (setup.pool_at("/a"), setup.catalogue.malformed) == ("shop-1", 1)
    assert setup.catalogue.live_pools == ("shop-1",)


@pytest.mark.parametrize("document", MALFORMED)
def test_a_malformed_manifest_is_refused_and_its_neighbours_serve(setup: _Setup, document: bytes) -> None:
    setup.remember(_pool("shop", "1", 10, "/a"))

    setup.catalogue.manifest_changed("current.other", document)

    assert (setup.is_live("/a"), setup.catalogue.malformed) == (False, 1)


def test_a_worker_that_turns_malformed_is_gone(setup: _Setup) -> None:
    key = setup.announce("w1", _pool("shop", "1", 10, "/a"))

    setup.catalogue.pool_changed(key, b"{")

    with pytest.raises(RouteNotFound):
        setup.target("/a")


def test_a_current_manifest_that_turns_malformed_is_forgotten(setup: _Setup) -> None:
    setup.remember(_pool("shop", "1", 10, "/a"))

    setup.catalogue.manifest_changed("current.shop", b"{")

    with pytest.raises(RouteNotFound):
        setup.target("/a")


def test_keys_of_other_members_are_none_of_its_business(setup: _Setup) -> None:
    setup.catalogue.pool_changed("router.r1", b"not a worker")
    setup.catalogue.pool_changed("router.r1", None)
    setup.catalogue.manifest_changed("history.shop", b"not current")
    setup.catalogue.pool_changed("worker.unknown.w9", None)

    assert (setup.catalogue.malformed, setup.catalogue.rebuilds) == (0, 0)


@pytest.mark.parametrize("order", list(itertools.permutations(["alpha", "beta", "gamma"])))
def test_two_apps_of_one_date_on_one_route_always_resolve_the_same_way(setup: _Setup, order: tuple[str, ...]) -> None:
    for app in order:
        setup.announce("w", _pool(app, "1", 10, "/a"))

    assert setup.pool_at("/a") == "alpha-1"


@pytest.mark.parametrize("order", list(itertools.permutations(["alpha", "beta"])))
def test_two_apps_on_one_route_the_one_published_last_serves(setup: _Setup, order: tuple[str, ...]) -> None:
    dates = {"alpha": 10, "beta": 20}
    for app in order:
        setup.announce("w", _pool(app, "1", dates[app], "/a"))

    assert setup.pool_at("/a") == "beta-1"


@pytest.mark.parametrize("order", list(itertools.permutations(["alpha", "beta"])))
def test_two_remembered_apps_on_one_route_always_resolve_the_same_way(setup: _Setup, order: tuple[str, ...]) -> None:
    for app in order:
        setup.remember(_pool(app, "1", 10, "/a"))

    assert setup.catalogue.table.match("GET", "/a")[0].handler.app == "alpha"


def test_listeners_hear_of_changes_and_not_of_heartbeats(setup: _Setup) -> None:
    manifest = _pool("shop", "1", 10, "/a")
    setup.announce("w1", manifest)
    table = setup.catalogue.table

    setup.announce("w1", manifest)
    setup.announce("w2", manifest)

    assert setup.changes == [("shop-1",)]
    assert setup.catalogue.table is table


def test_a_table_taken_before_a_change_stays_as_it_was(setup: _Setup) -> None:
    key = setup.announce("w1", _pool("shop", "1", 10, "/a"))
    before = setup.catalogue.table

    setup.catalogue.pool_changed(key, None)

    assert before.match("GET", "/a")[0].path == "/a"
    assert setup.catalogue.table.size == 0
    assert setup.changes == [("shop-1",), ()]
