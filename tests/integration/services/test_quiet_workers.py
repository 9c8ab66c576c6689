"""A worker that nobody calls costs next to nothing, and keeps its promises when somebody does."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from tests.helpers.processes import running_fabric
from tests.helpers.waiting import eventually

WAKES_PER_S = 16
"""One that ticks every 50 ms wakes more than 20 times a second."""


def wakes(pid: int) -> int:
    """How often the main thread has waited for something."""
    status = Path(f"/proc/{pid}/task/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts what Linux counts")
async def test_a_quiet_worker_wakes_seldom_and_still_cancels_in_time(tmp_path: Path) -> None:
    async with running_fabric(tmp_path, packages=["capacity_app.py"]) as fabric, fabric.client() as client:
        (child,) = fabric.workers[0].children()

        async def is_quiet() -> bool:
            before, at = wakes(child), time.monotonic()
            await anyio.sleep(1)  # what happens within a second is what is looked at
            return (wakes(child) - before) / (time.monotonic() - at) < WAKES_PER_S

        for _ in range(2):
            await eventually(is_quiet, within_s=15)
            began = time.monotonic()
            answer = await client.post("/limited/5000")
            took_s = time.monotonic() - began
            assert (answer.status_code, answer.json()["code"]) == (504, "handler.timeout")
            assert took_s < 1.0
            assert (await client.post("/once/0")).json() == {"done": True}
