"""Wheels and projects for tests: made by hand, so that each can be broken in its own way."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ENTRY_POINTS = "[gati.apps]\nshop = shop:app\n"
APP = '''
import msgspec
from gati_core import App, Request, Response

app = App("shop")


class Order(msgspec.Struct):
    sku: str
    quantity: int = 1


@app.post("/orders", roles=["buyer"], timeout_s=5)
async def order(req: Request[Order], res: Response[Order], gctx, lctx) -> None:
    """Keep an order."""
    res.json(req.body)
'''


def write_wheel(
    directory: Path,
    name: str,
    version: str = "1.0",
    *,
    files: Mapping[str, str | bytes],
    requires: Sequence[str] = (),
    info: Mapping[str, str | bytes] | None = None,
) -> Path:
    """A wheel with a RECORD that is right.

    Args:
        files: by their paths.
        info: more files of the `.dist-info` directory, or others instead.
    """
    dist_info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    described: dict[str, str | bytes] = {
        "METADATA": metadata + "".join(f"Requires-Dist: {each}\n" for each in requires),
        "WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **(info or {}),
    }
    contents = {**files, **{f"{dist_info}/{each}": text for each, text in described.items()}}
    path = directory / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    write_zip(path, {each: text.encode() if isinstance(text, str) else text for each, text in contents.items()})
    return path


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    """An archive of these files, with a RECORD that lists them; the same files make the same bytes."""
    (dist_info,) = {name.partition("/")[0] for name in files if ".dist-info/" in name}
    rows = [[name, f"sha256={_hash(content)}", str(len(content))] for name, content in files.items()]
    record = io.StringIO()
    csv.writer(record, lineterminator="\n").writerows([*rows, [f"{dist_info}/RECORD", "", ""]])
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
        archive.writestr(zipfile.ZipInfo(f"{dist_info}/RECORD"), record.getvalue())


def read_zip(path: Path) -> dict[str, bytes]:
    """All files of an archive but RECORD."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith(".dist-info/RECORD")}


def write_project(
    directory: Path,
    *,
    name: str = "shop-package",
    version: str = "1.2.0",
    source: str = APP,
    requires: Sequence[str] = ("gati-core",),
    backend: str = "hatchling",
) -> Path:
    """A project whose wheel holds one app, `shop`."""
    builds = {
        "hatchling": ("hatchling>=1.27", "hatchling.build"),
        "setuptools": ("setuptools", "setuptools.build_meta"),
    }
    requirement, build_backend = builds[backend]
    hatch = '\n[tool.hatch.build.targets.wheel]\npackages = ["src/shop"]\n' if backend == "hatchling" else ""
    listed = ", ".join(f'"{each}"' for each in requires)
    (directory / "src" / "shop").mkdir(parents=True, exist_ok=True)
    (directory / "src" / "shop" / "__init__.py").write_text(source)
    (directory / "pyproject.toml").write_text(
        f'[build-system]\nrequires = ["{requirement}"]\nbuild-backend = "{build_backend}"\n\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\nrequires-python = ">=3.11"\n'
        f'dependencies = [{listed}]\n\n[project.entry-points."gati.apps"]\nshop = "shop:app"\n{hatch}'
    )
    return directory


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
