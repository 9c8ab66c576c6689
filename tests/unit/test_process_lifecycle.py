"""Hooks of a process: start, shutdown, health, configuration, memory, breakers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from gati_core.contexts import (
    CheckResult,
    ErrorWindow,
    GlobalContext,
    HealthFacts,
    HealthReport,
    Instance,
    Priority,
    ProcessLifecycle,
    memory_limit,
    memory_pressure,
    memory_used,
)
from gati_core.contexts._process import MAX_HOOKS
from gati_core.errors import ConfigInvalid, RegistrationError, StartupFailed
from tests.helpers.waiting import eventually

GOOD = HealthFacts(handlers=1, uptime_s=5, requests=0)


@pytest.fixture
def lifecycle() -> ProcessLifecycle:
    """One without hooks."""
    return ProcessLifecycle()


@pytest.fixture
def gctx(lifecycle: ProcessLifecycle) -> GlobalContext:
    """The process that the hooks get."""
    return GlobalContext(Instance("i", "shop", "shop-1", "host", 0), lifecycle=lifecycle)


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """What plain functions wait for; set at the end, so that no thread outlives the test."""
    event = threading.Event()
    yield event
    event.set()


def _noting(seen: list[str], name: str) -> Callable[[Any], None]:
    return lambda gctx: seen.append(name)


def _failing(gctx: Any) -> None:
    raise LookupError("no database")


# -- registering --------------------------------------------------------------------------------


def test_hooks_register_as_decorators_and_as_calls(lifecycle: ProcessLifecycle) -> None:
    @lifecycle.on_startup
    async def one(gctx: Any) -> None: ...

    @lifecycle.on_startup(priority=Priority.HIGH, name="second")
    def two(gctx: Any) -> None: ...

    @lifecycle.on_health_check("db")
    def check(gctx: Any) -> bool:
        return True

    assert lifecycle.on_shutdown(two) is two
    assert lifecycle.on_pre_shutdown(two, priority=7) is two
    assert lifecycle.on_health_check("cache", check) is check
    assert [each.name for each in lifecycle._hooks["startup"]] == ["second", "one"]


@pytest.mark.parametrize(
    ("register", "function", "named"),
    [
        ("on_startup", lambda: None, r"startup hook '<lambda>' takes \(gctx\), not \(\)"),
        ("on_startup", lambda a, b: None, r"takes \(gctx\), not \(a, b\)"),
        ("on_shutdown", lambda *, gctx: None, r"takes \(gctx\)"),
        ("on_config_reload", lambda gctx: None, r"config reload hook .* takes \(gctx, old, new\)"),
        ("on_config_reload", lambda gctx, new, old: None, r"takes \(gctx, old, new\)"),
        ("on_memory_pressure", lambda gctx: None, r"takes \(gctx, level\)"),
        ("on_circuit_breaker_change", lambda gctx, service: None, r"takes \(gctx, service, state\)"),
        ("on_startup", 7, "must be a function, not 7"),
        ("on_health_check", lambda gctx: None, "a health check needs a name"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_at_registration(
    lifecycle: ProcessLifecycle, register: str, function: Any, named: str
) -> None:
    with pytest.raises(RegistrationError, match=named):
        getattr(lifecycle, register)(function)


@pytest.mark.parametrize(
    "options", [{"timeout_s": 0}, {"timeout_s": float("inf")}, {"timeout_s": float("nan")}, {"priority": "high"}]
)
def test_bad_options_are_refused(lifecycle: ProcessLifecycle, options: Any) -> None:
    with pytest.raises(RegistrationError, match="startup hook"):
        lifecycle.on_startup(_failing, **options)


@pytest.mark.parametrize("name", ["db", "handlers", "error_rate"])
def test_the_name_of_a_health_check_is_its_own(lifecycle: ProcessLifecycle, name: str) -> None:
    lifecycle.on_health_check("db", _failing)

    with pytest.raises(RegistrationError, match="of this name already"):
        lifecycle.on_health_check(name, _failing)


def test_registrations_are_bounded(lifecycle: ProcessLifecycle) -> None:
    for _ in range(MAX_HOOKS):
        lifecycle.on_shutdown(_failing)

    with pytest.raises(RegistrationError, match="register once, not with each request"):
        lifecycle.on_shutdown(_failing)


# -- start --------------------------------------------------------------------------------------


async def test_startup_hooks_run_by_priority_then_in_order(lifecycle: ProcessLifecycle, gctx: GlobalContext) -> None:
    seen: list[str] = []
    lifecycle.on_startup(_noting(seen, "cleanup"), priority=Priority.CLEANUP)
    lifecycle.on_startup(_noting(seen, "one"))
    lifecycle.on_startup(_noting(seen, "two"))
    lifecycle.on_startup(_noting(seen, "critical"), priority=Priority.CRITICAL)
    lifecycle.on_startup(_noting(seen, "between"), priority=600)

    await lifecycle.run_startup(gctx)
    await lifecycle.run_startup(gctx)

    assert seen == ["critical", "between", "one", "two", "cleanup"]


async def test_hooks_get_the_global_context_plain_ones_in_a_thread(
    lifecycle: ProcessLifecycle, gctx: GlobalContext
) -> None:
    seen: list[Any] = []

    async def on_loop(gctx: Any) -> None:
        seen.append((gctx, threading.current_thread() is threading.main_thread()))

    lifecycle.on_startup(on_loop)
    lifecycle.on_startup(lambda gctx: seen.append((gctx, threading.current_thread() is threading.main_thread())))

    await lifecycle.run_startup(gctx)

    assert seen == [(gctx, True), (gctx, False)]


async def test_a_failing_startup_hook_ends_the_start_and_shuts_down(
    lifecycle: ProcessLifecycle, gctx: GlobalContext
) -> None:
    seen: list[str] = []
    lifecycle.on_startup(_noting(seen, "open"), name="pool", priority=Priority.HIGH)
    lifecycle.on_startup(_failing, name="database")
    lifecycle.on_startup(_noting(seen, "never"), name="cache", priority=Priority.LOW)
    lifecycle.on_pre_shutdown(_noting(seen, "pre"))
    lifecycle.on_shutdown(_noting(seen, "close cache"), name="cache")
    lifecycle.on_shutdown(_noting(seen, "close database"), name="database")
    lifecycle.on_shutdown(_noting(seen, "close pool"), name="pool")
    lifecycle.on_shutdown(_noting(seen, "always"))

    with pytest.raises(StartupFailed, match="start-up hook 'database' failed: LookupError: no database") as caught:
        await lifecycle.run_startup(gctx)
    await lifecycle.run_shutdown(gctx)

    assert isinstance(caught.value.__cause__, LookupError)
    assert seen == ["open", "close database", "close pool", "always"]


async def test_a_startup_hook_that_takes_too_long_ends_the_start(
    lifecycle: ProcessLifecycle, gctx: GlobalContext, hanging: threading.Event
) -> None:
    lifecycle.on_startup(lambda gctx: hanging.wait(30), name="slow", timeout_s=0.01)

    with pytest.raises(StartupFailed, match=r"'slow' failed: no answer within 0\.01 s"):
        await lifecycle.run_startup(gctx)


async def test_a_startup_hook_may_register_what_undoes_it(lifecycle: ProcessLifecycle, gctx: GlobalContext) -> None:
    seen: list[str] = []
    lifecycle.on_startup(lambda gctx: gctx.lifecycle.on_shutdown(_noting(seen, "undone")), name="open")

    await lifecycle.run_startup(gctx)
    await lifecycle.run_shutdown(gctx)

    assert seen == ["undone"]


async def test_what_comes_too_late_is_refused(lifecycle: ProcessLifecycle, gctx: GlobalContext) -> None:
    await lifecycle.run_startup(gctx)
    with pytest.raises(RegistrationError, match="too late"):
        lifecycle.on_startup(_failing)

    await lifecycle.run_shutdown(gctx)
    with pytest.raises(RegistrationError, match="too late"):
        lifecycle.on_shutdown(_failing)


async def test_a_cancelled_start_is_no_failed_hook(lifecycle: ProcessLifecycle, gctx: GlobalContext) -> None:
    started = anyio.Event()

    async def wait(gctx: Any) -> None:
        started.set()
        await anyio.sleep_forever()

    lifecycle.on_startup(wait)

    async with anyio.create_task_group() as running:
        running.start_soon(lifecycle.run_startup, gctx)
        await started.wait()
        running.cancel_scope.cancel()


# -- shutdown -----------------------------------------------------------------------------------


async def test_shutdown_runs_each_hook_once_and_skips_failures(
    lifecycle: ProcessLifecycle, gctx: GlobalContext, hanging: threading.Event
) -> None:
    seen: list[str] = []
    lifecycle.on_shutdown(_noting(seen, "last"), priority=Priority.CLEANUP)
    lifecycle.on_shutdown(_failing, name="broken")
    lifecycle.on_shutdown(lambda gctx: hanging.wait(30), name="stuck", timeout_s=0.01)
    lifecycle.on_shutdown(_noting(seen, "first"), priority=Priority.HIGH)
    lifecycle.on_pre_shutdown(_noting(seen, "pre"))

    with capture_logs() as lines:
        await lifecycle.run_pre_shutdown(gctx)
        await lifecycle.run_shutdown(gctx)
        await lifecycle.run_shutdown(gctx)

    assert seen == ["pre", "first", "last"]
    assert [(line["event"], line["hook"], line["error"]) for line in lines] == [
        ("shutdown_hook_failed", "broken", "LookupError: no database"),
        ("shutdown_hook_failed", "stuck", "no answer within 0.01 s"),
    ]


async def test_shutdown_runs_pre_shutdown_hooks_that_have_not_run(
    lifecycle: ProcessLifecycle, gctx: GlobalContext
) -> None:
    seen: list[str] = []
    lifecycle.on_shutdown(_noting(seen, "shutdown"))
    lifecycle.on_pre_shutdown(_noting(seen, "pre"))

    await lifecycle.run_shutdown(gctx)

    assert seen == ["pre", "shutdown"]


async def test_a_hook_that_cancels_itself_is_a_failure_and_no_cancellation(
    lifecycle: ProcessLifecycle, gctx: GlobalContext
) -> None:
    seen: list[str] = []

    async def cancelled(gctx: Any) -> None:
        raise asyncio.CancelledError

    lifecycle.on_shutdown(cancelled)
    lifecycle.on_shutdown(_noting(seen, "next"))

    with capture_logs() as lines:
        await lifecycle.run_shutdown(gctx)

    assert seen == ["next"]
    assert lines[0]["error"] == "it was cancelled, and not by us"


# -- health -------------------------------------------------------------------------------------


def _found(report: HealthReport, name: str) -> CheckResult:
    return next(check for check in report.checks if check.name == name)


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        ("pass", "pass", ""),
        ("warn", "warn", ""),
        ("fail", "fail", ""),
        (True, "pass", ""),
        (False, "fail", ""),
        (("warn", "slow"), "warn", "slow"),
        ((False, "gone"), "fail", "gone"),
        ((True, 7), "pass", "7"),
        (None, "fail", "the check returned None, which is neither pass, warn, fail nor a bool"),
        ("ok", "fail", "the check returned 'ok', which is neither pass, warn, fail nor a bool"),
        (("pass",), "fail", "the check returned ('pass',), which is neither pass, warn, fail nor a bool"),
    ],
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_check_answers_in_several_ways(
    lifecycle: ProcessLifecycle, gctx: GlobalContext, answer: Any, status: str, message: str, is_async: bool
) -> None:
    async def check(gctx: Any) -> Any:
        return answer

    lifecycle.on_health_check("db", check if is_async else lambda gctx: answer)

    report = await lifecycle.check_health(gctx, GOOD)

    assert (_found(report, "db").status, _found(report, "db").message) == (status, message)
    assert report.status == {"pass": "healthy", "warn": "degraded", "fail": "unhealthy"}[status]


async def test_a_check_that_raises_or_hangs_fails_and_the_others_answer(
    lifecycle: ProcessLifecycle, gctx: GlobalContext
) -> None:
    async def hang(gctx: Any) -> None:
        await anyio.sleep_forever()

    lifecycle.on_health_check("broken", _failing)
    lifecycle.on_health_check("stuck", hang, timeout_s=0.01)
    lifecycle.on_health_check("fine", lambda gctx: True)

    report = await lifecycle.check_health(gctx, GOOD)

    assert [(check.name, check.status) for check in report.checks] == [
        ("handlers", "pass"),
        ("error_rate", "pass"),
        ("broken", "fail"),
        ("stuck", "fail"),
        ("fine", "pass"),
    ]
    assert report.notes == ["broken: fail: LookupError: no database", "stuck: fail: no answer within 0.01 s"]
    assert _found(report, "stuck").duration_ms >= 10


async def test_checks_run_at_the_same_time(lifecycle: ProcessLifecycle, gctx: GlobalContext) -> None:
    barrier = threading.Barrier(20)
    for number in range(20):
        lifecycle.on_health_check(f"check {number}", lambda gctx: barrier.wait(5) >= 0)

    report = await lifecycle.check_health(gctx, GOOD)

    assert report.status == "healthy"


async def test_a_check_that_hangs_takes_one_thread_however_often_it_is_asked(
    lifecycle: ProcessLifecycle, gctx: GlobalContext, hanging: threading.Event
) -> None:
    entered: list[int] = []

    def hang(gctx: Any) -> bool:
        entered.append(1)
        return hanging.wait(30)

    lifecycle.on_health_check("stuck", hang, timeout_s=0.05)

    first = await lifecycle.check_health(gctx, GOOD)
    second = await lifecycle.check_health(gctx, GOOD)
    assert lifecycle.abandoned == 1
    hanging.set()
    await eventually(lambda: lifecycle.abandoned == 0, within_s=5)
    third = await lifecycle.check_health(gctx, GOOD)

    assert [report.checks[-1].message for report in (first, second, third)] == [
        "no answer within 0.05 s",
        "its last call has not come back yet",
        "",
    ]
    assert len(entered) == 2


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (GOOD, "healthy"),
        (HealthFacts(handlers=0, uptime_s=0, requests=0), "unhealthy"),
        (HealthFacts(handlers=1, uptime_s=0, requests=19, recent_requests=19, recent_errors=19), "healthy"),
        (HealthFacts(handlers=1, uptime_s=0, requests=20, recent_requests=20, recent_errors=2), "healthy"),
        (HealthFacts(handlers=1, uptime_s=0, requests=20, recent_requests=20, recent_errors=3), "degraded"),
        (HealthFacts(handlers=1, uptime_s=0, requests=20, recent_requests=20, recent_errors=10), "degraded"),
        (HealthFacts(handlers=1, uptime_s=0, requests=20, recent_requests=20, recent_errors=11), "unhealthy"),
    ],
)
async def test_the_facts_are_judged_as_well(
    lifecycle: ProcessLifecycle, gctx: GlobalContext, facts: HealthFacts, status: str
) -> None:
    report = await lifecycle.check_health(gctx, facts)

    assert (report.status, report.facts) == (status, facts)


def test_the_error_window_forgets_what_is_old() -> None:
    window = ErrorWindow(60)

    assert window.observe(0, 100, 50) == (100, 50)
    assert window.observe(30, 120, 50) == (120, 50)
    assert window.observe(60, 140, 51) == (40, 1)
    assert window.observe(95, 150, 51) == (30, 1)
    assert window.observe(1_000, 150, 51) == (0, 0)


def test_the_error_window_is_bounded() -> None:
    window = ErrorWindow(60)

    for step in range(10_000):
        window.observe(step / 1000, step, 0)

    assert len(window._samples) == 128


# -- configuration ------------------------------------------------------------------------------


async def test_reload_callbacks_see_the_new_configuration_in_place(
    lifecycle: ProcessLifecycle, gctx: GlobalContext
) -> None:
    seen: list[Any] = []

    def broken(gctx: Any, old: Any, new: Any) -> None:
        raise LookupError("x")

    async def note(gctx: Any, old: Any, new: Any) -> None:
        seen.append((dict(old), dict(new), gctx.config is new))

    lifecycle.on_config_reload(broken)
    lifecycle.on_config_reload(note)

    with capture_logs() as lines:
        await lifecycle.reload_config(gctx, {"a": 1})
        await lifecycle.reload_config(gctx, {"a": 2})

    assert seen == [({}, {"a": 1}, True), ({"a": 1}, {"a": 2}, True)]
    assert [line["event"] for line in lines] == ["config_reload_hook_failed"] * 2


async def test_a_configuration_that_is_refused_calls_nobody(lifecycle: ProcessLifecycle, gctx: GlobalContext) -> None:
    seen: list[Any] = []
    lifecycle.on_config_reload(lambda gctx, old, new: seen.append(new))

    with pytest.raises(ConfigInvalid):
        await lifecycle.reload_config(gctx, {"a": object()})

    assert (seen, gctx.config) == ([], {})


# -- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "limit", "level"),
    [
        (0, 100, None),
        (699, 1000, None),
        (700, 1000, "low"),
        (849, 1000, "low"),
        (850, 1000, "medium"),
        (949, 1000, "medium"),
        (950, 1000, "high"),
        (2000, 1000, "high"),
        (5, 0, None),
        (5, -1, None),
    ],
)
def test_memory_pressure_has_three_levels(used: int, limit: int, level: str | None) -> None:
    assert memory_pressure(used, limit) == level


async def test_pressure_callbacks_hear_of_changes_only(lifecycle: ProcessLifecycle, gctx: GlobalContext) -> None:
    seen: list[str] = []
    lifecycle.on_memory_pressure(lambda gctx, level: seen.append(level))

    levels = [await lifecycle.update_memory(gctx, used, 100) for used in (50, 75, 80, 96, 86, 60, 75)]
    unknown = [await lifecycle.update_memory(gctx, *numbers) for numbers in ((None, 100), (5, None))]

    assert levels == [None, "low", "low", "high", "medium", None, "low"]
    assert unknown == [None, None]
    assert seen == ["low", "high", "medium", "low"]


def test_the_memory_in_use_is_read_where_it_is_known(tmp_path: Path) -> None:
    statm = tmp_path / "statm"
    statm.write_text("100 7 5 1 0 2 0\n")

    assert (memory_used(statm) or 0) % 7 == 0
    assert (memory_used(statm) or 0) >= 7 * 4096
    statm.write_text("")
    assert memory_used(statm) is None
    assert memory_used(tmp_path / "none") is None


def test_the_memory_limit_is_the_setting_or_the_tightest_group(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    inner = tmp_path / "fs" / "a" / "b"
    inner.mkdir(parents=True)
    membership.write_text("1:name=x:/y\n0::/a/b\n")

    def limit(setting_mb: int = 0) -> int | None:
        return memory_limit(setting_mb, membership=membership, root=tmp_path / "fs")

    assert limit() is None
    assert limit(3) == 3 * 1024 * 1024
    (inner / "memory.max").write_text("max\n")
    assert limit() is None
    (tmp_path / "fs" / "a" / "memory.max").write_text("1000\n")
    assert limit() == 1000
    (inner / "memory.max").write_text("400\n")
    assert limit() == 400
    membership.write_text("1:memory:/a\n")
    assert limit() is None
    membership.unlink()
    assert limit() is None


# -- breakers -----------------------------------------------------------------------------------


async def test_breaker_callbacks_hear_which_service_and_state(lifecycle: ProcessLifecycle, gctx: GlobalContext) -> None:
    seen: list[Any] = []
    bad: Any = "ajar"
    lifecycle.on_circuit_breaker_change(lambda gctx, service, state: seen.append((service, state)))

    await lifecycle.breaker_changed(gctx, "payments", "half-open")

    assert seen == [("payments", "half-open")]
    with pytest.raises(ValueError, match="open, closed or half-open, not 'ajar'"):
        await lifecycle.breaker_changed(gctx, "payments", bad)
