"""A PostgreSQL server of the tests' own: Debian's, started on a free port; a container where there is none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg

from gati_core.fabric import free_port
from tests.helpers.docker import require_docker

PASSWORD = "p@ss/wörd:1"
"""Has everything that must be written percent-encoded in a URL."""
_START_WITHIN_S = 30.0


class Postgres:
    """A server that runs. Its databases are made and dropped one for each test."""

    def __init__(self, port: int) -> None:
        self.port = port

    def url(self, database: str, *, password: str = PASSWORD) -> str:
        """Where a database is, for the user who may do everything."""
        return f"postgresql://postgres:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """A connection that commits every statement."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            dbname=database,
            user="postgres",
            password=PASSWORD,
            autocommit=True,
            connect_timeout=5,
        )

    def create(self, database: str) -> None:
        """Make an empty database."""
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{database}"')

    def drop(self, database: str) -> None:
        """Remove one, whoever is connected to it."""
        with self.connect() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def wait(self, is_alive: subprocess.Popen[bytes] | None = None) -> None:
        """Return once it takes connections."""
        until = time.monotonic() + _START_WITHIN_S
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > until or (is_alive is not None and is_alive.poll() is not None):
                    raise
                time.sleep(0.05)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server, and stop it at the end. Skips the test where neither Debian's nor Docker is there."""
    programs = _programs()
    if programs is None:
        with _container() as server:
            yield server
        return
    place = Path(tempfile.mkdtemp(prefix="gati-postgres-"))
    try:
        with _debian(programs, place) as server:
            yield server
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _programs() -> Path | None:
    """The directory of the newest installed server."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    on_path = shutil.which("postgres")
    if not found and on_path is not None:
        return Path(on_path).parent
    return max(found, key=lambda each: [int(part) for part in re.findall(r"\d+", str(each))], default=None)


@contextmanager
def _debian(programs: Path, place: Path) -> Iterator[Postgres]:
    data, secret = place / "data", place / "password"
    secret.write_text(PASSWORD)
    identity: dict[str, object] = {}
    if os.geteuid() == 0:  # which the server refuses to run as
        identity = {"user": "postgres", "group": "postgres", "extra_groups": []}
        for path in (place, secret):
            shutil.chown(path, "postgres", "postgres")
    shared: dict[str, object] = {"cwd": place, "stdin": subprocess.DEVNULL, **identity}
    made = subprocess.run(
        [
            *(programs / "initdb", "--pgdata", data, "--username", "postgres", "--pwfile", secret, "--no-sync"),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        **shared,  # type: ignore[call-overload]
    )
    assert made.returncode == 0, made.stdout.decode()
    port = free_port()
    options = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "fsync": "off",
        "max_connections": "60",
        "shared_buffers": "16MB",
    }
    with (place / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                programs / "postgres",
                "-D",
                data,
                "-p",
                str(port),
                *(f"--{name}={value}" for name, value in options.items()),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            **shared,  # type: ignore[call-overload]
        )
    try:
        postgres = Postgres(port)
        try:
            postgres.wait(server)
        except psycopg.OperationalError as exc:
            raise AssertionError(f"{exc}\n{(place / 'log').read_text()}") from exc
        yield postgres
    finally:
        server.send_signal(2)  # fast: connections are ended, nothing is lost
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def _container() -> Iterator[Postgres]:
    require_docker()
    from testcontainers.core.container import DockerContainer

    container = DockerContainer("postgres:17-alpine").with_env("POSTGRES_PASSWORD", PASSWORD).with_exposed_ports(5432)
    with container:
        postgres = Postgres(int(container.get_exposed_port(5432)))
        postgres.wait()
        yield postgres
