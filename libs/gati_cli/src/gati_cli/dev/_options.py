"""What `gati dev` was asked to do, and what its services get told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gati_cli._errors import CliError


@dataclass(frozen=True)
class DevOptions:
    """The command line of `gati dev`."""

    paths: tuple[Path, ...]
    port: int | None
    nats_url: str
    """Empty: start an embedded broker."""
    directory: Path
    """Where `.gati` is."""


def check_paths(options: DevOptions) -> list[Path]:
    """The packages' absolute paths, each once.

    Raises:
        CliError: one does not exist.
    """
    found = []
    for path in options.paths:
        absolute = (options.directory / path).resolve()
        if not absolute.exists():
            raise CliError(
                f"{path} does not exist: name a .py file, a package directory or a project with pyproject.toml",
                exit_code=2,
            )
        if absolute not in found:
            found.append(absolute)
    return found


def service_environ(
    environ: Mapping[str, str], *, nats_url: str, namespace: str, host: str, port: int
) -> dict[str, str]:
    """What ingress, router and worker see: the caller's settings, and what `gati dev` depends on."""
    ours = {
        "GATI_NATS_URL": nats_url,
        "GATI_NAMESPACE": namespace,
        "GATI_INGRESS_HOST": host,
        "GATI_INGRESS_PORT": str(port),
    }
    for service in ("INGRESS", "ROUTER", "WORKER"):
        # JSON, because `_lines` reads it; info, because readiness and reloads are told at that level.
        ours[f"GATI_{service}_LOG_FORMAT"] = "json"
        if environ.get(f"GATI_{service}_LOG_LEVEL", "").lower() != "debug":
            ours[f"GATI_{service}_LOG_LEVEL"] = "info"
    ours["GATI_INGRESS_DRAIN_GRACE_S"] = environ.get("GATI_INGRESS_DRAIN_GRACE_S", "2")
    # Unbuffered processes write a line in several pieces, and those of two processes get mixed.
    return {name: value for name, value in {**environ, **ours}.items() if name != "PYTHONUNBUFFERED"}
