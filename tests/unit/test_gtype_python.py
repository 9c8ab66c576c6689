"""Validators generated from types: what they accept, and what they say; always beside the reference."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET, structs

from gati_core.errors import MalformedGType, RegistrationError
from gati_core.gtype import (
    REDACTED,
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
    Validator,
    compile_validator,
    errors_of,
    register_check,
)

TEXT = Primitive(primitive_type="string")
INTEGER = Primitive(primitive_type="integer")
NUMBER = Primitive(primitive_type="number")
NULL = Primitive(primitive_type="null")
UNDEFINED = Primitive(primitive_type="undefined")
BYTES = Primitive(primitive_type="bytes")

register_check("test_gtype_python.even", lambda value: len(value) % 2 == 0)


def text(*validators: Validator, **flags: Any) -> Primitive:
    return Primitive(primitive_type="string", validators=list(validators), **flags)


def accepts(schema: GType, value: Any, **definitions: GType) -> bool:
    return compile_validator(Document(root=schema, definitions=definitions)).accepts(value)


def told(schema: GType, value: Any, **definitions: GType) -> list[tuple[str, str]]:
    """Where and what, as the validator says it; the reference says the same."""
    document = Document(root=schema, definitions=definitions)
    found = compile_validator(document).errors(value)
    assert found == errors_of(value, document)
    return [(error.where, error.message) for error in found]


LINE = ObjectOf(properties={"sku": TEXT}, required=["sku"])
ONE, ALIKE = {"a": [1], "b": 2}, {"b": 2, "a": [1]}
CARD = ObjectOf(properties={"by": LiteralOf(value="card"), "digits": TEXT}, required=["by", "digits"])
CASH = ObjectOf(properties={"by": LiteralOf(value="cash")}, required=["by"])


# -- what is accepted ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (TEXT, ["", "x"], [1, None, True, [], {}]),
        (INTEGER, [0, -5, 10**400], [True, 1.0, "1", None]),
        (NUMBER, [0, 1.5, -(10**20)], [True, "1", float("nan"), float("inf"), 10**400, -(2**1024)]),
        (Primitive(primitive_type="boolean"), [True, False], [0, 1, "true", None]),
        (NULL, [None], [0, False, ""]),
        (UNDEFINED, [UNSET], [None, 0, ""]),
        (BYTES, ["", "QQ==", "QUI=", "QUJD"], ["Q", "QQ", "QQ=", "Q Q=", "QUJD\n", 1]),
        (structs.replace(BYTES, validators=[Validator("max_length", 1)]), ["", "QQ=="], ["QUI=", "QUJD"]),
        (structs.replace(BYTES, validators=[Validator("min_length", 3)]), ["QUJD"], ["", "QQ==", "QUI="]),
        (LiteralOf(value=1), [1], [1.0, True, "1"]),
        (LiteralOf(value=1.0), [1.0], [1, True]),
        (LiteralOf(value=True), [True], [1, 1.0, "true"]),
        (LiteralOf(value=None), [None], [0, False]),
        (Enumeration(values=[1, "a", None]), [1, "a", None], [1.0, True, "b", [1]]),
        (Enumeration(values=list("abcdefgh")), ["a", "h"], ["i", 1, None, ["a"]]),
        (TupleOf(items=[INTEGER, text(optional=True)]), [[1], [1, "a"]], [[], [1, 2], [1, "a", 3]]),
        (AnyOf(), [None, 1, [], {}], [UNSET]),
        (AnyOf(optional=True), [None, UNSET], []),
        (NeverOf(), [], [None, 1, UNSET]),
        (IntersectionOf(types=[NUMBER, INTEGER]), [1], [1.5, "x"]),
        (ArrayOf(items=AnyOf(), unique_items=True), [[1, 1.0, True, "1"], [[], {}]], [[1, 1], [ONE, ALIKE]]),
        (ArrayOf(items=TEXT, unique_items=True), [["a", "b"]], [["a", "a"]]),
        (ObjectOf(property_names=text(Validator("pattern", "^x"))), [{}, {"x1": 1}], [{"y": 1}]),
        (ObjectOf(properties={"y": AnyOf()}, property_names=text(Validator("pattern", "^x"))), [{"y": 1}], [{"z": 1}]),
        (ObjectOf(additional_properties=INTEGER), [{}, {"a": 1}], [{"a": "b"}]),
        (ObjectOf(min_properties=1, max_properties=2), [{"a": 1}], [{}, {"a": 1, "b": 2, "c": 3}]),
        (AnyOf(validators=[Validator("min", 1)]), ["text", 1, None], [0, float("nan")]),
        (AnyOf(validators=[Validator("min_length", 2)]), [1, "ab", [1]], ["a"]),
        (AnyOf(validators=[Validator("multiple_of", 0.5)]), [1.5, 2, "x"], [1.25, 10**400, float("inf"), float("nan")]),
        (AnyOf(validators=[Validator("format", "unheard-of")]), ["x", 1], []),
        (AnyOf(validators=[Validator("enum", [ONE, {}]), Validator("enum", [ONE, []])]), [ALIKE], [{}, [], 1]),
    ],
)  # fmt: skip
def test_kinds_accept_what_json_says(schema: GType, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not accepts(schema, value)] == []
    assert [value for value in bad if accepts(schema, value)] == []
    assert [told(schema, value) for value in good] == [[]] * len(good)
    assert all(told(schema, value) for value in bad)


@pytest.mark.parametrize(
    ("is_required", "optional", "nullable", "without", "null"),
    [
        (True, False, False, False, False),
        (True, True, False, True, False),
        (False, False, False, True, False),
        (True, False, True, False, True),
        (True, True, True, True, True),
        (False, False, True, True, True),
    ],
)
@pytest.mark.parametrize("kind", [TEXT, AnyOf(), Ref(ref="Line"), ArrayOf(items=TEXT), UnionOf(types=[TEXT, INTEGER])])
def test_absence_and_null_are_two_things(
    kind: Any, is_required: bool, optional: bool, nullable: bool, without: bool, null: bool
) -> None:
    inner = structs.replace(kind, optional=optional, nullable=nullable)
    schema = ObjectOf(properties={"a": inner}, required=["a"] if is_required else [])

    assert (not told(schema, {}, Line=LINE)) is without
    assert (not told(schema, {"a": None}, Line=LINE)) is (null or isinstance(kind, AnyOf))


def test_properties_may_have_the_names_of_anything_in_the_code() -> None:
    names = ["i", "value", "value_1", "errors", "path", "seen", "depth", "UNSET", "class", "item_1", "_wrong", "len"]
    inner = ObjectOf(properties={name: ArrayOf(items=INTEGER) for name in names}, required=names)
    schema = ObjectOf(properties=dict.fromkeys(names, inner), required=names)
    value = {name: {name: [1, 2] for name in names} for name in names}

    assert told(schema, value) == []

    value["i"]["i"] = [1, "x"]  # type: ignore[list-item]
    assert told(schema, value) == [("i.i[1]", 'expected integer, got "x"')]


def test_of_members_that_are_told_apart_only_the_one_that_is_meant_complains() -> None:
    payment = UnionOf(types=[Ref(ref="Card"), Ref(ref="Cash")], discriminator="by")

    def of(value: Any) -> list[tuple[str, str]]:
        return told(payment, value, Card=CARD, Cash=CASH)

    assert of({"by": "card"}) == [("digits", "value is required")]
    assert of({"by": "cheque"}) == [("by", 'expected one of "card", "cash", got "cheque"')]
    assert of({}) == [("by", "value is required")]
    assert of([]) == [("(root)", "expected object, got array[0]")]


def test_a_member_that_may_have_no_tag_is_asked_as_well() -> None:
    loose = structs.replace(CASH, properties={"by": LiteralOf(value="cash", nullable=True)})
    union = UnionOf(
        types=[CARD, loose, ObjectOf(properties={"by": TEXT, "n": INTEGER}, required=["n"])], discriminator="by"
    )

    assert told(union, {"by": None}) == []
    assert told(union, {"by": "cheque", "n": 1}) == []
    assert told(union, {"by": "cheque"}) == [("(root)", "expected object, got object")]
    assert told(UnionOf(types=[structs.replace(CARD, nullable=True), CASH], discriminator="by"), None) == []


def test_of_two_members_with_the_same_tag_the_first_is_meant() -> None:
    union = UnionOf(
        types=[CASH, structs.replace(CASH, properties={**CASH.properties, "n": INTEGER})], discriminator="by"
    )
    strict = UnionOf(types=[*reversed(union.types)], discriminator="by")

    assert told(union, {"by": "cash", "n": "x"}) == []
    assert told(strict, {"by": "cash", "n": "x"}) == [("n", 'expected integer, got "x"')]


def test_a_reference_may_ask_for_more_than_its_type() -> None:
    short = Ref(ref="Text", validators=[Validator("max_length", 2)])

    assert told(short, "ab", Text=TEXT) == []
    assert told(short, "abc", Text=TEXT) == [("(root)", 'expected at most 2 characters, got "abc"')]
    assert told(structs.replace(short, validators=[Validator("enum", [{"sku": "a"}])]), {"sku": "b"}, Text=LINE) != []


def test_of_items_that_are_alike_the_later_ones_are_named() -> None:
    found = compile_validator(Document(root=ArrayOf(items=INTEGER, unique_items=True))).errors([1, 2, 3, 2, 1])

    assert [(error.path, error.actual) for error in found] == [((3,), "2"), ((4,), "1")]


def test_secrets_are_not_shown_wherever_they_are_met() -> None:
    secret = text(Validator("min_length", 100), brand="secret")
    holder = ObjectOf(properties={"pin": INTEGER}, metadata={"secret": True})
    schema = ObjectOf(
        properties={
            "plain": secret,
            "union": UnionOf(types=[secret, INTEGER]),
            "both": IntersectionOf(types=[text(Validator("pattern", "^x")), secret]),
            "reference": Ref(ref="Secret", validators=[Validator("max_length", 1)]),
            "inside": holder,
            "twice": ArrayOf(items=text(brand="token"), unique_items=True),
        }
    )
    value = {
        "plain": "hunter2",
        "union": "hunter2",
        "both": "hunter2",
        "reference": "hunter2",
        "inside": {"pin": "hunter2"},
        "twice": ["hunter2", "hunter2"],
    }
    document = Document(root=schema, definitions={"Secret": text(brand="secret")})

    found = compile_validator(document).errors(value)

    assert found == errors_of(value, document)
    assert {error.path[0] for error in found} == set(value)
    assert {error.actual for error in found} == {REDACTED}
    assert "hunter2" not in str(found)


# -- custom checks -------------------------------------------------------------------------------


def test_a_registered_check_is_called() -> None:
    schema = text(Validator("custom", "test_gtype_python.even"))

    assert told(schema, "ab") == []
    assert told(schema, "abc") == [("(root)", "custom validation failed")]


def test_a_check_that_nobody_registered_is_missed_when_the_validator_is_made() -> None:
    document = Document(root=text(Validator("custom", "test_gtype_python.nobody")))

    with pytest.raises(RegistrationError, match="nobody' is registered"):
        compile_validator(document)


# -- documents that make no sense ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (text(Validator("pattern", "(")), r"\$\.a: pattern: '\(' is no regular expression"),
        (text(Validator("min_length", "3")), r"\$\.a: min_length: '3' is no length"),
        (Primitive(primitive_type="integer", validators=[Validator("min", "__import__('os')")]), "is no number"),
        (Primitive(primitive_type="number", validators=[Validator("max", float("inf"))]), "inf is no JSON value"),
        (Primitive(primitive_type="number", validators=[Validator("multiple_of", 0)]), "other than 0"),
        (text(Validator("enum", "abc")), "is no list of values"),
        (text(Validator("custom", 5)), "5 is no text"),
        (LiteralOf(value=float("nan")), "nan is no JSON value"),
        (Enumeration(values=[print]), "is no JSON value"),  # type: ignore[list-item]
        (ArrayOf(items=TEXT, min_items="1"), "'1' is no length"),  # type: ignore[arg-type]
        (LiteralOf(value=10**4000), "a number of 13288 bits is too large"),
        (LiteralOf(value=10**5000), "a number in the document is too large"),
        (Ref(ref="Missing"), "no definition 'Missing'"),
        (Ref(ref="Loop"), "#Loop: leads back to itself"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(schema: GType, message: str) -> None:
    document = Document(
        root=ObjectOf(properties={"a": schema}), definitions={"Loop": UnionOf(types=[TEXT, Ref(ref="Loop")])}
    )
    if "Loop" not in message:
        document = Document(root=document.root)

    with pytest.raises(MalformedGType, match=message):
        compile_validator(document)


# -- kept validators -----------------------------------------------------------------------------


def test_a_document_that_comes_again_is_not_compiled_again() -> None:
    first = compile_validator(Document(root=ObjectOf(properties={"a": TEXT, "b": TEXT}, required=["a", "b"])))
    again = compile_validator(Document(root=ObjectOf(properties={"a": TEXT, "b": TEXT}, required=["a", "b"])))
    other = compile_validator(Document(root=ObjectOf(properties={"b": TEXT, "a": TEXT}, required=["a", "b"])))

    assert again is first
    assert [error.where for error in first.errors({})] == ["a", "b"]
    assert [error.where for error in other.errors({})] == ["b", "a"]
