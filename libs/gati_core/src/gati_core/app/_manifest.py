"""The manifest of a registered handler: worked out from its function, its types, hooks and options."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from gati_core.app._code import code_fingerprint, local_hooks, location_of, modules_used
from gati_core.contexts import Hook
from gati_core.gtype import Document, canonical_json, fingerprint
from gati_core.manifests import Dependencies, GTypeRefs, HandlerManifest, HookRecord, manifest_hash


def full_manifest(
    declared: HandlerManifest,
    function: Callable[..., Any],
    hooks: Sequence[Hook],
    documents: Mapping[str, Document],
    modules: Sequence[str],
) -> HandlerManifest:
    """The declared part with all that follows from the code.

    Args:
        declared: route, methods, delivery, policies: what the decorator was given.
        hooks: of the package and the route, in the order of registration within type and level.
        documents: by `request`, `response`, `params`, `query`, `headers`; those that are typed.
        modules: names that the decorator lists beside those that the code shows.
    """
    functions = [function, *(hook.function for hook in hooks)]
    records = [_record(hook) for hook in hooks]
    for each in functions:
        records += [record for record in local_hooks(each) if record not in records]
    refs = GTypeRefs(**{area: fingerprint(document) for area, document in documents.items()})
    location = location_of(function)
    manifest = msgspec.structs.replace(
        declared,
        timeout_s=float(declared.timeout_s),  # authors write 30 as well as 30.0, and the hash must not differ
        source=f"{location.file}:{location.line}" if location is not None else "",
        hooks=records,
        gtypes=refs,
        dependencies=Dependencies(modules=sorted({*modules, *modules_used(functions)})),
    )
    manifest = msgspec.structs.replace(manifest, fingerprint=_behaviour(manifest, code_fingerprint(functions)))
    return msgspec.structs.replace(manifest, hash=manifest_hash(manifest))


def _record(hook: Hook) -> HookRecord:
    return HookRecord(
        id=hook.id,
        type=hook.kind,
        level=hook.level,
        timeout_s=float(hook.timeout_s),
        retries=hook.retries,
        backoff_s=float(hook.backoff_s),
        is_async=hook.is_async,
        threaded=hook.is_threaded,
        detached=hook.is_detached,
        source=location_of(hook.function),
    )


def _behaviour(manifest: HandlerManifest, code: str) -> str:
    """What makes two versions of a handler the same: where things stand in their files does not count."""
    content: dict[str, Any] = msgspec.to_builtins(manifest)
    for name in ("version", "summary", "source", "fingerprint", "hash", "created_ms"):
        content.pop(name, None)
    for record in content["hooks"]:
        record.pop("source", None)
    return hashlib.sha256(canonical_json({"manifest": content, "code": code})).hexdigest()
