"""Settings of all tests, and how they are shared out where several processes run them (`pytest -n`)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from gati_core.fabric import embedded

# A busy machine makes any example slow now and then; a test that hangs ends at pytest's own limit.
settings.register_profile("gati", deadline=None)
settings.load_profile("gati")

_ONE_AFTER_ANOTHER = (
    "tests/containers/",
    "tests/e2e/",
    "tests/integration/services/",
    "tests/properties/test_capacity.py",
)
"""They load the machine, or look at times: never two of these at once."""


def pytest_configure(config: pytest.Config) -> None:
    """Give each process ports of its own: what one has found free, another may take before it is used."""
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is not None:
        first, last = embedded._PORTS
        share = (last - first + 1) // worker["workercount"]
        begin = first + share * int(worker["workerid"].removeprefix("gw"))
        embedded._PORTS = (begin, begin + share - 1)


class SharedOut(LoadScopeScheduling):
    """A process gets whole files, so that what their fixtures start is started once."""

    def _split_scope(self, nodeid: str) -> str:
        return "one after another" if nodeid.startswith(_ONE_AFTER_ANOTHER) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedOut:
    """Whatever `--dist` says."""
    return SharedOut(config, log)
