"""The parts of a Python module that is being written: constants, functions, and what they need."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from gati_core.gtype._formats import FORMATS
from gati_core.gtype._python_text import (
    ALWAYS,
    INDENT,
    NEVER,
    Condition,
    Some,
    all_of,
    answer,
    branch,
    call,
    choices,
    fits,
    negated,
    outdented,
    parenthesised,
    quoted,
    raw,
)

MAX_BLOCKS = 8
"""Blocks nested deeper than this become functions of their own; Python itself stops at 20."""
_LONG_TEXT = 60
_RETURNS = (f"{INDENT}return", f"{INDENT}return False", f"{INDENT}return True")


class Module:
    """Collects a module's constants and functions. The same parts are written once."""

    def __init__(self) -> None:
        self.constants: list[str] = []
        self.functions: list[str] = []
        self.checks: dict[str, None] = {}
        """Names of the custom checks that are called."""
        self._names: dict[tuple[str, ...], str] = {}
        self._functions = 0

    def function_number(self) -> int:
        """The number of the next function."""
        self._functions += 1
        return self._functions

    def function(self, head: str, docstring: str, scope: Scope) -> None:
        """Add a function. What follows the last statement that is always reached is left out."""
        lines = scope.lines
        ends = [index for index, line in enumerate(lines) if line in _RETURNS]
        said = [f'{INDENT}"""{docstring}"""'] if docstring else []
        self.functions.append("\n".join([head, *said, *lines[: ends[0] + 1 if ends else None]]))

    def _constant(self, prefix: str, *key: str, write: Callable[[str], list[str]]) -> str:
        if (prefix, *key) not in self._names:
            name = self._names[prefix, *key] = f"{prefix}_{len(self.constants) + 1}"
            self.constants.append("\n".join(write(name)))
        return self._names[prefix, *key]

    def text(self, text: str) -> str:
        """A string literal, or the name of a constant where it is long."""
        if len(text) <= _LONG_TEXT:
            return quoted(text)
        return self._constant("_TEXT", text, write=lambda name: parenthesised(f"{name} = ", quoted(text)))

    def value(self, text: str) -> str:
        """A literal, or the name of a constant where it is long."""
        if len(text) <= _LONG_TEXT:
            return text
        return self._constant("_VALUE", text, write=lambda name: [f"{name} = {text}"])

    def choices(self, values: Sequence[str]) -> str:
        """The name of a set of literals."""
        return self._constant("_CHOICES", *values, write=lambda name: choices(name, values))

    def pattern(self, pattern: str) -> str:
        """The name of a function that searches for the pattern."""
        return self._constant(
            "_search", pattern, write=lambda name: call(f"{name} = re.compile(", [raw(pattern)], 0, ").search")
        )

    def format(self, name: str) -> str:
        """The name of a function that matches texts of one of our formats, the calendar aside."""
        label = "_match_" + name.replace("-", "_")  # one of ours, so it can be part of a name
        source = FORMATS[name].source
        return self._constant(label, write=lambda each: call(f"{each} = re.compile(", [raw(source)], 0, ").fullmatch"))

    def huge(self) -> str:
        """The name of the smallest integer that rounds to no double."""
        return self._constant("_HUGE", write=lambda name: [f"{name} = 2**1024 - 2**970"])

    def check(self, name: str) -> str:
        """The custom check of this name."""
        self.checks[name] = None
        return f"CHECKS[{self.text(name)}]"


class _Branch(NamedTuple):
    """An `if` that was written: where, and with what in it."""

    start: int
    end: int
    condition: Condition
    body: list[str]


class Lines(list[str]):
    """Lines of code, and the last `if` among them."""

    last = _Branch(-1, -1, ALWAYS, [])


class Scope:
    """The body of one function, as it grows."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.lines = Lines()
        self.depth = 1
        self._locals: dict[str, int] = {}

    def local(self, label: str) -> str:
        """A name that no other variable of the function has."""
        number = self._locals[label] = self._locals.get(label, 0) + 1
        return f"{label}_{number}"

    # -- lines and blocks -------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """A statement that fits a line, or has to."""
        self.lines.append(INDENT * self.depth + text)

    def call(self, function: str, *arguments: str) -> None:
        """A call as a statement."""
        self.lines += call(f"{function}(", arguments, self.depth)

    @contextmanager
    def apart(self, *, deeper: bool = False) -> Iterator[Lines]:
        """Statements that are not part of the function yet; see `add`."""
        outer, self.lines = self.lines, Lines()
        self.depth += deeper
        yield self.lines
        self.depth -= deeper
        self.lines = outer

    def add(self, lines: Lines) -> None:
        """Make statements that were written apart part of the function."""
        if not lines:
            return
        start = len(self.lines)
        self.lines += lines
        self.lines.last = lines.last._replace(start=lines.last.start + start, end=lines.last.end + start)

    @contextmanager
    def block(self, header: str = "") -> Iterator[None]:
        """Statements under a header, which is left out when there are none."""
        with self.apart(deeper=True) as inner:
            yield
        if inner and header:
            self.line(header)
        self.lines += inner

    @contextmanager
    def after(self, header: str) -> Iterator[None]:
        """Statements after one that sets a variable, which is left out when they have no use for it."""
        with self.apart() as inner:
            yield
        if _is_used(header.partition(" = ")[0].partition(":")[0], inner):
            self.line(header)
        self.add(inner)

    @contextmanager
    def items(self, name: str, item: str, var: str) -> Iterator[None]:
        """A loop over the names and values of an object, or over those of the two that are needed."""
        with self.apart(deeper=True) as inner:
            yield
        if not inner:
            return
        if not _is_used(item, inner):
            self.line(f"for {name} in {var}:")
        elif not _is_used(name, inner):
            self.line(f"for {item} in {var}.values():")
        else:
            self.line(f"for {name}, {item} in {var}.items():")
        self.lines += inner

    @contextmanager
    def when(self, condition: Condition, keyword: str = "if") -> Iterator[None]:
        """Statements for when the condition holds; two conditions become one where nothing comes between."""
        if condition == ALWAYS:
            yield
            return
        with self.apart(deeper=True) as body:
            yield
        if body:
            self._branch(condition, keyword, body)

    def _branch(self, condition: Condition, keyword: str, body: Lines) -> None:
        inner = body.last
        lines: list[str] = body
        if keyword == "if" and inner.start == 0 and inner.end == len(body):
            condition, lines = all_of(condition, inner.condition), outdented(inner.body)
        start = len(self.lines)
        self.lines += [*branch(keyword, condition, self.depth), *lines]
        self.lines.last = _Branch(start, len(self.lines), condition, lines)

    @property
    def is_deep(self) -> bool:
        """Whether what comes next has to move to a function of its own."""
        return self.depth > MAX_BLOCKS

    # -- answers ----------------------------------------------------------------------------------

    def refuse_unless(self, condition: Condition) -> None:
        """Return False, but not when the condition holds."""
        fails = negated(condition)
        if fails == NEVER:
            return
        if fails == ALWAYS:
            self.line("return False")
        elif isinstance(fails, Some) and not fits("if", fails, self.depth):
            for each in fails.parts:
                self.refuse_unless(negated(each))
        else:
            with self.when(fails):
                self.line("return False")

    def accept(self) -> None:
        """Return True; or, where the last statement says when to return False, return what that says."""
        last = self.lines.last
        if last.end == len(self.lines) and last.body == [f"{INDENT * (self.depth + 1)}return False"]:
            del self.lines[last.start :]
            self.lines += answer(negated(last.condition), self.depth)
        else:
            self.line("return True")


def _is_used(name: str, lines: list[str]) -> bool:
    return re.search(rf"\b{name}\b", "\n".join(lines)) is not None


_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .,\[\]-]{0,80}")


def comment(text: str) -> str:
    """A comment from text of a document, when it can do no harm there; else nothing."""
    return f"  # {text}" if _SAFE.fullmatch(text) else ""
