"""`gati routes`: what is served, read from the buckets as a router reads them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import msgspec

from gati_cli._errors import CliError
from gati_cli.target import Target, with_fabric
from gati_core.errors import MalformedManifest
from gati_core.fabric import Fabric
from gati_core.fabric.inspection import read_bucket
from gati_core.manifests import PoolManifest, parse_announcement, parse_pool_manifest, pools_in_order

if TYPE_CHECKING:
    from rich.table import Table

D = TypeVar("D")


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One method on one path, and who serves it."""

    method: str
    path: str
    app: str
    handler: str
    delivery: str
    pool: str
    version: str
    workers: int
    """Processes that serve it now; 0 while its version is asleep."""
    is_live: bool
    hooks: int = 0
    """Hooks that run around the handler: those of its package and those of its route."""
    shadowed_by: str = ""
    """Another app that serves the same route and is newer, so that this one gets no request."""
    source: str = ""
    summary: str = ""


class RouteReport(msgspec.Struct, frozen=True):
    """All routes of a fabric, and the announcements that could not be read."""

    routes: list[Route]
    malformed: list[str]


def build_report(pools: Mapping[str, bytes], manifests: Mapping[str, bytes]) -> RouteReport:
    """Decide as a router does: the newest live pool serves a route; what nobody serves is remembered.

    Args:
        pools: the entries of `{ns}_pools`.
        manifests: the entries of `{ns}_manifests`.
    """
    malformed: list[str] = []
    announcements = _readable(pools, "worker.", parse_announcement, malformed)
    current = _readable(manifests, "current.", parse_pool_manifest, malformed)
    live, remembered = pools_in_order(announcements, current)
    workers = Counter({each.manifest.pool: 0 for each in announcements if each.state == "asleep"})
    workers.update(each.manifest.pool for each in announcements if each.state == "ready")
    ordered = live + remembered
    routes = sorted(_routes(ordered, workers), key=lambda route: (route.path, route.method, bool(route.shadowed_by)))
    return RouteReport(routes, malformed)


def _readable(entries: Mapping[str, bytes], prefix: str, parse: Callable[..., D], malformed: list[str]) -> list[D]:
    """The documents under keys of this prefix; what cannot be read is added to `malformed`."""
    documents = []
    for key, value in sorted(entries.items()):
        if key.startswith(prefix):
            try:
                documents.append(parse(value, key=key))
            except MalformedManifest as exc:
                malformed.append(str(exc))
    return documents


def _routes(pools: list[PoolManifest], workers: Mapping[str, int]) -> list[Route]:
    routes: list[Route] = []
    owners: dict[tuple[str, str], str] = {}
    seen: set[tuple[str, str, str]] = set()
    for pool in pools:
        for handler in pool.handlers:
            shape = "/".join("{}" if part.startswith("{") else part for part in handler.path.split("/"))
            for method in handler.methods:
                if (pool.app, method, shape) in seen:
                    continue  # an older version of the same app, on its way out
                seen.add((pool.app, method, shape))
                owner = owners.setdefault((method, shape), pool.app)
                routes.append(
                    Route(
                        method=method,
                        path=handler.path,
                        app=pool.app,
                        handler=handler.id,
                        delivery=handler.mode,
                        pool=pool.pool,
                        version=pool.version,
                        workers=workers.get(pool.pool, 0),
                        is_live=pool.pool in workers,
                        hooks=len(handler.hooks),
                        shadowed_by="" if owner == pool.app else owner,
                        source=handler.source,
                        summary=handler.summary,
                    )
                )
    return routes


async def read_routes(fabric: Fabric) -> RouteReport:
    """The report of a fabric.

    Raises:
        TopologyError: its buckets do not exist.
        BrokerUnavailable: no answer.
    """
    pools = await read_bucket(fabric.connection, fabric.subjects.pools_bucket)
    manifests = await read_bucket(fabric.connection, fabric.subjects.manifests_bucket)
    return build_report(pools, manifests)


def show_routes(target: Target, *, as_json: bool) -> None:
    """Print the routes of the target.

    Raises:
        CliError: there is no fabric on that broker.
    """
    from gati_core.errors import TopologyError

    try:
        report = with_fabric(target, read_routes)
    except TopologyError as exc:
        raise CliError(no_fabric(target)) from exc
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
        return
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    if report.routes:
        console.print(_table(report.routes))
    else:
        console.print("no routes yet: no handler package has announced itself", markup=False)
    for route in report.routes:
        if route.shadowed_by:
            line = (
                f"conflict: {route.method} {route.path} of {route.app} is never called, {route.shadowed_by} serves it"
            )
            console.print(line, style="yellow", markup=False)
    for reason in report.malformed:
        print(f"refused: {reason}", file=sys.stderr)


def no_fabric(target: Target) -> str:
    """What to say when a broker knows nothing of the namespace."""
    return (
        f"the broker at {target.shown_url} ({target.origin}) holds no fabric {target.namespace!r}:"
        " start one with `gati dev`, or set GATI_NAMESPACE to the right one"
    )


def _table(routes: list[Route]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("METHOD", "PATH", "STATE", "WORKERS", "DELIVERY", "HOOKS", "POOL", "HANDLER"):
        table.add_column(column, overflow="fold", no_wrap=column in ("METHOD", "STATE", "DELIVERY"))
    for route in routes:
        state = "[green]live[/]" if route.is_live else "[red]no worker[/]"
        if route.is_live and not route.workers:
            state = "[green]asleep[/]"
        if route.shadowed_by:
            state = "[yellow]conflict[/]"
        handler = f"{route.app}:{route.handler}"
        counts = (str(route.workers), route.delivery, str(route.hooks))
        table.add_row(route.method, escape(route.path), state, *counts, route.pool, handler)
    return table
