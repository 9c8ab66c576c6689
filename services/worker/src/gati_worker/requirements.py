"""What a package needs, beside what the worker itself has installed. Pure but for reading that."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from gati_core.errors import PackageError

OURS = ("gati-core", "gati-worker")
"""Distributions of which a package gets the worker's own, and no other."""


def unmet(package: str, requires: Sequence[str]) -> list[str]:
    """The requirements that the worker's environment does not satisfy, without their markers.

    Args:
        package: what messages call it.
        requires: as in the wheel's metadata.
    Raises:
        PackageError: one cannot be read, or asks for another Gati than this worker's.
    """
    found = []
    for line in requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement as exc:
            raise PackageError(f"{package} has a requirement that cannot be read: {exc}") from exc
        if not _applies(requirement):
            continue
        if canonicalize_name(requirement.name) in OURS:
            version = importlib.metadata.version(requirement.name)
            if requirement.url or not requirement.specifier.contains(version, prereleases=True):
                raise PackageError(
                    f"{package} needs {requirement}, and this worker has {requirement.name} {version}: run it on a"
                    " worker that has, or change the requirement"
                )
        if not _is_met(requirement, set()):
            requirement.marker = None
            found.append(str(requirement))
    return found


def own_ranges() -> list[str]:
    """What Gati and all that it stands on accept of each other, as constraints: a package must not break it."""
    lines: set[str] = set()
    todo = [(name, "") for name in OURS]
    seen = set(todo)
    while todo:
        for requirement in _requirements(*todo.pop()):
            if requirement.specifier:
                lines.add(f"{requirement.name}{requirement.specifier}")
            name = canonicalize_name(requirement.name)
            new = {(name, extra) for extra in ("", *requirement.extras)} - seen
            seen |= new
            todo += new
    return sorted(lines)


def name_of(requirement: str) -> str:
    """The distribution that a requirement asks for.

    >>> name_of("Some.Thing[extra]>=2")
    'some-thing'
    """
    return canonicalize_name(Requirement(requirement).name)


def _applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _requirements(name: str, extra: str = "") -> Iterator[Requirement]:
    try:
        lines = importlib.metadata.distribution(name).requires or []
    except importlib.metadata.PackageNotFoundError:
        return
    for line in lines:
        requirement = Requirement(line)
        if _applies(requirement, extra):
            yield requirement


def _is_met(requirement: Requirement, asked: set[tuple[str, str]]) -> bool:
    """Whether the worker's environment has it, with its extras."""
    if requirement.url is not None:
        return False
    name = canonicalize_name(requirement.name)
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if not requirement.specifier.contains(version, prereleases=True):
        return False
    for extra in requirement.extras:
        if (name, extra) not in asked:
            asked.add((name, extra))
            if not all(_is_met(each, asked) for each in _requirements(name, extra)):
                return False
    return True
