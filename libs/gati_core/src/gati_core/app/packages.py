"""Finding handler packages, and loading one.

`find_*` run in the supervisor and import nothing of the user's; `load` runs in the child.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import linecache
import os
import sys
import tomllib
import traceback
from importlib.metadata import entry_points
from pathlib import Path

import msgspec

from gati_core.app._app import App
from gati_core.errors import RegistrationError

GROUP = "gati.apps"


class PackageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Where one app is: everything a child needs to load it."""

    name: str
    """The entry point's name, or the module's."""
    target: str
    """`module:attribute`."""
    import_paths: list[str] = []
    """Prepended to `sys.path`, for packages that are not installed."""
    root: str = ""
    """Directory or file to watch and to fingerprint; empty for installed packages."""
    version: str = ""


class LoadError(RegistrationError):
    """A package could not be loaded. `where` is `file:line` when known; `excerpt` shows the spot."""

    code = "worker.package_failed"

    def __init__(self, message: str, *, where: str = "", excerpt: str = "") -> None:
        super().__init__(message)
        self.where = where
        self.excerpt = excerpt


def find_installed(wanted: str = "") -> list[PackageSpec]:
    """Installed packages with an entry point in group `gati.apps`.

    Args:
        wanted: comma-separated entry point names; empty means all.
    Raises:
        LoadError: a wanted one is not installed; names those that are.
    """
    found = {}
    for point in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        version = point.dist.version if point.dist is not None else ""
        found[point.name] = PackageSpec(name=point.name, target=point.value, version=version)
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    missing = [name for name in names if name not in found]
    if missing:
        raise LoadError(
            f"no installed package offers {', '.join(missing)} in entry point group {GROUP!r};"
            f" installed: {', '.join(found) or 'none'}"
        )
    return [found[name] for name in names] if names else list(found.values())


def find_in(path: Path) -> list[PackageSpec]:
    """The apps of a package that lies on disk, installed or not.

    Understands a project with `pyproject.toml` and entry points in group `gati.apps`; a package
    directory with `__init__.py`; a directory with one Python file; and a single Python file. In the
    last three, the app is the module's attribute `app`.

    Raises:
        LoadError: the path is none of these; says what was looked for.
    """
    path = path.resolve()
    if not path.exists():
        raise LoadError(f"{path} does not exist")
    if path.is_file():
        if path.suffix != ".py":
            raise LoadError(f"{path} is not a Python file")
        return [_module(path.stem, path.parent, path)]
    if (path / "pyproject.toml").is_file():
        return _project(path)
    if (path / "__init__.py").is_file():
        return [_module(path.name, path.parent, path)]
    modules = [each for each in sorted(path.glob("*.py")) if not each.name.startswith("_")]
    if len(modules) == 1:
        return [_module(modules[0].stem, path, path)]
    what = f"{len(modules)} Python files" if modules else "no Python file"
    raise LoadError(
        f"{path} holds no handler package: expected a pyproject.toml with entry points in group {GROUP!r},"
        f" an __init__.py, or exactly one .py file (found {what})"
    )


def _module(name: str, import_path: Path, root: Path) -> PackageSpec:
    return PackageSpec(name=name, target=f"{name}:app", import_paths=[str(import_path)], root=str(root))


def _project(path: Path) -> list[PackageSpec]:
    file = path / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise LoadError(f"{file}: {exc}", where=str(file)) from exc
    points = project.get("entry-points", {}).get(GROUP, {})
    if not points:
        raise LoadError(
            f'{file} has no [project.entry-points."{GROUP}"] section; add for example:'
            f'\n  [project.entry-points."{GROUP}"]\n  shop = "shop:app"'
        )
    import_path = path / "src" if (path / "src").is_dir() else path
    version = str(project.get("version", ""))
    return [
        PackageSpec(name=name, target=str(target), import_paths=[str(import_path)], root=str(path), version=version)
        for name, target in points.items()
    ]


def load(spec: PackageSpec) -> App:
    """Import the package and return its app.

    Raises:
        LoadError: a syntax error, an exception while importing, a missing module or attribute, or
            an attribute that is no `App`; with file and line where there are any.
    """
    sys.path[:0] = [path for path in spec.import_paths if path not in sys.path]
    module_name, _, attribute = spec.target.partition(":")
    if spec.root:
        # Cached bytecode is told apart by whole seconds and size: two quick saves would look like one.
        sys.dont_write_bytecode = True
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module_name}.".startswith(f"{exc.name}."):
            where, excerpt = _spot(exc)
            raise LoadError(f"{type(exc).__name__}: {exc}", where=where, excerpt=excerpt) from exc
        places = ", ".join(spec.import_paths) or "the installed packages"
        raise LoadError(f"there is no module {exc.name!r} in {places}", where=spec.root) from exc
    except SyntaxError as exc:
        where = f"{exc.filename}:{exc.lineno}"
        excerpt = f"    {(exc.text or '').rstrip()}"
        raise LoadError(f"{type(exc).__name__}: {exc.msg}", where=where, excerpt=excerpt) from exc
    except BaseException as exc:
        if isinstance(exc, KeyboardInterrupt):
            raise
        where, excerpt = _spot(exc)
        raise LoadError(f"{type(exc).__name__}: {exc}", where=where, excerpt=excerpt) from exc
    app = getattr(module, attribute or "app", None)
    if not isinstance(app, App):
        what = "is not there" if app is None else f"is a {type(app).__name__}, not a gati_core.App"
        raise LoadError(f"{spec.target}: the attribute {attribute or 'app'!r} {what}", where=str(module.__file__ or ""))
    if not app.handlers:
        raise LoadError(f"{spec.target}: the app registers no handler", where=str(module.__file__ or ""))
    return app


def _spot(exc: BaseException) -> tuple[str, str]:
    """File, line and text of the last frame outside the import machinery."""
    frames = [
        f for f in traceback.extract_tb(exc.__traceback__) if "importlib" not in f.filename and f.filename != __file__
    ]
    own = [f for f in frames if "gati_core" not in f.filename] or frames
    if not own:
        return "", ""
    last = own[-1]
    line = linecache.getline(last.filename, last.lineno or 0).rstrip()
    return f"{last.filename}:{last.lineno}", f"    {line}"


def fingerprint(spec: PackageSpec) -> str:
    """A hash of the package's code, independent of time, place and order of files.

    Two workers with the same code are one pool; any change of code makes another. Of a package on
    disk, all of its directory counts, because it may import anything in there.
    """
    digest = hashlib.sha256(f"{spec.target}\0{spec.version}".encode())
    top = spec.target.partition(":")[0].partition(".")[0]
    found = importlib.util.find_spec(top)
    locations = list(found.submodule_search_locations or []) if found is not None else []
    files = [file for place in locations for file in Path(place).rglob("*.py")]
    base = Path(locations[0]) if locations else Path()
    if spec.root and Path(spec.root).is_dir():
        base = Path(spec.root)
        files = _sources_below(base)
    if not files and found is not None and found.origin:
        files = [Path(found.origin)]
        base = files[0].parent
    for file in sorted(files, key=lambda each: each.relative_to(base).as_posix()):
        digest.update(file.relative_to(base).as_posix().encode() + b"\0")
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()


def _sources_below(root: Path) -> list[Path]:
    """Python files of a source tree, without hidden directories, caches and virtual environments."""
    files = []
    for place, folders, names in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "__pycache__", "node_modules"))
            and not os.path.exists(os.path.join(place, name, "pyvenv.cfg"))
        ]
        files += [Path(place, name) for name in names if name.endswith(".py")]
    return files
