"""Declarations: what a value of a type looks like to a TypeScript compiler."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gati_core.codegen._names import pascal
from gati_core.codegen._types import NamedType, TypeRegistry, header_lines
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
    is_required,
)

FLAVOR = """/** A value with a meaning: values of two brands are not mixed up, plain ones are taken for either. */
export type Flavor<T, Brand extends string> = T & { readonly __brand?: Brand };
"""
TAKEN = (
    *("Array", "Flavor", "Record", "Promise", "Error", "Object", "String", "Number", "Boolean"),
    *("FieldError", "Problem", "Step", "Path", "Check", "Rule", "Flags", "ObjectRules", "ArrayRules"),
)
_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_PRIMITIVES = {"integer": "number", "bytes": "string"}


def typescript_types(documents: Mapping[str, Document], *, source: str = "") -> str:
    """One file with a declaration for each document, under its key, and for the types that they name."""
    registry = TypeRegistry(TAKEN)
    for name in sorted(documents):
        registry.add(documents[name], prefix=name)
    roots = [registry.root(pascal(name), documents[name], prefix=name) for name in sorted(documents)]
    return "\n".join([*(f"// {line}" for line in header_lines(source)), "", FLAVOR, declarations(registry, roots)])


def declarations(registry: TypeRegistry, roots: Iterable[NamedType]) -> str:
    """All declarations, by name; a root that is only a reference of its own name is left out."""
    types = {each.name: each for each in registry.types.values()}
    types = {each.name: each for each in roots} | types
    return "\n".join(_declaration(types[name]) for name in sorted(types))


def _declaration(named: NamedType) -> str:
    comment = _comment(named.schema.description, "")
    schema = named.schema
    text = type_text(schema, named.names.__getitem__)
    if text == named.name:
        return ""  # the definition says it
    return f"{comment}export type {named.name} = {text};\n"


def type_text(schema: GType, name_of: Callable[[str], str], depth: int = 0) -> str:
    """A type as an expression."""
    text = _text(schema, name_of, depth)
    if schema.brand and isinstance(schema, (Primitive, UnionOf)):
        text = f"Flavor<{text}, {literal(schema.brand)}>"
    return f"{text} | null" if schema.nullable and text != "null" else text


def _text(schema: GType, name_of: Callable[[str], str], depth: int) -> str:
    def inner(each: GType) -> str:
        return type_text(each, name_of, depth + 1)

    def grouped(each: GType) -> str:
        text = inner(each)
        return f"({text})" if " | " in text or " & " in text else text

    match schema:
        case Primitive():
            return _PRIMITIVES.get(schema.primitive_type, schema.primitive_type)
        case LiteralOf():
            return literal(schema.value)
        case Enumeration():
            return " | ".join(dict.fromkeys(map(literal, schema.values))) or "never"
        case ObjectOf():
            return _object(schema, inner, depth)
        case ArrayOf():
            return f"Array<{inner(schema.items)}>"
        case TupleOf():
            return f"[{', '.join(_item(each, inner) for each in schema.items)}]"
        case UnionOf():
            return " | ".join(dict.fromkeys(map(grouped, schema.types))) or "never"
        case IntersectionOf():
            return " & ".join(dict.fromkeys(map(grouped, schema.types))) or "unknown"
        case Ref():
            return name_of(schema.ref)
        case AnyOf():
            return "any"
        case UnknownOf():
            return "unknown"
        case NeverOf():
            return "never"


def _item(schema: GType, inner: Callable[[GType], str]) -> str:
    return f"({inner(schema)})?" if schema.optional else inner(schema)


def _object(schema: ObjectOf, inner: Callable[[GType], str], depth: int) -> str:
    more = schema.additional_properties
    if not schema.properties:
        if isinstance(more, bool):
            return "Record<string, unknown>" if more else "Record<string, never>"
        return f"Record<string, {inner(more)}>"
    indent = "  " * (depth + 1)
    lines = ["{"]
    for name, each in schema.properties.items():
        mark = "" if is_required(schema, name) else "?"
        lines.append(f"{_comment(_said(each), indent)}{indent}{key(name)}{mark}: {inner(each)};")
    if not isinstance(more, bool):
        lines.append(f"{indent}[name: string]: unknown;")
    return "\n".join([*lines, "  " * depth + "}"])


def _said(schema: GType) -> str:
    parts = [schema.description]
    if isinstance(schema, Primitive) and schema.primitive_type == "bytes":
        parts.append("Base64.")
    return " ".join(part for part in parts if part)


def _comment(text: str, indent: str) -> str:
    safe = text.replace("*/", "*\\/")
    return f"{indent}/** {' '.join(safe.split())} */\n" if safe.strip() else ""


def key(name: str) -> str:
    """A property's name in an object type or literal."""
    return name if _IDENTIFIER.fullmatch(name) and name != "__proto__" else literal(name)


def literal(value: Any) -> str:
    """A JSON value as an expression; integers beyond what numbers hold exactly are rounded, as they are at run time."""
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        try:
            return repr(float(value))
        except OverflowError:
            return "Infinity" if value > 0 else "-Infinity"
    return json.dumps(value)
