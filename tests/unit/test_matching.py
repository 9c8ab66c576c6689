"""Which route a method and a path mean."""

from __future__ import annotations

import itertools
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gati_core.errors import InvalidPath, MethodNotAllowed, RouteNotFound, UpgradeRequired
from gati_router.matching import RouteTable

Routes = list[tuple[str, str, int]]
Outcome = tuple[object, ...]

METHODS = ("GET", "HEAD", "POST", "DELETE")
_LITERALS = ("a", "b", "a.b", "ü", "%", "a b", "{")
_PARTS = ("a", "b", "a.b", "%61", "%C3%BC", "%25", "a%20b", "%2F", "a%2Fb", "{x}", "%7B", "x", "")


def _route_texts() -> st.SearchStrategy[str]:
    literal = st.sampled_from([text for text in _LITERALS if text != "{"])
    segment = literal | st.sampled_from(["{p}", "{q}", "{r}"])
    return st.lists(segment, max_size=4).filter(_names_differ).map(lambda parts: "/" + "/".join(parts))


def _names_differ(parts: list[str]) -> bool:
    names = [part for part in parts if part.startswith("{")]
    return len(set(names)) == len(names)


def _routes() -> st.SearchStrategy[Routes]:
    pairs = st.lists(st.tuples(st.sampled_from(METHODS), _route_texts()), max_size=12)
    return pairs.map(lambda found: [(method, route, number) for number, (method, route) in enumerate(found)])


def _request_paths() -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(_PARTS), max_size=5).map(lambda parts: "/" + "/".join(parts))


def _reference(routes: Routes, method: str, path: str) -> Outcome:
    """Every route in turn, segment by segment; the most literal match wins, then the first registered."""
    segments = [unquote_to_bytes(part).decode() for part in path.split("/") if part]
    fits = []
    for method_of_route, route, target in routes:
        pattern = [part for part in route.split("/") if part]
        is_parameter = [part.startswith("{") for part in pattern]
        if len(pattern) == len(segments) and all(
            free or part == segment for free, part, segment in zip(is_parameter, pattern, segments, strict=True)
        ):
            values = {p[1:-1]: s for p, s, free in zip(pattern, segments, is_parameter, strict=True) if free}
            fits.append((is_parameter, target, method_of_route, values))
    if not fits:
        return ("404",)
    # HEAD falls back to GET route by route: a more literal GET beats a less literal HEAD.
    wanted = [method, "GET"] if method == "HEAD" else [method]
    serving = [fit for fit in fits if fit[2] in wanted]
    if not serving:
        allow = {fit[2] for fit in fits}
        return ("405", tuple(sorted(allow | ({"HEAD"} if "GET" in allow else set()))))
    best = min(serving, key=lambda fit: (fit[0], wanted.index(fit[2]), fit[1]))
    return ("200", best[1], best[3])


def _outcome(table: RouteTable[int], method: str, path: str) -> Outcome:
    try:
        return ("200", *table.match(method, path))
    except MethodNotAllowed as exc:
        return ("405", exc.allow)
    except RouteNotFound:
        return ("404",)


def _params(table: RouteTable[int], path: str, method: str = "GET") -> dict[str, str]:
    return table.match(method, path)[1]


@given(routes=_routes(), method=st.sampled_from([*METHODS, "PATCH"]), path=_request_paths())
@example(routes=[("GET", "/%", 0)], method="GET", path="/%25")
@example(routes=[("GET", "/%25", 0)], method="GET", path="/%25")
@example(routes=[("HEAD", "/{p}", 0), ("GET", "/a", 1)], method="HEAD", path="/a")
def test_the_table_agrees_with_a_naive_matcher(routes: Routes, method: str, path: str) -> None:
    assert _outcome(RouteTable(routes), method, path) == _reference(routes, method, path)


@given(data=st.data(), routes=_routes(), method=st.sampled_from(METHODS), path=_request_paths())
def test_the_order_of_registration_does_not_matter_for_routes_of_different_shapes(
    data: st.DataObject, routes: Routes, method: str, path: str
) -> None:
    shapes = {(m, "/".join("{}" if s.startswith("{") else s for s in r.split("/"))): (m, r, t) for m, r, t in routes}
    distinct = list(shapes.values())
    shuffled = data.draw(st.permutations(distinct))

    assert _outcome(RouteTable(shuffled), method, path) == _outcome(RouteTable(distinct), method, path)


@given(
    values=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), max_size=4)
)
def test_any_text_survives_as_a_parameter_of_an_encoded_path(values: list[str]) -> None:
    table = RouteTable([("GET", "/" + "/".join(f"{{p{number}}}" for number in range(len(values))), 1)])

    assert list(_params(table, "/" + "/".join(quote(value, safe="") for value in values)).values()) == values


def test_an_empty_table_knows_no_path() -> None:
    with pytest.raises(RouteNotFound, match="no handler listens on /x"):
        RouteTable[int]().match("GET", "/x")


@pytest.mark.parametrize("order", list(itertools.permutations(["/users/{id}", "/users/me", "/{kind}/me"])))
def test_static_segments_win_over_parameters_in_any_order_of_registration(order: tuple[str, ...]) -> None:
    table = RouteTable([("GET", route, route) for route in order])

    assert [table.match("GET", path)[0] for path in ("/users/me", "/users/7", "/teams/me")] == [
        "/users/me",
        "/users/{id}",
        "/{kind}/me",
    ]


def test_a_static_branch_that_leads_nowhere_is_left_again() -> None:
    table = RouteTable([("GET", "/a/b/c", "static"), ("GET", "/a/{x}/d", "mixed"), ("GET", "/{x}/{y}/{z}", "free")])

    assert table.match("GET", "/a/b/d") == ("mixed", {"x": "b"})
    assert table.match("GET", "/a/b/e") == ("free", {"x": "a", "y": "b", "z": "e"})


def test_values_tried_on_a_way_that_was_left_are_forgotten() -> None:
    table = RouteTable([("GET", "/{a}/x/{b}/end", 1), ("GET", "/{a}/{b}/{c}/stop", 2)])

    assert table.match("GET", "/1/x/3/stop") == (2, {"a": "1", "b": "x", "c": "3"})


def test_a_parameter_route_is_used_where_the_static_one_lacks_the_method() -> None:
    table = RouteTable([("GET", "/users/me", "me"), ("DELETE", "/users/{id}", "delete")])

    assert table.match("DELETE", "/users/me") == ("delete", {"id": "me"})


def test_of_two_routes_of_one_shape_the_first_is_kept() -> None:
    table = RouteTable([("GET", "/users/{id}", "first"), ("GET", "/users/{name}", "second")])

    assert table.match("GET", "/users/7") == ("first", {"id": "7"})
    assert table.size == 1


def test_each_method_of_a_shape_has_its_own_parameter_names() -> None:
    table = RouteTable([("GET", "/users/{id}", "read"), ("PUT", "/users/{name}", "write")])

    assert table.match("GET", "/users/7") == ("read", {"id": "7"})
    assert table.match("PUT", "/users/7") == ("write", {"name": "7"})


def test_routes_that_share_a_prefix_may_name_its_parameter_differently() -> None:
    table = RouteTable([("GET", "/users/{id}", 1), ("GET", "/users/{user}/orders/{id}", 2)])

    assert _params(table, "/users/7/orders/9") == {"user": "7", "id": "9"}


@pytest.mark.parametrize(("route", "path"), [("/ping", "/ping"), ("/{word}", "/ping")])
def test_head_falls_back_to_get(route: str, path: str) -> None:
    assert RouteTable([("GET", route, "get")]).match("HEAD", path)[0] == "get"


@pytest.mark.parametrize(("route", "path"), [("/ping", "/ping"), ("/{word}", "/ping")])
def test_heads_own_route_wins_over_get(route: str, path: str) -> None:
    assert RouteTable([("GET", route, "get"), ("HEAD", route, "head")]).match("HEAD", path)[0] == "head"


def test_get_does_not_fall_back_to_head() -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        RouteTable([("HEAD", "/ping", 1)]).match("GET", "/ping")

    assert caught.value.allow == ("HEAD",)


def test_a_known_path_with_another_method_names_the_methods_of_every_route_that_fits() -> None:
    table = RouteTable([("GET", "/users/me", 1), ("PUT", "/users/{id}", 2), ("POST", "/users", 3)])

    with pytest.raises(MethodNotAllowed, match="/users/me answers to GET, HEAD, PUT, not to DELETE") as caught:
        table.match("DELETE", "/users/me")

    assert caught.value.allow == ("GET", "HEAD", "PUT")


@pytest.mark.parametrize("path", ["/a/b", "/a/b/", "//a//b", "/a///b//", "a/b"])
def test_repeated_and_trailing_slashes_do_not_matter(path: str) -> None:
    assert RouteTable([("GET", "/a/b", 1)]).match("GET", path) == (1, {})
    assert RouteTable([("GET", "/a/{x}", 1)]).match("GET", path) == (1, {"x": "b"})


@pytest.mark.parametrize("path", ["/", "//", ""])
def test_the_root_has_one_route_however_it_is_written(path: str) -> None:
    assert RouteTable([("GET", "/", "root"), ("GET", "/{x}", "other")]).match("GET", path) == ("root", {})


def test_a_parameter_never_matches_an_empty_segment() -> None:
    with pytest.raises(RouteNotFound):
        RouteTable([("GET", "/users/{id}", 1)]).match("GET", "/users//")


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("a%20b", "a b"),
        ("a+b", "a+b"),
        ("%C3%A4", "ä"),
        ("%e4%b8%96", "世"),
        ("100%25", "100%"),
        ("%2525", "%25"),
        ("a%2Fb", "a/b"),
        ("%2f", "/"),
        ("%2E%2e", ".."),
        ("a%3Fb%23c", "a?b#c"),
        ("%0A", "\n"),
    ],
)
def test_parameters_are_percent_decoded_once(raw: str, value: str) -> None:
    assert _params(RouteTable([("GET", "/x/{v}", 1)]), f"/x/{raw}") == {"v": value}


def test_an_encoded_slash_stays_inside_its_segment() -> None:
    table = RouteTable([("GET", "/files/{name}", "one"), ("GET", "/files/{dir}/{name}", "two")])

    assert table.match("GET", "/files/a%2Fb") == ("one", {"name": "a/b"})
    assert table.match("GET", "/files/a%2Fb/c") == ("two", {"dir": "a/b", "name": "c"})


def test_an_encoded_literal_is_the_literal() -> None:
    assert RouteTable([("GET", "/größe/a b", 1)]).match("GET", "/gr%C3%B6%C3%9Fe/a%20b") == (1, {})


def test_a_literal_with_a_percent_sign_is_compared_after_decoding() -> None:
    table = RouteTable([("GET", "/100%25", "twice"), ("GET", "/100%", "once")])

    assert table.match("GET", "/100%25")[0] == "once"
    assert table.match("GET", "/100%2525")[0] == "twice"


@pytest.mark.parametrize("route", ["/x/{v}", "/x/%", "/x/{v}/more", "/y"])
@pytest.mark.parametrize("raw", ["%", "%2", "%zz", "a%", "%%41", "%u0041", "%-1", "% 1"])
def test_a_bad_escape_is_an_invalid_path_whether_or_not_a_route_fits(route: str, raw: str) -> None:
    with pytest.raises(InvalidPath, match="bad percent escape"):
        RouteTable([("GET", route, 1)]).match("GET", f"/x/{raw}")


@pytest.mark.parametrize("raw", ["%FF", "%C3", "%C0%AF", "%ED%A0%80", "a%80b"])
def test_escapes_that_are_no_utf8_are_an_invalid_path(raw: str) -> None:
    with pytest.raises(InvalidPath, match="not UTF-8"):
        RouteTable([("GET", "/x/{v}", 1)]).match("GET", f"/x/{raw}")


@pytest.mark.parametrize("route", ["/x/{v}", "/x/a\0b"])
@pytest.mark.parametrize("raw", ["%00", "a%00b", "a\0b"])
def test_a_nul_byte_is_an_invalid_path(route: str, raw: str) -> None:
    with pytest.raises(InvalidPath, match="NUL"):
        RouteTable([("GET", route, 1)]).match("GET", f"/x/{raw}")


@pytest.mark.parametrize("literal", ["a.b", "a+", "(a)", "[ab]", "a|b", "^a$", "a*", "\\d", "a?b"])
def test_characters_that_mean_something_in_a_regex_are_literal(literal: str) -> None:
    table = RouteTable([("GET", f"/{literal}", 1)])

    assert table.match("GET", "/" + quote(literal)) == (1, {})
    for other in ("axb", "a", "aa", "b", "1", "ab"):
        with pytest.raises(RouteNotFound):
            table.match("GET", f"/{other}")


def test_literals_are_compared_with_their_case() -> None:
    with pytest.raises(RouteNotFound):
        RouteTable([("GET", "/Users", 1)]).match("GET", "/users")


@pytest.mark.parametrize("path", ["/" + "a" * 1_000_000, "/a" * 200_000, "/" * 500_000 + "x/y/z"])
def test_a_very_long_or_deep_path_is_not_found_and_its_error_is_short(path: str) -> None:
    table = RouteTable([("GET", "/a/{x}/{y}", 1), ("GET", "/a/a/a/a", 2)])

    with pytest.raises(RouteNotFound) as caught:
        table.match("GET", path)

    assert len(str(caught.value)) < 300


def test_a_very_long_parameter_is_passed_on_whole() -> None:
    assert _params(RouteTable([("GET", "/{x}", 1)]), "/" + "a" * 100_000) == {"x": "a" * 100_000}


def test_the_deepest_route_that_a_manifest_can_hold_matches() -> None:
    route = "/{p}" + "/a" * 510

    assert RouteTable([("GET", route, 1)]).match("GET", route.replace("{p}", "v")) == (1, {"p": "v"})


# -- sockets ------------------------------------------------------------------------------------


SOCKETS: RouteTable[str] = RouteTable(
    [
        ("WEBSOCKET", "/chat", "chat"),
        ("WEBSOCKET", "/both", "socket"),
        ("GET", "/both", "page"),
        ("GET", "/page", "plain"),
        ("WEBSOCKET", "/{room}/live", "room"),
    ]
)


@pytest.mark.parametrize(("path", "target"), [("/chat", "chat"), ("/both", "socket"), ("/a/live", "room")])
def test_a_handshake_finds_the_socket(path: str, target: str) -> None:
    assert SOCKETS.match("WEBSOCKET", path)[0] == target


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/chat", "/x/live"])
def test_plain_http_where_only_a_socket_listens_is_told_to_upgrade(method: str, path: str) -> None:
    with pytest.raises(UpgradeRequired) as caught:
        SOCKETS.match(method, path)

    assert caught.value.status == 426


@pytest.mark.parametrize(("method", "path"), [("POST", "/both"), ("WEBSOCKET", "/page")])
def test_the_methods_that_are_allowed_never_name_the_socket(method: str, path: str) -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        SOCKETS.match(method, path)

    assert caught.value.allow == ("GET", "HEAD")


def test_a_handshake_on_an_unknown_path_is_not_found() -> None:
    with pytest.raises(RouteNotFound):
        SOCKETS.match("WEBSOCKET", "/nowhere")
