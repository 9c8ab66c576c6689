"""What is known of the versions of a handler: their order, what leads from one to another, how they are deployed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gati_core.manifests._handler import Token

_Version = Annotated[str, Meta(min_length=1, max_length=200)]


class TransformerRef(msgspec.Struct, frozen=True, kw_only=True):
    """A transformer that leads from a version to another."""

    to: _Version
    transformer_id: str


class GraphVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version in a graph."""

    version: _Version
    manifest_hash: str = ""
    deployed_ms: int = 0
    active: bool = True
    parent: str = ""
    """The version before it; empty for the first."""
    breaking: bool = False
    """Whether it breaks clients of its parent."""
    transformers: list[TransformerRef] = []


class VersionGraph(msgspec.Struct, frozen=True, kw_only=True):
    """All versions of one handler, oldest first."""

    app: Token
    handler_id: Token
    current_version: str = ""
    latest_version: str = ""
    versions: list[GraphVersion] = []


class Transformation(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a transformer."""

    path: str
    type: Literal["rename", "remove", "add", "transform"]
    details: dict[str, Any] = {}


class TransformerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A transformer between two versions; never changed once stored."""

    id: Annotated[str, Meta(min_length=1, max_length=200)]
    app: Token
    handler_id: Token
    from_version: _Version
    to_version: _Version
    direction: Literal["forward", "backward"]
    transformations: list[Transformation] = []
    hash: str = ""
    """See `manifest_hash`."""
    created_ms: int = 0


class Compatibility(msgspec.Struct, frozen=True, kw_only=True):
    """How a version stands to the others of its handler."""

    compatible: list[str] = []
    incompatible: list[str] = []
    transformable: list[str] = []


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """How a version is, or was, brought out."""

    strategy: Literal["blue-green", "canary", "rolling"] = "rolling"
    rollout_percentage: Annotated[int, Meta(ge=0, le=100)] | None = None
    status: Literal["pending", "active", "draining", "decommissioned"] = "pending"


class VersionMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """How a version does; latency in milliseconds."""

    request_count: int = 0
    error_rate: float = 0.0
    avg_latency: float = 0.0
    last_updated_ms: int = 0


class TimescapeMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What Timescape knows of one version of one handler."""

    app: Token
    handler_id: Token
    version: _Version
    fingerprint: str
    compatibility: Compatibility = Compatibility()
    deployment: Deployment = Deployment()
    metrics: VersionMetrics | None = None
