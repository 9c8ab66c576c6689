"""The Python in the guides and the README is true: it is run, and what it asserts holds.

The ```python blocks of a page are run in order, in one module of the page's own. Functions named
`test_…` that take nothing are called right after their block, async ones with anyio. Words behind
```python say what else is to be done with a block:

    no-run: <reason>    it is only compiled
    file=<path>         it is a file of the project that the page shows; compiled here, and run
                        as a project in tests/integration/testing_kit/test_guide_project.py
"""

from __future__ import annotations

import inspect
import re
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs" / "guides").glob("*.md")), ROOT / "README.md"]
LIMIT_S = 2.0

_BLOCK = re.compile(r"^```python[ \t]*(?P<info>[^\n]*)\n(?P<code>.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)


class Block(msgspec.Struct, frozen=True):
    """One ```python block of a page."""

    page: Path
    line: int
    """Of its first line of code."""
    info: str
    code: str

    @property
    def place(self) -> str:
        """`docs/guides/hooks.md:12`."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether it is run here, and not only compiled."""
        return not self.info.startswith(("no-run", "file="))

    def compiled(self) -> types.CodeType:
        """Its code; tracebacks name the page and the line in it."""
        return compile("\n" * (self.line - 1) + self.code, str(self.page), "exec", dont_inherit=True)


def blocks_of(page: Path) -> list[Block]:
    """The ```python blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, match.start("code")) + 1, match["info"].strip(), match["code"])
        for match in _BLOCK.finditer(text)
    ]


@pytest.fixture
def module(request: pytest.FixtureRequest) -> Iterator[types.ModuleType]:
    """The module in which the blocks of one page run: types of theirs can be found by their names."""
    name = f"guide_{request.node.callspec.id}"
    module = types.ModuleType(name)
    sys.modules[name] = module
    try:
        yield module
    finally:
        del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_the_page_is_true(page: Path, module: types.ModuleType) -> None:
    for block in blocks_of(page):
        try:
            run(block, module)
        except BaseException as exc:
            raise AssertionError(f"{place_of(exc, block)}: {type(exc).__name__}: {exc}") from exc


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    for block in blocks_of(page):
        is_known = re.fullmatch(r"|no-run: \S.*|file=[\w./-]+", block.info) is not None
        assert is_known, f"{block.place}: ```python {block.info}"


def test_every_guide_has_python_that_is_run() -> None:
    for page in PAGES:
        assert any(block.is_run for block in blocks_of(page)), f"{page.name} has no block that is run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_files_of_this_repository_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text())

    assert [target for target in targets if not (page.parent / target).exists()] == []


def run(block: Block, module: types.ModuleType) -> None:
    """Run a block and call the tests that it defines, within the limit."""
    code = block.compiled()
    if not block.is_run:
        return
    namespace: dict[str, Any] = module.__dict__
    before = dict(namespace)
    began = time.monotonic()
    exec(code, namespace)
    for name, value in list(namespace.items()):
        is_new = before.get(name) is not value
        if is_new and name.startswith("test_") and inspect.isfunction(value) and not inspect.signature(value).parameters:
            if inspect.iscoroutinefunction(value):
                anyio.run(value)
            else:
                value()
    took_s = time.monotonic() - began
    assert took_s <= LIMIT_S, f"took {took_s:.1f} s, and a snippet may take {LIMIT_S:g} s"


def place_of(error: BaseException, block: Block) -> str:
    """Page and line at which a block failed."""
    if isinstance(error, SyntaxError):
        return f"{block.page.relative_to(ROOT)}:{error.lineno}"
    place = block.place
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(block.page):
            place = f"{block.page.relative_to(ROOT)}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place
