"""What generated validators call while they run.

The functions here are part of every module that is generated: each that is needed is copied into it. So they
use the standard library, each other, and the names that the modules have of their own: `FieldError`, `Step`,
`UNSET` and the two limits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from math import fmod, isfinite
from typing import Any

from msgspec import UNSET

from gati_core.gtype._expected import FieldError, Step
from gati_core.gtype._nesting import MAX_NESTING


class Checks(dict[str, Callable[[Any], bool]]):
    """Functions by the names that types call them by; each returns whether a value passes."""

    def __missing__(self, name: str) -> Callable[[Any], bool]:
        raise KeyError(f"no check {name!r}: set CHECKS[{name!r}] to a function that returns whether a value passes")


def _shown(value: Any) -> str:
    """A short rendering of a value."""
    if value is UNSET:
        return "nothing"
    if value is None:
        return "null"
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is str:
        text = value if len(value) <= 60 else f"{value[:60]}…"
        return json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False)
    if type(value) is int:
        return str(value) if value.bit_length() <= 200 else f"a number of {value.bit_length()} bits"
    if type(value) is float:
        return repr(value)
    if type(value) is list:
        return f"array[{len(value)}]"
    return "object" if type(value) is dict else type(value).__name__


def _wrong(
    errors: list[FieldError],
    path: tuple[Step, ...],
    expected: str,
    value: Any,
    *,
    message: str = "",
    secret: bool = False,
) -> None:
    """The value is not what was expected."""
    actual = "(not shown)" if secret and value is not UNSET else _shown(value)
    if not message:
        message = "value is required" if value is UNSET else f"expected {expected}, got {actual}"
    errors.append(FieldError(path, expected, actual, message))


def _wrong_size(errors: list[FieldError], path: tuple[Step, ...], expected: str, found: int) -> None:
    """An object or array has too few or too many things in it."""
    errors.append(FieldError(path, expected, str(found), f"expected {expected}, got {found}"))


def _wrong_name(errors: list[FieldError], path: tuple[Step, ...], name: str, found: list[FieldError]) -> None:
    """The name of a property is not what it has to be."""
    for error in found:
        _wrong(errors, (*path, name), f"a name that is {error.expected}", name)


def _unknown(errors: list[FieldError], path: tuple[Step, ...], name: str, value: Any, *, secret: bool = False) -> None:
    """The object may not have this property."""
    _wrong(errors, (*path, name), "no such property", value, message=f"unknown property {name!r}", secret=secret)


def _wrong_union(
    errors: list[FieldError], path: tuple[Step, ...], expected: str, value: Any, *, secret: bool = False
) -> None:
    """No member fits, which may be because the value is nested deeper than they look."""
    if _is_deeper(value, MAX_NESTING - len(path)):
        _too_deep(errors, path, value, secret=secret)
    else:
        _wrong(errors, path, expected, value, secret=secret)


def _too_deep(
    errors: list[FieldError],
    path: tuple[Step, ...],
    value: Any,
    *,
    message: str = f"nested more than {MAX_NESTING} deep",
    secret: bool = False,
) -> None:
    """The value is nested deeper than its type is followed."""
    _wrong(errors, path, f"at most {MAX_NESTING} levels of nesting", value, message=message, secret=secret)


def _is_deeper(value: Any, steps: int) -> bool:
    """Whether anything inside a value is more than so many steps away from it."""
    level = [value]
    for _ in range(steps + 1):
        inside: list[Any] = []
        for each in level:
            if type(each) is dict:
                inside += each.values()
            elif type(each) is list:
                inside += each
        if not inside:
            return False
        level = inside
    return True


def _is_multiple(value: Any, of: float) -> bool:
    """Exact for integers, else as doubles divide."""
    if type(value) is int and type(of) is int:
        return value % of == 0
    try:
        return isfinite(value) and fmod(value, of) == 0.0
    except OverflowError:  # an integer that no double can hold
        return False


def _is_date(text: str) -> bool:
    """Whether the date that a text begins with, `YYYY-MM-DD`, exists."""
    try:
        date.fromisoformat(text[:10])
    except ValueError:
        return False
    return True


def _is_same(value: Any, wanted: Any) -> bool:
    """Equality where `1`, `1.0` and `true` are three things."""
    return type(value) is type(wanted) and bool(value == wanted)


def _repeated(items: list[Any]) -> list[int]:
    """Indexes of the items that stand further ahead as well."""
    seen: set[str] = set()
    found = []
    for index, item in enumerate(items):
        key = _key(item)
        if key in seen:
            found.append(index)
        seen.add(key)
    return found


def _key(value: Any) -> str:
    """A text that equal JSON values share and others do not, however deep they are."""
    parts: list[str] = []
    waiting = [value]
    while waiting:
        each = waiting.pop()
        kind = type(each)
        if kind is str:
            parts.append(f"s{len(each)}:{each}")
        elif kind is int:
            parts.append(f"i{each:x}")
        elif kind is float:
            parts.append(f"f{each + 0.0!r}")
        elif kind is list:
            parts.append(f"l{len(each)}")
            waiting += each
        elif kind is dict:
            names = sorted(each)
            parts.append(f"o{len(names)}")
            parts += [f"n{len(name)}:{name}" for name in names]
            waiting += [each[name] for name in names]
        else:
            parts.append(str(each))
    return ",".join(parts)
