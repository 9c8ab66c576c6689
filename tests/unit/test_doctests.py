"""The examples in the documentation of gati_core and gati_testing are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
from structlog.testing import capture_logs

import gati_core
import gati_testing

PACKAGES = (gati_core, gati_testing)
MODULES = sorted(
    name
    for package in PACKAGES
    for _, name, _ in pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}.")
    if not name.endswith("__main__")
)


@pytest.mark.parametrize("name", [*(package.__name__ for package in PACKAGES), *MODULES])
def test_the_examples_of_the_module_are_true(name: str) -> None:
    with capture_logs():  # or they would be taken for what an example prints
        result = doctest.testmod(importlib.import_module(name))

    assert result.failed == 0


def test_the_modules_with_examples_are_among_them() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {name for name in MODULES if any(test.examples for test in finder.find(importlib.import_module(name)))}

    assert {"gati_core.app._app", "gati_core.app._paths", "gati_core.ids", "gati_core.wire.codec"} <= found
    assert {"gati_testing.harness", "gati_testing.simulation", "gati_testing.fakes"} <= found
