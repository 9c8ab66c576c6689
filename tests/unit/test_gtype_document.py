"""Documents: what is read, what is refused, and when two of them are the same type."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import UNSET

from gati_core.errors import MalformedGType
from gati_core.gtype import (
    ANY,
    ArrayOf,
    Document,
    LiteralOf,
    ObjectOf,
    Primitive,
    Ref,
    TupleOf,
    UnionOf,
    Validator,
    clone,
    fingerprint,
    read_document,
    walk,
    write_document,
)

TEXT = Primitive(primitive_type="string")
TREE = Document(
    root=Ref(ref="Node", nullable=True),
    definitions={
        "Node": ObjectOf(
            properties={"name": TEXT, "children": ArrayOf(items=Ref(ref="Node"))},
            required=["name", "children"],
        )
    },
    metadata={"name": "Tree"},
)


def test_a_document_survives_writing_and_reading() -> None:
    assert read_document(write_document(TREE)) == TREE
    assert read_document(json.loads(write_document(TREE))) == TREE


def test_a_default_of_null_is_not_the_same_as_none() -> None:
    absent, null = Document(root=TEXT), Document(root=Primitive(primitive_type="string", nullable=True, default=None))

    assert read_document(write_document(absent)).root.default is UNSET
    assert read_document(write_document(null)).root.default is None


def test_a_missing_version_means_the_first() -> None:
    assert read_document(b'{"root": {"kind": "any"}}') == ANY


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "not a GType document"),
        (b"\xff", "not a GType document"),
        (b"[" * 100_000, "not a GType document"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `root`"),
        (b'{"root": {"kind": "circle"}}', "Invalid value 'circle'"),
        (b'{"root": {"kind": "any"}, "colour": 1}', "unknown field `colour`"),
        (b'{"root": {"kind": "any", "colour": 1}}', "unknown field `colour`"),
        (b'{"root": {"kind": "primitive", "primitive_type": "word"}}', "Invalid enum value 'word'"),
        (b'{"version": "2.0", "root": {"kind": "any"}}', r"of version '2\.0', this process reads 1\.0: upgrade it"),
        (b'{"version": 1, "root": {"kind": "any"}}', "of version 1"),
        (b'{"root": {"kind": "ref", "$ref": "Order"}}', r"\$: there is no definition 'Order'; defined: none"),
        (
            b'{"root": {"kind": "array", "items": {"kind": "ref", "$ref": "X"}},'
            b' "definitions": {"Y": {"kind": "any"}}}',
            r"\$\[\]: there is no definition 'X'; defined: Y",
        ),
        (b'{"root": {"kind": "object", "required": ["a", "b"]}}', r"\$: required names no property: a, b"),
        (
            b'{"root": {"kind": "any"}, "definitions": {"A": {"kind": "ref", "$ref": "B"},'
            b' "B": {"kind": "ref", "$ref": "A"}}}',
            "#A: refers only to itself, by A → B → A",
        ),
        (b'{"root": {"kind": "any"}, "metadata": {"x": "' + b"a" * 512_000 + b'"}}', "exceeds the limit of 512000"),
    ],
)
def test_what_is_no_document_is_refused_and_says_where(data: bytes, reason: str) -> None:
    with pytest.raises(MalformedGType, match=reason):
        read_document(data)


def test_types_may_be_nested_up_to_a_limit() -> None:
    def nested(levels: int) -> bytes:
        return b'{"root": ' + b'{"kind": "array", "items": ' * levels + b'{"kind": "any"}' + b"}" * levels + b"}"

    assert read_document(nested(50))
    with pytest.raises(MalformedGType, match="nested more than 50 deep"):
        read_document(nested(51))


# -- identity ------------------------------------------------------------------------------------


def _properties(**properties: Any) -> Document:
    return Document(root=ObjectOf(properties=properties, required=sorted(properties)))


def test_the_order_of_names_is_no_part_of_a_type() -> None:
    one = ObjectOf(properties={"a": TEXT, "b": TEXT}, required=["a", "b"])
    other = ObjectOf(properties={"b": TEXT, "a": TEXT}, required=["b", "a"])

    assert fingerprint(Document(root=one)) == fingerprint(Document(root=other))


def test_version_and_metadata_are_no_part_of_a_type() -> None:
    named = Document(root=TEXT, metadata={"name": "Name", "source": "shop/models.py:3"})

    assert fingerprint(named) == fingerprint(Document(root=TEXT))


@pytest.mark.parametrize(
    "other",
    [
        _properties(a=Primitive(primitive_type="integer")),
        _properties(a=Primitive(primitive_type="string", nullable=True)),
        _properties(a=Primitive(primitive_type="string", validators=[Validator("min_length", 1)])),
        _properties(a=Primitive(primitive_type="string", brand="email")),
        _properties(a=TEXT, b=TEXT),
        Document(root=ObjectOf(properties={"a": TEXT})),
        Document(root=ObjectOf(properties={"a": TEXT}, required=["a"], additional_properties=False)),
    ],
)
def test_everything_that_changes_what_is_accepted_changes_the_fingerprint(other: Document) -> None:
    assert fingerprint(other) != fingerprint(_properties(a=TEXT))


def test_a_clone_shares_nothing() -> None:
    copy = clone(TREE)

    node = copy.definitions["Node"]
    assert copy == TREE
    assert isinstance(node, ObjectOf)
    node.properties["more"] = TEXT
    assert copy != TREE


def test_walking_names_every_place_once() -> None:
    document = Document(
        root=UnionOf(types=[TupleOf(items=[TEXT, LiteralOf(value=1)]), Ref(ref="Map")]),
        definitions={"Map": ObjectOf(properties={"a": TEXT}, additional_properties=TEXT, property_names=TEXT)},
    )

    assert sorted((where, depth) for where, depth, _ in walk(document)) == [
        ("#Map", 0),
        ("#Map.a", 1),
        ("#Map{name}", 1),
        ("#Map{}", 1),
        ("$", 0),
        ("$|0", 1),
        ("$|0[0]", 2),
        ("$|0[1]", 2),
        ("$|1", 1),
    ]
