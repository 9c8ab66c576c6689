"""The life of `gati dev`: starting, refusing to start, surviving a crash, and leaving nothing behind."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.helpers.gati_dev import GatiDev, gati, handler_source, running_dev
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.timeout(120)

READY_WITHIN_S = 40.0
"""A start takes two to three seconds; tests share their machine."""
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A directory with a package of one file."""
    (tmp_path / "mine.py").write_text(handler_source("hello"))
    return tmp_path


async def is_up(dev: GatiDev) -> None:
    await eventually(dev.is_ready, within_s=READY_WITHIN_S, every_s=0.1)


def curl_line(output: str) -> list[str]:
    return next(shlex.split(line) for line in output.splitlines() if line.strip().startswith("curl "))


async def test_it_prints_routes_and_calls_that_work_and_leaves_nothing_behind(package: Path) -> None:
    with running_dev(package, "mine.py") as dev:
        await is_up(dev)

        assert "/mine/{name}" in dev.output()
        called = subprocess.run(curl_line(dev.output()), capture_output=True, text=True, timeout=15, check=True)
        assert " 200 " in called.stdout.splitlines()[0]
        started = dev.processes()
        assert len(started) >= 6, started

        code, took_s = dev.stop(signal.SIGINT)

        assert code == 0
        assert took_s < 5
        assert dev.processes() == {}
        assert not (package / ".gati" / "dev.json").exists()
        assert "Traceback" not in dev.output()


async def test_the_examples_answer_the_calls_printed_for_them(tmp_path: Path) -> None:
    with running_dev(tmp_path, str(EXAMPLES / "hello"), str(EXAMPLES / "shop")) as dev:
        await is_up(dev)
        lines = [shlex.split(line) for line in dev.output().splitlines() if line.strip().startswith("curl ")]

        answers = [
            subprocess.run(line, capture_output=True, text=True, timeout=15, check=True).stdout for line in lines
        ]

        assert [answer.split()[1] for answer in answers] == ["201", "200"]
        assert '{"message":"Hello, world!"}' in answers[1]
        assert dev.stop(signal.SIGTERM)[0] == 0


async def test_a_directory_and_a_project_are_understood_together(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text(handler_source("a directory", app="pack", path="/pack"))
    source = tmp_path / "project" / "src" / "thing"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text(handler_source("a project", app="thing", path="/thing"))
    (tmp_path / "project" / "pyproject.toml").write_text(
        '[project]\nname = "thing"\nversion = "1.2.3"\n\n[project.entry-points."gati.apps"]\nthing = "thing:app"\n'
    )
    with running_dev(tmp_path, "pack", "project") as dev:
        await is_up(dev)

        assert dev.get("/pack").body == "a directory"
        assert dev.get("/thing").body == "a project"


async def test_a_package_that_cannot_be_loaded_is_named_and_loads_once_it_is_fixed(package: Path) -> None:
    (package / "mine.py").write_text("def broken(:\n")
    with running_dev(package, "mine.py") as dev:
        await is_up(dev)
        assert "mine could not be loaded: mine.py:1" in dev.output()
        assert "fix mine and save" in dev.output()

        (package / "mine.py").write_text(handler_source("fixed"))

        await eventually(lambda: dev.get("/mine/x").body == "fixed", within_s=10)


async def test_a_taken_port_is_refused_before_anything_starts(package: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])

        refused = gati("dev", "mine.py", "--port", port, directory=package)

    assert refused.returncode == 2
    assert f"port {port} on 127.0.0.1 is taken" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (package / ".gati" / "nats").exists()


async def test_a_directory_without_a_package_ends_the_start_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    refused = gati("dev", "empty", "--port", "0", directory=tmp_path)

    assert refused.returncode == 2
    assert "holds no handler package" in refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr


async def test_a_second_one_in_the_same_directory_is_refused(package: Path) -> None:
    with running_dev(package, "mine.py") as dev:
        await is_up(dev)

        second = gati("dev", "mine.py", "--port", "0", directory=package)

        assert second.returncode == 2
        assert f"already runs in {package} on {dev.url}" in second.stderr
        assert dev.get("/mine/x").status == 200


async def test_after_a_kill_nothing_stays_and_the_next_one_starts_on_the_same_state(package: Path) -> None:
    with running_dev(package, "mine.py") as dev:
        await is_up(dev)
        dev.stop(signal.SIGKILL)

        # At once: the second one has to wait for what the first one left.
        with running_dev(package, "mine.py") as again:
            await is_up(again)

            assert again.get("/mine/x").body == "hello"
            assert not [command for command in again.processes().values() if str(dev.port) in command]
            assert again.stop()[0] == 0
        await eventually(lambda: dev.processes() == {}, within_s=10)


async def test_a_killed_service_is_started_again_once_and_said_so(package: Path) -> None:
    with running_dev(package, "mine.py") as dev:
        await is_up(dev)
        killed = dev.pid_of("gati_router")

        os.kill(killed, signal.SIGKILL)

        await eventually(lambda: "the router ended unexpectedly (killed by SIGKILL)" in dev.output(), within_s=5)
        await eventually(lambda: any("gati_router" in each for each in dev.processes().values()), within_s=10)
        await eventually(lambda: dev.get("/mine/x").status == 200, within_s=15)

        os.kill(dev.pid_of("gati_router"), signal.SIGKILL)

        assert dev.process.wait(10) == 1
        assert "the router ended again" in dev.output()
        assert dev.processes() == {}


async def test_a_killed_worker_takes_its_children_along_and_a_new_one_serves(package: Path) -> None:
    with running_dev(package, "mine.py") as dev:
        await is_up(dev)

        os.kill(dev.pid_of("gati_worker --source"), signal.SIGKILL)

        await eventually(lambda: "the worker ended unexpectedly" in dev.output(), within_s=5)
        await eventually(lambda: dev.get("/mine/x").status == 200, within_s=20)
        assert dev.stop()[0] == 0
        assert dev.processes() == {}


async def test_a_killed_broker_is_started_again_and_traffic_flows(package: Path) -> None:
    with running_dev(package, "mine.py") as dev:
        await is_up(dev)

        os.kill(dev.pid_of("nats-server"), signal.SIGKILL)

        await eventually(lambda: "the broker ended unexpectedly" in dev.output(), within_s=5)
        await eventually(lambda: dev.get("/mine/x").status == 200, within_s=15)
        first = dev.pid_of("nats-server")
        # The new broker is watched as well, and a healthy one is not taken for a dead one: it is looked
        # at four times a second, and these answers take longer than that.
        for _ in range(3):
            assert dev.get("/mine/nap").status == 200
        assert (dev.pid_of("nats-server"), dev.output().count("ended unexpectedly")) == (first, 1)
        assert dev.stop()[0] == 0
        assert dev.processes() == {}


async def test_a_stop_while_starting_leaves_nothing(package: Path) -> None:
    with running_dev(package, "mine.py") as dev:
        await eventually(lambda: "waiting for" in dev.output(), within_s=10)

        code, took_s = dev.stop(signal.SIGTERM)

        assert code == 0
        assert took_s < 5
        assert dev.processes() == {}


async def test_a_request_that_does_not_end_cannot_delay_the_stop(package: Path) -> None:
    with running_dev(package, "mine.py") as dev:
        await is_up(dev)
        with socket.create_connection(("127.0.0.1", dev.port)) as client:
            client.sendall(b"GET /mine/slow HTTP/1.1\r\nhost: x\r\n\r\n")
            await eventually(lambda: "slow request began" in dev.output(), within_s=5)

            code, took_s = dev.stop(signal.SIGINT)

            assert client.recv(4096).startswith(b"HTTP/1.1 ")
        assert code == 0
        assert took_s < 5
        assert dev.processes() == {}


async def test_a_broker_of_ones_own_is_used_and_left_alone(package: Path, own_broker: object) -> None:
    url = own_broker.url  # type: ignore[attr-defined]
    with running_dev(package, "mine.py", "--nats-url", url) as dev:
        await is_up(dev)

        assert dev.get("/mine/x").status == 200
        assert not any("nats-server" in command for command in dev.processes().values())
        assert dev.stop()[0] == 0
    assert own_broker.is_running  # type: ignore[attr-defined]


async def test_a_broker_that_does_not_answer_ends_the_start_with_one_line(package: Path) -> None:
    refused = gati("dev", "mine.py", "--port", "0", "--nats-url", "nats://127.0.0.1:1", directory=package)

    assert refused.returncode == 1
    assert "no broker answers at nats://127.0.0.1:1" in refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr
