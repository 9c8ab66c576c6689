"""Patterns: how long a text they may be matched against, and what ECMAScript makes of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gati_core.errors import UnsupportedType
from gati_core.gtype._ecmascript import to_ecmascript
from gati_core.gtype._patterns import MAX_STEPS, pattern_limit

QUADRATIC = int(MAX_STEPS ** (1 / 2))
CUBIC = int(MAX_STEPS ** (1 / 3))

LINEAR = [
    r"",
    r"^$",
    r"\d+",
    r"^[a-z]+@[a-z]+$",
    r"^[a-z0-9]+(?:-[a-z0-9]+)*$",
    r"^\d{3}-\d{4}$",
    r"^(\d{1,3}\.){3}\d{1,3}$",
    r"^-?\d+(\.\d+)?([eE][+-]?\d+)?$",
    r"^(?=.*\d)(?=.*[a-z]).{12,}$",
    r"^(a|b)*c",
    r"^([a-z]+\d)*$",
    r"^[^\d]+[0-9]+$",
    r"^[A-Za-zÀ-ÿ]+( [A-Za-zÀ-ÿ]+)*$",
    r"^(ab|a)*$",
    r"\A\w+\Z",
]
LIMITED = {
    r"[a-z]+@": QUADRATIC,
    r"^.*foo.*$": QUADRATIC,
    r"^[^@\s]+@[^@\s]+\.[^@\s]+$": QUADRATIC,
    r"https?://[^\s/]+/?": QUADRATIC,
    r"^\s+|\s+$": QUADRATIC,
    r"^a{1,5}a{1,5}$": QUADRATIC,
    r"(?i)^k+\w+$": QUADRATIC,
    r"a*a*b": CUBIC,
    r"^\w*\w*\w*!": CUBIC,
    r"(?m)^\w+$": QUADRATIC,
}
REFUSED = {
    r"^(a+)+$": "exponential time",
    r"^(\w+\s?)*$": "exponential time",
    r"^(a*b*)*$": "exponential time",
    r"^(a|aa)+$": "exponential time",
    r"^(a|b|ab)*c$": "exponential time",
    r"^([a-z]|[a-c]x|bx)*!": "exponential time",
    r"^(?=(a+)+b)": "exponential time",
    r"(.*)*": "exponential time",
    r"^(a?){30}a{30}$": "may be empty",
    r"(x)\1": "refers to one of its groups",
    r"(?P<a>x)(?(a)y|z)": "refers to one of its groups",
    r"[": "no regular expression: unterminated character set",
    r"(?P<>x)": "no regular expression",
    r"^a*a*a*a*a*a*a*a*b": "takes too long even on 20 characters",
    r"[a-z][0-9]" * 300: "more than 400 places",
}


@pytest.mark.parametrize("pattern", LINEAR)
def test_patterns_whose_time_grows_with_the_text_have_no_limit(pattern: str) -> None:
    assert pattern_limit(pattern) is None


@pytest.mark.parametrize(("pattern", "limit"), LIMITED.items())
def test_patterns_whose_time_grows_faster_have_a_limit(pattern: str, limit: int) -> None:
    assert pattern_limit(pattern) == limit


@pytest.mark.parametrize(("pattern", "reason"), REFUSED.items())
def test_patterns_that_cannot_be_bounded_are_refused_with_the_reason(pattern: str, reason: str) -> None:
    with pytest.raises(UnsupportedType, match=reason):
        pattern_limit(pattern)


def test_the_analysis_of_a_long_pattern_is_quick() -> None:
    pattern = "^" + "".join(f"(?:[a-{end}]+\\d?|x{end}*)-" for end in "bcdefghij") + "$"

    began = time.process_time()
    pattern_limit(pattern)

    assert time.process_time() - began < 1


# -- what is promised, tried out -----------------------------------------------------------------

_TRY = """
import json, re, sys, time
for pattern, texts in json.load(sys.stdin):
    search = re.compile(pattern).search
    for text in texts:
        began = time.process_time()
        search(text)
        spent = time.process_time() - began
        if spent > 1.5:
            sys.exit(f"{pattern!r} took {spent:.2f} s on {len(text)} characters such as {text[:20]!r}")
"""


def tried(cases: list[tuple[str, list[str]]], *, within_s: float = 60) -> str:
    """What a process that matches them all says; empty when none took long. It is killed if it hangs."""
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _TRY], input=json.dumps(cases), text=True, capture_output=True, timeout=within_s
        )
    except subprocess.TimeoutExpired:
        return f"a match did not end within {within_s} s"
    return ended.stderr


def nasty(limit: int | None, alphabet: str = "a") -> list[str]:
    """Texts as long as allowed, or of 20,000 characters, that almost match."""
    length = min(limit or 20_000, 20_000)
    return [
        *((each * length)[:length] for each in (*alphabet, alphabet)),
        *((each * length)[: length - 1] + "!" for each in (*alphabet, alphabet)),
    ]


def test_a_search_in_as_long_a_text_as_allowed_ends_quickly() -> None:
    cases = [(pattern, nasty(None, "a1 -.@x")) for pattern in LINEAR]
    cases += [(pattern, nasty(limit, "a1 -.@x")) for pattern, limit in LIMITED.items()]

    assert tried(cases) == ""


_atoms = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", r"\w", r"\d", "ab", "a?", "^", "$"])
_patterns = st.recursive(
    _atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
        inner.map(lambda part: f"(?={part})"),
    ),
    max_leaves=8,
)


@settings(max_examples=5, deadline=None)
@given(patterns=st.lists(_patterns, min_size=60, max_size=60))
def test_no_pattern_that_is_accepted_takes_long(patterns: list[str]) -> None:
    cases = []
    for pattern in patterns:
        try:
            limit = pattern_limit(pattern)
        except UnsupportedType:
            continue
        # Everything that is exponential would not end on these.
        cases.append((pattern, nasty(min(limit or 2000, 2000), "ab1")))

    assert tried(cases) == ""


# -- ECMAScript ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("python", "ecmascript"),
    [
        (r"^[a-z]+$", r"^[a-z]+$"),
        (r"\A(?P<year>\d{4})(?P=year)\Z", r"^(?<year>\d{4})\k<year>$"),
        (r"a{,3}b{2,}c{4}", r"a{0,3}b{2,}c{4}"),
        (r"{x}]", r"\{x\}\]"),
        (r"[]a]+[^]a]", r"[\]a]+[^\]a]"),
        (r"[a\-z]\-\_\@\ ", r"[a\-z]-_@ "),
        (r"[{}(?P<x>]", r"[{}(?P<x>]"),
        (r"\a\0\101\U0001F600\x41\u0041", r"\x07\x00\x41\u{1F600}\x41\u0041"),
        (r"a(?#no more)b", r"ab"),
        (r"\.\*\[\\\/", r"\.\*\[\\\/"),
        (r"(?<=a)b(?!c)", r"(?<=a)b(?!c)"),
    ],
)
def test_patterns_are_translated(python: str, ecmascript: str) -> None:
    assert to_ecmascript(python) == ecmascript


@pytest.mark.parametrize(
    "pattern", [r"(?i)a", r"(?i:a)", r"(?>a)", r"a++", r"a{2}+", r"(a)(?(1)b|c)", r"\N{DIGIT ONE}"]
)
def test_what_has_no_equivalent_is_refused(pattern: str) -> None:
    with pytest.raises(UnsupportedType, match="no equivalent in ECMAScript"):
        to_ecmascript(pattern)


def test_translated_patterns_say_the_same_in_node() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not on this machine")
    patterns = [
        *[each for each in (*LINEAR, *LIMITED) if not each.startswith("(?")],
        *(r"{x}]", r"[]a]+[^]a]", r"[a\-z]\-\_", r"a{,2}b", r"\A(?P<y>a)(?P=y)\Z", r"x\/y", r"[\w.-]+\Z"),
    ]
    texts = [
        "",
        "a",
        "aa",
        "ab",
        "a-z",
        "a@b",
        "a@b.c",
        "1.2.3.4",
        "-5.5e3",
        "{x}]",
        "]b",
        "x/y",
        "--_",
        "foo",
        "a b",
        "A1",
    ]
    script = (
        "const [p, t] = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        "console.log(JSON.stringify(p.map(x => t.map(y => new RegExp(x, 'u').test(y)))))"
    )

    ended = subprocess.run(
        [node, "-e", script],
        input=json.dumps([[to_ecmascript(each) for each in patterns], texts]),
        text=True,
        capture_output=True,
        timeout=30,
        check=True,
    )

    said = dict(zip(patterns, json.loads(ended.stdout), strict=True))
    assert said == {each: [re.search(each, text) is not None for text in texts] for each in patterns}
