"""Environments of published packages, made by a real uv, and a real child that runs in one."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import gati_core
from gati_core import App
from gati_core.app.building import build_wheel
from gati_core.app.inspection import report_on
from gati_core.app.packages import PackageSpec
from gati_core.app.wheels import WheelInfo, read_wheel
from gati_core.errors import PackageError, PermanentError, TransientError
from gati_core.fabric import Fabric
from gati_worker.child import Child
from gati_worker.environments import Environment, EnvironmentUnavailable, prepare, prune
from gati_worker.requirements import own_ranges, unmet
from gati_worker.settings import WorkerSettings
from tests.helpers.waiting import eventually
from tests.helpers.wheels import APP, ENTRY_POINTS, write_project, write_wheel

NEEDS_TINY = "import tinydep\n" + APP
WAITS = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(%r, "w").close()
import time
time.sleep(600)
"""


@pytest.fixture(scope="module")
def report() -> bytes:
    """Of an app; what it says does not matter here."""
    app = App("shop")

    @app.get("/orders")
    async def orders(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...

    return msgspec.json.encode(report_on(app, version="1.0", target="shop:app"))


class Place:
    """A cache, a wheelhouse, and packages to install."""

    def __init__(self, directory: Path, report: bytes) -> None:
        self.directory = directory
        self.cache = directory / "cache"
        self.wheelhouse = directory / "wheelhouse"
        self.wheelhouse.mkdir()
        self._report = report

    def package(self, *requires: str, source: str = APP, name: str = "shop-package") -> tuple[Path, WheelInfo]:
        wheel = write_wheel(
            self.directory / "packages",
            name,
            files={"shop/__init__.py": source},
            requires=["gati-core", *requires],
            info={"entry_points.txt": ENTRY_POINTS, "gati.json": self._report},
        )
        return wheel, read_wheel(wheel)

    def offer(
        self, name: str, version: str = "1.0", *, source: str = "x = 1\n", requires: tuple[str, ...] = ()
    ) -> None:
        write_wheel(self.wheelhouse, name, version, files={f"{name}.py": source}, requires=requires)

    async def prepared(self, *requires: str, **options: Any) -> Environment:
        wheel, info = self.package(*requires)
        return await self.prepare(wheel, info, **options)

    async def prepare(self, wheel: Path, info: WheelInfo, **options: Any) -> Environment:
        given = {"wheelhouse": self.wheelhouse, "offline": True, **options}
        return await prepare(wheel, info, cache=self.cache, **given)

    def names(self) -> list[str]:
        return sorted(each.name for each in (self.cache / "environments").iterdir() if each.is_dir())

    def assert_nothing_half_made(self) -> None:
        assert list((self.cache / "building").iterdir()) == []


@pytest.fixture
def place(tmp_path: Path, report: bytes) -> Place:
    return Place(tmp_path, report)


def run(environment: Environment, code: str) -> str:
    done = subprocess.run([environment.python, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# -- what is in one -----------------------------------------------------------------------------------


async def test_a_package_runs_in_it_with_the_gati_of_the_worker(place: Place) -> None:
    environment = await place.prepared()

    assert environment.is_new
    assert environment.installed == ["shop-package==1.0"]
    told = json.loads(
        run(
            environment,
            "import shop, gati_worker.runner, gati_core, json, sys;"
            "print(json.dumps([shop.__file__, gati_core.__file__, sys.prefix, sys.version]))",
        )
    )
    assert told[0].startswith(str(environment.path))
    assert told[1:] == [gati_core.__file__, str(environment.path), sys.version]
    place.assert_nothing_half_made()


async def test_metadata_of_both_is_found_in_it(place: Place) -> None:
    environment = await place.prepared()

    code = "import importlib.metadata as m; print(m.version('shop-package'), m.version('gati-core'))"
    assert run(environment, code) == f"1.0 {importlib.metadata.version('gati-core')}"


async def test_what_the_worker_lacks_is_installed_and_what_it_has_is_not(place: Place) -> None:
    place.offer("tinydep", requires=("anyio>=4", "otherdep"))
    place.offer("otherdep", "2.0")

    environment = await place.prepared("tinydep>=1", "httpx", "nothing-at-all; python_version < '3'")

    assert environment.installed == ["otherdep==2.0", "shop-package==1.0", "tinydep==1.0"]
    assert run(environment, "import tinydep, otherdep, httpx, anyio; print(tinydep.x)") == "1"
    found = list(environment.path.glob("lib/*/site-packages/*.dist-info"))
    assert len(found) == 3, "nothing is left of what uv was told"


async def test_what_the_package_brings_in_another_version_comes_first(place: Place) -> None:
    place.offer("pygments", "0.1", source="x = 'the package brings it'\n")
    place.offer("pygments", "0.2", source="x = 'newer'\n")

    environment = await place.prepared("pygments<0.2")

    assert run(environment, "import pygments; print(pygments.x)") == "the package brings it"
    assert "pygments==0.1" in environment.installed


async def test_extras_that_the_worker_lacks_are_installed_without_what_carries_them(place: Place) -> None:
    place.offer("socksio", "1.0")

    environment = await place.prepared("httpx[socks]")

    assert environment.installed == ["shop-package==1.0", "socksio==1.0"]


async def test_a_package_that_is_installed_in_the_worker_too_is_the_published_one(tmp_path: Path, place: Place) -> None:
    project = write_project(tmp_path / "shop", name="gati-example-shop", version="0.1.0", source=APP + "mark = 7\n")
    wheel = build_wheel(project, tmp_path / "dist")

    environment = await place.prepare(wheel.path, wheel.info)

    assert run(environment, "import shop; print(shop.mark)") == "7"


async def test_scripts_of_an_environment_find_their_python_although_it_was_moved(tmp_path: Path, place: Place) -> None:
    project = write_project(tmp_path / "shop", source=APP + "def main():\n    print('hello')\n")
    with (project / "pyproject.toml").open("a") as file:
        file.write('\n[project.scripts]\nshop = "shop:main"\n')
    wheel = build_wheel(project, tmp_path / "dist")

    environment = await place.prepare(wheel.path, wheel.info)

    done = subprocess.run([environment.path / "bin" / "shop"], capture_output=True, text=True, check=True)
    assert done.stdout == "hello\n"


# -- what cannot be installed -----------------------------------------------------------------------


async def refused(place: Place, *requires: str, **options: Any) -> str:
    with pytest.raises(PackageError) as caught:
        await place.prepared(*requires, **options)
    assert isinstance(caught.value, PermanentError)
    place.assert_nothing_half_made()
    assert place.names() == []
    return str(caught.value)


@pytest.mark.parametrize(
    "options", [{}, {"no_index": True}, {"wheelhouse": None}, {"offline": False, "no_index": True}]
)
async def test_a_dependency_that_is_nowhere_is_named(place: Place, options: dict[str, Any]) -> None:
    place.offer("tinydep")

    message = await refused(place, "no-such-thing>=2", **options)

    assert message.startswith("shop-package 1.0 needs no-such-thing>=2, which cannot be installed:\n")


async def test_a_dependency_of_a_dependency_that_is_nowhere_is_named(place: Place) -> None:
    place.offer("tinydep", requires=("deep-down",))

    assert "deep-down" in await refused(place, "tinydep")


async def test_a_version_that_is_nowhere_is_named(place: Place) -> None:
    place.offer("tinydep")

    assert "needs tinydep>=2, which cannot be installed" in await refused(place, "tinydep>=2")


async def test_a_package_that_would_break_gati_itself_is_refused(place: Place) -> None:
    place.offer("msgspec", "0.1")

    message = await refused(place, "msgspec<0.2")

    assert "needs msgspec<0.2, which cannot be installed" in message
    assert "msgspec>=0.20" in message


async def test_a_package_for_another_gati_is_refused_and_no_other_gati_is_looked_for(place: Place) -> None:
    place.offer("gati_core", "99.0")

    message = await refused(place, "gati-core>=99")

    assert "needs gati-core>=99, and this worker has gati-core " in message


async def test_a_requirement_that_is_none_is_refused(place: Place) -> None:
    assert "has a requirement that cannot be read" in await refused(place, "what is >= this")


async def test_a_wheel_for_another_platform_is_refused(tmp_path: Path, place: Place) -> None:
    wheel = write_wheel(
        tmp_path,
        "shop-package",
        files={"shop/__init__.py": APP},
        info={
            "entry_points.txt": ENTRY_POINTS,
            "gati.json": place._report,
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp39-cp39-win_amd64\n",
        },
    )

    with pytest.raises(PackageError, match=r"shop-package 1\.0 cannot be installed on this worker"):
        await place.prepare(wheel, read_wheel(wheel))


async def test_a_wheel_that_is_not_the_one_that_was_looked_at_is_refused(place: Place) -> None:
    wheel, info = place.package()
    wheel.write_bytes(wheel.read_bytes() + b"\0")

    with pytest.raises(PackageError, match="its hash differs"):
        await place.prepare(wheel, info)


async def test_without_a_network_it_may_succeed_later_and_what_is_here_suffices(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    place.offer("tinydep")

    with pytest.raises(EnvironmentUnavailable, match="cannot be made now") as caught:
        await place.prepared("no-such-thing", offline=False)
    environment = await place.prepared("tinydep", offline=False)

    assert isinstance(caught.value, TransientError)
    assert environment.installed == ["shop-package==1.0", "tinydep==1.0"]


async def test_a_cache_that_cannot_be_written_is_unavailable(tmp_path: Path, place: Place) -> None:
    (tmp_path / "cache").write_text("a file")

    with pytest.raises(EnvironmentUnavailable, match="cache"):
        await place.prepared()


# -- used again, at once, and after a crash ---------------------------------------------------------


async def test_it_is_made_once_and_used_again(place: Place) -> None:
    first = await place.prepared()
    again = await place.prepared()

    assert again.path == first.path
    assert (first.is_new, again.is_new) == (True, False)
    assert again.installed == first.installed
    assert again.took_s < 0.5


async def test_another_wheel_of_the_same_version_has_an_environment_of_its_own(place: Place) -> None:
    first = await place.prepared()
    other = await place.prepare(*place.package(source=APP + "x = 1\n"))

    assert other.path != first.path
    assert len(place.names()) == 2


async def test_after_an_update_of_the_worker_it_is_made_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await place.prepared()
    monkeypatch.setattr("gati_worker.environments.sys.version", "another")

    assert (await place.prepared()).path != first.path


async def test_several_at_once_in_one_process_come_to_one_environment(place: Place) -> None:
    place.offer("tinydep")
    wheel, info = place.package("tinydep")
    made: list[Environment] = []

    async def one() -> None:
        made.append(await place.prepare(wheel, info))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(one)

    assert len({each.path for each in made}) == 1
    assert len(place.names()) == 1
    place.assert_nothing_half_made()
    assert run(made[0], "import shop, tinydep; print(tinydep.x)") == "1"


ANOTHER_PROCESS = """
import sys, anyio
from pathlib import Path
from gati_core.app.wheels import read_wheel
from gati_worker.environments import prepare

wheel, cache, wheelhouse = map(Path, sys.argv[1:])
environment = anyio.run(lambda: prepare(wheel, read_wheel(wheel), cache=cache, wheelhouse=wheelhouse, offline=True))
print("path", environment.path, flush=True)
sys.stdin.read()
"""


def another_process(place: Place, wheel: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ANOTHER_PROCESS, str(wheel), str(place.cache), str(place.wheelhouse)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def told_by(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return next(line.split()[1] for line in process.stdout if line.startswith("path "))


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("", timeout=20)


def test_two_processes_at_once_come_to_one_environment(place: Place) -> None:
    place.offer("tinydep")
    wheel, _ = place.package("tinydep")
    processes = [another_process(place, wheel) for _ in range(2)]

    told = {told_by(process) for process in processes}
    for process in processes:
        end(process)

    assert len(told) == 1
    assert [Path(each).name for each in told] == place.names()
    place.assert_nothing_half_made()


async def test_an_environment_that_somebody_has_damaged_is_made_again(place: Place) -> None:
    first = await place.prepared()
    first.close()
    (first.path / "bin" / "python").unlink()

    again = await place.prepared()

    assert again.is_new
    assert again.path == first.path
    assert run(again, "import shop; print(shop.app.name)") == "shop"


async def test_a_cancelled_one_ends_uv_and_leaves_nothing_behind(tmp_path: Path, place: Place) -> None:
    started = tmp_path / "started"
    source = slow_source(place, started)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: place.prepared(f"slowdep @ {source.as_uri()}", within_s=50))
        await eventually(started.exists, within_s=20)
        tasks.cancel_scope.cancel()

    assert place.names() == []
    place.assert_nothing_half_made()
    assert processes_in(place.directory) == []


async def test_one_that_takes_too_long_may_succeed_later(tmp_path: Path, place: Place) -> None:
    source = slow_source(place, tmp_path / "started")

    with pytest.raises(EnvironmentUnavailable, match=r"shop-package 1\.0 was not ready within 2 s"):
        await place.prepared(f"slowdep @ {source.as_uri()}", within_s=2)

    place.assert_nothing_half_made()
    assert processes_in(place.directory) == []


def slow_source(place: Place, started: Path) -> Path:
    """A project whose build starts another process and hangs."""
    source = place.directory / "slowdep"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "slow"\nbackend-path = ["."]\n'
        '[project]\nname = "slowdep"\nversion = "1.0"\n'
    )
    (source / "slow.py").write_text(WAITS % str(started))
    return source


def processes_in(directory: Path) -> list[str]:
    """Command lines of what runs with this directory in its command line, environment or working directory."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            told = [(entry / name).read_bytes().decode(errors="replace") for name in ("cmdline", "environ")]
            told.append(os.readlink(entry / "cwd"))
        except OSError:
            continue
        if told[0] and any(str(directory) in each for each in told):
            found.append(told[0].replace("\0", " "))
    return found


# -- removing ---------------------------------------------------------------------------------------


async def test_what_nobody_uses_is_removed_and_the_rest_stays(place: Place) -> None:
    used = await place.prepared()
    wanted = await place.prepare(*place.package(source=APP + "x = 1\n"))
    unused = await place.prepare(*place.package(source=APP + "x = 2\n"))
    wanted.close()
    unused.close()

    removed = await prune(place.cache, keep=[wanted.sha256], max_bytes=0)

    assert removed == [unused.path.name]
    assert place.names() == sorted([used.path.name, wanted.path.name])
    assert not unused.path.with_name(unused.path.name + ".lock").exists()
    assert run(used, "import shop; print(shop.app.name)") == "shop"


async def test_what_is_not_used_stays_as_long_as_there_is_room(place: Place) -> None:
    environment = await place.prepared()
    environment.close()

    assert await prune(place.cache, keep=[]) == []
    assert not (await place.prepared()).is_new


async def test_the_longest_unused_goes_first(place: Place) -> None:
    environments = [await place.prepare(*place.package(source=APP + f"x = {number}\n")) for number in range(3)]
    for environment in environments:
        environment.close()
    for age, environment in enumerate((environments[1], environments[2], environments[0])):
        os.utime(environment.path, (time.time() - 100 * age,) * 2)
    (place.cache / "uv").rename(place.directory / "uv")  # what remains is environments alone
    room = used_by(place.cache)

    removed = await prune(place.cache, keep=[], max_bytes=room - 1)

    assert removed == [environments[0].path.name]


def used_by(directory: Path) -> int:
    """Bytes on the disk; what is linked from two places counts once."""
    found = {each.lstat().st_ino: each.lstat().st_blocks * 512 for each in directory.rglob("*") if not each.is_dir()}
    return sum(found.values())


async def test_downloads_are_removed_when_nothing_else_makes_room(place: Place) -> None:
    environment = await place.prepared()
    place.offer("tinydep")
    other = await place.prepared("tinydep")
    assert list((place.cache / "uv").rglob("*.py"))

    await prune(place.cache, keep=[], max_bytes=0)

    assert not list((place.cache / "uv").rglob("*.py"))
    assert run(environment, "import shop; print(shop.app.name)") == "shop"
    assert run(other, "import tinydep; print(tinydep.x)") == "1"


async def test_what_another_process_uses_is_not_removed_until_that_has_ended(place: Place) -> None:
    wheel, _ = place.package()
    process = another_process(place, wheel)
    path = Path(await anyio.to_thread.run_sync(told_by, process))
    try:
        assert await prune(place.cache, keep=[], max_bytes=0) == []
        assert path.exists()
    finally:
        end(process)

    assert await prune(place.cache, keep=[], max_bytes=0) == [path.name]


async def test_what_a_crash_has_left_is_removed_once_nobody_can_be_making_it(place: Place) -> None:
    (await place.prepared()).close()
    left, new = place.cache / "building" / "left", place.cache / "building" / "new"
    for each in (left, new):
        (each / "environment").mkdir(parents=True)
    os.utime(left, (time.time() - 4000,) * 2)
    orphan = place.cache / "environments" / "gone-1.0-abc.lock"
    orphan.touch()

    await prune(place.cache, keep=[])

    assert [each.name for each in (place.cache / "building").iterdir()] == ["new"]
    assert not orphan.exists()


async def test_prune_of_a_cache_that_is_not_there_removes_nothing(tmp_path: Path) -> None:
    assert await prune(tmp_path / "cache", keep=[], max_bytes=0) == []


async def test_one_that_is_removed_can_be_made_again_while_others_remove(place: Place) -> None:
    for _ in range(3):
        environment = await place.prepared()
        environment.close()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: prune(place.cache, keep=[], max_bytes=0))
            environment = await place.prepared()
        assert run(environment, "import shop; print(shop.app.name)") == "shop"
        environment.close()


# -- a child in it ----------------------------------------------------------------------------------


async def test_a_child_loads_a_package_that_needs_what_the_worker_has_not(
    gati_open_fabric: Fabric, place: Place
) -> None:
    place.offer("tinydep")
    wheel, info = place.package("tinydep", source=NEEDS_TINY)
    spec = PackageSpec(name="shop", target="shop:app", version="1.0")
    settings = WorkerSettings()
    environment = await place.prepare(wheel, info)
    children = {}
    try:
        for name, python in {"prepared": environment.python, "own": None}.items():
            children[name] = await Child.spawn(python=python)
        inside = await children["prepared"].assign(spec, settings, gati_open_fabric.settings)
        outside = await children["own"].assign(spec, settings, gati_open_fabric.settings)
    finally:
        for child in children.values():
            await child.dismiss()
            child.forget()

    assert (inside.event, inside.routes, inside.error) == ("ready", ["POST /orders"], "")
    assert outside.pool != inside.pool, "the worker itself has another package of that name, or none"


async def test_a_child_in_an_environment_drains_like_any_other(gati_open_fabric: Fabric, place: Place) -> None:
    environment = await place.prepared()
    child = await Child.spawn(python=environment.python)
    try:
        spec = PackageSpec(name="shop", target="shop:app", version="1.0")
        assert (await child.assign(spec, WorkerSettings(), gati_open_fabric.settings)).event == "ready"
        assert f"{environment.path}/bin/python" in Path(f"/proc/{child.pid}/cmdline").read_text()
        await child.drain(within_s=10)
    finally:
        await child.dismiss()
        child.forget()

    assert await child.wait() == 0


# -- what a package needs ---------------------------------------------------------------------------


def test_requirements_that_the_worker_satisfies_are_not_asked_for() -> None:
    assert unmet("x 1", ["gati-core", "Gati.Core>=0.1", "anyio>=4", "httpx", "absent; extra == 'more'"]) == []


def test_requirements_that_it_does_not_satisfy_are_told_without_their_markers() -> None:
    assert unmet("x 1", ["absent>=1; python_version > '3'", "anyio<1", "httpx[socks]", "a @ https://x.y/a.whl"]) == [
        "absent>=1",
        "anyio<1",
        "httpx[socks]",
        "a @ https://x.y/a.whl",
    ]


def test_what_gati_stands_on_is_kept_in_its_ranges() -> None:
    ranges = own_ranges()

    assert "nats-py<2.17,>=2.16" in ranges
    assert any(each.startswith("idna") for each in ranges), "and what that stands on"
    assert not any(each.startswith("pytest") for each in ranges)
