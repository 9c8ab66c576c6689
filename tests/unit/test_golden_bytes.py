"""The wire format, byte for byte, so that it cannot drift unseen.

Streams and rolling updates hold messages of the version before. A field may be appended with a
default: then a new line of golden bytes is added here and the old ones must still decode. Whatever
else changes these bytes needs a new `PROTOCOL`.
"""

from __future__ import annotations

import msgspec
import pytest

from gati_core.wire import (
    PROTOCOL,
    Cancel,
    Principal,
    Reply,
    ReplyError,
    RequestDescriptor,
    RoutingView,
    Timing,
    TopicMessage,
    WorkItem,
    encode,
)

_DRIFTED = (
    "the wire format of {name} has changed. If a field was appended with a default: add the new bytes and keep"
    " the old ones as an older version. If anything else changed: raise PROTOCOL in wire/messages.py, or undo it."
    "\n  new bytes: {found}"
)

DESCRIPTOR = RequestDescriptor(
    protocol=1,
    request_id="0197c3a0-0000-7000-8000-000000000001",
    reply_to="gati.reply.i1.7",
    deadline_ms=1_767_225_630_000,
    received_ms=1_767_225_600_000,
    method="POST",
    path="/orders/a%2Fb",
    priority=7,
    version="^1.2",
    principal=Principal("ada", ["buyer", "admin"], "bearer"),
    query="a=1&b=%20",
    headers=[("content-type", "application/json"), ("x-twice", "1"), ("x-twice", "2")],
    body=b'{"sku":"ada-42","quantity":3}',
    body_ticket="ticket-1",
    client_ip="192.0.2.7",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    flags=["traced"],
    idempotency_key="key-1",
)

GOLDEN: dict[str, tuple[msgspec.Struct, str]] = {
    "RequestDescriptor": (
        DESCRIPTOR,
        "dc001201d92430313937633361302d303030302d373030302d383030302d303030303030303030303031af676174692e"
        "7265706c792e69312e37cf0000019b76db1d30cf0000019b76daa800a4504f5354ad2f6f72646572732f612532466207"
        "a45e312e3293a361646192a56275796572a561646d696ea6626561726572a9613d3126623d2532309392ac636f6e7465"
        "6e742d74797065b06170706c69636174696f6e2f6a736f6e92a7782d7477696365a13192a7782d7477696365a132c41d"
        "7b22736b75223a226164612d3432222c227175616e74697479223a337da87469636b65742d31a93139322e302e322e37"
        "d93730302d30616637363531393136636434336464383434386562323131633830333139632d62376164366237313639"
        "3230333333312d303191a6747261636564a56b65792d31",
    ),
    "RoutingView": (
        RoutingView(*msgspec.structs.astuple(DESCRIPTOR)[:10]),
        "9a01d92430313937633361302d303030302d373030302d383030302d303030303030303030303031af676174692e7265"
        "706c792e69312e37cf0000019b76db1d30cf0000019b76daa800a4504f5354ad2f6f72646572732f612532466207a45e"
        "312e3293a361646192a56275796572a561646d696ea6626561726572",
    ),
    "WorkItem": (
        WorkItem(
            protocol=1,
            request_id="0197c3a0-0000-7000-8000-000000000001",
            reply_to="gati.reply.i1.7",
            deadline_ms=1_767_225_630_000,
            handler="place_order",
            mode="at_most_once",
            descriptor=msgspec.Raw(encode(DESCRIPTOR)),
            params={"sku": "ä/b"},
            routed_ms=1_767_225_600_002,
            tsv="tsv:1767225600-place_order-3",
            manifest_hash="5f2c",
            version_headers=[("x-gati-version", "tsv:1767225600-place_order-3")],
            source="tag",
            hops=["tsv:1767225500-place_order-2", "tsv:1767225600-place_order-3"],
            fallback="gati.work.shop-1.place_order",
        ),
        "9f01d92430313937633361302d303030302d373030302d383030302d303030303030303030303031af676174692e7265"
        "706c792e69312e37cf0000019b76db1d30ab706c6163655f6f72646572ac61745f6d6f73745f6f6e6365dc001201d924"
        "30313937633361302d303030302d373030302d383030302d303030303030303030303031af676174692e7265706c792e"
        "69312e37cf0000019b76db1d30cf0000019b76daa800a4504f5354ad2f6f72646572732f612532466207a45e312e3293"
        "a361646192a56275796572a561646d696ea6626561726572a9613d3126623d2532309392ac636f6e74656e742d747970"
        "65b06170706c69636174696f6e2f6a736f6e92a7782d7477696365a13192a7782d7477696365a132c41d7b22736b7522"
        "3a226164612d3432222c227175616e74697479223a337da87469636b65742d31a93139322e302e322e37d93730302d30"
        "616637363531393136636434336464383434386562323131633830333139632d62376164366237313639323033333331"
        "2d303191a6747261636564a56b65792d3181a3736b75a4c3a42f62cf0000019b76daa802bc7473763a31373637323235"
        "3630302d706c6163655f6f726465722d33a4356632639192ae782d676174692d76657273696f6ebc7473763a31373637"
        "3232353630302d706c6163655f6f726465722d33a374616792bc7473763a313736373232353530302d706c6163655f6f"
        "726465722d32bc7473763a313736373232353630302d706c6163655f6f726465722d33bc676174692e776f726b2e7368"
        "6f702d312e706c6163655f6f72646572",
    ),
    "Reply": (
        Reply(
            protocol=1,
            request_id="0197c3a0-0000-7000-8000-000000000001",
            status=409,
            headers=[("content-type", "application/problem+json"), ("set-cookie", "a"), ("set-cookie", "b")],
            body=b"\x00\xff body",
            body_ticket="ticket-2",
            timing=Timing(1_767_225_600_000, 1_767_225_600_001, 1_767_225_600_002, 1_767_225_600_003),
            more=True,
            error=ReplyError("shop.out_of_stock", "no ada-42 left"),
            route="/orders/{sku}",
            channel="gati.channel.w1.0197c3a0-0000-7000-8000-000000000001",
        ),
        "9b01d92430313937633361302d303030302d373030302d383030302d303030303030303030303031cd01999392ac636f"
        "6e74656e742d74797065b86170706c69636174696f6e2f70726f626c656d2b6a736f6e92aa7365742d636f6f6b6965a1"
        "6192aa7365742d636f6f6b6965a162c40700ff20626f6479a87469636b65742d3294cf0000019b76daa800cf0000019b"
        "76daa801cf0000019b76daa802cf0000019b76daa803c392b173686f702e6f75745f6f665f73746f636bae6e6f206164"
        "612d3432206c656674ad2f6f72646572732f7b736b757dd934676174692e6368616e6e656c2e77312e30313937633361"
        "302d303030302d373030302d383030302d303030303030303030303031",
    ),
    "Cancel": (
        Cancel(
            protocol=1,
            request_id="0197c3a0-0000-7000-8000-000000000001",
            reason="client_gone",
            deadline_ms=1_767_225_630_000,
        ),
        "9401d92430313937633361302d303030302d373030302d383030302d303030303030303030303031ab636c69656e745f"
        "676f6e65cf0000019b76db1d30",
    ),
    "TopicMessage": (
        TopicMessage(
            protocol=1,
            topic="orders",
            published_ms=1_767_225_600_000,
            publisher="a1b2c3d4e5f6",
            request_id="0197c3a0-0000-7000-8000-000000000001",
            payload=encode({"sku": "ada-42"}),
        ),
        "9601a66f7264657273cf0000019b76daa800ac613162326333643465356636d92430313937633361302d303030302d37"
        "3030302d383030302d303030303030303030303031c40c81a3736b75a66164612d3432",
    ),
}

OLDER: dict[str, tuple[msgspec.Struct, str]] = {
    "WorkItem without the way to its version": (
        msgspec.structs.replace(GOLDEN["WorkItem"][0], version_headers=[], source="", hops=[], fallback=""),
        "9b01d92430313937633361302d303030302d373030302d383030302d303030303030303030303031af676174692e7265"
        "706c792e69312e37cf0000019b76db1d30ab706c6163655f6f72646572ac61745f6d6f73745f6f6e6365dc001201d924"
        "30313937633361302d303030302d373030302d383030302d303030303030303030303031af676174692e7265706c792e"
        "69312e37cf0000019b76db1d30cf0000019b76daa800a4504f5354ad2f6f72646572732f612532466207a45e312e3293"
        "a361646192a56275796572a561646d696ea6626561726572a9613d3126623d2532309392ac636f6e74656e742d747970"
        "65b06170706c69636174696f6e2f6a736f6e92a7782d7477696365a13192a7782d7477696365a132c41d7b22736b7522"
        "3a226164612d3432222c227175616e74697479223a337da87469636b65742d31a93139322e302e322e37d93730302d30"
        "616637363531393136636434336464383434386562323131633830333139632d62376164366237313639323033333331"
        "2d303191a6747261636564a56b65792d3181a3736b75a4c3a42f62cf0000019b76daa802bc7473763a31373637323235"
        "3630302d706c6163655f6f726465722d33a435663263",
    ),
    "Reply without route": (
        msgspec.structs.replace(GOLDEN["Reply"][0], route="", channel=""),
        "9901d92430313937633361302d303030302d373030302d383030302d303030303030303030303031cd01999392ac636f"
        "6e74656e742d74797065b86170706c69636174696f6e2f70726f626c656d2b6a736f6e92aa7365742d636f6f6b6965a1"
        "6192aa7365742d636f6f6b6965a162c40700ff20626f6479a87469636b65742d3294cf0000019b76daa800cf0000019b"
        "76daa801cf0000019b76daa802cf0000019b76daa803c392b173686f702e6f75745f6f665f73746f636bae6e6f206164"
        "612d3432206c656674",
    ),
    "Reply without channel": (
        msgspec.structs.replace(GOLDEN["Reply"][0], channel=""),
        "9a01d92430313937633361302d303030302d373030302d383030302d303030303030303030303031cd01999392ac636f"
        "6e74656e742d74797065b86170706c69636174696f6e2f70726f626c656d2b6a736f6e92aa7365742d636f6f6b6965a1"
        "6192aa7365742d636f6f6b6965a162c40700ff20626f6479a87469636b65742d3294cf0000019b76daa800cf0000019b"
        "76daa801cf0000019b76daa802cf0000019b76daa803c392b173686f702e6f75745f6f665f73746f636bae6e6f206164"
        "612d3432206c656674ad2f6f72646572732f7b736b757d",
    ),
}
"""Bytes of earlier versions, and the message that they are now."""


@pytest.mark.parametrize("name", OLDER)
def test_bytes_of_an_older_version_decode_to_the_message_with_defaults(name: str) -> None:
    message, golden = OLDER[name]

    assert msgspec.msgpack.decode(bytes.fromhex(golden), type=type(message)) == message


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_on_the_wire_have_not_changed(name: str) -> None:
    message, golden = GOLDEN[name]

    found = encode(message).hex()

    assert found == golden, _DRIFTED.format(name=name, found=found)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_decode_to_the_message(name: str) -> None:
    message, golden = GOLDEN[name]

    assert msgspec.msgpack.decode(bytes.fromhex(golden), type=type(message)) == message


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_message_varies_every_field(name: str) -> None:
    """A field left at its default would not be seen changing."""
    message, _ = GOLDEN[name]

    at_default = [
        field.name
        for field in msgspec.structs.fields(type(message))
        if getattr(message, field.name) in (field.default, _made(field.default_factory))
    ]
    assert at_default == []


def _made(factory: object) -> object:
    return factory() if callable(factory) else factory


def test_golden_bytes_are_of_the_present_protocol() -> None:
    assert PROTOCOL == 1, "PROTOCOL was raised: replace every golden message, the old bytes must be refused now"
