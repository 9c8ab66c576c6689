"""What the keywords of JSON Schema may hold, and which of them no type can say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gati_core.errors import MalformedGType, UnsupportedType
from gati_core.gtype._json_keywords import PREFIX

TYPES = ("string", "integer", "number", "boolean", "null", "object", "array")
_UNSAYABLE = {
    **dict.fromkeys(("if", "then", "else"), "list the cases with anyOf"),
    **dict.fromkeys(("dependentSchemas", "dependentRequired", "dependencies"), "list the cases with anyOf"),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems"), "use additionalProperties or items"),
    **dict.fromkeys(("contains", "minContains", "maxContains"), "say what all items are"),
    **dict.fromkeys(("$dynamicRef", "$recursiveRef"), "use $ref"),
}
Shape = tuple[Callable[[Any], bool], str]


def is_number(value: Any) -> bool:
    """A boolean is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return is_number(value) and value >= 0 and value == int(value)


def _is_schema(value: Any) -> bool:
    return isinstance(value, (Mapping, bool))


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


_TEXT: Shape = (lambda value: isinstance(value, str), "text")
_TEXTS: Shape = (
    lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    "a list of names",
)
_FLAG: Shape = (lambda value: isinstance(value, bool), "true or false")
_COUNT: Shape = (_is_count, "a count")
_NUMBER: Shape = (is_number, "a number")
_SCHEMA: Shape = (_is_schema, "a schema")
_SCHEMAS: Shape = (lambda value: isinstance(value, list) and bool(value), "a list of schemas that is not empty")
_NAMED: Shape = (lambda value: isinstance(value, Mapping), "an object")
_SHAPES: dict[str, Shape] = {
    "type": (_is_type, f"one of {', '.join(TYPES)}, or a list of them"),
    "enum": (lambda value: isinstance(value, list), "a list"),
    "multipleOf": (lambda value: is_number(value) and value > 0, "a number above 0"),
    **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), _SCHEMAS),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), _NAMED),
    **dict.fromkeys(("discriminator", f"{PREFIX}metadata"), _NAMED),
    **dict.fromkeys(("not", "items", "additionalProperties", "propertyNames"), _SCHEMA),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _NUMBER),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("$schema", "$id", "$ref", "title", "description", "format", "pattern", "contentEncoding"), _TEXT),
    **dict.fromkeys((f"{PREFIX}brand", f"{PREFIX}discriminator", f"{PREFIX}side"), _TEXT),
    **dict.fromkeys(("uniqueItems", f"{PREFIX}optional", f"{PREFIX}nullable"), _FLAG),
    f"{PREFIX}kind": (
        lambda value: value in ("unknown", "undefined", "union", "intersection", "tuple"),
        "unknown, undefined, union, intersection or tuple",
    ),
    f"{PREFIX}base-type": (
        lambda value: value in ("string", "integer", "number", "boolean", "mixed"),
        "string, integer, number, boolean or mixed",
    ),
    "required": _TEXTS,
}


def check_keywords(raw: Any, at: str) -> None:
    """Whether the keywords of one schema hold what they must, and all of them can be said with types.

    Raises:
        MalformedGType, UnsupportedType: name the JSON pointer.
    """
    if not isinstance(raw, Mapping):
        raise MalformedGType(f"{at or '/'}: a schema is an object, true or false, not {type(raw).__name__}")
    for word, value in raw.items():
        if word in _UNSAYABLE:
            raise UnsupportedType(f"{at}/{word}: no type can say that; {_UNSAYABLE[word]}")
        if word == "items" and isinstance(value, list):
            raise UnsupportedType(f"{at}/items: a list of schemas is of older drafts; call it prefixItems")
        if word in _SHAPES and not _SHAPES[word][0](value):
            raise MalformedGType(f"{at}/{word}: it must be {_SHAPES[word][1]}")
    if at and "$id" in raw:
        raise UnsupportedType(f"{at}/$id: schemas inside others cannot have an id of their own; refer to them by place")
