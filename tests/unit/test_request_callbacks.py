"""Callbacks of a request: errors, cleanup, phases."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from gati_core.errors import HandlerError, RegistrationError, TooLate
from gati_core.lifecycle import failing
from tests.helpers.handling import Desk, shop
from tests.helpers.mistakes import MISTAKES, Body, Escaped, failing_with

SHORT_S = 0.02


@pytest.fixture(autouse=True)
def short_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing, "CALLBACK_TIMEOUT_S", SHORT_S)


# -- callbacks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("group", ["on_error", "on_cleanup"])
async def test_a_callback_that_fails_does_not_stop_the_others_nor_the_request(group: str, mistake: str) -> None:
    ran: list[str] = []

    def bad(*_error: Any) -> Any:
        return MISTAKES[mistake]()

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        register = getattr(lctx.lifecycle, group)
        register(lambda *error: ran.append("first")) if group == "on_cleanup" else register(
            lambda error: ran.append("first")
        )
        register(bad)
        register(lambda *error: ran.append("last"))
        raise HandlerError("sold out", 409)

    with capture_logs() as lines:
        reply = await Desk().handle(shop(handler))

    assert (reply.status, ran) == (409, ["first", "last"])
    assert [line["callback"].rpartition(".")[2] for line in lines] == ["bad"]


async def test_cleanup_runs_once_in_order_and_last_of_all() -> None:
    ran: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.lifecycle.on_cleanup(lambda: ran.append("first"))
        lctx.lifecycle.on_cleanup(lambda: ran.append(f"second {lctx.lifecycle.is_cleaning_up} {lctx.get('x')}"))
        lctx.set("x", 1)
        lctx.after(lambda gctx, lctx: ran.append("after"))

    underway = Desk().begin(shop(handler))
    await underway.reply()
    await underway.run.cleanup()

    assert ran == ["after", "first", "second True 1"]
    assert underway.run.lctx.get("x") is None


async def test_nothing_can_be_registered_once_cleanup_has_begun() -> None:
    refused: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        def late() -> None:
            for register in (lctx.lifecycle.on_cleanup, lctx.lifecycle.on_timeout, lctx.compensate):
                try:
                    register(lambda: None)
                except TooLate:
                    refused.append(register.__name__)
            try:
                lctx.track(asyncio.sleep(0))
            except TooLate:
                refused.append("track")

        lctx.lifecycle.on_cleanup(late)

    await Desk().handle(shop(handler))

    assert refused == ["on_cleanup", "on_timeout", "register_compensating_action", "track"]


@pytest.mark.parametrize(("register", "function"), [("on_cleanup", lambda one: None), ("on_error", lambda: None)])
async def test_a_callback_of_other_parameters_is_refused(register: str, function: Body) -> None:
    app = failing_with(lambda lctx: getattr(lctx.lifecycle, register)(function))

    with capture_logs() as lines:
        await Desk().handle(app)

    assert isinstance(lines[0]["exc_info"], RegistrationError)


async def test_phases_follow_the_request_and_their_callbacks_disturb_nobody() -> None:
    phases: list[tuple[str, str]] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        @lctx.lifecycle.on_phase_change  # type: ignore[untyped-decorator]
        def bad(new: str, previous: str) -> None:
            raise Escaped

        lctx.lifecycle.on_phase_change(lambda new, previous: phases.append((previous, new)))
        lctx.lifecycle.set_phase("authorized")

    app = shop(handler)
    app.before(lambda gctx, lctx: phases.append(("", lctx.phase)))
    with capture_logs() as lines:
        reply = await Desk().handle(app)

    assert reply.status == 204
    assert phases == [("", "validated"), ("processing", "authorized"), ("authorized", "completed")]
    assert {line["event"] for line in lines} == {"phase_callback_failed"}


@pytest.mark.parametrize("observed", [False, True])
async def test_a_failed_request_ends_in_the_phase_error(observed: bool) -> None:
    underway = Desk(observed=observed).begin(failing_with())
    await underway.reply()

    assert underway.run.lctx.phase == "error"


async def test_a_phase_that_does_not_exist_and_an_async_callback_are_refused() -> None:
    async def waits(new: str, previous: str) -> None: ...

    errors: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        for attempt in (lambda: lctx.lifecycle.set_phase("done"), lambda: lctx.lifecycle.on_phase_change(waits)):
            try:
                attempt()
            except (ValueError, RegistrationError) as exc:
                errors.append(type(exc).__name__)

    await Desk().handle(shop(handler))

    assert errors == ["ValueError", "RegistrationError"]
