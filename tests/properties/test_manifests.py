"""P2 and P37: what a manifest says about a handler, with nothing written by hand."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from gati_core import App, Request, Response
from gati_core.gtype import extract, fingerprint
from gati_core.manifests import METHODS, HandlerManifest, manifest_hash

TYPES: list[Any] = [
    None,
    int,
    list[str],
    dict[str, float],
    msgspec.defstruct("Order", [("sku", Annotated[str, Meta(min_length=1)]), ("quantity", int, 1)]),
]
FIELDS: list[Any] = [None, msgspec.defstruct("Search", [("text", str, ""), ("limit", int, 10)])]
names = st.from_regex(r"[a-z][a-z0-9_]{0,11}", fullmatch=True)


class _Wanted(msgspec.Struct):
    """What a handler was registered with."""

    body: Any
    query: Any
    answer: Any
    methods: list[str]
    roles: list[str]
    modules: list[str]
    hooks: list[tuple[str, str, str, float, int]]
    """Kind, level, id, time limit, retries."""
    unknown_fields: str


hooks = st.tuples(
    st.sampled_from(["before", "after", "catch"]),
    st.sampled_from(["global", "route"]),
    names,
    st.floats(0.1, 60.0),
    st.integers(0, 5),
)
handlers = st.builds(
    _Wanted,
    body=st.sampled_from(TYPES),
    query=st.sampled_from(FIELDS),
    answer=st.sampled_from(TYPES),
    methods=st.lists(st.sampled_from(METHODS), min_size=1, max_size=3, unique=True),
    roles=st.lists(names, max_size=3, unique=True),
    modules=st.lists(names, max_size=3, unique=True),
    hooks=st.lists(hooks, max_size=4, unique_by=lambda hook: hook[2]),
    unknown_fields=st.sampled_from(["ignore", "reject"]),
)


def _registered(wanted: _Wanted, path: str = "/things/{id}") -> HandlerManifest:
    app = App("shop")

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        """Do the thing."""
        await gctx.modules["ledger"].book(req.body)
        await gctx.modules.mailer.send()

    handler.__annotations__.update(req=Request[wanted.body, wanted.query or Any], res=Response[wanted.answer or Any])
    options: dict[str, Any] = {
        "unknown_fields": wanted.unknown_fields,
        "roles": wanted.roles,
        "modules": wanted.modules,
    }
    route = app.route(path, methods=wanted.methods, **options)(handler)  # type: ignore[arg-type]  # drawn from METHODS
    for kind, level, name, timeout_s, retries in wanted.hooks:
        target = app if level == "global" else route

        async def catch_hook(error: Any, gctx: Any, lctx: Any) -> None: ...

        async def plain_hook(gctx: Any, lctx: Any) -> None: ...

        register = getattr(target, kind)
        register(catch_hook if kind == "catch" else plain_hook, id=name, timeout_s=timeout_s, retries=retries)
    return app.handlers["handler"].manifest


def _ref(annotation: Any, *, where: str, is_strict: bool) -> str:
    return fingerprint(extract(annotation, where=where, is_strict=is_strict).document) if annotation is not None else ""


@pytest.mark.prop(2)
@settings(max_examples=150, deadline=None)
@given(wanted=handlers)
def test_a_manifest_has_everything_that_a_fabric_needs_to_know(wanted: _Wanted) -> None:
    """P2 (R1.2, R11.1)."""
    manifest = _registered(wanted)
    is_strict = wanted.unknown_fields == "reject"

    assert (manifest.id, manifest.path, manifest.methods) == ("handler", "/things/{id}", wanted.methods)
    assert manifest.gtypes.request == _ref(wanted.body, where="body", is_strict=is_strict)
    assert manifest.gtypes.query == _ref(wanted.query, where="query", is_strict=is_strict)
    assert manifest.gtypes.response == _ref(wanted.answer, where="response", is_strict=False)
    assert (manifest.policies.roles, manifest.policies.unknown_fields) == (sorted(wanted.roles), wanted.unknown_fields)
    assert manifest.dependencies.modules == sorted({*wanted.modules, "ledger", "mailer"})
    assert sorted(record.id for record in manifest.hooks) == sorted(hook[2] for hook in wanted.hooks)
    assert re.fullmatch("[0-9a-f]{64}", manifest.fingerprint)
    assert manifest.hash == manifest_hash(manifest)
    assert msgspec.json.decode(msgspec.json.encode(manifest), type=HandlerManifest) == manifest


@pytest.mark.prop(37)
@settings(max_examples=150, deadline=None)
@given(wanted=handlers)
def test_a_recorded_hook_says_all_that_it_takes_to_play_it_back(wanted: _Wanted) -> None:
    """P37 (R10.4)."""
    manifest = _registered(wanted)

    recorded = {record.id: record for record in manifest.hooks}
    for kind, level, name, timeout_s, retries in wanted.hooks:
        record = recorded[name]
        assert (record.type, record.level, record.timeout_s, record.retries) == (kind, level, timeout_s, retries)
        assert record.is_async
        assert record.source is not None
        assert record.source.file.endswith("test_manifests.py")
        assert record.source.line > 1
    # In the order in which they run or, for after and catch hooks, in the reverse of it.
    for kind in ("before", "after", "catch"):
        order = [hook[2] for level in ("global", "route") for hook in wanted.hooks if hook[:2] == (kind, level)]
        assert [record.id for record in manifest.hooks if record.type == kind] == order


@pytest.mark.prop(2)
@settings(max_examples=100, deadline=None)
@given(first=handlers, second=handlers)
def test_a_fingerprint_stands_for_types_policies_and_hooks(first: _Wanted, second: _Wanted) -> None:
    """P2: equal declarations have one fingerprint; whatever a caller or an operator could notice makes another."""
    one, again, other = _registered(first), _registered(first), _registered(second)

    assert one.fingerprint == again.fingerprint
    same = msgspec.structs.replace(other, hooks=[]) == msgspec.structs.replace(
        one, hooks=[], fingerprint=other.fingerprint, hash=other.hash
    ) and [msgspec.structs.replace(each, source=None) for each in one.hooks] == [
        msgspec.structs.replace(each, source=None) for each in other.hooks
    ]
    assert (one.fingerprint == other.fingerprint) == same
