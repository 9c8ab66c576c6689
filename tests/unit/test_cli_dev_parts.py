"""The pure parts of `gati dev`: calls to paste, the port, the terminal's lines, the guard's state files."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gati_cli._errors import CliError
from gati_cli.dev._banner import changed_routes, curl_lines
from gati_cli.dev._lines import failure, parse_event, plain, short_path
from gati_cli.dev._options import DevOptions, check_paths, service_environ
from gati_cli.dev._ports import choose_port, claimable_port
from gati_cli.state import DevState, DirectoryLock, read_dev_state, remove_dev_state, write_dev_state

URL = "http://127.0.0.1:8080"


def route(method: str, path: str, app: str = "mine", handler: str = "h") -> Any:
    return SimpleNamespace(method=method, path=path, app=app, handler=handler, delivery="at_least_once")


# -- calls to paste ---------------------------------------------------------------------------


def test_the_shop_example_gets_an_order_with_a_body() -> None:
    lines = curl_lines([route("GET", "/orders/{id}", "shop"), route("POST", "/orders", "shop")], URL)

    assert lines == [
        f"""curl -i {URL}/orders -H 'content-type: application/json' -d '{{"sku":"ada-42","quantity":3}}'"""
    ]


def test_both_examples_get_one_line_each() -> None:
    lines = curl_lines([route("POST", "/orders", "shop"), route("GET", "/hello/{name}", "hello")], URL)

    assert [line.split()[2] for line in lines] == [f"{URL}/orders", f"{URL}/hello/world"]


def test_orders_of_another_app_are_not_taken_for_the_example() -> None:
    assert curl_lines([route("POST", "/orders", "mine")], URL) == [f"curl -i -X POST {URL}/orders"]


def test_reading_comes_before_writing_and_parameters_are_filled() -> None:
    routes = [route("POST", "/a"), route("GET", "/b/{x}/c/{y}"), route("DELETE", "/d")]

    assert curl_lines(routes, URL) == [f"curl -i {URL}/b/1/c/1", f"curl -i -X POST {URL}/a"]


def test_a_path_that_a_shell_would_read_differently_is_quoted() -> None:
    assert curl_lines([route("GET", "/a&b/(c)")], URL) == [f"curl -i '{URL}/a&b/(c)'"]


def test_no_routes_give_no_lines() -> None:
    assert curl_lines([], URL) == []


def test_a_reload_tells_what_came_went_and_moved() -> None:
    before = [route("GET", "/a"), route("GET", "/b"), route("GET", "/c", handler="old")]
    after = [route("GET", "/a"), route("POST", "/b"), route("GET", "/c", handler="new")]

    assert changed_routes(before, after) == ["- GET /b", "+ POST /b  mine:h", "~ GET /c  mine:new (was mine:old)"]


# -- the port ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "configured", "port"), [(9, "7", 9), (None, "7", 7), (None, "", 8080), (0, "7", 0)])
def test_the_option_goes_before_the_variable_and_the_default(option: int | None, configured: str, port: int) -> None:
    assert choose_port(option, configured) == port


@pytest.mark.parametrize("configured", ["http", "-1", "65536", "80.5", "٨٠"])
def test_a_variable_that_is_no_port_is_refused(configured: str) -> None:
    with pytest.raises(CliError, match="GATI_INGRESS_PORT") as refused:
        choose_port(None, configured)
    assert refused.value.exit_code == 2


def test_a_taken_port_is_refused_with_a_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        with pytest.raises(CliError, match=f"port {port} on 127.0.0.1 is taken.*--port") as refused:
            claimable_port("127.0.0.1", port)
    assert refused.value.exit_code == 2


def test_port_zero_becomes_a_free_port() -> None:
    port = claimable_port("127.0.0.1", 0)

    assert claimable_port("127.0.0.1", port) == port > 0


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(CliError, match=r"cannot listen on 192\.0\.2\.1"):
        claimable_port("192.0.2.1", 8080)


# -- options ----------------------------------------------------------------------------------


def options(directory: Path, *paths: str) -> DevOptions:
    return DevOptions(paths=tuple(map(Path, paths)), port=None, nats_url="", directory=directory)


def test_paths_are_taken_once_and_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()

    assert check_paths(options(tmp_path, "a", "./a", str(tmp_path / "a"))) == [(tmp_path / "a").resolve()]


def test_a_path_that_does_not_exist_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="nowhere does not exist") as refused:
        check_paths(options(tmp_path, "nowhere"))
    assert refused.value.exit_code == 2


def test_services_log_what_gati_dev_reads_whatever_the_caller_has_set() -> None:
    given = {"GATI_WORKER_LOG_LEVEL": "error", "GATI_ROUTER_LOG_LEVEL": "debug", "PYTHONUNBUFFERED": "1", "HOME": "/h"}

    environ = service_environ(given, nats_url="nats://x:1", namespace="ns", host="127.0.0.1", port=9)

    assert environ["GATI_WORKER_LOG_LEVEL"] == "info"
    assert environ["GATI_ROUTER_LOG_LEVEL"] == "debug"
    assert environ["GATI_WORKER_LOG_FORMAT"] == "json"
    assert (environ["GATI_NATS_URL"], environ["GATI_INGRESS_PORT"], environ["HOME"]) == ("nats://x:1", "9", "/h")
    assert "PYTHONUNBUFFERED" not in environ


# -- lines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["hello", "{not json", '{"a": 1}', '{"event": 1, "level": "info"}', "[1]", ""])
def test_what_a_handler_prints_is_no_event(text: str) -> None:
    assert parse_event(text) is None


def test_a_failed_package_is_shown_with_file_line_and_text(tmp_path: Path) -> None:
    event = parse_event(
        json.dumps(
            {
                "event": "package_failed",
                "level": "error",
                "app": "shop",
                "error": "SyntaxError: invalid syntax",
                "where": f"{tmp_path}/shop.py:12",
                "exception": "    def broken(:",
            }
        )
    )
    assert event is not None

    assert [line.text for line in failure(event, directory=tmp_path)] == [
        "shop could not be loaded: shop.py:12",
        "    def broken(:",
        "  SyntaxError: invalid syntax",
    ]


def test_good_news_is_not_shown_and_warnings_are() -> None:
    base = {"timestamp": "2026-01-02T03:04:05Z", "service": "router"}

    assert plain({"event": "catalogue_rebuilt", "level": "info", **base}) == []
    shown = plain({"event": "worker_lost", "level": "warning", "key": "w", **base})
    assert [line.text for line in shown] == ["03:04:05 router warning worker_lost  key=w"]


def test_a_stack_follows_its_line() -> None:
    event = {"event": "handler_failed", "level": "error", "exception": "Traceback:\n  File x\nValueError: no"}

    assert [line.text.strip() for line in plain(event)][1:] == ["Traceback:", "File x", "ValueError: no"]


def test_paths_outside_the_directory_stay_whole(tmp_path: Path) -> None:
    assert short_path("/elsewhere/a.py:3", tmp_path) == "/elsewhere/a.py:3"
    assert short_path("", tmp_path) == ""


# -- what lies in .gati -----------------------------------------------------------------------


def test_the_state_of_a_process_that_has_ended_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / ".gati").mkdir()
    write_dev_state(tmp_path, DevState("nats://a", "gati", URL, os.getpid()))
    assert read_dev_state(tmp_path) == DevState("nats://a", "gati", URL, os.getpid())

    write_dev_state(tmp_path, DevState("nats://a", "gati", URL, 2**22 + 1))
    assert read_dev_state(tmp_path) is None
    remove_dev_state(tmp_path)
    assert read_dev_state(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": "x"}', "\x00", '{"nats_url": 1, "other": 2}'])
def test_a_damaged_state_file_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / ".gati").mkdir()
    (tmp_path / ".gati" / "dev.json").write_text(text)

    assert read_dev_state(tmp_path) is None


def test_a_second_holder_of_a_directory_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    first = DirectoryLock.acquire(tmp_path, say=print)

    with pytest.raises(CliError, match=f"already runs in .* \\(process {os.getpid()}\\)") as refused:
        DirectoryLock.acquire(tmp_path, say=print)
    assert refused.value.exit_code == 2

    first.release()
    DirectoryLock.acquire(tmp_path, say=print).release()


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".gati").write_text("a file where a folder should be")

    with pytest.raises(CliError, match=r"cannot write .*\.gati"):
        DirectoryLock.acquire(tmp_path, say=print)
