"""Validators as Python code: modules that stand alone, and the same code compiled in this process."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from gati_core.errors import MalformedGType, RegistrationError
from gati_core.gtype import _python_helpers as helpers
from gati_core.gtype._brands import custom_check, expand_brands
from gati_core.gtype._document import check_document
from gati_core.gtype._expected import MAX_ERRORS, FieldError
from gati_core.gtype._model import Document
from gati_core.gtype._python_accept import Acceptance
from gati_core.gtype._python_errors import Diagnosis
from gati_core.gtype._python_module import Module
from gati_core.gtype._python_prelude import prelude
from gati_core.gtype._python_program import Program
from gati_core.gtype._python_rules import check_sense
from gati_core.gtype._secrecy import spread_secrets

_NAME = re.compile(r"[A-Za-z0-9_]{1,200}")
_KEPT = 256
"""Compiled validators that are kept for documents that come again."""


# -- modules -------------------------------------------------------------------------------------------


def python_module(documents: Mapping[str, Document], *, source: str = "") -> str:
    """A module with `validate_<name>(value) -> list[FieldError]` and `is_<name>(value) -> bool` for each document.

    It imports the standard library only. Values are of the exact types that JSON decoders make; `UNSET` stands
    for an absent one. Functions that types call `custom` are put into its `CHECKS`. Equal documents make equal
    modules.

    Args:
        documents: by names that can be part of a Python name.
        source: where the types come from, for the header.
    Raises:
        MalformedGType: a document makes no sense; names the place.
        RegistrationError: a name cannot be part of a Python name.
    """
    for name in documents:
        if _NAME.fullmatch(name) is None:
            raise RegistrationError(f"{name!r} cannot be part of a Python name: use letters, digits and '_'")
    module = Module()
    for name in sorted(documents):
        _write(module, name, expand_brands(documents[name]))
    constants = ["\n".join(module.constants)] if module.constants else []
    body = "\n\n\n".join([*constants, *module.functions])
    return f"{prelude(body, source=source)}\n\n{body}\n"


def _write(module: Module, name: str, document: Document) -> None:
    """Add the functions of a document whose brands are written out."""
    check_document(document)
    check_sense(document)
    program = Program(module, spread_secrets(document))
    acceptance = Acceptance(program)
    acceptance.root(name)
    Diagnosis(program, acceptance).root(name)
    program.finish()


# -- compiled in this process --------------------------------------------------------------------------


class CompiledValidator:
    """The validator of one document, as functions."""

    __slots__ = ("accepts", "errors")

    accepts: Callable[[Any], bool]
    """Whether a JSON value is of the type; stops at the first mistake. UNSET stands for an absent value."""
    errors: Callable[[Any], list[FieldError]]
    """Everything that is wrong with a JSON value, at most `MAX_ERRORS`, as `errors_of` finds it."""

    def __init__(self, document: Document) -> None:
        module = Module()
        _write(module, "value", document)
        parts = ["from __future__ import annotations", *module.constants, *module.functions]
        code = compile("\n".join(parts), f"<validator of {document.metadata.get('name', '')!a:.80}>", "exec")
        checks = helpers.Checks({name: custom_check(name) for name in module.checks})
        names: dict[str, Any] = {**vars(helpers), "MAX_ERRORS": MAX_ERRORS, "CHECKS": checks, "re": re}
        # Text of the document is in the code only as literals.
        exec(code, names)  # noqa: S102
        self.accepts = names["is_value"]
        self.errors = names["validate_value"]


def compile_validator(document: Document) -> CompiledValidator:
    """The validator of a document; the same one for documents that are written alike.

    Raises:
        MalformedGType: the document makes no sense; names the place.
        RegistrationError: it has a custom check that nobody registered.
    """
    return _compiled(_Written(expand_brands(document)))


class _Written:
    """A document by what is written in it. Its fingerprint says less: it leaves out the order of properties, in
    which errors are listed."""

    __slots__ = ("_key", "document")

    def __init__(self, document: Document) -> None:
        self.document = document
        try:
            text = repr((document.root, document.definitions))
        except ValueError as exc:  # Python writes no more than 4300 digits
            raise MalformedGType(f"a number in the document is too large: {exc}") from exc
        self._key = hashlib.sha256(text.encode("utf-8", "replace")).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Written) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=_KEPT)
def _compiled(written: _Written) -> CompiledValidator:
    return CompiledValidator(written.document)
