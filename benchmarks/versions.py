#!/usr/bin/env python3
"""What versions cost a router: matching a path, resolving the version and planning the way, and the memory for it.

The catalogue is filled as from the broker: timelines of every handler, and announcements of the pools that live. The
lookups go round all handlers, so that no single one stays in the caches.

    python benchmarks/versions.py
    python benchmarks/versions.py --versions 10 --json
"""

from __future__ import annotations

import argparse
import gc
import logging
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import msgspec
import structlog

from _common import Output, header
from gati_core.ids import new_instance_id
from gati_core.manifests import HandlerManifest, PoolManifest, WorkerAnnouncement
from gati_core.timescape import Timeline, VersionRecord, timeline_key, with_tag, with_version
from gati_core.wire import Subjects
from gati_router.catalogue import Catalogue

APPS = 50
TARGET_US = 8.0
TARGET_KIB = 20.0
EPOCH_S = 1_750_000_000


def fingerprint(app: int, handler: int, version: int) -> str:
    """Of one version of one handler."""
    return f"{app:08x}{handler:08x}{version:08x}".ljust(64, "0")


def timeline(app: int, handler: int, versions: int) -> Timeline:
    """Versions of which every tenth breaks clients; the package of each brings all transformers up to it."""
    made = Timeline(app=f"app{app}", handler=f"handler{handler}")
    for version in range(versions):
        breaking = [each.tsv for index, each in enumerate(made.versions) if (index + 1) % 10 == 0]
        record = VersionRecord(
            tsv="",
            fingerprint=fingerprint(app, handler, version),
            methods=["GET"],
            path=_path(app, handler),
            package=f"1.{version}.0",
            breaking=version % 10 == 0 and version > 0,
            breaking_back=version % 10 == 0 and version > 0,
            transforms=breaking,
        )
        made = with_version(made, record, now_ms=(EPOCH_S + version) * 1000, actor="bench")
        made = with_tag(made, made.versions[-1].tsv, f"v1.{version}.0", now_ms=1, actor="bench")
    return made


def _path(app: int, handler: int) -> str:
    return f"/app{app}/resource{handler}/{{id}}"


def announcement(app: int, version: int, handlers: int) -> WorkerAnnouncement:
    """A worker that runs one version of an app."""
    listed = [
        HandlerManifest(
            id=f"handler{handler}",
            methods=["GET"],
            path=_path(app, handler),
            mode="at_most_once",
            fingerprint=fingerprint(app, handler, version),
        )
        for handler in range(handlers)
    ]
    pool = PoolManifest(app=f"app{app}", pool=f"app{app}-{version:08x}", version=f"1.{version}.0", handlers=listed)
    return WorkerAnnouncement(worker=new_instance_id(), manifest=pool, started_ms=(EPOCH_S + version) * 1000)


def rss_kib() -> float:
    """Memory of this process that is not shared."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def fill(catalogue: Catalogue, handlers: int, versions: int, live: int) -> None:
    """Feed it as the views of the buckets do."""
    for app in range(APPS):
        for handler in range(handlers):
            key = timeline_key(f"app{app}", f"handler{handler}")
            catalogue.timeline_changed(key, msgspec.json.encode(timeline(app, handler, versions)))
        for version in range(versions - live, versions):
            each = announcement(app, version, handlers)
            catalogue.pool_changed(f"worker.{each.manifest.pool}.{each.worker}", msgspec.json.encode(each))


def us_per_request(catalogue: Catalogue, handlers: int, count: int, preference: Callable[[int], str]) -> float:
    """Microseconds for one decision, the loop around it included."""
    asked = []
    for number in range(count):
        place = number * 7919 % (APPS * handlers)
        app, handler = divmod(place, handlers)
        asked.append((f"/app{app}/resource{handler}/17", preference(number)))
    find = catalogue.find
    started = time.perf_counter_ns()
    for path, wanted in asked:
        find("GET", path, wanted, None, "r")
    return (time.perf_counter_ns() - started) / len(asked) / 1000


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--routes", type=int, default=1000)
    parser.add_argument("--versions", type=int, default=100, help="of each handler")
    parser.add_argument("--live", type=int, default=3, help="of these that a worker runs: the newest")
    parser.add_argument("--lookups", type=int, default=50_000, help="per measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements per row; the row shows medians")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    output = Output(as_json=options.json)
    output.header(header(warm_up="1 round", rounds=options.rounds, others=f"{options.lookups} lookups each"))
    handlers = options.routes // APPS

    waiting: list[Callable[[], None]] = []
    catalogue = Catalogue(Subjects("bench"), worker_ttl_s=3600.0, later=waiting.append)
    gc.collect()
    before = rss_kib()
    fill(catalogue, handlers, options.versions, options.live)
    while waiting:
        waiting.pop()()
    gc.collect()
    kib = (rss_kib() - before) / (options.routes * options.versions)
    gc.freeze()
    gc.disable()

    newest = options.versions - 1
    cases: dict[str, Callable[[int], str]] = {
        "none asked for": lambda _number: "",
        "a tag, of a version that lives": lambda _number: f"v1.{newest}.0",
        "a tag, and transformers lead on": lambda _number: f"v1.{newest - 15}.0",
        "a semantic version": lambda _number: "1.5.0",
        "a time, one of a hundred": lambda number: str(EPOCH_S + number % min(100, options.versions)),
    }
    columns = f"{options.routes:,} routes × {options.versions} versions, {options.live} of them live"
    output.columns([columns, "µs", "target"])
    for case, preference in cases.items():
        us_per_request(catalogue, handlers, options.lookups, preference)
        spent = median(us_per_request(catalogue, handlers, options.lookups, preference) for _ in range(options.rounds))
        record = {"case": case, "us": round(spent, 2), "target_us": TARGET_US}
        output.row([case, f"{spent:.2f}", f"≤ {TARGET_US:g}"], record)
    record = {"case": "memory", "kib_per_version": round(kib, 2), "target_kib": TARGET_KIB}
    output.row(["memory of a version, KiB", f"{kib:.2f}", f"≤ {TARGET_KIB:g}"], record)


if __name__ == "__main__":
    main()
