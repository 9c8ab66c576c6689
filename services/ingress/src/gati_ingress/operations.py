"""Endpoints for probes and scrapers, `/livez`, `/readyz` (`/healthz`), `/metrics`, and for people and their
tools, `/openapi.json` and `/docs`.

They answer from cached state and never ask the broker, so they are quick when it is not; the description of
the API asks once, when it is wanted first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog

from gati_core.errors import GatiError
from gati_core.fabric import Fabric, KvView, stream_state
from gati_core.wire import problem_parts
from gati_ingress.description import ApiDescription
from gati_ingress.settings import IngressSettings
from gati_ingress.stats import Recorder, exposition, write_snapshot

log = structlog.get_logger(__name__)

_REFRESH_S = 1.0
Send = Callable[[dict[str, Any]], Awaitable[None]]
Operation = Callable[[dict[str, Any], Send], Awaitable[None]]


class Operations:
    """See the module. `by_path` maps raw paths to the endpoints."""

    def __init__(
        self, *, settings: IngressSettings, fabric: Fabric, view: KvView, recorder: Recorder, shared: str
    ) -> None:
        self._settings = settings
        self._fabric = fabric
        self._view = view
        self._recorder = recorder
        self._shared = shared
        self._is_stream_there = False
        self._was_ready = True
        self.is_draining = False
        self.connections: Callable[[], int] = lambda: 0
        self.in_flight: Callable[[], int] = lambda: 0
        self.by_path: dict[bytes, Operation] = {
            b"/livez": self._livez,
            b"/readyz": self._readyz,
            b"/healthz": self._readyz,
            b"/metrics": self._metrics,
        }
        self._description = ApiDescription(fabric, title=f"{fabric.subjects.namespace} API")
        if settings.openapi_path:
            self.by_path[settings.openapi_path.encode()] = self._openapi
            if settings.docs_path:
                self.by_path[settings.docs_path.encode()] = self._docs

    def reasons(self) -> list[str]:
        """Why this process is not ready; empty when it is."""
        reasons = []
        if self.is_draining:
            reasons.append("shutting down")
        if not self._fabric.connection.is_up:
            reasons.append("the broker is not connected or does not answer")
        elif not self._is_stream_there:
            reasons.append(f"stream {self._fabric.subjects.req_stream} is missing")
        if not any(entry.key.startswith("router.") for entry in self._view.entries()):
            reasons.append("no router is alive")
        return reasons

    async def refresh(self) -> None:
        """Leave the counters where siblings find them, and look at what needs a round trip."""
        if self._shared:  # first: a broker that answers late makes no scrape late
            self._update()
            await asyncio.to_thread(write_snapshot, self._recorder.stats, self._shared)
        if self._fabric.connection.is_up:
            try:
                await stream_state(self._fabric.connection, self._fabric.subjects.req_stream)
                self._is_stream_there = True
            except GatiError as exc:
                self._is_stream_there = False
                log.debug("stream_not_seen", error=str(exc))
        reasons = self.reasons()
        if bool(reasons) == self._was_ready:
            self._was_ready = not reasons
            log.info("readiness_changed", ready=not reasons, reasons=reasons)

    async def keep_fresh(self) -> None:
        """`refresh` every second, for ever."""
        while True:
            await asyncio.sleep(_REFRESH_S)
            try:
                await self.refresh()
            except Exception:
                log.exception("refresh_failed")

    def _update(self) -> None:
        stats, publisher = self._recorder.stats, self._fabric.publisher
        health = self._fabric.connection.health()
        stats.in_flight = self.in_flight()
        stats.connections = self.connections()
        stats.publish_in_flight = publisher.in_flight
        stats.published = publisher.stats.published
        stats.publish_refused_full = publisher.stats.refused_full
        stats.publish_unconfirmed = publisher.stats.unconfirmed
        stats.broker_up = health.is_up
        stats.broker_reconnects = health.reconnects + health.rebuilds
        stats.pools_view_staleness_s = round(min(self._view.staleness_s(), 86_400.0), 3)

    async def _livez(self, _scope: dict[str, Any], send: Send) -> None:
        await _json(send, 200, {"status": "alive"})

    async def _readyz(self, _scope: dict[str, Any], send: Send) -> None:
        reasons = self.reasons()
        document = {"status": "not ready", "reasons": reasons} if reasons else {"status": "ready"}
        await _json(send, 503 if reasons else 200, document)

    async def _openapi(self, _scope: dict[str, Any], send: Send) -> None:
        try:
            document = await self._description.document()
        except GatiError as exc:
            status, _, body = problem_parts(exc, "")
            await _bytes(send, status, b"application/problem+json", body)
            return
        await _bytes(send, 200, b"application/json", document)

    async def _docs(self, _scope: dict[str, Any], send: Send) -> None:
        page = self._description.page(self._settings.openapi_path)
        await _bytes(send, 200, b"text/html; charset=utf-8", page)

    async def aclose(self) -> None:
        """Follow nothing any more."""
        await self._description.aclose()

    async def _metrics(self, _scope: dict[str, Any], send: Send) -> None:
        self._update()
        body = exposition(self._recorder.stats, self._shared)
        await _bytes(send, 200, b"text/plain; version=0.0.4; charset=utf-8", body)


async def _json(send: Send, status: int, document: dict[str, Any]) -> None:
    await _bytes(send, status, b"application/json", msgspec.json.encode(document))


async def _bytes(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    headers = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
