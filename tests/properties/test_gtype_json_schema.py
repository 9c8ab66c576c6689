"""Documents go to JSON Schema and back unchanged, and other validators agree with ours."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gati_core.gtype import errors_of, from_json_schema, to_json_schema
from gati_testing.gtypes import documents, near_values
from tests.helpers.gtype_exceptions import is_documented_exception


@pytest.mark.prop(13)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_document_that_went_there_and_back_means_the_same(data: st.DataObject) -> None:
    document = data.draw(documents())
    value: Any = data.draw(near_values(document))
    schema = to_json_schema(document)

    back = from_json_schema(schema)

    assert (errors_of(value, back) == []) == (errors_of(value, document) == [])


@pytest.mark.prop(13)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_validators_of_json_schema_agree(data: st.DataObject) -> None:
    document = data.draw(documents())
    value: Any = data.draw(near_values(document))
    if is_documented_exception(document, value):
        return

    ours = errors_of(value, document) == []

    assert jsonschema.Draft202012Validator(to_json_schema(document)).is_valid(value) == ours
