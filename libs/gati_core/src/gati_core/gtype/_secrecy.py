"""What may not be shown, beyond the types that say so themselves.

A diagnostic shows the value that it is about, and that value may be a secret although the type that refused
it is not: a union with a secret member, a reference to a secret type, the digits inside a secret object.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gati_core.gtype._brands import is_secret
from gati_core.gtype._model import (
    ArrayOf,
    Document,
    GType,
    IntersectionOf,
    ObjectOf,
    Ref,
    TupleOf,
    UnionOf,
    walk,
)


def spread_secrets(document: Document) -> Document:
    """The document with `secret` marked wherever a value of a secret type can be met.

    Upwards, a union, intersection or reference is secret when something it stands for is; downwards, so is
    everything inside a secret type. A definition is secret when any of its uses is.
    """
    if not any(is_secret(schema) for _, _, schema in walk(document)):
        return document
    names: set[str] = set()
    while True:
        known = len(names)
        names.update(name for name, schema in document.definitions.items() if _stands_for_secret(schema, names))
        marked = {name: _marked(schema, name in names, names) for name, schema in document.definitions.items()}
        root = _marked(document.root, False, names)
        if len(names) == known:
            return msgspec.structs.replace(document, root=root, definitions=marked)


def _stands_for_secret(schema: GType, names: set[str]) -> bool:
    if is_secret(schema) or (isinstance(schema, Ref) and schema.ref in names):
        return True
    return isinstance(schema, (UnionOf, IntersectionOf)) and any(_stands_for_secret(e, names) for e in schema.types)


def _marked(schema: GType, is_inside: bool, names: set[str]) -> GType:
    """A copy of `schema` with its secrets marked; adds what they refer to to `names`."""
    secret = is_inside or _stands_for_secret(schema, names)
    changes: dict[str, Any] = {}
    if secret:
        changes["metadata"] = {**schema.metadata, "secret": True}
    match schema:
        case ObjectOf():
            changes["properties"] = {name: _marked(each, secret, names) for name, each in schema.properties.items()}
            if not isinstance(schema.additional_properties, bool):
                changes["additional_properties"] = _marked(schema.additional_properties, secret, names)
        case ArrayOf():
            changes["items"] = _marked(schema.items, secret, names)
        case TupleOf():
            changes["items"] = [_marked(each, secret, names) for each in schema.items]
        case UnionOf() | IntersectionOf():
            changes["types"] = [_marked(each, secret, names) for each in schema.types]
        case Ref() if secret:
            names.add(schema.ref)
        case _:
            pass
    return msgspec.structs.replace(schema, **changes) if changes else schema
