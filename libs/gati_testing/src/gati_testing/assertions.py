"""What a handler answered, and short ways to say what it should have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from gati_core.wire import HeaderPairs

T = TypeVar("T")


class Answer(msgspec.Struct, kw_only=True):
    """A response as a client would get it."""

    status: int
    headers: HeaderPairs = []
    body: bytes = b""
    is_cut: bool = False
    """Whether the body of a stream ended before it was whole."""

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    def json(self, type: type[T] | None = None) -> Any:
        """The body read as JSON, as a `type` when one is given."""
        return msgspec.json.decode(self.body) if type is None else msgspec.json.decode(self.body, type=type)

    def header(self, name: str) -> str | None:
        """A header's (first) value, or None."""
        return next((value for each, value in self.headers if each == name.lower()), None)

    def header_values(self, name: str) -> list[str]:
        """All values of a header."""
        return [value for each, value in self.headers if each == name.lower()]

    @property
    def request_id(self) -> str:
        """The id that the log has of this request."""
        return self.header("x-request-id") or ""

    @property
    def code(self) -> str:
        """The stable code of a problem; empty when this is none."""
        if self.header("content-type") != "application/problem+json" or not self.body:
            return ""
        return str(self.json().get("code", ""))


class AnswerAssertions:
    """Checks in a row: `assert_response(answer).status(201).json({"id": "o-1"})`."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def status(self, status: int) -> AnswerAssertions:
        """The status is this one."""
        assert self._answer.status == status, f"status {self._answer.status}, not {status}: {self._answer.body!r:.500}"
        return self

    def json(self, value: Any) -> AnswerAssertions:
        """The body is this JSON."""
        found = self._json()
        assert found == value, f"body {found!r}, not {value!r}"
        return self

    def includes(self, part: Mapping[str, Any]) -> AnswerAssertions:
        """The body is a JSON object with at least these members."""
        found = self._json()
        assert isinstance(found, dict), f"body {found!r} is no JSON object"
        wrong = {name: found.get(name) for name, value in part.items() if name not in found or found[name] != value}
        assert not wrong, f"body has {wrong!r} where {dict(part)!r} was due"
        return self

    def text(self, text: str) -> AnswerAssertions:
        """The body is this text."""
        assert self._answer.body == text.encode(), f"body {self._answer.body!r:.500}, not {text!r}"
        return self

    def header(self, name: str, value: str) -> AnswerAssertions:
        """A header has this value, among others perhaps."""
        found = self._answer.header_values(name)
        assert value in found, f"header {name}: {found!r}, not {value!r}"
        return self

    def problem(self, status: int, code: str) -> AnswerAssertions:
        """The answer is a problem with this status and code."""
        self.status(status)
        assert self._answer.code == code, f"code {self._answer.code!r}, not {code!r}: {self._answer.body!r:.500}"
        return self

    def _json(self) -> Any:
        try:
            return self._answer.json()
        except msgspec.DecodeError as exc:
            raise AssertionError(f"the body is no JSON ({exc}): {self._answer.body!r:.500}") from exc


def assert_response(answer: Answer) -> AnswerAssertions:
    """Begin a row of checks."""
    return AnswerAssertions(answer)


def assert_status(answer: Answer, status: int) -> None:
    """The status is this one."""
    assert_response(answer).status(status)


def assert_body(answer: Answer, body: Any) -> None:
    """The body is this: bytes and text as they are, anything else as JSON."""
    if isinstance(body, bytes):
        assert answer.body == body, f"body {answer.body!r}, not {body!r}"
    elif isinstance(body, str):
        assert_response(answer).text(body)
    else:
        assert_response(answer).json(body)
