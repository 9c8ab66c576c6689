"""The shop's catalogue in four versions: the tour is run, and prints what the README shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHOP = ROOT / "examples" / "shop"
_VARIES = re.compile(r"\d+\.\d s:|tsv:\d+|\d{4}-\d\d-\d\dT[\d:]+Z")


def test_the_tour_prints_what_the_readme_shows() -> None:
    done = subprocess.run(
        [sys.executable, SHOP / "versions" / "tour.py"], capture_output=True, text=True, timeout=180, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    shown = re.search(r"^```text\n(.*?)^```$", (SHOP / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert shown is not None
    assert _VARIES.sub("…", done.stdout) == _VARIES.sub("…", shown[1])


def test_every_version_passes_the_type_checker(tmp_path: Path) -> None:
    versions = sorted(each for each in (SHOP / "versions").iterdir() if (each / "pyproject.toml").is_file())
    assert [each.name for each in versions] == ["1.0.0", "1.1.0", "2.0.0", "3.0.0"]
    for version in versions:
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path, "-p", "catalogue"],
            cwd=version / "src",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout
