"""Hypothesis strategies for what travels between processes."""

from __future__ import annotations

from urllib.parse import quote

import msgspec
from hypothesis import strategies as st

from gati_core.ids import new_request_id
from gati_core.wire import (
    PROTOCOL,
    Cancel,
    HeaderPairs,
    Principal,
    Reply,
    ReplyError,
    RequestDescriptor,
    Timing,
    WorkItem,
    encode,
)
from gati_core.wire.subjects import PRIORITIES, TOKEN

_INT64 = 2**63 - 1
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def tokens() -> st.SearchStrategy[str]:
    """One token of a subject: the name of a pool, a handler or a bucket."""
    return st.from_regex(TOKEN, fullmatch=True)


def bad_tokens() -> st.SearchStrategy[str]:
    """Text that must not become a token, because it is empty, too long, or would change the subject."""
    return st.text(max_size=80).filter(lambda text: TOKEN.fullmatch(text) is None)


def text() -> st.SearchStrategy[str]:
    """Any text that UTF-8 can carry."""
    return st.text(st.characters(exclude_categories=["Cs"]))


def unix_ms() -> st.SearchStrategy[int]:
    """An instant in Unix milliseconds, up to what a 48-bit request id can hold."""
    return st.integers(0, 2**48 - 1)


def request_ids() -> st.SearchStrategy[str]:
    """Request ids, minted at any time."""
    return unix_ms().map(new_request_id)


def path_segments() -> st.SearchStrategy[str]:
    """One decoded, non-empty path segment; may hold slashes, spaces and anything else but NUL."""
    return st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


def paths() -> st.SearchStrategy[str]:
    """Percent-encoded absolute paths."""
    return st.lists(path_segments(), max_size=5).map(lambda parts: "/" + "/".join(quote(p, safe="") for p in parts))


def header_pairs() -> st.SearchStrategy[HeaderPairs]:
    """Headers in order, repeated names included."""
    names = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
    values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40)
    return st.lists(st.tuples(names, values), max_size=6)


def principals() -> st.SearchStrategy[Principal]:
    """Callers as the ingress authenticated them."""
    return st.builds(Principal, subject=text(), roles=st.lists(text(), max_size=4), scheme=text())


def request_descriptors() -> st.SearchStrategy[RequestDescriptor]:
    """Requests as the ingress publishes them, every field varied."""
    return st.builds(
        RequestDescriptor,
        protocol=st.just(PROTOCOL),
        request_id=request_ids(),
        reply_to=tokens().map("gati.reply.{}.0".format),
        deadline_ms=st.integers(-_INT64, _INT64),
        received_ms=unix_ms(),
        method=st.sampled_from(_METHODS),
        path=paths(),
        priority=st.sampled_from(PRIORITIES),
        version=text(),
        principal=st.none() | principals(),
        query=text(),
        headers=header_pairs(),
        body=st.binary(max_size=200),
        body_ticket=text(),
        client_ip=st.ip_addresses().map(str),
        traceparent=text(),
        flags=st.lists(text(), max_size=3),
        idempotency_key=text(),
    )


def work_items() -> st.SearchStrategy[WorkItem]:
    """Work as routers publish it, with a descriptor that decodes."""
    return st.builds(
        WorkItem,
        protocol=st.just(PROTOCOL),
        request_id=request_ids(),
        reply_to=tokens().map("gati.reply.{}.0".format),
        deadline_ms=unix_ms(),
        handler=tokens(),
        mode=st.sampled_from(("at_least_once", "at_most_once")),
        descriptor=request_descriptors().map(encode).map(msgspec.Raw),
        params=st.dictionaries(tokens(), text(), max_size=4),
        routed_ms=unix_ms(),
        tsv=text(),
        manifest_hash=text(),
    )


def replies() -> st.SearchStrategy[Reply]:
    """Answers, good and bad."""
    return st.builds(
        Reply,
        protocol=st.just(PROTOCOL),
        request_id=request_ids(),
        status=st.integers(100, 599),
        headers=header_pairs(),
        body=st.binary(max_size=200),
        body_ticket=text(),
        timing=st.none()
        | st.builds(Timing, received_ms=unix_ms(), routed_ms=unix_ms(), started_ms=unix_ms(), finished_ms=unix_ms()),
        more=st.booleans(),
        error=st.none() | st.builds(ReplyError, code=tokens(), message=text()),
        route=text(),
    )


def cancels() -> st.SearchStrategy[Cancel]:
    """Cancellations."""
    return st.builds(
        Cancel,
        protocol=st.just(PROTOCOL),
        request_id=request_ids(),
        reason=st.sampled_from(("deadline", "client_gone")),
        deadline_ms=unix_ms(),
    )
