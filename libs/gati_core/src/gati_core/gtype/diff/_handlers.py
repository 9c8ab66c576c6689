"""Comparing versions of handlers: all their types, both sides."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import msgspec

from gati_core.gtype._document import canonical_json, fingerprint
from gati_core.gtype._model import AnyOf, Document
from gati_core.gtype.diff._assign import is_assignable
from gati_core.gtype.diff._compare import diff_documents
from gati_core.gtype.diff._records import Change, Diff, Side, summary_of

_CACHED = 100
_UNCHECKED = Document(root=AnyOf(optional=True))
_AREAS: tuple[tuple[str, Side, str], ...] = (
    ("params", "request", "params"),
    ("query", "request", "query"),
    ("headers", "request", "headers"),
    ("request", "request", "body"),
    ("response_headers", "response", "headers"),
    ("response", "response", "body"),
)


class HandlerTypes(msgspec.Struct, frozen=True, kw_only=True):
    """What one version of a handler declares; None where it declares nothing."""

    params: Document | None = None
    query: Document | None = None
    headers: Document | None = None
    request: Document | None = None
    """Of the body."""
    response: Document | None = None
    """Of the body of a successful answer."""
    response_headers: Document | None = None
    statuses: tuple[int, ...] | None = None


def types_identity(types: HandlerTypes) -> str:
    """SHA-256, in hex, of all that is declared."""
    parts: dict[str, object] = {"statuses": sorted(types.statuses) if types.statuses is not None else None}
    for area, _, _ in _AREAS:
        document: Document | None = getattr(types, area)
        parts[area] = None if document is None else fingerprint(document)
    return hashlib.sha256(canonical_json(parts)).hexdigest()


class _Pair:
    """Two sets of types that are known by their identity: what the cache looks for."""

    def __init__(self, old: HandlerTypes, new: HandlerTypes) -> None:
        self.old = old
        self.new = new
        self.identity = f"{types_identity(old)}:{types_identity(new)}"

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Pair) and self.identity == other.identity


def diff_handlers(old: HandlerTypes, new: HandlerTypes) -> Diff:
    """Everything that differs between two versions, area by area; the last hundred comparisons are remembered."""
    return _compared(_Pair(old, new))


@lru_cache(maxsize=_CACHED)
def _compared(pair: _Pair) -> Diff:
    changes: list[Change] = []
    for area, side, name in _AREAS:
        before, after = (getattr(each, area) or _UNCHECKED for each in (pair.old, pair.new))
        if before is not after:
            changes += diff_documents(before, after, side, path=f"/{side}/{name}")
    changes += _statuses(pair.old.statuses, pair.new.statuses)
    breaking = tuple(each for each in changes if each.type == "breaking")
    rest = tuple(each for each in changes if each.type == "non-breaking")
    return Diff(
        breaking=breaking,
        non_breaking=rest,
        summary=summary_of(len(breaking), len(rest)),
        requires_transformer=bool(breaking),
        hash=pair.identity,
    )


def _statuses(old: tuple[int, ...] | None, new: tuple[int, ...] | None) -> list[Change]:
    was, now = (None if each is None else tuple(sorted(set(each))) for each in (old, new))
    if was == now:
        return []
    return [
        Change(
            # Where none were declared, every one was possible.
            type="non-breaking" if was is None else "breaking",
            operation="modify",
            path="/response/status",
            description=f"status codes {_listed(now)}, were {_listed(was)}",
            old=was,
            new=now,
        )
    ]


def _listed(statuses: tuple[int, ...] | None) -> str:
    return "any" if statuses is None else ", ".join(map(str, statuses)) or "none"


def check_use(*, sent: Document, read: Document, takes: Document, gives: Document) -> list[Change]:
    """Whether a handler may use a module's method (R14.5): what it sends must be taken, what it reads be given.

    Both sides are taken at their word: neither sends fields that its type does not declare.

    Args:
        sent: what the handler sends.
        read: what it expects back.
        takes: the method's input.
        gives: the method's output.
    Returns:
        What does not fit, as the changes that break, at `/input` and `/output`; none when the use is sound.
    """
    problems: list[Change] = []
    if not is_assignable(sent, takes, is_exact=True):
        problems += _breaking(diff_documents(sent, takes, "request", path="/input", is_exact=True))
    if not is_assignable(gives, read, is_exact=True):
        # Whoever reads is in the place of the old version, the method's output in that of the new one.
        problems += _breaking(diff_documents(read, gives, "response", path="/output", is_exact=True))
    return problems


def _breaking(changes: list[Change]) -> list[Change]:
    return [change for change in changes if change.type == "breaking"]
