"""The wire: subject names, messages and their codecs. Pure: no I/O, no broker.

May import: `errors`, `ids`, `settings`. Belongs here: anything that two processes must agree on.
"""

from gati_core.wire.codec import (
    decode_cancel,
    decode_descriptor,
    decode_reply,
    decode_routing,
    decode_work,
    encode,
    from_json,
    to_json,
)
from gati_core.wire.messages import (
    PROTOCOL,
    Cancel,
    DeliveryMode,
    HeaderPairs,
    Principal,
    Reply,
    ReplyError,
    RequestDescriptor,
    RoutingView,
    Timing,
    WorkItem,
)
from gati_core.wire.problem import problem_body, problem_parts, problem_reply
from gati_core.wire.subjects import LANES, PRIORITIES, Subjects, for_namespace, token

__all__ = [
    "LANES",
    "PRIORITIES",
    "PROTOCOL",
    "Cancel",
    "DeliveryMode",
    "HeaderPairs",
    "Principal",
    "Reply",
    "ReplyError",
    "RequestDescriptor",
    "RoutingView",
    "Subjects",
    "Timing",
    "WorkItem",
    "decode_cancel",
    "decode_descriptor",
    "decode_reply",
    "decode_routing",
    "decode_work",
    "encode",
    "for_namespace",
    "from_json",
    "problem_body",
    "problem_parts",
    "problem_reply",
    "to_json",
    "token",
]
