"""Constraints as sets of values: which of two allows more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from gati_core.gtype._expected import counted, rule_text
from gati_core.gtype._interpreter import is_multiple
from gati_core.gtype._model import ArrayOf, ObjectOf, Validator
from gati_core.gtype.diff._shapes import Kind, Shape

Move: TypeAlias = Literal["tightened", "loosened"]
_LOWER = {"min": False, "exclusive_min": True, "positive": True}
"""Constraints that are lower bounds, and whether the bound itself is out."""
_UPPER = {"max": False, "exclusive_max": True, "negative": True}
_LENGTHS = ("min_length", "max_length")
_OF_TEXT = (*_LENGTHS, "pattern", "format", "email", "url", "uuid")
_OF_NUMBERS = (*_LOWER, *_UPPER, "multiple_of", "integer")
_COMPARED = frozenset((*_LOWER, *_UPPER, *_LENGTHS, "multiple_of", "enum"))
"""Constraints whose values are compared; the others are there or not."""
_WITHIN: dict[str, tuple[str, ...]] = {
    "uuid4": ("uuid",),
    "timestamp": ("date-time", "date-time-or-local"),
    "date-time": ("date-time-or-local",),
    "local-date-time": ("date-time-or-local",),
    "time": ("time-or-local",),
    "local-time": ("time-or-local",),
    "object-id": ("hex",),
    "cuid": ("slug",),
}
"""Formats whose texts are all of other formats too."""


class Moved(NamedTuple):
    """One constraint that is not what it was."""

    move: Move
    description: str
    old: Any
    new: Any


class _Bound(NamedTuple):
    """A lower bound; an upper one is that of the negated values. Larger ones allow less."""

    value: float
    is_exclusive: bool


def moves(old: Shape, new: Shape) -> list[Moved]:
    """How the constraints of two types of one kind differ."""
    found: list[Moved] = []
    if old.validators or new.validators:
        found += _moved(old.validators, new.validators, old.kind)
    one, other = old.node, new.node
    if isinstance(one, ArrayOf) and isinstance(other, ArrayOf):
        found += _moved_size("min", "item", one.min_items, other.min_items)
        found += _moved_size("max", "item", one.max_items, other.max_items)
        if one.unique_items != other.unique_items:
            move, text = ("tightened", "must differ") if other.unique_items else ("loosened", "may repeat")
            found.append(Moved(move, f"items {text}", one.unique_items, other.unique_items))  # type: ignore[arg-type]
    if isinstance(one, ObjectOf) and isinstance(other, ObjectOf):
        found += _moved_size("min", "property", one.min_properties, other.min_properties)
        found += _moved_size("max", "property", one.max_properties, other.max_properties)
    return found


def allows_all(sub: Shape, sup: Shape) -> bool:
    """Whether whatever a type allows passes the constraints that stand at another, maybe of another kind.

    Sizes of arrays and objects are not looked at.
    """
    wanted = _about(sup.validators, sub.kind)
    if not wanted:
        return True
    given: Sequence[Validator] = sub.validators
    if sub.kind == "bytes" and sup.kind != "bytes":
        given = _as_text(given)
    return all(each.move != "tightened" for each in _moved(given, wanted, sub.kind))


def has_format(validators: Iterable[Validator], name: str) -> bool:
    """Whether texts must be of a format."""
    return any(each.type == "format" and each.value == name for each in validators)


def _about(validators: Sequence[Validator], kind: Kind) -> list[Validator]:
    """Without those that pass for every value of the kind."""
    if kind in ("union", "intersection", "any"):
        return list(validators)
    idle: tuple[str, ...] = (*_OF_TEXT, *_OF_NUMBERS)
    if kind in ("string", "bytes"):
        idle = _OF_NUMBERS
    elif kind in ("integer", "number"):
        idle = _OF_TEXT
    return [each for each in validators if each.type not in idle]


def _as_text(validators: Sequence[Validator]) -> list[Validator]:
    """Constraints on bytes as constraints on their base64 text: three bytes are four characters."""
    base64 = Validator("format", "base64")
    return [
        base64,
        *(Validator(each.type, 4 * -(-each.value // 3)) if each.type in _LENGTHS else each for each in validators),
    ]


def _moved(old: Sequence[Validator], new: Sequence[Validator], kind: Kind) -> Iterator[Moved]:
    is_whole = kind == "integer"
    noun = "byte" if kind == "bytes" else "character"
    types = {each.type for each in old} | {each.type for each in new}
    if not types.isdisjoint(_LOWER):
        yield from _moved_bound("lower", _bound(old, 1, is_whole), _bound(new, 1, is_whole))
    if not types.isdisjoint(_UPPER):
        yield from _moved_bound("upper", _bound(old, -1, is_whole), _bound(new, -1, is_whole))
    if "min_length" in types:
        yield from _moved_size("min", noun, _length(old, "min_length"), _length(new, "min_length"))
    if "max_length" in types:
        yield from _moved_size("max", noun, _length(old, "max_length"), _length(new, "max_length"))
    if "multiple_of" in types:
        yield from _moved_multiple(_multiples(old, is_whole), _multiples(new, is_whole))
    if "enum" in types:
        yield from _moved_choices(_allowed(old), _allowed(new))
    if types <= _COMPARED:
        return
    before, after = _others(old, is_whole), _others(new, is_whole)
    for each in before:
        if not _implied(each, after):
            yield Moved("loosened", f"no longer {rule_text(each, unit=noun)}", each.value, None)
    for each in after:
        if not _implied(each, before):
            yield Moved("tightened", f"now {rule_text(each, unit=noun)}", None, each.value)


# -- numbers -------------------------------------------------------------------------------------------


def _bound(validators: Sequence[Validator], sign: int, is_whole: bool) -> _Bound | None:
    names = _LOWER if sign > 0 else _UPPER
    found = [
        _Bound(sign * (0 if each.type in ("positive", "negative") else each.value), names[each.type])
        for each in validators
        if each.type in names
    ]
    if is_whole:  # more than 0 is at least 1
        found = [_Bound(each.value // 1 + 1, False) if each.is_exclusive else each for each in found]
        found = [_Bound(-(-each.value // 1), False) for each in found]
    return max(found, default=None)


def _moved_bound(side: str, old: _Bound | None, new: _Bound | None) -> Iterator[Moved]:
    if old == new:
        return
    sign = 1 if side == "lower" else -1
    words = {("lower", False): "at least", ("lower", True): "more than", ("upper", False): "at most"}

    def said(bound: _Bound | None) -> Any:
        return None if bound is None else sign * bound.value

    def text(bound: _Bound | None) -> str:
        if bound is None:
            return f"no {side} bound"
        return f"{words.get((side, bound.is_exclusive), 'less than')} {said(bound)}"

    is_tighter = new is not None and (old is None or new > old)
    yield Moved("tightened" if is_tighter else "loosened", f"{text(new)}, was {text(old)}", said(old), said(new))


def _multiples(validators: Sequence[Validator], is_whole: bool) -> list[Any]:
    found = dict.fromkeys(each.value for each in validators if each.type == "multiple_of")
    return [each for each in found if each and not (is_whole and abs(each) == 1)]


def _moved_multiple(old: list[Any], new: list[Any]) -> Iterator[Moved]:
    text = f"{_multiple_text(new)}, was {_multiple_text(old)}"
    was, now = (each[0] if len(each) == 1 else tuple(each) or None for each in (old, new))
    if not all(any(is_multiple(each, wanted) for each in old) for wanted in new):
        yield Moved("tightened", text, was, now)
    if not all(any(is_multiple(each, wanted) for each in new) for wanted in old):
        yield Moved("loosened", text, was, now)


def _multiple_text(multiples: list[Any]) -> str:
    return f"a multiple of {' and '.join(map(str, multiples))}" if multiples else "any number"


# -- sizes ---------------------------------------------------------------------------------------------


def _length(validators: Sequence[Validator], name: str) -> int | None:
    found = [each.value for each in validators if each.type == name]
    return (max(found) if name == "min_length" else min(found)) if found else None


def _moved_size(end: str, noun: str, old: int | None, new: int | None) -> Iterator[Moved]:
    before, after = (0 if each is None and end == "min" else each for each in (old, new))
    if before == after:
        return
    is_tighter = after is not None and (before is None or (after > before if end == "min" else after < before))
    word = "at least" if end == "min" else "at most"
    text = f"{word} {counted(new, noun)}" if new is not None else f"no limit to its {counted(2, noun)[2:]}"
    was = f"{word} {counted(old, noun)}" if old is not None else "no limit"
    yield Moved("tightened" if is_tighter else "loosened", f"{text}, was {was}", old, new)


# -- what is there or not ------------------------------------------------------------------------------


def _allowed(validators: Sequence[Validator]) -> dict[bytes, Any] | None:
    """The values that all `enum` constraints list, by their JSON; None without such a constraint."""
    lists = [{_json(value): value for value in each.value} for each in validators if each.type == "enum"]
    if not lists:
        return None
    return {key: value for key, value in lists[0].items() if all(key in each for each in lists)}


def _moved_choices(old: dict[bytes, Any] | None, new: dict[bytes, Any] | None) -> Iterator[Moved]:
    if old is None and new is None:
        return
    was, now = (None if each is None else b", ".join(each).decode() for each in (old, new))
    text = f"{'any value' if now is None else f'one of {now}'}, was {'any value' if was is None else f'one of {was}'}"
    if new is not None and (old is None or not old.keys() <= new.keys()):
        yield Moved("tightened", text, was, now)
    if old is not None and (new is None or not new.keys() <= old.keys()):
        yield Moved("loosened", text, was, now)


def _others(validators: Sequence[Validator], is_whole: bool) -> list[Validator]:
    """Patterns, formats and checks. Their messages do not count, nor does in which words a format is named."""
    idle = {*_COMPARED, "integer"} if is_whole else _COMPARED
    found = [each for each in validators if each.type not in idle]
    plain = (
        Validator("format", each.type) if each.type in ("email", "url", "uuid") else Validator(each.type, each.value)
        for each in found
    )
    return list({_json([each.type, each.value]): each for each in plain}.values())


def _implied(wanted: Validator, given: list[Validator]) -> bool:
    if wanted.type != "format":
        return wanted in given
    formats = [each.value for each in given if each.type == "format"]
    return wanted.value in formats or any(wanted.value in _WITHIN.get(each, ()) for each in formats)


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")
