"""Run the property tests and print which of the 47 properties are proven: `make properties`.

Ends with 1 when a property fails. One that has no test yet is shown as missing and fails nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PROPERTIES = {
    1: "handlers have one signature",
    2: "manifests are complete",
    3: "requests are distinct and pass every stage in order",
    4: "modules are reached through typed stubs",
    5: "generated types type-check",
    6: "a failing handler stays alone",
    7: "only healthy versions serve",
    8: "timeouts cancel, cleanup runs once",
    9: "declared types become GTypes",
    10: "invalid bodies never reach a handler",
    11: "invalid responses never leave as success",
    12: "validation errors say where and what",
    13: "the fast validator agrees with the reference",
    14: "changes are classified as breaking or not",
    15: "non-breaking versions take their share",
    16: "breaking versions stay apart",
    17: "old requests are transformed",
    18: "module calls survive the wire",
    19: "undeclared capabilities are refused",
    20: "lifecycle events nest",
    21: "snapshots are complete",
    22: "spans say whose they are",
    23: "the local context is a private map",
    24: "hooks register in every form",
    25: "hooks run in order and unwind in reverse",
    26: "local events stay local",
    27: "request metadata is there",
    28: "modules are found by name",
    29: "secrets are cached for their time",
    30: "metrics reach the collector",
    31: "global messages reach everyone",
    32: "configuration cannot be changed",
    33: "versions resolve as prescribed",
    34: "rate limits hold across routers",
    35: "roles are required",
    36: "lookups are cached and invalidated",
    37: "hook definitions can be played back",
    38: "generated clients are typed",
    39: "what is stored comes back equal",
    40: "modules declare what they need",
    41: "secrets have one door",
    42: "executions are audited",
    43: "full fabrics refuse and cancel",
    44: "requests are snapshot",
    45: "snapshots replay on any version",
    46: "differences of versions are shown",
    47: "restored snapshots are equal",
}


class Tally:
    """A pytest plugin that remembers, per property, how its tests ended."""

    def __init__(self) -> None:
        self.outcomes: dict[int, list[str]] = {number: [] for number in PROPERTIES}
        self._numbers: dict[str, list[int]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note which tests speak for which property."""
        for item in items:
            marks = [mark.args[0] for mark in item.iter_markers("prop")]
            self._numbers[item.nodeid] = [number for number in marks if number in PROPERTIES]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a test ended: its call, or whatever kept it from one."""
        if report.when == "call" or report.outcome != "passed":
            for number in self._numbers.get(report.nodeid, []):
                self.outcomes[number].append(report.outcome)

    def verdict(self, number: int) -> str:
        """`pass`, `fail` or `missing`; what was only skipped is missing."""
        outcomes = self.outcomes[number]
        if "failed" in outcomes:
            return "fail"
        return "pass" if "passed" in outcomes else "missing"


def main() -> int:
    """Run, print the table, return the exit code."""
    tally = Tally()
    ended = pytest.main(["-q", "--no-header", str(Path(__file__).parent), *sys.argv[1:]], plugins=[tally])
    verdicts = {number: tally.verdict(number) for number in PROPERTIES}
    print()
    for number, name in PROPERTIES.items():
        tests = len(tally.outcomes[number])
        print(f"P{number:<3} {name:<52} {verdicts[number]:<8} {f'{tests} tests' if tests else ''}".rstrip())
    counts = {verdict: list(verdicts.values()).count(verdict) for verdict in ("pass", "fail", "missing")}
    print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    is_broken = ended not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    return 1 if counts["fail"] or is_broken else 0


if __name__ == "__main__":
    sys.exit(main())
