"""What `/metrics` tells."""

from __future__ import annotations


def samples(text: str, name: str) -> dict[str, float]:
    """Samples of one metric: labels → value."""
    found = {}
    for line in text.splitlines():
        if line.startswith((name + "{", name + " ")):
            labels, _, value = line.removeprefix(name).rpartition(" ")
            found[labels] = float(value)
    return found
