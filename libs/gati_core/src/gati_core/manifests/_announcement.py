"""The documents in `{ns}_manifests` and `{ns}_pools`: JSON, read by people as well as routers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal, TypeVar

import msgspec

from gati_core.errors import MalformedManifest
from gati_core.manifests._handler import HandlerManifest, Token
from gati_core.wire import PROTOCOL

T = TypeVar("T", bound=msgspec.Struct)


class PoolManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the workers of one package version offer; key `current.<app>` in `{ns}_manifests`."""

    protocol: int = PROTOCOL
    app: Token
    pool: Token
    version: str = ""
    handlers: list[HandlerManifest]
    published_ms: int = 0
    """Unix time at which this version was first announced; the newest live one gets the traffic."""


class HandlerCounts(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one worker has answered for one handler since it started."""

    answers: int = 0
    errors: int = 0
    """Of these, with a status from 500 on."""
    seconds: float = 0.0
    """From the start of each to its answer, all together."""


class WorkerAnnouncement(msgspec.Struct, frozen=True, kw_only=True):
    """One live worker; key `worker.<pool>.<id>` in `{ns}_pools`, rewritten with every heartbeat."""

    protocol: int = PROTOCOL
    worker: Token
    manifest: PoolManifest
    state: Literal["ready", "draining", "asleep"] = "ready"
    """`asleep`: no process runs, and one starts as soon as there is work."""
    host: str = ""
    pid: int = 0
    started_ms: int = 0
    in_flight: int = 0
    capacity: int = 0
    handled: int = 0
    failed: int = 0
    health: Literal["healthy", "degraded", "unhealthy"] = "healthy"
    health_notes: list[str] = []
    """One line for each health check that did not pass."""
    is_last_resort: bool = False
    """Unhealthy, and only because so many of its requests fail: better than nothing, where there is nothing better."""
    abandoned: int = 0
    """Handlers that run on although their request is over: they do not react to being cancelled."""
    counts: dict[str, HandlerCounts] = {}
    """By handler; those that have answered anything."""


class RouterBeat(msgspec.Struct, frozen=True, kw_only=True):
    """One live router; key `router.<id>` in `{ns}_pools`."""

    protocol: int = PROTOCOL
    router: Token
    host: str = ""
    pid: int = 0
    routed: int = 0


def pool_name(app: str, fingerprint: str) -> str:
    """The pool of one version of an app: its name and eight digits of its fingerprint."""
    digest = hashlib.sha256(fingerprint.encode()).hexdigest()[:8]
    return f"{app[:55]}-{digest}"


def parse_announcement(data: bytes, *, key: str) -> WorkerAnnouncement:
    """Read what a worker wrote under `key`.

    Raises:
        MalformedManifest: not a document of ours; says which key and which field.
    """
    return _parse(data, WorkerAnnouncement, key)


def parse_pool_manifest(data: bytes, *, key: str) -> PoolManifest:
    """Read a published pool manifest.

    Raises:
        MalformedManifest: not a document of ours; says which key and which field.
    """
    return _parse(data, PoolManifest, key)


def pools_in_order(
    announcements: Iterable[WorkerAnnouncement], current: Iterable[PoolManifest]
) -> tuple[list[PoolManifest], list[PoolManifest]]:
    """Which pools serve, in the order in which they are asked; routers and tools decide by this alone.

    Args:
        announcements: of the workers that live.
        current: the newest manifest of every app, served or not.
    Returns:
        Pools with a worker that is ready or can be woken, newest first; and pools that are only remembered, by name.
    """
    live: dict[str, PoolManifest] = {}
    for announcement in announcements:
        manifest = announcement.manifest
        known = live.get(manifest.pool)
        # A version that comes back is published again: its latest date counts, whoever was heard first.
        if announcement.state != "draining" and (known is None or manifest.published_ms > known.published_ms):
            live[manifest.pool] = manifest
    remembered = {manifest.pool: manifest for manifest in current if manifest.pool not in live}
    return (
        sorted(live.values(), key=lambda pool: (-pool.published_ms, pool.pool)),
        sorted(remembered.values(), key=lambda pool: pool.pool),
    )


def _parse(data: bytes, kind: type[T], key: str) -> T:
    try:
        document = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedManifest(f"{key}: {exc}") from exc
    protocol = getattr(document, "protocol", PROTOCOL)
    if protocol != PROTOCOL:
        raise MalformedManifest(f"{key}: protocol {protocol}, this process reads protocol {PROTOCOL}")
    return document
