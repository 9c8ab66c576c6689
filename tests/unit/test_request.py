"""The request as a handler sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from gati_core.errors import InvalidBody, RequestError, UnsupportedMedia
from gati_core.lifecycle import DeclaredType, Request, RequestReader
from gati_core.wire import PROTOCOL, RequestDescriptor
from gati_testing import strategies

JSON = [("content-type", "application/json")]


class Order(msgspec.Struct):
    sku: Annotated[str, Meta(min_length=1)]
    quantity: Annotated[int, Meta(ge=1)] = 1

    def __post_init__(self) -> None:
        if self.sku == "forbidden":
            raise ValueError("this one is not for sale")


@dataclass
class Point:
    x: int
    y: int = 0


def _request(
    body: bytes = b"",
    *,
    headers: list[tuple[str, str]] | None = None,
    query: str = "",
    params: dict[str, str] | None = None,
) -> Request[Any]:
    descriptor = RequestDescriptor(PROTOCOL, "r", "reply", 2, 1, "POST", "/a%20b", query=query, headers=headers or [])
    return Request(descriptor, params or {}, body)


def _filled(body: bytes, body_type: Any = Order, *, headers: list[tuple[str, str]] | None = None) -> Any:
    request = _request(body, headers=JSON if headers is None else headers)
    RequestReader(body=DeclaredType(body_type, where="body")).fill(request)
    return request.body


# -- what was received --------------------------------------------------------------------------


def test_method_path_params_and_raw_body_are_as_received() -> None:
    request = _request(b"\x00\xff", params={"id": "a b"})

    assert (request.method, request.path, request.params, request.raw_body) == (
        "POST",
        "/a%20b",
        {"id": "a b"},
        b"\x00\xff",
    )


def test_a_repeated_header_is_a_list_in_order() -> None:
    request = _request(headers=[("a", "1"), ("b", "x"), ("a", "2"), ("a", "3")])

    assert request.headers == {"a": ["1", "2", "3"], "b": "x"}


@pytest.mark.parametrize(
    ("headers", "content_type"),
    [
        ([], ""),
        ([("content-type", "application/json")], "application/json"),
        ([("content-type", " Application/JSON ; charset=utf-8")], "application/json"),
        ([("accept", "x/y"), ("content-type", "text/plain")], "text/plain"),
        ([("content-type", "")], ""),
    ],
)
def test_the_content_type_is_lower_case_and_without_parameters(
    headers: list[tuple[str, str]], content_type: str
) -> None:
    assert _request(headers=headers).content_type == content_type


@pytest.mark.parametrize(
    ("query", "parsed"),
    [
        ("", {}),
        ("a=1", {"a": "1"}),
        ("a=1&b=2&a=3", {"a": ["1", "3"], "b": "2"}),
        ("a", {"a": ""}),
        ("a=", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("a=1+2%2B3", {"a": "1 2+3"}),
        ("%C3%A4=%E4%B8%96", {"ä": "世"}),
        ("a=1;b=2", {"a": "1;b=2"}),
        ("&&a=1&", {"a": "1"}),
    ],
)
def test_the_query_is_decoded_and_a_repeated_key_is_a_list(query: str, parsed: dict[str, Any]) -> None:
    assert _request(query=query).query == parsed


@given(pairs=st.dictionaries(strategies.text(), strategies.text(), max_size=5))
def test_any_query_survives_encoding(pairs: dict[str, str]) -> None:
    assert _request(query=urlencode(pairs)).query == pairs


def test_a_query_of_more_parameters_than_anybody_needs_is_the_clients_error() -> None:
    assert len(_request(query="&".join(f"k{n}=1" for n in range(1000))).query) == 1000

    with pytest.raises(RequestError, match="more than 1000") as caught:
        _ = _request(query="&".join(f"k{n}=1" for n in range(1001))).query
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("headers", "cookies"),
    [
        ([], {}),
        ([("cookie", "a=1; b=2")], {"a": "1", "b": "2"}),
        ([("cookie", "a=1"), ("cookie", "b=2")], {"a": "1", "b": "2"}),
        ([("cookie", "a=first; a=second")], {"a": "first"}),
        ([("cookie", 'a="quoted"')], {"a": "quoted"}),
        ([("cookie", "a=b=c")], {"a": "b=c"}),
        ([("cookie", "a=; b")], {"a": ""}),
        ([("cookie", ";; ;a=1;")], {"a": "1"}),
        ([("set-cookie", "a=1")], {}),
    ],
)
def test_cookies_by_name_and_the_first_wins(headers: list[tuple[str, str]], cookies: dict[str, str]) -> None:
    assert _request(headers=headers).cookies == cookies


# -- untyped bodies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "raw", "body"),
    [
        ("application/json", b'{"a": [1, null, "\xc3\xa4"]}', {"a": [1, None, "ä"]}),
        ("application/json; charset=utf-8", b"7", 7),
        ("application/problem+json", b'{"a":1}', {"a": 1}),
        ("application/json", b"null", None),
        ("application/x-www-form-urlencoded", b"a=1&b=x+y&a=%C3%A4&c=", {"a": ["1", "ä"], "b": "x y", "c": ""}),
        ("text/plain", "grüße".encode(), "grüße"),
        ("text/csv; charset=utf-8", b"a,b", "a,b"),
        ("application/octet-stream", b"\x00\xff", b"\x00\xff"),
        ("image/png", b"{}", b"{}"),
        ("", b'{"a":1}', b'{"a":1}'),
    ],
)
def test_an_untyped_body_follows_its_content_type(content_type: str, raw: bytes, body: object) -> None:
    assert _request(raw, headers=[("content-type", content_type)]).body == body


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain", ""])
def test_no_body_is_none_whatever_the_content_type(content_type: str) -> None:
    assert _request(b"", headers=[("content-type", content_type)]).body is None


@pytest.mark.parametrize(
    ("content_type", "raw"),
    [
        ("application/json", b"{"),
        ("application/json", b"{'a': 1}"),
        ("application/json", b"\xff"),
        ("application/json", b'"\xff"'),
        ("application/json", b"1 2"),
        ("application/json", b"NaN"),
        ("application/json", b"[" * 100_000),
        ("application/merge-patch+json", b"nope"),
        ("text/plain", b"\xff\xfe"),
        ("application/x-www-form-urlencoded", b"\xff=1"),
        ("application/x-www-form-urlencoded", b"a=1&" * 2000),
    ],
)
def test_a_body_that_is_not_what_it_claims_is_invalid(content_type: str, raw: bytes) -> None:
    request = _request(raw, headers=[("content-type", content_type)])

    with pytest.raises(InvalidBody, match=f"the body is not {content_type.replace('+', '.')}: "):
        _ = request.body


def test_a_body_is_decoded_once() -> None:
    request = _request(b'{"a": 1}', headers=JSON)

    assert request.body is request.body


# -- typed bodies -------------------------------------------------------------------------------


def test_a_typed_body_is_an_instance_of_its_type() -> None:
    assert _filled(b'{"sku": "ada", "quantity": 2}') == Order("ada", 2)
    assert _filled(b'[{"x": 1}, {"x": 2, "y": 3}]', list[Point]) == [Point(1), Point(2, 3)]


@pytest.mark.parametrize("content_type", ["application/json", "application/vnd.shop+json; v=1", "APPLICATION/JSON", ""])
def test_a_typed_body_is_read_from_json_or_from_a_body_without_a_type(content_type: str) -> None:
    headers = [("content-type", content_type)] if content_type else []

    assert _filled(b'{"sku": "ada"}', headers=headers) == Order("ada")


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "json"])
def test_a_typed_body_of_another_content_type_is_unsupported(content_type: str) -> None:
    with pytest.raises(UnsupportedMedia, match="must be application/json, not"):
        _filled(b'{"sku": "ada"}', headers=[("content-type", content_type)])


def test_a_typed_body_may_not_be_missing() -> None:
    with pytest.raises(InvalidBody, match="a JSON body is required"):
        _filled(b"")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{}", "sku: value is required"),
        (b'{"sku": 1}', "sku: expected string, got 1"),
        (b'{"sku": ""}', "sku: expected at least 1 character, got"),
        (b'{"sku": "a", "quantity": 0}', "quantity: expected at least 1, got 0"),
        (b'{"sku": "a", "quantity": "2"}', 'quantity: expected integer, got "2"'),
        (b'{"sku": "forbidden"}', "not for sale"),
        (b"[]", r"\(root\): expected object, got array\[0\]"),
        (b"null", r"\(root\): expected object, got null"),
    ],
)
def test_a_body_that_does_not_fit_is_invalid_and_says_which_field_and_why(raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidBody, match=reason):
        _filled(raw)


@pytest.mark.parametrize("raw", [b"{", b'{"sku": "a"} x', b"\xff\xfe", b'{"sku": "\xff"}', b'{"x":' + b"[" * 100_000])
def test_bytes_that_are_no_json_are_invalid(raw: bytes) -> None:
    with pytest.raises(InvalidBody, match=r"the body is (not JSON|not UTF-8|nested too deeply)"):
        _filled(raw)


@given(raw=st.binary(max_size=60))
def test_no_bytes_get_past_the_reader_unless_they_fit(raw: bytes) -> None:
    try:
        assert isinstance(_filled(raw), Order)
    except InvalidBody:
        pass
