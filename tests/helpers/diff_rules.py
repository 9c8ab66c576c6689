"""Every rule of compatibility once: two types, what differs, and what that means to requests and responses."""

from __future__ import annotations

from typing import Any

from gati_core.gtype import (
    AnyOf,
    ArrayOf,
    Enumeration,
    GType,
    LiteralOf,
    ObjectOf,
    Primitive,
    TupleOf,
    UnionOf,
    Validator,
)

TEXT = Primitive(primitive_type="string")
INTEGER = Primitive(primitive_type="integer")
NUMBER = Primitive(primitive_type="number")
NULLABLE = Primitive(primitive_type="string", nullable=True)


def limited(*validators: tuple[str, Any], kind: str = "string") -> Primitive:
    return Primitive(primitive_type=kind, validators=[Validator(name, value) for name, value in validators])  # type: ignore[arg-type]


def fields(*required: str, closed: bool = False, **properties: Any) -> ObjectOf:
    return ObjectOf(properties=properties, required=list(required), additional_properties=not closed)


def choices(*values: Any) -> Enumeration:
    return Enumeration(values=list(values))


def tagged(tag: str, **properties: GType) -> ObjectOf:
    return ObjectOf(properties={"type": LiteralOf(value=tag), **properties}, required=["type", *properties])


def union(*types: GType, tag: str = "") -> UnionOf:
    return UnionOf(types=list(types), discriminator=tag)


B, N = "breaking", "non-breaking"
RULES: list[tuple[str, GType, GType, str, str, str, str]] = [
    ("required field added", fields(), fields("a", a=TEXT), "add", "/a", B, N),
    ("optional field added", fields(), fields(a=TEXT), "add", "/a", N, N),
    ("required field removed", fields("a", a=TEXT), fields(), "remove", "/a", N, B),
    ("optional field removed", fields(a=TEXT), fields(), "remove", "/a", N, N),
    ("optional to required", fields(a=TEXT), fields("a", a=TEXT), "modify", "/a", B, N),
    ("required to optional", fields("a", a=TEXT), fields(a=TEXT), "modify", "/a", N, B),
    ("to nullable", fields(a=TEXT), fields(a=NULLABLE), "modify", "/a", N, B),
    ("from nullable", fields(a=NULLABLE), fields(a=TEXT), "modify", "/a", B, N),
    ("type changed", fields(a=TEXT), fields(a=INTEGER), "modify", "/a", B, B),
    ("type widened", fields(a=INTEGER), fields(a=NUMBER), "modify", "/a", N, B),
    ("type narrowed", fields(a=NUMBER), fields(a=INTEGER), "modify", "/a", B, N),
    ("one type more", TEXT, union(TEXT, INTEGER), "modify", "", N, B),
    ("to anything", TEXT, AnyOf(), "modify", "", N, B),
    ("from anything", AnyOf(), TEXT, "modify", "", B, N),
    ("literal to text", LiteralOf(value="a"), TEXT, "modify", "", N, B),
    ("bound tightened", limited(("min", 1), kind="integer"), limited(("min", 2), kind="integer"), "modify", "", B, N),
    ("bound loosened", limited(("max", 1), kind="integer"), limited(("max", 2), kind="integer"), "modify", "", N, B),
    ("bound made exclusive", limited(("min", 1)), limited(("exclusive_min", 1)), "modify", "", B, N),
    ("bound added", TEXT, limited(("max_length", 5)), "modify", "", B, N),
    ("bound removed", limited(("min_length", 5)), TEXT, "modify", "", N, B),
    ("pattern added", TEXT, limited(("pattern", "^a")), "modify", "", B, N),
    ("pattern removed", limited(("pattern", "^a")), TEXT, "modify", "", N, B),
    ("multiple tightened", limited(("multiple_of", 2)), limited(("multiple_of", 4)), "modify", "", B, N),
    ("items must differ", ArrayOf(items=TEXT), ArrayOf(items=TEXT, unique_items=True), "modify", "", B, N),
    ("fewer items", ArrayOf(items=TEXT), ArrayOf(items=TEXT, max_items=3), "modify", "", B, N),
    ("choice added", choices("a", "b"), choices("a", "b", "c"), "add", "", N, B),
    ("choice removed", choices("a", "b", "c"), choices("a", "b"), "remove", "", B, N),
    ("literal to choices", LiteralOf(value="a"), choices("a", "b"), "add", "", N, B),
    ("unknown refused", fields(), fields(closed=True), "modify", "", B, N),
    ("unknown allowed", fields(closed=True), fields(), "modify", "", N, N),
    ("removed and refused", fields(a=TEXT, closed=True), fields(closed=True), "remove", "/a", B, N),
    ("in an array", ArrayOf(items=TEXT), ArrayOf(items=INTEGER), "modify", "/[]", B, B),
    ("in a tuple", TupleOf(items=[TEXT, TEXT]), TupleOf(items=[TEXT, INTEGER]), "modify", "/1", B, B),
    ("in a map", ObjectOf(additional_properties=TEXT), ObjectOf(additional_properties=INTEGER), "modify", "/{}", B, B),
    ("odd names", fields(), ObjectOf(properties={"a/b~c": TEXT}), "add", "/a~1b~0c", N, N),
    ("union member added", union(TEXT, INTEGER), union(TEXT, INTEGER, fields()), "add", "/|object", N, B),
    ("union member removed", union(TEXT, INTEGER, fields()), union(TEXT, INTEGER), "remove", "/|object", B, N),
    (
        "in a tagged member",
        union(tagged("a", x=TEXT), tagged("b"), tag="type"),
        union(tagged("b"), tagged("a", x=INTEGER), tag="type"),
        "modify",
        "/|object/x",
        B,
        B,
    ),
]
