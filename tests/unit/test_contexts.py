"""What a handler is given beside the request."""

from __future__ import annotations

import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from gati_core.contexts import GlobalContext, Instance, LocalContext, RequestMeta
from gati_core.errors import RegistrationError

META = RequestMeta("r-1", "GET", "/x", "v2", ("beta",), 1_000, 1)
INSTANCE = Instance("i-1", "shop", "shop-1", "host", 5)


def _local(deadline_ms: int = 0) -> LocalContext:
    return LocalContext(META, deadline_ms=deadline_ms)


# -- local --------------------------------------------------------------------------------------


def test_the_local_context_knows_its_request() -> None:
    lctx = LocalContext(META, deadline_ms=7, client_ip="192.0.2.1", traceparent="00-1")

    assert (lctx.request_id, lctx.meta, lctx.deadline_ms) == ("r-1", META, 7)
    assert (lctx.client_ip, lctx.traceparent) == ("192.0.2.1", "00-1")


def test_facts_about_the_request_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        META.path = "/other"  # type: ignore[misc]


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


def test_the_time_that_remains_shrinks_to_zero_and_not_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 100.0)

    assert _local(102_500).remaining_s() == 2.5
    assert _local(100_000).remaining_s() == 0.0
    assert _local(1).remaining_s() == 0.0


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
