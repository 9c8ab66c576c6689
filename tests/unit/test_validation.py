"""Validation of requests and answers: what gets through, and what is said about the rest."""

from __future__ import annotations

import datetime
import json
from typing import Annotated, Any, NamedTuple

import msgspec
import pytest
from msgspec import Meta, Struct
from structlog.testing import capture_logs

from gati_core import App, Request, Response
from gati_core.errors import RegistrationError
from gati_core.gtype import Brand, Checked, UniqueItems, register_check
from gati_testing import Answer, simulate

register_check("test.even", lambda value: isinstance(value, int) and value % 2 == 0)


class Line(Struct, forbid_unknown_fields=True):
    sku: Annotated[str, Meta(min_length=1, pattern="^[a-z0-9-]+$")]
    quantity: Annotated[int, Meta(ge=1)] = 1


class Card(Struct, tag="card"):
    number: Annotated[str, Brand("secret"), Meta(min_length=12)]


class Cash(Struct, tag="cash"):
    cents: int


class Order(Struct):
    lines: Annotated[list[Line], Meta(min_length=1)]
    payment: Card | Cash
    email: Annotated[str, Brand("email")] = "a@example.org"
    tags: Annotated[list[str], UniqueItems] = []
    until: datetime.date | None = None
    share: float = 0.0
    even: Annotated[int, Checked("test.even", message="must be even")] = 0


class Search(Struct):
    text: str = ""
    limit: Annotated[int, Meta(ge=1, le=100)] = 10
    tags: list[str] = []
    exact: bool = False
    since: datetime.date | None = None


class Place(Struct):
    shop: int


class Headers(Struct):
    x_request_source: str
    accept_language: str = "en"


class Span(Struct):
    first: int
    last: int

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise ValueError("last lies before first")


VALID = {"lines": [{"sku": "a-1"}], "payment": {"type": "cash", "cents": 5}}


def answers(annotation: Any, body: Any, **options: Any) -> Answer:
    """What a handler that takes this body answers: 204 when it ran."""
    app = App("shop")

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.set("body", req.body)

    handler.__annotations__["req"] = Request[annotation]
    app.post("/x", **options)(handler)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with simulate(app) as fabric:
        return fabric.post("/x", body=data, headers={"content-type": "application/json"})


def errors_in(answer: Answer) -> list[tuple[str, str, str]]:
    assert (answer.status, dict(answer.headers)["content-type"]) == (400, "application/problem+json"), answer.text
    return [(error["in"], error["path"], error["message"]) for error in answer.json()["errors"]]


# -- bodies --------------------------------------------------------------------------------------


def test_a_body_that_fits_reaches_the_handler() -> None:
    assert answers(Order, VALID).status == 204


def test_every_error_of_a_body_is_listed_with_its_place() -> None:
    answer = answers(
        Order,
        {
            "lines": [{"sku": "a-1", "quantity": 0}, {"quantity": "x"}, {"sku": "A B", "colour": "red"}, 7],
            "payment": {"type": "cash"},
            "email": "nobody",
            "tags": ["a", "b", "a"],
            "until": "2026-02-30",
            "share": True,
            "even": 3,
        },
    )

    assert answer.code == "request.invalid_body"
    assert errors_in(answer) == [
        ("body", "lines[0].quantity", "expected at least 1, got 0"),
        ("body", "lines[1].sku", "value is required"),
        ("body", "lines[1].quantity", 'expected integer, got "x"'),
        ("body", "lines[2].sku", 'expected text matching ^[a-z0-9-]+$, got "A B"'),
        ("body", "lines[2].colour", "unknown property 'colour'"),
        ("body", "lines[3]", "expected object, got 7"),
        ("body", "payment.cents", "value is required"),
        ("body", "email", 'expected an email address, got "nobody"'),
        ("body", "tags[2]", "the same item is there twice"),
        ("body", "until", 'expected a date such as 2026-01-31, got "2026-02-30"'),
        ("body", "share", "expected number, got true"),
        ("body", "even", "must be even"),
    ]
    detail = answer.json()["detail"]
    assert detail == "the body is not valid: 12 errors; the first: lines[0].quantity: expected at least 1, got 0"


def test_an_error_says_what_was_expected_and_what_was_there() -> None:
    (error,) = answers(Order, {**VALID, "lines": []}).json()["errors"]

    assert error == {
        "in": "body",
        "path": "lines",
        "expected": "at least 1 item",
        "actual": "0",
        "message": "expected at least 1 item, got 0",
    }


@pytest.mark.parametrize("number", ["hunter2", 12345])
def test_secrets_are_not_repeated(number: object) -> None:
    answer = answers(Order, {**VALID, "payment": {"type": "card", "number": number}})

    ((_, path, message),) = errors_in(answer)
    assert path == "payment.number"
    assert "(not shown)" in message
    assert str(number) not in answer.text


@pytest.mark.parametrize(
    ("payment", "path", "message"),
    [
        ({"type": "cheque"}, "payment.type", 'expected one of "card", "cash", got "cheque"'),
        ({}, "payment.type", "value is required"),
        ({"type": None}, "payment.type", 'expected one of "card", "cash", got null'),
        ({"type": "card"}, "payment.number", "value is required"),
        ("cash", "payment", 'expected object, got "cash"'),
    ],
)
def test_a_union_whose_tag_fits_says_what_is_wrong_with_that_member(payment: Any, path: str, message: str) -> None:
    assert errors_in(answers(Order, {**VALID, "payment": payment})) == [("body", path, message)]


@pytest.mark.parametrize(
    ("annotation", "body", "path", "message"),
    [
        (int | str, 1.5, "(root)", "expected integer or string, got 1.5"),
        (int | float, "x", "(root)", 'expected integer or number, got "x"'),
        (list[int | None], [1, None, "x"], "[2]", 'expected integer or null, got "x"'),
        (dict[str, int], {"a": 1, "b": None}, "b", "expected integer, got null"),
        (tuple[int, str], [1], "(root)", "expected array of 2 items, got array[1]"),
        (Span, {"first": 2, "last": 1}, "(root)", "last lies before first"),
        (list[Span], [{"first": 2, "last": 1}], "[0]", "last lies before first"),
    ],
)
def test_other_kinds(annotation: Any, body: Any, path: str, message: str) -> None:
    assert errors_in(answers(annotation, body)) == [("body", path, message)]


@pytest.mark.parametrize("value", [1, 1.5])
def test_a_value_that_fits_several_members_is_accepted(value: float) -> None:
    assert answers(int | float, value).status == 204


def test_a_body_that_may_be_null_may_be_missing() -> None:
    assert answers(Line | None, b"").status == 204
    missing = answers(Line, b"")
    assert (missing.code, missing.json()["detail"]) == ("request.invalid_body", "a JSON body is required")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"first": 1, "last": NaN}', "the body is not JSON"),
        (b'{"first": 1, "last": Infinity}', "the body is not JSON"),
        (b'{"first": "\xff"}', "the body is not UTF-8"),
        (b'{"first": "\\ud800"}', "the body is not JSON"),
        (b'{"deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "the body is nested too deeply"),
        (b'{"first": 1, "last": 2} x', "the body is not JSON"),
    ],
)
def test_what_is_no_json_is_said_to_be_none(body: bytes, reason: str) -> None:
    answer = answers(Span, body)

    assert (answer.status, answer.code) == (400, "request.invalid_body")
    assert answer.json()["detail"].startswith(reason)


def test_of_a_repeated_key_the_last_counts_and_all_must_fit() -> None:
    app, seen = App("shop"), []

    @app.post("/x")
    async def handler(req: Request[Span], res: Any, gctx: Any, lctx: Any) -> None:
        seen.append(req.body)

    with simulate(app) as fabric:
        assert fabric.post("/x", body=b'{"first": 5, "first": 1, "last": 2}').status == 204
    assert seen == [Span(1, 2)]
    assert [path for _, path, _ in errors_in(answers(Span, b'{"first": "x", "first": 1, "last": 2}'))] == ["first"]
    assert [path for _, path, _ in errors_in(answers(Span, b'{"first": 1, "last": 2, "first": "x"}'))] == ["first"]


@pytest.mark.parametrize(("digits", "shown"), [(30, "1" + "0" * 30), (4000, "a number of 13288 bits")])
def test_numbers_of_many_digits_are_integers_and_too_large_for_a_double(digits: int, shown: str) -> None:
    number = b"1" + b"0" * digits

    assert answers(int, number).status == 204
    assert answers(float, number).status == (204 if digits < 300 else 400)
    ((_, _, message),) = errors_in(answers(str, number))
    assert message == f"expected string, got {shown}"


def test_numbers_of_more_digits_than_python_reads_are_refused() -> None:
    answer = answers(int, b"1" + b"0" * 5000)

    assert (answer.status, answer.json()["detail"]) == (400, "the body cannot be read: Integer value out of range")


def test_a_list_of_many_errors_is_cut_off() -> None:
    assert len(answers(list[int], ["x"] * 10_000).json()["errors"]) == 500


def test_a_body_whose_pattern_would_take_very_long_is_refused_before_it_is_matched() -> None:
    slow = Annotated[str, Meta(pattern="[a-z]+@")]

    assert answers(slow, "a" * 3000 + "@").status == 204
    ((_, _, message),) = errors_in(answers(slow, "a" * 100_000))
    assert message.startswith("expected at most 3162 characters")


@pytest.mark.parametrize(("policy", "status"), [("ignore", 204), ("reject", 400)])
def test_unknown_fields_are_ignored_or_refused_as_the_route_says(policy: str, status: int) -> None:
    answer = answers(Span, {"first": 1, "last": 2, "more": 3}, unknown_fields=policy)

    assert answer.status == status
    if status == 400:
        assert errors_in(answer) == [("body", "more", "unknown property 'more'")]


def test_a_policy_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RegistrationError, match="neither 'ignore' nor 'reject'"):
        answers(Span, {}, unknown_fields="forbid")


# -- path, query, headers ------------------------------------------------------------------------


class Seen(NamedTuple):
    query: Any
    params: Any
    headers: Any


def searching(**options: Any) -> tuple[App, list[Seen]]:
    app, seen = App("shop"), []

    @app.get("/shops/{shop}/items", **options)
    async def search(req: Request[None, Search, Place, Headers], res: Response[Any], gctx: Any, lctx: Any) -> None:
        seen.append(Seen(req.query, req.params, req.headers))

    return app, seen


def test_path_query_and_headers_become_what_their_types_ask_for() -> None:
    app, seen = searching()

    with simulate(app) as fabric:
        answer = fabric.get(
            "/shops/7/items?text=a%20b&limit=5&tags=x&tags=y&exact=true&since=2026-01-31&other=1",
            headers={"X-Request-Source": "test", "X-Other": "1"},
        )

    assert answer.status == 204
    assert seen == [
        Seen(
            Search("a b", 5, ["x", "y"], exact=True, since=datetime.date(2026, 1, 31)), Place(7), Headers("test", "en")
        )
    ]


def test_errors_of_all_parts_are_listed_together() -> None:
    app, seen = searching()

    with simulate(app) as fabric:
        answer = fabric.get("/shops/x/items?limit=1000&exact=maybe&text=a&text=b")

    assert (answer.status, answer.code, seen) == (400, "request.invalid", [])
    assert errors_in(answer) == [
        ("path", "shop", 'expected integer, got "x"'),
        ("query", "text", "expected string, got array[2]"),
        ("query", "limit", "expected at most 100, got 1000"),
        ("query", "exact", 'expected boolean, got "maybe"'),
        ("header", "x_request_source", "value is required"),
    ]


def test_errors_of_the_body_are_listed_with_those_of_the_query() -> None:
    app = App("shop")

    @app.post("/x")
    async def handler(req: Request[Span, Search], res: Any, gctx: Any, lctx: Any) -> None: ...

    with simulate(app) as fabric:
        answer = fabric.post("/x?limit=0", json={"first": 1})

    assert answer.code == "request.invalid"
    assert [place[:2] for place in errors_in(answer)] == [("query", "limit"), ("body", "last")]


def test_unknown_query_fields_can_be_refused_and_unknown_headers_never_are() -> None:
    app, _ = searching(unknown_fields="reject")

    with simulate(app) as fabric:
        answer = fabric.get("/shops/1/items?colour=red", headers={"x-request-source": "t", "x-more": "1"})

    assert errors_in(answer) == [("query", "colour", "unknown property 'colour'")]


def test_a_part_that_is_any_stays_as_it_came() -> None:
    app, seen = App("shop"), []

    @app.get("/shops/{shop}")
    async def show(req: Request[None, Any, Place], res: Any, gctx: Any, lctx: Any) -> None:
        seen.append((req.query, req.params.shop))

    with simulate(app) as fabric:
        fabric.get("/shops/7?a=1&a=2")

    assert seen == [({"a": ["1", "2"]}, 7)]


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (Request[None, list[int]], r"handler \(.*\): query are named fields"),
        (Request[None, Any, Place], r"params\.shop: the route has no such parameter; it has \{id\}"),
        (Request[complex], r"body: the type complex cannot be expressed"),
        (Request[None, None, None, None, None], r"Request takes up to four types .*, not 5"),
    ],
)
def test_types_that_cannot_be_served_are_refused_when_they_are_registered(annotation: Any, reason: str) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...

    handler.__annotations__["req"] = annotation
    with pytest.raises(RegistrationError, match=reason):
        App("shop").post("/x/{id}")(handler)


# -- answers -------------------------------------------------------------------------------------


def test_an_answer_that_does_not_fit_is_a_500_and_the_log_lists_its_errors() -> None:
    app = App("shop")

    @app.get("/x")
    async def handler(req: Any, res: Response[list[Line]], gctx: Any, lctx: Any) -> None:
        res.json([{"sku": ""}, {"sku": "a", "quantity": 0}])  # type: ignore[list-item]

    with simulate(app) as fabric, capture_logs() as lines:
        answer = fabric.get("/x")

    assert (answer.status, answer.code, "sku" in answer.text) == (500, "response.invalid", False)
    (line,) = [line for line in lines if line["event"] == "response_invalid"]
    assert (
        line["error"] == ("the answer is not the declared list[tests.unit.test_validation.Line]: 2 errors;")
        or "[0].sku: expected at least 1 character" in line["error"]
    )
    assert "[1].quantity: expected at least 1, got 0" in line["error"]


@pytest.mark.parametrize("body", [msgspec.Raw(b"[" * 100_000), msgspec.Raw(b'{"sku": NaN}')])
def test_an_answer_that_is_no_json_is_a_500(body: Any) -> None:
    app = App("shop")

    @app.get("/x")
    async def handler(req: Any, res: Response[Line], gctx: Any, lctx: Any) -> None:
        res.json(body)

    with simulate(app) as fabric:
        assert fabric.get("/x").code == "response.invalid"
