"""Limits for texts with patterns: a pattern is never matched against more text than it can be matched in quickly."""

from __future__ import annotations

import sys

import msgspec

from gati_core.errors import UnsupportedType
from gati_core.gtype._model import ArrayOf, Document, GType, ObjectOf, TupleOf, UnionOf, Validator, walk
from gati_core.gtype._patterns import pattern_limit


def with_pattern_limits(document: Document, where: str) -> tuple[Document, int]:
    """Give texts with patterns the length up to which matching them is quick, and refuse those that never are.

    Returns the shortest such length as well.
    """
    shortest = sys.maxsize
    changed: dict[int, GType] = {}
    for place, _, schema in walk(document):
        patterns = [each.value for each in schema.validators if each.type == "pattern"]
        if not patterns:
            continue
        path = where + place[1:] if place.startswith("$") else place.removeprefix("#")
        try:
            limits = [limit for limit in map(pattern_limit, patterns) if limit is not None]
        except UnsupportedType as exc:
            raise UnsupportedType(f"{path}: {exc}") from exc
        if not limits:
            continue
        declared = [each.value for each in schema.validators if each.type == "max_length"]
        if not declared:
            changed[id(schema)] = msgspec.structs.replace(
                schema, validators=[Validator("max_length", min(limits)), *schema.validators]
            )
            shortest = min(shortest, *limits)
        elif min(declared) > min(limits):
            raise UnsupportedType(
                f"{path}: max_length {min(declared)} is too long for the pattern {patterns[0]!r}: beyond {min(limits)}"
                " characters it may take very long; lower max_length, or anchor the pattern with ^ and simplify it"
            )
    return (_replaced(document, changed) if changed else document), shortest


def _replaced(document: Document, changed: dict[int, GType]) -> Document:
    """The document with some types, given by the `id` of the object, in the place of others."""

    def swap(schema: GType) -> GType:
        found = changed.get(id(schema), schema)
        match found:
            case ObjectOf():
                more = found.additional_properties
                return msgspec.structs.replace(
                    found,
                    properties={name: swap(inner) for name, inner in found.properties.items()},
                    additional_properties=more if isinstance(more, bool) else swap(more),
                    property_names=None if found.property_names is None else swap(found.property_names),
                )
            case ArrayOf():
                return msgspec.structs.replace(found, items=swap(found.items))
            case TupleOf():
                return msgspec.structs.replace(found, items=[swap(inner) for inner in found.items])
            case UnionOf():
                return msgspec.structs.replace(found, types=[swap(inner) for inner in found.types])
            case _:
                return found

    definitions = {name: swap(schema) for name, schema in document.definitions.items()}
    return msgspec.structs.replace(document, root=swap(document.root), definitions=definitions)
