"""The pytest plugin as a handler author meets it: a project of its own, with a pytest of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gati_testing import eventually
from gati_testing._processes import processes_with

_MARK = "KIT_TEST_MARK"
_HANDLERS = """
import os

from gati_core import App, GlobalContext, LocalContext, Request, Response

app = App("greeter")


@app.get("/greet/{name}")
async def greet(req: Request[None], res: Response[str], gctx: GlobalContext, lctx: LocalContext) -> None:
    res.text(f"Hello, {req.params['name']}!")


@app.get("/in-flight")
async def in_flight(req: Request[None], res: Response[str], gctx: GlobalContext, lctx: LocalContext) -> None:
    res.text(os.environ.get("GATI_WORKER_MAX_IN_FLIGHT", "default"))
"""


class Project:
    """A handler package with tests, and a way to run them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("src/greeter.py", _HANDLERS)
        self.write("pyproject.toml", '[project]\nname = "greeter"\nversion = "1"\n')

    def write(self, name: str, text: str) -> None:
        """Put a file there."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def names_its_app(self) -> None:
        """Add the entry point."""
        with (self.root / "pyproject.toml").open("a") as file:
            file.write('[project.entry-points."gati.apps"]\ngreeter = "greeter:app"\n')

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start pytest."""
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *arguments],
            cwd=self.root,
            env={**os.environ, _MARK: str(self.root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output of pytest."""
        running = self.begin(*arguments)
        try:
            output, _ = running.communicate(timeout=90)
        finally:
            running.kill()
        return running.returncode, output

    def processes(self) -> list[int]:
        """Whatever runs on behalf of this project."""
        return processes_with(_MARK, str(self.root))


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project that leaves nothing running."""
    project = Project(tmp_path)
    yield project
    left = project.processes()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


@pytest.mark.timeout(120)
def test_a_project_tests_its_handlers_over_http_without_any_setting(project: Project) -> None:
    project.names_its_app()
    project.write(
        "tests/test_greeter.py",
        """
async def test_async(gati_client):
    answer = await gati_client.get("/greet/Ada")
    assert (answer.status_code, answer.text) == (200, "Hello, Ada!")


async def test_of_another_event_loop(gati_client, gati_fabric):
    assert (await gati_client.get("/greet/Alan")).text == "Hello, Alan!"
    assert len(gati_fabric.workers) == 1


def test_sync(gati_sync_client):
    assert gati_sync_client.get("/greet/Grace").text == "Hello, Grace!"


def test_that_fails(gati_sync_client):
    assert gati_sync_client.get("/nowhere").status_code == 200
""",
    )

    code, output = project.run()

    assert code == 1
    assert "1 failed, 3 passed" in output, output
    assert "services of the fabric" in output
    assert "catalogue_rebuilt" in output, "the logs of the services belong to a failure"


@pytest.mark.timeout(120)
def test_a_module_chooses_what_is_served_and_with_which_settings(project: Project) -> None:
    """A file, and an installed package by the name of its entry point, beside each other."""
    project.write(
        "test_chosen.py",
        """
import pytest


@pytest.fixture(scope="module")
def gati_apps():
    return ["src/greeter.py", "hello"]


@pytest.fixture(scope="module")
def gati_environment():
    return {"GATI_WORKER_MAX_IN_FLIGHT": "7"}


def test_both_are_served(gati_sync_client):
    assert gati_sync_client.get("/greet/Ada").text == "Hello, Ada!"
    assert gati_sync_client.get("/hello/Ada").status_code == 200


def test_the_settings_arrive(gati_sync_client):
    assert gati_sync_client.get("/in-flight").text == "7"
""",
    )

    code, output = project.run()

    assert (code, "2 passed" in output) == (0, True), output


@pytest.mark.timeout(120)
def test_a_package_that_does_not_load_is_told_with_its_line(project: Project) -> None:
    project.names_its_app()
    project.write("src/greeter.py", "from gati_core import App\napp = App('greeter')\nthis is no python\n")
    project.write("test_it.py", "def test_it(gati_sync_client): ...\n")

    code, output = project.run()

    assert code == 1
    assert "the app greeter does not load" in output, output
    assert "greeter.py:3" in output
    assert "this is no python" in output


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("apps", "says"),
    [
        ('["nobody-installed-this"]', "no installed package offers nobody-installed-this"),
        ('["src/missing.py"]', "missing.py does not exist"),
        ('"src/greeter.py"', "returns a list, not 'src/greeter.py'"),
        ("[]", "names no app"),
    ],
)
def test_apps_that_cannot_be_found_are_told(project: Project, apps: str, says: str) -> None:
    project.write(
        "test_it.py",
        f"import pytest\n@pytest.fixture(scope='module')\ndef gati_apps(): return {apps}\n"
        "def test_it(gati_sync_client): ...\n",
    )

    code, output = project.run()

    assert (code, says in output) == (1, True), output


def test_a_project_that_names_no_app_is_told_what_to_do(project: Project) -> None:
    project.write("test_it.py", "def test_it(gati_sync_client): ...\n")

    code, output = project.run()

    assert code == 1
    assert "override the fixture" in output, output
    assert "def gati_apps():" in output


@pytest.mark.timeout(120)
async def test_a_pytest_that_is_killed_leaves_nothing_running(project: Project) -> None:
    project.names_its_app()
    project.write(
        "test_it.py",
        """
import pathlib
import threading


def test_it(gati_fabric):
    pathlib.Path("serving").touch()
    threading.Event().wait(60)
""",
    )
    running = project.begin()
    try:
        await eventually((project.root / "serving").exists, within_s=60)
        assert len(project.processes()) >= 5, "pytest, broker, ingress, router, worker"
    finally:
        running.kill()
        running.communicate(timeout=10)

    await eventually(lambda: project.processes() == [], within_s=40)


def test_a_project_runs_one_handler_without_any_setting(project: Project) -> None:
    project.write(
        "conftest.py", "import sys, pathlib\n\nsys.path.insert(0, str(pathlib.Path(__file__).parent / 'src'))\n"
    )
    project.write(
        "test_handler.py",
        """
import pytest
from greeter import app, greet


async def test_by_what_the_decorator_returned(gati_harness):
    result = await gati_harness.execute_handler(greet, {"params": {"name": "Ada"}})
    assert result.response.text == "Hello, Ada!"


class TestById:
    @pytest.fixture
    def gati_app(self):
        return app

    async def test_by_id(self, gati_harness):
        result = await gati_harness.execute_handler("greet", {"params": {"name": "Alan"}})
        assert result.response.text == "Hello, Alan!"
""",
    )

    code, output = project.run()

    assert code == 0, output
    assert "2 passed" in output
