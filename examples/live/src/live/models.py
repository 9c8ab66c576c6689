"""What travels and what is stored."""

from typing import Annotated

import msgspec
from msgspec import Meta

Seat = Annotated[str, Meta(pattern=r"^[A-Z][0-9]{1,2}$")]


class Said(msgspec.Struct):
    """One message in a chat room."""

    who: str
    what: str


class NewTicket(msgspec.Struct, forbid_unknown_fields=True):
    """A ticket as a visitor orders it."""

    seat: Seat
    card: Annotated[str, Meta(min_length=1, max_length=40)]


class Ticket(msgspec.Struct):
    """A ticket that was paid."""

    seat: str
    holder: str
