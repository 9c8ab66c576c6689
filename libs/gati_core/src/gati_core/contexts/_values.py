"""Values of a request's state: copied, compared and stored without losing what they are."""

from __future__ import annotations

import copy
import datetime
import decimal
import math
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from gati_core.errors import SnapshotError

_ATOMS = frozenset(
    (
        type(None),
        bool,
        int,
        float,
        str,
        bytes,
        datetime.datetime,
        datetime.date,
        datetime.time,
        datetime.timedelta,
        decimal.Decimal,
        uuid.UUID,
    )
)
# Written as they are. What MessagePack does not know becomes an extension, so that it comes back as it was.
_NATIVE = frozenset((type(None), bool, float, bytes))
_TUPLE, _SET, _FROZENSET, _INT, _DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID = range(1, 11)
_TO_TEXT: dict[type, tuple[int, Callable[[Any], str]]] = {
    datetime.datetime: (_DATETIME, datetime.datetime.isoformat),
    datetime.date: (_DATE, datetime.date.isoformat),
    datetime.time: (_TIME, datetime.time.isoformat),
    datetime.timedelta: (_TIMEDELTA, lambda value: f"{value.days} {value.seconds} {value.microseconds}"),
    decimal.Decimal: (_DECIMAL, str),
    uuid.UUID: (_UUID, str),
}
_FROM_TEXT: dict[int, Callable[[str], Any]] = {
    _INT: lambda text: int(text, 16),
    _DATETIME: datetime.datetime.fromisoformat,
    _DATE: datetime.date.fromisoformat,
    _TIME: datetime.time.fromisoformat,
    _TIMEDELTA: lambda text: datetime.timedelta(*map(int, text.split(" "))),
    _DECIMAL: decimal.Decimal,
    _UUID: uuid.UUID,
}
_MISSING = object()
_encode = msgspec.msgpack.Encoder().encode


class _Refused(Exception):
    """A value that cannot be had; the path is collected on the way up, so that success pays nothing for it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []


# -- copying ------------------------------------------------------------------------------------


def copied(value: Any, root: str) -> Any:
    """A deep copy; containers of JSON-like data quickly, everything else as `copy.deepcopy` does.

    Args:
        root: names the value in an error: `state`.
    Raises:
        SnapshotError: something in it cannot be copied, like a lock or an open file; names its path.
    """
    try:
        return _copy(value)
    except _Refused as exc:
        raise _named(exc, root, "cannot be copied") from exc.__cause__
    except RecursionError as exc:
        raise SnapshotError(f"{root} is nested too deeply, or contains itself") from exc


def _copy(value: Any) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        made = {}
        for key, each in value.items():
            if type(each) in _ATOMS:
                made[key] = each
                continue
            try:
                made[key] = _copy(each)
            except _Refused as exc:
                exc.path.append(escaped(str(key)))
                raise
        return made
    if kind is list or kind is tuple:
        items = []
        for each in value:
            if type(each) in _ATOMS:
                items.append(each)
                continue
            try:
                items.append(_copy(each))
            except _Refused as exc:
                exc.path.append(f"[{len(items)}]")
                raise
        return items if kind is list else tuple(items)
    if kind is set or kind is frozenset:
        return kind(map(_copy, value))
    try:
        return copy.deepcopy(value)
    except RecursionError:
        raise
    except Exception as exc:  # whatever a class of the author's raises
        raise _Refused(f"{kind.__qualname__}: {exc}") from exc


# -- storing ------------------------------------------------------------------------------------


def storable(value: Any, root: str) -> Any:
    """The same value in what MessagePack can hold; `restored_extension` turns it back.

    Raises:
        SnapshotError: something in it cannot be stored; names its path.
    """
    try:
        return _store(value)
    except _Refused as exc:
        raise _named(exc, root, "cannot be stored") from exc.__cause__
    except RecursionError as exc:
        raise SnapshotError(f"{root} is nested too deeply, or contains itself") from exc


def restored_extension(code: int, data: memoryview) -> Any:
    """For msgspec's `ext_hook`: what `storable` wrote as an extension."""
    if code in (_TUPLE, _SET, _FROZENSET):
        items = msgspec.msgpack.decode(data, type=list[Any], ext_hook=restored_extension)
        return (tuple, set, frozenset)[code - _TUPLE](items)
    if code in _FROM_TEXT:
        return _FROM_TEXT[code](bytes(data).decode())
    raise ValueError(f"extension {code} is not known")


def _store(value: Any) -> Any:
    kind = type(value)
    if kind in _NATIVE:
        return value
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise _Refused("text with half of a surrogate pair") from exc
        return value
    if kind is int:
        if -(2**63) <= value < 2**63:
            return value
        return msgspec.msgpack.Ext(_INT, format(value, "x").encode())
    if kind is dict:
        made = {}
        for key, each in value.items():
            try:
                if type(key) is not str:
                    raise _Refused(f"a key of type {type(key).__qualname__}, where only strings can be")
                made[_store(key)] = _store(each)
            except _Refused as exc:
                exc.path.append(escaped(str(key)))
                raise
        return made
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        items: list[Any] = []
        for each in value:
            try:
                items.append(_store(each))
            except _Refused as exc:
                exc.path.append(f"[{len(items)}]")
                raise
        if kind is list:
            return items
        code = _TUPLE if kind is tuple else _SET if kind is set else _FROZENSET
        return msgspec.msgpack.Ext(code, _encode(items))
    if kind in _TO_TEXT:
        code, to_text = _TO_TEXT[kind]
        return msgspec.msgpack.Ext(code, to_text(value).encode())
    raise _Refused(kind.__qualname__)


# -- comparing ----------------------------------------------------------------------------------


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are equal in type and content, all the way down.

    Stricter than `==`: True, 1 and 1.0 differ, so do 0.0 and -0.0, and a list and a tuple; every
    NaN is the same NaN. Order matters in lists, not in maps.
    """
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is float:
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        return bool(one == other and math.copysign(1, one) == math.copysign(1, other))
    if kind is dict:
        if len(one) != len(other):
            return False
        if not all(type(key) is str for key in one):
            if set(map(_mark, one)) != set(map(_mark, other)):
                return False
            return all(is_same(each, other.get(key, _MISSING)) for key, each in one.items())
        for key, each in one.items():
            if key not in other or not is_same(each, other[key]):
                return False
        return all(type(key) is str for key in other)
    if kind is list or kind is tuple:
        return bool(len(one) == len(other) and all(map(is_same, one, other)))
    if kind is set or kind is frozenset:
        return set(map(_mark, one)) == set(map(_mark, other))
    if kind is datetime.datetime or kind is datetime.time:
        return bool(one == other and one.isoformat() == other.isoformat())
    if kind is decimal.Decimal:
        return str(one) == str(other)
    try:
        return bool(one == other)
    except Exception:  # whatever a class of the author's raises: then they are not known to be the same
        return False


def _mark(value: Any) -> Any:
    """Something hashable that tells apart what `is_same` tells apart, for members of sets and keys."""
    kind = type(value)
    if kind is float or kind is decimal.Decimal:
        return kind, str(value)
    if kind is datetime.datetime or kind is datetime.time:
        return kind, value.isoformat()
    if kind is tuple:
        return kind, tuple(map(_mark, value))
    if kind is frozenset:
        return kind, frozenset(map(_mark, value))
    return kind, value


# -- naming -------------------------------------------------------------------------------------


def escaped(key: str) -> str:
    """One key as part of a dotted path: dots and backslashes get a backslash in front."""
    return key.replace("\\", "\\\\").replace(".", "\\.")


def _named(refused: _Refused, root: str, what: str) -> SnapshotError:
    path = root
    for part in reversed(refused.path):
        path += part if part.startswith("[") else f".{part}"
    return SnapshotError(f"{path} {what}: {refused}", path=path)
