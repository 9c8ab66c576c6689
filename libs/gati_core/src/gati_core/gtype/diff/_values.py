"""The difference between two JSON values, as operations on JSON pointers."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from gati_core.errors import PermanentError
from gati_core.gtype.diff._records import escaped


class ChangeDoesNotFit(PermanentError, ValueError):
    """A change of a value that the value at hand cannot be given; names the operation and the place."""

    code = "gtype.change_does_not_fit"


class ValueChange(msgspec.Struct, frozen=True, kw_only=True):
    """One step from the old value to the new one."""

    op: Literal["add", "remove", "replace"]
    path: str
    """A JSON pointer."""
    old: Any = None
    """What `remove` and `replace` take away."""
    value: Any = None
    """What `add` and `replace` put there."""


def value_diff(old: Any, new: Any) -> list[ValueChange]:
    """What leads from one JSON value to another.

    Arrays are compared index by index. Values differ by their type too (1, 1.0 and true are three), so that the
    result of applying the changes is the new value to the byte. The changes refer to parts of both values.

    Raises:
        ChangeDoesNotFit: a value is nested too deep to be compared.
    """
    changes: list[ValueChange] = []
    try:
        _compare(old, new, "", changes)
    except RecursionError as exc:
        raise ChangeDoesNotFit("the values are nested too deep to be compared") from exc
    return changes


def _compare(old: Any, new: Any, path: str, changes: list[ValueChange]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            place = f"{path}/{escaped(name)}"
            if name not in new:
                changes.append(ValueChange(op="remove", path=place, old=old[name]))
            elif name not in old:
                changes.append(ValueChange(op="add", path=place, value=new[name]))
            else:
                _compare(old[name], new[name], place, changes)
    elif isinstance(old, list) and isinstance(new, list):
        for index, (before, after) in enumerate(zip(old, new, strict=False)):
            _compare(before, after, f"{path}/{index}", changes)
        gone = range(len(old) - 1, len(new) - 1, -1)  # from the end, so that the indexes hold
        changes += [ValueChange(op="remove", path=f"{path}/{index}", old=old[index]) for index in gone]
        more = range(len(old), len(new))
        changes += [ValueChange(op="add", path=f"{path}/{index}", value=new[index]) for index in more]
    elif not _is_same(old, new):
        changes.append(ValueChange(op="replace", path=path, old=old, value=new))


def _is_same(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return repr(old) == repr(new)  # tells 0.0 from -0.0, and NaN is NaN
    return type(old) is type(new) and bool(old == new)


def apply_changes(value: Any, changes: Iterable[ValueChange]) -> Any:
    """The value after the changes. Neither is touched, and the result shares nothing with them.

    Raises:
        ChangeDoesNotFit: what is to be removed or replaced is not there, what is to be added is, or a value is
            nested too deep to be copied. `old` is not compared.
    """
    try:
        holder = {"": copy.deepcopy(value)}
        for change in changes:
            _apply(change, holder)
    except RecursionError as exc:
        raise ChangeDoesNotFit("the value is nested too deep to be copied") from exc
    return holder[""]


def _apply(change: ValueChange, holder: dict[str, Any]) -> None:
    target: Any = holder
    if change.path and not change.path.startswith("/"):
        raise ChangeDoesNotFit(f"{change.op} {change.path!r}: a JSON pointer is empty or begins with '/'")
    *steps, last = change.path.split("/")
    for step in steps:
        target = target[_key(change, target, step, is_new=False)]
    key = _key(change, target, last, is_new=change.op == "add")
    if change.op == "remove":
        if target is holder:
            raise ChangeDoesNotFit("remove '': there is nothing without the whole value")
        del target[key]
    elif change.op == "add" and isinstance(target, list):
        target.insert(key, copy.deepcopy(change.value))
    else:
        target[key] = copy.deepcopy(change.value)


def _key(change: ValueChange, target: Any, step: str, *, is_new: bool) -> Any:
    """The name or index that a step of the change's pointer stands for."""
    name = step.replace("~1", "/").replace("~0", "~")
    if isinstance(target, dict):
        if (name in target) != is_new:
            return name
        if is_new:
            raise ChangeDoesNotFit(f"{change.op} {change.path!r}: there is {name!r} already")
    elif isinstance(target, list) and step.isascii() and step.isdecimal() and len(step) < 10:
        index = int(step)
        if index < len(target) + is_new:
            return index
    raise ChangeDoesNotFit(f"{change.op} {change.path!r}: there is no {name!r}")
