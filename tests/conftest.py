"""How tests are shared out where several processes run them (`pytest -n`)."""

from __future__ import annotations

from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
_ONE_AFTER_ANOTHER = (
    "containers",
    "e2e",
    "integration/services",
    "properties/test_capacity.py",
)
"""They load the machine, or look at times: never two of these at once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one group run in one process; what a file's fixtures start is started once."""
    for item in items:
        place = item.path.relative_to(_TESTS).as_posix() if item.path.is_relative_to(_TESTS) else str(item.path)
        is_alone = place.startswith(_ONE_AFTER_ANOTHER)
        item.add_marker(pytest.mark.xdist_group("one after another" if is_alone else place))
