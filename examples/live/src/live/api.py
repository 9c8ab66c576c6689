"""The routes: a stream of server-sent events, a WebSocket per visitor of a room, and tickets.

A ticket takes two steps, the seat and the payment. When the second fails, the first is undone.
"""

import time
from collections.abc import AsyncIterable

import anyio
import msgspec

from gati_core import (
    App,
    Event,
    GlobalContext,
    HandlerError,
    KeyConflict,
    LocalContext,
    Request,
    Response,
    Unauthenticated,
    WebSocket,
)
from live.models import NewTicket, Said, Ticket

app = App("live")
SEATS = app.bucket("seats")


class PaymentDeclined(Exception):
    """The bank does not like the card."""


# -- a ticker -------------------------------------------------------------------------------------


@app.get("/ticks/{count}", timeout_s=120)
async def ticks(req: Request[None], res: Response[bytes], gctx: GlobalContext, lctx: LocalContext) -> None:
    """The time, once a second, that many times. Ends early when the client leaves."""
    count = req.params["count"]
    if not count.isdecimal() or not 1 <= int(count) <= 60:
        raise HandlerError(f"{count!r} is not a number from 1 to 60", 404, code="live.not_found")
    async with res.header("cache-control", "no-store").stream(content_type="text/event-stream") as stream:
        for number in range(int(count)):
            if number:
                await anyio.sleep(1)
            await stream.event({"unix_s": int(time.time())}, event="tick", id=str(number))


# -- chat rooms -----------------------------------------------------------------------------------


@app.websocket("/rooms/{room}", timeout_s=3600)
async def room(req: Request[None], res: Response[None], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Everybody in a room reads what anybody in it says, whichever worker holds the connection."""
    name = req.params["room"]
    if not (name.isascii() and name.isalnum() and len(name) <= 40):
        raise HandlerError(f"a room's name has up to 40 letters and digits, not {name!r}", 404, code="live.not_found")
    topic, who, socket = f"room-{name}", str(req.query.get("name", "somebody")), lctx.websocket
    # Listening begins before the handshake is answered, so that nobody misses a reply to what they say.
    async with gctx.subscribe(topic, type=Said) as heard, anyio.create_task_group() as running:
        await socket.accept()
        running.start_soon(pass_on, heard, socket)
        async for message in socket:
            gctx.publish(topic, Said(who, str(message)))
        running.cancel_scope.cancel()


async def pass_on(heard: AsyncIterable[Event], socket: WebSocket) -> None:
    """Send what is said in the room to one visitor; a slow one misses the newest, and slows nobody down."""
    async for event in heard:
        await socket.send_json(event.payload)


# -- tickets --------------------------------------------------------------------------------------


@app.before
def note_visitor(gctx: GlobalContext, lctx: LocalContext) -> None:
    """Who asks, as far as they say so."""
    visitor = lctx.request.headers.get("x-visitor")
    lctx.refs.user_id = visitor if isinstance(visitor, str) else None


@app.post("/tickets")
async def buy_ticket(req: Request[NewTicket], res: Response[Ticket], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Take the seat, then the money; 409 when the seat is taken, 402 when the card is declined."""
    ticket = Ticket(req.body.seat, lctx.refs.user_id or "")
    try:
        await gctx.buckets[SEATS].create(ticket.seat, msgspec.json.encode(ticket))
    except KeyConflict:
        raise HandlerError(f"seat {ticket.seat} is taken", 409, code="live.seat_taken") from None
    lctx.compensate(lambda: gctx.buckets[SEATS].delete(ticket.seat), id="free-seat")
    charge(req.body.card)
    await gctx.publish_durable("tickets", ticket, message_id=lctx.request_id)
    res.status(201).json(ticket)


@buy_ticket.before
def require_visitor(gctx: GlobalContext, lctx: LocalContext) -> None:
    """Nobody buys a ticket without saying who they are."""
    if not lctx.refs.user_id:
        raise Unauthenticated("say who you are in x-visitor")


@buy_ticket.after
def say_where(gctx: GlobalContext, lctx: LocalContext) -> None:
    """Where to look the ticket up."""
    lctx.response.header("location", f"/tickets/{lctx.request.body.seat}")


@buy_ticket.catch
def explain_decline(error: BaseException, gctx: GlobalContext, lctx: LocalContext) -> None:
    """What the bank said is no internal error."""
    if isinstance(error, PaymentDeclined):
        lctx.response.status(402).json({"declined": str(error)})


@app.get("/tickets/{seat}")
async def show_ticket(req: Request[None], res: Response[Ticket], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Who has the seat, or 404."""
    seat = req.params["seat"]
    entry = await gctx.buckets[SEATS].get(seat) if seat.isascii() and seat.isalnum() else None
    if entry is None:
        raise HandlerError(f"nobody has seat {seat}", 404, code="live.not_found")
    res.json(msgspec.json.decode(entry.value, type=Ticket))


@app.subscribe("tickets", durable="welcome", type=Ticket)
async def welcome(event: Event, gctx: GlobalContext) -> None:
    """Tell the lobby. Runs once per ticket, in one of the workers, and again if that one dies of it."""
    gctx.publish("room-lobby", Said("usher", f"{event.payload.holder} sits in {event.payload.seat}"))


def charge(card: str) -> None:
    """Stands for a bank."""
    if card.startswith("0000"):
        raise PaymentDeclined("this card is not covered")
