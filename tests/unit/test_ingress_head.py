"""What the ingress reads from the headers of a request, and what it passes on."""

from __future__ import annotations

import itertools

import pytest

from gati_ingress.head import Head, read_head


def _head(*pairs: tuple[str, str]) -> Head:
    return read_head([(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs])


def test_a_request_without_headers_has_the_defaults() -> None:
    head = _head()

    assert (head.pairs, head.version, head.flags, head.priority) == ([], "", [], 5)
    assert (head.content_length, head.has_body, head.traceparent, head.idempotency_key) == (-1, False, "", "")


def test_headers_pass_in_their_order_with_repeats_and_as_latin_text() -> None:
    pairs = [("host", "x"), ("accept", "a"), ("cookie", "a=1"), ("accept", "b"), ("x-name", "gr\xfc\xdfe")]

    assert _head(*pairs).pairs == pairs


@pytest.mark.parametrize(
    "name",
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"],
)
def test_headers_about_the_connection_stay_at_the_ingress(name: str) -> None:
    assert _head(("host", "x"), (name, "something"), ("accept", "y")).pairs == [("host", "x"), ("accept", "y")]


@pytest.mark.parametrize(
    ("pairs", "content_length", "has_body"),
    [
        ([("content-length", "0")], 0, False),
        ([("content-length", "7")], 7, True),
        ([("transfer-encoding", "chunked")], -1, True),
        ([("content-type", "text/plain")], -1, False),
    ],
)
def test_a_body_is_expected_where_the_head_says_so(
    pairs: list[tuple[str, str]], content_length: int, has_body: bool
) -> None:
    head = _head(*pairs)

    assert (head.content_length, head.has_body) == (content_length, has_body)


# -- version ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x-gati-version", "x-api-version", "x-version"])
def test_the_version_is_read_under_each_of_its_names_and_passed_on(name: str) -> None:
    head = _head((name, "v2"))

    assert (head.version, head.pairs) == ("v2", [(name, "v2")])


@pytest.mark.parametrize("order", list(itertools.permutations(["x-gati-version", "x-api-version", "x-version"])))
def test_of_several_version_headers_our_own_wins_in_any_order(order: tuple[str, ...]) -> None:
    assert _head(*[(name, name) for name in order]).version == "x-gati-version"


def test_x_api_version_comes_before_x_version() -> None:
    assert _head(("x-version", "1"), ("x-api-version", "2")).version == "2"


def test_a_blank_version_counts_as_absent() -> None:
    assert _head(("x-gati-version", " "), ("x-version", "1")).version == "1"


def test_of_repeated_versions_the_first_is_taken() -> None:
    assert _head(("x-gati-version", "1"), ("x-gati-version", "2")).version == "1"


# -- priority -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x-gati-priority", "x-priority"])
@pytest.mark.parametrize(
    ("value", "priority"),
    [
        ("0", 0),
        ("7", 7),
        ("10", 10),
        ("11", 10),
        ("999999999999999999999", 10),
        ("-1", 0),
        (" 8 ", 8),
        ("", 5),
        ("high", 5),
        ("7.5", 5),
        ("nan", 5),
        ("9" * 10_000, 5),
    ],
)
def test_the_priority_is_clamped_and_what_is_no_number_is_the_default(name: str, value: str, priority: int) -> None:
    assert _head((name, value)).priority == priority


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_priorities_our_own_wins_in_any_order(order: tuple[int, int]) -> None:
    pairs = [("x-gati-priority", "9"), ("x-priority", "1")]

    assert _head(*[pairs[at] for at in order]).priority == 9


# -- flags --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x-gati-flags", "x-flags"])
@pytest.mark.parametrize(
    ("value", "flags"),
    [
        ("beta", ["beta"]),
        ("Beta, DARK-mode ,x", ["beta", "dark-mode", "x"]),
        (" , ,beta,, ", ["beta"]),
        ("", []),
        (",", []),
    ],
)
def test_flags_are_a_list_in_lower_case_without_blanks(name: str, value: str, flags: list[str]) -> None:
    assert _head((name, value)).flags == flags


def test_flags_in_several_headers_are_one_list() -> None:
    assert _head(("x-gati-flags", "a"), ("host", "x"), ("x-gati-flags", "b,c")).flags == ["a", "b", "c"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_names_for_flags_our_own_wins_in_any_order(order: tuple[int, int]) -> None:
    pairs = [("x-gati-flags", "ours"), ("x-flags", "theirs")]

    assert _head(*[pairs[at] for at in order]).flags == ["ours"]


def test_there_are_at_most_32_flags() -> None:
    assert len(_head(("x-gati-flags", ",".join(map(str, range(100))))).flags) == 32


def test_the_headers_that_were_read_still_reach_the_handler() -> None:
    pairs = [("x-flags", "A"), ("x-priority", "3"), ("content-length", "2"), ("traceparent", "00-1")]

    assert _head(*pairs).pairs == pairs


# -- identity -----------------------------------------------------------------------------------


def test_the_clients_request_id_is_kept_under_another_name_and_never_used_as_ours() -> None:
    assert _head(("x-request-id", "theirs")).pairs == [("x-client-request-id", "theirs")]


def test_trace_and_idempotency_key_are_read_and_passed_on() -> None:
    head = _head(("traceparent", "00-1"), ("idempotency-key", "k"))

    assert (head.traceparent, head.idempotency_key) == ("00-1", "k")
    assert head.pairs == [("traceparent", "00-1"), ("idempotency-key", "k")]


def test_one_request_never_sees_what_another_one_sent() -> None:
    _head(("x-flags", "a"), ("host", "x"))

    assert (_head().flags, _head().pairs) == ([], [])
