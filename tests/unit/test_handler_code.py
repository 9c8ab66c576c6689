"""What is read from the source of handlers: modules, hooks of the request, and whether code is the same."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gati_core.app._code import code_fingerprint, local_hooks, location_of, modules_used

PACKAGE = {
    "__init__.py": "from pkg_under_test.api import handler",
    "api.py": '''
from gati_core import HandlerError
from pkg_under_test import prices
from pkg_under_test.rules import check, LIMIT, Rule

FACTOR = 2

async def handler(req, res, gctx, lctx) -> None:
    """Sell something."""
    check(req.body)
    res.json(prices.total(FACTOR))

def other(req, res, gctx, lctx) -> None:
    res.end()
''',
    "rules.py": """
LIMIT = 10

def check(body):
    # No more than allowed.
    if body > LIMIT:
        raise ValueError(Rule().text)

class Rule:
    text = "too many"

def unused():
    return 1
""",
    "prices.py": """
RATES = {"de": 19, "fr": 20}

def total(factor):
    return factor * RATES["de"]
""",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Writes the package with some changes and imports it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(**changes: tuple[str, str]) -> ModuleType:
        home = tmp_path / "pkg_under_test"
        home.mkdir(exist_ok=True)
        for file, source in PACKAGE.items():
            old, new = changes.get(file.removesuffix(".py"), ("", ""))
            assert old in source
            (home / file).write_text(source.replace(old, new) if old else source)
        forget()
        importlib.invalidate_caches()
        return importlib.import_module("pkg_under_test")

    def forget() -> None:
        import linecache

        linecache.clearcache()
        for name in [name for name in sys.modules if name.startswith("pkg_under_test")]:
            del sys.modules[name]

    yield load
    forget()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"api": ("    check(req.body)", "    check(req.body)  # first of all")},
        {"api": ('"""Sell something."""', '"""Sell another thing."""')},
        {"api": ("FACTOR = 2\n", "\n\n\nFACTOR = 2\n")},
        {"api": ("    res.end()", "    res.text('x')")},
        {"rules": ("    return 1", "    return 2")},
        {"rules": ("# No more than allowed.", "")},
        {"prices": ("def total(factor):", "def total(\n    factor\n):")},
    ],
    ids=[
        "the same",
        "a comment",
        "a docstring",
        "layout",
        "another handler",
        "unused code",
        "a comment away",
        "wrapping",
    ],
)
def test_code_that_does_the_same_has_the_same_fingerprint(package: Any, changes: dict[str, tuple[str, str]]) -> None:
    before = code_fingerprint([package().handler])

    assert code_fingerprint([package(**changes).handler]) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"api": ("    check(req.body)\n", "")},
        {"api": ("FACTOR = 2", "FACTOR = 3")},
        {"rules": ("body > LIMIT", "body >= LIMIT")},
        {"rules": ("LIMIT = 10", "LIMIT = 11")},
        {"rules": ('"too many"', '"far too many"')},
        {"prices": ("factor * RATES", "2 * factor * RATES")},
        {"prices": ('"de": 19', '"de": 7')},
    ],
)
def test_code_that_does_something_else_has_another(package: Any, changes: dict[str, tuple[str, str]]) -> None:
    before = code_fingerprint([package().handler])

    assert code_fingerprint([package(**changes).handler]) != before


def test_code_without_source_has_a_fingerprint_too() -> None:
    names: dict[str, Any] = {}
    exec("def one(req, res, gctx, lctx): res.end()\ndef two(req, res, gctx, lctx): res.text('x')", names)

    assert code_fingerprint([names["one"]]) == code_fingerprint([names["one"]])
    assert code_fingerprint([names["one"]]) != code_fingerprint([names["two"]])


def test_modules_are_found_however_they_are_asked_for() -> None:
    async def handler(req: Any, res: Any, context: Any, lctx: Any) -> None:
        await context.modules["orders"].create()
        await context.modules.mail.send()
        context.get_module("ledger")
        context.modules.get("optional")
        name = "computed"
        context.modules[name]

    assert modules_used([handler]) == ["ledger", "mail", "orders"]


async def undo(gctx: Any, lctx: Any) -> None: ...


def test_hooks_that_a_handler_registers_for_its_request_are_found_with_their_options() -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.after(undo, timeout_s=2, retries=1)
        lctx.catch(lambda error, gctx, lctx: None, id="explain")
        lctx.after(lambda gctx, lctx: None)

    first, second, third = local_hooks(handler)

    assert (first.id, first.type, first.level, first.timeout_s, first.retries) == ("undo", "after", "local", 2.0, 1)
    assert (second.id, second.type, second.is_async) == ("explain", "catch", False)
    assert third.id.startswith("after-")
    assert first.source is not None
    assert second.source is not None
    assert second.source.line == first.source.line + 1
    assert first.source.column > 1


def test_places_are_relative_to_where_the_package_is_imported_from(package: Any) -> None:
    location = location_of(package().handler)

    assert location is not None
    assert (location.file, location.line) == ("pkg_under_test/api.py", 8)
