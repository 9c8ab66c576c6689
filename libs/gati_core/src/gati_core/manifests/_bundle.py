"""A bundle: everything that a set of handlers and modules needs to be deployed, in one document with a checksum."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import msgspec

from gati_core.errors import BundleError
from gati_core.gtype import Document, canonical_json, check_document, fingerprint
from gati_core.manifests._handler import HandlerManifest
from gati_core.manifests._module import ModuleManifest

VERSION = "1.0.0"


class BundleNode(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one handler."""

    version: str
    handler_id: str
    timestamp: int
    """Unix time in milliseconds; 0 when it was never stored."""


class BundleEdge(msgspec.Struct, frozen=True, kw_only=True):
    """From a version of a path to the next."""

    from_: str = msgspec.field(name="from")
    to: str
    breaking: bool


class BundleGraph(msgspec.Struct, frozen=True, kw_only=True):
    """The versions in a bundle and how they follow each other."""

    nodes: list[BundleNode] = []
    edges: list[BundleEdge] = []


class BundleTransformer(msgspec.Struct, frozen=True, kw_only=True):
    """A transformer that belongs to a breaking edge."""

    from_version: str
    to_version: str
    path: str
    """`transformers/<from>-to-<to>`."""


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """See the module."""

    version: str = VERSION
    generated: str = ""
    """ISO time, as given by whoever made it; part of the checksum."""
    checksum: str = ""
    """`sha256:` and the hexadecimal digest of the canonical JSON of all else."""
    handlers: list[HandlerManifest] = []
    modules: list[ModuleManifest] = []
    schemas: dict[str, Document] = {}
    """By fingerprint."""
    version_graph: BundleGraph = BundleGraph()
    transformers: list[BundleTransformer] = []
    metadata: dict[str, Any] = {}


class BundleIndex(msgspec.Struct, frozen=True, kw_only=True):
    """Where to find what: positions in `handlers` and `modules`."""

    handlers: dict[str, list[int]]
    """By id; several where several versions are in the bundle."""
    modules: dict[str, list[int]]
    paths: dict[str, list[int]]
    """Handlers by path."""


def make_bundle(
    handlers: Iterable[HandlerManifest],
    modules: Iterable[ModuleManifest],
    schemas: Mapping[str, Document],
    *,
    is_breaking: Callable[[HandlerManifest, HandlerManifest], bool],
    generated: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Bundle:
    """A bundle of these manifests; the same ones give the same bytes, in whatever order they come.

    Args:
        is_breaking: whether the second, newer version breaks clients of the first.
        generated: an ISO time, from whoever wants one in it.
    Raises:
        BundleError: something is there twice or refers to what is not there; lists all of it.
    """
    sorted_handlers = sorted(handlers, key=lambda each: (each.id, each.created_ms, each.version, each.fingerprint))
    sorted_modules = sorted(modules, key=lambda each: (each.module_id, each.version))
    graph, transformers = _graph(sorted_handlers, is_breaking)
    bundle = Bundle(
        generated=generated,
        handlers=sorted_handlers,
        modules=sorted_modules,
        schemas=dict(sorted(schemas.items())),
        version_graph=graph,
        transformers=transformers,
        metadata=dict(metadata or {}),
    )
    _check(bundle)
    return msgspec.structs.replace(bundle, checksum=bundle_checksum(bundle))


def version_of(manifest: HandlerManifest) -> str:
    """Its version, or what identifies it as long as it has none."""
    return manifest.version or manifest.fingerprint[:16]


def _graph(
    handlers: list[HandlerManifest], is_breaking: Callable[[HandlerManifest, HandlerManifest], bool]
) -> tuple[BundleGraph, list[BundleTransformer]]:
    nodes = [BundleNode(version=version_of(each), handler_id=each.id, timestamp=each.created_ms) for each in handlers]
    by_id: dict[str, list[HandlerManifest]] = defaultdict(list)
    for each in handlers:
        by_id[each.id].append(each)
    edges = [
        BundleEdge(from_=version_of(old), to=version_of(new), breaking=is_breaking(old, new))
        for versions in by_id.values()
        for old, new in pairwise(versions)
    ]
    transformers = [
        BundleTransformer(from_version=each.from_, to_version=each.to, path=f"transformers/{each.from_}-to-{each.to}")
        for each in edges
        if each.breaking
    ]
    return BundleGraph(nodes=nodes, edges=edges), transformers


def bundle_checksum(bundle: Bundle) -> str:
    """Over everything but the checksum itself."""
    content: dict[str, Any] = msgspec.to_builtins(bundle)
    content.pop("checksum", None)
    return "sha256:" + hashlib.sha256(canonical_json(content)).hexdigest()


def write_bundle(bundle: Bundle) -> bytes:
    """As JSON for files: sorted and indented."""
    return msgspec.json.format(canonical_json(bundle), indent=2) + b"\n"


def open_bundle(data: bytes) -> Bundle:
    """Read a bundle and check all of it.

    Raises:
        BundleError: no bundle, changed since it was made, or incomplete.
    """
    try:
        bundle = msgspec.json.decode(data, type=Bundle)
        for document in bundle.schemas.values():
            check_document(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BundleError(f"not a bundle: {exc}") from exc
    if bundle.version.partition(".")[0] != VERSION.partition(".")[0]:
        raise BundleError(f"the bundle is of version {bundle.version}, this process reads {VERSION}")
    found = bundle_checksum(bundle)
    if found != bundle.checksum:
        raise BundleError(
            f"the bundle was changed since it was made: it says {bundle.checksum}, its content is {found}"
        )
    _check(bundle)
    return bundle


def _check(bundle: Bundle) -> None:
    problems = []
    ids = Counter((each.id, version_of(each)) for each in bundle.handlers)
    problems += [f"handler {id} of version {version} is there {n} times" for (id, version), n in ids.items() if n > 1]
    modules = Counter((each.module_id, each.version) for each in bundle.modules)
    problems += [
        f"module {id} of version {version} is there {n} times" for (id, version), n in modules.items() if n > 1
    ]
    names = {each.module_id for each in bundle.modules}
    for handler in bundle.handlers:
        missing = sorted({*handler.dependencies.modules} - names)
        problems += [f"handler {handler.id} needs the module {name}, which is not in the bundle" for name in missing]
        for area, ref in msgspec.to_builtins(handler.gtypes).items():
            if ref and ref not in bundle.schemas:
                problems.append(f"handler {handler.id}: its {area} type {ref[:12]}… is not among the schemas")
    for named, document in bundle.schemas.items():
        if fingerprint(document) != named:
            problems.append(f"the schema {named[:12]}… has another fingerprint: it was changed")
    if problems:
        raise BundleError("; ".join(problems))


def bundle_index(bundle: Bundle) -> BundleIndex:
    """Where to find what."""
    handlers: dict[str, list[int]] = defaultdict(list)
    paths: dict[str, list[int]] = defaultdict(list)
    modules: dict[str, list[int]] = defaultdict(list)
    for position, handler in enumerate(bundle.handlers):
        handlers[handler.id].append(position)
        paths[handler.path].append(position)
    for position, module in enumerate(bundle.modules):
        modules[module.module_id].append(position)
    return BundleIndex(handlers=dict(handlers), modules=dict(modules), paths=dict(paths))
