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
import linecache
import re
import socket
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import structlog.testing

from gati_core import errors

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs" / "guides").glob("*.md")), ROOT / "README.md"]
LIMIT_S = 30.0

_BLOCK = re.compile(r"^```python[ \t]*(?P<info>[^\n]*)\n(?P<code>.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)


class Block(msgspec.Struct, frozen=True):
    """One ```python block of a page."""

    page: Path
    line: int
    """Of its first line of code."""
    info: str
    code: str

    def place(self, line: int = 0) -> str:
        """`docs/guides/hooks.md:12`."""
        page = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page.name
        return f"{page}:{line or self.line}"

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
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The module in which the blocks of one page run: types of theirs can be found by their names."""

    def refuse(_socket: socket.socket, address: object) -> None:
        raise AssertionError(f"a snippet wants to connect to {address!r}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    name = f"guide_{request.node.callspec.id}"
    module = types.ModuleType(name)
    sys.modules[name] = module
    try:
        with structlog.testing.capture_logs():  # handlers fail on purpose, and tracebacks are slow to print
            yield module
    finally:
        del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_the_page_is_true(page: Path, module: types.ModuleType) -> None:
    for block in blocks_of(page):
        try:
            run(block, module)
        except BaseException as exc:
            raise AssertionError(f"{place_of(exc, block)}: {exc!r}") from exc


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    for block in blocks_of(page):
        is_known = re.fullmatch(r"|no-run: \S.*|file=[\w./-]+", block.info) is not None
        assert is_known, f"{block.place()}: ```python {block.info}"


def test_every_guide_has_python_that_is_run() -> None:
    for page in PAGES:
        assert any(block.is_run for block in blocks_of(page)), f"{page.name} has no block that is run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors_of(file), f"{page.name} links to {target}"


def test_a_broken_snippet_is_named_by_its_page_and_line(tmp_path: Path) -> None:
    page = tmp_path / "broken.md"
    page.write_text(
        "# Broken\n\n```python\nworks = 1\n```\n\nText.\n\n```python\n\ndef test_it():\n    assert works == 2\n```\n"
    )
    module = types.ModuleType("broken")

    first, second = blocks_of(page)
    run(first, module)
    with pytest.raises(AssertionError) as failed:
        run(second, module)

    assert place_of(failed.value, second) == "broken.md:12: assert works == 2"


def test_the_table_of_errors_has_every_error_that_a_client_can_see() -> None:
    text = (ROOT / "docs" / "guides" / "handlers.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| `([\w.]+)`", text, re.MULTILINE)

    classes = {name: each for name, each in vars(errors).items() if inspect.isclass(each)}
    known = {name: each for name, each in classes.items() if issubclass(each, errors.GatiError)}
    assert [(name, int(status), code) for name, status, code in rows] == [
        (name, known[name].status, known[name].code) for name, _, _ in rows
    ]
    left_out = known.keys() - {name for name, _, _ in rows}
    assert left_out == {
        # Classes of errors, and the one whose status is its author's.
        *("GatiError", "TransientError", "PermanentError", "HandlerError"),
        # One row stands for these.
        *("MalformedDescriptor", "MalformedWorkItem", "MalformedReply", "MalformedManifest"),
        *("MalformedGType", "AlreadyStored", "BundleError", "VersionConflict"),
        # Nobody reads them.
        *("ChannelClosed", "ClientGone", "ClientStalled"),
        # Raised into handlers; the client gets a 500 unless the handler says otherwise.
        *("KeyConflict", "EventTimeout", "TopicError", "ModuleError", "TooLate", "SnapshotError"),
        *("NotRegistered", "WrongKind", "NotConfigured", "ConfigReadOnly", "MetricInvalid"),
        "TopologyError",
        # Of tools that build and publish.
        "PackageError",
        # They end the start of a process.
        *("SettingsError", "RegistrationError", "UnsupportedType", "ConfigInvalid", "StartupFailed"),
        "SchemaError",
    }


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
        if (
            is_new
            and name.startswith("test_")
            and inspect.isfunction(value)
            and not inspect.signature(value).parameters
        ):
            if inspect.iscoroutinefunction(value):
                anyio.run(value)
            else:
                value()
    took_s = time.monotonic() - began
    assert took_s <= LIMIT_S, f"took {took_s:.1f} s, and a snippet may take {LIMIT_S:g} s"


def place_of(error: BaseException, block: Block) -> str:
    """Page and line at which a block failed, with the text of the line."""
    line = block.line
    if isinstance(error, SyntaxError):
        line = error.lineno or line
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(block.page):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f"{block.place(line)}: {linecache.getline(str(block.page), line).strip()}"


def anchors_of(page: Path) -> set[str]:
    """The anchors that the headings of a page have."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
