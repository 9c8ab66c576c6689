"""`gati versions` and `gati rollout` against a real broker, as separate processes."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gati_core import App, GlobalContext, LocalContext, Request, Response
from gati_core.app.versioning import PackageVersions
from gati_core.fabric import Fabric, KvBucket
from gati_core.manifests import publishing_store
from gati_core.settings import FabricSettings
from gati_core.timescape import Rollout, Timeline, fabric_registry, fabric_usage, read_rollout, rollout_key
from tests.helpers.gati_dev import gati

HANDLER = "priced:add"
CHANGED = """
import msgspec
from gati_core import App, Request, Response

app = App("priced")


class Item(msgspec.Struct):
    sku: str
    currency: str


@app.post("/items", id="add")
async def add(req: Request[Item], res: Response[Item], gctx, lctx) -> None:
    res.json(req.body)
"""


class Versions:
    """A handler in three versions, and the command on their fabric."""

    def __init__(self, fabric: Fabric, directory: Path, environ: dict[str, str]) -> None:
        self.fabric = fabric
        self.registry = fabric_registry(fabric)
        self._directory = directory
        self._environ = environ

    async def publish(self, number: int, *fields: Any, app: str = "priced") -> str:
        """Register one version with these fields in its request; returns its TSV."""
        item = msgspec.defstruct("Item", fields)
        package = App(app)

        async def add(req: Request[Any], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
            res.json(number)

        add.__annotations__["req"] = Request[item]  # type: ignore[valid-type]
        package.post("/items", id="add")(add)
        versions = PackageVersions(package, self.registry, publishing_store(self.fabric))
        await versions.store_documents()
        (done,) = await versions.register(package=f"{number}.0", actor="test", tags=[f"v{number}.0"])
        return done.tsv

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return gati(*arguments, directory=self._directory, environ=self._environ)

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    async def timeline(self) -> Timeline:
        return await self.registry.timeline("priced", "add")

    async def rollout(self) -> Rollout:
        key = rollout_key("priced", "add")
        entry = await KvBucket(self.fabric.connection, self.fabric.subjects.config_bucket).get(key)
        assert entry is not None
        return read_rollout(key, entry.value)


@pytest.fixture
async def versions(gati_open_fabric: Fabric, gati_fabric_settings: FabricSettings, tmp_path: Path) -> Versions:
    settings = gati_fabric_settings
    environ = {"GATI_NATS_URL": settings.nats_url, "GATI_NAMESPACE": settings.namespace}
    return Versions(gati_open_fabric, tmp_path, environ)


@pytest.fixture
async def three(versions: Versions) -> list[str]:
    """The TSVs of three versions; the third breaks clients of the second."""
    return [
        await versions.publish(1, ("sku", str)),
        await versions.publish(2, ("sku", str), ("note", str, "")),
        await versions.publish(3, ("sku", int)),
    ]


async def test_without_versions_the_list_says_so(versions: Versions) -> None:
    assert versions.run("versions", "list").stdout == "no versions yet: no handler package has announced itself\n"
    assert "no handler has a version yet" in versions.run("versions", "show", "add", "newest").stderr


async def test_versions_are_listed_newest_first_with_tags_and_requests(versions: Versions, three: list[str]) -> None:
    await fabric_usage(versions.fabric).add("priced", "add", {three[1]: 7}, at_s=1_700_000_000)

    rows = versions.json("versions", "list", "add")
    table = versions.run("versions", "list").stdout.splitlines()

    assert [row["version"]["tsv"] for row in rows] == three[::-1]
    assert [row["tags"] for row in rows] == [["v3.0"], ["v2.0"], ["v1.0"]]
    assert [row["requests"] for row in rows] == [0, 7, 0]
    assert [row["is_newest"] for row in rows] == [True, False, False]
    assert table[0].split()[:3] == ["HANDLER", "VERSION", "STATUS"]
    assert "newest, breaks clients of the one before" in table[1]


async def test_a_version_is_shown_by_tag_semantic_version_and_tsv(versions: Versions, three: list[str]) -> None:
    by_tag, by_tsv = (versions.run("versions", "show", HANDLER, name) for name in ("v2.0", three[1]))

    assert by_tag.stdout == by_tsv.stdout
    for text in (f"{HANDLER} {three[1]}", "POST /items", "package         2.0", f"came after      {three[0]}"):
        assert text in by_tag.stdout
    assert "registered" in by_tag.stdout
    assert "by test" in by_tag.stdout


async def test_tags_are_given_and_taken_off_and_logged(versions: Versions, three: list[str]) -> None:
    given = versions.run("versions", "tag", "add", three[0], "stable")
    taken = versions.run("versions", "tag", "add", "newest", "stable")
    off = versions.run("versions", "untag", "add", "stable")
    missing = versions.run("versions", "untag", "add", "stable")

    assert given.stdout == f"stable is {three[0]}\n"
    assert taken.returncode == 1
    assert f"has the tag 'stable' on {three[0]}" in taken.stderr
    assert off.returncode == 0
    assert "there are: v1.0, v2.0, v3.0" in missing.stderr
    log = versions.run("versions", "log", "add").stdout.splitlines()
    assert f"tagged {three[0]} label=stable by user:" in log[-2]
    assert "untagged" in log[-1]


async def test_the_log_shows_what_is_asked_for(versions: Versions, three: list[str]) -> None:
    versions.run("versions", "tag", "add", three[0], "stable")
    changes = versions.json("versions", "log", "add")
    last = changes[-1]

    def told(*options: str) -> list[int]:
        return [each["n"] for each in versions.json("versions", "log", "add", *options)]

    assert told("--type", "tagged", "--actor", "user:") == [last["n"]]
    assert told("--type", "registered") == [each["n"] for each in changes if each["type"] == "registered"]
    assert told("--actor", "test", "--limit", "1") == [[each["n"] for each in changes if each["actor"] == "test"][-1]]
    assert last["n"] not in told("--until", str(last["at_ms"]))
    assert last["n"] in told("--since", str(last["at_ms"]))
    assert told("--since", "2100-01-01T00:00:00Z") == []
    everywhere = versions.json("versions", "log", "--type", "tagged", "--actor", "user:", "--limit", "1")
    assert everywhere == [last]

    none = versions.run("versions", "log", "add", "--until", "2020-01-01T00:00:00Z")
    assert none.stdout == "nothing of that kind was changed\n"
    for option, value, said in (
        ("--since", "yesterday", "--since: 'yesterday' is no time, for example 2026-12-31T00:00:00Z"),
        ("--until", "12345678901", "--until: '12345678901' has 11 digits"),
        ("--type", "changed", "--type: 'changed' is none of registered, transformers, tagged"),
    ):
        refused = versions.run("versions", "log", option, value)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr


async def test_two_versions_are_compared_and_a_breaking_change_is_the_exit_code(
    versions: Versions, three: list[str]
) -> None:
    breaking = versions.run("versions", "diff", "add", "v2.0")
    harmless = versions.run("versions", "diff", "add", "v1.0", "v2.0")

    assert breaking.returncode == 1
    assert f"{three[1]} → {three[2]}" in breaking.stdout
    assert "sku" in breaking.stdout
    assert harmless.returncode == 0
    assert "note" in harmless.stdout


async def test_a_version_ends_by_hand_and_comes_back(versions: Versions, three: list[str]) -> None:
    ended = versions.run("versions", "deactivate", "add", "v1.0", "--reason", "nobody uses it")
    newest = versions.run("versions", "deactivate", "add", "newest")
    listed = versions.json("versions", "list", "add")
    everything = versions.json("versions", "list", "add", "--all")

    assert ended.returncode == 0, ended.stderr
    assert newest.returncode == 1
    assert "use --force" in newest.stderr
    assert [row["version"]["tsv"] for row in listed] == [three[2], three[1]]
    assert [row["version"]["status"] for row in everything] == ["warm", "warm", "deactivated"]
    assert "nobody uses it" in versions.run("versions", "log").stdout

    assert versions.run("versions", "reactivate", "add", "v1.0").returncode == 0
    assert "is active" in versions.run("versions", "reactivate", "add", "v1.0").stderr
    assert (await versions.timeline()).require(three[0]).is_active


async def test_a_dry_run_of_the_sweep_changes_nothing_and_what_is_kept_is_spared(
    versions: Versions, three: list[str]
) -> None:
    assert versions.run("versions", "keep", "add", "v1.0").stdout == f"{three[0]} is kept\n"
    versions._environ["GATI_SWEEP_GRACE_S"] = "0"

    planned = versions.json("versions", "sweep", "--dry-run")
    untouched = await versions.timeline()
    done = versions.run("versions", "sweep")

    assert {each["tsv"]: each["status"] for each in planned} == {
        three[0]: "warm",
        three[1]: "deactivated",
        three[2]: "warm",
    }
    assert all(each.is_active for each in untouched.versions)
    assert "1 of 3 versions ended" in done.stdout
    assert "it is kept by hand" in done.stdout
    assert [each.is_active for each in (await versions.timeline()).versions] == [True, False, True]


async def test_rollouts_are_written_as_routers_read_them(versions: Versions, three: list[str]) -> None:
    canary = versions.run("rollout", "canary", "add", "newest", "--percent", "10")
    assert canary.returncode == 0, canary.stderr
    found = await versions.rollout()
    assert (found.strategy, found.version, found.baseline, found.percent) == ("canary", three[2], three[1], 10.0)
    assert "10 % of the callers get" in versions.run("rollout", "show", "add").stdout

    assert versions.run("rollout", "weighted", "add", "v1.0=20", f"{three[1]}=30").returncode == 0
    assert (await versions.rollout()).weights == {"v1.0": 20.0, three[1]: 30.0}
    assert "the other 50 % the newest" in versions.run("rollout", "show", "add").stdout

    assert versions.run("rollout", "pin", "add", "v1.0").returncode == 0
    assert (await versions.rollout()).version == "v1.0"

    assert versions.run("rollout", "all", "add").returncode == 0
    assert (await versions.rollout()).strategy == "all"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("versions", "show", "nope", "newest"), "there is no handler nope; there are priced:add"),
        (("versions", "show", "add", "v9"), "there are: v1.0, v2.0, v3.0"),
        (("versions", "show", "add", "tsv:x"), "tsv:x"),
        (("versions", "tag", "add", "newest", "no label"), "cannot be a tag"),
        (("versions", "tag", "add", "newest", "1700000000"), "would be read as a point in time"),
        (("rollout", "weighted", "add", "v1.0"), "is no share"),
        (("rollout", "weighted", "add", "v1.0=60", "v2.0=60"), "more than 100"),
        (("rollout", "canary", "add", "v1.0", "--percent", "5"), "--baseline"),
        (("rollout", "canary", "add", "v1.0", "--baseline", "v1.0", "--percent", "5"), "the same version"),
    ],
)
async def test_what_cannot_be_done_is_said_in_one_line(
    versions: Versions, three: list[str], arguments: tuple[str, ...], said: str
) -> None:
    before = await versions.timeline()

    done = versions.run(*arguments)

    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert await versions.timeline() == before


async def test_a_handler_of_two_apps_must_be_named_with_its_app(versions: Versions, three: list[str]) -> None:
    await versions.publish(1, ("sku", str), app="other")

    assert "other:add, priced:add" in versions.run("versions", "show", "add", "newest").stderr
    assert versions.run("versions", "show", "other:add", "newest").returncode == 0


def test_a_broker_without_this_fabric_is_told(gati_fabric_settings: FabricSettings, tmp_path: Path) -> None:
    environ = {"GATI_NATS_URL": gati_fabric_settings.nats_url, "GATI_NAMESPACE": "nobody"}

    done = gati("versions", "list", directory=tmp_path, environ=environ)

    assert done.returncode == 1
    assert "holds no fabric 'nobody'" in done.stderr


async def test_a_version_is_deprecated_with_the_time_at_which_it_may_vanish(
    versions: Versions, three: list[str]
) -> None:
    done = versions.run("versions", "deprecate", "add", "v1.0", "--sunset", "2030-01-31T00:00:00Z")

    assert done.stdout == f"{three[0]} is deprecated, and may vanish at 2030-01-31T00:00:00Z\n"
    found = (await versions.timeline()).require(three[0])
    assert found.sunset_s == datetime(2030, 1, 31, tzinfo=UTC).timestamp()
    assert 0 < found.deprecated_s < found.sunset_s

    assert versions.run("versions", "deprecate", "add", "v1.0", "--undo").returncode == 0
    assert (await versions.timeline()).require(three[0]).deprecated_s == 0
    assert "is no time" in versions.run("versions", "deprecate", "add", "v1.0", "--sunset", "soon").stderr


async def test_a_stub_has_a_function_and_a_todo_for_each_change_and_is_not_written_over(
    versions: Versions, three: list[str], tmp_path: Path
) -> None:
    (tmp_path / "priced.py").write_text(CHANGED)

    done = versions.run("versions", "stub", "add", "priced.py", "--from", "v1.0", "-o", "stub.py")
    text = (tmp_path / "stub.py").read_text()
    again = versions.run("versions", "stub", "add", "priced.py", "--from", "v1.0", "-o", "stub.py")

    assert done.returncode == 0, done.stderr
    assert f'@app.transformer("add", from_version="{three[0]}")' in text
    assert "from priced import app" in text
    assert "# TODO add /request/body/currency: required field added: string" in text
    assert text.count("raise NotImplementedError") == text.count("@staticmethod") > 0
    compile(text, "stub.py", "exec")
    assert again.returncode == 2
    assert "it is not written over" in again.stderr
