#!/usr/bin/env python3
"""Comparing two versions of a type of 200 fields: strings, numbers, lists, maps, unions, choices, nested objects.

Every comparison gets documents that were just read, so that nothing is remembered from the one before.

    python benchmarks/diff.py
    python benchmarks/diff.py --json
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from _common import Output, header
from gati_core.gtype import Document, canonical_json, extract, read_document
from gati_core.gtype.diff import HandlerTypes, diff_documents, diff_handlers

TARGET_MS = 2.0
FIELDS = 200


class Place(msgspec.Struct):
    """What every eighth field holds."""

    street: Annotated[str, Meta(max_length=80)]
    postcode: Annotated[str, Meta(pattern="^[0-9]{5}$")]
    floor: int


_KINDS: list[Any] = [
    Annotated[str, Meta(min_length=1, max_length=64)],
    Annotated[int, Meta(ge=0, le=1000)],
    float,
    list[str],
    Place,
    Literal["a", "b", "c"],
    dict[str, int],
    str | None,
]


def document(*, every: int = 0) -> bytes:
    """The type as JSON; with `every`, each so many-th field has another type."""
    fields: list[Any] = []
    for number in range(FIELDS):
        kind = _KINDS[number % len(_KINDS)]
        if every and number % every == 3:
            kind = int if kind is not _KINDS[1] else str
        fields.append((f"field_{number}", kind))
    return canonical_json(extract(msgspec.defstruct("Wide", fields), where="body").document)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=40, help="comparisons per measurement")
    parser.add_argument("--rounds", type=int, default=7, help="measurements per row; the row shows medians")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    options = parser.parse_args()

    old, few, all_other = document(), document(every=10), document(every=4)

    def types(new: bytes) -> Callable[[Document, Document], int]:
        return lambda a, b: len(diff_documents(a, b, "request"))

    serial = iter(range(10_000_000))

    def handlers(a: Document, b: Document) -> int:
        # Status codes of its own, or the last hundred comparisons would be looked up.
        mark = (next(serial),)
        diff = diff_handlers(
            HandlerTypes(request=a, response=a, statuses=mark), HandlerTypes(request=b, response=b, statuses=mark)
        )
        return len(diff.breaking) + len(diff.non_breaking)

    cases: dict[str, tuple[bytes, Callable[[Document, Document], int], float | None]] = {
        "one type, nothing changed": (old, types(old), TARGET_MS),
        "one type, 20 fields changed": (few, types(few), TARGET_MS),
        "one type, 50 fields changed": (all_other, types(all_other), TARGET_MS),
        "a handler: request and response, 20 fields changed in both": (few, handlers, None),
    }
    output = Output(as_json=options.json)
    output.header(header(warm_up="1 round", rounds=options.rounds))
    output.columns([f"{FIELDS} fields", "changes", "ms", "target ms"])
    gc.disable()
    for case, (new, compare, target) in cases.items():
        found: list[float] = []
        changes = 0
        for round_ in range(options.rounds + 1):
            pairs = [(read_document(old), read_document(new)) for _ in range(options.repeats)]
            began = time.perf_counter()
            for before, after in pairs:
                changes = compare(before, after)
            spent_ms = (time.perf_counter() - began) / options.repeats * 1000
            if round_:
                found.append(spent_ms)
            gc.collect()
        ms = round(median(found), 3)
        cells = [case, str(changes), f"{ms:.2f}", f"≤ {target:.0f}" if target else ""]
        output.row(cells, {"case": case, "changes": changes, "ms": ms, "target_ms": target})


if __name__ == "__main__":
    main()
