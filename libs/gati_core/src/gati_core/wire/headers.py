"""Response headers: what may be sent, and what only the ingress sets."""

from __future__ import annotations

import re

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]")
_OURS = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive", "x-request-id", "upgrade", "te"})


def header_pair(name: str, value: str) -> tuple[str, str]:
    """A header as it travels: lower-case name and value.

    Raises:
        ValueError: the name or value cannot be sent, or the ingress sets this header itself.

    >>> header_pair("X-Total", "3")
    ('x-total', '3')
    """
    lower = name.lower()
    if lower in _OURS:
        raise ValueError(f"header {lower!r} is set by the ingress")
    if _NAME.fullmatch(lower) is None:
        raise ValueError(f"{name!r} is not a header name")
    if _BAD_VALUE.search(value):
        raise ValueError(f"the value of header {lower!r} has characters that cannot be sent: {value!r}")
    return lower, value
