"""Answers, and the short ways to say what they should be."""

from __future__ import annotations

import msgspec
import pytest

from gati_testing import Answer, assert_body, assert_response, assert_status


class Order(msgspec.Struct):
    sku: str


ANSWER = Answer(
    status=201,
    headers=[("content-type", "application/json"), ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("x-request-id", "r")],
    body='{"sku":"ü","n":null}'.encode(),
)
PROBLEM = Answer(
    status=409, headers=[("content-type", "application/problem+json")], body=b'{"code":"shop.sold_out","detail":"x"}'
)


def test_what_an_answer_holds_can_be_read() -> None:
    assert (ANSWER.text, ANSWER.json()) == ('{"sku":"ü","n":null}', {"sku": "ü", "n": None})
    assert ANSWER.json(Order) == Order("ü")
    assert (ANSWER.header("Set-Cookie"), ANSWER.header_values("set-cookie")) == ("a=1", ["a=1", "b=2"])
    assert (ANSWER.header("x-none"), ANSWER.header_values("x-none"), ANSWER.request_id) == (None, [], "r")
    assert (ANSWER.code, PROBLEM.code, Answer(status=200).request_id) == ("", "shop.sold_out", "")
    assert Answer(status=404, headers=PROBLEM.headers).code == "", "a HEAD has no body to read it from"


def test_checks_in_a_row_that_hold() -> None:
    row = assert_response(ANSWER).status(201).json({"sku": "ü", "n": None}).includes({"sku": "ü", "n": None})
    row.text(ANSWER.text).header("set-cookie", "b=2").header("Content-Type", "application/json")
    assert_response(PROBLEM).problem(409, "shop.sold_out")
    assert_status(ANSWER, 201)
    assert_body(ANSWER, ANSWER.body)
    assert_body(ANSWER, ANSWER.text)
    assert_body(ANSWER, {"sku": "ü", "n": None})
    assert_body(Answer(status=200, body=b"null"), None)


NOT_JSON = Answer(status=200, body=b"\xff")
WRONG = [
    (lambda: assert_response(ANSWER).status(200), r"status 201, not 200: b'\{"),
    (lambda: assert_response(ANSWER).json({"sku": "x"}), r"not \{'sku': 'x'\}"),
    (lambda: assert_response(ANSWER).includes({"sku": "x"}), r"has \{'sku': 'ü'\} where"),
    (lambda: assert_response(ANSWER).includes({"none": None}), "none"),
    (lambda: assert_response(Answer(status=200, body=b"[]")).includes({"a": 1}), "no JSON object"),
    (lambda: assert_response(ANSWER).text("x"), "not 'x'"),
    (lambda: assert_response(ANSWER).header("set-cookie", "c"), r"\['a=1', 'b=2'\], not 'c'"),
    (lambda: assert_response(ANSWER).header("x-none", "c"), r"x-none: \[\]"),
    (lambda: assert_response(PROBLEM).problem(409, "other"), r"'shop.sold_out', not 'other'"),
    (lambda: assert_response(ANSWER).problem(201, "other"), "code ''"),
    (lambda: assert_response(NOT_JSON).json(1), "no JSON"),
    (lambda: assert_response(NOT_JSON).text("x"), "not 'x'"),
    (lambda: assert_status(ANSWER, 500), "not 500"),
    (lambda: assert_body(ANSWER, b"x"), "not b'x'"),
    (lambda: assert_body(ANSWER, "x"), "not 'x'"),
    (lambda: assert_body(ANSWER, [1]), r"not \[1\]"),
]


@pytest.mark.parametrize(("check", "message"), WRONG)
def test_a_check_that_fails_says_what_was_there(check: object, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check()  # type: ignore[operator]
