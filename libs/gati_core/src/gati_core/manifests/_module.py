"""What is published about a module: its methods, what it may reach, what it needs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gati_core.manifests._handler import Token

_Fingerprint = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$")]
_HOST = re.compile(
    r"(?:\*\.)?(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)
_Ms = Annotated[int, Meta(ge=1)]


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a module wants to be allowed."""

    name: Annotated[str, Meta(min_length=1)]
    description: str = ""
    required: bool = True
    """Whether the module is of no use without it."""
    resources: list[str] = []


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How a failed call is tried again; delays in milliseconds."""

    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    initial_delay: _Ms = 100
    backoff_multiplier: Annotated[float, Meta(ge=1)] = 2.0
    max_delay: _Ms = 5_000


class ModuleMethod(msgspec.Struct, frozen=True, kw_only=True):
    """One method that handlers may call."""

    name: Token
    input_type: _Fingerprint = ""
    """Fingerprint of the type it takes; empty for anything."""
    output_type: _Fingerprint = ""
    description: str = ""
    timeout: _Ms = 5_000
    """Milliseconds."""
    idempotent: bool = False
    retry: RetryPolicy = RetryPolicy()


class NetworkAccess(msgspec.Struct, frozen=True, kw_only=True):
    """What a module may reach; nothing unless it says so."""

    egress: bool = False
    allowed_hosts: list[str] = []
    """Names, or `*.domain` for all below it."""
    allowed_ports: list[Annotated[int, Meta(ge=1, le=65535)]] = []
    ingress: bool = False
    ingress_ports: list[Annotated[int, Meta(ge=1, le=65535)]] = []


class ResourceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes and cores; 0 means the host's default."""

    max_memory: Annotated[int, Meta(ge=0)] = 0
    max_cpu: Annotated[float, Meta(ge=0)] = 0.0
    max_disk: Annotated[int, Meta(ge=0)] = 0


class HealthCheck(msgspec.Struct, frozen=True, kw_only=True):
    """How a module is asked how it is; times in milliseconds."""

    endpoint: str = "/health"
    interval: _Ms = 30_000
    timeout: _Ms = 5_000
    unhealthy_threshold: Annotated[int, Meta(ge=1)] = 3
    healthy_threshold: Annotated[int, Meta(ge=1)] = 1


class ModuleManifest(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one module."""

    module_id: Token
    version: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str = ""
    runtime: Literal["python", "wasm", "oci", "binary", "external"] = "python"
    capabilities: list[Capability] = []
    methods: list[ModuleMethod] = []
    network_access: NetworkAccess = NetworkAccess()
    dependencies: list[str] = []
    """Ids of other modules."""
    resources: ResourceLimits = ResourceLimits()
    health_check: HealthCheck | None = None
    hash: _Fingerprint = ""
    """See `manifest_hash`."""
    created_ms: int = 0
    signature: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a manifest makes sense; errors forbid its use, warnings do not."""

    valid: bool
    errors: list[str] = []
    warnings: list[str] = []


class CapabilityVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a module gets of what it wants."""

    granted: list[str] = []
    denied: list[str] = []
    missing_required: list[str] = []
    errors: list[str] = []


def check_module(manifest: ModuleManifest) -> Verdict:
    """What the shape of a module manifest cannot say."""
    errors = [f"method {name!r} is there twice" for name in _repeated(each.name for each in manifest.methods)]
    errors += [f"capability {name!r} is there twice" for name in _repeated(each.name for each in manifest.capabilities)]
    errors += [f"dependency {name!r} is there twice" for name in _repeated(manifest.dependencies)]
    if manifest.module_id in manifest.dependencies:
        errors.append("the module depends on itself")
    network, warnings = manifest.network_access, []
    for host in network.allowed_hosts:
        if _HOST.fullmatch(host) is None or host == "*":
            errors.append(f"allowed_hosts: {host!r} is neither a host nor `*.domain`")
    if not network.egress and (network.allowed_hosts or network.allowed_ports):
        warnings.append("allowed_hosts and allowed_ports mean nothing without egress")
    if network.egress and not network.allowed_hosts:
        warnings.append("egress without allowed_hosts reaches every host")
    if network.ingress_ports and not network.ingress:
        errors.append("ingress_ports without ingress")
    for method in manifest.methods:
        if method.retry.initial_delay > method.retry.max_delay:
            errors.append(f"method {method.name!r}: initial_delay exceeds max_delay")
        if method.retry.max_attempts > 1 and not method.idempotent:
            warnings.append(f"method {method.name!r} is tried again although it is not idempotent")
    health = manifest.health_check
    if health is not None and health.timeout >= health.interval:
        errors.append("health_check: timeout must be below interval")
    if not manifest.methods:
        warnings.append("the module has no methods")
    return Verdict(valid=not errors, errors=errors, warnings=warnings)


def check_capabilities(manifest: ModuleManifest, granted: Iterable[str]) -> CapabilityVerdict:
    """What a module gets when these capabilities are granted."""
    allowed = set(granted)
    wanted = [each.name for each in manifest.capabilities]
    missing = [each.name for each in manifest.capabilities if each.required and each.name not in allowed]
    return CapabilityVerdict(
        granted=[name for name in wanted if name in allowed],
        denied=[name for name in wanted if name not in allowed],
        missing_required=missing,
        errors=[f"{manifest.module_id} needs the capability {name!r}, which is not granted" for name in missing],
    )


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]
