"""`gati build`, as a separate process on copies of the examples."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from gati_core.app.wheels import read_wheel
from tests.helpers.gati_dev import gati
from tests.helpers.wheels import APP, write_project

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    return shutil.copytree(EXAMPLES / "hello", tmp_path / "hello")


def test_it_says_what_was_built_and_where(hello: Path, tmp_path: Path) -> None:
    done = gati("build", "hello", directory=tmp_path)

    wheel = tmp_path / "dist" / "gati_example_hello-0.1.0-py3-none-any.whl"
    info = read_wheel(wheel)
    (handler,) = info.report.handlers
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "gati-example-hello 0.1.0: app hello, 1 handler",
        f"  GET /hello/{{name}}  greet  {handler.fingerprint[:12]}",
        f"  {info.size_bytes / 1024:.1f} KiB, sha256 {info.sha256}",
        f"  {wheel}",
    ]


def test_it_builds_the_current_directory_into_another_and_tells_programs(hello: Path, tmp_path: Path) -> None:
    done = gati("build", "-o", "../out", "--json", directory=hello)

    told = json.loads(done.stdout)
    info = read_wheel(Path(told["wheel"]))
    assert Path(told["wheel"]).parent == tmp_path / "out"
    assert told == {
        "wheel": told["wheel"],
        "name": "gati-example-hello",
        "version": "0.1.0",
        "app": "hello",
        "handlers": ["greet"],
        "requires": ["gati-core"],
        "size_bytes": info.size_bytes,
        "sha256": info.sha256,
    }
    assert not (hello / "dist").exists()


@pytest.mark.parametrize("example", ["live", "shop"])
def test_the_other_examples_can_be_built_twice_with_the_same_result(tmp_path: Path, example: str) -> None:
    project = shutil.copytree(EXAMPLES / example, tmp_path / example)
    before = sorted(project.rglob("*"))

    first, second = (json.loads(gati("build", example, "--json", directory=tmp_path).stdout) for _ in range(2))

    assert first == second
    assert first["app"] == example
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["empty"], "empty is no project: there is no pyproject.toml in it"),
        (["app.py"], "app.py is no project"),
        (["hello", "--find-links", "nowhere"], "--find-links: "),
    ],
)
def test_what_is_no_project_ends_with_2_before_anything_is_done(
    hello: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "app.py").write_text(APP)

    done = gati("build", *arguments, directory=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.startswith("gati: ")
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("open('left-behind', 'w')", "tries to write the file left-behind"),
        ("try:\n    open('left-behind', 'w')\nexcept OSError:\n    pass", "move that into a function registered with"),
    ],
)
def test_what_gati_check_finds_is_found_and_no_wheel_is_written(tmp_path: Path, line: str, says: str) -> None:
    project = write_project(tmp_path / "shop", source=APP + line + "\n")

    done = gati("build", "shop", directory=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert str(project / "src" / "shop" / "__init__.py") in done.stderr
    assert not (tmp_path / "dist").exists()


def test_a_directory_that_cannot_be_written_is_named(hello: Path, tmp_path: Path) -> None:
    (tmp_path / "dist").write_text("a file")

    done = gati("build", "hello", directory=tmp_path)

    assert done.returncode == 1
    assert str(tmp_path / "dist") in done.stderr


def test_it_builds_without_a_network(hello: Path, tmp_path: Path) -> None:
    environ = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_CACHE_DIR": str(tmp_path / "empty")}

    done = gati("build", "hello", "--offline", directory=tmp_path, environ=environ)

    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path / "dist") == ["gati_example_hello-0.1.0-py3-none-any.whl"]
