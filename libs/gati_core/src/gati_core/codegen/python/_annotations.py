"""Annotations, docstrings and literals: text that Python reads as what it was made from."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Annotation(NamedTuple):
    """A type as the alternatives that it consists of."""

    names: tuple[str, ...] = ()
    """`str`, `list[int]`, `None`, …"""
    choices: tuple[str, ...] = ()
    """What stands inside `Literal[…]`."""

    def __str__(self) -> str:
        names = dict.fromkeys(self.names)
        if "Any" in names:
            return "Any"
        if "float" in names:  # which takes every int
            names.pop("int", None)
        is_nullable = "None" in names
        parts = [name for name in names if name not in ("None", "Never")]
        if self.choices:
            parts.insert(0, f"Literal[{', '.join(dict.fromkeys(self.choices))}]")
        return " | ".join([*parts, *(["None"] if is_nullable else [])]) or "Never"

    def without(self, name: str) -> Annotation:
        """The other alternatives."""
        return self._replace(names=tuple(each for each in self.names if each != name))


def union(members: Iterable[Annotation]) -> Annotation:
    """All alternatives of all members."""
    found = list(members)
    names = (name for each in found for name in each.names)
    return Annotation(tuple(names), tuple(choice for each in found for choice in each.choices))


def choices(values: Sequence[Any]) -> Annotation:
    """One of these JSON values."""
    names, inside = [], []
    for value in values:
        if value is None:
            names.append("None")
        elif isinstance(value, str):
            inside.append(literal(value))
        elif isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**63):
            inside.append(repr(value))
        else:  # no literals: fractions, and integers that not every checker can hold
            names.append(type(value).__name__)
    return Annotation(tuple(names), tuple(inside))


def names_in(code: str) -> set[str]:
    """The names that code uses, not those inside its literals."""
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}


def literal(text: str) -> str:
    """A string literal, in double quotes where they need no escape; characters that nobody sees are escaped."""
    return repr(text) if '"' in text else '"' + repr("'" + text)[2:]


def docstring(text: str) -> str:
    """A docstring on one line, whatever the text holds."""
    escaped = _one_line(text).replace("\\", "\\\\")
    if '"""' in escaped or escaped.endswith('"'):
        escaped = escaped.replace('"', '\\"')
    return f'"""{escaped}"""'


def comment(text: str, sign: str = "#:") -> str:
    """A comment on one line. After `#:` no tool takes it for an instruction, whatever it says."""
    return f"{sign} {_one_line(text).replace('#', ' ')}"


def _one_line(text: str) -> str:
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in " ".join(text.split()))
