"""What is published about one handler: where it listens, its types, its hooks, its policies."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from gati_core.gtype import canonical_json
from gati_core.wire import DeliveryMode

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
METHODS: tuple[str, ...] = get_args(Method)
UnknownFields = Literal["ignore", "reject"]

Token = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
_Path = Annotated[str, Meta(pattern=r"^/", max_length=1024)]
_Fingerprint = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$")]


class SourceLocation(msgspec.Struct, frozen=True, kw_only=True):
    """Where something is defined: line and column count from 1."""

    file: str
    """Relative to the directory that the package is imported from, with `/`."""
    line: int
    column: int = 1


class HookRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One hook of a handler, complete enough to play its lifecycle back."""

    id: Annotated[str, Meta(min_length=1)]
    type: Literal["before", "after", "catch"]
    level: Literal["global", "route", "local"]
    timeout_s: float
    retries: int = 0
    backoff_s: float = 0.0
    is_async: bool = False
    threaded: bool = False
    detached: bool = False
    source: SourceLocation | None = None


class GTypeRefs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Fingerprints of the types that a handler declares; an empty one means unchecked."""

    request: _Fingerprint = ""
    """Of the body."""
    response: _Fingerprint = ""
    """Of the body of a successful answer."""
    params: _Fingerprint = ""
    query: _Fingerprint = ""
    headers: _Fingerprint = ""


class RateLimitPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """At most `limit` requests of one client within `window` milliseconds."""

    limit: Annotated[int, Meta(ge=1)]
    window: Annotated[int, Meta(ge=1)]


class Policies(msgspec.Struct, frozen=True, kw_only=True):
    """Who may call, how often, and what becomes of fields that nobody declared."""

    roles: list[str] = []
    """One of them suffices; empty means everybody."""
    rate_limit: RateLimitPolicy | None = None
    unknown_fields: UnknownFields = "ignore"


class Dependencies(msgspec.Struct, frozen=True, kw_only=True):
    """What the handler uses beside its own code."""

    modules: list[str] = []
    plugins: list[str] = []


class HandlerManifest(msgspec.Struct, frozen=True, kw_only=True):
    """One handler of a package."""

    id: Token
    methods: Annotated[list[Method | Literal["WEBSOCKET"]], Meta(min_length=1)]
    path: _Path
    """With parameters as `{name}`."""
    mode: DeliveryMode
    version: str = ""
    """The TSV, once a version has been published."""
    timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    is_async: bool = True
    summary: str = ""
    source: str = ""
    """`file:line` of the function, for people; `file` as in `SourceLocation`."""
    hooks: list[HookRecord] = []
    """Of the package and of the route, in the order of registration within type and level."""
    gtypes: GTypeRefs = GTypeRefs()
    policies: Policies = Policies()
    dependencies: Dependencies = Dependencies()
    fingerprint: _Fingerprint = ""
    """Identity of behaviour and types: code, hooks, policies, types. Independent of time, place and file order."""
    hash: _Fingerprint = ""
    """Of everything else in this manifest, but for `created_ms`; see `manifest_hash`."""
    created_ms: int = 0
    """Unix time at which it was stored; no part of its identity."""


def manifest_hash(manifest: msgspec.Struct) -> str:
    """SHA-256, in hex, of the canonical JSON of a manifest without its `hash` and `created_ms`."""
    content: dict[str, Any] = msgspec.to_builtins(manifest)
    for name in ("hash", "created_ms"):
        content.pop(name, None)
    return hashlib.sha256(canonical_json(content)).hexdigest()
