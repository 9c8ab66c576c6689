"""Reading a package without running it: its manifests and types, in a process that may do nothing else.

To know a package's types its modules must be imported. `inspect_package` does that in a child process whose
imports may not open connections, start programs or change files, so that what a module does by the way while
it is imported is found and told, instead of done. Handlers, hooks and start-up functions never run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import msgspec

from gati_core.app._app import App
from gati_core.app._code import code_fingerprint, is_unfinished
from gati_core.app.packages import LoadError, PackageSpec, load
from gati_core.gtype import Document
from gati_core.manifests import HandlerManifest

_MAX_SIDE_EFFECTS = 100


class SideEffect(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a module tried to do while it was imported, and was not allowed to."""

    what: str
    where: str
    """`file:line` of the package's own code that led to it."""


class TransformerFact(msgspec.Struct, frozen=True, kw_only=True):
    """A transformer that a package brings along."""

    handler: str
    from_version: str
    to_version: str = ""
    """The version that the package itself brings where it is empty."""
    name: str = ""
    """Of its class, in the package's own code."""
    fingerprint: str = ""
    """Of its code."""
    unfinished: list[str] = []
    """Functions that raise `NotImplementedError`, as generated ones do until somebody has written them."""


class PackageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a package offers: all of it, types included. `gati check --json` prints it."""

    format: Literal["gati.package/1"] = "gati.package/1"
    app: str
    version: str = ""
    target: str = ""
    """`module:attribute`."""
    handlers: list[HandlerManifest]
    """By id."""
    schemas: dict[str, Document]
    """By fingerprint; manifests refer to them."""
    buckets: list[str] = []
    transformers: list[TransformerFact] = []
    """In the order of their declaration."""
    side_effects: list[SideEffect] = []


class _Failure(msgspec.Struct, frozen=True, kw_only=True):
    error: str
    where: str = ""
    excerpt: str = ""
    side_effects: list[SideEffect] = []


def report_on(app: App, *, version: str = "", target: str = "") -> PackageReport:
    """What an app that is loaded already offers."""
    handlers = [app.handlers[name] for name in sorted(app.handlers)]
    return PackageReport(
        app=app.name,
        version=version,
        target=target,
        handlers=[handler.manifest for handler in handlers],
        schemas={name: document for handler in handlers for name, document in handler.documents_by_name()},
        buckets=list(app.buckets),
        transformers=[
            TransformerFact(
                handler=each.handler,
                from_version=each.from_version,
                to_version=each.to_version,
                name=each.name,
                fingerprint=code_fingerprint(each.functions.values()),
                unfinished=[name for name, function in each.functions.items() if is_unfinished(function)],
            )
            for each in app.transformers
        ],
    )


def inspect_package(spec: PackageSpec, *, within_s: float = 60.0) -> PackageReport:
    """Load a package in a process of its own, and report on it.

    Raises:
        LoadError: it cannot be imported, or not in time, or it registers nothing; with file and line.
    """
    command = [sys.executable, "-m", "gati_core.app.inspection"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ended = subprocess.run(
            command,
            input=msgspec.json.encode(spec),
            capture_output=True,
            timeout=within_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise LoadError(f"{spec.name} was not imported within {within_s:g} s (does an import wait?)") from exc
    try:
        answer = msgspec.json.decode(ended.stdout.rpartition(b"\n")[2])
    except msgspec.DecodeError as exc:
        said = ended.stderr.decode(errors="replace").strip().splitlines()[-5:]
        raise LoadError(f"{spec.name}: the process that imports it ended with {ended.returncode}: {said}") from exc
    if "error" in answer:
        failure = msgspec.convert(answer, _Failure)
        raise LoadError(failure.error, where=failure.where, excerpt=failure.excerpt)
    return msgspec.convert(answer, PackageReport)


# -- inside the child --------------------------------------------------------------------------------

_DENIED = {
    "socket.connect": "open a connection",
    "socket.bind": "listen on a port",
    "socket.getaddrinfo": "look up a host",
    "subprocess.Popen": "start a program",
    "os.system": "start a program",
    "os.exec": "start a program",
    "os.posix_spawn": "start a program",
    "os.fork": "start a process",
    "os.remove": "delete a file",
    "os.rename": "move a file",
    "os.rmdir": "delete a directory",
    "os.mkdir": "make a directory",
    "shutil.rmtree": "delete a directory",
    "sqlite3.connect": "open a database",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Guard:
    """Refuses side effects while a package is imported, and remembers them."""

    def __init__(self) -> None:
        self.is_on = False
        self.found: list[SideEffect] = []
        paths = sysconfig.get_paths()
        self._standard = os.path.realpath(paths["stdlib"])
        self._installed = tuple(os.path.realpath(paths[name]) for name in ("purelib", "platlib"))

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """For `sys.addaudithook`, which cannot be taken back."""
        if not self.is_on:
            return
        what = _DENIED.get(event, "")
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            path = os.fsdecode(arguments[0])
            if flags & _WRITING and path != os.devnull and not path.endswith(".pyc") and "__pycache__" not in path:
                what = f"write the file {path}"
        if what:
            self._refuse(what)

    def _refuse(self, what: str) -> None:
        self.is_on = False  # looking for the place opens files, too
        try:
            where = self._place()
        finally:
            self.is_on = True
        if len(self.found) < _MAX_SIDE_EFFECTS:
            self.found.append(SideEffect(what=what, where=where))
        raise PermissionError(
            f"importing the package tries to {what} ({where}); do it in a function registered with app.on_startup"
        )

    def _place(self) -> str:
        """The innermost line that is neither Python's own nor ours; rather one of no installed library."""
        ours = os.path.realpath(os.path.dirname(os.path.dirname(__file__)))
        frames = []
        for frame in traceback.extract_stack():
            file = os.path.realpath(frame.filename)
            is_installed = file.startswith(self._installed)
            if not file.startswith(ours) and (is_installed or not file.startswith(self._standard)):
                frames.append((not is_installed, f"{frame.filename}:{frame.lineno}"))
        frames = [frame for frame in frames if not frame[1].startswith("<")]
        own = [place for is_own, place in frames if is_own] or [place for _, place in frames]
        return own[-1] if own else "an imported library"

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Refuse from here on, and no longer after."""
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False


def _main() -> None:
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=PackageSpec)
    output, sys.stdout = sys.stdout, sys.stderr  # what modules print must not get between
    guard = _Guard()
    sys.addaudithook(guard.hook)
    answer: PackageReport | _Failure
    try:
        with guard.watching():
            app = load(spec)
        report = report_on(app, version=spec.version, target=spec.target)
        answer = msgspec.structs.replace(report, side_effects=guard.found)
    except LoadError as exc:
        where, excerpt = exc.where, exc.excerpt
        if guard.found and guard.found[-1].where in str(exc):
            where = excerpt = ""  # the message says it; the traceback ends inside Python's own library
        answer = _Failure(error=str(exc), where=where, excerpt=excerpt, side_effects=guard.found)
    output.write("\n" + msgspec.json.encode(answer).decode())
    output.flush()


if __name__ == "__main__":
    _main()
