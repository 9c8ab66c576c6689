"""The Docker engine, where there is one, and the fabric under docker compose."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def require_docker() -> None:
    """Skip the test with the reason when no engine answers; fail it when GATI_REQUIRE_DOCKER=1."""
    reason = _why_not()
    if not reason:
        return
    if os.environ.get("GATI_REQUIRE_DOCKER") == "1":
        pytest.fail(f"GATI_REQUIRE_DOCKER=1, and {reason}", pytrace=False)
    pytest.skip(reason)


def _why_not() -> str:
    if shutil.which("docker") is None:
        return "there is no docker program"
    try:
        ended = subprocess.run(["docker", "version"], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return "the Docker engine does not answer"
    return "" if ended.returncode == 0 else f"no Docker engine answers: {ended.stderr.strip()[-200:]}"


class ComposeError(Exception):
    """A docker command failed; the message has the end of what it said."""


class Compose:
    """One compose project of this repository, under a name of its own."""

    def __init__(self, project: str, *files: Path, environment: Mapping[str, str]) -> None:
        self.project = project
        self._files = [argument for file in files for argument in ("--file", str(file))]
        self._environment = {**os.environ, **environment}

    def run(self, *arguments: str, within_s: float = 120.0, **environment: str) -> str:
        """`docker compose …` in this project; returns standard output.

        Raises:
            ComposeError: it failed.
        """
        command = ["docker", "compose", "--project-name", self.project, *self._files, *arguments]
        return _run(command, within_s=within_s, environment={**self._environment, **environment})

    def up(self, *arguments: str, within_s: float = 180.0, **environment: str) -> None:
        """Bring the project into the wanted state and wait until everything is healthy."""
        try:
            self.run("up", "--detach", "--wait", "--quiet-pull", *arguments, within_s=within_s, **environment)
        except ComposeError as exc:
            raise ComposeError(f"{exc}\n{self.logs()}") from exc

    def down(self) -> None:
        """Remove containers, networks, volumes and the images that were built."""
        self.run("down", "--volumes", "--remove-orphans", "--rmi", "local", "--timeout", "5")

    def logs(self) -> str:
        """The last lines of every container, for a failed test."""
        return self.run("logs", "--tail", "25", "--no-color")

    def containers(self, service: str) -> list[str]:
        """Ids of a service's running containers."""
        return sorted(str(row["ID"]) for row in self._rows(service) if row["State"] == "running")

    def is_healthy(self, service: str) -> bool:
        """Whether every container of a service is. One that was frozen is not until its next probe."""
        return all(row["Health"] == "healthy" for row in self._rows(service))

    def _rows(self, service: str) -> list[dict[str, object]]:
        listed = self.run("ps", "--format", "json", service)
        return [json.loads(line) for line in listed.splitlines() if line.startswith("{")]


def docker(*arguments: str, within_s: float = 60.0) -> str:
    """`docker …`; returns standard output.

    Raises:
        ComposeError: it failed.
    """
    return _run(["docker", *arguments], within_s=within_s, environment=dict(os.environ))


def _run(command: list[str], *, within_s: float, environment: dict[str, str]) -> str:
    try:
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=within_s,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as exc:
        raise ComposeError(f"{' '.join(command)}: not done within {within_s:g} s") from exc
    if ended.returncode:
        raise ComposeError(f"{' '.join(command)}: exit code {ended.returncode}\n{ended.stderr[-3000:]}")
    return ended.stdout
