"""What a WebSocket handshake must hold, and what each side may say in it. Pure."""

from __future__ import annotations

import binascii
from base64 import b64decode
from typing import Any

from gati_core.errors import InvalidResponse, RequestError, UpgradeRequired
from gati_core.wire import HeaderPairs

# Between the client and this ingress; what the application may know is left.
_OURS = frozenset({b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions"})
_MAX_REASON_BYTES = 123


def check_handshake(headers: list[tuple[bytes, bytes]], http_version: str) -> bytes:
    """The key of a valid handshake (RFC 6455, section 4.2.1). That it asks for an upgrade is known.

    Raises:
        UpgradeRequired: another version of the protocol than 13, or of HTTP than 1.1.
        RequestError: something else is missing or malformed; the message says what.
    """
    if http_version != "1.1":
        raise UpgradeRequired("a WebSocket handshake needs HTTP/1.1")
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value.strip())
    if found.get(b"sec-websocket-version") != [b"13"]:
        raise UpgradeRequired("a WebSocket handshake needs the header Sec-WebSocket-Version: 13")
    keys = found.get(b"sec-websocket-key", [])
    try:
        is_key = len(keys) == 1 and len(b64decode(keys[0], validate=True)) == 16
    except (binascii.Error, ValueError):
        is_key = False
    if not is_key:
        raise RequestError("a WebSocket handshake needs one Sec-WebSocket-Key of 16 bytes in base64")
    if b"transfer-encoding" in found or any(value != b"0" for value in found.get(b"content-length", [])):
        raise RequestError("a WebSocket handshake has no body")
    return keys[0]


def passed_on(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers without those that only concern the handshake itself."""
    return [pair for pair in headers if pair[0] not in _OURS]


def offered(headers: list[tuple[bytes, bytes]]) -> list[str]:
    """The subprotocols that the client offers, in its order."""
    values = [value.decode("latin-1") for name, value in headers if name == b"sec-websocket-protocol"]
    return [name for value in values for part in value.split(",") if (name := part.strip())]


def chosen(headers: HeaderPairs, subprotocols: list[str]) -> str:
    """The subprotocol that the handler chose; empty when it chose none.

    Raises:
        InvalidResponse: it is none that the client offered, which a client takes for a failed handshake.
    """
    values = [value.strip() for name, value in headers if name.lower() == "sec-websocket-protocol"]
    if not values:
        return ""
    if len(values) > 1 or values[0] not in subprotocols:
        raise InvalidResponse(f"the handler chose a subprotocol that was not offered: {', '.join(values)[:100]!r}")
    return values[0]


def close_to_client(code: int, reason: str) -> dict[str, Any]:
    """The close of a handler as ASGI event, with a code and a reason that may be sent.

    No code, or 1005, which says that there was none, becomes 1000; what may not be sent becomes 1011.
    """
    if code in (0, 1005):
        code = 1000
    elif not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        code = 1011
    text = reason.encode(errors="replace")[:_MAX_REASON_BYTES].decode(errors="ignore")
    return {"type": "websocket.close", "code": code, "reason": text}
