"""What an app registers, by default and on request, and what it refuses."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
import pytest

from gati_core import App, Request, Response
from gati_core.errors import RegistrationError
from gati_core.manifests import METHODS, HandlerManifest

HERE = rf"\({re.escape(__file__)}:\d+\)"


class Order(msgspec.Struct):
    sku: str


async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
    """One line.

    More lines.
    """


async def other(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...


def plain(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...


def _register(*args: Any, **options: Any) -> HandlerManifest:
    app = App("shop")
    app.route(*args, **options)(handler)
    return app.handlers[options.get("id") or "handler"].manifest


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shop", "a", "7", "Shop_2-x", "a" * 55])
def test_an_app_has_a_name(name: str) -> None:
    assert App(name).name == name


@pytest.mark.parametrize("name", ["", "a.b", "a b", "-a", "_a", "ä", "a*", "a>", "a" * 56, "a" * 65])
def test_a_name_that_cannot_be_part_of_a_subject_is_refused(name: str) -> None:
    with pytest.raises(RegistrationError, match="app name"):
        App(name)


# -- routes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_decorator(method: str) -> None:
    app = App("shop")
    decorate = getattr(app, method.lower())("/orders/:id", timeout_s=2.5)

    route = decorate(handler)

    assert (route.function, route.id, route.__name__) == (handler, "handler", "handler")

    manifest = app.handlers["handler"].manifest
    assert (manifest.methods, manifest.path, manifest.timeout_s) == ([method], "/orders/{id}", 2.5)


def test_one_handler_may_serve_several_methods() -> None:
    assert _register("/x", methods=["GET", "POST"]).methods == ["GET", "POST"]


def test_a_method_named_twice_counts_once() -> None:
    assert _register("/x", methods=["GET", "POST", "GET"]).methods == ["GET", "POST"]


def test_a_manifest_says_what_the_handler_is() -> None:
    manifest = _register("orders//:id/", methods=["GET"])

    assert re.fullmatch("[0-9a-f]{64}", manifest.fingerprint)
    assert manifest.source.endswith(f"test_app.py:{handler.__code__.co_firstlineno}")
    assert msgspec.structs.replace(manifest, fingerprint="", hash="") == HandlerManifest(
        id="handler",
        methods=["GET"],
        path="/orders/{id}",
        mode="at_least_once",
        timeout_s=30.0,
        is_async=True,
        summary="One line.",
        source=manifest.source,
    )


def test_a_def_handler_is_known_as_one() -> None:
    app = App("shop")
    app.get("/x")(plain)

    assert app.handlers["plain"].manifest.is_async is False
    assert app.handlers["plain"].call.is_async is False


def test_the_call_is_ready_with_function_route_and_time_limit() -> None:
    app = App("shop")
    app.get("/x/:y", timeout_s=3)(handler)

    call = app.handlers["handler"].call

    assert (call.function, call.id, call.path, call.timeout_s) == (handler, "handler", "/x/{y}", 3)
    assert call.request_reader is None


def test_a_typed_request_gets_a_reader_for_its_body() -> None:
    app = App("shop")

    @app.post("/orders")
    async def create(req: Request[Order], res: Response[None], gctx: Any, lctx: Any) -> None: ...

    assert app.handlers["create"].call.request_reader is not None


def test_the_same_path_may_have_one_handler_for_each_method() -> None:
    app = App("shop")
    app.get("/x")(handler)
    app.post("/x")(other)

    assert sorted(app.handlers) == ["handler", "other"]


def test_the_tables_that_an_app_hands_out_are_copies() -> None:
    app = App("shop")
    app.get("/x")(handler)

    app.handlers.clear()

    assert list(app.handlers) == ["handler"]


# -- sockets ------------------------------------------------------------------------------------


def test_a_socket_handler_runs_once_and_may_stay_open_for_a_day() -> None:
    app = App("shop")
    app.websocket("/chat/:room")(handler)

    manifest = app.handlers["handler"].manifest
    assert (manifest.methods, manifest.path, manifest.mode) == (["WEBSOCKET"], "/chat/{room}", "at_most_once")
    assert (manifest.timeout_s, app.handlers["handler"].call.is_websocket) == (86_400.0, True)


def test_a_path_may_serve_sockets_beside_requests_and_one_handler_each() -> None:
    app = App("shop")
    app.get("/chat")(handler)
    app.websocket("/chat", id="socket")(handler)

    with pytest.raises(RegistrationError, match="already served by handler 'socket'"):
        app.websocket("/chat")(other)


def test_the_types_of_a_socket_handler_are_not_compared_with_messages() -> None:
    app = App("shop")

    @app.websocket("/chat")
    async def chat(req: Request[Order], res: Response[Order], gctx: Any, lctx: Any) -> None: ...

    call = app.handlers["chat"].call
    assert (call.request_reader, call.response_check) == (None, None)


def test_a_route_is_called_like_its_function_and_may_be_registered_again() -> None:
    app = App("shop")
    calls: list[Any] = []

    def note(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        calls.append(req)

    route = app.get("/x")(note)
    app.get("/y", id="again")(route)
    route(1, 2, 3, 4)

    assert (calls, app.handlers["again"].call.function, "note" in repr(route)) == ([1], note, True)


# -- ids ----------------------------------------------------------------------------------------


def test_a_handler_is_named_after_its_function_unless_it_is_given_an_id() -> None:
    assert _register("/x", methods=["GET"]).id == "handler"
    assert _register("/x", methods=["GET"], id="read-x").id == "read-x"


@pytest.mark.parametrize("id", ["", "a.b", "a b", "-a", "ä", "a" * 65, 7, b"a", True])
def test_an_id_that_cannot_be_part_of_a_subject_is_refused(id: Any) -> None:
    with pytest.raises(RegistrationError, match=rf"handler {HERE}: .*handler id"):
        _register("/x", methods=["GET"], id=id)


def test_a_lambda_needs_an_id() -> None:
    app = App("shop")
    with pytest.raises(RegistrationError, match="handler id '<lambda>'"):
        app.get("/x")(lambda req, res, gctx, lctx: None)

    app.get("/x", id="nothing")(lambda req, res, gctx, lctx: None)

    assert list(app.handlers) == ["nothing"]


def test_an_id_that_is_taken_is_refused_and_says_by_whom() -> None:
    app = App("shop")
    app.get("/x")(handler)

    taken_by = re.escape(f"{__file__}:{handler.__code__.co_firstlineno}")
    with pytest.raises(RegistrationError, match=rf"other {HERE}: handler id 'handler' is taken by {taken_by}"):
        app.get("/y", id="handler")(other)


# -- conflicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [("/x", "/x"), ("/x", "x//"), ("/users/{id}", "/users/:name"), ("/{a}/b/{c}", "/{x}/b/{y}"), ("/", "")],
)
def test_two_handlers_on_one_method_and_shape_are_a_conflict(first: str, second: str) -> None:
    app = App("shop")
    app.get(first)(handler)

    with pytest.raises(RegistrationError, match=rf"other {HERE}: GET /.* is already served by handler 'handler'"):
        app.get(second)(other)


@pytest.mark.parametrize(("first", "second"), [("/x", "/X"), ("/users/me", "/users/{id}"), ("/a/{b}", "/{a}/b")])
def test_routes_of_different_shapes_are_no_conflict(first: str, second: str) -> None:
    app = App("shop")
    app.get(first)(handler)
    app.get(second)(other)

    assert len(app.handlers) == 2


def test_a_refused_registration_leaves_nothing_behind() -> None:
    app = App("shop")
    app.post("/x")(handler)
    with pytest.raises(RegistrationError, match="POST /x is already served"):
        app.route("/x", methods=["GET", "POST"])(other)

    app.get("/x")(other)

    assert app.handlers["other"].manifest.methods == ["GET"]


# -- delivery -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "mode"),
    [
        (["GET"], "at_least_once"),
        (["HEAD"], "at_least_once"),
        (["OPTIONS"], "at_least_once"),
        (["PUT"], "at_least_once"),
        (["DELETE"], "at_least_once"),
        (["POST"], "at_most_once"),
        (["PATCH"], "at_most_once"),
        (["GET", "DELETE"], "at_least_once"),
        (["GET", "POST"], "at_most_once"),
    ],
)
def test_delivery_follows_what_http_says_about_the_methods(methods: list[str], mode: str) -> None:
    assert _register("/x", methods=methods).mode == mode


@pytest.mark.parametrize("mode", ["at_least_once", "at_most_once"])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("idempotent", [False, True])
def test_delivery_that_is_asked_for_wins_over_everything(method: str, mode: str, idempotent: bool) -> None:
    assert _register("/x", methods=[method], delivery=mode, idempotent=idempotent).mode == mode


def test_a_post_that_says_it_is_idempotent_runs_at_least_once() -> None:
    assert _register("/x", methods=["POST"], idempotent=True).mode == "at_least_once"


@pytest.mark.parametrize("delivery", ["exactly_once", "", "AT_LEAST_ONCE", 1])
def test_another_delivery_is_refused(delivery: Any) -> None:
    with pytest.raises(RegistrationError, match=rf"handler {HERE}: delivery .* is neither"):
        _register("/x", methods=["GET"], delivery=delivery)


# -- refusals name file and line -----------------------------------------------------------------


@pytest.mark.parametrize("methods", [[], ["get"], ["TRACE"], ["GET", "FETCH"]])
def test_methods_that_are_none_are_refused(methods: list[str]) -> None:
    with pytest.raises(RegistrationError, match=rf"handler {HERE}: methods .*choose from GET, POST"):
        _register("/x", methods=methods)


@pytest.mark.parametrize("timeout_s", [0, -1, math.nan, math.inf, -math.inf])
def test_a_time_limit_that_is_none_is_refused(timeout_s: float) -> None:
    with pytest.raises(RegistrationError, match=rf"handler {HERE}: timeout_s must be above 0"):
        _register("/x", methods=["GET"], timeout_s=timeout_s)


@pytest.mark.parametrize("path", ["/a?b", "/{a}{b}", "/{x}/{x}", "/\n", "/" + "a" * 2000])
def test_a_path_that_is_no_route_is_refused(path: str) -> None:
    with pytest.raises(RegistrationError, match=rf"handler {HERE}: route '"):
        _register(path, methods=["GET"])


def test_a_function_that_is_no_handler_is_refused() -> None:
    with pytest.raises(RegistrationError, match=rf"three {HERE}: a handler takes exactly"):

        @App("shop").get("/x")
        def three(req: Any, res: Any, gctx: Any) -> None: ...


def test_a_body_type_that_cannot_be_validated_is_refused() -> None:
    with pytest.raises(
        RegistrationError, match=rf"odd {HERE}: body: Type unions may not contain more than one dict type"
    ):

        @App("shop").post("/x")
        async def odd(req: Request[dict[int, str] | dict[str, int]], res: Any, gctx: Any, lctx: Any) -> None: ...


def test_every_manifest_an_app_makes_is_one_that_routers_read() -> None:
    app = App("shop")
    app.route("/" + "a" * 1023, methods=list(METHODS), id="h" * 64, timeout_s=1e-9)(handler)
    document = msgspec.json.encode(app.handlers["h" * 64].manifest)

    assert msgspec.json.decode(document, type=HandlerManifest) == app.handlers["h" * 64].manifest


# -- buckets ------------------------------------------------------------------------------------


def test_declared_buckets_are_listed_once_in_their_order() -> None:
    app = App("shop")

    assert [app.bucket(name) for name in ("orders", "carts", "orders")] == ["orders", "carts", "orders"]
    assert app.buckets == ("orders", "carts")


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*"])
def test_a_bucket_name_that_cannot_be_part_of_a_subject_is_refused(name: str) -> None:
    with pytest.raises(RegistrationError, match="bucket"):
        App("shop").bucket(name)
