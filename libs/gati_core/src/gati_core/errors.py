"""What gati raises on purpose, and what each error means to a client and to the queue.

Every error answers three questions: which HTTP status the client gets (`status`), which stable
code a program may match on (`code`), and whether another attempt can help (`TransientError`:
settle with a nak; `PermanentError`: dead letter, then term). `facts` become log fields and never
reach the client.

This module imports nothing else of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class GatiError(Exception):
    """Root of what gati raises on purpose."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    may_be_answered: ClassVar[bool] = True
    """Whether catch hooks may answer in its place; not where the client's answer is decided already."""

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = facts


def described(error: BaseException) -> str:
    """`Kind: text` in text that UTF-8 can carry, whatever the error's own `__str__` does; for events and records."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be shown)"
    return f"{type(error).__name__}: {text}".encode(errors="replace").decode()


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


# -- topics -----------------------------------------------------------------------------------


class TopicError(PermanentError):
    """A topic's name, an event's payload or a subscription is not usable; the message says what to change."""

    code = "topic.invalid"


class EventTimeout(GatiError):
    """Nobody published what was waited for in time."""

    status = 504
    code = "topic.timeout"
    title = "An expected event did not come"


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


class MalformedGType(MalformedMessage):
    """A type document that cannot be read or makes no sense; names the place in it."""

    code = "gtype.malformed"


class BundleError(PermanentError):
    """A bundle cannot be made or opened; the message lists what is wrong with it."""

    code = "manifest.bundle"


class PackageError(PermanentError):
    """A wheel, or a project that should become one, cannot be used; says what is wrong, where, and what to do."""

    code = "package.invalid"


class AlreadyStored(PermanentError):
    """Something is stored under this name with other content, and is never changed."""

    status = 409
    code = "manifest.already_stored"
    title = "Conflict"


class VersionConflict(PermanentError):
    """A change of a handler's versions that their rules forbid; says which, and what to do."""

    status = 409
    code = "version.conflict"
    title = "Conflict"


class UnsupportedType(PermanentError):
    """An annotation that no type document can express; names the path to the offending field."""

    code = "gtype.unsupported"


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


class InvalidRequest(RequestError):
    """Path, query or headers are not what the handler's types say."""

    code = "request.invalid"
    title = "The request is not valid"


class UnsupportedMedia(RequestError):
    """The body's content type is not one that the handler's type can be read from."""

    status = 415
    code = "request.unsupported_media_type"
    title = "Unsupported media type"


class Unauthenticated(RequestError):
    """No credentials, or none that are accepted. Hooks may raise it."""

    status = 401
    code = "auth.unauthenticated"
    title = "Unauthenticated"
    challenge: str = "Bearer"
    """What `WWW-Authenticate` says."""


class Forbidden(RequestError):
    """The caller is known and may not do this. Hooks may raise it."""

    status = 403
    code = "auth.forbidden"
    title = "Forbidden"


class RateLimited(RequestError):
    """The caller has sent more than it may. Hooks may raise it."""

    status = 429
    code = "rate.limited"
    title = "Too many requests"

    def __init__(self, message: str, *, retry_after_s: int = 1, **facts: object) -> None:
        super().__init__(message, **facts)
        self.retry_after_s = retry_after_s


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


class InvalidVersion(RequestError):
    """A version preference of none of the known forms."""

    code = "version.invalid_format"
    title = "The version is not valid"


class InvalidTimestamp(InvalidVersion):
    """A version preference that looks like a point in time and is none."""

    code = "version.invalid_timestamp"


class VersionNotFound(RequestError):
    """The handler has no such version, or none that still runs.

    Args:
        available: what the client may ask for instead; it is told.
    """

    status = 404
    code = "version.not_found"
    title = "Version not found"

    def __init__(self, message: str, *, available: Sequence[str] = (), **facts: object) -> None:
        super().__init__(message, available=list(available), **facts)
        self.available = list(available)


class TagNotFound(VersionNotFound):
    """The handler has no version with this tag."""

    code = "version.tag_not_found"


class UpgradeRequired(RequestError):
    """Only a WebSocket handler listens on this path, and the request is no WebSocket handshake (or no valid one)."""

    status = 426
    code = "route.upgrade_required"
    title = "Upgrade required"


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
    may_be_answered = False


class HandlerTimeout(DeadlineExceeded):
    """The handler did not finish within its own limit."""

    code = "handler.timeout"


class HookTimeout(GatiError):
    """A hook did not finish within its limit."""

    status = 504
    code = "hook.timeout"
    title = "A hook took too long"


class InvalidResponse(GatiError):
    """The handler's answer is not of the type it declared; only the log says how."""

    code = "response.invalid"
    title = "The handler's answer is not valid"


class TransformFailed(GatiError):
    """A transformer between two versions raised, took too long, or made something that does not fit."""

    code = "version.transform_failed"
    title = "The request could not be translated between versions"
    has_run = True
    """Whether the handler may have run: with False, another version may run instead, whatever its delivery mode."""

    def for_clients(self) -> TransformFailed:
        """The same without what exactly went wrong, which is for the log."""
        return TransformFailed("the request could not be translated between versions of its handler")


class TooLate(GatiError):
    """Something was registered or changed at a point of the request where it can have no effect."""

    code = "handler.too_late"


class ChannelClosed(GatiError):
    """The client of a stream or socket is gone, or the channel to it broke."""

    status = 499
    code = "channel.closed"
    title = "The client is gone"


class ChannelBroken(GatiError):
    """The worker's side of a stream or socket ended in the middle, or what it sent makes no sense.

    Args:
        close_code: what a socket is closed with.
        is_mutual: the worker does not know yet, and has to be told.
    """

    status = 502
    code = "channel.broken"
    title = "The answer broke off"

    def __init__(self, message: str, *, close_code: int = 1011, is_mutual: bool = False, **facts: object) -> None:
        super().__init__(message, **facts)
        self.close_code = close_code
        self.is_mutual = is_mutual


class SnapshotError(GatiError):
    """A snapshot cannot be taken, stored or restored; the message names the key."""

    code = "snapshot.invalid"


class Overloaded(TransientError):
    """The ingress holds as many requests as it may."""

    code = "ingress.overloaded"
    title = "Too many requests in flight"


class ShuttingDown(TransientError):
    """This process is leaving; another one will answer."""

    code = "ingress.shutting_down"
    title = "Shutting down"
    may_be_answered = False


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
    may_be_answered = False


class ClientStalled(ClientGone):
    """The client read nothing of a stream or socket for so long that the connection was cut."""

    code = "request.client_stalled"


class NotRegistered(GatiError, KeyError):
    """No module or service has this name; the message lists the names there are."""

    code = "context.not_registered"

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would put the message in quotes


class WrongKind(GatiError, TypeError):
    """A module is there and is not of the type that was asked for."""

    code = "context.wrong_kind"


class NotConfigured(GatiError):
    """Part of a context that this process was not given."""

    code = "context.not_configured"


class ConfigReadOnly(GatiError, TypeError):
    """Somebody tried to change the configuration; the message names the path."""

    code = "config.read_only"


class MetricInvalid(GatiError, ValueError):
    """A metric, label or span that no exporter could carry; the message says which and why."""

    code = "metrics.invalid"


class ModuleError(GatiError):
    """A module failed after its retries. Raised into the handler, which may catch it."""

    code = "module.failed"
    title = "A module failed"


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
        given: Any = status_code  # whatever its annotation promises
        if not isinstance(given, int) or not 400 <= status_code <= 599:
            raise ValueError(f"status_code must be between 400 and 599, not {status_code}")
        super().__init__(message, context=context)
        self.status_code = status_code
        self.error_code = code or self.code


class TooManyChannels(HandlerError, TransientError):
    """This process holds as many streams and sockets open as it may; nothing of this one has begun."""

    code = "worker.too_many_channels"

    def __init__(self, message: str) -> None:
        super().__init__(message, 503)


# -- start-up ---------------------------------------------------------------------------------


class SettingsError(GatiError):
    """An environment variable is unknown, mistyped or out of range; the process does not start."""

    code = "settings.invalid"


class RegistrationError(GatiError):
    """A handler, route or package cannot be registered; the message says why and where."""

    code = "app.registration"


class ConfigInvalid(GatiError):
    """A configuration cannot be read or made read-only; the message names file and line, or the path in it."""

    code = "config.invalid"


class StartupFailed(GatiError):
    """A start-up hook failed, so the process does not start; the message names the hook."""

    code = "lifecycle.startup_failed"


class SchemaError(GatiError):
    """A database schema cannot be migrated, so the package that uses it does not start; says what, where and how to
    go on, without the database's password."""

    code = "schema.failed"
