"""What happens around one request inside a worker: request and response objects, running the
handler, turning what it did or raised into a reply.

May import: `contexts` and below. The queue side (slots, leases, acks) is the worker's business.
"""

from gati_core.lifecycle.request import BodyReader, Request
from gati_core.lifecycle.response import Response, ResponseAlreadySent
from gati_core.lifecycle.run import HandlerCall, error_reply, run_handler

__all__ = [
    "BodyReader",
    "HandlerCall",
    "Request",
    "Response",
    "ResponseAlreadySent",
    "error_reply",
    "run_handler",
]
