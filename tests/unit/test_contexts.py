"""What a handler is given beside the request."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from gati_core.contexts import GlobalContext, Instance, LocalContext
from gati_core.errors import RegistrationError
from gati_core.wire import Principal
from tests.helpers.handling import descriptor

INSTANCE = Instance("i-1", "shop", "shop-1", "host", 5)


def _local(deadline_ms: int = 0, **fields: Any) -> LocalContext:
    return LocalContext(descriptor(**fields), deadline_ms=deadline_ms)


# -- local --------------------------------------------------------------------------------------


def test_the_local_context_knows_its_request() -> None:
    lctx = _local(7, client_ip="192.0.2.1", traceparent="00-1")

    assert (lctx.request_id, lctx.deadline_ms) == ("r-1", 7)
    assert (lctx.client_ip, lctx.traceparent) == ("192.0.2.1", "00-1")


def test_the_deadline_is_the_requests_unless_somebody_says_otherwise() -> None:
    assert LocalContext(descriptor(deadline_ms=5)).deadline_ms == 5
    assert LocalContext(descriptor(deadline_ms=5), deadline_ms=3).deadline_ms == 3


def test_the_facts_about_a_request_are_in_its_meta() -> None:
    request = descriptor(method="GET", path="/x", flags=["beta", "trace"], received_ms=1_000)
    lctx = LocalContext(
        request,
        deadline_ms=2_500,
        started_ms=1_200,
        attempt=2,
        version="v2",
        instance_id="i-1",
        region="eu",
    )

    meta = lctx.meta
    assert (meta.request_id, meta.method, meta.path, meta.version) == ("r-1", "GET", "/x", "v2")
    assert (meta.flags, meta.received_ms, meta.timestamp) == (("beta", "trace"), 1_000, 1_000)
    assert (meta.start_time, meta.timeout, meta.attempt) == (1_200, 1_300, 2)
    assert (meta.instance_id, meta.region, meta.phase) == ("i-1", "eu", "received")


def test_the_meta_follows_the_phase() -> None:
    lctx = _local()
    meta = lctx.meta

    lctx.lifecycle.set_phase("authorized")

    assert meta.phase == lctx.lifecycle.phase == "authorized"


@pytest.mark.parametrize("name", ["path", "request_id", "phase", "other"])
def test_facts_about_the_request_cannot_be_changed(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(_local().meta, name, "/other")


def test_the_trace_is_the_one_that_came_in() -> None:
    lctx = _local(traceparent=f"00-{'a' * 32}-{'b' * 16}-01")

    assert (lctx.trace_id, lctx.parent_span_id) == ("a" * 32, "b" * 16)


@pytest.mark.parametrize("traceparent", ["", "00-1", "garbage", "00-short-b-01"])
def test_without_a_proper_trace_the_id_is_made_from_the_requests(traceparent: str) -> None:
    one, again, other = (_local(traceparent=traceparent, request_id=name) for name in ("r-1", "r-1", "r-2"))

    assert len(one.trace_id) == 32
    assert one.trace_id == again.trace_id != other.trace_id


def test_a_client_is_its_principal_and_else_its_address() -> None:
    known = _local(principal=Principal("ada"))
    one, again, other = (_local(client_ip=ip) for ip in ("192.0.2.1", "192.0.2.1", "192.0.2.2"))

    assert known.client_id == known.refs.user_id == "ada"
    assert one.client_id == again.client_id != other.client_id
    assert one.client_id.startswith("client_")
    assert one.refs.user_id is None


def test_references_can_be_filled_in() -> None:
    lctx = _local()

    lctx.refs.tenant_id = "t-7"

    assert (lctx.refs.tenant_id, lctx.refs.session_id) == ("t-7", None)


def test_the_client_is_what_its_headers_and_the_network_say() -> None:
    lctx = _local(client_ip="192.0.2.1", headers=[("user-agent", "curl"), ("x-client-region", "eu")])

    assert (lctx.client.ip, lctx.client.user_agent, lctx.client.region) == ("192.0.2.1", "curl", "eu")


@pytest.mark.parametrize(("sent", "asked", "source"), [("", "", "latest"), ("v1", "v1", "tag"), ("?v1", "v1", "query")])
def test_the_version_that_runs_says_how_it_was_chosen(sent: str, asked: str, source: str) -> None:
    version = LocalContext(descriptor(version=sent), version="v2", source=source).timescape

    assert (version.requested, version.resolved, version.handler_version, version.source) == (asked, "v2", "v2", source)
    assert (version.chain_length, version.transform_ms) == (0, 0.0)


def test_what_was_set_can_be_read_until_it_is_deleted() -> None:
    lctx = _local()

    lctx.set("user", {"id": 7})
    assert lctx.get("user") == {"id": 7}

    lctx.delete("user")
    assert lctx.get("user") is None


def test_a_key_that_was_never_set_is_none_or_the_default() -> None:
    lctx = _local()

    assert (lctx.get("x"), lctx.get("x", 7)) == (None, 7)
    lctx.set("y", 1)
    assert (lctx.get("x"), lctx.get("x", 7)) == (None, 7)


def test_none_that_was_set_is_no_missing_key() -> None:
    lctx = _local()

    lctx.set("x", None)

    assert lctx.get("x", "default") is None


def test_deleting_what_is_not_there_is_no_error() -> None:
    lctx = _local()

    lctx.delete("x")
    lctx.set("y", 1)
    lctx.delete("x")

    assert lctx.get("y") == 1


def test_clean_forgets_everything_and_the_context_goes_on() -> None:
    lctx = _local()
    lctx.set("x", 1)

    lctx.clean()
    assert lctx.get("x") is None

    lctx.set("x", 2)
    assert lctx.get("x") == 2


def test_no_request_sees_what_another_set() -> None:
    one, two = _local(), _local()

    one.set("x", 1)

    assert two.get("x") is None


def test_a_handler_cannot_hang_state_on_the_context_itself() -> None:
    with pytest.raises(AttributeError):
        _local().user = 7  # type: ignore[attr-defined]


@pytest.mark.parametrize(("deadline_ms", "left_s"), [(102_500, 2.5), (100_000, 0.0), (1, 0.0)])
def test_the_time_that_remains_shrinks_to_zero_and_not_below(deadline_ms: int, left_s: float) -> None:
    lctx = LocalContext(descriptor(), deadline_ms=deadline_ms, clock=lambda: 100.0)

    assert lctx.remaining_s() == left_s


def test_a_log_line_carries_the_request_id_level_and_fields() -> None:
    with capture_logs() as lines:
        _local().log("order_placed", sku="ada")
        _local().log("stock_low", level="warning", left=2)

    assert lines == [
        {"event": "order_placed", "log_level": "info", "request_id": "r-1", "sku": "ada"},
        {"event": "stock_low", "log_level": "warning", "request_id": "r-1", "left": 2},
    ]


# -- global -------------------------------------------------------------------------------------


class _Bucket:
    """Stands for a bucket; the context only hands it out."""


def _global(**options: Any) -> GlobalContext:
    return GlobalContext(INSTANCE, **options)


def test_the_global_context_knows_its_process() -> None:
    assert _global().instance == INSTANCE
    with pytest.raises(AttributeError):
        INSTANCE.pool = "other"  # type: ignore[misc]


def test_a_declared_bucket_is_handed_out() -> None:
    bucket: Any = _Bucket()

    gctx = _global(buckets={"orders": bucket})

    assert gctx.buckets["orders"] is bucket
    assert (list(gctx.buckets), len(gctx.buckets), "carts" in gctx.buckets) == (["orders"], 1, False)


@pytest.mark.parametrize(("declared", "named"), [({}, "none"), ({"b": 1, "a": 2}, "a, b")])
def test_a_bucket_that_nobody_declared_is_an_error_that_says_what_to_do(declared: dict[str, Any], named: str) -> None:
    with pytest.raises(RegistrationError, match=rf"'orders' is not declared \(declared: {named}\); add app.bucket"):
        _ = _global(buckets=declared).buckets["orders"]


def test_the_configuration_is_read_only_and_a_copy() -> None:
    source = {"currency": "EUR"}
    gctx = _global(config=source)

    source["currency"] = "USD"

    assert gctx.config["currency"] == "EUR"
    with pytest.raises(TypeError):
        gctx.config["currency"] = "USD"  # type: ignore[index]


def test_a_handler_cannot_hang_state_on_the_process() -> None:
    with pytest.raises(AttributeError):
        _global().cache = {}  # type: ignore[attr-defined]
