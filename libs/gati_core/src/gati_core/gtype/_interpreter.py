"""The reference: what a type accepts, spelled out as plainly as can be.

It walks schema and value side by side and is slow. Nothing at run time uses it; the validators that are
generated from types are compared with it (P13).
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from gati_core.gtype._brands import custom_check, expand_brands, is_secret
from gati_core.gtype._expected import (
    MAX_ERRORS,
    FieldError,
    Step,
    counted,
    expected,
    failure,
    rule_text,
    shown,
    tuple_lengths,
)
from gati_core.gtype._formats import FORMATS, is_of_format
from gati_core.gtype._model import (
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
    Validator,
    is_required,
)
from gati_core.gtype._nesting import MAX_NESTING, endless, is_deeper, references
from gati_core.gtype._secrecy import spread_secrets


def errors_of(value: Any, document: Document) -> list[FieldError]:
    """Everything that is wrong with a JSON value (dict, list, str, int, float, bool, None; UNSET for absence).

    In document order, at most `MAX_ERRORS`. Values are of the exact types that JSON decoders make. A type that
    follows values without end stops after `MAX_NESTING` steps; this function needs up to ten times as many
    frames of the interpreter's stack.
    """
    document = spread_secrets(expand_brands(document))
    try:
        return _check(value, document.root, (), document.definitions)[:MAX_ERRORS]
    except RecursionError:
        return [_too_deep(value, (), document.root, message="nested too deep to be checked")]


def _check(value: Any, schema: GType, path: tuple[Step, ...], names: Mapping[str, GType]) -> list[FieldError]:
    secret = is_secret(schema)
    if isinstance(schema, Primitive) and schema.primitive_type == "undefined":
        return [] if value is UNSET else [failure(path, expected(schema, names), value, secret=secret)]
    if value is UNSET:
        return [] if schema.optional else [failure(path, expected(schema, names), value)]
    if value is None and schema.nullable:
        return []
    errors = _check_kind(value, schema, path, names, secret)
    if not errors:
        unit = "byte" if isinstance(schema, Primitive) and schema.primitive_type == "bytes" else "character"
        for validator in schema.validators:
            if not _passes(value, validator, unit):
                text = rule_text(validator, unit=unit)
                message = validator.message
                if not message and validator.type == "custom":
                    message = "custom validation failed"
                errors.append(failure(path, text, value, secret=secret, message=message))
                break  # a text that is too long must not get as far as its pattern
    return errors


def _check_kind(
    value: Any, schema: GType, path: tuple[Step, ...], names: Mapping[str, GType], secret: bool
) -> list[FieldError]:
    wrong = [failure(path, expected(schema, names), value, secret=secret)]
    match schema:
        case Primitive():
            return [] if _is_primitive(value, schema.primitive_type) else wrong
        case LiteralOf():
            return [] if is_same(value, schema.value) else wrong
        case Enumeration():
            return [] if any(is_same(value, each) for each in schema.values) else wrong
        case ObjectOf():
            return _check_object(value, schema, path, names) if isinstance(value, dict) else wrong
        case ArrayOf():
            return _check_array(value, schema, path, names) if isinstance(value, list) else wrong
        case TupleOf():
            least, most = tuple_lengths(schema)
            if not isinstance(value, list) or not least <= len(value) <= most:
                return wrong
            return [
                error
                for index, (item, inner) in enumerate(zip(value, schema.items, strict=False))
                for error in _check(item, inner, (*path, index), names)
            ]
        case UnionOf():
            return _check_union(value, schema, path, names, wrong)
        case IntersectionOf():
            return [error for inner in schema.types for error in _check(value, inner, path, names)]
        case Ref():
            if len(path) > MAX_NESTING and schema.ref in endless(names):
                return [_too_deep(value, path, schema)]
            # What a reference says of absence and null was looked at; what its target says holds too.
            return _check(value, names[schema.ref], path, names)
        case AnyOf() | UnknownOf():
            return []
        case NeverOf():
            return wrong


def _is_primitive(value: Any, name: str) -> bool:
    match name:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, (int, float)) and not isinstance(value, bool) and is_finite(value)
        case "boolean":
            return isinstance(value, bool)
        case "bytes":
            return isinstance(value, str) and is_of_format("base64", value)
        case _:
            return value is None


def is_finite(value: float) -> bool:
    """Whether it is a number that a double can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_same(value: Any, wanted: Any) -> bool:
    """Equality as JSON has it, where `1`, `1.0` and `true` are three things."""
    return type(value) is type(wanted) and bool(value == wanted)


def _check_object(
    value: dict[str, Any], schema: ObjectOf, path: tuple[Step, ...], names: Mapping[str, GType]
) -> list[FieldError]:
    errors: list[FieldError] = []
    for name, inner in schema.properties.items():
        if name in value:
            errors += _check(value[name], inner, (*path, name), names)
        elif is_required(schema, name):
            errors.append(failure((*path, name), expected(inner, names), UNSET))
    more = schema.additional_properties
    for name, item in value.items():
        if name in schema.properties:
            continue
        if schema.property_names is not None:
            errors += [
                failure((*path, name), f"a name that is {error.expected}", name)
                for error in _check(name, schema.property_names, (), names)
            ]
        if more is False:
            message = f"unknown property {name!r}"
            errors.append(failure((*path, name), "no such property", item, secret=is_secret(schema), message=message))
        elif more is not True:
            errors += _check(item, more, (*path, name), names)
    if schema.min_properties is not None and len(value) < schema.min_properties:
        errors.append(_size(path, f"at least {counted(schema.min_properties, 'property')}", len(value)))
    if schema.max_properties is not None and len(value) > schema.max_properties:
        errors.append(_size(path, f"at most {counted(schema.max_properties, 'property')}", len(value)))
    return errors


def _check_array(
    value: list[Any], schema: ArrayOf, path: tuple[Step, ...], names: Mapping[str, GType]
) -> list[FieldError]:
    errors: list[FieldError] = []
    for index, item in enumerate(value):
        errors += _check(item, schema.items, (*path, index), names)
        if len(errors) >= MAX_ERRORS:
            break
    if schema.min_items is not None and len(value) < schema.min_items:
        errors.append(_size(path, f"at least {counted(schema.min_items, 'item')}", len(value)))
    if schema.max_items is not None and len(value) > schema.max_items:
        errors.append(_size(path, f"at most {counted(schema.max_items, 'item')}", len(value)))
    if schema.unique_items:
        secret = is_secret(schema.items)
        seen: set[str] = set()
        for index, item in enumerate(value):
            text = identity(item)
            if text in seen:
                message = "the same item is there twice"
                errors.append(failure((*path, index), "items that differ", item, secret=secret, message=message))
            seen.add(text)
    return errors


def identity(value: Any) -> str:
    """A text that equal JSON values share and others do not, where `1`, `1.0` and `true` are three things."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{identity(value[name])}" for name in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(identity(item) for item in value) + "]"
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value)  # decimal digits take long to make, and thousands of them are refused
    return repr(value + 0.0) if isinstance(value, float) else json.dumps(value)


def _too_deep(value: Any, path: tuple[Step, ...], schema: GType, *, message: str = "") -> FieldError:
    expects = f"at most {MAX_NESTING} levels of nesting"
    message = message or f"nested more than {MAX_NESTING} deep"
    return failure(path, expects, value, secret=is_secret(schema), message=message)


def _size(path: tuple[Step, ...], expects: str, found: int) -> FieldError:
    return FieldError(path, expects, str(found), f"expected {expects}, got {found}")


def _check_union(
    value: Any, schema: UnionOf, path: tuple[Step, ...], names: Mapping[str, GType], wrong: list[FieldError]
) -> list[FieldError]:
    tag = schema.discriminator
    tags = [tag_of(inner, tag, names) for inner in schema.types] if tag and isinstance(value, dict) else []
    for inner, wanted in zip(schema.types, tags, strict=False):
        # One that is told apart by a property of the value is meant, and its own errors say more than a summary.
        if is_same(value.get(tag), wanted):
            return _check(value, inner, path, names)
    if any(not _check(value, inner, path, names) for inner in schema.types):
        return []
    if tags and UNSET not in tags:
        # Every member has a tag, and the value has none of them.
        wanted = f"one of {', '.join(map(shown, tags))}"
        return [failure((*path, tag), wanted, value.get(tag, UNSET), secret=is_secret(schema))]
    if is_deeper(value, MAX_NESTING - len(path)) and not endless(names).isdisjoint(references(schema)):
        return [_too_deep(value, path, schema)]  # more to the point than what the members are
    return wrong


def tag_of(schema: GType, discriminator: str, names: Mapping[str, GType]) -> Any:
    """The literal by which an object type is told apart, or UNSET."""
    while isinstance(schema, Ref):
        schema = names[schema.ref]
    if isinstance(schema, ObjectOf):
        tag = schema.properties.get(discriminator)
        if isinstance(tag, LiteralOf):
            return tag.value
    return UNSET


def _passes(value: Any, validator: Validator, unit: str) -> bool:
    wanted = validator.value
    if validator.type == "enum":
        return any(is_same(value, each) for each in wanted)
    if validator.type == "custom":
        return bool(custom_check(wanted)(value))
    if isinstance(value, str):
        return _passes_text(value, validator, unit)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return _passes_number(value, validator) if is_number else True


def _passes_text(value: str, validator: Validator, unit: str) -> bool:
    wanted = validator.value
    match validator.type:
        case "min_length" | "max_length":
            length = len(base64.b64decode(value)) if unit == "byte" else len(value)
            return bool(length >= wanted if validator.type == "min_length" else length <= wanted)
        case "pattern":
            return re.search(wanted, value) is not None
        case "format":
            return is_of_format(wanted, value) if wanted in FORMATS else True
        case "email" | "url" | "uuid":
            return is_of_format(validator.type, value)
        case _:
            return True


def _passes_number(value: Any, validator: Validator) -> bool:
    wanted = validator.value
    match validator.type:
        case "min":
            return bool(value >= wanted)
        case "max":
            return bool(value <= wanted)
        case "exclusive_min":
            return bool(value > wanted)
        case "exclusive_max":
            return bool(value < wanted)
        case "multiple_of":
            return is_multiple(value, wanted)
        case "integer":
            return not isinstance(value, float) or value.is_integer()
        case "positive":
            return bool(value > 0)
        case "negative":
            return bool(value < 0)
        case _:
            return True


def is_multiple(value: float, of: float) -> bool:
    """Exact for integers; for fractions as doubles divide, so 0.3 is no multiple of 0.1.

    What a double cannot hold is no multiple of a fraction.
    """
    if isinstance(value, int) and isinstance(of, int):
        return value % of == 0
    return is_finite(value) and math.fmod(value, of) == 0.0
