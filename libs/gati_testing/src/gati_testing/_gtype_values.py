"""Values for types that are data; see `gtypes`, which has the documents."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st

from gati_core.gtype import (
    AnyOf,
    ArrayOf,
    Document,
    Enumeration,
    GType,
    IntersectionOf,
    LiteralOf,
    NeverOf,
    ObjectOf,
    Primitive,
    Ref,
    TupleOf,
    UnionOf,
    UnknownOf,
    custom_check,
    errors_of,
    is_required,
)

Draw = Callable[[st.SearchStrategy[Any]], Any]

NAMES = ("a", "b", "kind", "i", "value", "errors", "path", "_x", "class", "x y", "it's", 'say "x"', "\u00e4\n", "1", "")
"""Names of properties and definitions: some that careless generated code would stumble over."""
PATTERNS = {
    "^[a-z]+$": st.text("abcxyz", min_size=1, max_size=6),
    "^\\d{2,4}$": st.text("0123456789", min_size=2, max_size=4),
    "b+": st.text("ab", max_size=3).map(lambda text: text + "b"),
    "^(?:on|off)$": st.sampled_from(("on", "off")),
    "[\"'\\\\]": st.sampled_from(('"', "it's", "\\")),
}
"""Patterns that Python and ECMAScript read alike, with texts that match them."""
_BASE64 = st.binary(max_size=9).map(lambda data: base64.b64encode(data).decode())
FORMATS = {
    "date": st.dates().map(str),
    "time": st.sampled_from(("12:30:00Z", "00:00:59.25+01:00")),
    "date-time": st.sampled_from(("2026-01-31T12:30:00Z", "2024-02-29t00:00:00.5-0330")),
    "duration": st.sampled_from(("P1D", "PT2.5H", "-P1DT2H30M")),
    "uuid": st.uuids().map(str),
    "decimal": st.sampled_from(("29.99", "-1", "+.5", "1e5")),
    "base64": _BASE64,
    "email": st.sampled_from(("ada@example.org", "a+b@x.y.z")),
    "url": st.sampled_from(("https://example.org/a?b#c", "a://[::1]:80")),
    "slug": st.text("abc-019", min_size=1, max_size=5),
    "local-time": st.sampled_from(("12:30:00", "00:00:59.25")),
    "time-or-local": st.sampled_from(("12:30:00Z", "00:00:59.25")),
    "local-date-time": st.sampled_from(("2026-01-31T12:30:00", "2024-02-29 00:00:00.5")),
    "date-time-or-local": st.sampled_from(("2026-01-31T12:30:00Z", "2024-02-29T00:00:00.5")),
    "timestamp": st.sampled_from(("2026-01-31T12:30:00Z", "2024-02-29T00:00:00.5+01:00")),
    "uuid4": st.uuids(version=4).map(str),
    "hex": st.text("0123456789abcdef", min_size=1, max_size=6),
    "phone": st.sampled_from(("+4930123456", "+15551234567")),
    "jwt": st.sampled_from(("a.b.c", "aa.bb.")),
    "username": st.text("abc_019", min_size=3, max_size=8),
    "trimmed": st.text("abc", min_size=1, max_size=5),
    "cuid": st.text("abc019", min_size=24, max_size=24),
    "object-id": st.text("0123456789abcdef", min_size=24, max_size=24),
    "unheard-of": st.text(max_size=3),
}
"""Formats with texts that are of them; the last is none, so that every text is."""
TEXT_BRANDS = {
    "email": FORMATS["email"],
    "slug": FORMATS["slug"],
    "name": st.text("abc", min_size=1, max_size=5),
    "password": st.text("abc\u00e4", min_size=8, max_size=10),
    "secret": st.text(max_size=5),
    "user_id": st.text(max_size=5),
}
NUMBER_BRANDS = {"percentage": (0, 100), "port": (1, 65535), "quantity": (1, 1000)}
BOOLEANS = st.booleans()


@lru_cache
def below(number: int) -> st.SearchStrategy[int]:
    return st.integers(0, number - 1)


def pick(draw: Draw, options: Sequence[Any]) -> Any:
    """One of these; quicker than a strategy that is made for one draw."""
    return options[draw(below(len(options)))]


@lru_cache
def json_values() -> st.SearchStrategy[Any]:
    """Anything that a JSON decoder may return, numbers that only some return included."""
    numbers = st.integers() | st.floats() | st.sampled_from((10**400, -(2**1024), 0.0, -0.0, 1, 1.0))
    leaves = st.none() | st.booleans() | numbers | st.text(max_size=5) | st.sampled_from(NAMES)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
        max_leaves=5,
    )


def values_of(document: Document) -> st.SearchStrategy[Any]:
    """JSON values that the type accepts; for those of `documents()`."""
    return _likely(document).filter(lambda value: not errors_of(value, document))


def near_values(document: Document) -> st.SearchStrategy[Any]:
    """JSON values that are of the type, or were until something in them was changed, or are anything."""
    return _near(document)


@st.composite
def _near(draw: Draw, document: Document) -> Any:
    changes = pick(draw, (0, 0, 1, 1, 2, None))
    if changes is None:
        return draw(json_values())
    value = draw(_likely(document))
    for _ in range(changes):
        value = _changed(draw, value)
    return value


@st.composite
def _likely(draw: Draw, document: Document) -> Any:
    """Built as the type asks, which may ask for more than this has thought of."""
    return _Values(draw, document.definitions).value(document.root, 3)


class _Values:
    """Draws values; `left` is how many levels may still be filled with what need not be there."""

    def __init__(self, draw: Draw, definitions: Mapping[str, GType]) -> None:
        self._draw = draw
        self._definitions = definitions

    def value(self, schema: GType, left: int) -> Any:
        draw = self._draw
        if schema.nullable and (left <= 0 or draw(below(4)) == 3):
            return None
        match schema:
            case Primitive():
                return draw(self._primitive(schema))
            case LiteralOf():
                return schema.value
            case Enumeration():
                return pick(draw, schema.values)
            case ObjectOf():
                return self._object(schema, left - 1)
            case ArrayOf():
                return self._array(schema, left - 1)
            case TupleOf():
                return self._tuple(schema, left - 1)
            case UnionOf():
                return self.value(pick(draw, schema.types), left)
            case IntersectionOf():
                return self._intersection(schema, left)
            case Ref():
                return self.value(self._definitions[schema.ref], left)
            case AnyOf() | UnknownOf() | NeverOf():
                return draw(json_values())

    def _object(self, schema: ObjectOf, left: int) -> dict[str, Any]:
        draw = self._draw
        found = {}
        for name, inner in schema.properties.items():
            if isinstance(inner, NeverOf) or (isinstance(inner, Primitive) and inner.primitive_type == "undefined"):
                continue
            if is_required(schema, name) or (left > 0 and draw(BOOLEANS)):
                found[name] = self.value(inner, left)
        more = schema.additional_properties
        most = schema.max_properties if schema.max_properties is not None else len(found) + 2
        if more is not False and left > 0:
            for name in draw(st.lists(st.sampled_from(("extra", "q", *NAMES[:3])), max_size=2)):
                if name not in schema.properties and len(found) < most:
                    found[name] = draw(json_values()) if isinstance(more, bool) else self.value(more, left)
        return found

    def _array(self, schema: ArrayOf, left: int) -> list[Any]:
        least = schema.min_items or 0
        most = max(schema.max_items if schema.max_items is not None else 3, least)
        count = self._draw(st.integers(least, min(most, least + 2))) if left > 0 else least
        items = [self.value(schema.items, left) for _ in range(count)]
        if schema.unique_items:
            items = [item for index, item in enumerate(items) if repr(item) not in map(repr, items[:index])]
        return items

    def _tuple(self, schema: TupleOf, left: int) -> list[Any]:
        found = []
        for index, inner in enumerate(schema.items):
            rest = schema.items[index:]
            if all(each.optional for each in rest) and (left <= 0 or self._draw(BOOLEANS)):
                break
            found.append(self.value(inner, left))
        return found

    def _intersection(self, schema: IntersectionOf, left: int) -> Any:
        found = self.value(schema.types[0], left)
        if isinstance(found, dict):
            for inner in schema.types[1:]:
                more = self.value(inner, 1) if isinstance(inner, ObjectOf) and inner.properties else {}
                found = {**more, **found} if isinstance(more, dict) else found
        return found

    def _primitive(self, schema: Primitive) -> st.SearchStrategy[Any]:
        rules: dict[str, Any] = {each.type: each.value for each in schema.validators}
        match schema.primitive_type:
            case "string":
                return _texts(schema, rules)
            case "bytes":
                least = rules.get("min_length", 0)
                most = max(rules.get("max_length", least + 3), least)
                return st.binary(min_size=least, max_size=most).map(lambda data: base64.b64encode(data).decode())
            case "integer" | "number":
                return _numbers(schema, rules)
            case "boolean":
                return st.booleans()
            case _:
                return st.none()


def _texts(schema: Primitive, rules: Mapping[str, Any]) -> st.SearchStrategy[str]:
    if schema.brand in TEXT_BRANDS:
        return TEXT_BRANDS[schema.brand]
    if "pattern" in rules:
        return PATTERNS[rules["pattern"]]
    if "format" in rules:
        return FORMATS[rules["format"]]
    for name in ("email", "url", "uuid"):
        if name in rules:
            return FORMATS[name]
    if "custom" in rules:
        return st.text("abc", max_size=4).filter(custom_check(rules["custom"]))
    least = rules.get("min_length", 0)
    return st.text(min_size=least, max_size=max(rules.get("max_length", least + 5), least))


def _numbers(schema: Primitive, rules: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    is_whole = schema.primitive_type == "integer"
    if schema.brand in NUMBER_BRANDS:
        return st.integers(*NUMBER_BRANDS[schema.brand])
    if "enum" in rules:
        return st.sampled_from([each for each in rules["enum"] if type(each) is int] or [0])
    if "multiple_of" in rules:
        step = rules["multiple_of"] * 2  # whole for all of ours
        return st.integers(-5, 5).map(lambda times: int(times * step))
    if "positive" in rules or "negative" in rules:
        return st.integers(1, 10**20).map(lambda value: value if "positive" in rules else -value)
    least = rules.get("min", rules.get("exclusive_min", -(10**6)))
    most = rules.get("max", rules.get("exclusive_max", max(least, 10**6)))
    gap = 1 if "exclusive_min" in rules or "exclusive_max" in rules else 0
    low, high = int(least) + gap, int(most) - gap
    whole = st.integers(min(low, high), max(low, high))
    if is_whole or "integer" in rules:
        return whole
    return whole | st.floats(float(min(low, high)), float(max(low, high)))


# -- values with something changed ---------------------------------------------------------------------


def _changed(draw: Draw, value: Any) -> Any:
    """The value with one place in it replaced, left out, added or turned into something close."""
    value = copy.deepcopy(value)
    holder: list[Any] = [value]
    parent: Any = holder
    step: Any = 0
    for _ in range(draw(below(5))):
        inside = parent[step]
        steps = list(inside) if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ()
        if not steps:
            break
        parent, step = inside, pick(draw, steps)
    there = parent[step]
    change = pick(draw, ("replace", "close", "leave out", "add", "twice"))
    if change == "leave out" and parent is not holder:
        del parent[step]
    elif change == "add" and isinstance(there, dict):
        there[pick(draw, ("extra", "Q", *NAMES))] = draw(json_values())
    elif change in ("add", "twice") and isinstance(there, list):
        there.append(copy.deepcopy(there[0]) if there and change == "twice" else draw(json_values()))
    elif change == "close":
        parent[step] = pick(draw, _close_to(there))
    else:
        parent[step] = draw(json_values())
    return holder[0]


def _close_to(value: Any) -> list[Any]:
    """Values that are easily taken for this one."""
    if isinstance(value, bool):
        return [int(value), str(value).lower(), None]
    if isinstance(value, int):
        return [value + 1, value - 1, -value, str(value), bool(value), *([float(value)] if abs(value) < 2**53 else [])]
    if isinstance(value, float):
        return [value + 0.5, -value, str(value), *([int(value)] if value - value == 0.0 else [None])]
    if isinstance(value, str):
        return [value + "x", value + "\n", value[1:], value.upper(), [value], ""]
    if value is None:
        return [False, 0, "", {}, []]
    return [None, [value], {"a": value}, str(value)]
