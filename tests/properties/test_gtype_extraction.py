"""P9: declared types become documents that say what the decoder does with them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gati_core.gtype import FieldError, check_document, errors_of, extract, fingerprint, read_document, write_document
from gati_core.lifecycle import DeclaredType
from gati_core.lifecycle.validation import Mismatch
from gati_testing.gtypes import near_values
from tests.helpers.declared_types import declared_types


@pytest.mark.prop(9)
@settings(max_examples=300, deadline=None)
@given(annotation=declared_types)
def test_every_supported_declaration_becomes_a_valid_document(annotation: Any) -> None:
    """P9 (R3.1)."""
    document = extract(annotation).document

    check_document(document)
    assert read_document(write_document(document)) == document
    assert fingerprint(extract(annotation).document) == fingerprint(document)


@pytest.mark.prop(9)
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_document_accepts_what_the_decoder_accepts_and_nothing_else(data: st.DataObject) -> None:
    """P9, P13: what is published about a type is what happens."""
    annotation = data.draw(declared_types)
    declared = DeclaredType(annotation, where="body")
    value = data.draw(near_values(declared.document))
    text = msgspec.json.encode(value)

    errors: list[FieldError] = []
    try:
        declared.from_json(text)
    except Mismatch as exc:
        errors = exc.errors

    # Both find nothing, or both find something; where the reference sees it, the places are the same.
    reference = errors_of(value, declared.document)
    assert bool(errors) == bool(reference), (annotation, text)
    assert [error.path for error in errors] == [error.path for error in reference]
