"""The fabric: NATS JetStream behind a few small classes; the only package that imports nats.

May import: `errors`, `ids`, `settings`, `wire`. Belongs here: connecting, publishing, pulling,
buckets, bodies, dead letters, and the provisioner. Does not belong here: what the messages mean.
"""

from gati_core.fabric._client import format_headers, parse_headers
from gati_core.fabric._fabric import Fabric, open_fabric
from gati_core.fabric.bodies import Bodies, BodyLost
from gati_core.fabric.changes import ChangeLog
from gati_core.fabric.channels import Channel, ChannelHost, ChannelPort
from gati_core.fabric.connection import QUIET_TICK_S, Connection, ConnectionHealth, open_connection
from gati_core.fabric.dead_letters import DeadLetter, DeadLetters
from gati_core.fabric.embedded import EmbeddedBroker, find_server, free_port
from gati_core.fabric.kv import Entry, KvBucket, KvView
from gati_core.fabric.packages import PackageLost, PackageStore, StoredPackage
from gati_core.fabric.ports import DeliveryPort, MessagePort, PublisherPort, PublishResult
from gati_core.fabric.publisher import WindowedPublisher
from gati_core.fabric.pull import Delivery, PullConsumer
from gati_core.fabric.topics import DurableSubscription, FabricTopics
from gati_core.fabric.topology import Topology, stream_state, waiting_work

__all__ = [
    "QUIET_TICK_S",
    "Bodies",
    "BodyLost",
    "ChangeLog",
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
    "PackageLost",
    "PackageStore",
    "PublishResult",
    "PublisherPort",
    "PullConsumer",
    "StoredPackage",
    "Topology",
    "WindowedPublisher",
    "find_server",
    "format_headers",
    "free_port",
    "open_connection",
    "open_fabric",
    "parse_headers",
    "stream_state",
    "waiting_work",
]
