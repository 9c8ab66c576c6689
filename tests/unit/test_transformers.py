"""Transformers that do not do their part: the old version runs with the untouched request, where that does no harm."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gati_core import App, Request, Response
from gati_core.errors import RegistrationError
from gati_core.lifecycle import transforming
from gati_testing import Answer, simulate

OLD_BODY = {"sku": "a", "price": "1.50"}
OLD_CLIENT = {"x-gati-version": "v1"}


class OldItem(msgspec.Struct):
    sku: str
    price: str


class Item(msgspec.Struct):
    sku: str
    cents: int


def forward(request: Any) -> None:
    request.body["cents"] = round(float(request.body.pop("price")) * 100)


def backward(response: Any) -> None:
    response.body["price"] = f"{response.body.pop('cents') / 100:.2f}"


def ask(
    method: str = "PUT",
    *,
    forwards: Callable[[Any], Any] = forward,
    backwards: Any = backward,
    timeout_s: float = 1.0,
    threaded: bool = False,
) -> Answer:
    """An old client's request, where a new version with these functions runs beside the old one."""
    old, new = App("shop"), App("shop")

    @old.route("/items", methods=[method], id="item")
    async def old_item(req: Request[OldItem], res: Response[OldItem], gctx: Any, lctx: Any) -> None:
        res.header("x-ran", "old").json(req.body)

    @new.route("/items", methods=[method], id="item")
    async def new_item(req: Request[Item], res: Response[Item], gctx: Any, lctx: Any) -> None:
        res.header("x-ran", "new").json(req.body)

    functions = SimpleNamespace(forward_request=forwards, backward_response=backwards)
    new.transformer("item", from_version="v1", timeout_s=timeout_s, threaded=threaded)(functions)
    with simulate(old, new) as fabric:
        return fabric.request(method, "/items", json=OLD_BODY, headers=OLD_CLIENT)


def ran(answer: Answer) -> str | None:
    return dict(answer.headers).get("x-ran")


async def hangs(_value: Any) -> None:
    await asyncio.sleep(60)


def raises(_value: Any) -> None:
    raise KeyError("price")


def returns_text(_value: Any) -> str:
    return "done"


def takes_the_query_away(request: Any) -> None:
    request.query = None


def leaves_no_json(value: Any) -> None:
    value.body = object()


def leaves_what_the_types_refuse(value: Any) -> None:
    value.body = {"sku": 1}


async def returns_another(request: Any) -> Any:
    forward(request)
    return request


BAD = [hangs, raises, returns_text, leaves_no_json, leaves_what_the_types_refuse]


def test_an_old_client_gets_the_new_code_in_its_own_words() -> None:
    answer = ask()

    assert (answer.status, ran(answer), answer.json()) == (200, "new", OLD_BODY)


@pytest.mark.parametrize("forwards", [forward, returns_another])
def test_a_function_may_return_what_it_made_and_run_in_a_thread(forwards: Callable[[Any], Any]) -> None:
    answers = [ask(forwards=forwards, threaded=threaded) for threaded in (False, True)]

    assert [(ran(answer), answer.json()) for answer in answers] == [("new", OLD_BODY)] * 2


def test_threaded_functions_run_beside_the_loop_and_plain_ones_on_it() -> None:
    def forwards(request: Any) -> None:
        forward(request)
        asyncio.get_running_loop()  # raises where there is none

    assert [ran(ask(forwards=forwards, threaded=threaded)) for threaded in (False, True)] == ["new", "old"]


@pytest.mark.parametrize("side", ["forwards", "backwards"])
def test_a_threaded_function_that_hangs_is_left_behind(side: str) -> None:
    release, ended = threading.Event(), threading.Event()

    def blocks(_value: Any) -> None:
        release.wait(10)
        ended.set()

    try:
        answer = ask(**{side: blocks}, timeout_s=0.05, threaded=True)
        assert (answer.status, ran(answer), answer.json()) == (200, "old", OLD_BODY)
    finally:
        release.set()
    assert ended.wait(10)


def test_a_plain_function_that_comes_back_too_late_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr(transforming.time, "perf_counter", lambda: float(next(clock)))  # type: ignore[attr-defined]

    answer = ask(timeout_s=5.0)

    assert (answer.status, ran(answer), answer.json()) == (200, "old", OLD_BODY)


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("bad", [*BAD, takes_the_query_away])
def test_a_request_that_cannot_be_translated_runs_on_the_old_version(method: str, bad: Callable[[Any], Any]) -> None:
    answer = ask(method, forwards=bad)

    assert (answer.status, ran(answer), answer.json()) == (200, "old", OLD_BODY)


@pytest.mark.parametrize("bad", BAD)
def test_an_answer_that_cannot_be_translated_has_the_old_version_run_where_it_may(bad: Callable[[Any], Any]) -> None:
    again, once = ask("PUT", backwards=bad), ask("POST", backwards=bad)

    assert (again.status, ran(again), again.json()) == (200, "old", OLD_BODY)
    assert (once.status, once.code) == (500, "version.transform_failed")


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        (SimpleNamespace(), "has none of forward_request"),
        (SimpleNamespace(forward_requests=forward), "forward_requests is none of forward_request"),
        (SimpleNamespace(forward_request=lambda: None), "forward_request must be a static method that takes one"),
    ],
)
def test_what_is_no_transformer_is_refused_when_it_is_registered(functions: Any, message: str) -> None:
    app = App("shop")
    app.get("/items", id="item")(lambda req, res, gctx, lctx: None)

    with pytest.raises(RegistrationError, match=message):
        app.transformer("item", from_version="v1")(functions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0}, "timeout_s must be above 0 and finite, not 0"),
        ({"timeout_s": float("nan")}, "timeout_s must be above 0 and finite, not nan"),
        ({"threaded": True}, "threaded=True is for plain functions"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    app = App("shop")
    app.get("/items", id="item")(lambda req, res, gctx, lctx: None)

    with pytest.raises(RegistrationError, match=message):
        app.transformer("item", from_version="v1", **options)(SimpleNamespace(forward_request=hangs))
