"""What is reached by name: `gctx.modules`, `gctx.services`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar, overload

from gati_core.errors import NotRegistered, RegistrationError, WrongKind
from gati_core.wire import token

T = TypeVar("T")
K = TypeVar("K")
# Type checkers take no Protocol for a `type[K]`, but they do for what can be called to make a K.
Kind = type[K] | Callable[..., K]

MAX_NAMES = 1024


class Registry(Mapping[str, T], Generic[T]):
    """Objects by name. Handlers read it as a mapping; who builds the process registers.

    Args:
        noun: what it holds, for messages: `module`.

    >>> modules = Registry[str]("module")
    >>> modules.register("db", "the stub")
    >>> modules["db"]
    'the stub'
    >>> modules["cache"]
    Traceback (most recent call last):
    gati_core.errors.NotRegistered: no module 'cache' (there is: db)
    """

    __slots__ = ("_entries", "_noun")

    def __init__(self, noun: str, entries: Mapping[str, T] | None = None) -> None:
        self._noun = noun
        self._entries: dict[str, T] = {}
        for name, entry in (entries or {}).items():
            self.register(name, entry)

    def register(self, name: str, entry: T) -> None:
        """Make `entry` known as `name`, for as long as the process lives.

        Raises:
            RegistrationError: the name is taken, or is no name of 1 to 64 letters, digits, `_`, `-`.
        """
        if not isinstance(name, str):
            raise RegistrationError(f"{self._noun} name {name!r} is no string")
        token(name, f"{self._noun} name")
        if name in self._entries:
            raise RegistrationError(f"{self._noun} {name!r} is registered already")
        if len(self._entries) >= MAX_NAMES:
            raise RegistrationError(f"{self._noun} {name!r}: {MAX_NAMES} are registered already, and no more may be")
        self._entries[name] = entry

    @overload
    def of_kind(self, name: str) -> T: ...
    @overload
    def of_kind(self, name: str, kind: Kind[K]) -> K: ...
    def of_kind(self, name: str, kind: Any = None) -> Any:
        """The entry, checked to be a `kind`.

        Args:
            kind: a class, or a Protocol decorated with `runtime_checkable`.
        Raises:
            NotRegistered: no such name; lists the names there are.
            WrongKind: it is there and is something else.
        """
        entry = self[name]
        if kind is None:
            return entry
        try:
            is_one = isinstance(entry, kind)
        except TypeError as exc:
            hint = "; decorate it with @runtime_checkable" if getattr(kind, "_is_protocol", False) else ""
            raise WrongKind(f"{self._noun} {name!r} cannot be checked against {kind!r}: {exc}{hint}") from exc
        if is_one:
            return entry
        lacks = _lacking(entry, kind)
        raise WrongKind(
            f"{self._noun} {name!r} is a {type(entry).__qualname__}, which is no {getattr(kind, '__qualname__', kind)}"
            + (f": it lacks {', '.join(lacks)}" if lacks else "")
        )

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(sorted(self._entries)) or "none"
            raise NotRegistered(f"no {self._noun} {name!r} (there is: {known})") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{self._noun}s: {', '.join(self._entries) or 'none'}>"


def _lacking(entry: object, kind: type[Any]) -> list[str]:
    if not getattr(kind, "_is_protocol", False):
        return []
    names = {name for base in kind.__mro__ for name in (*vars(base), *vars(base).get("__annotations__", ()))}
    return sorted(name for name in names if not name.startswith("_") and not hasattr(entry, name))
