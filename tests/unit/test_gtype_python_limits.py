"""Validators generated from types, at their limits: depth, width, and values that would take too long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gati_core.gtype import (
    MAX_ERRORS,
    AnyOf,
    ArrayOf,
    Document,
    Enumeration,
    GType,
    IntersectionOf,
    LiteralOf,
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
from gati_core.gtype._nesting import MAX_NESTING

TEXT = Primitive(primitive_type="string")
INTEGER = Primitive(primitive_type="integer")
NUMBER = Primitive(primitive_type="number")
NULL = Primitive(primitive_type="null")
NODE = Document(
    root=Ref(ref="Node"),
    definitions={"Node": ObjectOf(properties={"next": Ref(ref="Node", nullable=True), "v": INTEGER}, required=["v"])},
)
JSON = Document(
    root=Ref(ref="Json"),
    definitions={
        "Json": UnionOf(
            types=[ArrayOf(items=Ref(ref="Json")), ObjectOf(additional_properties=Ref(ref="Json")), TEXT, NUMBER, NULL]
        )
    },
)


def told(schema: GType, value: Any) -> list[tuple[str, str]]:
    """Where and what, as the validator says it; the reference says the same."""
    document = Document(root=schema)
    found = compile_validator(document).errors(value)
    assert found == errors_of(value, document)
    return [(error.where, error.message) for error in found]


@pytest.fixture
def deep_stack() -> Iterator[None]:
    """Room for the reference, which takes many frames for a level of a value."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(before)


def chain(length: int, end: Any) -> Any:
    for _ in range(length):
        end = {"v": 1, "next": end}
    return end


@pytest.mark.usefixtures("deep_stack")
@pytest.mark.parametrize("document", [NODE, JSON])
@pytest.mark.parametrize("length", [MAX_NESTING - 1, MAX_NESTING, MAX_NESTING + 1, MAX_NESTING + 50])
def test_a_value_may_be_nested_as_deep_as_the_limit(document: Document, length: int) -> None:
    value = chain(length, {"v": 1})

    found = compile_validator(document).errors(value)

    assert found == errors_of(value, document)
    # In the second type the numbers of the last node are one level further down.
    deepest = length + 1 if document is JSON else length
    assert [error.message for error in found] == ["nested more than 200 deep"] * (deepest > MAX_NESTING)
    assert compile_validator(document).accepts(value) is (deepest <= MAX_NESTING)


def test_a_value_that_would_exhaust_the_stack_is_an_error() -> None:
    validator = compile_validator(NODE)

    def from_far_down(levels: int, do: Callable[[Any], Any]) -> Any:
        return do(chain(150, {"v": 1})) if levels == 0 else from_far_down(levels - 1, do)

    def at_the_edge(do: Callable[[Any], Any]) -> Any:
        return from_far_down(sys.getrecursionlimit() - _frames() - 60, do)

    assert validator.accepts(chain(100_000, {"v": 1})) is False
    assert at_the_edge(validator.accepts) is False
    assert [error.message for error in at_the_edge(validator.errors)] == ["nested too deep to be checked"]


def _frames() -> int:
    frame, count = sys._getframe(), 0
    while frame.f_back is not None:
        frame, count = frame.f_back, count + 1
    return count


def test_types_without_recursion_are_followed_to_their_end() -> None:
    schema: GType = INTEGER
    value: Any = "x"
    for level in range(48):
        union = UnionOf(types=[TEXT, schema], nullable=True)
        schema = [ArrayOf(items=schema), ObjectOf(properties={"a": schema}), union][level % 3]
        value = [[value], {"a": value}, value][level % 3]

    assert told(schema, value) == [("(root)", "expected string or object or null, got object")]
    assert told(ObjectOf(additional_properties=AnyOf()), chain(5000, 1)) == []


@pytest.mark.parametrize("end", [{"v": 1}, {"v": "x"}, {}])
@pytest.mark.parametrize("combine", [UnionOf, IntersectionOf])
def test_a_value_is_looked_into_once_however_many_members_would(combine: Any, end: Any) -> None:
    """Otherwise these 150 levels would take 2 to the power of 150 steps."""
    one = ObjectOf(properties={"next": Ref(ref="A"), "v": INTEGER}, required=["v"])
    two = ObjectOf(properties={"next": Ref(ref="A"), "v": INTEGER, "w": INTEGER}, required=["v"])
    validator = compile_validator(Document(root=Ref(ref="A"), definitions={"A": combine(types=[one, two])}))

    value = chain(150, end)

    assert validator.accepts(value) is (end == {"v": 1})
    assert bool(validator.errors(value)) is (end != {"v": 1})


def test_the_first_errors_of_a_huge_value_are_listed_and_the_rest_is_not_looked_for() -> None:
    seen = []
    register_check("test_gtype_python_limits.seen", lambda value: bool(seen.append(value)))
    checked = Primitive(primitive_type="string", validators=[Validator("custom", "test_gtype_python_limits.seen")])
    rows = ArrayOf(items=ArrayOf(items=checked))
    validator = compile_validator(Document(root=rows))

    found = validator.errors([["x"] * 10 for _ in range(100_000)])

    assert [error.path for error in found] == [(n // 10, n % 10) for n in range(MAX_ERRORS)]
    assert len(seen) <= MAX_ERRORS + 1


MANY = 1500
NAMES = [f"p{n}" for n in range(MANY)]
TAGGED = [ObjectOf(properties={"k": LiteralOf(value=n)}, required=["k"]) for n in range(300)]
NAMED = [ObjectOf(properties={name: TEXT}, required=[name]) for name in NAMES[:300]]
LOOSE = [ObjectOf(properties={name: TEXT}) for name in NAMES[:300]]
PATTERNS = [Validator("pattern", f"^.{{{n}}}") for n in range(300)]


@pytest.mark.parametrize(
    ("schema", "good", "bad", "count"),
    [
        (
            ObjectOf(properties=dict.fromkeys(NAMES, TEXT), additional_properties=False),
            {"p7": ""},
            {"p7": 1, "q": 1},
            2,
        ),
        (ObjectOf(properties=dict.fromkeys(NAMES, AnyOf()), required=NAMES), dict.fromkeys(NAMES), {}, MAX_ERRORS),
        (Enumeration(values=[*NAMES]), "p1499", "p", 1),
        (UnionOf(types=[LiteralOf(value=n) for n in range(MANY)]), 1499, 1.0, 1),
        (UnionOf(types=[*NAMED]), {"p299": ""}, {}, 1),
        (UnionOf(types=[*TAGGED], discriminator="k"), {"k": 299}, {"k": 300}, 1),
        (IntersectionOf(types=[*LOOSE]), {"p299": ""}, {"p0": 1, "p299": 1}, 2),
        (TupleOf(items=[INTEGER] * MANY), [1] * MANY, ["x"] * MANY, MAX_ERRORS),
        (Primitive(primitive_type="string", validators=PATTERNS), "x" * 300, "x" * 20, 1),
    ],
)
def test_types_may_be_as_wide_as_documents_may_be_large(schema: GType, good: Any, bad: Any, count: int) -> None:
    assert told(schema, good) == []
    assert len(told(schema, bad)) == count
