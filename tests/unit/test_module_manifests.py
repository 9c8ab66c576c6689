"""What is wrong with a module's manifest, beyond its shape, and what a module gets of what it wants."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gati_core.manifests import (
    Capability,
    HealthCheck,
    ModuleManifest,
    ModuleMethod,
    NetworkAccess,
    RetryPolicy,
    check_capabilities,
    check_module,
)

ONCE = RetryPolicy(max_attempts=1)
READ = ModuleMethod(name="read", retry=ONCE)


def module(**fields: Any) -> ModuleManifest:
    return ModuleManifest(**{"module_id": "stock", "version": "1.0.0", "methods": [READ], **fields})


def test_a_sound_module_has_neither_errors_nor_warnings() -> None:
    verdict = check_module(
        module(
            capabilities=[Capability(name="kv"), Capability(name="http", required=False)],
            dependencies=["prices"],
            network_access=NetworkAccess(
                egress=True,
                allowed_hosts=["*.example.org", "db"],
                allowed_ports=[443],
                ingress=True,
                ingress_ports=[80],
            ),
            health_check=HealthCheck(),
            methods=[READ, ModuleMethod(name="write", idempotent=True)],
        )
    )

    assert (verdict.valid, verdict.errors, verdict.warnings) == (True, [], [])


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"methods": [READ, READ]}, "method 'read' is there twice"),
        ({"capabilities": [Capability(name="kv")] * 3}, "capability 'kv' is there twice"),
        ({"dependencies": ["prices", "prices"]}, "dependency 'prices' is there twice"),
        ({"dependencies": ["stock"]}, "the module depends on itself"),
        (
            {"network_access": NetworkAccess(egress=True, allowed_hosts=["https://example.org"])},
            "allowed_hosts: 'https://example.org' is neither a host nor `*.domain`",
        ),
        (
            {"network_access": NetworkAccess(egress=True, allowed_hosts=["*"])},
            "allowed_hosts: '*' is neither a host nor `*.domain`",
        ),
        ({"network_access": NetworkAccess(ingress_ports=[80])}, "ingress_ports without ingress"),
        (
            {"methods": [ModuleMethod(name="read", retry=RetryPolicy(max_attempts=1, initial_delay=9_000))]},
            "method 'read': initial_delay exceeds max_delay",
        ),
        (
            {"health_check": HealthCheck(interval=5_000, timeout=5_000)},
            "health_check: timeout must be below interval",
        ),
    ],
)
def test_what_cannot_work_is_an_error_that_names_it(fields: dict[str, Any], error: str) -> None:
    verdict = check_module(module(**fields))

    assert (verdict.valid, verdict.errors) == (False, [error])


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"methods": []}, "the module has no methods"),
        (
            {"methods": [ModuleMethod(name="write")]},
            "method 'write' is tried again although it is not idempotent",
        ),
        ({"network_access": NetworkAccess(egress=True)}, "egress without allowed_hosts reaches every host"),
        (
            {"network_access": NetworkAccess(allowed_ports=[443])},
            "allowed_hosts and allowed_ports mean nothing without egress",
        ),
    ],
)
def test_what_may_be_meant_otherwise_is_a_warning(fields: dict[str, Any], warning: str) -> None:
    verdict = check_module(module(**fields))

    assert (verdict.valid, verdict.warnings) == (True, [warning])


def test_all_that_is_wrong_is_listed() -> None:
    verdict = check_module(
        module(methods=[READ, READ], dependencies=["stock"], network_access=NetworkAccess(ingress_ports=[80]))
    )

    assert len(verdict.errors) == 3


@pytest.mark.parametrize(
    "field",
    [
        {"module_id": "no spaces"},
        {"version": ""},
        {"runtime": "java"},
        {"methods": [{"name": "read", "timeout": 0}]},
        {"methods": [{"name": "read", "retry": {"max_attempts": 101}}]},
        {"network_access": {"allowed_ports": [70_000]}},
        {"resources": {"max_cpu": -1}},
    ],
)
def test_values_out_of_their_range_are_no_manifest(field: dict[str, Any]) -> None:
    given = {"module_id": "stock", "version": "1.0.0", **field}

    with pytest.raises(msgspec.ValidationError, match=next(iter(field))):
        msgspec.convert(given, ModuleManifest)


def test_a_module_gets_what_it_wants_and_is_granted_and_nothing_else() -> None:
    wanted = module(
        capabilities=[Capability(name="kv"), Capability(name="mail"), Capability(name="http", required=False)]
    )

    assert check_capabilities(wanted, ["kv", "mail", "http", "files"]).granted == ["kv", "mail", "http"]
    verdict = check_capabilities(wanted, ["kv", "files"])
    assert (verdict.granted, verdict.denied, verdict.missing_required) == (["kv"], ["mail", "http"], ["mail"])
    assert verdict.errors == ["stock needs the capability 'mail', which is not granted"]
