"""`lctx.lifecycle`: what a request tells whoever registered for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import structlog

from gati_core.contexts._hooks import check_parameters, is_async_callable
from gati_core.errors import RegistrationError

if TYPE_CHECKING:
    from gati_core.contexts._local import LocalContext

log = structlog.get_logger("gati.handler")

Phase = Literal["received", "authenticated", "authorized", "validated", "processing", "completed", "error"]
PHASES: tuple[str, ...] = get_args(Phase)
F = TypeVar("F", bound=Callable[..., Any])


class RequestLifecycle:
    """Callbacks of one request. Each works as a call and as a decorator; all may be plain or async.

    They run in the order of registration, each isolated: one that fails is logged and the next runs.
    """

    __slots__ = ("_lctx", "cleanups", "errors", "phases", "timeouts")

    def __init__(self, lctx: LocalContext) -> None:
        self._lctx = lctx
        self.cleanups: list[Callable[[], Any]] = []
        self.timeouts: list[Callable[[], Any]] = []
        self.errors: list[Callable[[BaseException], Any]] = []
        self.phases: list[Callable[[str, str], Any]] = []

    def on_cleanup(self, function: F) -> F:
        """Call `function()` when the request is over, however it ended; exactly once.

        Raises:
            TooLate: the request's cleanup has begun.
        """
        return self._register(self.cleanups, function, (), "cleanup callback")

    def on_timeout(self, function: F) -> F:
        """Call `function()` when the request runs past its limit, after the handler was cancelled."""
        return self._register(self.timeouts, function, (), "timeout callback")

    def on_error(self, function: F) -> F:
        """Call `function(error)` when the request fails, before compensations and catch hooks."""
        return self._register(self.errors, function, ("error",), "error callback")

    def on_phase_change(self, function: F) -> F:
        """Call `function(new, previous)` at once whenever the phase changes; plain functions only.

        Raises:
            RegistrationError: the function is async; nobody would await it.
        """
        if is_async_callable(function):
            raise RegistrationError("a phase callback is called at once and cannot be async")
        return self._register(self.phases, function, ("new", "previous"), "phase callback")

    def set_phase(self, phase: Phase) -> None:
        """Enter a phase.

        Raises:
            ValueError: there is no such phase.
        """
        if phase not in PHASES:
            raise ValueError(f"phase {phase!r} is none of {', '.join(PHASES)}")
        self._lctx.enter(phase)

    @property
    def phase(self) -> str:
        """Where the request is now."""
        return self._lctx.phase

    @property
    def is_timed_out(self) -> bool:
        """Whether its limit has passed."""
        return self._lctx._is_timed_out

    @property
    def is_cleaning_up(self) -> bool:
        """Whether its cleanup has begun."""
        return self._lctx._stage == "cleanup"

    def _register(self, group: list[Any], function: F, names: tuple[str, ...], what: str) -> F:
        check_parameters(function, names, what)
        self._lctx._count_registration(what)
        group.append(function)
        return function

    def announce(self, new: str, previous: str) -> None:
        """Tell the phase callbacks; their errors are logged only."""
        for function in self.phases:
            try:
                function(new, previous)
            except BaseException as exc:
                log.error("phase_callback_failed", request_id=self._lctx.request_id, phase=new, exc_info=exc)
