"""Answers are compared with what the handler declares, on every way out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from gati_core import App, Request, Response
from gati_core.errors import InvalidResponse, RegistrationError
from gati_core.lifecycle import DeclaredType, ResponseCheck
from gati_core.lifecycle import Response as RawResponse
from tests.helpers.handling import Desk, problem, shop


class Order(msgspec.Struct):
    sku: str
    count: int = 1


def answered(*, status: int = 200, json: Any = ..., text: str | None = None, data: bytes | None = None) -> Any:
    response: RawResponse[Any] = RawResponse()
    response.status(status)
    if json is not ...:
        response.json(json)
    elif text is not None:
        response.text(text)
    elif data is not None:
        response.send(data)
    return response


@pytest.mark.parametrize(
    ("kind", "response"),
    [
        (Order, answered(json=Order("ada"))),
        (Order, answered(json={"sku": "ada", "count": 2})),
        (Order, answered(status=201, json={"sku": "ada", "more": True})),
        (list[int], answered(json=(1, 2))),
        (str, answered(text="ada")),
        (str, answered(json="ada")),
        (bytes, answered(data=b"ada")),
        (int | None, answered(json=None)),
        (Order, answered(status=404, json={"other": 1})),
        (Order, answered(status=302, text="elsewhere")),
        (Order, answered(status=204)),
    ],
)
def test_an_answer_of_the_declared_type_passes_and_so_does_what_is_no_success(kind: Any, response: Any) -> None:
    ResponseCheck(DeclaredType(kind, where="response")).check(response)


@pytest.mark.parametrize(
    ("kind", "response", "says"),
    [
        (Order, answered(json={"sku": 7}), "sku: expected string, got 7"),
        (Order, answered(json={}), "sku"),
        (Order, answered(json=[Order("ada")]), "object"),
        (Order, answered(text='{"sku": "ada"}'), "answered with text"),
        (Order, answered(data=b'{"sku": "ada"}'), "answered with bytes"),
        (str, answered(json=7), "str"),
        (bytes, answered(text="ada"), "answered with text"),
        (str, answered(data=b"ada"), "answered with bytes"),
        (int, answered(json=True), "int"),
        (Order, answered(json=msgspec.Raw(b"{")), "Order"),
        (Order, answered(json=msgspec.Raw(b'{"sku": "\xff"}')), "Order"),
        (list[Any], answered(json=msgspec.Raw(b"[" * 100_000)), "list"),
    ],
)
def test_an_answer_of_another_type_is_refused_with_where_and_why(kind: Any, response: Any, says: str) -> None:
    with pytest.raises(InvalidResponse, match=says):
        ResponseCheck(DeclaredType(kind, where="response")).check(response)


async def test_an_invalid_answer_is_a_500_that_says_nothing_and_a_log_line_that_does() -> None:
    async def handler(req: Any, res: Response[Order], gctx: Any, lctx: Any) -> None:
        res.header("x-half", "done").json({"sku": 7})  # type: ignore[arg-type]

    with capture_logs() as lines:
        reply = await Desk().handle(shop(handler))

    assert (reply.status, problem(reply)["code"], "x-half" in dict(reply.headers)) == (500, "response.invalid", False)
    assert "sku" not in reply.body.decode()
    assert [(line["event"], "sku: expected string, got 7" in line["error"]) for line in lines] == [
        ("response_invalid", True)
    ]


async def test_an_invalid_answer_is_a_failure_for_compensations_and_catch_hooks() -> None:
    ran: list[str] = []

    async def handler(req: Any, res: Response[Order], gctx: Any, lctx: Any) -> None:
        lctx.register_compensating_action(lambda: ran.append("undone"))
        res.json({})  # type: ignore[arg-type]

    app = shop(handler)
    app.after(lambda gctx, lctx: ran.append("after"))
    app.catch(lambda error, gctx, lctx: ran.append(type(error).__name__))
    await Desk().handle(app)

    assert ran == ["undone", "InvalidResponse"]


@pytest.mark.parametrize("sku", ["ada", 7])
async def test_an_answer_that_is_followed_by_a_failure_stands_only_when_it_fits(sku: Any) -> None:
    async def handler(req: Any, res: Response[Order], gctx: Any, lctx: Any) -> None:
        res.json({"sku": sku})  # type: ignore[arg-type]
        raise ValueError

    reply = await Desk().handle(shop(handler))

    assert (reply.status, b"sku" in reply.body) == ((200, True) if sku == "ada" else (500, False))


async def test_the_answer_of_a_before_hook_is_checked_as_well() -> None:
    async def handler(req: Any, res: Response[Order], gctx: Any, lctx: Any) -> None: ...

    app = shop(handler)
    app.before(lambda gctx, lctx: lctx.response.json({"cached": True}))

    assert problem(await Desk().handle(app))["code"] == "response.invalid"


@pytest.mark.parametrize(
    ("status", "body", "seen"),
    [
        (200, {"sku": "spare"}, 200),
        (200, {"sku": 7}, 500),
        (200, msgspec.Raw(b"[" * 100_000), 500),
        (409, {"no": 1}, 409),
    ],
)
async def test_a_catch_hooks_answer_leaves_only_when_it_fits(status: int, body: Any, seen: int) -> None:
    async def handler(req: Any, res: Response[Order], gctx: Any, lctx: Any) -> None:
        raise ValueError

    app = shop(handler)
    app.catch(lambda error, gctx, lctx: lctx.response.status(status).json(body))

    assert (await Desk().handle(app)).status == seen


async def test_what_is_not_declared_is_not_checked() -> None:
    async def handler(req: Any, res: Response[Any], gctx: Any, lctx: Any) -> None:
        res.json({"anything": "goes"})

    app = shop(handler)

    assert app.handlers["h"].call.response_check is None
    assert (await Desk().handle(app)).status == 200


async def test_a_handler_that_declares_an_answer_may_give_none() -> None:
    async def handler(req: Request[None], res: Response[Order], gctx: Any, lctx: Any) -> None: ...

    assert (await Desk().handle(shop(handler))).status == 204


def test_a_type_that_cannot_be_checked_is_refused_at_registration() -> None:
    with pytest.raises(RegistrationError, match=r"response: Type unions may not contain more than one dict type"):

        @App("shop").get("/x")
        async def odd(req: Any, res: Response[dict[int, str] | dict[str, int]], gctx: Any, lctx: Any) -> None: ...
