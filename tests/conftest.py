"""How tests are shared out where several processes run them (`pytest -n`)."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

_ONE_AFTER_ANOTHER = (
    "tests/containers/",
    "tests/e2e/",
    "tests/integration/services/",
    "tests/properties/test_capacity.py",
)
"""They load the machine, or look at times: never two of these at once."""


class SharedOut(LoadScopeScheduling):
    """A process gets whole files, so that what their fixtures start is started once."""

    def _split_scope(self, nodeid: str) -> str:
        return "one after another" if nodeid.startswith(_ONE_AFTER_ANOTHER) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedOut:
    """Whatever `--dist` says."""
    return SharedOut(config, log)
