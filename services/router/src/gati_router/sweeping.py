"""The sweep of versions: one router at a time classifies them by their use, and ends those that are hardly used.

Routers take turns, so that each interval has one sweep, whichever router is there. A router that dies in the middle
leaves the rest for the next time: each decision stands by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from gati_core.errors import GatiError
from gati_core.fabric import Fabric
from gati_core.timescape import (
    Rollout,
    Sweeper,
    SweepPolicy,
    SweepTurns,
    fabric_registry,
    fabric_turns,
    fabric_usage,
)

log = structlog.get_logger(__name__)

_LOOKED_EVERY_S = 60.0


class RouterSweep:
    """See the module.

    Args:
        every_s: between two sweeps, by all routers together.
        rollout_of: how the traffic of a handler is shared now; what it names is spared.
    """

    def __init__(
        self,
        fabric: Fabric,
        policy: SweepPolicy,
        *,
        router_id: str,
        every_s: float,
        rollout_of: Callable[[str, str], Rollout | None],
    ) -> None:
        self._sweeper = Sweeper(fabric_registry(fabric), fabric_usage(fabric), policy, rollout_of=rollout_of)
        self._turns: SweepTurns = fabric_turns(fabric)
        self._router_id = router_id
        self._every_s = every_s
        self._is_running = False
        self.looks_every_s = min(_LOOKED_EVERY_S, every_s / 4)
        """How often to call `run_if_due`."""

    async def run_if_due(self) -> bool:
        """Sweep if the last one, by any router, is long enough ago. Returns whether it was this one's turn."""
        if self._is_running:
            return False
        self._is_running = True
        try:
            if not await self._turns.take(by=self._router_id, every_s=self._every_s):
                return False
            verdicts = await self._sweeper.run()
        except GatiError as exc:
            log.warning("sweep_failed", error=str(exc))
            return False
        finally:
            self._is_running = False
        ended = sum(each.is_change and each.status == "deactivated" for each in verdicts)
        log.info("versions_swept", versions=len(verdicts), deactivated=ended)
        return True
