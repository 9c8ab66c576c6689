"""What can be read from the source of handlers without running them: where they are, which modules they
ask for, which hooks they register, and whether two versions of their code are the same."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gati_core.contexts import DEFAULT_HOOK_TIMEOUT_S
from gati_core.manifests import HookRecord, SourceLocation

_PLAIN = (str, bytes, int, float, bool, complex, type(None))
_MAX_OBJECTS = 2000
"""As many functions and classes of a package are looked at for one handler."""


def location_of(function: object) -> SourceLocation | None:
    """File, line and column of a function; None when Python does not know."""
    target = plain_function(function)
    code = getattr(target, "__code__", None)
    if code is None:
        return None
    return SourceLocation(file=_relative(code.co_filename, getattr(target, "__module__", "")), line=code.co_firstlineno)


def plain_function(function: Any) -> Any:
    """The function behind decorators, partial objects and objects with `__call__`."""
    function = inspect.unwrap(function) if callable(function) else function
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.ismethod(function):
        function = function.__func__
    return function if inspect.isfunction(function) else type(function).__call__


def _relative(file: str, module: str) -> str:
    """Below the directory that the top package is imported from, so that it is the same on every machine."""
    top = sys.modules.get(module.partition(".")[0])
    places = [Path(each).parent for each in getattr(top, "__path__", [])]
    if not places and getattr(top, "__file__", None):
        places = [Path(str(getattr(top, "__file__", ""))).parent]
    for place in places:
        try:
            return Path(file).relative_to(place).as_posix()
        except ValueError:
            continue
    return Path(file).name


@functools.lru_cache(maxsize=4096)
def _tree(target: Any) -> ast.Module | None:
    """The parsed source of one function or class; None when there is none to read."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(target)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None  # typed into a console, made by exec, or a lambda in the middle of an expression


def is_unfinished(function: Callable[..., Any]) -> bool:
    """Whether a function raises `NotImplementedError`: nobody has written it yet."""
    tree = _tree(plain_function(function))
    if tree is None:
        return False
    raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    names = (each.func if isinstance(each, ast.Call) else each for each in raised)
    return any(isinstance(each, ast.Name) and each.id == "NotImplementedError" for each in names)


# -- what handlers ask for ---------------------------------------------------------------------------


def modules_used(functions: Iterable[Callable[..., Any]]) -> list[str]:
    """Names of the modules that functions reach as `gctx.modules.name`, `gctx.modules["name"]` or
    `gctx.get_module("name")`, under whatever name they know the global context."""
    found: set[str] = set()
    for function in functions:
        tree = _tree(plain_function(function))
        for node in ast.walk(tree) if tree is not None else ():
            name = _module_asked_for(node)
            if name:
                found.add(name)
    return sorted(found)


def _module_asked_for(node: ast.AST) -> str:
    match node:
        case ast.Attribute(value=ast.Attribute(value=ast.Name(), attr="modules"), attr=name):
            return "" if name in ("get", "keys", "items", "values") else name
        case ast.Subscript(value=ast.Attribute(value=ast.Name(), attr="modules"), slice=ast.Constant(value=str(name))):
            return name
        case ast.Call(
            func=ast.Attribute(value=ast.Name(), attr="get_module"), args=[ast.Constant(value=str(name)), *_]
        ):
            return name
        case _:
            return ""


def local_hooks(function: Callable[..., Any]) -> list[HookRecord]:
    """Hooks that a function registers for its request, `lctx.after(undo, timeout_s=2)`, as its source says.

    An option that is no literal counts with its default.
    """
    target = plain_function(function)
    tree, where = _tree(target), location_of(function)
    if tree is None or where is None:
        return []
    records = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="lctx"), attr=("before" | "after" | "catch") as kind)):
                place = SourceLocation(file=where.file, line=where.line + node.lineno - 1, column=node.col_offset + 1)
                records.append(_local_hook(node, kind, place, getattr(target, "__globals__", {})))
            case _:
                pass
    return records


def _local_hook(node: ast.Call, kind: Any, place: SourceLocation, names: dict[str, Any]) -> HookRecord:
    options: dict[str | None, Any] = {
        each.arg: each.value.value for each in node.keywords if isinstance(each.value, ast.Constant)
    }
    name = ast.unparse(node.args[0]) if node.args else kind
    hook = names.get(name)
    return HookRecord(
        id=str(options.get("id") or (name if name.isidentifier() else f"{kind}-{place.file}-{place.line}")),
        type=kind,
        level=options.get("level", "local") if options.get("level") in ("global", "route") else "local",
        timeout_s=float(options.get("timeout_s", DEFAULT_HOOK_TIMEOUT_S)),
        retries=int(options.get("retries", 0)),
        backoff_s=float(options.get("backoff_s", 0.0)),
        is_async=hook is not None and inspect.iscoroutinefunction(hook),
        threaded=bool(options.get("threaded", False)),
        detached=bool(options.get("detached", False)),
        source=place,
    )


# -- identity ----------------------------------------------------------------------------------------


def code_fingerprint(functions: Iterable[Callable[..., Any]]) -> str:
    """SHA-256, in hex, of what the functions do: their code, and that of everything in their own package
    that they lead to.

    Comments, docstrings, formatting, decorators, the place and the order of definitions do not count, nor
    does the time. Of other packages only the names count: their versions are the lock file's business.
    """
    parts = dict(_reachable(functions))
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(f"{name}\0{parts[name]}\0".encode())
    return digest.hexdigest()


def _reachable(functions: Iterable[Callable[..., Any]]) -> Iterator[tuple[str, str]]:
    """Name and normalised source of everything of the package that the functions lead to, and of themselves."""
    waiting: list[Any] = [plain_function(function) for function in functions]
    packages = {_package(each) for each in waiting}
    seen: set[int] = set()
    while waiting and len(seen) < _MAX_OBJECTS:
        target = waiting.pop()
        if id(target) in seen:
            continue
        seen.add(id(target))
        name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"
        tree = _tree(target)
        if tree is None:
            yield name, _bytecode(target)
            continue
        yield name, normalised(tree)
        names = _globals_of(target)
        for value in _values(tree, names):
            if isinstance(value, _PLAIN) or (
                isinstance(value, (tuple, list, dict, set, frozenset)) and len(value) < 1000
            ):
                continue  # in the source of whoever uses them only by name: added below
            if _package(value) in packages and (inspect.isfunction(value) or inspect.isclass(value)):
                waiting.append(value)
        for constant, text in _constants(tree, names):
            yield f"{name}:{constant}", text


def _package(target: Any) -> str:
    return str(getattr(target, "__module__", None) or "").partition(".")[0]


def _globals_of(target: Any) -> dict[str, Any]:
    if inspect.isclass(target):
        return vars(sys.modules.get(target.__module__, types.ModuleType("gone")))
    names = dict(getattr(target, "__globals__", {}))
    try:
        names.update(inspect.getclosurevars(target).nonlocals)
    except (TypeError, ValueError):
        pass
    return names


def _values(tree: ast.AST, names: dict[str, Any]) -> Iterator[Any]:
    """What the names in a piece of source stand for, where they are global; of modules, what is taken from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in names:
            yield _function_behind(names[node.id])
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = names.get(node.value.id)
            if isinstance(owner, types.ModuleType) and hasattr(owner, node.attr):
                yield _function_behind(getattr(owner, node.attr))


def _function_behind(value: Any) -> Any:
    behind = getattr(value, "function", None)  # of a route
    return behind if inspect.isfunction(behind) else value


def _constants(tree: ast.AST, names: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in names:
            text = _literal(names[node.id], 0)
            if text:
                yield node.id, text


def _literal(value: Any, depth: int) -> str:
    """A plain value as text that is the same in every process; empty when it is not plain."""
    if isinstance(value, _PLAIN):
        return f"{type(value).__name__} {value!r}"
    if depth > 5 or not isinstance(value, (tuple, list, dict, set, frozenset)) or len(value) >= 1000:
        return ""
    if isinstance(value, dict):
        parts = [(_literal(key, depth + 1), _literal(each, depth + 1)) for key, each in value.items()]
        return "{" + ",".join(f"{key}:{each}" for key, each in parts) + "}" if all(map(all, parts)) else ""
    parts_of = [_literal(each, depth + 1) for each in value]
    if not all(parts_of):
        return ""
    if isinstance(value, (set, frozenset)):
        parts_of.sort()
    return f"{type(value).__name__}[{','.join(parts_of)}]"


def normalised(tree: ast.Module) -> str:
    """Source without decorators, docstrings, comments and layout."""
    tree = ast.parse(ast.unparse(tree))  # a copy: what is cached stays whole
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            node.decorator_list = []
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(ast.fix_missing_locations(tree))


def _bytecode(target: Any) -> str:
    """For what has no source: the compiled code, which differs between versions of Python."""
    code = getattr(target, "__code__", None)
    if code is None:
        return repr(type(target))
    constants = [each.co_code.hex() if isinstance(each, types.CodeType) else repr(each) for each in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"
