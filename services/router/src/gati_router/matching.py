"""Which handler a method and a path mean. Pure, and fast enough to run for every request.

A table is built once per change of the catalogue and never modified, so a lookup needs no lock.
Paths without parameters are one dictionary lookup; the rest walk a trie, static segments before
parameters, stepping back where a static branch leads nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

from gati_core.errors import InvalidPath, MethodNotAllowed, RouteNotFound, UpgradeRequired
from gati_core.wire import WEBSOCKET

T = TypeVar("T")

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NO_PARAMS: dict[str, str] = {}


class _Leaf(Generic[T]):
    __slots__ = ("methods",)

    def __init__(self) -> None:
        self.methods: dict[str, tuple[T, tuple[str, ...]]] = {}


class _Node(Generic[T]):
    __slots__ = ("leaf", "parameter", "static")

    def __init__(self) -> None:
        self.static: dict[str, _Node[T]] = {}
        self.parameter: _Node[T] | None = None
        self.leaf: _Leaf[T] | None = None


class RouteTable(Generic[T]):
    """An immutable table of routes.

    Args:
        routes: method, normalized route (`/orders/{id}`) and target; of two routes of the same
            method and shape, the first is kept.
    """

    def __init__(self, routes: Iterable[tuple[str, str, T]] = ()) -> None:
        self._root: _Node[T] = _Node()
        self._static: dict[str, _Leaf[T]] = {}
        self.size = 0
        for method, route, target in routes:
            self._add(method, route, target)

    def _add(self, method: str, route: str, target: T) -> None:
        node = self._root
        names: list[str] = []
        for segment in _segments(route):
            if segment.startswith("{"):
                names.append(segment[1:-1])
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.static.setdefault(segment, _Node())
        node.leaf = node.leaf or _Leaf()
        if method not in node.leaf.methods:
            node.leaf.methods[method] = (target, tuple(names))
            self.size += 1
        if not names and "%" not in route and "\0" not in route:
            # The shortcut compares raw paths: where decoding would change or refuse one, it may not decide.
            self._static[route] = node.leaf

    def match(self, method: str, path: str) -> tuple[T, dict[str, str]]:
        """The target for a request and its decoded path parameters.

        HEAD falls back to GET. Where a static route knows the path but not the method, a route with
        parameters that knows both is used.

        Args:
            path: as received: percent-encoded, without the query.
        Raises:
            RouteNotFound: no route has this path.
            MethodNotAllowed: routes have this path, none this method; carries the ones they have.
            UpgradeRequired: only WebSocket handlers have this path, and the method is one of HTTP.
            InvalidPath: a percent escape does not decode to UTF-8, or the path holds a NUL byte.
        """
        leaf = self._static.get(path)
        if leaf is not None:
            found = leaf.methods.get(method) or (leaf.methods.get("GET") if method == "HEAD" else None)
            if found is not None:
                return found[0], _NO_PARAMS
        segments = [_decoded(segment, path) for segment in _segments(path)]
        allowed: set[str] = set()
        values: list[str] = []
        hit = _walk(self._root, segments, 0, method, values, allowed)
        if hit is not None:
            return hit[0], dict(zip(hit[1], values, strict=True)) if values else _NO_PARAMS
        if not allowed:
            raise RouteNotFound(f"no handler listens on {path[:200]}")
        allowed.discard(WEBSOCKET)  # no method that a client could use
        if not allowed:
            raise UpgradeRequired(f"{path[:200]} answers to WebSocket handshakes only")
        if "GET" in allowed:
            allowed.add("HEAD")
        allow = tuple(sorted(allowed))
        raise MethodNotAllowed(f"{path[:200]} answers to {', '.join(allow)}, not to {method}", allow=allow)


def _walk(
    node: _Node[T], segments: list[str], at: int, method: str, values: list[str], allowed: set[str]
) -> tuple[T, tuple[str, ...]] | None:
    # As deep as the longest route, however long the path: a path that leaves the trie ends here.
    if at == len(segments):
        if node.leaf is None:
            return None
        methods = node.leaf.methods
        found = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
        if found is None:
            allowed.update(methods)
        return found
    segment = segments[at]
    child = node.static.get(segment)
    if child is not None:
        found = _walk(child, segments, at + 1, method, values, allowed)
        if found is not None:
            return found
    if node.parameter is not None:
        values.append(segment)
        found = _walk(node.parameter, segments, at + 1, method, values, allowed)
        if found is not None:
            return found
        values.pop()
    return None


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment]


def _decoded(segment: str, path: str) -> str:
    if "%" not in segment:
        if "\0" in segment:
            raise InvalidPath("the path holds a NUL byte")
        return segment
    bad = _BAD_ESCAPE.search(segment)
    if bad is not None:
        raise InvalidPath(f"the path has a bad percent escape at {segment[bad.start() : bad.start() + 3]!r}")
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError as exc:
        raise InvalidPath(f"the path's percent escapes are not UTF-8: {segment[:100]!r}") from exc
    if "\0" in text:
        raise InvalidPath("the path holds a NUL byte")
    return text
