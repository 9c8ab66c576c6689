"""Whether every value of one type is a value of another."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, TypeAlias

from msgspec import structs

from gati_core.gtype._expected import tuple_lengths
from gati_core.gtype._interpreter import errors_of, is_same
from gati_core.gtype._model import AnyOf, ArrayOf, Document, GType, ObjectOf, Primitive, TupleOf
from gati_core.gtype.diff._constraints import allows_all, has_format
from gati_core.gtype.diff._shapes import Shape, Shapes, required_of

_DEEPEST = 50
"""Unions and intersections inside each other that a single value is followed into."""
# One of each: types are told apart by identity.
_ANYTHING = AnyOf()
_ANY_NAME = Primitive(primitive_type="string")

Question: TypeAlias = "tuple[GType, GType, bool]"
"""A type, one that may take all its values, and whether null is asked about as well."""
_Key: TypeAlias = "tuple[int, int, bool]"
_Rules: TypeAlias = Generator[Question, bool, bool]


class _Begun(NamedTuple):
    """A question whose answer waits for those of others."""

    rules: _Rules
    key: _Key
    before: int
    """How much was taken for true when it was begun."""


def is_assignable(sub: Document, sup: Document, *, is_exact: bool = False) -> bool:
    """Whether every value of `sub` is a value of `sup`.

    Fields that `sub` does not declare are taken for absent, as clients send what they know. Where it cannot be
    decided (patterns that differ, members that only together take everything), the answer is no.

    Args:
        is_exact: values of `sub` have no fields but those it declares, even where others would pass; what may go
            into a type that refuses unknown fields.
    """
    if may_be_absent(sub.root) and not may_be_absent(sup.root):
        return False
    return Assignment(Shapes(sub.definitions), Shapes(sup.definitions), is_exact=is_exact).holds(sub.root, sup.root)


def may_be_absent(root: GType) -> bool:
    """Whether a body, say, need not be there."""
    return root.optional or (isinstance(root, Primitive) and root.primitive_type == "undefined")


class Assignment:
    """The relation between the types of two documents.

    A pair that is met again while it is looked at is taken to hold: recursive types have it no other way. What
    was concluded from that is forgotten when the pair turns out not to hold, so each answer is final. It is
    worked out without recursion: no chain of types is too long.
    """

    def __init__(self, sub: Shapes, sup: Shapes, *, is_exact: bool = False) -> None:
        self._sub = sub
        self._sup = sup
        self._is_exact = is_exact
        self._refuted: set[_Key] = set()
        self._assumed: set[_Key] = set()
        self._trail: list[_Key] = []

    def holds(self, sub: GType, sup: GType, *, with_null: bool = True) -> bool:
        """Whether every value of `sub` is one of `sup`; null aside, if `with_null` is not set."""
        begun: list[_Begun] = []
        answer = self._ask((sub, sup, with_null), begun)
        while begun:
            rules, key, before = begun[-1]
            try:
                question = rules.send(answer)  # type: ignore[arg-type]  # None starts it
            except StopIteration as done:
                answer = bool(done.value)
                begun.pop()
                if not answer:
                    self._refuted.add(key)
                    self._assumed.difference_update(self._trail[before:])
                    del self._trail[before:]
            else:
                answer = self._ask(question, begun)
        return bool(answer)

    def takes_name(self, name: str, names: GType | None) -> bool:
        """Whether the other document's type for names takes this one."""
        return names is None or self._takes(name, self._sup.of(names), frozenset(), 0)

    def _ask(self, question: Question, begun: list[_Begun]) -> bool | None:
        sub, sup, with_null = question
        key = (id(sub), id(sup), with_null)
        if key in self._refuted:
            return False
        if key in self._assumed:
            return True
        begun.append(_Begun(self._rules(self._sub.of(sub), self._sup.of(sup), question), key, len(self._trail)))
        self._assumed.add(key)
        self._trail.append(key)
        return None

    def _rules(self, a: Shape, b: Shape, question: Question) -> _Rules:
        sub, sup, with_null = question
        if with_null and a.nullable and not b.nullable:
            return False
        if a.kind == "never":
            return True
        if a.kind == "union":
            for member in a.members:
                if not (yield (member, sup, False)):
                    return False
            return True
        if a.kind == "choices" or (a.kind == "boolean" and b.kind != "boolean"):
            checks = frozenset(each.value for each in a.validators if each.type == "custom")
            return all(self._takes(value, b, checks, 0) for value in (a.values or (False, True)))
        for member in a.members:  # of an intersection: one that fits is enough
            if (yield (member, sup, False)):
                return True
        if not allows_all(a, b):
            return False
        if b.kind in ("union", "intersection"):
            for member in b.members:
                if (yield (sub, member, False)) == (b.kind == "union"):
                    return b.kind == "union"
            return b.kind == "intersection"
        return (yield from self._kinds(a, b))

    def _kinds(self, a: Shape, b: Shape) -> _Rules:
        match a.node, b.node:
            case ObjectOf(), ObjectOf():
                return (yield from self._objects(a.node, b.node))
            case ArrayOf(), ArrayOf():
                fits = (b.node.min_items or 0) <= (a.node.min_items or 0) and _within(
                    a.node.max_items, b.node.max_items
                )
                if not fits or (b.node.unique_items and not a.node.unique_items):
                    return False
                return a.node.max_items == 0 or (yield (a.node.items, b.node.items, True))
            case ((TupleOf() | ArrayOf()), (TupleOf() | ArrayOf())):
                return (yield from self._tuples(a.node, b.node))
        if b.kind == "any" or (a.kind == b.kind and a.kind != "intersection"):
            return True
        if (a.kind, b.kind) == ("string", "bytes"):
            return has_format(a.validators, "base64") and not b.validators
        return (a.kind, b.kind) in (("integer", "number"), ("bytes", "string"))

    def _objects(self, a: ObjectOf, b: ObjectOf) -> _Rules:
        needed, demanded = required_of(a), required_of(b)
        least = max(a.min_properties or 0, len(needed))
        most = len(a.properties) if self._is_closed(a) else None
        most = a.max_properties if most is None else min(most, a.max_properties or most)
        if (b.min_properties or 0) > least or not _within(most, b.max_properties):
            return False
        more, takes_more = a.additional_properties, b.additional_properties
        for name, wanted in b.properties.items():
            if name in demanded and name not in needed:
                return False
            if name in a.properties:
                if not (yield (a.properties[name], wanted, True)):
                    return False
            elif not isinstance(more, bool) and not (yield (more, wanted, True)):
                return False
        for name, given in a.properties.items():
            if name in b.properties:
                continue
            if takes_more is False or not self.takes_name(name, b.property_names):
                return False
            if takes_more is not True and not (yield (given, takes_more, True)):
                return False
        if self._is_closed(a):
            return True
        if takes_more is False:
            return False
        if b.property_names is not None and not (yield (a.property_names or _ANY_NAME, b.property_names, True)):
            return False
        if takes_more is True:
            return True
        return (yield (_ANYTHING if isinstance(more, bool) else more, takes_more, True))

    def _is_closed(self, schema: ObjectOf) -> bool:
        more = schema.additional_properties
        return more is False or (more is True and self._is_exact)

    def _tuples(self, a: TupleOf | ArrayOf, b: TupleOf | ArrayOf) -> _Rules:
        """Lists of which at least one has a type for each of its items."""
        least, most = _lengths(a)
        fewest, largest = _lengths(b)
        if fewest > least or not _within(most, largest):
            return False
        if isinstance(b, ArrayOf) and b.unique_items and (most is None or most > 1):
            return False
        for index in range(most or 0):
            given = a.items if isinstance(a, ArrayOf) else a.items[index]
            wanted = b.items if isinstance(b, ArrayOf) else b.items[index]
            if not (yield (given, wanted, True)):
                return False
        return True

    def _takes(self, value: Any, b: Shape, checks: frozenset[Any], depth: int) -> bool:
        """Whether a type takes one value that has no inside; checks are passed by who passed the same before."""
        if value is None or depth > _DEEPEST:
            return value is None and b.nullable
        rules = [each for each in b.validators if each.type != "custom"]
        if any(each.value not in checks for each in b.validators if each.type == "custom"):
            return False
        match b.kind:
            case "choices":
                return any(is_same(value, each) for each in b.values)
            case "union" | "intersection":
                found = (self._takes(value, self._sup.of(each), checks, depth + 1) for each in b.members)
                return (any(found) if b.kind == "union" else all(found)) and _passes(value, AnyOf(validators=rules))
            case "any":
                return _passes(value, AnyOf(validators=rules))
            case "object" | "array" | "tuple" | "never":
                return False
            case _:
                return _passes(value, structs.replace(b.node, validators=rules, brand="", nullable=False))


def _passes(value: Any, schema: GType) -> bool:
    return not errors_of(value, Document(root=schema))


def _lengths(schema: TupleOf | ArrayOf) -> tuple[int, int | None]:
    return tuple_lengths(schema) if isinstance(schema, TupleOf) else (schema.min_items or 0, schema.max_items)


def _within(most: int | None, limit: int | None) -> bool:
    return limit is None or (most is not None and most <= limit)
