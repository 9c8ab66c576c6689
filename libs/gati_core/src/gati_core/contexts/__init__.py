"""What a handler is given beside the request: the local context of one request, the global context
of one process.

May import: everything below (`fabric`, `wire`, `errors`, …). Belongs here: state and access.
Running handlers and hooks is `lifecycle`'s business.
"""

from gati_core.contexts._config import Config, freeze, load_config, thaw
from gati_core.contexts._global import Bucket, GlobalContext, Instance, TimescapeClient
from gati_core.contexts._health import (
    CheckResult,
    ErrorWindow,
    HealthFacts,
    HealthReport,
    memory_limit,
    memory_pressure,
    memory_used,
)
from gati_core.contexts._hooks import (
    DEFAULT_HOOK_TIMEOUT_S,
    LEVELS,
    MAX_BACKOFF_S,
    Hook,
    HookKind,
    HookLevel,
    check_parameters,
    is_async_callable,
    make_hook,
)
from gati_core.contexts._local import MAX_REGISTRATIONS, LocalContext
from gati_core.contexts._meta import ClientInfo, References, RequestMeta, VersionInfo
from gati_core.contexts._metrics import InProcessMetrics, Metrics, MetricsSnapshot, Series
from gati_core.contexts._operations import MAX_OPERATIONS, Operations
from gati_core.contexts._process import Priority, ProcessLifecycle
from gati_core.contexts._registry import Registry
from gati_core.contexts._request_lifecycle import PHASES, Phase, RequestLifecycle
from gati_core.contexts._snapshots import Change, Operation, Snapshot, apply, diff, from_bytes, take_snapshot, to_bytes
from gati_core.contexts._socket import WebSocket
from gati_core.contexts._spans import Span, SpanRecord
from gati_core.contexts._subscriptions import Closable, Event, EventReader, Subscription, TopicPort
from gati_core.contexts._tasks import Contained, TaskOwner, outliving_request, unowned_task, watch_tasks
from gati_core.contexts._topic_host import TopicHandler, TopicHost
from gati_core.contexts._topics import LocalTopics, RequestEvent, RequestEvents, Topics

__all__ = [
    "DEFAULT_HOOK_TIMEOUT_S",
    "LEVELS",
    "MAX_BACKOFF_S",
    "MAX_OPERATIONS",
    "MAX_REGISTRATIONS",
    "PHASES",
    "Bucket",
    "Change",
    "CheckResult",
    "ClientInfo",
    "Closable",
    "Config",
    "Contained",
    "ErrorWindow",
    "Event",
    "EventReader",
    "GlobalContext",
    "HealthFacts",
    "HealthReport",
    "Hook",
    "HookKind",
    "HookLevel",
    "InProcessMetrics",
    "Instance",
    "LocalContext",
    "LocalTopics",
    "Metrics",
    "MetricsSnapshot",
    "Operation",
    "Operations",
    "Phase",
    "Priority",
    "ProcessLifecycle",
    "References",
    "Registry",
    "RequestEvent",
    "RequestEvents",
    "RequestLifecycle",
    "RequestMeta",
    "Series",
    "Snapshot",
    "Span",
    "SpanRecord",
    "Subscription",
    "TaskOwner",
    "TimescapeClient",
    "TopicHandler",
    "TopicHost",
    "TopicPort",
    "Topics",
    "VersionInfo",
    "WebSocket",
    "apply",
    "check_parameters",
    "diff",
    "freeze",
    "from_bytes",
    "is_async_callable",
    "load_config",
    "make_hook",
    "memory_limit",
    "memory_pressure",
    "memory_used",
    "outliving_request",
    "take_snapshot",
    "thaw",
    "to_bytes",
    "unowned_task",
    "watch_tasks",
]
