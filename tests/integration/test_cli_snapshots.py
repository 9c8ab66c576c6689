"""`gati versions snapshot` against a real broker, as separate processes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gati_core.fabric import Fabric, KvBucket
from gati_core.settings import FabricSettings
from gati_core.timescape import (
    Timeline,
    VersionRecord,
    fabric_registry,
    fabric_snapshots,
    timeline_key,
    with_tag,
    with_version,
)
from tests.helpers.gati_dev import GATI, clean_environ, gati

DAY_MS = 86_400_000
NOT_THERE = "snap:1-light-00000000"


class Snapshots:
    """A fabric with a handler, and the command on it."""

    def __init__(self, fabric: Fabric, directory: Path, environ: dict[str, str]) -> None:
        self.fabric = fabric
        self.registry = fabric_registry(fabric)
        self.directory = directory
        self.environ = environ

    async def publish(self, count: int = 1) -> str:
        """Register new versions; returns the TSV of the last one."""

        def edit(it: Timeline) -> Timeline:
            for _ in range(count):
                record = VersionRecord(tsv="", fingerprint=f"f{it.registered}", methods=["GET"], path="/")
                it = with_version(it, record, now_ms=1_700_000_000_000, actor="user:ann")
            return it

        return (await self.registry.change("shop", "order", edit)).versions[-1].tsv

    async def tag(self, tsv: str, label: str) -> None:
        await self.registry.change("shop", "order", lambda it: with_tag(it, tsv, label, now_ms=1, actor="user:ann"))

    async def lose(self) -> None:
        bucket = KvBucket(self.fabric.connection, self.fabric.subjects.timescape_bucket)
        await bucket.delete(timeline_key("shop", "order"))

    async def timeline(self) -> Timeline:
        return await self.registry.timeline("shop", "order")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return gati("versions", "snapshot", *arguments, directory=self.directory, environ=self.environ)

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
async def snapshots(gati_open_fabric: Fabric, gati_fabric_settings: FabricSettings, tmp_path: Path) -> Snapshots:
    settings = gati_fabric_settings
    environ = {"GATI_NATS_URL": settings.nats_url, "GATI_NAMESPACE": settings.namespace}
    return Snapshots(gati_open_fabric, tmp_path, environ)


async def test_one_is_taken_listed_and_shown(snapshots: Snapshots) -> None:
    assert snapshots.run("list").stdout.startswith("no snapshots yet")
    tsv = await snapshots.publish(3)
    await snapshots.tag(tsv, "stable")

    made = snapshots.json("create")
    heavy = snapshots.run("create", "--heavy")
    listed = snapshots.json("list")
    table = snapshots.run("list").stdout.splitlines()
    shown = snapshots.run("show", made["id"])
    document = snapshots.json("show", "latest")

    assert (made["type"], made["counts"]["versions"]) == ("light", 3)
    assert made["created_by"].startswith("user:")
    assert "3 versions of 1 handlers" in heavy.stdout
    assert [each["type"] for each in listed["snapshots"]] == ["heavy", "light"]
    assert listed["snapshots"][1] == made
    assert (listed["stats"]["light"], listed["stats"]["heavy"]) == (1, 1)
    assert table[0].split()[:3] == ["SNAPSHOT", "TYPE", "TAKEN"]
    assert table[-1].startswith("1 light and 1 heavy, ")
    assert made["id"] in shown.stdout
    assert [line.split() for line in shown.stdout.splitlines()][-1] == ["shop:order", "3", "3", "0", tsv, "stable"]
    assert document["type"] == "heavy"
    assert document["timelines"][0]["versions"][2]["tsv"] == tsv


async def test_a_restore_says_what_it_changes_and_changes_it_only_with_yes(snapshots: Snapshots) -> None:
    await snapshots.tag(await snapshots.publish(2), "stable")
    before = await snapshots.timeline()
    made = snapshots.json("create")
    await snapshots.lose()

    tried = snapshots.run("restore", made["id"], "--dry-run")
    refused = snapshots.run("restore", made["id"])
    untouched = await snapshots.timeline()
    done = snapshots.run("restore", made["id"], "--yes")
    again = snapshots.run("restore", "latest")

    assert tried.returncode == 0
    assert refused.returncode == 2
    assert "nothing was changed: to change 1 document without being asked, add --yes" in refused.stderr
    assert untouched.versions == []
    for each in (tried, refused, done):
        assert f"timescape: {timeline_key('shop', 'order')}" in each.stdout
        assert "comes back" in each.stdout
    assert done.stdout.endswith(f"restored {made['id']}: 1 document changed\n")
    after = await snapshots.timeline()
    assert (after.versions, after.tags) == (before.versions, before.tags)
    assert after.changes[-1].actor.startswith("user:")
    assert again.returncode == 0
    assert again.stdout.endswith("all that it would bring back is there\n")
    log = gati("versions", "log", directory=snapshots.directory, environ=snapshots.environ).stdout
    assert f"restored {made['id']}" in log.splitlines()[-1]


@pytest.mark.parametrize(("answer", "is_restored"), [("y", True), ("n", False)])
async def test_on_a_terminal_it_asks(snapshots: Snapshots, answer: str, is_restored: bool) -> None:
    await snapshots.publish(2)
    made = snapshots.json("create")
    await snapshots.lose()

    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        done = subprocess.run(
            [*GATI, "versions", "snapshot", "restore", made["id"]],
            cwd=snapshots.directory,
            env=clean_environ(snapshots.environ),
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)

    assert "change 1 document? [y/N]" in done.stderr
    assert done.returncode == (0 if is_restored else 1)
    assert bool((await snapshots.timeline()).versions) == is_restored


async def test_versions_registered_since_are_given_up_only_with_force(snapshots: Snapshots) -> None:
    await snapshots.publish()
    made = snapshots.json("create")
    newer = await snapshots.publish()

    refused = snapshots.run("restore", made["id"], "--yes")
    planned = snapshots.json("restore", made["id"], "--dry-run")
    kept = await snapshots.timeline()
    forced = snapshots.json("restore", made["id"], "--yes", "--force")

    assert refused.returncode == 1
    assert f"{newer} would be lost; nothing was changed (use --force to give them up)" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert planned["lost"] == {"shop:order": [newer]}
    assert planned["is_dry_run"] is True
    assert kept.versions[-1].tsv == newer
    assert [each["action"] for each in forced["steps"]] == ["replace"]
    assert len((await snapshots.timeline()).versions) == 1


async def test_one_goes_through_a_file(snapshots: Snapshots) -> None:
    await snapshots.publish(2)
    made = snapshots.json("create")
    name = made["id"].replace(":", "_") + ".json.gz"

    out = snapshots.run("export", "latest")
    again = snapshots.run("export", "latest")
    elsewhere = snapshots.run("export", made["id"], "-o", "copy.gz")
    deleted = snapshots.run("delete", made["id"])
    back = snapshots.json("import", "copy.gz")

    assert out.stdout == f"{snapshots.directory / name}: {made['size_bytes']} bytes\n"
    assert again.returncode == 1
    assert "it is not written over" in again.stderr
    assert elsewhere.returncode == 0
    assert deleted.stdout == f"{made['id']} is deleted\n"
    assert back == made
    assert (snapshots.directory / "copy.gz").read_bytes() == (snapshots.directory / name).read_bytes()


async def test_old_ones_are_pruned_as_routers_do(snapshots: Snapshots) -> None:
    await snapshots.publish()
    now_ms = snapshots.registry.now_ms()
    for age_days in (101, 100, 0):
        taken_ms = now_ms - age_days * DAY_MS
        await fabric_snapshots(snapshots.fabric, now_ms=lambda it=taken_ms: it).create("light", by="test")  # type: ignore[misc]

    planned = snapshots.json("prune", "--dry-run")
    snapshots.environ["GATI_SNAPSHOT_RETENTION_S"] = str(100.5 * 86_400)
    gone = snapshots.run("prune")
    nothing = snapshots.run("prune")

    assert len(planned) == 2
    assert gone.stdout.count("is deleted") == 1
    assert nothing.stdout == "no snapshot is older than 100.5 days and not the newest of its type\n"
    assert len(snapshots.json("list")["snapshots"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "latest"), "there is no snapshot yet: `gati versions snapshot create` takes one"),
        (("show", NOT_THERE), f"there is no snapshot '{NOT_THERE}'; there is none yet"),
        (("restore", NOT_THERE, "--yes"), f"there is no snapshot '{NOT_THERE}'"),
        (("delete", "x"), "there is no snapshot 'x'"),
        (("export", NOT_THERE), "there is no snapshot"),
        (("import", "none.gz"), "none.gz: No such file or directory"),
        (("import", "broken.gz"), "broken.gz is no snapshot: it is not gzip'ed"),
    ],
)
async def test_what_cannot_be_done_is_said_in_one_line(
    snapshots: Snapshots, arguments: tuple[str, ...], said: str
) -> None:
    (snapshots.directory / "broken.gz").write_text("no gzip")

    done = snapshots.run(*arguments)

    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_setting_that_is_none_ends_prune(gati_fabric_settings: FabricSettings, tmp_path: Path) -> None:
    environ = {"GATI_NATS_URL": gati_fabric_settings.nats_url, "GATI_SNAPSHOT_RETENTION": "1"}

    done = gati("versions", "snapshot", "prune", directory=tmp_path, environ=environ)

    assert done.returncode != 0
    assert "GATI_SNAPSHOT_RETENTION is not a setting" in done.stderr


def test_a_broker_without_this_fabric_is_told(gati_fabric_settings: FabricSettings, tmp_path: Path) -> None:
    environ = {"GATI_NATS_URL": gati_fabric_settings.nats_url, "GATI_NAMESPACE": "nobody"}

    done = gati("versions", "snapshot", "list", directory=tmp_path, environ=environ)

    assert done.returncode == 1
    assert "holds no fabric 'nobody'" in done.stderr
