"""What `gati dev` prints once it serves: the routes, and calls that work."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.table import Table

_PARAMETER = re.compile(r"\{[^}]*\}")
_JSON = "-H 'content-type: application/json'"


class Served(Protocol):
    """The part of a route that is shown here."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def app(self) -> str: ...
    @property
    def handler(self) -> str: ...
    @property
    def delivery(self) -> str: ...


def curl_lines(routes: Sequence[Served], base_url: str) -> list[str]:
    """Up to two calls for people to paste.

    The examples of this repository get bodies and names that they answer well. Of anything else,
    reading comes before writing, and a parameter is filled with `1`.
    """
    lines = []
    served = {(route.method, route.path) for route in routes}
    if ("POST", "/orders") in served and any(route.app == "shop" for route in routes):
        body = '{"sku":"ada-42","quantity":3}'
        lines.append(f"curl -i {base_url}/orders {_JSON} -d '{body}'")
    if ("GET", "/hello/{name}") in served:
        lines.append(f"curl -i {base_url}/hello/world")
    if lines:
        return lines[:2]
    reading = [route for route in routes if route.method == "GET"]
    writing = [route for route in routes if route.method != "GET"]
    return [_plain(route, base_url) for route in (reading + writing)[:2]]


def _plain(route: Served, base_url: str) -> str:
    url = shlex.quote(base_url + _PARAMETER.sub("1", route.path))
    if route.method == "GET":
        return f"curl -i {url}"
    if route.method == "HEAD":
        return f"curl -I {url}"
    return f"curl -i -X {route.method} {url}"


def route_table(routes: Sequence[Served]) -> Table:
    """The routes as a table: method, path, handler, delivery."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("METHOD", "PATH", "HANDLER", "DELIVERY"):
        table.add_column(column, overflow="fold")
    for route in routes:
        table.add_row(
            route.method, escape(route.path), f"{route.app}:{route.handler}", route.delivery.replace("_", " ")
        )
    return table


def changed_routes(before: Sequence[Served], after: Sequence[Served]) -> list[str]:
    """One line per route that a reload added or took away."""
    old = {(route.path, route.method): f"{route.app}:{route.handler}" for route in before}
    new = {(route.path, route.method): f"{route.app}:{route.handler}" for route in after}
    gone = [f"- {method} {path}" for path, method in sorted(old.keys() - new.keys())]
    come = [f"+ {method} {path}  {new[path, method]}" for path, method in sorted(new.keys() - old.keys())]
    moved = [
        f"~ {method} {path}  {new[path, method]} (was {old[path, method]})"
        for path, method in sorted(old.keys() & new.keys())
        if old[path, method] != new[path, method]
    ]
    return gone + come + moved
