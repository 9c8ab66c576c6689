"""What runs when a request fails: callbacks, compensations, catch hooks; each alone with its mistakes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from gati_core import App
from gati_core.errors import DeadlineExceeded, HandlerError, RegistrationError, TooLate
from gati_core.lifecycle import failing
from gati_testing import Harness
from tests.helpers.handling import Desk, problem, shop
from tests.helpers.mistakes import MISTAKES, Body, Escaped, failing_with

SHORT_S = 0.02


@pytest.fixture(autouse=True)
def short_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing, "CALLBACK_TIMEOUT_S", SHORT_S)


# -- compensations ------------------------------------------------------------------------------


async def test_the_last_compensation_runs_first_and_all_before_catch_hooks() -> None:
    ran: list[str] = []
    app = failing_with(
        lambda lctx: lctx.register_compensating_action(lambda: ran.append("first")),
        lambda lctx: lctx.compensate(lambda: ran.append("second")),
        lambda lctx: lctx.catch(lambda error, gctx, lctx: ran.append("catch")),
        lambda lctx: lctx.lifecycle.on_error(lambda error: ran.append("error")),
    )

    await Desk().handle(app)

    assert ran == ["error", "second", "first", "catch"]


async def test_without_a_failure_nothing_is_undone() -> None:
    ran: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.register_compensating_action(lambda: ran.append("undone"))

    await Desk().handle(shop(handler))

    assert ran == []


async def test_an_answer_that_was_given_stands_and_nothing_is_undone() -> None:
    ran: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.register_compensating_action(lambda: ran.append("undone"))
        res.text("done")
        raise ValueError

    app = shop(handler)
    app.catch(lambda error, gctx, lctx: ran.append("catch"))

    assert ((await Desk().handle(app)).body, ran) == (b"done", ["catch"])


async def test_a_failing_after_hook_undoes_what_the_handler_did() -> None:
    ran: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.register_compensating_action(lambda: ran.append("undone"))
        res.text("done")

    def fails(gctx: Any, lctx: Any) -> None:
        raise ValueError

    app = shop(handler)
    app.after(fails)

    assert ((await Desk().handle(app)).status, ran) == (500, ["undone"])


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_compensation_that_fails_does_not_stop_the_others(mistake: str) -> None:
    ran: list[str] = []
    app = failing_with(
        lambda lctx: lctx.register_compensating_action(lambda: ran.append("other")),
        lambda lctx: lctx.register_compensating_action(MISTAKES[mistake], id="bad"),
    )
    app.catch(lambda error, gctx, lctx: ran.append("catch"))

    with capture_logs() as lines:
        reply = await Desk().handle(app)

    assert (reply.status, ran) == (500, ["other", "catch"])
    assert [line["action"] for line in lines if line["event"] == "compensation_failed"] == ["bad"]


async def test_a_failed_compensation_is_an_alert() -> None:
    alerts: list[tuple[str, str, str]] = []
    app = failing_with(lambda lctx: lctx.register_compensating_action(MISTAKES["raises"], id="refund"))

    @app.on_alert
    def fails(request_id: str, action_id: str, error: BaseException) -> None:
        raise Escaped

    @app.on_alert
    async def page_somebody(request_id: str, action_id: str, error: BaseException) -> None:
        alerts.append((request_id, action_id, type(error).__name__))

    await Desk().handle(app)

    assert alerts == [("r-1", "refund", "ValueError")]


async def test_compensations_are_named_by_function_and_number_unless_somebody_says() -> None:
    names: list[str] = []

    def refund() -> None: ...

    app = failing_with(
        lambda lctx: names.append(lctx.register_compensating_action(refund)),
        lambda lctx: names.append(lctx.register_compensating_action(refund)),
        lambda lctx: names.append(lctx.register_compensating_action(refund, id="mine")),
    )
    desk = Desk(observed=True)
    await desk.handle(app)

    assert names == ["refund-1", "refund-2", "mine"]
    assert [event.stage for event in desk.events if event.type == "compensation:start"] == names[::-1]


async def test_what_is_no_function_cannot_compensate() -> None:
    app = failing_with(lambda lctx: lctx.register_compensating_action("undo"))

    with capture_logs() as lines:
        await Desk().handle(app)

    assert isinstance(lines[0]["exc_info"], RegistrationError)


async def test_a_compensation_cannot_be_registered_once_the_request_has_failed() -> None:
    refused: list[type[BaseException]] = []

    def late(error: Any, gctx: Any, lctx: Any) -> None:
        try:
            lctx.register_compensating_action(print)
        except TooLate as exc:
            refused.append(type(exc))

    app = failing_with()
    app.catch(late)
    await Desk().handle(app)

    assert refused == [TooLate]


async def test_each_request_undoes_only_its_own() -> None:
    ran: list[str] = []
    both = asyncio.Barrier(2)

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.register_compensating_action(lambda: ran.append(lctx.request_id))
        await both.wait()
        if lctx.request_id == "bad":
            raise ValueError

    desk, app = Desk(), shop(handler)
    bad, good = await asyncio.gather(desk.handle(app, request_id="bad"), desk.handle(app, request_id="good"))

    assert (bad.status, good.status, ran) == (500, 204, ["bad"])


# -- catch hooks --------------------------------------------------------------------------------


async def test_catch_hooks_run_from_narrow_to_wide_and_last_first() -> None:
    ran: list[str] = []

    def note(name: str) -> Body:
        return lambda error, gctx, lctx: ran.append(name)

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.catch(note("local 1"))
        lctx.catch(note("local 2"))
        raise ValueError

    app = App("shop")
    route = app.post("/x", id="h")(handler)
    for number in (1, 2):
        app.catch(note(f"global {number}"))
        route.catch(note(f"route {number}"))
    await Desk().handle(app)

    assert ran == ["local 2", "local 1", "route 2", "route 1", "global 2", "global 1"]


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_catch_hook_that_fails_does_not_stop_the_next_one(mistake: str) -> None:
    ran: list[str] = []
    app = failing_with(error=HandlerError("sold out", 409))
    app.catch(lambda error, gctx, lctx: ran.append("other"))
    app.catch(id="bad", timeout_s=SHORT_S)(lambda error, gctx, lctx: MISTAKES[mistake]())

    with capture_logs() as lines:
        reply = await Desk().handle(app)

    assert (reply.status, problem(reply)["detail"], ran) == (409, "sold out", ["other"])
    assert [line["hook"] for line in lines if line["event"] == "catch_hook_failed"] == ["bad"]


async def test_a_catch_hook_is_given_the_error_itself() -> None:
    told: list[BaseException] = []
    error = KeyError("x")
    app = failing_with(error=error)
    app.catch(lambda error, gctx, lctx: told.append(error))

    await Desk().handle(app)

    assert told == [error]


async def test_a_catch_hook_may_answer_in_place_of_the_error() -> None:
    def answer(error: Any, gctx: Any, lctx: Any) -> None:
        lctx.response.status(503).header("retry-after", "9").json({"sorry": str(error)})

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.status(201).header("x-half", "done")
        raise ValueError("broken")

    app = shop(handler)
    app.catch(answer)
    reply = await Desk().handle(app)

    assert (reply.status, reply.body, reply.error) == (503, b'{"sorry":"broken"}', None)
    assert reply.headers == [("retry-after", "9"), ("content-type", "application/json")]


@pytest.mark.parametrize(("status", "logged"), [(402, "failure_answered_by_hook"), (500, "handler_failed")])
async def test_a_failure_that_a_catch_hook_expects_is_no_alarm_and_a_bug_keeps_its_stack(
    status: int, logged: str
) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        raise LookupError("no such card")

    app = shop(handler)
    app.catch(lambda error, gctx, lctx: lctx.response.status(status).json({"declined": True}))

    with capture_logs() as lines:
        reply = await Desk().handle(app)

    assert reply is not None
    assert reply.status == status
    (line,) = lines
    assert line["event"] == logged
    assert ("exc_info" in line) is (status == 500)


async def test_a_header_that_a_catch_hook_adds_goes_with_the_errors_own_answer() -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        raise HandlerError("no", 409)

    app = shop(handler)
    app.catch(lambda error, gctx, lctx: lctx.response.header("x-help", "ask again") and None)

    reply = await Desk().handle(app)

    assert reply is not None
    assert (reply.status, dict(reply.headers)["x-help"]) == (409, "ask again")


async def test_an_after_hook_cannot_turn_an_answer_into_a_redirect() -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.text("answered")

    app = shop(handler)
    app.after(lambda gctx, lctx: lctx.response.redirect("/elsewhere"))

    reply = await Desk().handle(app)

    assert reply is not None
    assert (reply.status, "location" in dict(reply.headers)) == (500, False)


async def test_a_header_that_comes_too_late_for_a_stream_is_no_failure() -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        async with res.stream() as stream:
            await stream.write("whole")

    app = shop(handler)
    app.after(lambda gctx, lctx: lctx.response.header("x-late", "1") and None)

    async with Harness(app) as harness:
        result = await harness.execute_handler(handler)

    assert (result.response.text, result.response.is_cut, result.error) == ("whole", False, None)
    assert result.response.header("x-late") is None


def test_a_detached_hook_has_no_retries() -> None:
    with pytest.raises(RegistrationError, match="no retries"):
        App("shop").after(lambda gctx, lctx: None, detached=True, retries=1)


async def test_the_first_answer_of_a_catch_hook_stands() -> None:
    app = failing_with()
    app.catch(lambda error, gctx, lctx: lctx.response.text("wide"))
    app.catch(lambda error, gctx, lctx: lctx.response.text("narrow"))

    assert (await Desk().handle(app)).body == b"narrow"


@pytest.mark.parametrize("reason", ["deadline", "client_gone", "leaving"])
async def test_a_catch_hook_cannot_answer_for_a_cancelled_request(reason: str) -> None:
    started = asyncio.Event()
    outcomes: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    def answer(error: Any, gctx: Any, lctx: Any) -> None:
        outcomes.append(type(error).__name__)
        lctx.response.text("all is well")

    app = shop(handler)
    app.catch(answer)
    underway = Desk().begin(app)
    await started.wait()
    underway.cancel(reason)
    reply = await underway.reply()

    assert len(outcomes) == 1
    assert (reply.status if reply else None) == {"deadline": 504, "client_gone": None, "leaving": 503}[reason]


async def test_a_deadline_that_the_handler_raises_is_no_answer_for_catch_hooks_either() -> None:
    app = failing_with(error=DeadlineExceeded("the handler says so"))
    app.catch(lambda error, gctx, lctx: lctx.response.text("all is well"))

    assert (await Desk().handle(app)).status == 504
