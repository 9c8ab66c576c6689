"""Brands: names for what a value means, and the checks that come with some of them.

    class Account(msgspec.Struct):
        email: Annotated[str, Brand("email")]
        password: Annotated[str, Brand("password")]

A brand that nobody registered is a name alone: it keeps `UserId` and `OrderId` apart in generated code.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from gati_core.errors import RegistrationError
from gati_core.gtype._model import ArrayOf, Document, GType, IntersectionOf, ObjectOf, TupleOf, UnionOf, Validator

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
Check: TypeAlias = Callable[[Any], bool]


class BrandRule(msgspec.Struct, frozen=True):
    """What a registered brand checks, and whether its values may be shown."""

    name: str
    validators: tuple[Validator, ...] = ()
    is_secret: bool = False
    """Values never appear in diagnostics."""


_BRANDS: dict[str, BrandRule] = {}
_CHECKS: dict[str, Check] = {}


def register_brand(name: str, validators: Iterable[Validator] = (), *, is_secret: bool = False) -> BrandRule:
    """Give a brand its checks. Do it while the package is imported, before types are read.

    Raises:
        RegistrationError: the name is taken or no name.
    """
    if _NAME.fullmatch(name) is None:
        raise RegistrationError(f"{name!r} is no brand name: a letter, then letters, digits, '_', '.' or '-', up to 64")
    if name in _BRANDS:
        raise RegistrationError(f"the brand {name!r} is registered already")
    rule = _BRANDS[name] = BrandRule(name, tuple(validators), is_secret)
    return rule


def register_check(name: str, check: Check) -> Check:
    """Name a predicate that `custom` validators call. It must be quick, and must not be a coroutine function.

    Raises:
        RegistrationError: the name is taken or no name, or the check is async.
    """
    if _NAME.fullmatch(name) is None:
        raise RegistrationError(f"{name!r} is no name of a check: a letter, then letters, digits, '_', '.' or '-'")
    if name in _CHECKS:
        raise RegistrationError(f"a check {name!r} is registered already")
    given: Any = check  # whatever its annotation promises
    if not callable(given) or inspect.iscoroutinefunction(given):
        raise RegistrationError(f"the check {name!r} must be a plain function that returns True or False")
    _CHECKS[name] = check
    return check


def brand(name: str) -> BrandRule | None:
    """The registered brand of this name."""
    return _BRANDS.get(name)


def brands() -> list[str]:
    """Names of the registered brands."""
    return sorted(_BRANDS)


def custom_check(name: str) -> Check:
    """The predicate of this name.

    Raises:
        RegistrationError: nobody registered it.
    """
    if name not in _CHECKS:
        known = ", ".join(sorted(_CHECKS)) or "none"
        raise RegistrationError(f"no check {name!r} is registered; there are: {known}")
    return _CHECKS[name]


def is_secret(schema: GType) -> bool:
    """Whether values of this type may not be shown."""
    rule = _BRANDS.get(schema.brand)
    return (rule is not None and rule.is_secret) or schema.metadata.get("secret") is True


def expand_brands(document: Document) -> Document:
    """The document with the checks of its brands written out, so that it says everything itself."""
    return msgspec.structs.replace(
        document,
        root=_expanded(document.root),
        definitions={name: _expanded(schema) for name, schema in document.definitions.items()},
    )


def _expanded(schema: GType) -> GType:
    changes: dict[str, Any] = {}
    rule = _BRANDS.get(schema.brand)
    if rule is not None:
        added = [each for each in rule.validators if each not in schema.validators]
        if added:
            changes["validators"] = [*schema.validators, *added]
        if rule.is_secret and schema.metadata.get("secret") is not True:
            changes["metadata"] = {**schema.metadata, "secret": True}
    if isinstance(schema, ObjectOf):
        changes["properties"] = {name: _expanded(inner) for name, inner in schema.properties.items()}
        if not isinstance(schema.additional_properties, bool):
            changes["additional_properties"] = _expanded(schema.additional_properties)
        if schema.property_names is not None:
            changes["property_names"] = _expanded(schema.property_names)
    elif isinstance(schema, TupleOf):
        changes["items"] = [_expanded(inner) for inner in schema.items]
    elif isinstance(schema, (UnionOf, IntersectionOf)):
        changes["types"] = [_expanded(inner) for inner in schema.types]
    elif isinstance(schema, ArrayOf):
        changes["items"] = _expanded(schema.items)
    return msgspec.structs.replace(schema, **changes) if changes else schema


# -- what authors write in annotations ---------------------------------------------------------------


def Brand(name: str) -> Meta:
    """Brand a type: `Annotated[str, Brand("email")]`."""
    if _NAME.fullmatch(name) is None:
        raise RegistrationError(f"{name!r} is no brand name: a letter, then letters, digits, '_', '.' or '-', up to 64")
    return Meta(extra={"brand": name})


def Checked(name: str, *, message: str = "") -> Meta:
    """Have a registered check look at the value: `Annotated[str, Checked("isbn")]`."""
    return Meta(extra={"checks": [(name, message)]})


UniqueItems = Meta(extra={"unique_items": True})
"""No two items alike: `Annotated[list[str], UniqueItems]`."""


def _builtin(name: str, *validators: Validator, is_secret: bool = False) -> None:
    register_brand(name, validators, is_secret=is_secret)


def _text(*names: str) -> None:
    for name in names:
        _builtin(name, Validator("format", name))


_builtin("email", Validator("email"))
_builtin("url", Validator("url"))
_builtin("uuid", Validator("format", "uuid4"))
_text("cuid", "timestamp", "phone", "slug", "hex", "base64", "username", "date", "time")
_builtin("object_id", Validator("format", "object-id"))
_builtin("name", Validator("min_length", 1), Validator("max_length", 100), Validator("format", "trimmed"))
_builtin("jwt", Validator("format", "jwt"), is_secret=True)
_builtin("password", Validator("min_length", 8), is_secret=True)
_builtin("strong_password", Validator("min_length", 12), is_secret=True)
_builtin("secret", is_secret=True)
_builtin("token", is_secret=True)
_builtin("percentage", Validator("min", 0), Validator("max", 100))
_builtin("port", Validator("integer"), Validator("min", 1), Validator("max", 65535))
_builtin("http_status", Validator("integer"), Validator("min", 100), Validator("max", 599))
_builtin("price_cents", Validator("integer"), Validator("min", 0))
_builtin("quantity", Validator("integer"), Validator("min", 1))
_builtin("unix_timestamp", Validator("min", 0))

Email = Annotated[str, Brand("email")]
Url = Annotated[str, Brand("url")]
Secret = Annotated[str, Brand("secret")]
Password = Annotated[str, Brand("password")]
