"""What travels and what is stored."""

from typing import Annotated

import msgspec
from msgspec import Meta

Sku = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]


class NewOrder(msgspec.Struct, forbid_unknown_fields=True):
    """An order as a customer places it."""

    sku: Sku
    quantity: Annotated[int, Meta(ge=1, le=1000)] = 1


class Order(msgspec.Struct):
    """An order as it is kept; its id is the id of the request that placed it."""

    id: str
    sku: str
    quantity: int


class StockLevel(msgspec.Struct, forbid_unknown_fields=True):
    """How many pieces of one article there are."""

    quantity: Annotated[int, Meta(ge=0, le=1_000_000)]
