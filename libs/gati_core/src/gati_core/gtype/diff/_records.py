"""What a comparison finds: changes, and what they come to."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

Side: TypeAlias = Literal["request", "response"]
Severity: TypeAlias = Literal["breaking", "non-breaking"]
Operation: TypeAlias = Literal["add", "remove", "modify"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One difference between two versions of a type."""

    type: Severity
    operation: Operation
    path: str
    """`/request/body/lines/[]/sku`: names as in JSON pointers, `[]` for the items of an array, a number for an item
    of a tuple, `{}` for the values of a map and `{name}` for its names, `|Name` for a member of a union (its kind,
    where it has no name), `&0` for one of an intersection."""
    description: str
    old: Any = None
    """A bound, a choice, a default, a type in words, …; None where there was none. Nobody can change it."""
    new: Any = None


class Diff(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that differs between two versions of a handler."""

    breaking: tuple[Change, ...] = ()
    non_breaking: tuple[Change, ...] = ()
    summary: str = "No changes detected"
    requires_transformer: bool = False
    """Whether clients of the old version need their requests and answers changed."""
    hash: str = ""
    """Identity of the old types and of the new ones, with a colon between."""


def summary_of(breaking: int, non_breaking: int) -> str:
    """`2 breaking changes, 1 non-breaking change`.

    >>> summary_of(0, 1)
    '1 non-breaking change'
    """
    parts = [
        f"{count} {kind} change{'' if count == 1 else 's'}"
        for count, kind in ((breaking, "breaking"), (non_breaking, "non-breaking"))
        if count
    ]
    return ", ".join(parts) or "No changes detected"


def escaped(name: str) -> str:
    """A name as a step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")
