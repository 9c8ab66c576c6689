"""P44: with snapshot storage on, the request, its state and its lifecycle events are kept."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gati_core import App
from gati_core.contexts import GlobalContext, Instance, diff, from_bytes
from gati_core.lifecycle import HandlerRun, HandlerThreads, Lifecycle, LifecycleEvent, Observers, QuietControl
from gati_core.wire import RequestDescriptor, StoredRun, decode_stored_run, encode
from gati_testing import strategies

GCTX = GlobalContext(Instance("i", "shop", "shop-1", "host", 0))
CREDENTIALS = ("authorization", "cookie", "x-api-key")


@pytest.mark.prop(44)
@given(
    descriptor=strategies.request_descriptors(),
    state=strategies.states(),
    secret=st.sampled_from(CREDENTIALS),
    fails=st.booleans(),
    is_flagged=st.booleans(),
)
def test_a_flagged_run_is_stored_whole_and_no_other(
    descriptor: RequestDescriptor, state: dict[str, object], secret: str, fails: bool, is_flagged: bool
) -> None:
    """P44 (R15.1): request data, local state and lifecycle events come back equal from what is stored."""
    app = App("shop")

    @app.get("/")
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        for key, value in state.items():
            lctx.set(key, value)
        if fails:
            raise LookupError("no")
        res.text("ok")

    descriptor.flags = ["snapshot"] if is_flagged else []
    descriptor.headers = [*descriptor.headers, (secret, "do not keep this")]
    kept: list[bytes] = []
    events: list[LifecycleEvent] = []

    asyncio.run(_run(app, descriptor, kept, events))

    assert len(kept) == is_flagged
    for stored in map(decode_stored_run, kept):
        _matches(stored, descriptor, secret, state, events, status=500 if fails else 200)


async def _run(app: App, descriptor: RequestDescriptor, kept: list[bytes], events: list[LifecycleEvent]) -> None:
    observers = Observers(instance="i", keep=lambda run: kept.append(encode(run)))
    observers.listen(events.append)
    lifecycle = Lifecycle(gctx=GCTX, threads=HandlerThreads(1), version="v7", observers=observers)
    run = HandlerRun(
        lifecycle,
        app.handlers["handler"].plan(),
        descriptor,
        {"id": "7"},
        b"the body",
        attempt=1,
        routed_ms=0,
        control=QuietControl(),
    )
    await run.execute()
    await run.cleanup()


def _matches(
    stored: StoredRun,
    descriptor: RequestDescriptor,
    secret: str,
    state: dict[str, object],
    events: list[LifecycleEvent],
    *,
    status: int,
) -> None:
    received = msgspec.structs.replace(
        descriptor,
        headers=[
            (name, "(left out)" if name in (*CREDENTIALS, "proxy-authorization") else value)
            for name, value in descriptor.headers
        ],
        body=b"the body",
        body_ticket="",
    )
    assert stored.descriptor == received
    assert (secret, "(left out)") in stored.descriptor.headers
    assert (stored.params, stored.status, stored.version, stored.handler) == ({"id": "7"}, status, "v7", "handler")
    snapshot = from_bytes(stored.snapshot)
    assert diff(msgspec.structs.replace(snapshot, state=state), snapshot) == []  # a NaN is not equal to itself
    assert (snapshot.request_id, snapshot.handler_version) == (descriptor.request_id, "v7")
    assert snapshot.phase == ("error" if status == 500 else "completed")
    assert [(each.event, each.seq, each.stage) for each in stored.events] == [
        (event.type, event.seq, event.stage) for event in events
    ]
    assert stored.events[-1].event == "request:end"
