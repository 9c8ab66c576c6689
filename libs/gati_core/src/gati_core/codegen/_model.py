"""What generators are given: the operations of an API, with their types."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gati_core.gtype import Document, GType, Ref, children
from gati_core.manifests import HandlerManifest


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One handler and its types; None where it declares nothing."""

    manifest: HandlerManifest
    request: Document | None = None
    response: Document | None = None
    params: Document | None = None
    query: Document | None = None
    headers: Document | None = None

    @property
    def http_methods(self) -> list[str]:
        """Its methods, without that of WebSockets."""
        return [method for method in self.manifest.methods if method != "WEBSOCKET"]


class Api(msgspec.Struct, frozen=True, kw_only=True):
    """The handlers of one app."""

    name: str
    version: str = ""
    operations: list[Operation] = []


def reachable(name: str, document: Document) -> list[str]:
    """A definition and all that it leads to, sorted."""
    found: set[str] = set()
    waiting: list[GType] = [Ref(ref=name)]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Ref) and each.ref not in found:
            found.add(each.ref)
            waiting.append(document.definitions[each.ref])
        waiting += [inner for _, inner in children(each)]
    return sorted(found)


def make_api(
    name: str, version: str, handlers: list[HandlerManifest], document: Callable[[str], Document | None]
) -> Api:
    """An API from manifests.

    Args:
        document: the type of a fingerprint, or None where it is not known.
    """
    operations = []
    for manifest in sorted(handlers, key=lambda each: (each.path, each.methods, each.id)):
        refs = msgspec.to_builtins(manifest.gtypes)
        types = {area: document(ref) for area, ref in refs.items() if ref}
        operations.append(Operation(manifest=manifest, **types))
    return Api(name=name, version=version, operations=operations)
