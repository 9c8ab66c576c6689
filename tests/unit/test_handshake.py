"""WebSocket handshakes and closes, as far as they are rules."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gati_core.errors import InvalidResponse, RequestError, UpgradeRequired
from gati_core.wire import HeaderPairs, problem_parts
from gati_ingress.handshake import check_handshake, chosen, close_to_client, offered, passed_on

KEY = base64.b64encode(b"0123456789abcdef")
GOOD = [(b"host", b"x"), (b"sec-websocket-version", b"13"), (b"sec-websocket-key", KEY)]


def without(name: bytes) -> list[tuple[bytes, bytes]]:
    return [pair for pair in GOOD if pair[0] != name]


def test_a_valid_handshake_gives_its_key() -> None:
    assert check_handshake(GOOD, "1.1") == KEY
    assert check_handshake([*GOOD, (b"content-length", b"0")], "1.1") == KEY


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        (GOOD, "1.0"),
        (without(b"sec-websocket-version"), "1.1"),
        ([*without(b"sec-websocket-version"), (b"sec-websocket-version", b"14")], "1.1"),
        ([*GOOD, (b"sec-websocket-version", b"13")], "1.1"),
    ],
)
def test_another_version_is_told_which_one_is_spoken(headers: list[tuple[bytes, bytes]], version: str) -> None:
    with pytest.raises(UpgradeRequired) as caught:
        check_handshake(headers, version)

    status, answer, _ = problem_parts(caught.value, "id")
    assert status == 426
    assert {("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-version", "13")} <= set(answer)


@pytest.mark.parametrize(
    "headers",
    [
        without(b"sec-websocket-key"),
        [*GOOD, (b"sec-websocket-key", KEY)],
        [*without(b"sec-websocket-key"), (b"sec-websocket-key", b"")],
        [*without(b"sec-websocket-key"), (b"sec-websocket-key", b"a")],
        [*without(b"sec-websocket-key"), (b"sec-websocket-key", b"\xff" * 24)],
        [*without(b"sec-websocket-key"), (b"sec-websocket-key", base64.b64encode(b"short"))],
        [*GOOD, (b"transfer-encoding", b"chunked")],
        [*GOOD, (b"content-length", b"1")],
    ],
)
def test_a_malformed_handshake_is_a_bad_request(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(RequestError) as caught:
        check_handshake(headers, "1.1")

    assert caught.value.status == 400


def test_what_belongs_to_the_handshake_stays_here_and_the_subprotocols_are_passed_on() -> None:
    headers = [*GOOD, (b"sec-websocket-extensions", b"x"), (b"sec-websocket-protocol", b"a, b")]

    assert passed_on(headers) == [(b"host", b"x"), (b"sec-websocket-protocol", b"a, b")]


def test_subprotocols_are_offered_in_several_headers_or_in_one() -> None:
    headers = [(b"sec-websocket-protocol", b"a, b ,,"), (b"sec-websocket-protocol", b"c")]

    assert offered(headers) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [([], ""), ([("Sec-WebSocket-Protocol", " b ")], "b"), ([("x", "y")], "")],
)
def test_a_handler_chooses_one_that_was_offered_or_none(headers: HeaderPairs, expected: str) -> None:
    assert chosen(headers, ["a", "b"]) == expected


@pytest.mark.parametrize("values", [["c"], ["A"], [""], ["a", "b"], ["a, b"]])
def test_anything_else_is_a_mistake_of_the_handler(values: list[str]) -> None:
    with pytest.raises(InvalidResponse):
        chosen([("sec-websocket-protocol", value) for value in values], ["a", "b"])


@given(code=st.integers(-10, 70_000), reason=st.text(max_size=300))
def test_whatever_a_handler_closes_with_can_be_sent(code: int, reason: str) -> None:
    event = close_to_client(code, reason)

    assert event["code"] in {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    assert len(event["reason"].encode()) <= 123
    if 3000 <= code <= 4999:
        assert event["code"] == code
