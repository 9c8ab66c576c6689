"""What the ingress itself reads from the headers of a request, and what it passes on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote_plus

from gati_core.timescape import FROM_QUERY
from gati_core.wire import HeaderPairs

_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"}
)
# Each by its own name, then by the ones that others use.
_VERSION_NAMES = ("x-gati-version", "x-api-version", "x-version")
VERSION_QUERY_NAMES = ("version", "v")
"""Parameters of a query that ask for a version, in the order of precedence; before any header."""
_FLAG_NAMES = ("x-gati-flags", "x-flags")
_PRIORITY_NAMES = ("x-gati-priority", "x-priority")
_ASKED = frozenset((*_VERSION_NAMES, *_FLAG_NAMES, *_PRIORITY_NAMES))
_READ_HERE = _HOP_BY_HOP | _ASKED | {"content-length", "x-request-id", "traceparent", "idempotency-key"}
_DEFAULT_PRIORITY = 5


class Head:
    """What the ingress itself reads from the headers."""

    __slots__ = (
        "content_length",
        "flags",
        "has_body",
        "idempotency_key",
        "pairs",
        "priority",
        "traceparent",
        "version",
    )

    def __init__(self) -> None:
        self.pairs: HeaderPairs = []
        self.content_length = -1
        self.has_body = False
        self.version = ""
        self.flags: list[str] = []
        self.priority = _DEFAULT_PRIORITY
        self.traceparent = ""
        self.idempotency_key = ""


def read_head(raw: list[tuple[bytes, bytes]]) -> Head:
    """Sort the headers into what stays here and what the handler gets."""
    head = Head()
    pairs = head.pairs
    asked: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name = raw_name.decode("latin-1")
        value = raw_value.decode("latin-1")
        if name in _READ_HERE:
            if name == "content-length":
                head.content_length = int(value)
                head.has_body = head.content_length > 0
            elif name == "transfer-encoding":
                head.has_body = True
                continue
            elif name in _HOP_BY_HOP:
                continue
            elif name in _ASKED:
                if value.strip():
                    if name not in asked:
                        asked[name] = value
                    elif name in _FLAG_NAMES:
                        asked[name] += f",{value}"
            elif name == "x-request-id":
                # Theirs is for correlation; ours is unique and goes by this name everywhere.
                name = "x-client-request-id"
            elif name == "traceparent":
                head.traceparent = value
            elif name == "idempotency-key":
                head.idempotency_key = value
        pairs.append((name, value))
    if asked:
        head.version = _first(asked, _VERSION_NAMES).strip()
        head.flags = [flag for part in _first(asked, _FLAG_NAMES).split(",")[:32] if (flag := part.strip().lower())]
        head.priority = _priority(_first(asked, _PRIORITY_NAMES))
    return head


def take_version(query: str, names: Sequence[str]) -> tuple[str, str]:
    """The version that a query asks for, with the mark of where it came from, and the query without it.

    A blank value counts as absent, and of repeated ones the first is taken. What asked for the version is no
    parameter of the handler's: it is taken out.

    >>> take_version("version=v1&page=2", ("version", "v"))
    ('?v1', 'page=2')
    """
    parts = query.split("&")
    for name in names:
        begin = f"{name}="
        mine = [part for part in parts if part.startswith(begin)]
        value = next((text for part in mine if (text := unquote_plus(part[len(begin) :]).strip())), "")
        if value:
            return FROM_QUERY + value, "&".join(part for part in parts if not part.startswith(begin))
    return "", query


def _first(asked: dict[str, str], names: tuple[str, ...]) -> str:
    """What was asked under the first of these names that is there, whatever the order of the headers."""
    return next((asked[name] for name in names if name in asked), "")


def _priority(value: str) -> int:
    try:
        return min(10, max(0, int(value)))
    except ValueError:
        return _DEFAULT_PRIORITY
