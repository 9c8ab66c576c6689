"""Node and the TypeScript compiler, installed once per machine outside the project."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

TYPESCRIPT = "5.9.3"
STRICT = (
    *("--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes", "--noUnusedLocals", "false"),
    *("--target", "es2022", "--module", "commonjs", "--lib", "es2022,dom", "--skipLibCheck"),
)


def typescript() -> Path:
    """The directory of `tsc`. Skips the test where there is no node, unless the machine has to have it."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        if os.environ.get("GATI_REQUIRE_DOCKER"):
            pytest.fail("node and npm are not on this machine, and GATI_REQUIRE_DOCKER asks for everything")
        pytest.skip("node and npm are not on this machine")
    place = Path(tempfile.gettempdir()) / f"gati-typescript-{TYPESCRIPT}-{os.getuid()}"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "node_modules" / ".bin" / "tsc").exists():
            command = ["npm", "install", "--silent", "--no-audit", "--no-fund", f"typescript@{TYPESCRIPT}"]
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
    return place / "node_modules" / ".bin"


def compiled(files: list[Path], *, to: Path | None = None) -> str:
    """What the compiler, as strict as it can be, says of these files; empty when it accepts them."""
    output = ("--outDir", str(to)) if to is not None else ("--noEmit",)
    command = [str(typescript() / "tsc"), *STRICT, *output, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr if done.returncode else ""


def run(script: str, *, stdin: str = "", within_s: float = 60) -> str:
    """What node prints for this script."""
    done = subprocess.run(
        ["node", "-e", script], input=stdin, capture_output=True, text=True, timeout=within_s, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
