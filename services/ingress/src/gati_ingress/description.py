"""The API as the fabric knows it: `/openapi.json` and the page that shows it.

Read from the manifests bucket, which is followed from the first question on; until then it costs nothing.
"""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from gati_core.codegen import Api, docs_page, make_api, openapi
from gati_core.errors import MalformedManifest
from gati_core.fabric import Fabric, KvView
from gati_core.manifests import fabric_store, parse_pool_manifest

log = structlog.get_logger(__name__)


class ApiDescription:
    """The OpenAPI document of a fabric, made anew when a manifest has changed."""

    def __init__(self, fabric: Fabric, *, title: str) -> None:
        self._fabric = fabric
        self._title = title
        self._view: KvView | None = None
        self._opening = asyncio.Lock()
        self._document: bytes | None = None

    async def document(self) -> bytes:
        """The document as JSON.

        Raises:
            BrokerUnavailable: nothing was read yet, and the broker is away.
        """
        view = await self._opened()
        if self._document is None:
            self._document = msgspec.json.encode(openapi(self._apis(view), title=self._title))
        return self._document

    @staticmethod
    def page(url: str) -> bytes:
        """The page that shows the document at `url`."""
        return docs_page(url).encode()

    async def aclose(self) -> None:
        """Stop following the bucket."""
        view, self._view = self._view, None
        if view is not None:
            await view.aclose()

    async def _opened(self) -> KvView:
        async with self._opening:
            if self._view is None:
                view = KvView(self._fabric.connection, self._fabric.subjects.manifests_bucket, on_change=self._forget)
                try:
                    await view.start()
                except BaseException:
                    await view.aclose()
                    raise
                self._view = view
            return self._view

    def _forget(self, _key: str, _value: bytes | None) -> None:
        self._document = None

    def _apis(self, view: KvView) -> list[Api]:
        store = fabric_store(self._fabric, view)
        pools = []
        for entry in view.entries():
            if entry.key.startswith("current."):
                try:
                    pools.append(parse_pool_manifest(entry.value, key=entry.key))
                except MalformedManifest as exc:
                    log.warning("manifest_refused", key=entry.key, error=str(exc))
        # The newest serves a route that several apps have, as in the router.
        newest_first = sorted(pools, key=lambda pool: (-pool.published_ms, pool.app))
        return [make_api(pool.app, pool.version, pool.handlers, store.gtype) for pool in newest_first]
