"""Clients that keep asking while something breaks, and the sums that must come out."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import httpx

from tests.helpers.ledger import Ledger
from tests.helpers.waiting import eventually


class Outcome(NamedTuple):
    """One request and what came of it."""

    id: str
    path: str
    status: int
    """0 when the connection gave no answer."""
    code: str
    """The problem's stable code, or the exception's name."""
    sent_at: float
    answered_at: float
    worker: str


class Load:
    """A closed loop of clients. Made by `loaded`."""

    def __init__(self, client: httpx.AsyncClient, *, paths: Sequence[str], errand: dict[str, Any], prefix: str) -> None:
        self._client = client
        self._paths = itertools.cycle(paths)
        self._errand = errand
        self._prefix = prefix
        self._numbers = itertools.count()
        self._is_over = False
        self.sent: dict[str, str] = {}
        self.outcomes: list[Outcome] = []

    async def ask(self, path: str | None = None, **errand: Any) -> Outcome:
        """Send one errand and wait for its answer."""
        path = path or next(self._paths)
        number = f"{self._prefix}-{next(self._numbers)}"
        self.sent[number] = path
        sent_at = time.monotonic()
        status, code, worker = 0, "", ""
        try:
            answer = await self._client.post(path, json={**self._errand, **errand, "id": number})
            status = answer.status_code
            document = answer.json()
            code, worker = document.get("code", ""), document.get("worker", "")
        except httpx.TransportError as exc:
            code = type(exc).__name__
        outcome = Outcome(number, path, status, code, sent_at, time.monotonic(), worker)
        self.outcomes.append(outcome)
        return outcome

    async def keep_asking(self, *, pause_s: float) -> None:
        """One client: ask, and ask again, until the load is over."""
        while not self._is_over:
            outcome = await self.ask()
            if not outcome.status or outcome.status >= 500:
                await anyio.sleep(0.05)  # a refused client that asks again at once measures only itself
            elif pause_s:
                await anyio.sleep(pause_s)

    def stop(self) -> None:
        """Send nothing new."""
        self._is_over = True

    # -- while it runs --------------------------------------------------------------------------

    async def answered(self, count: int, *, within_s: float = 10.0) -> None:
        """Return once that many more requests were answered 2xx."""
        target = self.succeeded + count
        await eventually(lambda: self.succeeded >= target, within_s=within_s)

    async def answered_since(self, instant: float, *, within_s: float) -> float:
        """Seconds from `instant` to the first success among requests sent after it."""
        found: list[float] = []

        def first_success() -> bool:
            found[:] = [o.answered_at for o in reversed(self.outcomes) if o.sent_at > instant and o.status < 300]
            return bool(found)

        await eventually(first_success, within_s=within_s, every_s=0.01)
        return min(found) - instant

    @property
    def succeeded(self) -> int:
        """Requests answered 2xx."""
        return sum(200 <= outcome.status < 300 for outcome in self.outcomes)

    # -- afterwards -----------------------------------------------------------------------------

    def statuses(self) -> Counter[str]:
        """How often each status and code came."""
        return Counter(f"{o.status} {o.code}".strip() for o in self.outcomes)

    def must_balance(self, ledger: Ledger, *, once: str = "/once") -> None:
        """Every request had one answer, and the ledger agrees with the answers.

        At most once: never started twice, and a success means that it ran, to its end, once.
        At least once: a success means that it ran to its end. Nothing ran that was not sent.
        """
        answers = Counter(outcome.id for outcome in self.outcomes)
        assert answers.keys() == self.sent.keys(), f"without an answer: {self.sent.keys() - answers.keys()}"
        assert set(answers.values()) == {1}
        unanswered = [outcome for outcome in self.outcomes if not outcome.status]
        assert not unanswered, f"{len(unanswered)} connections gave no answer: {unanswered[:3]}"
        starts, ends = ledger.counts("start"), ledger.counts("end")
        mine = {number for number in starts if number.startswith(f"{self._prefix}-")}
        assert mine <= self.sent.keys(), "something ran that was never sent"
        for outcome in self.outcomes:
            if outcome.path == once:
                assert starts[outcome.id] <= 1, f"{outcome.id} may run once and ran {starts[outcome.id]} times"
            if 200 <= outcome.status < 300:
                assert ends[outcome.id] >= 1, f"{outcome.id} succeeded and never ran to its end"


@asynccontextmanager
async def loaded(
    client: httpx.AsyncClient,
    *,
    clients: int = 16,
    paths: Sequence[str] = ("/once", "/again"),
    pause_s: float = 0.0,
    prefix: str = "load",
    **errand: Any,
) -> AsyncIterator[Load]:
    """Keep that many clients asking inside the block; leave it when every request has its answer."""
    load = Load(client, paths=paths, errand=errand, prefix=prefix)
    async with anyio.create_task_group() as tasks:
        for _ in range(clients):
            tasks.start_soon(lambda: load.keep_asking(pause_s=pause_s))
        try:
            yield load
        finally:
            load.stop()
