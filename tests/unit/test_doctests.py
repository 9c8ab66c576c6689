"""The examples in the documentation of gati_core are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import gati_core

MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(gati_core.__path__, prefix="gati_core.")
    if not name.endswith("__main__")
)


@pytest.mark.parametrize("name", ["gati_core", *MODULES])
def test_the_examples_of_the_module_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))

    assert result.failed == 0


def test_the_modules_with_examples_are_among_them() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {name for name in MODULES if any(test.examples for test in finder.find(importlib.import_module(name)))}

    assert {"gati_core.app._app", "gati_core.app._paths", "gati_core.ids", "gati_core.wire.codec"} <= found
