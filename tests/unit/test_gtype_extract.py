"""From annotations to documents: what maps to what, and what is refused with the path to it."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import sys
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Required, TypedDict, TypeVar

import msgspec
import pytest
from msgspec import UNSET, Meta, Struct, UnsetType

from gati_core.errors import UnsupportedType
from gati_core.gtype import (
    AnyOf,
    ArrayOf,
    Brand,
    Checked,
    Document,
    Enumeration,
    GType,
    LiteralOf,
    ObjectOf,
    Primitive,
    Ref,
    TupleOf,
    UnionOf,
    UniqueItems,
    Validator,
    errors_of,
    extract,
    fingerprint,
    register_check,
    resolve,
)

register_check("test.isbn", lambda value: isinstance(value, str) and value.startswith("978"))

T = TypeVar("T")
UserId = NewType("UserId", str)


def text(*validators: Validator, **flags: Any) -> Primitive:
    return Primitive(primitive_type="string", validators=list(validators), **flags)


def of_format(name: str) -> Primitive:
    return text(Validator("format", name))


INTEGER = Primitive(primitive_type="integer")
NUMBER = Primitive(primitive_type="number")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    S = 1
    L = 3


class Missing(enum.Enum):
    A = "a"

    @classmethod
    def _missing_(cls, value: object) -> Missing:
        return cls.A


class Line(Struct, forbid_unknown_fields=True):
    """One line of an order.

    And more about it.
    """

    sku: Annotated[str, Meta(min_length=1, max_length=20)]
    quantity: Annotated[int, Meta(ge=1, description="Pieces.")] = 1


class Card(Struct, tag="card"):
    number: str


class Cash(Struct, tag="cash"):
    amount: int


class Tree(Struct, rename="camel"):
    own_name: str
    left_child: Tree | None = None
    all_children: list[Tree] = []


class Page(Struct, Generic[T]):
    items: list[T]
    total: int


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.5
    tags: list[str] = dataclasses.field(default_factory=list)
    seen: datetime.datetime = dataclasses.field(default_factory=datetime.datetime.now)


class Movie(TypedDict, total=False):
    title: Required[str]
    year: int


class Range(NamedTuple):
    first: int
    last: int = 10


class Owned(Struct):
    owner: UserId
    others: list[UserId] = []
    boss: UserId | None = None
    note: str | UnsetType = UNSET


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, text()),
        (int, INTEGER),
        (float, NUMBER),
        (bool, Primitive(primitive_type="boolean")),
        (None, Primitive(primitive_type="null")),
        (bytes, Primitive(primitive_type="bytes")),
        (Any, AnyOf()),
        (int | None, Primitive(primitive_type="integer", nullable=True)),
        (datetime.date, of_format("date")),
        (datetime.datetime, of_format("date-time-or-local")),
        (Annotated[datetime.datetime, Meta(tz=True)], of_format("date-time")),
        (Annotated[datetime.datetime, Meta(tz=False)], of_format("local-date-time")),
        (datetime.time, of_format("time-or-local")),
        (datetime.timedelta, of_format("duration")),
        (uuid.UUID, of_format("uuid")),
        (decimal.Decimal, UnionOf(types=[of_format("decimal"), NUMBER], brand="decimal")),
        (
            Annotated[str, Meta(min_length=2, max_length=5)],
            text(Validator("min_length", 2), Validator("max_length", 5)),
        ),
        (Annotated[str, Meta(pattern="^a+$")], text(Validator("pattern", "^a+$"))),
        (
            Annotated[float, Meta(gt=0, le=10, multiple_of=0.5)],
            Primitive(
                primitive_type="number",
                validators=[Validator("exclusive_min", 0), Validator("max", 10), Validator("multiple_of", 0.5)],
            ),
        ),
        (Annotated[str, Brand("email")], text(Validator("email"), brand="email")),
        (Annotated[str, Brand("user_id")], text(brand="user_id")),
        (Annotated[str, Brand("secret")], text(brand="secret", metadata={"secret": True})),
        (Annotated[str, Checked("test.isbn", message="no ISBN")], text(Validator("custom", "test.isbn", "no ISBN"))),
        (Literal["a"], LiteralOf(value="a")),
        (Literal["b", "a", None], Enumeration(values=["a", "b"], nullable=True)),
        (Literal[2, 1], Enumeration(values=[1, 2], base_type="integer")),
        (Literal[1, "a"], Enumeration(values=[1, "a"], base_type="mixed")),
        (list[int], ArrayOf(items=INTEGER)),
        (Annotated[list[int], Meta(min_length=1, max_length=3)], ArrayOf(items=INTEGER, min_items=1, max_items=3)),
        (Annotated[list[int], UniqueItems], ArrayOf(items=INTEGER, unique_items=True)),
        (set[int], ArrayOf(items=INTEGER)),
        (Sequence[int], ArrayOf(items=INTEGER)),
        (tuple[int, ...], ArrayOf(items=INTEGER)),
        (tuple[int, str], TupleOf(items=[INTEGER, text()])),
        (dict[str, int], ObjectOf(additional_properties=INTEGER)),
        (dict, ObjectOf()),
        (Annotated[dict[str, Any], Meta(max_length=2)], ObjectOf(max_properties=2)),
        (dict[uuid.UUID, int], ObjectOf(additional_properties=INTEGER, property_names=of_format("uuid"))),
        (int | str, UnionOf(types=[INTEGER, text()])),
        (int | str | None, UnionOf(types=[INTEGER, text()], nullable=True)),
    ],
)
def test_builtins_and_constraints(annotation: Any, schema: GType) -> None:
    assert extract(annotation).document.root == schema


def test_a_struct_is_a_definition_with_its_first_line() -> None:
    document = extract(Line).document

    assert document.root == Ref(ref="Line")
    assert document.metadata == {"name": "Line"}
    assert document.definitions["Line"] == ObjectOf(
        properties={
            "sku": text(Validator("min_length", 1), Validator("max_length", 20)),
            "quantity": Primitive(
                primitive_type="integer", validators=[Validator("min", 1)], default=1, description="Pieces."
            ),
        },
        required=["sku"],
        additional_properties=False,
        description="One line of an order.",
    )


def test_recursion_and_renamed_fields() -> None:
    tree = extract(Tree).document.definitions["Tree"]

    assert isinstance(tree, ObjectOf)
    assert tree.properties == {
        "ownName": text(),
        "leftChild": Ref(ref="Tree", nullable=True, default=None),
        "allChildren": ArrayOf(items=Ref(ref="Tree"), default=[]),
    }
    assert tree.required == ["ownName"]


def test_tags_are_required_only_where_members_are_told_apart_by_them() -> None:
    alone, union = extract(Card).document, extract(Card | Cash).document

    assert union.root == UnionOf(types=[Ref(ref="Card"), Ref(ref="Cash")], discriminator="type")
    for document, required in ((alone, ["number"]), (union, ["type", "number"])):
        card = document.definitions["Card"]
        assert isinstance(card, ObjectOf)
        assert (card.properties["type"], card.required) == (LiteralOf(value="card"), required)


def test_generics_are_named_by_their_arguments() -> None:
    document = extract(list[Page[Line]]).document

    assert sorted(document.definitions) == ["Line", "Page_Line"]
    page = document.definitions["Page_Line"]
    assert isinstance(page, ObjectOf)
    assert page.properties["items"] == ArrayOf(items=Ref(ref="Line"))


def test_two_types_of_one_name_are_two_definitions() -> None:
    other = msgspec.defstruct("Line", [("length", float)])

    document = extract(msgspec.defstruct("Both", [("a", Line), ("b", other)])).document

    assert sorted(document.definitions) == ["Both", "Line", "Line_2"]


def test_dataclasses_typed_dicts_and_named_tuples() -> None:
    point, movie, span = (extract(each).document.definitions for each in (Point, Movie, Range))

    assert point["Point"] == ObjectOf(
        properties={
            "x": NUMBER,
            "y": Primitive(primitive_type="number", default=0.5),
            "tags": ArrayOf(items=text(), default=[]),
            "seen": of_format("date-time-or-local"),
        },
        required=["x"],
    )
    assert movie["Movie"] == ObjectOf(properties={"title": text(), "year": INTEGER}, required=["title"])
    assert span["Range"] == TupleOf(
        items=[INTEGER, Primitive(primitive_type="integer", optional=True)], metadata={"names": ["first", "last"]}
    )


def test_enums() -> None:
    assert extract(Colour).document.definitions["Colour"] == Enumeration(
        values=["red", "blue"], metadata={"names": ["RED", "BLUE"]}
    )
    size = extract(Size).document.definitions["Size"]
    assert isinstance(size, Enumeration)
    assert (size.values, size.base_type) == ([1, 3], "integer")


def test_new_types_are_brands_and_unset_means_absent() -> None:
    owned = extract(Owned).document.definitions["Owned"]

    assert isinstance(owned, ObjectOf)
    assert owned.required == ["owner"]
    assert owned.properties == {
        "owner": text(brand="UserId"),
        "others": ArrayOf(items=text(brand="UserId"), default=[]),
        "boss": text(brand="UserId", nullable=True, default=None),
        "note": text(),
    }


def test_a_strict_reading_allows_no_undeclared_fields_and_leaves_maps_alone() -> None:
    document = extract(msgspec.defstruct("Open", [("a", Point), ("b", dict[str, int])]), is_strict=True).document

    closed = {name: schema.additional_properties for name, schema in document.definitions.items()}  # type: ignore[union-attr]
    assert closed == {"Open": False, "Point": False}
    assert errors_of({"a": {"x": 1.0}, "b": {"any": 1}}, document) == []


def test_the_same_type_has_the_same_fingerprint_wherever_it_is_written() -> None:
    assert fingerprint(extract(Line).document) == fingerprint(extract(Line, where="somewhere").document)
    assert fingerprint(extract(Line).document) != fingerprint(extract(Card).document)


# -- the fast path -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "up_to"),
    [
        (Line, sys.maxsize),
        (Annotated[str, Brand("user_id")], sys.maxsize),
        (Annotated[str, Meta(pattern="^[a-z]+@[a-z]+$")], sys.maxsize),
        (Annotated[str, Brand("email")], 0),
        (Annotated[list[int], UniqueItems], 0),
        (decimal.Decimal, 0),
        (list[Annotated[str, Meta(pattern="[a-z]+@")]], 3162),
    ],
)
def test_the_decoder_alone_is_trusted_up_to_where_it_checks_everything_quickly(annotation: Any, up_to: int) -> None:
    assert extract(annotation).native_up_to == up_to


def test_a_text_whose_pattern_may_take_long_gets_a_limit() -> None:
    schema = extract(Annotated[str, Meta(pattern="[a-z]+@")]).document.root

    assert schema.validators == [Validator("max_length", 3162), Validator("pattern", "[a-z]+@")]
    assert [error.expected for error in errors_of("a" * 4000, Document(root=schema))] == ["at most 3162 characters"]


# -- refusals ------------------------------------------------------------------------------------


class Inner(Struct):
    good: int
    bad: complex


class Outer(Struct):
    lines: list[Inner]


class Twice(Struct):
    when: int | str | datetime.date


class Holder(Struct):
    twice: Twice | None = None


class Wire(Struct, array_like=True):
    a: int


def _chain(length: int) -> Any:
    kind: Any = int
    for _ in range(length):
        kind = list[kind]
    return kind


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (complex, r"body: the type complex cannot be expressed; use a Struct"),
        (object, r"body: the type object cannot be expressed; use a Struct, a dataclass, a builtin, or Any"),
        (Outer, r"body\.lines\[\]\.bad: the type complex cannot be expressed"),
        (Holder, r"body\.twice: .*|body: .*more than one str-like type"),
        (dict[str, Inner], r"body\{\}\.bad: the type complex"),
        (dict[float, int], r"body: keys of a JSON object are text, the type Float is not"),
        (dict[Annotated[int, Meta(ge=0)], int], r"body: keys that are integers cannot have bounds"),
        (Missing, r"body: the enum Missing has `_missing_`"),
        (list[Wire], r"body\[\]: the type Wire is array_like"),
        (Annotated[str, Meta(pattern="^(a+)+$")], r"body: .*\(a\+\)\+"),
        (
            Annotated[str, Meta(pattern="[a-z]+@", max_length=5000)],
            r"body: max_length 5000 is too long for the pattern",
        ),
        (Annotated[int, UniqueItems], r"body: UniqueItems is for lists"),
        (_chain(51), r"body(\[\])+: types are nested more than 50 deep"),
        (list["Nowhere"], r"Nowhere"),  # type: ignore[name-defined]  # noqa: F821 - that is the point
    ],
)
def test_what_cannot_be_expressed_is_refused_with_the_path_to_it(annotation: Any, reason: str) -> None:
    with pytest.raises(UnsupportedType, match=reason):
        extract(annotation, where="body")


def test_deep_types_are_warned_of_before_they_are_refused() -> None:
    assert extract(_chain(20)).warnings == ()
    (warning,) = extract(_chain(21)).warnings
    assert "nested more than 20 deep" in warning


def test_large_types_are_warned_of() -> None:
    large = msgspec.defstruct("Large", [(f"field_{number:04}", str) for number in range(1000)])

    (warning,) = extract(large, where="body").warnings

    assert warning.startswith("body: its document is large: ")


def test_definitions_can_be_followed() -> None:
    document = extract(Line | None).document

    assert isinstance(resolve(document.root, document.definitions), ObjectOf)
