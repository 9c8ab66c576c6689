#!/usr/bin/env python3
"""One lookup in the router's table: what it costs, and how that grows with the number of routes.

The table is that of an ordinary API: for every resource a list, a creation, an item, a deletion and
a part of an item. The lookups go round many resources, so that no single path stays in the caches.

    python benchmarks/routing.py
    python benchmarks/routing.py --routes 1000 --json
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator
from statistics import median

from _common import Output, header
from gati_core.errors import RequestError
from gati_router.matching import RouteTable

PER_RESOURCE = (
    ("GET", "/{}"),
    ("POST", "/{}"),
    ("GET", "/{}/{{id}}"),
    ("DELETE", "/{}/{{id}}"),
    ("GET", "/{}/{{id}}/parts/{{part}}"),
)
CASES = {
    "static": ("POST", "/{}"),
    "one parameter": ("GET", "/{}/0198b2c4"),
    "two parameters": ("GET", "/{}/0198b2c4/parts/17"),
    "miss (404)": ("GET", "/{}/0198b2c4/pieces/17"),
    "method not allowed (405)": ("PUT", "/{}/0198b2c4"),
}


def table(size: int) -> RouteTable[int]:
    """A table of exactly `size` routes."""

    def routes() -> Iterator[tuple[str, str, int]]:
        for number in range(size):
            method, route = PER_RESOURCE[number % len(PER_RESOURCE)]
            yield method, route.format(_resource(number // len(PER_RESOURCE))), number

    return RouteTable(routes())


def _resource(number: int) -> str:
    return f"resource-{number}"


def requests(case: str, size: int, count: int) -> list[tuple[str, str]]:
    """`count` lookups of one case, spread evenly over the table's resources."""
    method, path = CASES[case]
    resources = max(1, size // len(PER_RESOURCE))
    # A step that shares no factor with the number of resources visits them all, in no simple order.
    step = 7919
    return [(method, path.format(_resource(number * step % resources))) for number in range(count)]


def ns_per_match(routes: RouteTable[int], asked: list[tuple[str, str]]) -> float:
    """Nanoseconds per lookup, the refusal's exception and the loop around it included."""
    match = routes.match
    started = time.perf_counter_ns()
    for method, path in asked:
        try:
            match(method, path)
        except RequestError:
            pass
    return (time.perf_counter_ns() - started) / len(asked)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--routes", default="10,100,1000,10000", help="sizes of the table, comma separated")
    parser.add_argument("--lookups", type=int, default=50_000, help="per measurement")
    parser.add_argument("--rounds", type=int, default=7, help="measurements per row; the row shows medians")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    options = parser.parse_args()

    output = Output(as_json=options.json)
    output.header(header(warm_up="1 round", rounds=options.rounds, others=f"{options.lookups} lookups each"))
    sizes = [int(size) for size in options.routes.split(",")]
    output.columns(["case", *(f"{size:,} routes, µs" for size in sizes)])
    tables = {size: table(size) for size in sizes}
    gc.disable()
    for case in CASES:
        found: dict[int, list[float]] = {size: [] for size in sizes}
        asked = {size: requests(case, size, options.lookups) for size in sizes}
        for round_ in range(options.rounds + 1):
            for size in sizes:
                spent = ns_per_match(tables[size], asked[size])
                if round_:
                    found[size].append(spent)
        ns = {size: round(median(found[size])) for size in sizes}
        if options.json:
            for size in sizes:
                output.row([], {"case": case, "routes": size, "ns_per_match": ns[size]})
        else:
            output.row([case, *(f"{ns[size] / 1000:.2f}" for size in sizes)], None)


if __name__ == "__main__":
    main()
