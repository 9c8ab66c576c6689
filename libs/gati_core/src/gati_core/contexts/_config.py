"""Configuration: read from one file, deeply read-only from then on."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AnySet
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from gati_core.errors import ConfigInvalid, ConfigReadOnly

MAX_DEPTH = 64
MAX_VALUES = 100_000
MAX_FILE_BYTES = 4 * 1024 * 1024

_SCALARS = frozenset(
    (type(None), bool, int, float, str, bytes, datetime.datetime, datetime.date, datetime.time, datetime.timedelta)
)


class Config(Mapping[str, Any]):
    """A read-only mapping with item access: `config["database"]["host"]`. Made by `freeze`.

    Whatever would change it raises `ConfigReadOnly`, which is a `TypeError` as well. It can be
    compared with a dict, copied (which gives the same object) and pickled; `thaw` gives a plain,
    mutable copy, for example to answer with it as JSON.
    """

    __slots__ = ("_path", "_values")

    def __new__(cls, *_arguments: object) -> Config:
        """Refused: a configuration is made by `freeze`."""
        raise TypeError("a Config is made by freeze()")

    def __init_subclass__(cls) -> None:
        raise TypeError("Config cannot be subclassed: an override could make it mutable")

    def __getitem__(self, key: str) -> Any:
        try:
            return _values_of(self)[key]
        except KeyError:
            raise KeyError(_join(_path_of(self), key)) from None

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` where the configuration does not have it."""
        return _values_of(self).get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in _values_of(self)

    def __iter__(self) -> Iterator[str]:
        return iter(_values_of(self))

    def __len__(self) -> int:
        return len(_values_of(self))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Config):
            return bool(_values_of(self) == _values_of(other))
        if isinstance(other, Mapping):
            # A copy: `==` would hand our dict to the other's __eq__.
            return dict(_values_of(self)) == dict(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        # Names only: whatever logs a context must not log passwords.
        return f"<config {_path_of(self) or 'root'}: {', '.join(_values_of(self)) or 'empty'}>"

    def __copy__(self) -> Config:
        return self

    def __deepcopy__(self, memo: object) -> Config:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return freeze, (thaw(self),)

    # -- refused --------------------------------------------------------------------------------

    def _refuse(self, what: str, key: object = None) -> NoReturn:
        path = _path_of(self) if key is None else _join(_path_of(self), key)
        raise ConfigReadOnly(f"the configuration is read-only: {path or 'its root'} cannot be {what}", path=path)

    def __setitem__(self, key: object, value: object) -> NoReturn:
        self._refuse("set", key)

    def __delitem__(self, key: object) -> NoReturn:
        self._refuse("deleted", key)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        self._refuse("set", name)

    def __delattr__(self, name: str) -> NoReturn:
        self._refuse("deleted", name)

    def __ior__(self, other: object) -> NoReturn:
        self._refuse("updated")

    def update(self, *_arguments: object, **_values: object) -> NoReturn:
        """Refused."""
        self._refuse("updated")

    def setdefault(self, key: object, default: object = None) -> NoReturn:
        """Refused."""
        self._refuse("set", key)

    def pop(self, key: object, *_default: object) -> NoReturn:
        """Refused."""
        self._refuse("deleted", key)

    def popitem(self) -> NoReturn:
        """Refused."""
        self._refuse("changed")

    def clear(self) -> NoReturn:
        """Refused."""
        self._refuse("cleared")


# The slots are reached through these alone: with their descriptors off the class, not even
# object.__setattr__ finds a name to write to, and no attribute gives the dict away.
_values_of = Config.__dict__["_values"].__get__
_path_of = Config.__dict__["_path"].__get__
_set_values = Config.__dict__["_values"].__set__
_set_path = Config.__dict__["_path"].__set__
del Config._values, Config._path  # type: ignore[attr-defined]


def freeze(value: Any) -> Any:
    """A deeply read-only copy of JSON-like (or TOML-like) data.

    Shape: mappings become `Config`, lists and tuples tuples, sets frozensets; None, bool, int,
    float, str, bytes and the types of `datetime` stay what they are.

    Raises:
        ConfigInvalid: something else is in it, a key is no string, or it is too deep or too large
            (64 levels, 100,000 values); the message names the path.

    >>> config = freeze({"database": {"hosts": ["a", "b"]}})
    >>> config["database"]["hosts"]
    ('a', 'b')
    >>> config["database"]["port"] = 5432
    Traceback (most recent call last):
    gati_core.errors.ConfigReadOnly: the configuration is read-only: database.port cannot be set
    """
    return _freeze(value, "", 0, [MAX_VALUES])


def thaw(config: Any) -> Any:
    """A plain, mutable copy: dicts, lists and sets."""
    if isinstance(config, Config):
        return {key: thaw(value) for key, value in _values_of(config).items()}
    if isinstance(config, tuple):
        return [thaw(value) for value in config]
    if isinstance(config, frozenset):
        return set(config)
    return config


def load_config(path: str | Path) -> Config:
    """Read a `.toml` or `.json` file; blocks, so call it from a thread once the loop runs.

    Raises:
        ConfigInvalid: `<file>:<line>: <reason>`, or without a line where there is none.
    """
    path = Path(path)
    if path.suffix not in (".toml", ".json"):
        raise ConfigInvalid(f"{path}: a configuration file ends with .toml or .json")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as exc:
        raise ConfigInvalid(f"{path}: {getattr(exc, 'strerror', None) or exc}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise ConfigInvalid(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ConfigInvalid(f"{path}:{_line(data, exc.start)}: not UTF-8") from exc
    document = _parse_toml(path, text) if path.suffix == ".toml" else _parse_json(path, text)
    if not isinstance(document, dict):
        raise ConfigInvalid(f"{path}:1: a configuration is an object, not {type(document).__name__}")
    try:
        config: Config = freeze(document)
    except ConfigInvalid as exc:
        raise ConfigInvalid(f"{path}: {exc}") from exc
    return config


def _parse_toml(path: Path, text: str) -> Any:
    import tomllib  # only processes that have such a file pay for it

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        reason = str(exc)
        found = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", reason)
        if found is None:
            raise ConfigInvalid(f"{path}: {reason}") from exc
        line = found[1] or text.rstrip("\n").count("\n") + 1
        raise ConfigInvalid(f"{path}:{line}: {reason[: found.start()]}") from exc
    except RecursionError as exc:
        raise ConfigInvalid(f"{path}: nested too deeply") from exc


def _parse_json(path: Path, text: str) -> Any:
    data = text.encode()
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as exc:
        reason = str(exc).removeprefix("JSON is malformed: ")
        found = re.search(r" \(byte (\d+)\)$", reason)
        offset = int(found[1]) if found else len(data.rstrip())
        raise ConfigInvalid(f"{path}:{_line(data, offset)}: {reason[: found.start()] if found else reason}") from exc
    except RecursionError as exc:
        raise ConfigInvalid(f"{path}: nested too deeply") from exc


def _line(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1


def _freeze(value: Any, path: str, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if type(value) in _SCALARS:
        return value
    if depth >= MAX_DEPTH:
        raise ConfigInvalid(f"{path}: nested deeper than {MAX_DEPTH} levels, or it contains itself")
    if left[0] < 0:
        raise ConfigInvalid(f"{path}: the configuration has more than {MAX_VALUES} values")
    if isinstance(value, Mapping):
        values: dict[str, Any] = {}
        for key, each in value.items():
            if type(key) is not str:
                raise ConfigInvalid(f"{_join(path, key)}: a key must be a string, not {type(key).__name__}")
            values[key] = _freeze(each, _join(path, key), depth + 1, left)
        config = object.__new__(Config)
        _set_values(config, values)
        _set_path(config, path)
        return config
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(each, f"{path}[{place}]", depth + 1, left) for place, each in enumerate(value))
    if isinstance(value, AnySet):
        return frozenset(_freeze(each, f"{path}{{}}", depth + 1, left) for each in value)
    raise ConfigInvalid(f"{path or 'the value'}: {type(value).__name__} cannot be made read-only")


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
