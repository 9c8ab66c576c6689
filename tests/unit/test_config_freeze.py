"""Configuration: deeply read-only, and errors that say where."""

from __future__ import annotations

import copy
import datetime
import operator
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gati_core.contexts import Config, GlobalContext, Instance, freeze, load_config, thaw
from gati_core.contexts._config import MAX_DEPTH, MAX_VALUES
from gati_core.contexts._global import replace_config
from gati_core.errors import ConfigInvalid, ConfigReadOnly, GatiError

SOURCE = {"database": {"host": "db", "ports": [1, {"tls": True}]}, "flags": {"a", "b"}}


@pytest.fixture
def config() -> Any:
    """A configuration with every kind of container."""
    return freeze(SOURCE)


def _or_in_place(config: Any, other: Any) -> None:
    config |= other


def _assert_unchanged(config: Any) -> None:
    assert thaw(config) == SOURCE


# -- reading ------------------------------------------------------------------------------------


def test_a_configuration_is_a_mapping_of_tuples_and_frozensets(config: Any) -> None:
    assert isinstance(config, Mapping)
    assert config["database"]["host"] == "db"
    assert config["database"]["ports"] == (1, {"tls": True})
    assert config["flags"] == frozenset("ab")
    assert (list(config), len(config), "database" in config, "x" in config) == (["database", "flags"], 2, True, False)
    assert (config.get("x"), config.get("x", 7)) == (None, 7)


def test_what_is_missing_is_named_by_its_path(config: Any) -> None:
    with pytest.raises(KeyError, match=r"database\.port"):
        config["database"]["port"]


def test_a_configuration_is_a_copy_of_its_source() -> None:
    source: dict[str, Any] = {"a": {"b": [1]}}
    config = freeze(source)

    source["a"]["b"].append(2)
    source["c"] = 3

    assert config == {"a": {"b": (1,)}}


def test_it_is_equal_to_what_has_the_same_content(config: Any) -> None:
    assert config == freeze(SOURCE)
    assert config["database"]["ports"][1] == {"tls": True}
    assert config != freeze({})
    assert config != 7


def test_a_thawed_copy_is_plain_and_independent(config: Any) -> None:
    plain = thaw(config)

    plain["database"]["ports"].append(2)
    plain["flags"].add("c")

    assert config["database"]["ports"] == (1, {"tls": True})
    assert config["flags"] == frozenset("ab")


def test_copying_gives_the_same_and_pickling_an_equal_configuration(config: Any) -> None:
    assert copy.copy(config) is config
    assert copy.deepcopy(config) is config
    assert pickle.loads(pickle.dumps(config)) == config


def test_its_text_names_keys_and_no_values(config: Any) -> None:
    assert repr(config) == "<config root: database, flags>"
    assert repr(config["database"]) == "<config database: host, ports>"


# -- changing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempt", "named"),
    [
        (lambda c: operator.setitem(c, "x", 1), "database.x cannot be set"),
        (lambda c: operator.setitem(c, "host", 1), "database.host cannot be set"),
        (lambda c: operator.delitem(c, "host"), "database.host cannot be deleted"),
        (lambda c: _or_in_place(c, {"host": 1}), "database cannot be updated"),
        (lambda c: c.update(host=1), "database cannot be updated"),
        (lambda c: c.setdefault("x", 1), "database.x cannot be set"),
        (lambda c: c.pop("host"), "database.host cannot be deleted"),
        (lambda c: c.popitem(), "database cannot be changed"),
        (lambda c: c.clear(), "database cannot be cleared"),
        (lambda c: setattr(c, "host", 1), "database.host cannot be set"),
        (lambda c: delattr(c, "host"), "database.host cannot be deleted"),
        (lambda c: operator.setitem(c["ports"][1], "tls", False), r"database.ports\[1\].tls cannot be set"),
    ],
)
def test_a_change_is_refused_with_its_path(config: Any, attempt: Callable[[Any], Any], named: str) -> None:
    with pytest.raises(ConfigReadOnly, match=named) as caught:
        attempt(config["database"])

    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, GatiError)
    _assert_unchanged(config)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda c: object.__setattr__(c, "_values", {}),
        lambda c: object.__setattr__(c, "_path", ""),
        lambda c: object.__setattr__(c, "x", {}),
        lambda c: object.__delattr__(c, "_values"),
        lambda c: c.__dict__,
        lambda c: vars(c),
        lambda c: c._values,
        lambda c: type(c)({}),
        lambda c: type("Open", (Config,), {}),
        lambda c: operator.setitem(c["database"]["ports"], 0, 2),
        lambda c: c["database"]["ports"].append(2),
        lambda c: c["flags"].add("c"),
    ],
)
def test_there_is_no_way_around(config: Any, attempt: Callable[[Any], Any]) -> None:
    with pytest.raises((AttributeError, TypeError)):
        attempt(config)

    _assert_unchanged(config)


def test_a_comparison_does_not_give_the_content_away(config: Any) -> None:
    class Thief(dict[str, Any]):
        def __eq__(self, other: object) -> bool:
            if isinstance(other, dict):
                other.clear()
            return True

        __hash__ = None

    _ = config == Thief()
    _ = Thief() == config

    _assert_unchanged(config)


# -- what cannot be frozen ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ({"a": {"b": [1, object()]}}, r"a.b\[1\]: object cannot be made read-only"),
        ({"a": bytearray(b"x")}, "a: bytearray"),
        ({"a": {1: 2}}, "a.1: a key must be a string, not int"),
        ({"a": {(1, object)}}, r"a\{\}\[1\]: type cannot"),
        (object(), "the value: object cannot"),
        (lambda: 1, "the value: function cannot"),
    ],
)
def test_what_cannot_be_read_only_is_refused_with_its_path(source: Any, named: str) -> None:
    with pytest.raises(ConfigInvalid, match=named):
        freeze(source)


def test_a_configuration_that_contains_itself_is_refused() -> None:
    source: dict[str, Any] = {}
    source["self"] = source

    with pytest.raises(ConfigInvalid, match=f"deeper than {MAX_DEPTH} levels, or it contains itself"):
        freeze(source)


def test_a_configuration_of_too_many_values_is_refused() -> None:
    source: Any = 1
    for _ in range(40):
        source = [source, source]  # a trillion values out of forty lists

    with pytest.raises(ConfigInvalid, match=f"more than {MAX_VALUES} values"):
        freeze({"a": source})


# -- files --------------------------------------------------------------------------------------


def _file(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml = _file(tmp_path, "c.toml", '[database]\nhost = "db"\nports = [1, 2]\n')
    json = _file(tmp_path, "c.json", '\ufeff{"database": {"host": "db", "ports": [1, 2]}}')

    assert load_config(toml) == load_config(str(json)) == {"database": {"host": "db", "ports": (1, 2)}}


def test_dates_of_toml_stay_dates(tmp_path: Path) -> None:
    config = load_config(_file(tmp_path, "c.toml", "day = 2024-02-29\n"))

    assert config["day"] == datetime.date(2024, 2, 29)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("c.toml", "a = 1\nb = \n", r"c\.toml:2: Invalid value"),
        ("c.toml", "a = 1\n\na = 2\n", r"c\.toml:3: Cannot overwrite a value"),
        ("c.toml", 'a = 1\nb = "x', r"c\.toml:2: "),
        ("c.toml", b"a = 1\nb = '\xff'\n", r"c\.toml:2: not UTF-8"),
        ("c.json", '{"a": 1,\n "b": }', r"c\.json:2: "),
        ("c.json", '{"a": 1,\n\n "b": [', r"c\.json:3: "),
        ("c.json", '{"a": NaN}', r"c\.json:1: "),
        ("c.json", "[1]", r"c\.json:1: a configuration is an object, not list"),
        ("c.json", "[" * 100_000, r"c\.json"),
        ("c.toml", "a = " + "[" * 100_000, r"c\.toml"),
        ("c.yaml", "a: 1", r"c\.yaml: a configuration file ends with \.toml or \.json"),
        ("c.json", " " * (4 * 1024 * 1024 + 1), "larger than 4194304 bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, named: str
) -> None:
    with pytest.raises(ConfigInvalid, match=named):
        load_config(_file(tmp_path, name, content))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"none\.toml: No such file"):
        load_config(tmp_path / "none.toml")


# -- on the global context ----------------------------------------------------------------------


def test_the_configuration_of_a_process_is_replaced_as_a_whole() -> None:
    gctx = GlobalContext(Instance("i", "shop", "shop-1", "host", 0), config={"a": 1})
    before = gctx.config

    old = replace_config(gctx, {"a": 2})

    assert old is before
    assert before == {"a": 1}
    assert gctx.config == {"a": 2}


@pytest.mark.parametrize("bad", [{"a": object()}, [1]])
def test_a_replacement_that_is_refused_leaves_the_old_configuration(bad: Any) -> None:
    gctx = GlobalContext(Instance("i", "shop", "shop-1", "host", 0), config={"a": 1})

    with pytest.raises(ConfigInvalid):
        replace_config(gctx, bad)

    assert gctx.config == {"a": 1}


@pytest.mark.parametrize("attempt", [setattr, object.__setattr__])
@pytest.mark.parametrize("name", ["config", "_config"])
def test_a_handler_cannot_put_a_configuration_in_place(name: str, attempt: Callable[..., None]) -> None:
    gctx = GlobalContext(Instance("i", "shop", "shop-1", "host", 0), config={"a": 1})

    with pytest.raises(AttributeError):
        attempt(gctx, name, {})

    assert gctx.config == {"a": 1}
