"""Validators as keywords of JSON Schema, and keywords as validators.

Most validators are one keyword each. What no keyword says (`custom`, messages, an order of their own) is
kept beside the keywords as the list itself, `x-gati-validators`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gati_core.errors import MalformedGType, UnsupportedType
from gati_core.gtype._ecma_patterns import from_ecmascript
from gati_core.gtype._formats import FORMATS
from gati_core.gtype._model import GType, Primitive, Validator
from gati_core.gtype._patterns import to_ecmascript

PREFIX = "x-gati-"
"""Of the keywords that are ours."""
NULL: dict[str, Any] = {"type": "null"}

_PLAIN = {
    "exclusive_min": "exclusiveMinimum",
    "min": "minimum",
    "exclusive_max": "exclusiveMaximum",
    "max": "maximum",
    "multiple_of": "multipleOf",
    "min_length": "minLength",
    "max_length": "maxLength",
}
# Standard names for formats of ours that are called otherwise; the pattern tells them apart.
_STANDARD = {"url": "uri", "uuid4": "uuid", "timestamp": "date-time"}


def whole(name: str) -> str:
    """The expression that a text of the format matches."""
    return f"^(?:{FORMATS[name].source})$"


BASE64 = whole("base64")


def is_bytes(schema: GType) -> bool:
    """Whether lengths count bytes."""
    return isinstance(schema, Primitive) and schema.primitive_type == "bytes"


def placed(
    validators: Sequence[Validator], *, of_bytes: bool, nullable: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The keywords of a type's validators, and those that need a member of `allOf` because their place is taken."""
    top: dict[str, Any] = {"pattern": BASE64} if of_bytes else {}
    more: list[dict[str, Any]] = []
    for validator in validators:
        for keywords in _keywords(validator, of_bytes, nullable):
            # The place of `enum` and `anyOf` is that of kinds.
            if keywords.keys() & (top.keys() | {"enum", "anyOf"}):
                more.append(keywords)
            else:
                top.update(keywords)
    if of_bytes:
        del top["pattern"]
    return top, more


def _keywords(validator: Validator, of_bytes: bool, nullable: bool) -> list[dict[str, Any]]:
    value = validator.value
    match validator.type:
        case "min_length" | "max_length" if of_bytes:
            return _byte_length(validator.type, value)
        case "multiple_of":
            return [{"multipleOf": abs(value)}]
        case "integer":
            return [{"multipleOf": 1}]
        case "positive":
            return [{"exclusiveMinimum": 0}]
        case "negative":
            return [{"exclusiveMaximum": 0}]
        case "pattern":
            return [_pattern(value)]
        case "format":
            return [_format(value)]
        case "email" | "url" | "uuid":
            return [_format(validator.type)]
        case "enum":
            return [{"enum": [*value, None] if nullable and None not in value else list(value)}]
        case "custom":
            return []
        case name:
            return [{_PLAIN[name]: value}]


def _byte_length(name: str, count: int) -> list[dict[str, Any]]:
    """Bounds for base64 text, which is longer by a third; at the bound itself its padding decides."""
    quads, rest = -(-count // 3), count % 3
    if name == "min_length":
        # One byte fewer than a full group shows as one `=`, two as two.
        ending = {0: "[^=]$", 2: "[^=]=?$"}.get(rest) if count else None
        at_bound = [] if ending is None else [{"anyOf": [{"minLength": 4 * quads + 1}, {"pattern": ending}]}]
        return [{"minLength": 4 * quads}, *at_bound]
    ending = {1: "==$", 2: "=$"}.get(rest)
    at_bound = [] if ending is None else [{"anyOf": [{"maxLength": 4 * quads - 1}, {"pattern": ending}]}]
    return [{"maxLength": 4 * quads}, *at_bound]


def _pattern(pattern: str) -> dict[str, Any]:
    try:
        ours = to_ecmascript(pattern)
    except UnsupportedType:
        return {}  # better a schema that accepts more than none
    try:
        is_alike = from_ecmascript(ours) == pattern
    except UnsupportedType:
        is_alike = False
    return {"pattern": ours} if is_alike else {"pattern": ours, f"{PREFIX}pattern": pattern}


def _format(name: str) -> dict[str, Any]:
    # Few validators look at `format`, and none at names of ours.
    return {"format": _STANDARD.get(name, name), "pattern": whole(name)} if name in FORMATS else {"format": name}


def validators_in(schema: Mapping[str, Any], *, of_bytes: bool) -> list[Validator]:
    """The validators that keywords stand for, in the order of the extraction from annotations.

    Raises:
        UnsupportedType: the pattern is none that Python has.
        MalformedGType: beside the pattern stands another one as its original.
    """
    found = [Validator(name, schema[word]) for name, word in _PLAIN.items() if word in schema]  # type: ignore[arg-type]
    if of_bytes:
        found = [_in_bytes(each) for each in found]
    pattern, named = schema.get("pattern"), schema.get("format")
    if of_bytes and pattern == BASE64:
        pattern = None
    for name in FORMATS if named is not None else ():
        if _STANDARD.get(name, name) == named and pattern == whole(name):
            pattern, named = None, name
            break
    if pattern is not None:
        found.append(Validator("pattern", _python_pattern(schema, pattern)))
    if named is not None:
        found.append(Validator(named) if named in ("email", "url") else Validator("format", named))
    return found


def _in_bytes(validator: Validator) -> Validator:
    """Groups of four characters hold three bytes."""
    if validator.type == "min_length":
        quads = -(-validator.value // 4)
        return Validator("min_length", max(0, 3 * quads - 2))
    return Validator("max_length", validator.value // 4 * 3) if validator.type == "max_length" else validator


def _python_pattern(schema: Mapping[str, Any], pattern: str) -> str:
    original = schema.get(f"{PREFIX}pattern")
    if original is None:
        return from_ecmascript(pattern)
    try:
        is_original = isinstance(original, str) and bool(re.compile(original)) and to_ecmascript(original) == pattern
    except (re.error, OverflowError, RecursionError, UnsupportedType):
        is_original = False
    if not is_original:
        raise MalformedGType(
            f"{PREFIX}pattern {original!r} is not what the pattern {pattern!r} was made from: drop it, or change both"
        )
    return str(original)
