"""Projects become wheels, with a real uv and real build backends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from gati_core.app.building import build_wheel
from gati_core.app.uv_tool import explained, find_uv, run_uv
from gati_core.app.wheels import read_wheel
from gati_core.errors import PackageError
from tests.helpers.waiting import eventually
from tests.helpers.wheels import APP, write_project

EXAMPLES = Path(__file__).parents[2] / "examples"


def built(project: Path, out: Path, **options: float) -> zipfile.ZipFile:
    return zipfile.ZipFile(build_wheel(project, out, **options).path)  # type: ignore[arg-type]


@pytest.mark.parametrize("example", ["hello", "live", "shop"])
def test_an_example_becomes_a_wheel_that_says_what_it_offers(tmp_path: Path, example: str) -> None:
    project = shutil.copytree(EXAMPLES / example, tmp_path / example)

    wheel = build_wheel(project, tmp_path / "dist")

    assert wheel.path == tmp_path / "dist" / f"gati_example_{example}-0.1.0-py3-none-any.whl"
    assert wheel.info == read_wheel(wheel.path)
    assert (wheel.info.report.app, wheel.info.report.version) == (example, "0.1.0")
    assert all(handler.source.startswith(f"{example}/") for handler in wheel.info.report.handlers)
    assert list((tmp_path / "dist").iterdir()) == [wheel.path]


@pytest.mark.parametrize("backend", ["hatchling", "setuptools"])
def test_the_same_project_gives_the_same_bytes_in_another_place_and_at_another_time(
    tmp_path: Path, backend: str
) -> None:
    first = write_project(tmp_path / "one", backend=backend)
    second = write_project(tmp_path / "two" / "deeper", backend=backend)
    for file in second.rglob("*"):
        file.touch()
        if file.is_file():
            file.chmod(0o600)

    one, two = build_wheel(first, tmp_path / "a"), build_wheel(second, tmp_path / "b")

    assert one.path.read_bytes() == two.path.read_bytes()


@pytest.mark.parametrize("backend", ["hatchling", "setuptools"])
def test_the_project_is_left_as_it_was_and_what_is_gone_from_it_is_gone_from_the_wheel(
    tmp_path: Path, backend: str
) -> None:
    project = write_project(tmp_path / "shop", backend=backend)
    (project / "src" / "shop" / "old.py").write_text("x = 1\n")
    before = sorted(project.rglob("*"))
    assert "shop/old.py" in built(project, tmp_path / "dist").namelist()
    assert sorted(project.rglob("*")) == before

    (project / "src" / "shop" / "old.py").unlink()

    assert "shop/old.py" not in built(project, tmp_path / "dist").namelist()


def test_the_report_lies_in_the_wheel_and_record_lists_it(tmp_path: Path) -> None:
    with built(write_project(tmp_path / "shop"), tmp_path) as wheel:
        names = wheel.namelist()
        report = json.loads(wheel.read("shop_package-1.2.0.dist-info/gati.json"))
        record = wheel.read("shop_package-1.2.0.dist-info/RECORD").decode()

    assert names[-1].endswith("RECORD")
    assert (report["app"], report["version"], report["target"]) == ("shop", "1.2.0", "shop:app")
    assert [(each["id"], each["methods"], each["path"]) for each in report["handlers"]] == [
        ("order", ["POST"], "/orders")
    ]
    assert "shop_package-1.2.0.dist-info/gati.json,sha256=" in record


def test_a_plain_installer_accepts_the_wheel(tmp_path: Path) -> None:
    wheel = build_wheel(write_project(tmp_path / "shop", requires=()), tmp_path)

    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-index", "--target", str(tmp_path / "into"), str(wheel.path)],
        check=True,
        capture_output=True,
    )

    assert (tmp_path / "into" / "shop" / "__init__.py").read_text() == APP


def test_a_wheel_that_was_built_by_something_else_is_told_from_ours(tmp_path: Path) -> None:
    project = write_project(tmp_path / "shop")
    run_uv(["build", "--wheel", "--out-dir", str(tmp_path / "dist"), str(project)], directory=tmp_path, within_s=50)
    (wheel,) = (tmp_path / "dist").glob("*.whl")

    with pytest.raises(PackageError, match="it was built without `gati build`"):
        read_wheel(wheel)


# -- what cannot be built ---------------------------------------------------------------------------


def refused(project: Path, out: Path, **options: float) -> str:
    with pytest.raises(PackageError) as caught:
        build_wheel(project, out, **options)  # type: ignore[arg-type]
    assert not out.exists() or not list(out.iterdir()), "nothing was written"
    return str(caught.value)


def test_a_project_that_is_not_there(tmp_path: Path) -> None:
    assert "gone does not exist" in refused(tmp_path / "gone", tmp_path / "dist")


def test_a_file_or_a_directory_without_a_project(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)

    assert "a directory with a pyproject.toml" in refused(tmp_path / "app.py", tmp_path / "dist")
    assert "a directory with a pyproject.toml" in refused(tmp_path, tmp_path / "dist")


def test_a_pyproject_that_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project\n")

    assert "pyproject.toml: Expected ']'" in refused(tmp_path, tmp_path / "dist")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('version = "1.2.0"', 'version = "one"', "one"),
        ("src/shop", "src/nowhere", "lacks shop, which its entry point shop:app names"),
        ("gati.apps", "other.apps", "no entry point in group 'gati.apps'; add to pyproject.toml"),
        ('shop = "shop:app"', 'shop = "shop:app"\nadmin = "shop:admin"', "2 entry points in group 'gati.apps'"),
        ('shop = "shop:app"', 'shop = "shop:application"', "the attribute 'application' is not there"),
        ('"hatchling.build"', '"no_such_backend.build"', "no_such_backend"),
    ],
    ids=["version", "files", "no app", "two apps", "attribute", "backend"],
)
def test_a_project_with_a_mistake_is_told_which(tmp_path: Path, old: str, new: str, says: str) -> None:
    project = write_project(tmp_path / "shop")
    file = project / "pyproject.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))

    assert says in refused(project, tmp_path / "dist")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("def broken(:", "SyntaxError"),
        ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
        ("open('left-behind', 'w')", "tries to write the file left-behind"),
        ("try:\n    open('left-behind', 'w')\nexcept OSError:\n    pass", "tries to write the file left-behind"),
        ("app = App('shop')", "registers no handler"),
    ],
)
def test_code_that_cannot_be_loaded_is_told_with_its_place_in_the_project(tmp_path: Path, line: str, says: str) -> None:
    project = write_project(tmp_path / "shop", source=APP + line + "\n")

    message = refused(project, tmp_path / "dist")

    assert says in message
    assert str(project / "src" / "shop" / "__init__.py") in message
    assert not (project / "left-behind").exists()


def test_a_module_that_the_wheel_lacks_is_missed_although_the_project_has_it(tmp_path: Path) -> None:
    """What is described is what is in the wheel, not what lies beside it."""
    project = write_project(tmp_path / "shop", source="import shop_prices\n" + APP)
    (project / "src" / "shop_prices.py").write_text("x = 1\n")

    assert "No module named 'shop_prices'" in refused(project, tmp_path / "dist")


def test_a_package_that_is_too_large_is_refused(tmp_path: Path) -> None:
    project = write_project(tmp_path / "shop")

    assert "are more than the 1000 that a package may have" in refused(project, tmp_path / "dist", max_bytes=1000)


async def test_a_build_that_hangs_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    project = write_project(tmp_path / "shop")
    (project / "hatch_build.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    with (project / "pyproject.toml").open("a") as file:
        file.write("\n[tool.hatch.build.targets.wheel.hooks.custom]\n")

    began = time.monotonic()
    assert "was not built within 6 s" in refused(project, tmp_path / "dist", within_s=6)

    assert time.monotonic() - began < 12
    pid = int((tmp_path / "pid").read_text())
    await eventually(lambda: not is_running(pid), within_s=10)


def is_running(pid: int) -> bool:
    """Whether a process does anything; one that was killed may wait for init to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- without a network ------------------------------------------------------------------------------


def test_without_a_network_the_cache_does_or_else_the_backend_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")

    assert build_wheel(write_project(tmp_path / "shop"), tmp_path / "dist").info.version == "1.2.0"
    assert build_wheel(write_project(tmp_path / "shop"), tmp_path / "dist", offline=True).info.version == "1.2.0"


def test_a_backend_that_cannot_be_had_without_a_network_is_named_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty"))
    project = write_project(tmp_path / "shop")
    file = project / "pyproject.toml"
    file.write_text(
        file.read_text().replace('"hatchling>=1.27"', '"far-away-backend"').replace("hatchling.", "far_away.")
    )

    message = refused_offline(project, tmp_path / "dist")

    assert "far-away-backend" in message
    assert "must be reachable, in uv's cache, or installed" in message


def refused_offline(project: Path, out: Path) -> str:
    with pytest.raises(PackageError) as caught:
        build_wheel(project, out, offline=True)
    return str(caught.value)


def test_without_uv_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gati_core.app.uv_tool.sysconfig.get_path", lambda _name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(PackageError, match="pip install uv"):
        find_uv()


def test_causes_are_shown_without_decoration() -> None:
    said = (
        "Building wheel...\nUsing Python 3.11\nerror: Failed to build\n  cause: No solution found\n\nhint: try this\n"
    )

    assert explained(said) == "Failed to build\nNo solution found\nhint: try this"
