"""Messages as ingress and router would write them, for tests that put them on the streams by hand."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec

from gati_core.fabric import Fabric, KvBucket
from gati_core.ids import new_request_id
from gati_core.wire import PROTOCOL, RequestDescriptor, WorkItem, encode


def descriptor(**changes: Any) -> RequestDescriptor:
    """A request that would work."""
    now_ms = time.time_ns() // 1_000_000
    request = RequestDescriptor(PROTOCOL, new_request_id(), "x.reply.a.b", now_ms + 8000, now_ms, "GET", "/text")
    return msgspec.structs.replace(request, **changes)


def work_item(request: RequestDescriptor, handler: str, **changes: Any) -> WorkItem:
    """A work item that would work."""
    raw = msgspec.Raw(encode(request))
    item = WorkItem(
        PROTOCOL, request.request_id, request.reply_to, request.deadline_ms, handler, "at_least_once", raw, {}
    )
    return msgspec.structs.replace(item, **changes)


async def pool_of(inside: Fabric, app: str) -> str:
    """The pool that serves an app now."""
    entry = await KvBucket(inside.connection, inside.subjects.manifests_bucket).get(f"current.{app}")
    assert entry is not None
    return str(json.loads(entry.value)["pool"])
