"""Error answers are problem details, whatever the error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from gati_core.errors import (
    Backpressure,
    GatiError,
    HandlerError,
    InvalidBody,
    MethodNotAllowed,
    RouteNotFound,
    WorkerCrashed,
)
from gati_core.wire import Timing, problem_body, problem_parts, problem_reply
from gati_testing import strategies


@given(detail=strategies.text(), request_id=strategies.request_ids())
def test_problem_body_is_json_with_every_member(detail: str, request_id: str) -> None:
    document = json.loads(problem_body(404, "route.not_found", detail, request_id))

    assert document == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": detail,
        "code": "route.not_found",
        "request_id": request_id,
    }


def test_a_status_without_a_phrase_still_has_a_title() -> None:
    assert json.loads(problem_body(499, "request.client_gone", "", "r"))["title"] == "Error"


def test_transient_errors_carry_retry_after() -> None:
    status, headers, _ = problem_parts(Backpressure("full"), "r")

    assert (status, dict(headers)["retry-after"]) == (503, "1")


def test_permanent_errors_do_not_invite_another_try() -> None:
    assert "retry-after" not in dict(problem_parts(RouteNotFound("no"), "r")[1])


def test_method_not_allowed_carries_allow() -> None:
    status, headers, _ = problem_parts(MethodNotAllowed("no", allow=("GET", "HEAD")), "r")

    assert (status, dict(headers)["allow"]) == (405, "GET, HEAD")


def test_a_handlers_own_error_keeps_its_status_and_code() -> None:
    status, _, body = problem_parts(HandlerError("out of stock", 409, code="shop.out_of_stock"), "r")
    document = json.loads(body)

    assert status == document["status"] == 409
    assert (document["code"], document["title"], document["detail"]) == (
        "shop.out_of_stock",
        "Conflict",
        "out of stock",
    )


def test_facts_stay_out_of_the_answer_except_the_list_of_errors() -> None:
    error = InvalidBody("not valid", errors=[{"path": "$.sku"}], password="hunter2")
    body = problem_parts(error, "r")[2]

    assert json.loads(body)["errors"] == [{"path": "$.sku"}]
    assert b"hunter2" not in body


@pytest.mark.parametrize("error", [WorkerCrashed("gone"), HandlerError("no", 418), RouteNotFound("no")])
def test_problem_reply_says_the_same_as_the_parts(error: GatiError) -> None:
    timing = Timing(1, 2, 3, 4)

    reply = problem_reply(error, "r-1", timing)

    assert (reply.status, list(reply.headers), reply.body) == problem_parts(error, "r-1")
    assert (reply.request_id, reply.timing, reply.more) == ("r-1", timing, False)
    assert reply.error is not None
    assert reply.error.code == json.loads(reply.body)["code"]
    assert dict(reply.headers)["content-type"] == "application/problem+json"
