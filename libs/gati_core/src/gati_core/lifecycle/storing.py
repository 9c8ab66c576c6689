"""Storing a run: the request, its state at the end and what the lifecycle did, for looking at it later."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog

from gati_core.contexts import to_bytes
from gati_core.errors import GatiError, SnapshotError
from gati_core.wire import PROTOCOL, RequestDescriptor, StoredRun

if TYPE_CHECKING:
    from gati_core.lifecycle.controller import HandlerRun

log = structlog.get_logger(__name__)

_CREDENTIALS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key"})
LEFT_OUT = "(left out)"


def store_run(run: HandlerRun, status: int) -> None:
    """Hand a finished run to whoever keeps it. Nothing that goes wrong here disturbs the request."""
    keep, emit = run.lifecycle.observers.keep, run.emit
    if keep is None or emit is None or emit.kept is None:
        return
    snapshot = b""
    try:
        snapshot = to_bytes(run.lctx.snapshot())
    except SnapshotError as exc:
        log.warning("snapshot_not_stored", request_id=run.lctx.request_id, error=str(exc))
    stored = StoredRun(
        PROTOCOL,
        run.lctx.request_id,
        run.plan.call.id,
        run.lifecycle.version,
        run.lifecycle.instance_id,
        int(run.lifecycle.clock() * 1000),
        status,
        without_credentials(run.lctx._descriptor, run.request.raw_body),
        run.request.params,
        snapshot,
        emit.kept,
    )
    try:
        keep(stored)
    except GatiError as exc:
        log.warning("run_not_stored", request_id=run.lctx.request_id, error=str(exc))


def without_credentials(descriptor: RequestDescriptor, body: bytes) -> RequestDescriptor:
    """The request with its body in place and the values of credential headers left out."""
    headers = [(name, LEFT_OUT if name in _CREDENTIALS else value) for name, value in descriptor.headers]
    return msgspec.structs.replace(descriptor, headers=headers, body=body, body_ticket="")
