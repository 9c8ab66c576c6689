"""Types as JSON Schema 2020-12.

What JSON Schema has no word for is kept in keywords that start with `x-gati-`, which other readers pass
over; `from_json_schema` makes the same type of it again. Formats are written as `pattern` too, since few
validators look at `format`. Where a schema accepts more than its type does: dates that no calendar has, `custom`
checks, patterns that ECMAScript has no words for, and objects with the tag of one member of a union that
fit another member.
Where the numbers 1 and 1.0 are two things to a type, they are one to JSON Schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET

from gati_core.gtype._brands import expand_brands
from gati_core.gtype._expected import tuple_lengths
from gati_core.gtype._interpreter import tag_of
from gati_core.gtype._json_keywords import BASE64, NULL, PREFIX, is_bytes, placed, validators_in
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
    Scalar,
    TupleOf,
    UnionOf,
    UnknownOf,
    is_required,
)

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ANNOTATIONS: dict[str, type] = {
    "title": str,
    "examples": list,
    "deprecated": bool,
    "readOnly": bool,
    "writeOnly": bool,
    "contentMediaType": str,
}
"""Keywords that say something about a type and ask nothing of its values; kept in its metadata."""

Refs = Callable[[str], str]


def to_json_schema(document: Document, *, id: str = "", side: str = "") -> dict[str, Any]:
    """A schema of its own, with the definitions of the document under `$defs`.

    The checks of brands are written out. The name in the document's metadata becomes the title.

    Args:
        id: its `$id`, an absolute URI.
        side: `request` or `response`, kept as `x-gati-side`; which values fit does not depend on it.
    """
    document = expand_brands(document)
    writer = _Writer(document.definitions, lambda name: f"#/$defs/{pointer_step(name)}")
    root = writer.schema(document.root)
    # The title is the name of the document, so what the root says of a title itself is metadata.
    title = root.pop("title", None)
    if title is not None:
        root[f"{PREFIX}metadata"] = {"title": title, **root.get(f"{PREFIX}metadata", {})}
    name = document.metadata.get("name") or title
    found: dict[str, Any] = {"$schema": DIALECT}
    found |= {"$id": id} if id else {}
    found |= {"title": name} if isinstance(name, str) else {}
    found |= root
    found |= {f"{PREFIX}side": side} if side else {}
    definitions = {each: writer.schema(schema) for each, schema in document.definitions.items()}
    return {**found, "$defs": definitions} if definitions else found


def schema_object(schema: GType, definitions: Mapping[str, GType], *, refs: Refs) -> dict[str, Any]:
    """One type as a schema object of OpenAPI 3.1; `refs` makes the URI under which a definition is found."""
    document = expand_brands(Document(root=schema, definitions=dict(definitions)))
    return _Writer(document.definitions, refs).schema(document.root)


def pointer_step(name: str) -> str:
    """A name as one step of a JSON pointer in the fragment of a URI."""
    return quote(name.replace("~", "~0").replace("/", "~1"), safe="~!$&'()*+,;=:@-._")


def base_of(values: list[Scalar]) -> str:
    """What values have in common, as the extraction from annotations names it."""
    kinds = {type(value) for value in values}
    if kinds == {str}:
        return "string"
    return "integer" if kinds == {int} else "mixed"


class _Writer:
    def __init__(self, definitions: Mapping[str, GType], refs: Refs) -> None:
        self._definitions = definitions
        self._refs = refs

    def schema(self, schema: GType) -> dict[str, Any]:
        """A type and all inside it."""
        found = _annotations(schema)
        found |= self._nullable(schema) if schema.nullable else self._structure(schema)
        of_bytes = is_bytes(schema)
        top, more = placed(schema.validators, of_bytes=of_bytes, nullable=schema.nullable)
        found |= top
        if more:
            found["allOf"] = [*found.get("allOf", []), *more]
        if more or validators_in(top, of_bytes=of_bytes) != schema.validators:
            found[f"{PREFIX}validators"] = msgspec.to_builtins(schema.validators)
        if schema.optional:
            found[f"{PREFIX}optional"] = True
        if schema.brand:
            found[f"{PREFIX}brand"] = schema.brand
        return found

    def _nullable(self, schema: GType) -> dict[str, Any]:
        found = self._structure(schema)
        match schema:
            case Primitive(primitive_type="null" | "undefined") | AnyOf() | UnknownOf():
                return {**found, f"{PREFIX}nullable": True}
            case Primitive() | ObjectOf() | ArrayOf() | TupleOf():
                return {**found, "type": [found["type"], "null"]}
            case Enumeration():
                kinds = {"type": [found["type"], "null"]} if "type" in found else {}
                return {**found, **kinds, "enum": [*found["enum"], None]}
            case UnionOf() if schema.types:
                return {**found, "anyOf": [*found["anyOf"], NULL]}
            case _:
                return {"anyOf": [found, NULL]}

    def _structure(self, schema: GType) -> dict[str, Any]:
        match schema:
            case Primitive(primitive_type="undefined"):
                return {"not": {}, f"{PREFIX}kind": "undefined"}
            case Primitive(primitive_type="bytes"):
                return {"type": "string", "contentEncoding": "base64", "pattern": BASE64}
            case Primitive():
                return {"type": schema.primitive_type}
            case LiteralOf():
                return {"const": schema.value}
            case Enumeration():
                return _enumeration(schema)
            case ObjectOf():
                return self._object(schema)
            case ArrayOf():
                return self._array(schema)
            case TupleOf():
                return self._tuple(schema)
            case UnionOf():
                return self._union(schema)
            case IntersectionOf():
                members = {"allOf": [self.schema(each) for each in schema.types]} if schema.types else {}
                return {**members, f"{PREFIX}kind": "intersection"}
            case Ref():
                return {"$ref": self._refs(schema.ref)}
            case AnyOf():
                return {}
            case UnknownOf():
                return {f"{PREFIX}kind": "unknown"}
            case NeverOf():
                return {"not": {}}

    def _object(self, schema: ObjectOf) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "object"}
        if schema.properties:
            found["properties"] = {name: self.schema(inner) for name, inner in schema.properties.items()}
        required = dict.fromkeys(name for name in schema.required if is_required(schema, name))
        if required:
            found["required"] = list(required)
        more = schema.additional_properties
        if more is not True:
            found["additionalProperties"] = more if more is False else self.schema(more)
        if schema.property_names is not None:
            names = self.schema(schema.property_names)
            # The keyword is about all names, ours about those that are not declared.
            declared = [{"enum": sorted(schema.properties)}] if schema.properties else []
            found["propertyNames"] = {"anyOf": [*declared, names]} if declared else names
        bounds = {"minProperties": schema.min_properties, "maxProperties": schema.max_properties}
        return found | {word: count for word, count in bounds.items() if count is not None}

    def _array(self, schema: ArrayOf) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "array", "items": self.schema(schema.items)}
        bounds = {"minItems": schema.min_items, "maxItems": schema.max_items}
        found |= {word: count for word, count in bounds.items() if count is not None}
        return found | ({"uniqueItems": True} if schema.unique_items else {})

    def _tuple(self, schema: TupleOf) -> dict[str, Any]:
        least, _ = tuple_lengths(schema)
        if not schema.items:  # `prefixItems` must not be empty
            return {"type": "array", "maxItems": 0, f"{PREFIX}kind": "tuple"}
        items = [self.schema(each) for each in schema.items]
        return {"type": "array", "prefixItems": items, "items": False, **({"minItems": least} if least else {})}

    def _union(self, schema: UnionOf) -> dict[str, Any]:
        if not schema.types:
            tag = {f"{PREFIX}discriminator": schema.discriminator} if schema.discriminator else {}
            return {"not": {}, f"{PREFIX}kind": "union", **tag}
        members = [self.schema(each) for each in schema.types]
        found: dict[str, Any] = {"anyOf": members}
        if NULL in members:
            found[f"{PREFIX}nullable"] = schema.nullable
        if len(members) == 1:
            found[f"{PREFIX}kind"] = "union"
        if schema.discriminator:
            found["discriminator"] = self._discriminator(schema)
        elif all(isinstance(each, (Ref, ObjectOf)) for each in schema.types):
            found[f"{PREFIX}discriminator"] = ""  # not to be found by looking at the members
        return found

    def _discriminator(self, schema: UnionOf) -> dict[str, Any]:
        """As OpenAPI has it; without a mapping it would take the names of definitions for tags."""
        mapping: dict[str, str] = {}
        for each in schema.types:
            tag = tag_of(each, schema.discriminator, self._definitions)
            if isinstance(each, Ref) and isinstance(tag, str):
                mapping.setdefault(tag, self._refs(each.ref))
        return {"propertyName": schema.discriminator, **({"mapping": mapping} if mapping else {})}


def _annotations(schema: GType) -> dict[str, Any]:
    found: dict[str, Any] = {}
    more: dict[str, Any] = {}
    for key, value in schema.metadata.items():
        if isinstance(value, ANNOTATIONS.get(key, ())):
            found[key] = value
        else:
            more[key] = value
    if schema.description:
        found["description"] = schema.description
    if schema.default is not UNSET:
        found["default"] = schema.default
    return {**found, f"{PREFIX}metadata": more} if more else found


def _enumeration(schema: Enumeration) -> dict[str, Any]:
    values = schema.values
    found: dict[str, Any] = {}
    wanted = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}.get(schema.base_type, ())
    if values and all(type(value) in wanted for value in values):
        found["type"] = schema.base_type
    elif not values or schema.base_type != base_of(values):
        found[f"{PREFIX}base-type"] = schema.base_type
    found["enum"] = list(values)
    if None in values:
        found[f"{PREFIX}nullable"] = schema.nullable
    return found
