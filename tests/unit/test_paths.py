"""Routes have one spelling, or are refused with the reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gati_core.app._paths import normalize_route
from gati_core.errors import RegistrationError


@pytest.mark.parametrize(
    ("written", "route", "names"),
    [
        ("/", "/", ()),
        ("", "/", ()),
        ("///", "/", ()),
        ("/ping", "/ping", ()),
        ("ping", "/ping", ()),
        ("/ping/", "/ping", ()),
        ("//users///me//", "/users/me", ()),
        ("/users/{id}", "/users/{id}", ("id",)),
        ("/users/:id", "/users/{id}", ("id",)),
        ("/:a/{b}/:c_1", "/{a}/{b}/{c_1}", ("a", "b", "c_1")),
        ("/{_x}", "/{_x}", ("_x",)),
        ("/orders:cancel", "/orders:cancel", ()),
        ("/a.b+c*(d)", "/a.b+c*(d)", ()),
        ("/größe/a b", "/größe/a b", ()),
    ],
)
def test_a_route_is_written_in_one_way(written: str, route: str, names: tuple[str, ...]) -> None:
    assert normalize_route(written) == (route, names)


@given(
    parts=st.lists(st.sampled_from(["a", "b.c", "", ":id", "{name}", "x:y"]), max_size=6).filter(
        lambda parts: parts.count(":id") < 2 and parts.count("{name}") < 2
    )
)
def test_a_normal_route_stays_as_it_is(parts: list[str]) -> None:
    route, names = normalize_route("/".join(parts))

    assert normalize_route(route) == (route, names)


@pytest.mark.parametrize("path", ["/a?b=1", "/a#top", "/?", "?"])
def test_a_query_or_fragment_is_refused(path: str) -> None:
    with pytest.raises(RegistrationError, match="no query and no fragment"):
        normalize_route(path)


@pytest.mark.parametrize("path", ["/a\0b", "/a\nb", "/\x7f", "/a\tb"])
def test_control_characters_are_refused(path: str) -> None:
    with pytest.raises(RegistrationError, match="control characters"):
        normalize_route(path)


@pytest.mark.parametrize(
    "segment",
    [
        "{",
        "}",
        "{}",
        "{a",
        "a}",
        "{a}{b}",
        "x{a}",
        "{a}.json",
        "{a-b}",
        "{1a}",
        "{a b}",
        "{ä}",
        ":",
        ":1",
        ":a-b",
        ":a.b",
    ],
)
def test_a_parameter_that_is_no_whole_segment_or_has_no_proper_name_is_refused(segment: str) -> None:
    with pytest.raises(RegistrationError, match="must be literal or exactly one"):
        normalize_route(f"/users/{segment}")


@pytest.mark.parametrize("path", ["/{id}/{id}", "/:id/x/{id}", "/:id/:id"])
def test_a_parameter_that_repeats_is_refused(path: str) -> None:
    with pytest.raises(RegistrationError, match="'id' occurs twice"):
        normalize_route(path)


def test_a_route_longer_than_a_manifest_may_say_is_refused() -> None:
    longest = "/" + "a" * 1023

    assert normalize_route(longest) == (longest, ())
    with pytest.raises(RegistrationError, match="1025 characters exceed the limit of 1024"):
        normalize_route(longest + "a")
