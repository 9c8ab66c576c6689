"""Properties of validation: what the reference says of a type and a value, generated code says as well."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from gati_core.gtype import REDACTED, Document, FieldError, compile_validator, errors_of, register_check, shown
from gati_core.gtype._python import python_module
from gati_testing import gtypes

CHECK = "test_gtype_validators.short"
ABSENT = object()


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 3


register_check(CHECK, _is_short)


def _documents() -> st.SearchStrategy[Document]:
    return gtypes.documents(checks=(CHECK,)) | gtypes.wild_documents(checks=(CHECK,))


def _standing_alone(document: Document) -> dict[str, Any]:
    """The names of a generated module."""
    names: dict[str, Any] = {"__name__": "generated"}
    exec(compile(python_module({"It": document}), "generated.py", "exec"), names)
    if "CHECKS" in names:
        names["CHECKS"][CHECK] = _is_short
    return names


@pytest.mark.prop(13)
@settings(max_examples=250, deadline=None)
@given(data=st.data(), document=_documents())
def test_compiled_validators_agree_with_the_reference(data: st.DataObject, document: Document) -> None:
    """P13 (R3.5): they accept the same values and report the same errors, in the same order."""
    value = data.draw(gtypes.near_values(document), label="value")
    validator = compile_validator(document)

    expected = errors_of(value, document)

    event(f"{'valid' if not expected else 'not valid'}")
    assert validator.accepts(value) is (expected == [])
    assert validator.errors(value) == expected


@pytest.mark.prop(13)
@settings(max_examples=200, deadline=None)
@given(data=st.data(), document=_documents())
def test_modules_that_stand_alone_agree_with_the_reference(data: st.DataObject, document: Document) -> None:
    """P13 (R3.5), for the code that teams take along."""
    value = data.draw(gtypes.near_values(document), label="value")
    names = _standing_alone(document)

    expected = errors_of(value, document)

    assert names["is_It"](value) is (expected == [])
    assert [tuple(error) for error in names["validate_It"](value)] == expected
    assert names["is_It"](names["UNSET"]) is (errors_of(UNSET, document) == [])


@pytest.mark.prop(13)
@settings(max_examples=200, deadline=None)
@given(data=st.data(), document=gtypes.documents(checks=(CHECK,)))
def test_values_made_for_a_type_are_accepted(data: st.DataObject, document: Document) -> None:
    """P13 (R3.5), where there is something to be found: deep in values that fit."""
    value = data.draw(gtypes.values_of(document), label="value")

    assert compile_validator(document).errors(value) == []


@pytest.mark.prop(12)
@settings(max_examples=200, deadline=None)
@given(data=st.data(), document=_documents())
def test_each_error_says_where_what_and_instead_of_what(data: st.DataObject, document: Document) -> None:
    """P12 (R3.4): each error carries path, expected and actual, and the path leads to what is there."""
    value = data.draw(gtypes.near_values(document), label="value")

    for error in compile_validator(document).errors(value):
        assert error.expected
        assert error.message
        assert error.actual in _what_may_be_said_of(_at(value, error), error)


def _at(value: Any, error: FieldError) -> Any:
    """What the path leads to; only its last step may lead nowhere."""
    for number, step in enumerate(error.path):
        assert isinstance(value, list if isinstance(step, int) else dict)
        if isinstance(value, dict) and step not in value:
            assert number == len(error.path) - 1
            return ABSENT
        value = value[step]
    return value


def _what_may_be_said_of(there: Any, error: FieldError) -> set[str]:
    if there is ABSENT:
        return {"nothing"}
    said = {shown(there), REDACTED}
    if isinstance(there, (list, dict)):
        said.add(str(len(there)))  # too many of them, or too few
    if error.expected.startswith("a name that is"):
        said.add(shown(error.path[-1]))
    return said
