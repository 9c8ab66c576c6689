"""Reading a package in a process that may do nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from gati_core.app.inspection import inspect_package
from gati_core.app.packages import LoadError, find_in

APP = """
import msgspec
from gati_core import App, Request, Response

app = App("shop")


class Order(msgspec.Struct):
    sku: str


@app.post("/orders", roles=["buyer"])
async def order(req: Request[Order], res: Response[Order], gctx, lctx) -> None:
    raise AssertionError("handlers are not run")


@app.on_startup
async def connect(gctx) -> None:
    raise AssertionError("nor is what runs at the start")
"""


def written(directory: Path, before: str = "", after: str = "") -> Path:
    file = directory / "shop.py"
    file.write_text(before + APP + after)
    return file


def test_a_package_is_reported_whole(tmp_path: Path) -> None:
    (spec,) = find_in(written(tmp_path))

    report = inspect_package(spec)

    (handler,) = report.handlers
    assert (report.app, report.target, report.side_effects) == ("shop", "shop:app", [])
    assert (handler.id, handler.policies.roles, handler.source) == ("order", ["buyer"], "shop.py:12")
    assert set(report.schemas) == {handler.gtypes.request}
    assert handler.gtypes.request == handler.gtypes.response


def test_what_modules_print_does_not_get_between(tmp_path: Path) -> None:
    (spec,) = find_in(written(tmp_path, before="print('hello')\n"))

    assert inspect_package(spec).app == "shop"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "look up a host"),
        ("import socket; socket.socket().connect(('127.0.0.1', 9))", "open a connection"),
        ("import subprocess; subprocess.run(['true'])", "start a program"),
        ("import os; os.system('true')", "start a program"),
        ("open('left-behind.txt', 'w')", "write the file"),
        ("import pathlib; pathlib.Path('left-behind').mkdir()", "make a directory"),
        ("import sqlite3; sqlite3.connect('left-behind.db')", "open a database"),
    ],
)
def test_side_effects_of_an_import_are_refused_and_told_with_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, after=f"\n{line}\n")
    number = file.read_text().splitlines().index(line) + 1

    with pytest.raises(LoadError, match=rf"tries to {what}.*shop\.py:{number}\); .* app\.on_startup"):
        inspect_package(find_in(file)[0])
    assert list(tmp_path.glob("left-behind*")) == []


def test_a_side_effect_that_the_module_swallows_is_reported_all_the_same(tmp_path: Path) -> None:
    file = written(tmp_path, after="\ntry:\n    open('left.txt', 'w')\nexcept OSError:\n    pass\n")

    (effect,) = inspect_package(find_in(file)[0]).side_effects

    assert effect.what == "write the file left.txt"
    assert effect.where.rpartition(":")[0] == str(file)


def test_reading_files_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "rates.txt").write_text("19")
    file = written(tmp_path, after=f"\nrates = open({str(tmp_path / 'rates.txt')!r}).read()\n")

    assert inspect_package(find_in(file)[0]).side_effects == []


def test_an_import_that_waits_is_given_up(tmp_path: Path) -> None:
    (spec,) = find_in(written(tmp_path, after="\nimport threading; threading.Event().wait()\n"))

    with pytest.raises(LoadError, match=r"was not imported within 3 s"):
        inspect_package(spec, within_s=3)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ("\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("\ndef broken(:\n", "SyntaxError"),
        ("\nimport nowhere_to_be_found\n", "ModuleNotFoundError"),
        ("\nimport os; os._exit(3)\n", "ended with 3"),
    ],
)
def test_a_package_that_cannot_be_imported_is_refused_with_the_reason(tmp_path: Path, after: str, reason: str) -> None:
    with pytest.raises(LoadError, match=reason):
        inspect_package(find_in(written(tmp_path, after=after))[0])
