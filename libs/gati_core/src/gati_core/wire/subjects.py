"""Every subject, stream, consumer and bucket name; nobody else builds one.

Names come from outside (a package's name, a function's name), so each token is validated here: a
dot, a space or a wildcard in a token would change what a subject means.
"""

from __future__ import annotations

import re
from functools import lru_cache

from gati_core.errors import RegistrationError

TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_REPLY_TAIL = re.compile(r"[A-Za-z0-9_.-]{1,200}")
PRIORITIES = range(11)
"""0 to 10; 5 is the default and a higher number is more urgent."""

LANES: dict[str, range] = {"high": range(7, 11), "normal": range(4, 7), "low": range(4)}
"""Priority classes; each is one consumer on the request stream, so that none starves another."""


def token(value: str, what: str) -> str:
    """`value` if it can be one token of a subject.

    Raises:
        RegistrationError: it cannot; the message names what it was meant to be.
    """
    if TOKEN.fullmatch(value) is None:
        raise RegistrationError(
            f"{what} {value!r} must be 1 to 64 letters, digits, '_' or '-', and start with a letter or digit"
        )
    return value


class Subjects:
    """The names of one namespace. Cheap to make; keep one per process."""

    def __init__(self, namespace: str) -> None:
        self.namespace = token(namespace, "namespace")
        ns = namespace
        self.req_stream = f"{ns}_REQ"
        self.work_stream = f"{ns}_WORK"
        self.dead_stream = f"{ns}_DEAD"
        self.advisory_stream = f"{ns}_ADVISORIES"
        self.req_all = f"{ns}.req.>"
        self.work_all = f"{ns}.work.>"
        self.trace_stream = f"{ns}_TRACE"
        self.trace_all = f"{ns}.trace.>"
        self.topic_stream = f"{ns}_TOPICS"
        self.topic_durable_all = f"{ns}.topic.*.durable"
        self.topic_group_all = f"{ns}.topic.*.group.*"
        self.dead_all = f"{ns}.dead.>"
        self._reply_prefix = f"{ns}.reply."
        self._channel_prefix = f"{ns}.channel."
        self.cancel_any = f"{ns}.cancel.$any"
        self.wake_any = f"{ns}.wake.*"
        self.advisories = [
            f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.>" for stream in (self.req_stream, self.work_stream)
        ]
        self.advisory_consumer = "dead-letters"
        self.pools_bucket = f"{ns}_pools"
        self.manifests_bucket = f"{ns}_manifests"
        self.timescape_bucket = f"{ns}_timescape"
        self.config_bucket = f"{ns}_config"
        self.packages_bucket = f"{ns}_packages"
        self.snapshots_bucket = f"{ns}_snapshots"
        self.changes_stream = f"{ns}_CHANGES"
        self.change_all = f"{ns}.change.>"
        self.bodies_bucket = f"{ns}_bodies"

    def req(self, priority: int, shard: int = 0) -> str:
        """Where ingress publishes a request of this priority (0 to 10)."""
        return f"{self.namespace}.req.{priority}.{shard}"

    def lane_filters(self, lane: str) -> list[str]:
        """The subjects that the router consumer of one lane reads; lanes are disjoint (F2)."""
        return [f"{self.namespace}.req.{priority}.>" for priority in LANES[lane]]

    @staticmethod
    def lane_consumer(lane: str) -> str:
        """Durable name of the router consumer of one lane."""
        return f"router-{lane}"

    def work(self, pool: str, handler: str) -> str:
        """Where routers publish work for one handler of one pool."""
        return f"{self.namespace}.work.{token(pool, 'pool')}.{token(handler, 'handler')}"

    def work_filter(self, pool: str) -> str:
        """All work of one pool."""
        return f"{self.namespace}.work.{token(pool, 'pool')}.>"

    def wake(self, pool: str) -> str:
        """Where a pool whose workers are all asleep is told that there is work for it."""
        return f"{self.namespace}.wake.{token(pool, 'pool')}"

    @staticmethod
    def pool_of(subject: str) -> str:
        """The pool that work published there is for, or that is woken there."""
        return subject.split(".")[2]

    @staticmethod
    def work_consumer(pool: str) -> str:
        """Durable name of the consumer that the workers of one pool share."""
        return f"pool-{token(pool, 'pool')}"

    def reply(self, ingress: str, slot: str) -> str:
        """Where the answer to one request goes; only one ingress process listens."""
        return f"{self.namespace}.reply.{ingress}.{slot}"

    def reply_filter(self, ingress: str) -> str:
        """All answers to one ingress process."""
        return f"{self.namespace}.reply.{ingress}.*"

    @staticmethod
    def frames(reply_to: str, request_id: str) -> str:
        """Where the frames of one request go, given where its reply goes: the same ingress process."""
        return f"{reply_to.rpartition('.')[0]}.{request_id}"

    def channel(self, worker: str, request_id: str) -> str:
        """Where one worker process listens for the frames of one request."""
        return f"{self.namespace}.channel.{worker}.{request_id}"

    def channel_filter(self, worker: str) -> str:
        """The frames of all requests that one worker process runs."""
        return f"{self.namespace}.channel.{worker}.*"

    def is_channel(self, subject: str) -> bool:
        """Whether frames may be published there; see `is_reply` for why this is asked."""
        return (
            subject.startswith(self._channel_prefix)
            and _REPLY_TAIL.fullmatch(subject, len(self._channel_prefix)) is not None
        )

    def topic(self, name: str) -> str:
        """A global topic, delivered to whoever listens now."""
        return f"{self.namespace}.topic.{token(name, 'topic')}"

    def topic_durable(self, name: str) -> str:
        """A global topic's messages that are kept in the topic stream."""
        return f"{self.namespace}.topic.{token(name, 'topic')}.durable"

    def topic_group(self, app: str, group: str, topic: str) -> str:
        """A durable topic's messages for one group alone: events of its that are to run again."""
        return f"{self.namespace}.topic.{token(topic, 'topic')}.group.{self.group_name(app, group)}"

    def local(self, request_id: str, name: str) -> str:
        """A topic of one request."""
        return f"{self.namespace}.local.{token(request_id, 'request id')}.{token(name, 'topic')}"

    def local_event(self, request_id: str, kind: str) -> str:
        """Where one request waits for one type of event; no topic's name begins with `_`."""
        return f"{self.namespace}.local.{token(request_id, 'request id')}._{token(kind, 'event type')}"

    @staticmethod
    def group_name(app: str, group: str) -> str:
        """One durable group of an app, as one token; `~` is in no name, so that dashes cannot run together."""
        return f"{token(app, 'app')}~{token(group, 'group')}"

    @classmethod
    def topic_consumer(cls, app: str, group: str, topic: str) -> str:
        """Durable name of the consumer that one group of an app shares on one topic."""
        return f"topic-{cls.group_name(app, group)}~{token(topic, 'topic')}"

    def trace(self, request_id: str) -> str:
        """The events of one traced request."""
        return f"{self.namespace}.trace.{request_id}"

    def stored_run(self, request_id: str) -> str:
        """The stored run of one request, beside its events."""
        return f"{self.namespace}.trace.{request_id}.run"

    def is_reply(self, subject: str) -> bool:
        """Whether an answer may be published there.

        The subject comes out of a message: without this check whoever can write to a stream could
        have a router publish anywhere, or break its connection with a line end.
        """
        return (
            subject.startswith(self._reply_prefix)
            and _REPLY_TAIL.fullmatch(subject, len(self._reply_prefix)) is not None
        )

    def cancel(self, pool: str) -> str:
        """Where a request is cancelled by someone who knows the pool that runs it."""
        return f"{self.namespace}.cancel.{token(pool, 'pool')}"

    def dead(self, stage: str, pool: str) -> str:
        """Where a dead letter goes.

        Args:
            stage: `req`, `work` or `topic`.
            pool: whose it was: `-` when nobody's yet; of a topic's event the group, as `group_name` writes it.
        """
        return f"{self.namespace}.dead.{stage}.{pool}"

    def change(self, app: str, handler: str) -> str:
        """The change log of one handler's versions."""
        return f"{self.namespace}.change.{token(app, 'app')}.{token(handler, 'handler')}"

    def app_bucket(self, name: str) -> str:
        """The key-value bucket behind `gctx.buckets[name]`."""
        return f"{self.namespace}_app_{token(name, 'bucket')}"

    def member_key(self, role: str, *parts: str) -> str:
        """Key of one live process in the pools bucket: `worker.<pool>.<id>`, `router.<id>`, …"""
        return ".".join((role, *parts))


def key_token(text: str) -> str:
    """Any text as one part of a key in a bucket: what keys cannot hold becomes `=` and two hexadecimal digits.

    >>> key_token("tsv:1732186200-users-042")
    'tsv=3A1732186200-users-042'
    """
    return "".join(
        chr(byte) if byte < 128 and (chr(byte).isalnum() or byte in b"-_") else f"={byte:02X}" for byte in text.encode()
    )


def read_key_token(part: str) -> str:
    """The text that `key_token` wrote.

    >>> read_key_token("tsv=3A1732186200-users-042")
    'tsv:1732186200-users-042'
    """
    return re.sub(rb"=([0-9A-F]{2})", lambda found: bytes([int(found[1], 16)]), part.encode()).decode()


@lru_cache(maxsize=64)
def for_namespace(namespace: str) -> Subjects:
    """The shared `Subjects` of a namespace."""
    return Subjects(namespace)
