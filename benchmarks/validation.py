#!/usr/bin/env python3
"""Validating one body: what fits, and what does not; beside pydantic and jsonschema on the same bytes.

The body has 20 fields on three levels: an address in a customer in an order, and a list of lines. Every
library reads the same JSON text, in turn within every round.

    python benchmarks/validation.py
    python benchmarks/validation.py --json
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Annotated, Any, Literal

import jsonschema  # type: ignore[import-untyped,unused-ignore]  # it has no annotations
import msgspec
import pydantic
from msgspec import Meta

from _common import Output, header
from gati_core import App, Request, Response
from gati_core.gtype import Brand, extract, fingerprint, to_json_schema
from gati_core.lifecycle import DeclaredType
from gati_core.lifecycle.validation import Mismatch

TARGETS = {"valid": 5.0, "10 errors": 1000.0, "manifest of 50 handlers": 300_000.0}
"""In µs."""


# -- the type, three times -----------------------------------------------------------------------

Text = Annotated[str, Meta(min_length=1, max_length=80)]
Sku = Annotated[str, Meta(pattern="^[a-z0-9-]+$", max_length=40)]


class Address(msgspec.Struct):
    street: Text
    number: Annotated[int, Meta(ge=1)]
    city: Text
    postcode: Annotated[str, Meta(pattern="^[0-9]{5}$")]
    country: Literal["de", "fr", "nl"]


class Customer(msgspec.Struct):
    id: int
    name: Text
    vip: bool
    discount: Annotated[float, Meta(ge=0, le=1)]
    address: Address


class Line(msgspec.Struct):
    sku: Sku
    quantity: Annotated[int, Meta(ge=1, le=1000)]
    price: Annotated[float, Meta(ge=0)]


class Order(msgspec.Struct):
    number: Text
    customer: Customer
    lines: Annotated[list[Line], Meta(min_length=1, max_length=50)]
    paid: bool
    total: Annotated[float, Meta(ge=0)]
    note: str | None = None
    channel: Literal["web", "shop"] = "web"


class BrandedOrder(Order):
    """With a field that the decoder alone does not check."""

    email: Annotated[str, Brand("email")] = "nobody@example.org"


def _limits(**limits: Any) -> Any:
    return pydantic.Field(**limits)


class PydanticAddress(pydantic.BaseModel):
    street: Annotated[str, _limits(min_length=1, max_length=80)]
    number: Annotated[int, _limits(ge=1)]
    city: Annotated[str, _limits(min_length=1, max_length=80)]
    postcode: Annotated[str, _limits(pattern="^[0-9]{5}$")]
    country: Literal["de", "fr", "nl"]


class PydanticCustomer(pydantic.BaseModel):
    id: int
    name: Annotated[str, _limits(min_length=1, max_length=80)]
    vip: bool
    discount: Annotated[float, _limits(ge=0, le=1)]
    address: PydanticAddress


class PydanticLine(pydantic.BaseModel):
    sku: Annotated[str, _limits(pattern="^[a-z0-9-]+$", max_length=40)]
    quantity: Annotated[int, _limits(ge=1, le=1000)]
    price: Annotated[float, _limits(ge=0)]


class PydanticOrder(pydantic.BaseModel):
    number: Annotated[str, _limits(min_length=1, max_length=80)]
    customer: PydanticCustomer
    lines: Annotated[list[PydanticLine], _limits(min_length=1, max_length=50)]
    paid: bool
    total: Annotated[float, _limits(ge=0)]
    note: str | None = None
    channel: Literal["web", "shop"] = "web"


ADDRESS = {"street": "Main Street", "number": 5, "city": "Berlin", "postcode": "10115", "country": "de"}
CUSTOMER = {"id": 7, "name": "Ada", "vip": True, "discount": 0.1, "address": ADDRESS}
VALID = {
    "number": "2026-0001",
    "customer": CUSTOMER,
    "lines": [{"sku": "ada-42", "quantity": 2, "price": 9.5}],
    "paid": False,
    "total": 19.0,
    "note": None,
    "channel": "web",
}
WRONG = {
    "number": "",
    "customer": {"id": "x", "name": 5, "vip": 1.5, "discount": 7, "address": {**ADDRESS, "postcode": "1", "number": 0}},
    "lines": [{"sku": "A B", "quantity": 0, "price": -1}],
    "paid": False,
    "total": 19.0,
}
"""Ten errors."""


# -- what is measured ----------------------------------------------------------------------------


def cases() -> dict[str, dict[str, Callable[[], Any]]]:
    """Per case, one call for each library."""
    valid, wrong = json.dumps(VALID).encode(), json.dumps(WRONG).encode()
    ours = DeclaredType(Order, where="body")
    branded = DeclaredType(BrandedOrder, where="body")
    checker = jsonschema.Draft202012Validator(to_json_schema(extract(Order).document))

    def diagnose() -> int:
        try:
            ours.from_json(wrong)
        except Mismatch as exc:
            return len(exc.errors)
        return 0

    def diagnose_pydantic() -> int:
        try:
            PydanticOrder.model_validate_json(wrong)
        except pydantic.ValidationError as exc:
            return len(exc.errors(include_url=False))
        return 0

    def diagnose_jsonschema() -> int:
        return len(list(checker.iter_errors(json.loads(wrong))))

    assert (diagnose(), diagnose_pydantic(), diagnose_jsonschema()) == (10, 10, 10)
    return {
        "valid": {
            "gati": lambda: ours.from_json(valid),
            "pydantic": lambda: PydanticOrder.model_validate_json(valid),
            "jsonschema": lambda: checker.is_valid(json.loads(valid)),
        },
        "valid, with a brand": {"gati": lambda: branded.from_json(valid)},
        "10 errors": {"gati": diagnose, "pydantic": diagnose_pydantic, "jsonschema": diagnose_jsonschema},
        "generated validator, valid": {"gati": lambda: ours.validator.accepts(VALID)},
        "manifest of 50 handlers": {"gati": manifests},
        "fingerprint": {"gati": lambda: fingerprint(ours.document)},
    }


def manifests() -> list[Any]:
    """The manifests of a package of 50 handlers, from registration on."""
    app = App("bench")
    for number in range(50):

        async def handler(req: Request[Order], res: Response[Customer], gctx: Any, lctx: Any) -> None:
            res.json(req.body.customer)

        app.post(f"/orders-{number}", id=f"handler_{number}")(handler)
    return [each.manifest for each in app.handlers.values()]


def us_per_call(function: Callable[[], Any], seconds: float) -> float:
    """Microseconds per call, as many calls as fit into `seconds`, in batches."""
    batch, calls = 1, 0
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        for _ in range(batch):
            function()
        calls += batch
        batch = min(batch * 2, 500)
    return spent / calls * 1e6


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.2, help="per measurement")
    parser.add_argument("--rounds", type=int, default=7, help="measurements per row; the row shows medians")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    options = parser.parse_args()

    output = Output(as_json=options.json)
    others = f"pydantic {pydantic.VERSION}, msgspec {msgspec.__version__}"
    output.header(header(warm_up="1 round", rounds=options.rounds, others=others))
    names = ["case", "gati µs", "target µs", "pydantic µs", "jsonschema µs", "pydantic / gati", "jsonschema / gati"]
    output.columns(names)
    gc.disable()
    for case, libraries in cases().items():
        found: dict[str, list[float]] = {name: [] for name in libraries}
        for round_ in range(options.rounds + 1):
            for name, call in libraries.items():
                spent = us_per_call(call, options.seconds)
                if round_:
                    found[name].append(spent)
            gc.collect()
        us = {name: round(median(spent), 2) for name, spent in found.items()}
        ratios = {
            name: round(median(a / b for a, b in zip(found[name], found["gati"], strict=True)), 1)
            for name in ("pydantic", "jsonschema")
            if name in found
        }
        target = TARGETS.get(case)
        cells = [case, f"{us['gati']:,.2f}", f"≤ {target:,.0f}" if target else ""]
        cells += [f"{us[name]:,.2f}" if name in us else "" for name in ("pydantic", "jsonschema")]
        cells += [f"{ratios[name]:.1f}" if name in ratios else "" for name in ("pydantic", "jsonschema")]
        output.row(cells, {"case": case, "us": us, "ratios": ratios, "target_us": target})


if __name__ == "__main__":
    main()
