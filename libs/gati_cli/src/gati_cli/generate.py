"""`gati generate`: code and documents from packages; the same input gives the same bytes."""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

from gati_cli._errors import CliError
from gati_cli.diff import types_of
from gati_cli.packages import read_reports
from gati_core.app.inspection import PackageReport
from gati_core.codegen import (
    Api,
    make_api,
    openapi,
    python_client,
    typescript_sdk,
    typescript_types,
    typescript_validators,
)
from gati_core.errors import GatiError
from gati_core.gtype import Document, python_module, to_json_schema
from gati_core.gtype.diff import diff_handlers
from gati_core.manifests import HandlerManifest, bundle_index, make_bundle, write_bundle

Files = dict[str, str]
MARK = "generated-by-gati.txt"
"""Lists the files of a directory that were generated, so that those no longer wanted can be removed."""


def _documents(report: PackageReport) -> dict[str, Document]:
    """The types of a package by the names that their authors gave; those that share one are numbered."""
    named: dict[str, Document] = {}
    for fingerprint in sorted(report.schemas):
        document = report.schemas[fingerprint]
        wanted = re.sub(r"\W+", "_", str(document.metadata.get("name") or "Type")) or "Type"
        name, number = wanted, 1
        while name in named:
            number += 1
            name = f"{wanted}_{number}"
        named[name] = document
    return named


def _api(report: PackageReport) -> Api:
    return make_api(report.app, report.version, report.handlers, report.schemas.get)


def _validators(reports: list[PackageReport]) -> Files:
    files: Files = {}
    for report in reports:
        name = _module_name(report.app)
        files[f"{name}.py"] = python_module(_documents(report), source=f"the types of {report.app}")
        files[f"{name}.ts"] = typescript_validators(_documents(report), source=f"the types of {report.app}")
    return files


def _types(reports: list[PackageReport]) -> Files:
    return {
        f"{_module_name(report.app)}.ts": typescript_types(_documents(report), source=f"the types of {report.app}")
        for report in reports
    }


def _sdk(reports: list[PackageReport]) -> Files:
    return {
        f"{_module_name(report.app)}/{name}": text
        for report in reports
        for name, text in typescript_sdk(_api(report), source=f"the handlers of {report.app}").items()
    }


def _client(reports: list[PackageReport]) -> Files:
    return {
        f"{_module_name(report.app)}_client/{name}": text
        for report in reports
        for name, text in python_client(_api(report), source=f"the handlers of {report.app}").items()
    }


def _openapi(reports: list[PackageReport]) -> Files:
    title = " and ".join(report.app for report in reports)
    return {"openapi.json": _json(openapi([_api(report) for report in reports], title=title))}


def _schemas(reports: list[PackageReport]) -> Files:
    return {
        f"{_module_name(report.app)}/{name}.json": _json(to_json_schema(document))
        for report in reports
        for name, document in _documents(report).items()
    }


def _bundle(reports: list[PackageReport]) -> Files:
    owners = {id(handler): report for report in reports for handler in report.handlers}

    def is_breaking(old: HandlerManifest, new: HandlerManifest) -> bool:
        types = (types_of(owners[id(each)], each) for each in (old, new))
        return diff_handlers(*types).requires_transformer

    bundle = make_bundle(
        [handler for report in reports for handler in report.handlers],
        [],
        {name: document for report in reports for name, document in report.schemas.items()},
        is_breaking=is_breaking,
        metadata={"apps": {report.app: report.version for report in reports}},
    )
    return {"manifest-bundle.json": write_bundle(bundle).decode(), "manifest-index.json": _json(bundle_index(bundle))}


KINDS: dict[str, Callable[[list[PackageReport]], Files]] = {
    "validators": _validators,
    "types": _types,
    "sdk": _sdk,
    "client": _client,
    "openapi": _openapi,
    "schemas": _schemas,
    "bundle": _bundle,
}


def generated(kinds: list[str], reports: list[PackageReport]) -> Files:
    """Everything of these kinds, by path below the output directory.

    Raises:
        CliError: something cannot be generated; says which and why.
    """
    files: Files = {}
    for kind in kinds:
        try:
            made = KINDS[kind](reports)
        except GatiError as exc:
            raise CliError(f"{kind}: {exc}") from exc
        files |= {f"{kind}/{name}": text for name, text in made.items()}
    return files


def generate(kind: str, named: list[str], directory: Path, output: Path, *, check: bool, watch: bool) -> int:
    """Write what is generated, or compare it; returns the exit code: 1 when `check` finds a difference."""
    if kind != "all" and kind not in KINDS:
        raise CliError(f"{kind!r} is nothing that can be generated; choose from {', '.join(KINDS)}, all", exit_code=2)
    kinds = list(KINDS) if kind == "all" else [kind]
    place = directory / output
    if watch and not check:
        _keep_writing(kinds, named, directory, place)
    files = generated(kinds, read_reports(named, directory))
    if check:
        return _compare(files, place, kinds)
    _write(files, place, kinds)
    return 0


def _compare(files: Files, place: Path, kinds: list[str]) -> int:
    stale = [name for name, text in files.items() if _read(place / name) != text]
    stale += [name for name in _known(place, kinds) if name not in files]
    for name in sorted(stale):
        print(f"not up to date: {place / name}", file=sys.stderr)
    if stale:
        print("run `gati generate` without --check", file=sys.stderr)
    return 1 if stale else 0


def _write(files: Files, place: Path, kinds: list[str]) -> None:
    changed = [name for name, text in files.items() if _read(place / name) != text]
    gone = [name for name in _known(place, kinds) if name not in files and (place / name).exists()]
    try:
        for name in changed:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(files[name], encoding="utf-8")
        for name in gone:
            (place / name).unlink()
        listed = sorted({*files, *(each for each in _known(place, list(KINDS)) if each.split("/")[0] not in kinds)})
        (place / MARK).write_text("\n".join(listed) + "\n", encoding="utf-8")
    except OSError as exc:
        raise CliError(f"{exc.filename}: {exc.strerror}", exit_code=2) from exc
    print(f"{len(changed)} of {len(files)} files written below {place}" + (f", {len(gone)} removed" if gone else ""))


def _known(place: Path, kinds: list[str]) -> list[str]:
    """Files of these kinds that were generated before."""
    text = _read(place / MARK)
    return [line for line in (text or "").splitlines() if line.split("/")[0] in kinds and ".." not in line]


def _keep_writing(kinds: list[str], named: list[str], directory: Path, place: Path) -> NoReturn:
    """Write now and whenever a source changes, until Ctrl-C."""
    from watchfiles import Change, PythonFilter, watch

    sources = {(directory / name).resolve() for name in named or ["."]}
    output = place.resolve()
    # Editors replace a file instead of writing into it, which ends a watch on the file itself.
    watched = {source.parent if source.is_file() else source for source in sources if source.exists()}
    if not watched:
        raise CliError("--watch needs a file or a directory; an installed package does not change", exit_code=2)
    is_python = PythonFilter(extra_extensions=(".toml", ".json"))

    def is_source(change: Change, path: str) -> bool:
        file = Path(path)
        wanted = any(file == source or source in file.parents for source in sources)
        return wanted and not file.is_relative_to(output) and is_python(change, path)

    print(f"watching {', '.join(sorted(map(str, sources)))}; Ctrl-C ends it", flush=True)
    is_first = True
    stopping = threading.Event()

    def interrupt(_number: int, _frame: object) -> None:
        # Python drops an exception that arrives in a destructor; the event stays.
        stopping.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    # What changes while the files are written for the first time must be seen: the first round is a timeout.
    for changes in watch(
        *watched, watch_filter=is_source, rust_timeout=250, yield_on_timeout=True, stop_event=stopping
    ):
        if changes or is_first:
            is_first = False
            try:
                _write(generated(kinds, read_reports(named, directory)), place, kinds)
            except CliError as exc:
                print(f"gati: {exc}", file=sys.stderr)
            sys.stdout.flush()
    raise KeyboardInterrupt


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2).decode() + "\n"


def _module_name(app: str) -> str:
    return re.sub(r"\W+", "_", app)
