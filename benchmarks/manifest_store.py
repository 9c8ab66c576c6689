#!/usr/bin/env python3
"""The manifest store on a real broker: how fast it is read, once it is in memory, and written.

200 handlers of 5 versions each, with their types, on an embedded broker.

    python benchmarks/manifest_store.py
    python benchmarks/manifest_store.py --json
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import structlog

from _common import Output, header
from gati_core.fabric import EmbeddedBroker, Fabric, KvView, open_fabric
from gati_core.gtype import extract
from gati_core.manifests import GTypeRefs, HandlerManifest, ManifestStore, fabric_store
from gati_core.settings import FabricSettings

HANDLERS, VERSIONS = 200, 5
TARGET_PER_S = 10_000


def _tsv(handler: int, version: int) -> str:
    return f"tsv:{1_700_000_000 + version}-handler_{handler}-{version:03d}"


async def fill(store: ManifestStore) -> tuple[int, float, str]:
    """Store everything. Returns how many documents, in how many seconds, and the name of a type."""
    name = await store.store_gtype(extract(dict[str, list[int]], where="body").document)
    began = time.perf_counter()
    for handler in range(HANDLERS):
        for version in range(VERSIONS):
            await store.store_manifest(
                "bench",
                HandlerManifest(
                    id=f"handler_{handler}",
                    methods=["POST"],
                    path=f"/handlers/{handler}",
                    mode="at_most_once",
                    version=_tsv(handler, version),
                    gtypes=GTypeRefs(request=name, response=name),
                    fingerprint=hashlib.sha256(f"{handler} {version}".encode()).hexdigest(),
                ),
            )
    return HANDLERS * VERSIONS, time.perf_counter() - began, name


def per_second(read: Callable[[int], Any], seconds: float) -> float:
    """Calls per second, each of another handler than the one before."""
    calls = 0
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        for _ in range(100):
            if read(calls % HANDLERS) is None:
                raise RuntimeError("nothing was found: this measures the wrong thing")
            calls += 1
    return calls / spent


async def measure(fabric: Fabric, output: Output, seconds: float, rounds: int) -> None:
    """Fill the store, read it in all ways, print."""
    view = KvView(fabric.connection, fabric.subjects.manifests_bucket)
    await view.start()
    store = fabric_store(fabric, view)
    documents, spent, name = await fill(store)
    output.row(
        ["write a manifest, one after another", f"{documents / spent:,.0f}", ""],
        {"case": "write", "per_s": round(documents / spent), "target_per_s": None},
    )
    reads: dict[str, Callable[[int], Any]] = {
        "a version of a handler": lambda n: store.manifest("bench", f"handler_{n}", _tsv(n, 2)),
        "the newest version of a handler": lambda n: store.manifest("bench", f"handler_{n}"),
        "all versions of a handler": lambda n: store.manifest_versions("bench", f"handler_{n}") or None,
        "a type": lambda n: store.gtype(name),
    }
    for case, read in reads.items():
        per_second(read, seconds)
        rate = median(per_second(read, seconds) for _ in range(rounds))
        record = {"case": case, "per_s": round(rate), "target_per_s": TARGET_PER_S}
        output.row([f"read {case}", f"{rate:,.0f}", f"≥ {TARGET_PER_S:,}"], record)
    await view.aclose()


async def run(options: argparse.Namespace) -> None:
    """Start a broker, measure, stop it."""
    # The table alone belongs on the output: setting up a fabric is told at the level info.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    output = Output(as_json=options.json)
    output.header(header(warm_up=f"{options.seconds:g} s", rounds=options.rounds))
    output.columns([f"{HANDLERS} handlers × {VERSIONS} versions", "per s", "target"])
    with tempfile.TemporaryDirectory() as directory, EmbeddedBroker(Path(directory)) as broker:
        settings = FabricSettings(nats_url=broker.url, namespace="bench")
        async with open_fabric(settings, name="bench") as fabric:
            await measure(fabric, output, options.seconds, options.rounds)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.3, help="per measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements per row; the row shows medians")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
