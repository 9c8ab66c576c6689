"""The project that the testing guide shows is complete: its files as printed, and `pytest`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "testing.md"

_FILE = re.compile(r"^```\w+ file=(?P<path>[\w./-]+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.timeout(120)
def test_the_project_of_the_testing_guide_passes_its_own_tests(tmp_path: Path) -> None:
    files = {match["path"]: match["text"] for match in _FILE.finditer(GUIDE.read_text())}
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
    )

    assert set(files) == {"pyproject.toml", "src/greeter.py", "tests/test_greeter.py"}
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
