"""Reading JSON Schema: the parts of a type that need no look at the rest of the schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gati_core.errors import UnsupportedType
from gati_core.gtype._ecma_patterns import from_ecmascript
from gati_core.gtype._interpreter import identity
from gati_core.gtype._json_keywords import PREFIX
from gati_core.gtype._json_schema import ANNOTATIONS, base_of
from gati_core.gtype._json_shapes import is_number
from gati_core.gtype._model import (
    AnyOf,
    Enumeration,
    GType,
    IntersectionOf,
    LiteralOf,
    NeverOf,
    ObjectOf,
    Primitive,
    UnionOf,
    UnknownOf,
    Validator,
)

_ALL_NAMES = ("", "^", ".*", "^.*", "^.*$")


def type_names(raw: Mapping[str, Any]) -> list[str]:
    """What `type` lists, each once; `null` too."""
    names = raw.get("type", [])
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))


def values_of(raw: Mapping[str, Any]) -> list[Any] | None:
    """The values that `const` and `enum` leave, of the schema's types; None when it has neither."""
    if "const" not in raw and "enum" not in raw:
        return None
    values = list(raw["enum"]) if "enum" in raw else [raw["const"]]
    if "const" in raw:
        values = [value for value in values if identity(value) == identity(raw["const"])]
    names = type_names(raw)
    if names:
        values = [_as_integer(value, names) for value in values if any(_fits(value, name) for name in names)]
    return values


def _fits(value: Any, name: str) -> bool:
    match name:
        case "string":
            return isinstance(value, str)
        case "integer":
            return is_number(value) and value == value // 1
        case "number":
            return is_number(value)
        case "boolean":
            return isinstance(value, bool)
        case "object":
            return isinstance(value, Mapping)
        case "array":
            return isinstance(value, list)
        case _:
            return value is None


def _as_integer(value: Any, names: Sequence[str]) -> Any:
    """`1.0` is an integer to JSON Schema; to a type it is not."""
    return int(value) if isinstance(value, float) and "integer" in names and "number" not in names else value


def pattern_properties(raw: Mapping[str, Any], at: str) -> tuple[str, Any] | None:
    """The pattern of names and the schema of their values; an empty pattern where all names match.

    Raises:
        UnsupportedType: names that match and others are both possible, or several patterns.
    """
    patterns = raw.get("patternProperties")
    if not patterns:
        return None
    where = f"{at}/patternProperties"
    if len(patterns) > 1:
        raise UnsupportedType(f"{where}: one pattern for names can be said, not {len(patterns)}")
    pattern, inner = next(iter(patterns.items()))
    if "propertyNames" in raw:
        raise UnsupportedType(f"{where}: say what names are once, here or with propertyNames")
    if pattern not in _ALL_NAMES and raw.get("additionalProperties", True) is not False:
        raise UnsupportedType(
            f'{where}: no type says what names that do not match have; add "additionalProperties": false'
        )
    python = from_ecmascript(pattern)
    both = [name for name in raw.get("properties", {}) if re.search(python, name)]
    if both:
        raise UnsupportedType(f"{where}: the declared property {both[0]!r} matches the pattern as well")
    return ("" if pattern in _ALL_NAMES else pattern), inner


def merged(parts: Sequence[GType]) -> ObjectOf | None:
    """One object type for several, if that says the same: open ones that agree on what they share."""
    objects = [each for each in parts if isinstance(each, ObjectOf) and _is_bare(each)]
    if not objects or len(objects) < len(parts):
        return None
    properties: dict[str, GType] = {}
    for name, inner in _properties(objects):
        other = properties.get(name, AnyOf())
        if AnyOf() not in (inner, other) and inner != other:
            return None
        properties[name] = inner if other == AnyOf() else other
    least = [each.min_properties for each in objects if each.min_properties is not None]
    most = [each.max_properties for each in objects if each.max_properties is not None]
    return ObjectOf(
        properties=properties,
        required=list(dict.fromkeys(name for each in objects for name in each.required)),
        nullable=all(each.nullable for each in objects),
        description=next((each.description for each in objects if each.description), ""),
        min_properties=max(least, default=None),
        max_properties=min(most, default=None),
    )


def _is_bare(schema: ObjectOf) -> bool:
    bare = msgspec.structs.replace(
        schema, properties={}, required=[], nullable=False, description="", min_properties=None, max_properties=None
    )
    return bare == ObjectOf()


def _properties(objects: Sequence[ObjectOf]) -> Iterator[tuple[str, GType]]:
    for each in objects:
        yield from each.properties.items()


def shared_tag(members: Sequence[Any], resolved: Callable[[Any], Any]) -> str:
    """The property for which every member has a text of its own; `""` when there is none."""
    found: dict[str, set[str]] = {}
    count = 0
    for member in members:
        schema = resolved(member)
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        for name, inner in properties.items() if isinstance(properties, Mapping) else ():
            if isinstance(inner, Mapping) and isinstance(inner.get("const"), str):
                found.setdefault(name, set()).add(inner["const"])
        count += 1
    return min((name for name, tags in found.items() if len(tags) == count), default="") if count > 1 else ""


def choice(raw: Mapping[str, Any], values: list[Any]) -> GType:
    """The type of the values that `const` or `enum` list."""
    if "enum" not in raw:
        return LiteralOf(value=values[0]) if values else NeverOf()
    nullable = raw.get(f"{PREFIX}nullable")
    if nullable is None:
        nullable = None in values
        values = [value for value in values if value is not None]
    elif nullable:
        values = values[:-1]
    base: Any = raw.get(f"{PREFIX}base-type")
    if base is None and not values:
        return Primitive(primitive_type="null") if nullable else NeverOf()
    if base is None:
        names = [name for name in type_names(raw) if name != "null"]
        base = names[0] if len(names) == 1 else base_of(values)
    return Enumeration(values=values, base_type=base, nullable=nullable)


def negation(raw: Mapping[str, Any], at: str) -> GType:
    if raw["not"] not in ({}, True):
        raise UnsupportedType(f"{at}/not: no type can say what a value is not, except anything")
    kind = raw.get(f"{PREFIX}kind")
    if kind == "undefined":
        return Primitive(primitive_type="undefined")
    return UnionOf(types=[], discriminator=raw.get(f"{PREFIX}discriminator", "")) if kind == "union" else NeverOf()


def whole(parts: list[GType], raw: Mapping[str, Any]) -> GType:
    """The type that has all parts."""
    kind = raw.get(f"{PREFIX}kind")
    schema: GType
    if kind == "intersection":
        schema = IntersectionOf(types=parts)
    elif not parts:
        schema = UnknownOf() if kind == "unknown" else AnyOf()
    elif len(parts) == 1:
        schema = parts[0]
    else:
        schema = merged(parts) or IntersectionOf(types=parts)
    is_told = isinstance(schema, (AnyOf, UnknownOf)) or (
        isinstance(schema, Primitive) and schema.primitive_type in ("null", "undefined")
    )
    if is_told and raw.get(f"{PREFIX}nullable"):
        return msgspec.structs.replace(schema, nullable=True)
    return schema


def with_annotations(schema: GType, raw: Mapping[str, Any], validators: list[Validator], at: str) -> GType:
    """Add what a schema says beside its parts; what it says itself counts before what its only part says."""
    told = {word: raw[word] for word, kind in ANNOTATIONS.items() if isinstance(raw.get(word), kind)}
    if not at:
        told.pop("title", None)  # the name of the document
    changes = {
        "metadata": {**schema.metadata, **told, **raw.get(f"{PREFIX}metadata", {})},
        "description": raw.get("description") or schema.description,
        "default": raw.get("default", schema.default),
        "brand": raw.get(f"{PREFIX}brand") or schema.brand,
        "optional": schema.optional or raw.get(f"{PREFIX}optional", False),
        "validators": [*schema.validators, *validators],
    }
    return msgspec.structs.replace(schema, **changes)


def undeclared(more: bool | GType, names: GType | None, at: str) -> GType:
    """A name that is required and not declared: one of the additional ones."""
    if names is not None:
        raise UnsupportedType(f"{at}: a name that is required and not declared, where names have a schema; declare it")
    return more if not isinstance(more, bool) else AnyOf() if more else NeverOf()


def is_base64(raw: Mapping[str, Any]) -> bool:
    """Whether it is about bytes, whose lengths are counted otherwise."""
    is_choice = "enum" in raw or "const" in raw
    return raw.get("contentEncoding") == "base64" and not is_choice and not {*type_names(raw)} - {"string", "null"}


def are_scalars(values: list[Any]) -> bool:
    """Whether none is an object or an array."""
    return not any(isinstance(value, (Mapping, list)) for value in values)
