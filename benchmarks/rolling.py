#!/usr/bin/env python3
"""Rolling from version 1 to version 3 while wrk asks: what fails, and what runs twice. Neither may.

Two breaking changes, each with a transformer, are published one after the other into a fabric under load, and then the
first two versions are ended. One wrk is a client of version 1 from beginning to end, the other asks for no version and
sends what all three take. The handler runs at most once and notes each request that it runs.

    python benchmarks/rolling.py
    python benchmarks/rolling.py --connections 64 --pause 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from _common import Output, header
from _stack import open_stack, wait_ready
from gati_core.app.building import build_wheel
from gati_core.app.publishing import publish_wheel, wait_until_served
from gati_core.fabric import open_fabric
from gati_core.settings import FabricSettings
from gati_core.timescape import Timeline, fabric_registry, with_status

BODY = {"sku": "a", "price": "1.50", "cents": 150, "currency": "EUR"}
LIMIT_S = 300

_PROJECT = """
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "rolled"
version = "{version}"
requires-python = ">=3.11"
dependencies = ["gati-core"]

[project.entry-points."gati.apps"]
rolled = "rolled:app"

[tool.hatch.build.targets.wheel]
packages = ["src/rolled"]
"""
_SOURCE = """
import os

import msgspec

from gati_core import App, Request, Response, VersionedRequest, VersionedResponse

app = App("rolled")
notes = []


@app.on_startup
async def open_notes(gctx) -> None:
    notes.append(os.open(os.environ["ROLLED_NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))


class Article(msgspec.Struct):
    {fields}


@app.post("/rolled", id="rolled")
async def rolled(req: Request[Article], res: Response[Article], gctx, lctx) -> None:
    os.write(notes[0], f"{{lctx.request_id}} {version}\\n".encode())
    res.json(req.body)
"""
_FIRST = """

@app.transformer("rolled", from_version="v1.0"{to})
class PriceToCents:
    @staticmethod
    def forward_request(request: VersionedRequest) -> None:
        request.body["cents"] = round(float(request.body.pop("price")) * 100)

    @staticmethod
    def backward_response(response: VersionedResponse) -> None:
        response.body["price"] = f"{{response.body.pop('cents') / 100:.2f}}"
"""
_SECOND = """

@app.transformer("rolled", from_version="v2.0")
class WithCurrency:
    @staticmethod
    def forward_request(request: VersionedRequest) -> None:
        request.body["currency"] = "EUR"

    @staticmethod
    def backward_response(response: VersionedResponse) -> None:
        del response.body["currency"]
"""
VERSIONS = {
    "1.0": ("sku: str\n    price: str", ""),
    "2.0": ("sku: str\n    cents: int", _FIRST.format(to="")),
    "3.0": (
        "sku: str\n    cents: int\n    currency: str",
        _FIRST.format(to=', to_version="v2.0"') + _SECOND,
    ),
}


def build(folder: Path, version: str) -> Path:
    """The wheel of one version."""
    fields, transformers = VERSIONS[version]
    project = folder / version
    (project / "src" / "rolled").mkdir(parents=True)
    (project / "pyproject.toml").write_text(_PROJECT.format(version=version))
    source = _SOURCE.format(fields=fields, version=version) + transformers
    (project / "src" / "rolled" / "__init__.py").write_text(source)
    return build_wheel(project, folder / "dist").path


async def roll(nats_url: str, wheels: dict[str, Path], pause_s: float) -> list[tuple[str, float]]:
    """Publish the later versions and end the earlier ones; what was done, and how long it took."""
    done = []
    async with open_fabric(FabricSettings(nats_url=nats_url), name="bench", ensure=False) as fabric:
        for version in ("2.0", "3.0"):
            await asyncio.sleep(pause_s)
            began = time.monotonic()
            record = await publish_wheel(fabric, wheels[version], actor="bench")
            await wait_until_served(fabric, record, within_s=30)
            done.append((f"publish {version}", time.monotonic() - began))
        registry = fabric_registry(fabric)
        for number, version in enumerate(("1.0", "2.0")):
            await asyncio.sleep(pause_s)
            began = time.monotonic()
            tsv = (await registry.timeline("rolled", "rolled")).versions[number].tsv

            def end(before: Timeline, tsv: str = tsv) -> Timeline:
                return with_status(before, tsv, "deactivated", now_ms=registry.now_ms(), actor="bench", by_hand=True)

            await registry.change("rolled", "rolled", end)
            done.append((f"end {version}", time.monotonic() - began))
        await asyncio.sleep(pause_s)
    return done


async def publish_first(nats_url: str, wheel: Path) -> None:
    """The version that all begin with."""
    async with open_fabric(FabricSettings(nats_url=nats_url), name="bench", ensure=False) as fabric:
        await wait_until_served(fabric, await publish_wheel(fabric, wheel, actor="bench"), within_s=30)


def wrk(url: str, script: Path, connections: int, seconds: int) -> subprocess.Popen[str]:
    """Load until its time is up; `counted` reads what it says."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def counted(load: subprocess.Popen[str]) -> tuple[int, int]:
    """Requests answered, and how many of them were not answered well."""
    text, _ = load.communicate(timeout=LIMIT_S)
    count = re.search(r"(\d+) requests in", text)
    if load.returncode or count is None:
        raise SystemExit(f"wrk failed:\n{text}")
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    return int(count[1]), int(bad[1] if bad else 0) + sum(map(int, errors.groups() if errors else ()))


def main() -> None:
    """Entry point. Ends with 1 when a request failed or ran twice."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--connections", type=int, default=16, help="of each of the two clients")
    parser.add_argument("--pause", type=float, default=3.0, help="seconds of load before each step, and at the end")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    options = parser.parse_args()
    output = Output(as_json=options.json)
    with tempfile.TemporaryDirectory(prefix="gati-bench-") as name:
        folder = Path(name)
        notes = folder / "notes.txt"
        wheels = {version: build(folder, version) for version in VERSIONS}
        settings = {"ROLLED_NOTES": str(notes), "GATI_WORKER_CACHE_DIR": str(folder / "cache")}
        with open_stack(folder / "gati", settings) as stack:
            asyncio.run(publish_first(stack.nats_url, wheels["1.0"]))
            url = f"http://127.0.0.1:{stack.port}/rolled"
            wait_ready(url, json.dumps(BODY).encode())
            lua = f"wrk.method = 'POST'\nwrk.body = '{json.dumps(BODY)}'\n"
            lua += "wrk.headers['content-type'] = 'application/json'\n"
            scripts = {"asks for 1.0": folder / "old.lua", "asks for none": folder / "any.lua"}
            scripts["asks for none"].write_text(lua)
            scripts["asks for 1.0"].write_text(lua + "wrk.headers['x-gati-version'] = 'v1.0'\n")
            seconds = int(options.pause * 5 + 8)
            what = f"{options.connections} connections for each client, {seconds} s"
            output.header(header(warm_up="none", rounds=1, others=what))
            loads = {case: wrk(url, script, options.connections, seconds) for case, script in scripts.items()}
            steps = asyncio.run(roll(stack.nats_url, wheels, options.pause))
            sums = {case: counted(load) for case, load in loads.items()}
        lines = [line.split() for line in notes.read_text().splitlines()]
    runs = Counter(request_id for request_id, _ in lines)
    by_version = Counter(version for _, version in lines)
    twice = sum(count > 1 for count in runs.values())
    failed = sum(bad for _, bad in sums.values())
    output.columns(["client", "answered", "failed"])
    for case, (count, bad) in sums.items():
        output.row([case, f"{count:,}", str(bad)], {"client": case, "answered": count, "failed": bad})
    sys.stdout.write("\n")
    output.columns(["step", "s"])
    for step, took_s in steps:
        output.row([step, f"{took_s:.2f}"], {"step": step, "s": took_s})
    ran = ", ".join(f"{count:,} by {version}" for version, count in sorted(by_version.items()))
    sys.stdout.write(f"\nrequests run: {len(runs):,} ({ran}); run twice: {twice}\n")
    if failed or twice:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
