"""P10, P11 and P12 for types of every kind, through all that a request passes.

Annotations are evaluated here, not kept as text: the types in them exist only inside the tests.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gati_core import App, Request, Response
from gati_core.gtype import FieldError, errors_of, extract
from gati_testing import simulate
from gati_testing.gtypes import near_values
from tests.helpers.declared_types import declared_types

MOST_ERRORS = 500


def _as_told(errors: Sequence[FieldError]) -> list[dict[str, Any]]:
    return [
        {"in": "body", "path": each.where, "expected": each.expected, "actual": each.actual, "message": each.message}
        for each in errors
    ]


def _finite(value: Any) -> Any:
    """The value, with null for each NaN and infinity."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case list():
            return [_finite(each) for each in value]
        case dict():
            return {name: _finite(each) for name, each in value.items()}
    return value


@pytest.mark.prop(10, 12)
@settings(max_examples=200, deadline=None)
@given(data=st.data(), declared=declared_types)
def test_a_body_of_any_type_reaches_the_handler_only_when_it_fits(data: st.DataObject, declared: Any) -> None:
    """P10 (R3.2), P12 (R3.4): the handler runs for what the reference accepts; for all else the client is told why."""
    document = extract(declared).document
    value = data.draw(near_values(document), label="value")
    ran: list[str] = []
    app = App("shop")

    @app.post("/things")
    async def take(req: Request[declared], res: Response[Any], gctx: Any, lctx: Any) -> None:  # type: ignore[valid-type]
        ran.append("handler")

    app.before(lambda gctx, lctx: ran.append("before"))
    expected = errors_of(value, document)
    with simulate(app) as fabric:
        answer = fabric.post("/things", body=msgspec.json.encode(value))

    event("valid" if not expected else "not valid")
    if not expected:
        assert (answer.status, ran) == (204, ["before", "handler"])
        return
    assert (answer.status, answer.code, ran) == (400, "request.invalid_body", [])
    told = answer.json()["errors"]
    assert 1 <= len(told) <= MOST_ERRORS
    assert told == _as_told(expected)[:MOST_ERRORS]
    assert all(error["expected"] and error["actual"] and error["message"] for error in told)


@pytest.mark.prop(11)
@settings(max_examples=200, deadline=None)
@given(data=st.data(), declared=declared_types)
def test_an_answer_of_any_type_leaves_only_when_it_fits(data: st.DataObject, declared: Any) -> None:
    """P11 (R3.3): what the reference refuses is a 500 that says nothing of it; all else arrives as it was."""
    document = extract(declared).document
    value = data.draw(near_values(document), label="value")
    app = App("shop")

    @app.get("/things")
    async def give(req: Request[None], res: Response[declared], gctx: Any, lctx: Any) -> None:  # type: ignore[valid-type]
        res.json(value)

    is_valid = errors_of(value, document) == []
    with simulate(app) as fabric:
        answer = fabric.get("/things")

    event("valid" if is_valid else "not valid")
    if is_valid:
        # Only what no type speaks of may hold a number that JSON has not; that is null there.
        assert (answer.status, json.loads(answer.body)) == (200, _finite(value))
    else:
        assert (answer.status, answer.code) == (500, "response.invalid")
        assert set(answer.json()) <= {"type", "title", "status", "detail", "code", "request_id", "trace_id", "instance"}
