"""The response as a handler builds it."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest

from gati_core.lifecycle import Response, ResponseAlreadySent


class Order(msgspec.Struct):
    sku: str


@dataclass
class Point:
    x: int


TERMINALS: dict[str, Callable[[Response[Any]], None]] = {
    "json": lambda res: res.json({}),
    "text": lambda res: res.text("t"),
    "send text": lambda res: res.send("t"),
    "send bytes": lambda res: res.send(b"b"),
    "end": lambda res: res.end(),
    "redirect": lambda res: res.redirect("/x"),
}
CHANGES: dict[str, Callable[[Response[Any]], object]] = {
    "status": lambda res: res.status(200),
    "header": lambda res: res.header("a", "b"),
    "headers": lambda res: res.headers({"a": "b"}),
}


def test_a_response_that_nobody_ended_is_204_without_a_body() -> None:
    assert Response[Any]().parts() == (204, [], b"")


def test_a_status_holds_even_where_nobody_ended_the_response() -> None:
    assert Response[Any]().status(202).header("a", "b").parts()  # chained

    response = Response[Any]()
    response.status(202)

    assert response.parts() == (202, [], b"")


@pytest.mark.parametrize(
    ("end", "parts"),
    [
        (lambda res: res.json({"a": 1}), (200, [("content-type", "application/json")], b'{"a":1}')),
        (lambda res: res.text("ä"), (200, [("content-type", "text/plain; charset=utf-8")], "ä".encode())),
        (lambda res: res.send("ä"), (200, [("content-type", "text/plain; charset=utf-8")], "ä".encode())),
        (lambda res: res.send(b"\x00"), (200, [("content-type", "application/octet-stream")], b"\x00")),
        (lambda res: res.send(bytearray(b"a")), (200, [("content-type", "application/octet-stream")], b"a")),
        (lambda res: res.end(), (204, [], b"")),
        (lambda res: res.redirect("/x"), (302, [("location", "/x")], b"")),
        (lambda res: res.json(None), (200, [("content-type", "application/json")], b"null")),
        (lambda res: res.text(""), (200, [("content-type", "text/plain; charset=utf-8")], b"")),
    ],
)
def test_each_terminal_call_has_its_status_and_content_type(
    end: Callable[[Response[Any]], None], parts: tuple[int, list[tuple[str, str]], bytes]
) -> None:
    response = Response[Any]()

    end(response)

    assert response.parts() == parts


def test_status_and_headers_chain_and_keep_their_order() -> None:
    response = Response[Any]()

    response.status(201).header("X-One", "1").headers({"Set-Cookie": "a=1"}).header("set-cookie", "b=2").json([])

    assert response.parts() == (
        201,
        [("x-one", "1"), ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("content-type", "application/json")],
        b"[]",
    )


@pytest.mark.parametrize("end", [lambda res: res.json({}), lambda res: res.text(""), lambda res: res.send(b"")])
def test_a_content_type_of_the_handlers_own_wins(end: Callable[[Response[Any]], None]) -> None:
    response = Response[Any]()

    end(response.header("Content-Type", "text/csv"))

    assert response.parts()[1] == [("content-type", "text/csv")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Order("ada"), {"sku": "ada"}),
        (Point(1), {"x": 1}),
        ([Order("a"), Point(2)], [{"sku": "a"}, {"x": 2}]),
        (dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "2024-01-02T03:04:05Z"),
        (dt.date(2024, 1, 2), "2024-01-02"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.10"), "1.10"),
        ({"ä": True}, {"ä": True}),
    ],
)
def test_json_takes_what_handlers_have(value: object, expected: object) -> None:
    response = Response[Any]()

    response.json(value)

    assert json.loads(response.parts()[2]) == expected


def test_a_value_that_is_no_json_leaves_the_response_open() -> None:
    response = Response[Any]()

    with pytest.raises(TypeError):
        response.json(object())

    assert not response.is_sent()
    response.text("instead")
    assert response.parts()[2] == b"instead"


@pytest.mark.parametrize("second", [*TERMINALS.values(), *CHANGES.values()], ids=[*TERMINALS, *CHANGES])
@pytest.mark.parametrize("first", TERMINALS.values(), ids=TERMINALS.keys())
def test_after_the_first_terminal_call_nothing_can_be_changed(
    first: Callable[[Response[Any]], None], second: Callable[[Response[Any]], object]
) -> None:
    response = Response[Any]()
    first(response)
    before = response.parts()

    with pytest.raises(ResponseAlreadySent, match="already sent"):
        second(response)

    assert response.parts() == before


@pytest.mark.parametrize("end", TERMINALS.values(), ids=TERMINALS.keys())
def test_a_response_knows_whether_it_was_sent(end: Callable[[Response[Any]], None]) -> None:
    response = Response[Any]()
    assert (response.is_sent(), response.headers_sent) == (False, False)

    end(response)

    assert (response.is_sent(), response.headers_sent) == (True, True)


@pytest.mark.parametrize("code", [-1, 0, 99, 100, 101, 199, 600, 1000])
def test_a_status_that_no_answer_can_have_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match=f"status {code} is not between 200 and 599"):
        Response[Any]().status(code)


@pytest.mark.parametrize("code", [200, 299, 404, 418, 599])
def test_a_status_holds_for_every_terminal_call(code: int) -> None:
    for end in ("json", "text", "end"):
        response = Response[Any]().status(code)
        getattr(response, end)(*([] if end == "end" else ["x"]))
        assert response.parts()[0] == code


@pytest.mark.parametrize("name", ["", "a b", "a:b", "ä", "a\n", "a\r\nb", "(a)", "a\0"])
def test_a_name_that_is_no_header_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a header name"):
        Response[Any]().header(name, "v")


@pytest.mark.parametrize("value", ["a\r\nset-cookie: x=1", "a\n", "\r", "\0", "\x7f", "世", "\x1f"])
def test_a_value_that_would_break_the_head_is_refused(value: str) -> None:
    response = Response[Any]()

    with pytest.raises(ValueError, match="characters that cannot be sent"):
        response.header("x", value)
    with pytest.raises(ValueError, match="characters that cannot be sent"):
        response.redirect(f"/{value}")

    assert response.parts() == (204, [], b"")


@pytest.mark.parametrize("value", ["", "a\tb", "grüße", "\xff", 'a: b; c="d"'])
def test_any_latin_text_can_be_a_value(value: str) -> None:
    assert Response[Any]().header("x", value).parts()[1] == [("x", value)]


@pytest.mark.parametrize(
    "name",
    ["content-length", "Transfer-Encoding", "Connection", "keep-alive", "X-Request-Id", "Upgrade", "TE"],
)
def test_headers_that_the_ingress_sets_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is set by the ingress"):
        Response[Any]().header(name, "v")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_has_a_location_and_its_status(status: int) -> None:
    response = Response[Any]().status(200)

    response.redirect("https://example.org/x?y=1", status)

    assert response.parts() == (status, [("location", "https://example.org/x?y=1")], b"")


@pytest.mark.parametrize("status", [200, 300, 304, 305, 306, 309, 404])
def test_a_status_that_is_no_redirect_is_refused(status: int) -> None:
    with pytest.raises(ValueError, match="is no redirect"):
        Response[Any]().redirect("/x", status)
