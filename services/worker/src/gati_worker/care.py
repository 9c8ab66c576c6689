"""Looking after children whose event loop stands still.

Each child notes in its ledger when its loop last turned. A child whose note is old cannot renew its
leases, answer, or cancel what is past its deadline: its supervisor renews the leases for it, so that
nobody else starts the same work, and ends it when none of its requests can be answered any more.
A child that was stopped from outside looks the same, and is treated the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import anyio
import msgspec
import structlog

from gati_core.fabric.topology import WORK_ACK_WAIT_S
from gati_worker.ledger import LedgerEntry
from gati_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

_LOOK_EVERY_S = 0.5
_BLOCKED_AFTER_S = 0.75
"""Silence that counts as a block. A lease is renewed at least every `WORK_ACK_WAIT_S` / 3 while the loop
turns, so it is at most a third old when a block begins; this and the time between two looks must fit into
what is left of it, with room for a busy machine."""
_LATE_S = 1.0
"""A look that is late by more says that we were stopped ourselves, and perhaps our children with us."""
_RENEW_EVERY_S = WORK_ACK_WAIT_S / 3
_RENEW = b"+WPI"
_NAMES_SHOWN = 10


class Patient(Protocol):
    """A child, as far as it is looked after."""

    app: str
    is_leaving: bool
    """It was asked to leave, and whoever asked kills it in time."""

    @property
    def pid(self) -> int:
        """Process id."""

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""

    @property
    def heartbeat_s(self) -> float:
        """When its loop last turned, by the monotonic clock; 0 when no sign of life is to be expected."""

    def unfinished(self) -> list[LedgerEntry]:
        """What it has started and not answered."""

    def strike(self) -> None:
        """Kill it, and do not wait."""


def must_end(*, silent_s: float, deadlines_ms: Sequence[float], now_ms: float, grace_s: float, limit_s: float) -> bool:
    """Whether a blocked child is to be killed.

    With requests: `grace_s` after the last of their deadlines, and after the block began (the loop of a
    child with overdue work may be blocked only just). Without: after `limit_s`.

    Args:
        silent_s: seconds since its loop turned, or since it was given a fresh chance.
        deadlines_ms: of its requests, and `now_ms`: Unix time.

    >>> must_end(silent_s=9, deadlines_ms=[1000], now_ms=5999, grace_s=5, limit_s=60)
    False
    >>> must_end(silent_s=9, deadlines_ms=[1000], now_ms=6001, grace_s=5, limit_s=60)
    True
    """
    if not deadlines_ms:
        return silent_s > limit_s
    return silent_s > grace_s and now_ms > max(deadlines_ms) + grace_s * 1000


class Findings(msgspec.Struct):
    """What one look at one child asks for."""

    renew: list[LedgerEntry] = []
    """Leases to renew."""
    blocked: list[LedgerEntry] | None = None
    """It is blocked, found so by this look for the first time; with these requests."""
    unblocked_after_s: float = 0.0
    """Its loop turns again, after about so long; 0 when it was not blocked."""
    must_end: bool = False
    """It is to be killed."""
    entries: list[LedgerEntry] = []
    """What a blocked child has started and not answered."""


class Record:
    """What is remembered of one child between two looks. Decides; does nothing itself."""

    def __init__(self) -> None:
        self._blocked_since_s = 0.0
        self._renewed_at_s = 0.0
        self._fresh_at_s = 0.0
        self._is_condemned = False

    def look(
        self, child: Patient, settings: WorkerSettings, *, now_s: float, now_ms: float, was_late: bool
    ) -> Findings:
        """Judge a child by its heartbeat.

        Args:
            now_s: the monotonic clock, as in the heartbeat; `now_ms` is Unix time, as in deadlines.
            was_late: this look came late, so the child's silence so far proves nothing.
        """
        if was_late:
            self._fresh_at_s = now_s
        beat_s = child.heartbeat_s
        findings = Findings()
        if beat_s == 0 or now_s - beat_s <= _BLOCKED_AFTER_S:
            if self._blocked_since_s:
                findings.unblocked_after_s = (beat_s or now_s) - self._blocked_since_s
                self._blocked_since_s = 0.0
            self._renewed_at_s = 0.0
            return findings
        entries = findings.entries = child.unfinished()
        # Leases know of no fresh chance: to renew one too many does no harm.
        if now_s - self._renewed_at_s >= _RENEW_EVERY_S:
            self._renewed_at_s = now_s
            findings.renew = [entry for entry in entries if not entry.is_once and entry.deadline_ms > now_ms]
        silent_s = now_s - max(beat_s, self._fresh_at_s)
        if silent_s <= _BLOCKED_AFTER_S:
            return findings
        if not self._blocked_since_s:
            self._blocked_since_s = beat_s
            findings.blocked = entries
        if not self._is_condemned and not child.is_leaving:
            findings.must_end = self._is_condemned = must_end(
                silent_s=silent_s,
                deadlines_ms=[entry.deadline_ms for entry in entries],
                now_ms=now_ms,
                grace_s=settings.block_grace_s,
                limit_s=settings.block_limit_s,
            )
        return findings


class Care:
    """Looks after all children of a supervisor until it is cancelled.

    Args:
        children: those that run now.
        publish: how leases are renewed: acknowledgement subject and command.
    """

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        children: Callable[[], Iterable[Patient]],
        publish: Callable[[bytes, bytes], None],
    ) -> None:
        self._settings = settings
        self._children = children
        self._publish = publish
        self._records: dict[int, Record] = {}

    async def run(self) -> None:
        """Look every half second."""
        due_at = time.monotonic()
        while True:
            now_s = time.monotonic()
            try:
                self.look(now_s=now_s, now_ms=time.time() * 1000, was_late=now_s - due_at > _LATE_S)
            except Exception:  # the next look may work, and nobody else looks
                log.exception("look_after_children_failed")
            due_at = time.monotonic() + _LOOK_EVERY_S
            await anyio.sleep(_LOOK_EVERY_S)

    def look(self, *, now_s: float, now_ms: float, was_late: bool) -> None:
        """Look at every child once, and do what that asks for."""
        records = self._records
        self._records = {}
        for child in self._children():
            if not child.is_alive:
                continue
            record = self._records[child.pid] = records.get(child.pid) or Record()
            findings = record.look(child, self._settings, now_s=now_s, now_ms=now_ms, was_late=was_late)
            for entry in findings.renew:
                self._publish(entry.ack_subject, _RENEW)
            silent_s = round(now_s - child.heartbeat_s, 1)
            if findings.blocked is not None:
                log.warning(
                    "worker_blocked",
                    app=child.app,
                    pid=child.pid,
                    handlers=handlers_of(findings.blocked),
                    silent_s=silent_s,
                )
            if findings.unblocked_after_s:
                blocked_s = round(findings.unblocked_after_s, 1)
                log.info("worker_unblocked", app=child.app, pid=child.pid, blocked_s=blocked_s)
            if findings.must_end:
                log.error(
                    "worker_blocked_killed",
                    app=child.app,
                    pid=child.pid,
                    handlers=handlers_of(findings.entries),
                    silent_s=silent_s,
                )
                child.strike()


def handlers_of(entries: Iterable[LedgerEntry]) -> list[str]:
    """Which handlers ran; one of them blocks, or something that one of them left behind."""
    return sorted({entry.handler for entry in entries})[:_NAMES_SHOWN]
