"""What a wheel is read as, and what is said of one that is broken in any way."""

from __future__ import annotations

import hashlib
import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from gati_core import App, Request, Response
from gati_core.app.inspection import PackageReport, report_on
from gati_core.app.wheels import WheelInfo, check_report, is_safe, read_wheel
from gati_core.errors import PackageError, PermanentError
from gati_core.manifests import HandlerManifest, manifest_hash
from tests.helpers.wheels import APP, ENTRY_POINTS, read_zip, write_wheel, write_zip

INFO = "shop_package-1.0.dist-info"


class Order(msgspec.Struct):
    sku: str
    quantity: int = 1


class BigOrder(msgspec.Struct):
    sku: Annotated[str, Meta(max_length=9)]


def reported(app: App) -> PackageReport:
    return report_on(app, version="1.0", target="shop:app")


def shop(*, path: str = "/orders", body: type[Any] = Order, name: str = "shop", other: bool = False) -> App:
    app = App(name)

    async def order(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...

    order.__annotations__ = {"req": Request[body], "res": Response[Order]}  # type: ignore[valid-type]
    app.post(path, timeout_s=5)(order)
    if other:

        @app.get("/other")
        async def another(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...

    return app


@pytest.fixture(scope="module")
def report() -> PackageReport:
    return reported(shop())


@pytest.fixture
def wheel(tmp_path: Path, report: PackageReport) -> Path:
    return write_wheel(
        tmp_path,
        "shop-package",
        files={"shop/__init__.py": APP},
        requires=["gati-core", "httpx>=0.28; extra == 'http'"],
        info={"entry_points.txt": ENTRY_POINTS, "gati.json": msgspec.json.encode(report)},
    )


def test_a_wheel_says_what_it_is(wheel: Path, report: PackageReport) -> None:
    data = wheel.read_bytes()

    info = read_wheel(wheel)

    assert info == WheelInfo(
        name="shop-package",
        version="1.0",
        requires=["gati-core", "httpx>=0.28; extra == 'http'"],
        apps={"shop": "shop:app"},
        filename="shop_package-1.0-py3-none-any.whl",
        report=report,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
    )
    assert read_wheel(data) == info


def test_the_name_of_the_file_does_not_matter(wheel: Path) -> None:
    renamed = wheel.rename(wheel.with_name("0123abcd"))

    assert read_wheel(renamed).filename == "shop_package-1.0-py3-none-any.whl"


# -- broken: the file -----------------------------------------------------------------------------


def refused(source: Path | bytes, **options: Any) -> str:
    with pytest.raises(PackageError) as caught:
        read_wheel(source, **options)
    assert isinstance(caught.value, PermanentError)
    assert caught.value.code == "package.invalid"
    message = str(caught.value)
    assert message.startswith(str(source) if isinstance(source, Path) else "the wheel"), "it says where"
    return message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "gone.whl")


def test_a_directory(tmp_path: Path) -> None:
    assert "Is a directory" in refused(tmp_path)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x1f\x8b\x08" + bytes(100), b"PK", bytes(5000)])
def test_no_archive_at_all(data: bytes) -> None:
    assert "no wheel (no zip archive): name a .whl file" in refused(data)


def test_a_wheel_cut_off_anywhere_is_refused(wheel: Path) -> None:
    data = wheel.read_bytes()

    for size in range(4, len(data), 97):
        assert "cut off or damaged" in refused(data[:size])


def test_a_wheel_with_any_byte_changed_is_refused_or_the_same(wheel: Path) -> None:
    """What the change leaves readable must be the very same: timestamps and the like may differ."""
    data, info = wheel.read_bytes(), read_wheel(wheel)

    for place in range(0, len(data), 13):
        changed = bytearray(data)
        changed[place] ^= 0x5A
        try:
            found = read_wheel(bytes(changed))
        except PackageError:
            continue
        assert msgspec.structs.replace(found, sha256=info.sha256) == info


def test_a_wheel_that_is_too_large(wheel: Path) -> None:
    size = wheel.stat().st_size

    assert f"{size} bytes are more than the 1000 that a package may have" in refused(wheel, max_bytes=1000)
    assert read_wheel(wheel, max_bytes=size).size_bytes == size


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gati_core.app.wheels.MAX_UNPACKED_BYTES", 50_000)
    write_zip(wheel, {**read_zip(wheel), "shop/zeros": bytes(60_000)})

    assert "may to 50000" in refused(wheel)


# -- broken: what is in it ------------------------------------------------------------------------

Files = dict[str, bytes]


def _changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Files], None]:
    def apply(files: Files) -> None:
        files[name] = change(files[name])

    return apply


def _without(name: str) -> Callable[[Files], None]:
    return lambda files: files.pop(name) and None


def _with(name: str, content: bytes) -> Callable[[Files], None]:
    return lambda files: files.update({name: content})


def _in_report(change: Callable[[dict[str, Any]], object]) -> Callable[[Files], None]:
    def apply(files: Files) -> None:
        report = json.loads(files[f"{INFO}/gati.json"])
        change(report)
        files[f"{INFO}/gati.json"] = json.dumps(report).encode()

    return apply


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without(f"{INFO}/METADATA"), f"there is no {INFO}/METADATA"),
        (_without(f"{INFO}/WHEEL"), f"there is no {INFO}/WHEEL"),
        (_without(f"{INFO}/gati.json"), "it was built without `gati build`"),
        (_without(f"{INFO}/entry_points.txt"), "no entry point in group 'gati.apps'; add to pyproject.toml"),
        (_with(f"{INFO}/entry_points.txt", b"[console_scripts]\nx = y:z\n"), "no entry point in group 'gati.apps'"),
        (_with(f"{INFO}/entry_points.txt", b"gibberish"), "entry_points.txt: "),
        (_with(f"{INFO}/entry_points.txt", b"[gati.apps]\na = a:app\nb = b:app\n"), "2 entry points in group"),
        (_with(f"{INFO}/entry_points.txt", b"[gati.apps]\nshop = shop:other\n"), "gati.json describes shop:app 1.0"),
        (_with(f"{INFO}/METADATA", b"\xff\xfe"), "METADATA is not UTF-8"),
        (_with(f"{INFO}/METADATA", b"Name: other\nVersion: 1.0\n"), "METADATA is of another package, other 1.0"),
        (_with(f"{INFO}/METADATA", b"Name: ../x\nVersion: 1.0\n"), "no valid name and version: '../x'"),
        (_with(f"{INFO}/METADATA", b"Name: shop-package\nVersion: 1/../2\n"), "no valid name and version"),
        (_with(f"{INFO}/METADATA", b"Name: shop-package\nVersion: 2.0\n"), "describes shop:app 1.0, and the wheel"),
        (_with(f"{INFO}/WHEEL", b"Wheel-Version: 1.0\n"), "WHEEL names no tag"),
        (_with(f"{INFO}/WHEEL", b"Tag: ../../x\n"), "WHEEL names no tag"),
        (_with("second-1.0.dist-info/METADATA", b""), "it holds 2 .dist-info directories"),
        (_with(f"{INFO}/gati.json", b"{"), "gati.json cannot be used: Input data was truncated"),
        (_with(f"{INFO}/gati.json", b"\xff"), "gati.json cannot be used"),
        (_with(f"{INFO}/gati.json", b"[" * 100_000), "gati.json cannot be used"),
        (_in_report(lambda report: report.update(format="gati.package/2")), "Invalid enum value 'gati.package/2'"),
        (_in_report(lambda report: report.update(app="a.b")), "the name of the app 'a.b' must be"),
        (_in_report(lambda report: report.update(handlers=[])), "shop has no handler"),
        (_in_report(lambda report: report["handlers"].append(report["handlers"][0])), "the handler order twice"),
        (
            _in_report(lambda report: report["handlers"][0].update(path="/other")),
            "of order was changed after the build",
        ),
        (_in_report(lambda report: report["handlers"][0].update(methods=["YELL"])), "`$.handlers[0].methods[0]`"),
        (_in_report(lambda report: report["schemas"].clear()), "of order is not in it"),
        (
            _in_report(
                lambda report: next(iter(report["schemas"].values()))["definitions"]["Order"].update(required=[])
            ),
            "was changed after the build: its fingerprint is another",
        ),
        (
            _in_report(lambda report: next(iter(report["schemas"].values()))["root"].update({"$ref": "Gone"})),
            "there is no definition 'Gone'",
        ),
    ],
)
def test_what_is_wrong_inside_is_named(wheel: Path, change: Callable[[Files], None], says: str) -> None:
    files = read_zip(wheel)
    change(files)
    if sum(name.endswith("METADATA") for name in files) == 2:
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr("second-1.0.dist-info/METADATA", b"")
    else:
        write_zip(wheel, files)

    assert says in refused(wheel)


def test_an_archive_without_metadata_is_no_wheel(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("shop.py", "x = 1")

    assert "it holds no .dist-info directory, so it is no wheel" in refused(tmp_path / "x.whl")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../evil.py", "leads outside"),
        ("shop/../../evil.py", "leads outside"),
        ("/etc/evil", "leads outside"),
        ("shop\\..\\evil.py", "leads outside"),
        ("C:/evil.py", "leads outside"),
        ("shop//evil.py", "leads outside"),
        ("./evil.py", "leads outside"),
        ("shop/evil.py", "was added after the wheel was built"),
    ],
)
def test_a_file_that_was_slipped_in_is_refused_by_its_name_or_because_no_hash_is_known(
    wheel: Path, name: str, says: str
) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        entry = zipfile.ZipInfo("x")
        entry.filename = name  # as given: the constructor would tidy it
        archive.writestr(entry, "evil")

    assert says in refused(wheel)


def test_a_symbolic_link_is_refused(wheel: Path) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        entry = zipfile.ZipInfo("shop/link")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")

    assert "shop/link is a symbolic link" in refused(wheel)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_is_there_twice_is_refused(wheel: Path) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("shop/__init__.py", "other")

    assert "it holds shop/__init__.py twice" in refused(wheel)


def _rewritten(wheel: Path, record: Callable[[str], str], leave_out: str = "", **contents: bytes) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name != leave_out}
    files[f"{INFO}/RECORD"] = record(files[f"{INFO}/RECORD"].decode()).encode()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, contents.get(Path(name).stem, content))


def test_a_file_that_is_not_what_record_says(wheel: Path) -> None:
    _rewritten(wheel, lambda record: record, __init__=b"import os")

    assert "shop/__init__.py is not what RECORD says (its hash differs)" in refused(wheel)


def test_a_file_that_record_lists_and_that_is_not_there(wheel: Path) -> None:
    _rewritten(wheel, lambda record: record, leave_out="shop/__init__.py")

    assert "shop/__init__.py is missing, although RECORD lists it" in refused(wheel)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [("shop/__init__.py,sha256=", "shop/__init__.py,md5=", "that can be trusted (md5)"), ("/gati.json,", "\r\0", "")],
)
def test_a_record_without_hashes_that_can_be_trusted(wheel: Path, old: str, new: str, says: str) -> None:
    _rewritten(wheel, lambda record: record.replace(old, new))

    assert says in refused(wheel)


def test_a_wheel_without_a_record(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)

    assert f"there is no {INFO}/RECORD" in refused(wheel)


@pytest.mark.parametrize("name", ["a/../b", "..", "", "/a", "a\\b", "a\0b", "a//b", "c:a", "."])
def test_names_that_lead_somewhere_else(name: str) -> None:
    assert not is_safe(name)


@pytest.mark.parametrize("name", ["a", "a/b.py", "a..b/c", "a/", ".hidden/x", "ä/ö.txt"])
def test_names_that_stay_inside(name: str) -> None:
    assert is_safe(name)


@pytest.mark.parametrize(
    ("tags", "filename"),
    [
        (["py2-none-any", "py3-none-any"], "shop_package-1.0-py2.py3-none-any.whl"),
        (
            ["cp311-cp311-manylinux_2_17_x86_64", "cp311-cp311-manylinux2014_x86_64"],
            "shop_package-1.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        ),
    ],
)
def test_the_file_is_called_as_its_tags_say(wheel: Path, tags: list[str], filename: str) -> None:
    text = "Wheel-Version: 1.0\n" + "".join(f"Tag: {tag}\n" for tag in tags)
    write_zip(wheel, {**read_zip(wheel), f"{INFO}/WHEEL": text.encode()})

    assert read_wheel(wheel).filename == filename


# -- a package, and what its wheel says of it -----------------------------------------------------


def test_a_package_that_is_what_it_says_has_no_differences(report: PackageReport) -> None:
    again = msgspec.json.decode(msgspec.json.encode(report), type=PackageReport)

    assert check_report(again, reported(shop())) == []


def test_when_it_was_stored_and_as_which_version_makes_no_difference(report: PackageReport) -> None:
    handlers = [msgspec.structs.replace(each, created_ms=5, version="tsv:1-order-001") for each in report.handlers]

    assert check_report(msgspec.structs.replace(report, handlers=handlers), report) == []


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (shop(name="other"), ["the app is 'other', and its manifest says 'shop'"]),
        (shop(other=True), ["handler another is not in the manifest"]),
        (shop(path="/elsewhere"), ['path is "/elsewhere", and its manifest says "/orders"', "order: fingerprint is"]),
        (shop(body=BigOrder), ["order: gtypes is", "order: fingerprint is", "… is not in the manifest"]),
    ],
)
def test_a_package_that_lies_is_told_difference_by_difference(
    report: PackageReport, found: App, says: list[str]
) -> None:
    differences = check_report(report, reported(found))

    for each in says:
        assert any(each in difference for difference in differences), differences


def test_handlers_types_and_buckets_that_are_missing_are_told(report: PackageReport) -> None:
    empty = msgspec.structs.replace(report, handlers=[], schemas={}, buckets=["carts"])

    told = check_report(report, empty)

    assert "handler order is in the manifest only" in told
    assert any(each.startswith("type ") and each.endswith("is in the manifest only") for each in told)
    assert "the buckets are ['carts'], and the manifest says []" in told


def test_a_type_that_differs_under_its_fingerprint_is_told(report: PackageReport) -> None:
    (name, document), *_ = report.schemas.items()
    other = msgspec.structs.replace(document, metadata={"name": "Lie"})

    assert check_report(report, msgspec.structs.replace(report, schemas={**report.schemas, name: other})) == [
        f"type {name[:12]}… is another one in the manifest"
    ]


def test_a_manifest_is_the_same_after_it_was_written_and_read() -> None:
    """Also where its author wrote `timeout_s=5` and not `5.0`."""
    (manifest,) = reported(shop()).handlers

    again = msgspec.json.decode(msgspec.json.encode(manifest), type=HandlerManifest)

    assert manifest_hash(again) == again.hash == manifest.hash
