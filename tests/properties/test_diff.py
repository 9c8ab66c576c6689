"""P14: whether a change breaks is decided by the rules, wherever in a type it lies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import event, given, reject, settings
from hypothesis import strategies as st

from gati_core.errors import MalformedGType
from gati_core.gtype import ArrayOf, Document, GType, ObjectOf, Ref, TupleOf, check_document, errors_of
from gati_core.gtype.diff import HandlerTypes, Side, diff_documents, diff_handlers, is_assignable
from gati_testing.gtypes import documents, values_of
from tests.helpers.diff_rules import RULES, TEXT

Draw = Callable[[st.SearchStrategy[Any]], Any]
Wrap = tuple[Callable[[GType], GType], str]
WRAPS: list[Wrap] = [
    (lambda inner: ObjectOf(properties={"in/side": inner, "other": TEXT}, required=["in/side"]), "/in~1side"),
    (lambda inner: ObjectOf(properties={"maybe": inner}), "/maybe"),
    (lambda inner: ArrayOf(items=inner), "/[]"),
    (lambda inner: TupleOf(items=[TEXT, inner]), "/1"),
    (lambda inner: ObjectOf(additional_properties=inner), "/{}"),
]


@pytest.mark.prop(14)
@settings(max_examples=300, deadline=None)
@given(rule=st.sampled_from(RULES), wraps=st.lists(st.sampled_from(WRAPS), max_size=5), is_named=st.booleans())
def test_a_change_is_classified_by_the_rules_at_any_depth(rule: Any, wraps: list[Wrap], is_named: bool) -> None:
    """P14 (R4.1)."""
    _, old, new, operation, place, *severities = rule
    path = "".join(step for _, step in reversed(wraps)) + place

    def nested(schema: GType) -> Document:
        definitions: dict[str, GType] = {}
        for number, (wrap, _) in enumerate(wraps):
            if is_named:
                definitions[f"Type{number}"] = schema
                schema = Ref(ref=f"Type{number}")
            schema = wrap(schema)
        return Document(root=schema, definitions=definitions)

    before, after = nested(old), nested(new)
    for side, severity in zip(("request", "response"), severities, strict=True):
        changes = diff_documents(before, after, side)  # type: ignore[arg-type]  # one of the two
        assert [(each.type, each.operation, each.path) for each in changes] == [
            (severity, operation, f"/{side}/body{path}")
        ]


@pytest.mark.prop(14)
@settings(max_examples=200, deadline=None)
@given(document=documents())
def test_a_type_does_not_differ_from_itself(document: Document) -> None:
    """P14."""
    assert diff_documents(document, document, "request") == diff_documents(document, document, "response") == []
    assert (
        diff_handlers(HandlerTypes(request=document), HandlerTypes(request=document)).summary == "No changes detected"
    )


@pytest.mark.prop(14)
@settings(max_examples=200, deadline=None)
@given(old=documents(), new=documents())
def test_a_comparison_is_deterministic(old: Document, new: Document) -> None:
    """P14: the order in which names were written does not count."""

    def turned(document: Document) -> Document:
        names = dict(reversed(document.definitions.items()))
        return msgspec.structs.replace(document, definitions=names)

    first = diff_documents(old, new, "request")

    assert diff_documents(turned(old), turned(new), "request") == first


@pytest.mark.prop(14)
@settings(max_examples=300, deadline=None)
@given(data=st.data(), old=documents())
def test_what_a_request_could_be_it_still_can_be_when_nothing_breaks(data: st.DataObject, old: Document) -> None:
    """P14: an edit of a type that is called non-breaking breaks no client, and assignability says no more."""
    new = data.draw(edits(old))
    value = data.draw(values_of(old))
    is_safe = _breaks_nobody(old, new, "request")
    event(f"breaking: {not is_safe}")

    if is_safe or is_assignable(old, new):
        assert errors_of(value, new) == [] or _has_undeclared_fields(value, old)


@pytest.mark.prop(14)
@settings(max_examples=300, deadline=None)
@given(data=st.data(), new=documents())
def test_what_is_answered_could_be_answered_before_when_nothing_breaks(data: st.DataObject, new: Document) -> None:
    """P14: who reads answers skips fields that it does not know, and meets nothing else that is new."""
    old = data.draw(edits(new))
    value = data.draw(values_of(new))
    is_safe = _breaks_nobody(old, new, "response")
    event(f"breaking: {not is_safe}")

    if is_safe:
        assert errors_of(value, _with_unknown_fields(old, True)) == [] or _has_undeclared_fields(value, new)


def _breaks_nobody(old: Document, new: Document, side: Side) -> bool:
    return not any(change.type == "breaking" for change in diff_documents(old, new, side))


def _has_undeclared_fields(value: Any, document: Document) -> bool:
    """Fields that nobody declared are taken for absent: whoever sends them breaks the rule of the game."""
    return errors_of(value, _with_unknown_fields(document, False)) != []


def _with_unknown_fields(document: Document, may_be: bool) -> Document:
    """The type where every object that says whether there may be unknown fields says this."""
    raw = msgspec.to_builtins(document)
    for each in types_in(raw):
        if each["kind"] == "object" and isinstance(each.get("additional_properties", True), bool):
            each["additional_properties"] = may_be
    return msgspec.convert(raw, Document)


# -- edits -------------------------------------------------------------------------------------------

Raw = dict[str, Any]
TYPES: list[Raw] = [
    *({"kind": "primitive", "primitive_type": name} for name in ("string", "integer", "number", "boolean", "null")),
    {"kind": "any"},
    {"kind": "literal", "value": "a"},
    {"kind": "enum", "values": ["a", "b", 1]},
    {"kind": "array", "items": {"kind": "any"}},
    {"kind": "object"},
    {"kind": "object", "additional_properties": {"kind": "primitive", "primitive_type": "integer"}},
    {"kind": "tuple", "items": [{"kind": "primitive", "primitive_type": "integer"}]},
]
CONSTRAINTS: list[Raw] = [
    *({"type": name, "value": 1} for name in ("min", "max", "exclusive_min", "min_length", "max_length")),
    *({"type": "multiple_of", "value": value} for value in (2, 4, 0.5)),
    *({"type": "format", "value": name} for name in ("hex", "uuid", "uuid4")),
    *({"type": name} for name in ("integer", "positive", "email")),
    {"type": "pattern", "value": "^[a-z]"},
    {"type": "enum", "value": ["a", 1]},
    {"type": "enum", "value": ["a", 1, 2]},
]
PLACES = {
    "object": ("min_properties", "max_properties", "additional_properties", "property_names", "fields", "required"),
    "array": ("min_items", "max_items", "unique_items"),
    "tuple": ("items",),
    "union": ("types", "types"),
    "intersection": ("types",),
    "enum": ("values",),
}
SIZES = ("min_properties", "max_properties", "min_items", "max_items")


def types_in(raw: Raw) -> list[Raw]:
    """Every type of a document."""
    found: list[Raw] = []
    waiting: list[Any] = [raw["root"], *raw.get("definitions", {}).values()]
    while waiting:
        each = waiting.pop()
        found.append(each)
        inside = (each.get(name) for name in ("items", "types", "additional_properties", "property_names"))
        for inner in [*inside, *each.get("properties", {}).values()]:
            waiting += inner if isinstance(inner, list) else [inner] if isinstance(inner, dict) else []
    return found


@st.composite
def edits(draw: Draw, document: Document) -> Document:
    """The same document, but for one to three edits anywhere in it."""
    raw = msgspec.to_builtins(document)
    for _ in range(draw(st.integers(1, 3))):
        schema = draw(st.sampled_from(types_in(raw)))
        where = draw(st.sampled_from(("flags", "constraints", "type", *PLACES.get(schema["kind"], ()) * 2)))
        edit(draw, schema, where)
    changed = msgspec.convert(raw, Document)
    try:
        check_document(changed)
    except MalformedGType:
        reject()
    return changed


def edit(draw: Draw, schema: Raw, where: str) -> None:
    """Change one type at one of its places."""
    a_type = copy.deepcopy(draw(st.sampled_from(TYPES)))
    if where == "flags":
        name = draw(st.sampled_from(("nullable", "optional")))
        schema[name] = not schema.get(name, False)
    elif where == "constraints":
        shuffle_one(draw, schema.setdefault("validators", []), draw(st.sampled_from(CONSTRAINTS)))
    elif where == "type":
        union = {"kind": "union", "types": [copy.deepcopy(schema), a_type]}
        schema.clear()
        schema |= draw(st.sampled_from([a_type, union, {**a_type, "nullable": True}]))
    elif where in SIZES:
        schema[where] = draw(st.integers(0, 3))
    elif where == "unique_items":
        schema[where] = not schema.get(where, False)
    elif where == "additional_properties":
        schema[where] = draw(st.sampled_from([True, False, a_type]))
    elif where == "property_names":
        pattern = {"type": "pattern", "value": draw(st.sampled_from(("^[a-z]", "^[a-z]+$")))}
        schema[where] = {"kind": "primitive", "primitive_type": "string", "validators": [pattern]}
    elif where in ("items", "types"):
        shuffle_one(draw, schema[where], a_type, least=0 if where == "items" else 1)
    elif where == "values":
        shuffle_one(draw, schema[where], draw(st.sampled_from(("z", 1, True, 1.0, None))), least=1)
    else:
        edit_field(draw, schema, where, a_type)


def edit_field(draw: Draw, schema: Raw, where: str, a_type: Raw) -> None:
    """Add, replace or remove a field, or change whether it is required."""
    properties, required = schema.setdefault("properties", {}), schema.setdefault("required", [])
    name = draw(st.sampled_from([*properties, "new"]))
    if where == "fields" and name in properties and draw(st.booleans()):
        del properties[name]
    elif where == "fields":
        properties[name] = a_type
    elif name in properties and name not in required:
        required.append(name)
        return
    kept = [each for each in required if each in properties]
    schema["required"] = [each for each in kept if where == "fields" or each != name]


def shuffle_one(draw: Draw, items: list[Any], one: Any, *, least: int = 0) -> None:
    """Put one in, or take one out, anywhere."""
    index = draw(st.integers(0, len(items)))
    if index < len(items) and len(items) > least and draw(st.booleans()):
        del items[index]
    else:
        items.insert(index, one)
