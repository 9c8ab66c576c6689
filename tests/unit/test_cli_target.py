"""Which broker a command talks to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gati_cli.state import DevState, write_dev_state
from gati_cli.target import find_target, reachable_host, settings_for, without_password


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """A directory in which a `gati dev` runs; its process is this one."""
    (tmp_path / ".gati").mkdir()
    write_dev_state(tmp_path, DevState("nats://dev:1", "mine", "http://127.0.0.1:99", os.getpid()))
    return tmp_path


def test_without_anything_it_is_the_default(tmp_path: Path) -> None:
    target = find_target("", {}, tmp_path)

    assert (target.nats_url, target.namespace) == ("nats://127.0.0.1:4222", "gati")
    assert target.ingress_url == "http://127.0.0.1:8080"


def test_a_running_gati_dev_goes_before_the_default(running: Path) -> None:
    target = find_target("", {}, running)

    assert (target.nats_url, target.namespace, target.ingress_url) == ("nats://dev:1", "mine", "http://127.0.0.1:99")


def test_the_variable_goes_before_a_running_gati_dev(running: Path) -> None:
    target = find_target("", {"GATI_NATS_URL": "nats://env:1"}, running)

    assert (target.nats_url, target.namespace, target.origin) == ("nats://env:1", "gati", "GATI_NATS_URL")


def test_the_option_goes_before_everything(running: Path) -> None:
    target = find_target("nats://option:1", {"GATI_NATS_URL": "nats://env:1", "GATI_NAMESPACE": "other"}, running)

    assert (target.nats_url, target.namespace, target.origin) == ("nats://option:1", "other", "--nats-url")


def test_the_ingress_is_found_by_its_own_variables(tmp_path: Path) -> None:
    target = find_target("", {"GATI_INGRESS_HOST": "0.0.0.0", "GATI_INGRESS_PORT": "81"}, tmp_path)

    assert target.ingress_url == "http://127.0.0.1:81"
    assert reachable_host("::1") == "[::1]"


def test_settings_reach_the_target_and_do_not_wait(tmp_path: Path) -> None:
    target = find_target("nats://a:1,nats://b:1", {"GATI_NAMESPACE": "ns", "GATI_FABRIC_REPLICAS": "3"}, tmp_path)

    settings = settings_for(target)

    assert (settings.nats_url, settings.namespace, settings.replicas) == ("nats://a:1,nats://b:1", "ns", 3)
    assert settings.connect_wait_s <= 1
    assert settings.topology == "bind"


def test_a_password_is_never_shown() -> None:
    assert "secret" not in without_password("nats://user:secret@a:1,nats://user:secret@b:2")
