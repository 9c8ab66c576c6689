"""Hypothesis strategies for what travels between processes."""

from __future__ import annotations

import datetime
import decimal
import uuid
from urllib.parse import quote, urlencode

import msgspec
from hypothesis import strategies as st

from gati_core.contexts import Operation, Snapshot
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
    TopicMessage,
    WorkItem,
    encode,
)
from gati_core.wire.subjects import PRIORITIES, TOKEN
from gati_testing.builders import BuiltRequest

_INT64 = 2**63 - 1
_READ_BY_THE_INGRESS = frozenset({"x-version", "x-flags", "x-priority"})
_ASK_FOR_A_VERSION = frozenset({"version", "v"})
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


# -- what is declared, and what clients send ----------------------------------------------------

HANDLER_PARAMETERS = ("req", "res", "gctx", "lctx")


class Parameter(msgspec.Struct, frozen=True):
    """One parameter of a generated callable."""

    name: str
    kind: str
    """`positional only`, `positional`, `var positional`, `keyword only` or `var keyword`."""
    has_default: bool = False


class HandlerShape(msgspec.Struct, frozen=True):
    """The declaration of a callable that somebody may try to register."""

    parameters: tuple[Parameter, ...]
    form: str
    """`def`, `async def`, `generator`, `async generator`, `method` or `callable object`."""
    returns: str
    """The return annotation as source text; empty for none."""


def handler_shapes() -> st.SearchStrategy[HandlerShape]:
    """Callables of every signature, the right one often enough to be seen."""
    return st.builds(
        HandlerShape,
        parameters=_good_parameters() | _any_parameters(),
        form=st.sampled_from(("def", "async def", "method", "callable object", "generator", "async generator"))
        | st.sampled_from(("def", "async def")),
        returns=st.sampled_from(("", "None", "Awaitable[None]", "Coroutine[Any, Any, None]"))
        | st.sampled_from(("", "None", "int", "str", "dict[str, int]", "Response", "list[None]", "bool | None")),
    )


def _good_parameters() -> st.SearchStrategy[tuple[Parameter, ...]]:
    names = st.just(HANDLER_PARAMETERS) | st.lists(
        st.from_regex(r"[a-z]{5,8}", fullmatch=True), min_size=4, max_size=4, unique=True
    ).map(tuple)
    kinds = st.integers(0, 4).map(lambda count: ["positional only"] * count + ["positional"] * (4 - count))
    return st.tuples(names, kinds).map(lambda both: tuple(map(Parameter, both[0], both[1])))


@st.composite
def _any_parameters(draw: st.DrawFn) -> tuple[Parameter, ...]:
    """Any parameters in an order that Python itself allows."""
    only, both, named = (draw(st.integers(0, most)) for most in (3, 5, 2))
    kinds = ["positional only"] * only + ["positional"] * both
    # From the first default on, every positional parameter has one.
    first_default = draw(st.integers(0, len(kinds)) | st.just(len(kinds)))
    defaults = [place >= first_default for place in range(len(kinds))]
    if draw(st.booleans()):
        kinds, defaults = [*kinds, "var positional"], [*defaults, False]
    kinds, defaults = (
        kinds + ["keyword only"] * named,
        defaults + draw(st.lists(st.booleans(), min_size=named, max_size=named)),
    )
    if draw(st.booleans()):
        kinds, defaults = [*kinds, "var keyword"], [*defaults, False]
    pool = st.sampled_from(HANDLER_PARAMETERS) | st.from_regex(r"[a-z]{5,8}", fullmatch=True)
    names = draw(st.lists(pool, min_size=len(kinds), max_size=len(kinds), unique=True))
    return tuple(map(Parameter, names, kinds, defaults))


class HttpRequest(msgspec.Struct, frozen=True):
    """What a client sends."""

    method: str
    path: str
    """Percent-encoded, with the query."""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


def _queries() -> st.SearchStrategy[str]:
    """None that asks for a version: there would be none of that name."""
    names = text().filter(lambda name: name not in _ASK_FOR_A_VERSION)
    return st.lists(st.tuples(names, text()), max_size=3).map(urlencode)


def http_requests(
    *, paths: st.SearchStrategy[str], methods: tuple[str, ...] = _METHODS
) -> st.SearchStrategy[HttpRequest]:
    """Well-formed requests for these paths, with queries, headers and bodies of any content."""
    names = st.from_regex(r"x-[a-z]{1,12}", fullmatch=True).filter(lambda name: name not in _READ_BY_THE_INGRESS)
    values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30)
    return st.builds(
        HttpRequest,
        method=st.sampled_from(methods),
        path=st.tuples(paths, _queries()).map(lambda both: "?".join(part for part in both if part)),
        headers=st.lists(st.tuples(names, values), max_size=4).map(tuple),
        body=st.binary(max_size=300),
    )


def payloads() -> st.SearchStrategy[object]:
    """Plain values as an event carries them; they come back equal."""
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False)
        | text()
        | st.binary(max_size=40)
    )
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text(), inner, max_size=4), max_leaves=8
    )


def topic_messages() -> st.SearchStrategy[TopicMessage]:
    """Events on topics, of requests and of none."""
    return st.builds(
        TopicMessage,
        protocol=st.just(PROTOCOL),
        topic=tokens(),
        published_ms=unix_ms(),
        publisher=tokens(),
        request_id=st.just("") | request_ids(),
        payload=payloads().map(encode),
    )


# -- contexts -----------------------------------------------------------------------------------


def configs() -> st.SearchStrategy[dict[str, object]]:
    """Configuration as TOML or JSON gives it: nested tables and lists, and some sets."""
    scalars = (
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text() | st.binary() | st.datetimes()
    )
    values = st.recursive(
        scalars | st.sets(st.integers() | text(), max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text(), inner, max_size=3),
        max_leaves=10,
    )
    return st.dictionaries(text(), values, max_size=4)


def states() -> st.SearchStrategy[dict[str, object]]:
    """What a request may have set, everything that a snapshot can store among it; keys often meet."""
    hashable = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.integers(-1, 1)
        | st.floats()
        | st.sampled_from((0.0, -0.0, 1.0))
        | text()
        | st.binary(max_size=10)
        | st.dates()
        | st.datetimes()
        | st.datetimes(timezones=st.just(datetime.UTC))
        | st.times()
        | st.timedeltas()
        | st.decimals().filter(lambda number: not decimal.Decimal(number).is_snan())
        | st.builds(uuid.UUID, int=st.integers(0, 2**128 - 1))
    )
    sets = st.sets(hashable, max_size=3)
    values = st.recursive(
        hashable | sets | sets.map(frozenset),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(_state_keys(), inner, max_size=4)
        ),
        max_leaves=10,
    )
    return st.dictionaries(_state_keys(), values, max_size=5)


def _state_keys() -> st.SearchStrategy[str]:
    return st.sampled_from(("a", "b", "a.b", "", "\\", ".")) | text()


def operations() -> st.SearchStrategy[Operation]:
    """Operations that a request started, in every status."""
    return st.builds(
        Operation,
        id=text(),
        status=st.sampled_from(("pending", "fulfilled", "rejected")),
        result=states() | st.none() | st.integers(),
        error=st.none() | text(),
    )


def snapshots() -> st.SearchStrategy[Snapshot]:
    """Snapshots of requests at any moment."""
    return st.builds(
        Snapshot,
        request_id=request_ids(),
        timestamp=unix_ms(),
        state=states(),
        outstanding=st.lists(operations(), max_size=3),
        last_hook_index=st.integers(-1, 50),
        handler_version=text(),
        phase=st.sampled_from(("received", "authenticated", "validated", "processing", "completed", "error")),
        trace_id=text(),
        client_id=text(),
    )


class StateStep(msgspec.Struct, frozen=True):
    """One thing that a handler does to its local context."""

    who: int
    """Which of several requests does it."""
    do: str
    """`get`, `set`, `delete` or `clean`."""
    key: str
    value: object


def state_steps(requests: int) -> st.SearchStrategy[list[StateStep]]:
    """What the handlers of several requests do to their contexts, in the order in which they come to it."""
    return st.lists(
        st.builds(
            StateStep,
            who=st.integers(0, requests - 1),
            do=st.sampled_from(("set", "get", "set", "delete", "get", "clean")),
            key=st.sampled_from(("a", "b", "c")) | text(),
            value=st.none() | st.integers() | text(),
        ),
        max_size=40,
    )


# -- what runs around a handler -----------------------------------------------------------------

HOOK_KINDS = ("before", "after", "catch")
HOOK_LEVELS = ("global", "route", "local")
HOOK_FORMS = ("def", "async def", "partial", "callable object", "async callable object", "threaded")


class HookShape(msgspec.Struct, frozen=True):
    """A hook that somebody may register, and how it behaves."""

    kind: str
    level: str
    form: str = "def"
    failures: int = 0
    """Attempts that raise before one succeeds."""
    retries: int = 0

    @property
    def succeeds(self) -> bool:
        """Whether one of its attempts does."""
        return self.failures <= self.retries


def hook_shapes(
    *, kinds: tuple[str, ...] = HOOK_KINDS, forms: tuple[str, ...] = HOOK_FORMS[:-1], most_failures: int = 2
) -> st.SearchStrategy[HookShape]:
    """Hooks of every kind, level and form; with `most_failures=0` all of them succeed at once."""
    return st.builds(
        HookShape,
        kind=st.sampled_from(kinds),
        level=st.sampled_from(HOOK_LEVELS),
        form=st.sampled_from(forms),
        failures=st.just(0) | st.integers(0, most_failures),
        retries=st.integers(0, most_failures),
    )


def hook_sets(**options: object) -> st.SearchStrategy[list[HookShape]]:
    """Hooks in the order of their registration; see `hook_shapes`."""
    return st.lists(hook_shapes(**options), max_size=8)  # type: ignore[arg-type]


def json_values() -> st.SearchStrategy[object]:
    """What a JSON body may hold, without fractions."""
    leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text()
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text(), inner, max_size=3), max_leaves=6
    )


def plain_states() -> st.SearchStrategy[dict[str, object]]:
    """What a request may keep in its local context, of values that equal themselves."""
    return st.dictionaries(text(), payloads(), max_size=5)


# -- requests as handler authors write them -----------------------------------------------------


def headers() -> st.SearchStrategy[HeaderPairs]:
    """Headers of a client's own, repeated names included; none that the ingress reads itself."""
    names = st.from_regex(r"x-[a-z]{1,12}", fullmatch=True).filter(lambda name: name not in _READ_BY_THE_INGRESS)
    values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30)
    return st.lists(st.tuples(names, values), max_size=4)


def requests(*, path: str = "/", methods: tuple[str, ...] = _METHODS) -> st.SearchStrategy[BuiltRequest]:
    """Requests for one path, with any query, headers and body; for `Simulation.request` and `execute_handler`."""
    json_bodies = json_values().map(msgspec.json.encode)
    bodies = (
        st.just((b"", ""))
        | st.tuples(json_bodies, st.just("application/json"))
        | st.tuples(st.binary(max_size=300), st.sampled_from(("application/octet-stream", "application/json", "")))
        | st.tuples(text().map(str.encode), st.just("text/plain"))
        | st.tuples(st.lists(st.tuples(text(), text()), max_size=3).map(lambda each: urlencode(each).encode()),
                    st.just("application/x-www-form-urlencoded"))
    )  # fmt: skip

    def build(method: str, query: str, pairs: HeaderPairs, body: tuple[bytes, str]) -> BuiltRequest:
        content_type = [("content-type", body[1])] if body[1] else []
        return BuiltRequest(method=method, path=path, query=query, headers=[*pairs, *content_type], body=body[0])

    return st.builds(build, st.sampled_from(methods), _queries(), headers(), bodies)
