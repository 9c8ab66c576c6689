"""Settings: one frozen struct per service, read once from the environment.

`os.environ` is read by the composition roots (`__main__.py`) and nowhere else; tests build the
structs directly. This module imports `errors` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar, get_origin

import msgspec
from msgspec import Meta

from gati_core.errors import SettingsError

S = TypeVar("S", bound=msgspec.Struct)


class FabricSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every process needs to reach the broker: `GATI_NATS_URL`, `GATI_NAMESPACE`, `GATI_FABRIC_*`."""

    nats_url: Annotated[str, Meta(min_length=1)] = "nats://127.0.0.1:4222"
    """Server addresses, comma separated. User and password may be part of it."""
    namespace: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")] = "gati"
    """First token of every subject and prefix of every stream, so that fabrics can share a server."""
    topology: Literal["apply", "bind"] = "apply"
    """`apply` creates what is missing; `bind` only verifies, for infrastructure that others own."""
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    """Copies of every stream and bucket: 1 on one server, 3 in a cluster."""
    req_max_msgs: Annotated[int, Meta(ge=1)] = 10_000
    """Requests waiting for a router; one more is refused with 503."""
    work_max_msgs_per_handler: Annotated[int, Meta(ge=1)] = 10_000
    """Work items waiting per pool and handler, so that a slow handler cannot fill the stream for others."""
    dead_max_msgs: Annotated[int, Meta(ge=1)] = 100_000
    """Dead letters kept, for at most seven days."""
    topics_max_msgs: Annotated[int, Meta(ge=1)] = 100_000
    """Durable events kept, each for 24 hours; one more is refused until the oldest expire."""
    trace_max_msgs: Annotated[int, Meta(ge=1)] = 100_000
    """Events of traced requests kept, each for an hour; one more is refused until the oldest expire."""
    claim_check_bytes: Annotated[int, Meta(ge=1024, le=900_000)] = 262_144
    """Bodies above this travel through the object store and only their ticket through the streams."""
    publish_window: Annotated[int, Meta(ge=1, le=65_536)] = 1024
    """Publishes not yet acknowledged by the broker, per process."""
    publish_ack_timeout_s: Annotated[float, Meta(gt=0)] = 5.0
    """Seconds until a publish that nobody acknowledged counts as unconfirmed."""
    connect_wait_s: Annotated[float, Meta(gt=0)] = 30.0
    """Seconds a starting process waits for the broker before it gives up."""
    stalled_after_s: Annotated[float, Meta(gt=0)] = 2.0
    """Seconds without any sign of progress after which the broker counts as away."""


def from_env(cls: type[S], prefix: str, environ: Mapping[str, str], *, extra: Mapping[str, str] | None = None) -> S:
    """Read a settings struct from `{prefix}*` variables.

    Args:
        cls: the struct; field `max_in_flight` is read from `{prefix}MAX_IN_FLIGHT`, a tuple from parts between commas.
        prefix: for example `GATI_WORKER_`.
        environ: the process environment.
        extra: further variables by full name → field, for names outside the prefix.
    Raises:
        SettingsError: a variable is not known, or its value does not fit; the process must not start.
    """
    names = {prefix + name.upper(): name for name in cls.__struct_fields__}
    if extra:
        names.update(extra)
    lists = {field.name for field in msgspec.structs.fields(cls) if get_origin(field.type) is tuple}
    found: dict[str, str | list[str]] = {}
    for variable, value in environ.items():
        if variable in names:
            name = names[variable]
            found[name] = [part.strip() for part in value.split(",") if part.strip()] if name in lists else value
        elif variable.startswith(prefix):
            known = ", ".join(sorted(names))
            raise SettingsError(f"{variable} is not a setting; the settings are {known}")
    try:
        return msgspec.convert(found, cls, strict=False)
    except (msgspec.ValidationError, ValueError) as exc:
        raise SettingsError(f"{prefix}*: {exc}") from exc


def fabric_from_env(environ: Mapping[str, str]) -> FabricSettings:
    """`FabricSettings` from `GATI_NATS_URL`, `GATI_NAMESPACE` and `GATI_FABRIC_*`."""
    extra = {"GATI_NATS_URL": "nats_url", "GATI_NAMESPACE": "namespace"}
    return from_env(FabricSettings, "GATI_FABRIC_", environ, extra=extra)
