"""Finding the handler package that a test suite belongs to."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

_GROUP = "gati.apps"


def app_of_project(root: Path) -> Path:
    """The project in `root`, when its `pyproject.toml` names apps.

    Raises:
        UsageError: it does not; says what to do.
    """
    file = root / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except FileNotFoundError:
        problem = f"{root} has no pyproject.toml"
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        problem = f"{file} cannot be read: {exc}"
    else:
        if project.get("entry-points", {}).get(_GROUP):
            return root
        problem = f'{file} has no [project.entry-points."{_GROUP}"] section'
    raise pytest.UsageError(
        f"gati_fabric does not know which app to serve: {problem}. Name it there, or override the fixture:"
        '\n\n  @pytest.fixture(scope="session")\n  def gati_apps():\n      return ["src/shop"]'
    )
