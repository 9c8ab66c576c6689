"""The promise: what others may import. A name that comes or goes is written down here first."""

from __future__ import annotations

import importlib

import pytest

NAMES = {
    "gati_core": [
        "App",
        "Bucket",
        "ChannelClosed",
        "Event",
        "EventTimeout",
        "Forbidden",
        "GatiError",
        "GlobalContext",
        "HandlerError",
        "HookTimeout",
        "KeyConflict",
        "LocalContext",
        "ModuleError",
        "RateLimited",
        "Request",
        "Response",
        "Route",
        "Snapshot",
        "TooLate",
        "Unauthenticated",
        "WebSocket",
    ],
    "gati_core.wire": [
        "CHANNEL_ACK_BYTES",
        "CHANNEL_ACK_FRAMES",
        "CHANNEL_FRAME_BYTES",
        "CHANNEL_PROBE_S",
        "CHANNEL_SILENCE_S",
        "CHANNEL_WINDOW_BYTES",
        "CHANNEL_WINDOW_FRAMES",
        "LANES",
        "PRIORITIES",
        "PROTOCOL",
        "Cancel",
        "DeliveryMode",
        "Frame",
        "FrameKind",
        "HeaderPairs",
        "Principal",
        "Reply",
        "ReplyError",
        "RequestDescriptor",
        "RoutingView",
        "Subjects",
        "Timing",
        "TopicMessage",
        "TraceRecord",
        "WEBSOCKET",
        "WorkItem",
        "decode_cancel",
        "decode_descriptor",
        "decode_frame",
        "decode_reply",
        "decode_routing",
        "decode_topic",
        "decode_trace",
        "decode_work",
        "encode",
        "for_namespace",
        "from_json",
        "header_pair",
        "problem_body",
        "problem_parts",
        "problem_reply",
        "to_json",
        "token",
    ],
    "gati_core.fabric": [
        "Bodies",
        "BodyLost",
        "Channel",
        "ChannelHost",
        "ChannelPort",
        "Connection",
        "ConnectionHealth",
        "DeadLetter",
        "DeadLetters",
        "Delivery",
        "DeliveryPort",
        "DurableSubscription",
        "EmbeddedBroker",
        "Entry",
        "Fabric",
        "FabricTopics",
        "KvBucket",
        "KvView",
        "MessagePort",
        "PublishResult",
        "PublisherPort",
        "PullConsumer",
        "Topology",
        "WindowedPublisher",
        "find_server",
        "format_headers",
        "free_port",
        "open_connection",
        "open_fabric",
        "parse_headers",
        "stream_state",
    ],
    "gati_testing": [
        "AppSource",
        "FabricNotServing",
        "RunningFabric",
        "ServiceProcess",
        "eventually",
        "open_broker",
        "running_fabric",
    ],
}


@pytest.mark.parametrize("module", NAMES)
def test_public_names_are_the_ones_written_here(module: str) -> None:
    assert sorted(importlib.import_module(module).__all__) == sorted(NAMES[module])


@pytest.mark.parametrize("module", NAMES)
def test_every_public_name_is_there(module: str) -> None:
    imported = importlib.import_module(module)

    assert [name for name in NAMES[module] if not hasattr(imported, name)] == []
