"""`gati check`, `gati diff` and `gati generate`, as separate processes on packages of one file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers.gati_dev import GATI, clean_environ, gati
from tests.helpers.waiting import eventually

SOURCE = '''
from typing import Annotated

import msgspec
from msgspec import Meta

from gati_core import App, Request, Response

app = App("crates")


class Crate(msgspec.Struct):
    label: Annotated[str, Meta(max_length=40)]
    weight: float = 1.0


@app.post("/crates", roles=["packer"])
async def pack(req: Request[Crate], res: Response[Crate], gctx, lctx) -> None:
    """Keep one."""
    res.json(req.body)
'''


@pytest.fixture
def crates(tmp_path: Path) -> Path:
    path = tmp_path / "crates.py"
    path.write_text(SOURCE)
    return path


def test_check_shows_routes_types_and_policies(crates: Path, tmp_path: Path) -> None:
    shown = gati("check", str(crates), directory=tmp_path)
    report = json.loads(gati("check", str(crates), "--json", directory=tmp_path).stdout)

    assert shown.returncode == 0, shown.stderr
    assert "/crates" in shown.stdout
    assert "packer" in shown.stdout
    assert [handler["id"] for handler in report[0]["handlers"]] == ["pack"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("weight: float", "weight: complex"), "body.weight: the type complex cannot be expressed"),
        (("async def pack(", "async def pack((("), "SyntaxError"),
        (("import msgspec\n", "import msgspec\nimport no_such_thing\n"), "no_such_thing"),
        (("gctx, lctx)", "gctx)"), "pack"),
    ],
    ids=["a type", "syntax", "an import", "a signature"],
)
def test_check_says_what_is_wrong_and_where_and_fails(
    crates: Path, tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    crates.write_text(SOURCE.replace(*change))

    checked = gati("check", str(crates), directory=tmp_path)

    assert checked.returncode == 1
    assert says in checked.stdout + checked.stderr
    assert "crates.py" in checked.stdout + checked.stderr


def test_check_does_not_let_a_package_change_files(crates: Path, tmp_path: Path) -> None:
    target = tmp_path / "written"
    crates.write_text(SOURCE + f"open({str(target)!r}, 'w').close()\n")

    checked = gati("check", str(crates), directory=tmp_path)

    assert checked.returncode == 1
    assert str(target) in checked.stdout + checked.stderr
    assert not target.exists()


def test_diff_names_what_breaks_clients_and_fails(crates: Path, tmp_path: Path) -> None:
    saved = tmp_path / "old.json"
    gati("check", str(crates), "--output", str(saved), directory=tmp_path)
    crates.write_text(SOURCE.replace("weight: float = 1.0", "weight: float"))

    broken = gati("diff", str(saved), str(crates), "--no-colour", directory=tmp_path)
    as_json = json.loads(gati("diff", str(saved), str(crates), "--json", directory=tmp_path).stdout)

    assert broken.returncode == 1
    assert "weight" in broken.stdout
    assert [(change["handler"], change["is_breaking"]) for change in as_json] == [("pack", True)]


def test_diff_of_what_breaks_nobody_succeeds(crates: Path, tmp_path: Path) -> None:
    wider = tmp_path / "wider.py"
    wider.write_text(SOURCE.replace("max_length=40", "max_length=80").replace("Response[Crate]", "Response[Crate]"))

    same = gati("diff", str(crates), str(crates), directory=tmp_path)

    assert same.returncode == 0, same.stdout
    assert "crates" in gati("diff", str(crates), str(wider), directory=tmp_path).stdout


def test_generate_writes_the_same_twice_and_removes_what_is_no_longer_wanted(crates: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def contents() -> dict[str, str]:
        return {str(each.relative_to(out)): each.read_text() for each in out.rglob("*") if each.is_file()}

    first = gati("generate", "all", str(crates), "--output", str(out), directory=tmp_path)
    assert first.returncode == 0, first.stderr
    before = contents()
    assert {"openapi/openapi.json", "types/crates.ts", "schemas/crates/Crate.json"} <= set(before)
    assert gati("generate", "all", str(crates), "-o", str(out), "--check", directory=tmp_path).returncode == 0

    gati("generate", "all", str(crates), "-o", str(out), directory=tmp_path)
    assert contents() == before

    crates.write_text(SOURCE.replace("Crate", "Box"))
    stale = gati("generate", "all", str(crates), "-o", str(out), "--check", directory=tmp_path)
    assert stale.returncode == 1
    assert "schemas/crates/Box.json" in stale.stdout + stale.stderr
    assert contents() == before, "--check writes nothing"

    gati("generate", "all", str(crates), "-o", str(out), directory=tmp_path)
    assert "schemas/crates/Crate.json" not in contents()
    assert "schemas/crates/Box.json" in contents()


def test_generate_of_an_unknown_kind_lists_the_kinds(crates: Path, tmp_path: Path) -> None:
    refused = gati("generate", "cobol", str(crates), directory=tmp_path)

    assert refused.returncode != 0
    assert "openapi" in refused.stderr


async def test_generate_writes_again_when_a_source_changes(crates: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    log = tmp_path / "watch.log"
    with log.open("w") as output:
        watching = subprocess.Popen(
            [*GATI, "generate", "schemas", str(crates), "-o", str(out), "--watch"],
            cwd=tmp_path,
            env=clean_environ(),
            stdout=output,
            stderr=output,
        )
    try:
        await eventually((out / "schemas" / "crates" / "Crate.json").exists, within_s=20)
        crates.write_text(SOURCE.replace("Crate", "Box"))
        await eventually((out / "schemas" / "crates" / "Box.json").exists, within_s=20)

        crates.write_text("this is no python")
        await eventually(lambda: "SyntaxError" in log.read_text(), within_s=20)
        crates.write_text(SOURCE)
        await eventually((out / "schemas" / "crates" / "Crate.json").exists, within_s=20)
    finally:
        os.kill(watching.pid, signal.SIGINT)
        watching.wait(10)
