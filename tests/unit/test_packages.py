"""Finding a handler package, loading it, and telling its versions apart."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gati_core.app.packages import GROUP, LoadError, PackageSpec, find_in, find_installed, fingerprint, load

APP = """\
from gati_core import App

app = App("shop")


@app.get("/ping")
async def ping(req, res, gctx, lctx) -> None:
    res.text("pong")
"""
PROJECT = f"""\
[project]
name = "shop"
version = "1.2.0"

[project.entry-points."{GROUP}"]
shop = "shop_pkg:app"
"""


@contextmanager
def _imports_undone() -> Iterator[None]:
    path, modules, writes_no_bytecode = sys.path[:], dict(sys.modules), sys.dont_write_bytecode
    importlib.invalidate_caches()  # files written a moment ago are not in the importer's listing yet
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, writes_no_bytecode
        for name in set(sys.modules) - set(modules):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _no_traces() -> Iterator[None]:
    with _imports_undone():
        yield


def _file(root: Path, name: str, text: str) -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


# -- finding: the four shapes -------------------------------------------------------------------


def test_a_python_file_is_a_package(tmp_path: Path) -> None:
    file = _file(tmp_path, "shop_one.py", APP)

    assert find_in(file) == [
        PackageSpec(name="shop_one", target="shop_one:app", import_paths=[str(tmp_path)], root=str(file))
    ]


def test_a_directory_with_one_python_file_is_a_package(tmp_path: Path) -> None:
    _file(tmp_path, "shop_one.py", APP)
    _file(tmp_path, "_private.py", "")
    _file(tmp_path, "README.md", "")

    assert find_in(tmp_path) == [
        PackageSpec(name="shop_one", target="shop_one:app", import_paths=[str(tmp_path)], root=str(tmp_path))
    ]


def test_a_directory_with_an_init_is_a_package(tmp_path: Path) -> None:
    root = _file(tmp_path, "shop_pkg/__init__.py", APP).parent
    _file(root, "orders.py", "")
    _file(root, "carts.py", "")

    assert find_in(root) == [
        PackageSpec(name="shop_pkg", target="shop_pkg:app", import_paths=[str(tmp_path)], root=str(root))
    ]


@pytest.mark.parametrize("layout", ["src", "flat"])
def test_a_project_names_its_apps(tmp_path: Path, layout: str) -> None:
    _file(tmp_path, "pyproject.toml", PROJECT + 'admin = "shop_pkg.admin:application"\n')
    code = tmp_path / "src" if layout == "src" else tmp_path
    _file(code, "shop_pkg/__init__.py", APP)

    common: dict[str, Any] = {"import_paths": [str(code)], "root": str(tmp_path), "version": "1.2.0"}
    assert find_in(tmp_path) == [
        PackageSpec(name="shop", target="shop_pkg:app", **common),
        PackageSpec(name="admin", target="shop_pkg.admin:application", **common),
    ]


def test_a_relative_path_is_found_and_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _file(tmp_path, "shop_one.py", APP)
    monkeypatch.chdir(tmp_path)

    assert find_in(Path("shop_one.py")) == find_in(Path("./sub/../shop_one.py")) == find_in(file)


def test_finding_imports_nothing(tmp_path: Path) -> None:
    find_in(_file(tmp_path, "shop_exits.py", "raise SystemExit(3)"))

    assert "shop_exits" not in sys.modules


# -- finding: what is no package ----------------------------------------------------------------


def _nothing(root: Path) -> Path:
    return root / "missing"


def _text_file(root: Path) -> Path:
    return _file(root, "notes.txt", "")


def _empty(root: Path) -> Path:
    return root


def _two_files(root: Path) -> Path:
    return _file(_file(root, "a.py", APP).parent, "b.py", APP).parent


def _no_entry_points(root: Path) -> Path:
    return _file(root, "pyproject.toml", '[project]\nname = "shop"\n').parent


def _other_entry_points(root: Path) -> Path:
    return _file(root, "pyproject.toml", '[project.entry-points."other"]\nshop = "shop:app"\n').parent


def _broken_toml(root: Path) -> Path:
    return _file(root, "pyproject.toml", "[project\n").parent


def _binary_toml(root: Path) -> Path:
    (root / "pyproject.toml").write_bytes(b"name = '\xff'")
    return root


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_nothing, "missing does not exist"),
        (_text_file, "notes.txt is not a Python file"),
        (_empty, r"holds no handler package: expected .*\(found no Python file\)"),
        (_two_files, r"exactly one .py file \(found 2 Python files\)"),
        (_no_entry_points, r"has no \[project.entry-points.\"gati.apps\"\] section; add for example"),
        (_other_entry_points, r"has no \[project.entry-points.\"gati.apps\"\] section"),
        (_broken_toml, r"pyproject.toml: .*line 1"),
        (_binary_toml, r"pyproject.toml: .*utf-8"),
    ],
)
def test_what_is_no_package_is_refused_and_says_what_was_looked_for(
    tmp_path: Path, make: Callable[[Path], Path], reason: str
) -> None:
    with pytest.raises(LoadError, match=reason):
        find_in(make(tmp_path))


# -- finding what is installed -------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [importlib.metadata.EntryPoint(name, f"{name}_pkg:app", GROUP) for name in ("shop", "admin", "carts")]
    monkeypatch.setattr("gati_core.app.packages.entry_points", lambda *, group: [p for p in points if p.group == group])


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("", ["admin", "carts", "shop"]),
        ("shop", ["shop"]),
        (" shop , admin ,", ["shop", "admin"]),
    ],
)
def test_installed_packages_are_found_by_name_or_all_of_them(wanted: str, names: list[str]) -> None:
    found = find_installed(wanted)

    assert [spec.name for spec in found] == names
    assert all(spec.target == f"{spec.name}_pkg:app" and spec.root == "" for spec in found)


@pytest.mark.usefixtures("installed")
def test_a_wanted_package_that_is_not_installed_is_named_beside_those_that_are() -> None:
    with pytest.raises(LoadError, match=r"offers bar, foo in .*'gati.apps'; installed: admin, carts, shop"):
        find_installed("bar,shop,foo")


# -- loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["file", "directory", "package", "project"])
def test_each_shape_loads(tmp_path: Path, shape: str) -> None:
    if shape in ("file", "directory"):
        path = _file(tmp_path, "shop_one.py", APP)
        path = path if shape == "file" else tmp_path
    else:
        path = _file(tmp_path, "src/shop_pkg/__init__.py", APP).parent
        if shape == "project":
            path = _file(tmp_path, "pyproject.toml", PROJECT).parent

    (spec,) = find_in(path)

    assert list(load(spec).handlers) == ["ping"]


def _loading(tmp_path: Path, text: str, *, target: str = "shop_broken:app") -> LoadError:
    _file(tmp_path, "shop_broken.py", text)
    with pytest.raises(LoadError) as caught:
        load(PackageSpec(name="shop", target=target, import_paths=[str(tmp_path)]))
    return caught.value


def test_a_syntax_error_says_file_line_and_text(tmp_path: Path) -> None:
    error = _loading(tmp_path, "x = 1\ndef (:\n")

    assert error.where == f"{tmp_path / 'shop_broken.py'}:2"
    assert (error.excerpt.strip(), str(error).startswith("SyntaxError: ")) == ("def (:", True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("raise ValueError('no luck')", "ValueError: no luck"),
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("undefined_name", "NameError: name 'undefined_name' is not defined"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_an_exception_while_importing_says_file_line_and_text(tmp_path: Path, line: str, message: str) -> None:
    error = _loading(tmp_path, f"x = 1\n\n{line}\n")

    assert (str(error), error.where, error.excerpt.strip()) == (message, f"{tmp_path / 'shop_broken.py'}:3", line)


def test_the_spot_of_a_refused_handler_is_the_authors_line(tmp_path: Path) -> None:
    error = _loading(
        tmp_path,
        'from gati_core import App\napp = App("shop")\n@app.get("/x")\ndef three(req, res, gctx): ...\n',
    )

    assert "three" in str(error)
    assert f"{tmp_path / 'shop_broken.py'}:3" in str(error)
    assert error.where.startswith(f"{tmp_path / 'shop_broken.py'}:")


def test_the_spot_of_an_error_in_an_imported_module_is_in_that_module(tmp_path: Path) -> None:
    helper = _file(tmp_path, "shop_helper.py", "\n\nraise ValueError('deep')\n")

    assert _loading(tmp_path, "import shop_helper\n").where == f"{helper}:3"


def test_a_missing_module_is_a_load_error() -> None:
    with pytest.raises(LoadError, match=r"no module .*'no_such_package_at_all'"):
        load(PackageSpec(name="x", target="no_such_package_at_all:app"))


@pytest.mark.parametrize(
    ("text", "target", "reason"),
    [
        ("x = 1", "shop_broken:app", "shop_broken:app: the attribute 'app' is not there"),
        ("x = 1", "shop_broken", "shop_broken: the attribute 'app' is not there"),
        ("x = 1", "shop_broken:x", "the attribute 'x' is a int, not a gati_core.App"),
        ("from gati_core import App as app", "shop_broken:app", "the attribute 'app' is a type, not"),
        ("from gati_core import App\napp = App('shop')", "shop_broken:app", "the app registers no handler"),
    ],
)
def test_an_attribute_that_is_no_app_with_handlers_is_refused(
    tmp_path: Path, text: str, target: str, reason: str
) -> None:
    error = _loading(tmp_path, text, target=target)

    assert (reason in str(error), error.where) == (True, str(tmp_path / "shop_broken.py"))


def test_ctrl_c_while_importing_is_no_load_error(tmp_path: Path) -> None:
    _file(tmp_path, "shop_broken.py", "raise KeyboardInterrupt")

    with pytest.raises(KeyboardInterrupt):
        load(PackageSpec(name="shop", target="shop_broken:app", import_paths=[str(tmp_path)]))


# -- fingerprints -------------------------------------------------------------------------------


def _package(root: Path, *, order: int = 1) -> Path:
    files = {"__init__.py": APP, "orders.py": "x = 1\n", "sub/__init__.py": "", "sub/deep.py": "y = 2\n"}
    for name, text in list(files.items())[::order]:
        _file(root, f"shop_pkg/{name}", text)
    return root / "shop_pkg"


def _fingerprint(path: Path, **changes: str) -> str:
    (spec,) = find_in(path)
    fields = {"name": spec.name, "target": spec.target, "version": spec.version, **changes}
    with _imports_undone():
        load(spec)
        return fingerprint(PackageSpec(import_paths=spec.import_paths, root=spec.root, **fields))


def test_the_same_code_has_the_same_fingerprint_in_another_place(tmp_path: Path) -> None:
    assert _fingerprint(_package(tmp_path / "one")) == _fingerprint(_package(tmp_path / "two" / "deeper"))


def test_the_order_in_which_files_were_written_does_not_matter(tmp_path: Path) -> None:
    assert _fingerprint(_package(tmp_path / "one")) == _fingerprint(_package(tmp_path / "two", order=-1))


def test_the_time_of_the_files_does_not_matter(tmp_path: Path) -> None:
    package = _package(tmp_path)
    before = _fingerprint(package)

    for file in package.rglob("*.py"):
        os.utime(file, (1, 1))

    assert _fingerprint(package) == before


def test_what_is_no_code_does_not_matter(tmp_path: Path) -> None:
    package = _package(tmp_path)
    before = _fingerprint(package)

    _file(package, "notes.txt", "anything")
    _file(package, "__pycache__/orders.cpython-311.pyc", "stale")

    assert _fingerprint(package) == before


def _edit(package: Path) -> None:
    _file(package, "sub/deep.py", "y = 3\n")


def _add(package: Path) -> None:
    _file(package, "more.py", "")


def _remove(package: Path) -> None:
    (package / "orders.py").unlink()


def _rename(package: Path) -> None:
    (package / "orders.py").rename(package / "baskets.py")


def _move_a_line(package: Path) -> None:
    _file(package, "orders.py", "x = 1\ny = 2\n")
    _file(package, "sub/deep.py", "")


@pytest.mark.parametrize("change", [_edit, _add, _remove, _rename, _move_a_line])
def test_any_change_of_code_changes_the_fingerprint(tmp_path: Path, change: Callable[[Path], None]) -> None:
    package = _package(tmp_path)
    before = _fingerprint(package)

    change(package)

    assert _fingerprint(package) != before


@pytest.mark.parametrize("changes", [{"version": "2"}, {"target": "shop_pkg:other"}])
def test_another_version_or_another_app_of_the_same_code_is_another_fingerprint(
    tmp_path: Path, changes: dict[str, str]
) -> None:
    package = _package(tmp_path)

    assert _fingerprint(package, **changes) != _fingerprint(package)


def test_a_single_file_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    file = _file(tmp_path, "shop_one.py", APP)
    before = _fingerprint(file)

    _file(tmp_path, "neighbour.py", "x = 1")
    assert _fingerprint(file) == before

    _file(tmp_path, "shop_one.py", APP + "\nx = 1\n")
    assert _fingerprint(file) != before


def test_code_that_comes_back_has_its_old_fingerprint(tmp_path: Path) -> None:
    package = _package(tmp_path)
    before = _fingerprint(package)
    copy = shutil.copytree(package, tmp_path / "copy" / "shop_pkg")
    _edit(package)

    assert _fingerprint(copy) == before
