"""What versions are called, and what a client may write to ask for one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

import pytest

from gati_core.errors import GatiError, InvalidTimestamp, InvalidVersion
from gati_core.timescape import check_label, is_tsv, parse_tsv, read_preference, read_semver
from gati_core.timescape._tsv import Tsv

T = TypeVar("T")


def shuffled(items: Sequence[T]) -> list[T]:
    return random.Random(7).sample(items, k=len(items))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("tsv:1732186200-users-042", (1732186200, 42, "users")),
        ("tsv:1732186200-place-order-042", (1732186200, 42, "place-order")),
        ("tsv:1-a-2-3-004", (1, 4, "a-2-3")),
        ("tsv:1732186200-order_v2-1000", (1732186200, 1000, "order_v2")),
    ],
)
def test_a_tsv_is_read_and_written(text: str, parts: tuple[int, int, str]) -> None:
    tsv = parse_tsv(text)

    assert (tsv.seconds, tsv.sequence, tsv.handler) == parts
    assert str(tsv) == text
    assert is_tsv(text)


def test_versions_sort_by_time_and_then_by_sequence() -> None:
    ordered = [Tsv(1, 9, "z"), Tsv(2, 1, "z"), Tsv(2, 2, "a"), Tsv(10, 1, "a")]

    assert sorted(shuffled(ordered)) == ordered


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tsv:",
        "tsv:1732186200",
        "tsv:1732186200-users",
        "tsv:x-users-001",
        "tsv:1732186200--001",
        "tsv:1732186200-us ers-001",
        "tsv:1732186200-users-001\n",
        "TSV:1732186200-users-001",
        "tsv:١٧٣٢١٨٦٢٠٠-users-001",
        "tsv:1732186200-users-1234567890",
    ],
)
def test_what_is_no_tsv_is_refused_with_its_form(text: str) -> None:
    assert not is_tsv(text)
    with pytest.raises(InvalidVersion, match=r"expected tsv:<unix seconds>-<handler>-<sequence>"):
        parse_tsv(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1735689600", 1735689600.0),
        ("1735689600500", 1735689600.5),
        ("2025-01-01T00:00:00Z", 1735689600.0),
        ("2025-01-01T00:00:00", 1735689600.0),
        ("2025-01-01T02:00:00+02:00", 1735689600.0),
        ("2025-01-01T02:00:00 02:00", 1735689600.0),
        ("2025-01-01T00:00:00.250Z", 1735689600.25),
    ],
    ids=["seconds", "milliseconds", "UTC", "no zone", "a zone", "a zone whose plus became a space", "a fraction"],
)
def test_a_point_in_time_is_read(text: str, seconds: float) -> None:
    assert read_preference(text) == ("timestamp", text, seconds)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("17356896000", InvalidTimestamp, "11 digits: seconds have 10, milliseconds 13"),
        ("173568960000", InvalidTimestamp, "12 digits"),
        ("2025-13-01T00:00:00Z", InvalidTimestamp, "no time in ISO 8601"),
        ("2025-01-01Tnoon", InvalidTimestamp, "no time in ISO 8601"),
        ("tsv:nonsense", InvalidVersion, "expected tsv:"),
        ("a b", InvalidVersion, "is no version: use a tag"),
        ("/etc", InvalidVersion, "is no version: use a tag"),
        ("-1", InvalidVersion, "is no version: use a tag"),
        ("ü", InvalidVersion, "is no version: use a tag"),
        ("x" * 65, InvalidVersion, "is no version: use a tag"),
        ("x" * 201, InvalidVersion, "201 characters is longer than 200"),
    ],
)
def test_what_means_no_version_is_a_400_that_says_what_would(text: str, error: type[GatiError], message: str) -> None:
    with pytest.raises(error, match=message) as refused:
        read_preference(text)

    assert refused.value.status == 400
    assert refused.value.code == (
        "version.invalid_timestamp" if error is InvalidTimestamp else "version.invalid_format"
    )


@pytest.mark.parametrize("text", ["stable", "v1.0.0-beta.1", "1.2.3+build.7", "2025-01-31", "123456789", "Release_T"])
def test_a_label_can_be_a_tag_and_is_asked_for_as_one(text: str) -> None:
    assert check_label(text) == text
    assert read_preference(text).kind == "label"


@pytest.mark.parametrize("text", ["", ".x", "-x", "a b", "x" * 65, "tsv:1-a-1", "1735689600", "2025-01-01T00:00:00Z"])
def test_what_would_be_read_as_something_else_can_be_no_tag(text: str) -> None:
    with pytest.raises(InvalidVersion, match="cannot be a tag"):
        check_label(text)


@pytest.mark.parametrize("text", ["v01", "1.2.3.4", "1.2-beta", "one", "v", "", "1.2.3-"])
def test_what_is_no_semantic_version_is_none(text: str) -> None:
    assert read_semver(text) is None


def test_semantic_versions_sort_as_their_specification_says() -> None:
    ordered = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1"]
    ordered += ["1.0.0", "1.0.1", "1.1.0", "1.10.0", "2.0.0"]
    read = {text: read_semver(text) for text in ordered}

    assert sorted(shuffled(ordered), key=lambda text: read[text].order) == ordered  # type: ignore[union-attr]
    assert [read_semver(text).is_whole for text in ("v1", "v1.2", "v1.2.3")] == [False, False, True]  # type: ignore[union-attr]
