"""What gati raises on purpose, and what each error means to a client and to the queue.

Every error answers three questions: which HTTP status the client gets (`status`), which stable
code a program may match on (`code`), and whether another attempt can help (`TransientError`:
settle with a nak; `PermanentError`: dead letter, then term). `facts` become log fields and never
reach the client.

This module imports nothing else of ours.
"""

from __future__ import annotations

from typing import ClassVar


class GatiError(Exception):
    """Root of what gati raises on purpose."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = facts


class TransientError(GatiError):
    """A later attempt may succeed: nak, or tell the client to try again."""

    status = 503
    code = "unavailable"
    title = "Service unavailable"
    retry_after_s: ClassVar[int] = 1
    """Seconds a client should wait before it tries again (`Retry-After`)."""


class PermanentError(GatiError):
    """No attempt can succeed: dead letter, answer, then term."""


# -- the fabric -------------------------------------------------------------------------------


class BrokerUnavailable(TransientError):
    """No broker is connected, or it has stopped answering; nothing was published."""

    code = "fabric.unavailable"
    title = "The message broker is unavailable"


class Backpressure(TransientError):
    """The publish window or the stream is full; nothing was stored."""

    code = "fabric.backpressure"
    title = "The queue is full"


class PublishUnconfirmed(TransientError):
    """No publish ack in time; the message may or may not be stored."""

    code = "fabric.publish_unconfirmed"
    title = "The queue did not confirm the request"


class BrokerRestarted(GatiError):
    """The broker crashed while it held this request: it may have run, and it may run only once."""

    status = 502
    code = "fabric.broker_restarted"
    title = "The message broker restarted"


class PublishRefused(PermanentError):
    """The broker refused this message for a reason that another attempt will not change."""

    code = "fabric.publish_refused"


class MessageTooLarge(PermanentError):
    """Payload and headers together exceed what the broker takes in one message."""

    status = 413
    code = "fabric.message_too_large"
    title = "Content too large"


class TopologyError(PermanentError):
    """A stream, consumer or bucket is missing, or differs in a way that would lose messages."""

    code = "fabric.topology"


class KeyConflict(TransientError):
    """Compare-and-set lost: the key changed since it was read."""

    status = 409
    code = "kv.conflict"
    title = "Conflict"


# -- messages ---------------------------------------------------------------------------------


class MalformedMessage(PermanentError):
    """Not a message of ours, or not of a protocol version that we read."""

    status = 502
    code = "wire.malformed"


class MalformedDescriptor(MalformedMessage):
    """Bytes on the request stream that are no request descriptor."""

    code = "wire.malformed_descriptor"


class MalformedWorkItem(MalformedMessage):
    """Bytes on the work stream that are no work item."""

    code = "wire.malformed_work_item"


class MalformedReply(MalformedMessage):
    """Bytes on a reply subject that are no reply."""

    code = "wire.malformed_reply"


class MalformedManifest(MalformedMessage):
    """A worker announced something that is no manifest."""

    code = "wire.malformed_manifest"


# -- requests ---------------------------------------------------------------------------------


class RequestError(PermanentError):
    """The request itself is wrong; the client must change it."""

    status = 400
    code = "request.bad"
    title = "Bad request"


class InvalidPath(RequestError):
    """The path has a percent escape that does not decode, or a NUL byte."""

    code = "request.bad_path"


class InvalidBody(RequestError):
    """The body is not what the handler's type says."""

    code = "request.invalid_body"
    title = "The request body is not valid"


class UnsupportedMedia(RequestError):
    """The body's content type is not one that the handler's type can be read from."""

    status = 415
    code = "request.unsupported_media_type"
    title = "Unsupported media type"


class RouteNotFound(RequestError):
    """No handler listens on this path."""

    status = 404
    code = "route.not_found"
    title = "Not found"


class MethodNotAllowed(RequestError):
    """The path is known, the method is not; `Allow` lists the ones that are."""

    status = 405
    code = "route.method_not_allowed"
    title = "Method not allowed"

    def __init__(self, message: str, *, allow: tuple[str, ...], **facts: object) -> None:
        super().__init__(message, **facts)
        self.allow = allow


class ContentTooLarge(RequestError):
    """The body exceeds the ingress's limit."""

    status = 413
    code = "request.body_too_large"
    title = "Content too large"


class HeadersTooLarge(RequestError):
    """The request line, a header, or all headers together exceed the ingress's limits."""

    status = 431
    code = "request.headers_too_large"
    title = "Request header fields too large"


class RequestTimeout(RequestError):
    """The client did not send the whole request in time."""

    status = 408
    code = "request.timeout"
    title = "Request timeout"


# -- execution --------------------------------------------------------------------------------


class DeadlineExceeded(GatiError):
    """The request's deadline passed before an answer came."""

    status = 504
    code = "request.deadline_exceeded"
    title = "The deadline passed"


class Overloaded(TransientError):
    """The ingress holds as many requests as it may."""

    code = "ingress.overloaded"
    title = "Too many requests in flight"


class ShuttingDown(TransientError):
    """This process is leaving; another one will answer."""

    code = "ingress.shutting_down"
    title = "Shutting down"


class NoLiveWorker(TransientError):
    """The route is known, but no live worker serves it."""

    code = "route.no_live_worker"
    title = "No worker is available"


class WorkerCrashed(GatiError):
    """The worker died while it ran this request; an at-most-once request is not repeated."""

    status = 502
    code = "worker.crashed"
    title = "The worker failed"


class PoisonMessage(PermanentError):
    """The request was delivered as often as allowed and never finished."""

    status = 502
    code = "worker.poison"
    title = "The worker failed"


class ClientGone(GatiError):
    """The client closed the connection before the answer; nobody reads this status."""

    status = 499
    code = "request.client_gone"
    title = "Client closed the request"


class HandlerError(GatiError):
    """Raised by handler authors to answer with a status of their own.

    Args:
        message: shown to the client as the problem's `detail`.
        status_code: 400 to 599.
        code: stable and dotted; clients may match on it.
        context: for the log only.
    """

    code = "handler.error"
    title = "The handler failed"

    def __init__(
        self, message: str, status_code: int = 500, *, code: str | None = None, context: object = None
    ) -> None:
        if not 400 <= status_code <= 599:
            raise ValueError(f"status_code must be between 400 and 599, not {status_code}")
        super().__init__(message, context=context)
        self.status_code = status_code
        self.error_code = code or self.code


# -- start-up ---------------------------------------------------------------------------------


class SettingsError(GatiError):
    """An environment variable is unknown, mistyped or out of range; the process does not start."""

    code = "settings.invalid"


class RegistrationError(GatiError):
    """A handler, route or package cannot be registered; the message says why and where."""

    code = "app.registration"
