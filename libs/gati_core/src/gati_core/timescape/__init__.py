"""Timescape: many versions of a handler at once; which one a request means, and which code runs for it.

Belongs here: the names of versions, timelines and tags, the registry that keeps them, and the pure decisions of
routers. Does not belong here: running transformers (`lifecycle`), hosting versions (the worker).

May import: `errors`, `wire`, `gtype`, `manifests`; the registry alone also `fabric`.
"""

from gati_core.timescape._choice import FROM_QUERY, MAX_HOPS, Choice, Source, Versions
from gati_core.timescape._preference import Preference, Semver, check_label, read_preference, read_semver
from gati_core.timescape._registering import (
    Registered,
    TypeSource,
    compare,
    compare_manifests,
    register_handlers,
    types_of,
)
from gati_core.timescape._registry import (
    Backend,
    Registry,
    fabric_backend,
    fabric_registry,
    memory_registry,
    read_timeline,
    timeline_key,
    timeline_names,
)
from gati_core.timescape._rollout import Rollout, is_chosen, read_rollout, rollout_key, rollout_names, share_of
from gati_core.timescape._sweep import Sweeper, SweepPolicy, SweepTurns, Verdict, classify, fabric_turns, plan_sweep
from gati_core.timescape._timeline import (
    MAX_VERSIONS,
    PROTECTED_TAGS,
    Change,
    Status,
    Tag,
    Timeline,
    VersionRecord,
    with_deprecation,
    with_keep,
    with_status,
    with_tag,
    with_transforms,
    with_version,
    without_tag,
)
from gati_core.timescape._tsv import Tsv, is_tsv, parse_tsv
from gati_core.timescape._usage import (
    HandlerUsage,
    UsageBook,
    UsageCounter,
    VersionUsage,
    fabric_usage,
    usage_key,
    usage_names,
)

__all__ = [
    "FROM_QUERY",
    "MAX_HOPS",
    "MAX_VERSIONS",
    "PROTECTED_TAGS",
    "Backend",
    "Change",
    "Choice",
    "HandlerUsage",
    "Preference",
    "Registered",
    "Registry",
    "Rollout",
    "Semver",
    "Source",
    "Status",
    "SweepPolicy",
    "SweepTurns",
    "Sweeper",
    "Tag",
    "Timeline",
    "Tsv",
    "TypeSource",
    "UsageBook",
    "UsageCounter",
    "Verdict",
    "VersionRecord",
    "VersionUsage",
    "Versions",
    "check_label",
    "classify",
    "compare",
    "compare_manifests",
    "fabric_backend",
    "fabric_registry",
    "fabric_turns",
    "fabric_usage",
    "is_chosen",
    "is_tsv",
    "memory_registry",
    "parse_tsv",
    "plan_sweep",
    "read_preference",
    "read_rollout",
    "read_semver",
    "read_timeline",
    "register_handlers",
    "rollout_key",
    "rollout_names",
    "share_of",
    "timeline_key",
    "timeline_names",
    "types_of",
    "usage_key",
    "usage_names",
    "with_deprecation",
    "with_keep",
    "with_status",
    "with_tag",
    "with_transforms",
    "with_version",
    "without_tag",
]
