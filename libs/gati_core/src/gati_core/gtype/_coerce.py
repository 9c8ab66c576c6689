"""From the text of paths, queries and headers to the JSON values that types are written for.

The rules, by what the type accepts at a place:

| type | text |
|---|---|
| string, and whatever JSON writes as text (dates, UUIDs, bytes, …) | itself |
| integer | `-?` and digits, up to 1000 of them |
| number | digits, with a fraction or an exponent |
| boolean | `true`, `false`, `1`, `0`, in any case |
| null | `null` in any case, and the empty text |
| array | every occurrence of the key, in order; one occurrence is a list of one |

A union takes the first that fits, in the order of this table: where text is accepted, all of it is text.
What fits nothing stays text, so that the validator can say what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gati_core.gtype._model import (
    AnyOf,
    ArrayOf,
    Document,
    Enumeration,
    GType,
    LiteralOf,
    ObjectOf,
    Primitive,
    Ref,
    TupleOf,
    UnionOf,
    UnknownOf,
)

_INTEGER = re.compile(r"-?[0-9]{1,1000}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,4})?")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


class Coercion:
    """Turns text into values for one document whose root is an object; made once per handler."""

    def __init__(self, document: Document) -> None:
        self._names = document.definitions
        root = _target(document.root, self._names)
        properties = root.properties if isinstance(root, ObjectOf) else {}
        more = root.additional_properties if isinstance(root, ObjectOf) else True
        self._fields = {name: self._rule(schema) for name, schema in properties.items()}
        self._more = None if isinstance(more, bool) else self._rule(more)

    @property
    def names(self) -> list[str]:
        """Of the fields that are declared."""
        return list(self._fields)

    def values(self, given: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """JSON values by name.

        Args:
            given: every occurrence of every name, in order.
        """
        return {name: self._value(self._fields.get(name, self._more), texts) for name, texts in given.items()}

    @staticmethod
    def _value(rule: _Rule | None, texts: Sequence[str]) -> Any:
        if rule is None:
            return texts[0] if len(texts) == 1 else list(texts)
        if rule.is_list:
            return [_scalar(rule.kinds, text) for text in texts]
        if len(texts) > 1:
            return list(texts)  # repeated where once is allowed: the validator says so
        return _scalar(rule.kinds, texts[0])

    def _rule(self, schema: GType) -> _Rule:
        kinds: set[str] = set()
        is_list = self._collect(schema, kinds, 0)
        return _Rule(frozenset(kinds), is_list)

    def _collect(self, schema: GType, kinds: set[str], depth: int) -> bool:
        """Add what is accepted here to `kinds`; returns whether it is a list."""
        if schema.nullable:
            kinds.add("null")
        schema = _target(schema, self._names)
        if schema.nullable:
            kinds.add("null")
        match schema:
            case Primitive():
                kinds.add("string" if schema.primitive_type == "bytes" else schema.primitive_type)
            case LiteralOf():
                kinds.add(_kind_of(schema.value))
            case Enumeration():
                kinds.update(_kind_of(value) for value in schema.values)
            case AnyOf() | UnknownOf():
                kinds.add("string")
            case ArrayOf() | TupleOf():
                items = [schema.items] if isinstance(schema, ArrayOf) else schema.items
                for inner in items if depth < 2 else []:
                    self._collect(inner, kinds, depth + 1)
                return True
            case UnionOf():
                return any([self._collect(inner, kinds, depth + 1) for inner in schema.types] if depth < 8 else [])
            case _:
                pass  # objects have no place in a query: the validator says so
        return False


class _Rule:
    __slots__ = ("is_list", "kinds")

    def __init__(self, kinds: frozenset[str], is_list: bool) -> None:
        self.kinds = kinds
        self.is_list = is_list


def _scalar(kinds: frozenset[str], text: str) -> Any:
    if "string" in kinds:
        return text
    if "integer" in kinds and _INTEGER.fullmatch(text):
        return int(text)
    if "number" in kinds and _NUMBER.fullmatch(text):
        return float(text) if not _INTEGER.fullmatch(text) else int(text)
    if "boolean" in kinds and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if "null" in kinds and text.lower() in ("null", ""):
        return None
    return text


def _target(schema: GType, names: Mapping[str, GType]) -> GType:
    while isinstance(schema, Ref):
        schema = names[schema.ref]
    return schema


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return {str: "string", int: "integer"}.get(type(value), "number")
