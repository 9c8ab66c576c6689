"""Editing a package under `gati dev`: what a save does, and what it never breaks.

One `gati dev` serves the module. It lies under a hidden directory, which must not matter. Every test
writes the package anew.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.gati_dev import Answer, GatiDev, handler_source, running_dev
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.timeout(90)

RELOAD_WITHIN_S = 8.0
"""Generous, because tests share their machine; the measured time is well below a second."""


@pytest.fixture(scope="module")
def module_dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatiDev]:
    directory = tmp_path_factory.mktemp("reload") / ".hidden"
    (directory / "pack").mkdir(parents=True)
    (directory / "mine.py").write_text(handler_source("start"))
    (directory / "pack" / "__init__.py").write_text(
        "from pack.inner import ANSWER\n" + handler_source("x", app="pack", path="/pack").replace('"x"', "ANSWER")
    )
    (directory / "pack" / "inner.py").write_text('ANSWER = "start"\n')
    with running_dev(directory, "mine.py", "pack") as dev:
        give_up_at = time.monotonic() + 40
        while not dev.is_ready() and time.monotonic() < give_up_at:
            threading.Event().wait(0.05)
        yield dev


@pytest.fixture
def dev(module_dev: GatiDev) -> GatiDev:
    """The running one, and its log from here on."""
    (module_dev.directory / "go").unlink(missing_ok=True)
    return module_dev


def answers(dev: GatiDev, text: str, path: str = "/mine/x") -> Callable[[], bool]:
    return lambda: dev.get(path) == Answer(200, text)


def save(dev: GatiDev, source: str) -> None:
    (dev.directory / "mine.py").write_text(source)


async def test_a_saved_file_answers_with_the_new_code(dev: GatiDev) -> None:
    save(dev, handler_source("first"))
    await eventually(answers(dev, "first"), within_s=RELOAD_WITHIN_S)

    save(dev, handler_source("again"))  # the same size, and perhaps the same second: bytecode must not be reused

    await eventually(answers(dev, "again"), within_s=RELOAD_WITHIN_S)


async def test_a_file_that_an_editor_replaces_is_followed(dev: GatiDev) -> None:
    for text in ("replaced once", "replaced twice"):
        draft = dev.directory / "mine.py.draft"
        draft.write_text(handler_source(text))
        os.replace(draft, dev.directory / "mine.py")

        await eventually(answers(dev, text), within_s=RELOAD_WITHIN_S)


async def test_a_module_inside_a_package_directory_is_followed(dev: GatiDev) -> None:
    (dev.directory / "pack" / "inner.py").write_text('ANSWER = "inner"\n')

    await eventually(answers(dev, "inner", "/pack"), within_s=RELOAD_WITHIN_S)


async def test_a_package_directory_that_is_replaced_is_followed(dev: GatiDev) -> None:
    fresh = dev.directory / "fresh"
    shutil.copytree(dev.directory / "pack", fresh)
    (fresh / "inner.py").write_text('ANSWER = "moved in"\n')
    shutil.rmtree(dev.directory / "pack")
    fresh.rename(dev.directory / "pack")
    await eventually(answers(dev, "moved in", "/pack"), within_s=RELOAD_WITHIN_S)

    (dev.directory / "pack" / "inner.py").write_text('ANSWER = "edited"\n')

    await eventually(answers(dev, "edited", "/pack"), within_s=RELOAD_WITHIN_S)


async def test_a_syntax_error_is_shown_with_file_and_line_and_the_old_code_serves_on(dev: GatiDev) -> None:
    save(dev, handler_source("before the error"))
    await eventually(answers(dev, "before the error"), within_s=RELOAD_WITHIN_S)
    seen = len(dev.output())

    source = handler_source("after the error") + "\ndef broken(:\n"
    save(dev, source)

    where = f"mine.py:{len(source.splitlines())}"
    await eventually(lambda: where in dev.output()[seen:], within_s=RELOAD_WITHIN_S)
    await eventually(lambda: "the old code of mine keeps serving" in dev.output()[seen:], within_s=2)
    assert "def broken(:" in dev.output()[seen:]
    assert answers(dev, "before the error")()

    save(dev, handler_source("after the error"))
    await eventually(answers(dev, "after the error"), within_s=RELOAD_WITHIN_S)


async def test_an_exception_while_importing_names_the_line_that_raised(dev: GatiDev) -> None:
    seen = len(dev.output())

    save(dev, "def prepare():\n    raise ValueError('no settings')\n\nprepare()\n")

    await eventually(lambda: "ValueError: no settings" in dev.output()[seen:], within_s=RELOAD_WITHIN_S)
    assert "mine.py:2" in dev.output()[seen:]


async def test_a_deleted_file_keeps_serving_and_comes_back(dev: GatiDev) -> None:
    save(dev, handler_source("to be deleted"))
    await eventually(answers(dev, "to be deleted"), within_s=RELOAD_WITHIN_S)
    seen = len(dev.output())

    (dev.directory / "mine.py").unlink()

    await eventually(lambda: "there is no module 'mine'" in dev.output()[seen:], within_s=RELOAD_WITHIN_S)
    assert answers(dev, "to be deleted")()

    save(dev, handler_source("back again"))
    await eventually(answers(dev, "back again"), within_s=RELOAD_WITHIN_S)


async def test_a_renamed_handler_moves_its_route(dev: GatiDev) -> None:
    save(dev, handler_source("old place"))
    await eventually(answers(dev, "old place"), within_s=RELOAD_WITHIN_S)
    seen = len(dev.output())

    save(dev, handler_source("new place", path="/moved", name="renamed"))

    await eventually(answers(dev, "new place", "/moved"), within_s=RELOAD_WITHIN_S)
    await eventually(lambda: dev.get("/mine/x").status == 404, within_s=RELOAD_WITHIN_S)
    await eventually(lambda: "+ GET /moved  mine:renamed" in dev.output()[seen:], within_s=RELOAD_WITHIN_S)
    await eventually(lambda: "- GET /mine/{name}" in dev.output()[seen:], within_s=RELOAD_WITHIN_S)


async def test_a_request_in_flight_finishes_on_the_old_code(dev: GatiDev) -> None:
    save(dev, handler_source("the old one"))
    await eventually(answers(dev, "the old one"), within_s=RELOAD_WITHIN_S)
    seen = len(dev.output())
    found: list[Answer] = []
    asking = threading.Thread(target=lambda: found.append(dev.get("/mine/slow")))
    asking.start()
    await eventually(lambda: "slow request began" in dev.output()[seen:], within_s=5)

    save(dev, handler_source("the new one"))
    await eventually(answers(dev, "the new one"), within_s=RELOAD_WITHIN_S)
    (dev.directory / "go").touch()

    asking.join(12)
    assert found == [Answer(200, "the old one")]


async def test_what_a_handler_prints_is_shown(dev: GatiDev) -> None:
    source = handler_source("printed").replace('    res.text("', '    print("a line", "in pieces")\n    res.text("')
    save(dev, source)

    await eventually(answers(dev, "printed"), within_s=RELOAD_WITHIN_S)

    await eventually(lambda: "worker | a line in pieces\n" in dev.output(), within_s=5)


async def test_the_other_commands_find_the_running_one(dev: GatiDev) -> None:
    from tests.helpers.gati_dev import gati, gati_json

    save(dev, handler_source("found"))
    await eventually(answers(dev, "found"), within_s=RELOAD_WITHIN_S)

    report = gati_json("routes", directory=dev.directory)
    examined = gati("doctor", directory=dev.directory)

    assert isinstance(report, dict)
    assert {(route["method"], route["path"]) for route in report["routes"]} >= {("GET", "/pack")}
    assert examined.returncode == 0, examined.stdout
    assert f"{dev.url} is ready" in examined.stdout


def test_everything_it_served_from_lies_below_a_hidden_directory(dev: GatiDev) -> None:
    assert any(part.startswith(".") for part in Path(dev.directory).parts)
