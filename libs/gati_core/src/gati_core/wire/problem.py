"""Error answers: RFC 9457 problem details, the only body that an error of ours ever has."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec

from gati_core.errors import (
    GatiError,
    HandlerError,
    MethodNotAllowed,
    RateLimited,
    TransientError,
    Unauthenticated,
    UpgradeRequired,
)
from gati_core.wire.messages import PROTOCOL, HeaderPairs, Reply, ReplyError, Timing

CONTENT_TYPE = "application/problem+json"
_encode = msgspec.json.Encoder().encode


def problem_body(status: int, code: str, detail: str, request_id: str, *, title: str = "", **more: Any) -> bytes:
    """A problem document.

    Shape: `{"type", "title", "status", "detail", "code", "request_id", …more}`. `code` is stable
    and dotted; programs match on it. `detail` is for people and may change.
    """
    document = {
        "type": "about:blank",
        "title": title or _phrase(status),
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
    document.update(more)
    return _encode(document)


def problem_parts(error: GatiError, request_id: str) -> tuple[int, HeaderPairs, bytes]:
    """Status, headers and body of the answer that this error means to a client."""
    status, code = error.status, error.code
    if isinstance(error, HandlerError):
        status, code = error.status_code, error.error_code
    headers = [("content-type", CONTENT_TYPE)]
    if isinstance(error, (TransientError, RateLimited)):
        headers.append(("retry-after", str(error.retry_after_s)))
    if isinstance(error, MethodNotAllowed):
        headers.append(("allow", ", ".join(error.allow)))
    if isinstance(error, UpgradeRequired):
        headers += [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-version", "13")]
    if isinstance(error, Unauthenticated):
        headers.append(("www-authenticate", error.challenge))
    title = _phrase(status) if isinstance(error, HandlerError) else error.title
    more = {name: error.facts[name] for name in ("errors", "available") if name in error.facts}
    return status, headers, problem_body(status, code, str(error), request_id, title=title, **more)


def problem_reply(error: GatiError, request_id: str, timing: Timing | None = None) -> Reply:
    """The reply message that carries this error to the ingress."""
    status, headers, body = problem_parts(error, request_id)
    code = error.error_code if isinstance(error, HandlerError) else error.code
    return Reply(PROTOCOL, request_id, status, headers, body, "", timing, False, ReplyError(code, str(error)))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
