#!/usr/bin/env python3
"""Four versions of a catalogue in one fabric, and a client of each: publishes them and prints what happens.

    .venv/bin/python examples/shop/versions/tour.py

Everything runs on 127.0.0.1, in a directory of its own that is removed at the end.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from gati_core.fabric import free_port

HERE = Path(__file__).resolve().parent
GATI = (sys.executable, "-m", "gati_cli")
START_WITHIN_S = 60.0
COUNTED_WITHIN_S = 30.0
CLIENTS = {
    "1.0": ("v1.0.0", {"name": "Mug", "price": "4.50"}),
    "1.1": ("v1.1.0", {"name": "Mug", "price": "4.50", "description": "blue"}),
    "2.0": ("v2.0.0", {"name": "Mug", "cents": 450, "description": "blue"}),
    "3.0": ("v3.0.0", {"name": "Mug", "cents": 600, "currency": "USD", "description": "blue"}),
}


class Tour:
    """Runs commands as a user would, and prints them with what they say."""

    def __init__(self, directory: Path, port: int, environ: dict[str, str]) -> None:
        self._directory = directory
        self._environ = environ
        self._written = 0
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False)

    def gati(self, *words: str, fails: bool = False) -> None:
        """One command; it must end as expected."""
        print(f"$ gati {shlex.join(words)}")
        command = [*GATI, *words]
        done = subprocess.run(
            command, cwd=self._directory, env=self._environ, capture_output=True, text=True, timeout=120, check=False
        )
        for line in (done.stdout + done.stderr).splitlines():
            print(line.rstrip(), flush=True)
        if (done.returncode != 0) is not fails:
            raise SystemExit(f"it ended with exit code {done.returncode}")

    def publish(self, version: str) -> None:
        """Build a version and publish it."""
        self.build(version)
        self.gati("publish", f"dist/gati_example_catalogue-{version}-py3-none-any.whl")

    def build(self, version: str) -> None:
        """Build a version's wheel."""
        command = [*GATI, "build", str(HERE / version), "-o", str(self._directory / "dist")]
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    def write(self, client: str) -> None:
        """A client puts the article as its version knows it."""
        tag, body = CLIENTS[client]
        self._written += 1
        self._told(client, self.client.put("/articles/mug", json=body, headers={"x-gati-version": tag}), body)

    def read(self, client: str) -> None:
        """A client reads the article."""
        tag, _ = CLIENTS[client]
        self._told(client, self.client.get("/articles/mug", headers={"x-gati-version": tag}))

    def wait_until_counted(self) -> None:
        """Routers write down every few seconds which versions were asked for."""
        command = [*GATI, "versions", "list", "put_article", "--json"]
        give_up_at = time.monotonic() + COUNTED_WITHIN_S
        while True:
            listed = subprocess.run(
                command, cwd=self._directory, env=self._environ, capture_output=True, timeout=60, check=True
            )
            if sum(row["requests"] for row in json.loads(listed.stdout)) == self._written:
                return
            if time.monotonic() > give_up_at:
                raise SystemExit(f"{self._written} requests were sent, and not all are counted:\n{listed.stdout!r}")
            time.sleep(0.5)

    def _told(self, client: str, answer: httpx.Response, body: object = None) -> None:
        sent = f" {json.dumps(body)}" if body is not None else ""
        print(f"  client {client}  {answer.request.method} /articles/mug{sent}")
        print(f"              {answer.status_code} {answer.text}")
        if answer.status_code != 200:
            raise SystemExit("it was to be 200")


@contextmanager
def running(directory: Path) -> Iterator[Tour]:
    """A fabric with one worker, that hosts what is published."""
    port = free_port()
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GATI_")},
        "SHOP_DB": f"sqlite:///{directory / 'shop.db'}",
        "GATI_WORKER_CACHE_DIR": str(directory / "cache"),
        "COLUMNS": "110",
    }
    hello = HERE.parents[1] / "hello"
    with (directory / "gati-dev.log").open("wb") as log:
        command = [*GATI, "dev", str(hello), "--port", str(port)]
        dev = subprocess.Popen(command, cwd=directory, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    tour = Tour(directory, port, environ)
    try:
        give_up_at = time.monotonic() + START_WITHIN_S
        while not _is_ready(tour.client):
            if dev.poll() is not None or time.monotonic() > give_up_at:
                raise SystemExit(f"gati dev does not start:\n{(directory / 'gati-dev.log').read_text()}")
            time.sleep(0.1)
        yield tour
    finally:
        tour.client.close()
        dev.send_signal(signal.SIGINT)
        dev.wait(timeout=60)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/hello/you").status_code == 200
    except httpx.TransportError:
        return False


def main() -> None:
    """The story; the README tells it with this output."""
    with tempfile.TemporaryDirectory(prefix="gati-shop-") as name, running(Path(name)) as tour:
        tour.publish("1.0.0")
        tour.write("1.0")

        print("\n# 1.1: an optional field is no break. The client of 1.0 does not notice.")
        tour.publish("1.1.0")
        tour.read("1.0")
        tour.write("1.1")

        print("\n# 2.0: `price` became `cents`. The database was migrated, and old clients are translated.")
        tour.publish("2.0.0")
        tour.gati("versions", "diff", "put_article", "v1.1.0", "v2.0.0", fails=True)
        tour.read("1.0")
        tour.read("1.1")
        tour.write("2.0")

        print("\n# 3.0: every price says its currency. Four clients, one article, and the code of 3.0 serves all.")
        tour.publish("3.0.0")
        for client in ("1.0", "1.1", "2.0", "3.0"):
            tour.write(client)
        for client in ("1.0", "1.1", "2.0", "3.0"):
            tour.read(client)

        print("\n# What there is now; and the end of a version.")
        tour.wait_until_counted()
        tour.gati("versions", "list", "put_article")
        tour.gati("versions", "deactivate", "put_article", "v1.0.0", "--reason", "no client asks for it")


if __name__ == "__main__":
    main()
