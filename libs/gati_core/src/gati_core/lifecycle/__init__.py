"""What happens around one request inside a worker: request and response objects, hooks, the handler,
failure, cleanup, events; and turning what it did or raised into a reply.

May import: `contexts` and below. The queue side (slots, leases, acks) is the worker's business.
"""

from gati_core.contexts import outliving_request, watch_tasks
from gati_core.lifecycle.controller import HandlerRun
from gati_core.lifecycle.events import EventType, LifecycleEvent, Listener, Observers
from gati_core.lifecycle.middleware import Middleware
from gati_core.lifecycle.plan import HandlerCall, Plan
from gati_core.lifecycle.request import Request
from gati_core.lifecycle.response import Response, ResponseAlreadySent
from gati_core.lifecycle.shared import Alert, Control, HopCounts, Lifecycle, QuietControl
from gati_core.lifecycle.stream import BodyStream
from gati_core.lifecycle.threads import HandlerThreads
from gati_core.lifecycle.transforming import (
    HOP_TIMEOUT_S,
    Chain,
    Hop,
    Transformer,
    VersionedRequest,
    VersionedResponse,
    VersionTypes,
)
from gati_core.lifecycle.validation import DeclaredType, RequestReader, ResponseCheck, check_parameters

__all__ = [
    "HOP_TIMEOUT_S",
    "Alert",
    "BodyStream",
    "Chain",
    "Control",
    "DeclaredType",
    "EventType",
    "HandlerCall",
    "HandlerRun",
    "HandlerThreads",
    "Hop",
    "HopCounts",
    "Lifecycle",
    "LifecycleEvent",
    "Listener",
    "Middleware",
    "Observers",
    "Plan",
    "QuietControl",
    "Request",
    "RequestReader",
    "Response",
    "ResponseAlreadySent",
    "ResponseCheck",
    "Transformer",
    "VersionTypes",
    "VersionedRequest",
    "VersionedResponse",
    "check_parameters",
    "outliving_request",
    "watch_tasks",
]
