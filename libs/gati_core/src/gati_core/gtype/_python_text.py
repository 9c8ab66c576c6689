"""Writing Python: literals, conditions and calls, laid out as formatters do.

Nothing of a document gets into code but through `literal`, `quoted` and `raw`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from gati_core.errors import MalformedGType

WIDTH = 120
INDENT = "    "
_MAX_BITS = 10_000
"""Python refuses to write or read integers of a few thousand decimal digits."""


# -- literals ------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    """A string literal, in double quotes where those need no more escapes than single ones."""
    if '"' not in text:
        body = repr("'" + text)[2:-1]  # with a single quote inside, repr chooses double ones
        return f'"{body}"'
    if text.count('"') > text.count("'"):
        return repr(text)
    return '"' + '\\"'.join(repr("'" + part)[2:-1] for part in text.split('"')) + '"'


def raw(text: str) -> str:
    """A string literal for a regular expression, without doubled backslashes where that is possible."""
    if "\\" in text and text.isprintable() and '"' not in text and not text.endswith("\\"):
        return f'r"{text}"'
    return quoted(text)


def literal(value: Any) -> str:
    """A literal for a JSON value.

    Raises:
        MalformedGType: it is none, or a number that JSON does not have, or one of thousands of digits.
    """
    if value is None or value is True or value is False:
        return repr(value)
    if type(value) is str:
        return quoted(value)
    if type(value) is int and value.bit_length() <= _MAX_BITS:
        return str(value) if value.bit_length() <= 1000 else f"{'-' * (value < 0)}0x{abs(value):X}"
    if type(value) is float and value - value == 0.0:
        return repr(value).replace("e+", "e")
    if type(value) is list:
        return f"[{', '.join(map(literal, value))}]"
    if type(value) is dict and all(type(name) is str for name in value):
        return "{" + ", ".join(f"{quoted(name)}: {literal(each)}" for name, each in value.items()) + "}"
    if type(value) is int:
        raise MalformedGType(f"a number of {value.bit_length()} bits is too large")
    raise MalformedGType(f"{value!r:.80} is no JSON value")


# -- conditions ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Atom:
    """A condition as text, and its opposite; both can stand beside `and` and `or`."""

    text: str
    opposite: str


@dataclass(frozen=True, slots=True)
class All:
    """Every one of these; of none, it is always true."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """At least one of these; of none, it is never true."""

    parts: tuple[Condition, ...]


Condition: TypeAlias = "Atom | All | Some"

ALWAYS = All(())
NEVER = Some(())


def all_of(*conditions: Condition) -> Condition:
    """The conjunction, simplified."""
    parts: dict[Condition, None] = {}
    for each in conditions:
        if each == NEVER:
            return NEVER
        parts.update(dict.fromkeys(each.parts if isinstance(each, All) else (each,)))
    return next(iter(parts)) if len(parts) == 1 else All(tuple(parts))


def some_of(*conditions: Condition) -> Condition:
    """The disjunction, simplified."""
    return negated(all_of(*map(negated, conditions)))


def negated(condition: Condition) -> Condition:
    """What holds when the condition does not."""
    match condition:
        case Atom():
            return Atom(condition.opposite, condition.text)
        case All():
            return Some(tuple(map(negated, condition.parts)))
        case Some():
            return All(tuple(map(negated, condition.parts)))


def written(condition: Condition) -> str:
    """The condition on one line."""
    if isinstance(condition, Atom):
        return condition.text
    if not condition.parts:
        return "True" if isinstance(condition, All) else "False"
    word = " and " if isinstance(condition, All) else " or "
    return word.join(map(_operand, condition.parts))


def _operand(condition: Condition) -> str:
    return condition.text if isinstance(condition, Atom) else f"({written(condition)})"


# -- layout --------------------------------------------------------------------------------------------


def fits(keyword: str, condition: Condition, depth: int) -> bool:
    """Whether the line `if …:` needs no more than one line, `depth` blocks deep."""
    return len(INDENT) * depth + len(keyword) + len(written(condition)) + 2 <= WIDTH


def branch(keyword: str, condition: Condition, depth: int) -> list[str]:
    """The line `if …:` (or `elif …:`), on several lines where it is too long for one."""
    start = INDENT * depth
    if isinstance(condition, Atom) or fits(keyword, condition, depth):
        return [f"{start}{keyword} {written(condition)}:"]
    if len(condition.parts) == 2:  # parentheses that are there anyway may serve to break the line
        first, last = condition.parts
        word = "and" if isinstance(condition, All) else "or"
        head = f"{start}{keyword} {_operand(first)} {word} ("
        if not isinstance(last, Atom) and len(head) <= WIDTH:
            return [head, *_parts(last, depth + 1), f"{start}):"]
        tail = f"{start}) {word} {_operand(last)}:"
        if not isinstance(first, Atom) and len(tail) <= WIDTH:
            return [f"{start}{keyword} (", *_parts(first, depth + 1), tail]
    return [f"{start}{keyword} (", *_parts(condition, depth + 1), f"{start}):"]


def answer(condition: Condition, depth: int) -> list[str]:
    """The line `return …`, with nothing but True and False as its value."""
    start = INDENT * depth
    if isinstance(condition, Atom):
        is_bool = re.search(r" is | in |^_is_|^not ", condition.text)
        return [f"{start}return {condition.text if is_bool else f'bool({condition.text})'}"]
    fails = negated(condition)
    line = f"{start}return not ({written(fails)})"
    if len(line) <= WIDTH or isinstance(fails, Atom):
        return [line]
    return [f"{start}return not (", *_parts(fails, depth + 1), f"{start})"]


def _parts(condition: All | Some, depth: int) -> list[str]:
    whole = INDENT * depth + written(condition)
    if len(whole) <= WIDTH:
        return [whole]
    lines: list[str] = []
    word = "and " if isinstance(condition, All) else "or "
    for each in condition.parts:
        start = INDENT * depth + (word if lines else "")
        line = start + _operand(each)
        if len(line) <= WIDTH or isinstance(each, Atom):
            lines.append(line)
        else:
            lines += [f"{start}(", *_parts(each, depth + 1), f"{INDENT * depth})"]
    return lines


def call(start: str, arguments: Sequence[str], depth: int, end: str = ")") -> list[str]:
    """A call such as `_wrong(…)`; `start` ends with its parenthesis."""
    line = f"{INDENT * depth}{start}{', '.join(arguments)}{end}"
    if len(line) <= WIDTH:
        return [line]
    inner = f"{INDENT * (depth + 1)}{', '.join(arguments)}"
    if len(inner) <= WIDTH or len(arguments) == 1:
        return [INDENT * depth + start, inner, INDENT * depth + end]
    return [INDENT * depth + start, *(f"{INDENT * (depth + 1)}{each}," for each in arguments), INDENT * depth + end]


def outdented(lines: Sequence[str]) -> list[str]:
    """The lines one block further out, where a call that was too long for its line may fit again."""
    found: list[str] = []
    for line in (line.removeprefix(INDENT) for line in lines):
        if line.lstrip() == ")" and len(found) > 1 and found[-2].endswith("("):
            whole = f"{found[-2]}{found[-1].lstrip()})"
            if len(whole) <= WIDTH:
                found[-2:] = [whole]
                continue
        found.append(line)
    return found


def parenthesised(start: str, text: str) -> list[str]:
    """An assignment of one long literal, in parentheses where they make it fit."""
    if len(start) + len(text) <= WIDTH or len(INDENT) + len(text) > WIDTH:
        return [start + text]
    return [f"{start}(", INDENT + text, ")"]


def choices(name: str, values: Sequence[str]) -> list[str]:
    """The constant set of these literals."""
    line = f"{name} = frozenset({{{', '.join(values)}}})"
    if len(line) <= WIDTH:
        return [line]
    return [f"{name} = frozenset(", f"{INDENT}{{", *(f"{INDENT * 2}{each}," for each in values), f"{INDENT}}}", ")"]
