"""The taxonomy of errors: what each means to a client and to the queue."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import pytest

import gati_core.fabric  # noqa: F401  (defines errors of its own)
from gati_core import errors
from gati_core.errors import GatiError, HandlerError, MethodNotAllowed, PermanentError, TransientError

_BASES = {GatiError, TransientError, PermanentError}


def _kinds(of: type[GatiError] = GatiError) -> Iterator[type[GatiError]]:
    for kind in of.__subclasses__():
        if kind.__module__.startswith("gati_core."):
            yield kind
            yield from _kinds(kind)


KINDS = sorted({kind for kind in _kinds() if kind not in _BASES}, key=lambda kind: kind.__name__)


def test_every_error_has_a_code_of_its_own() -> None:
    by_code: dict[str, list[str]] = defaultdict(list)
    for kind in KINDS:
        by_code[kind.code].append(kind.__name__)

    assert {code: names for code, names in by_code.items() if len(names) > 1} == {}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_error_is_understood_by_clients(kind: type[GatiError]) -> None:
    assert re.fullmatch(r"[a-z]+(\.[a-z_]+)+", kind.code)
    assert 400 <= kind.status <= 599
    assert kind.title
    assert kind.__doc__


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_error_is_not_transient_and_permanent_at_once(kind: type[GatiError]) -> None:
    assert not (issubclass(kind, TransientError) and issubclass(kind, PermanentError))


@pytest.mark.parametrize("kind", [k for k in KINDS if issubclass(k, TransientError)], ids=lambda kind: kind.__name__)
def test_transient_error_says_when_to_try_again(kind: type[TransientError]) -> None:
    assert kind.retry_after_s >= 1


def test_the_codes_that_clients_match_on_stay_as_they_are() -> None:
    """Appending is free. A line that changes or goes breaks clients that match on it."""
    known = {kind.__name__: (kind.code, kind.status) for kind in KINDS if kind.__module__ == errors.__name__}

    promised = {
        "Backpressure": ("fabric.backpressure", 503),
        "BrokerUnavailable": ("fabric.unavailable", 503),
        "ClientGone": ("request.client_gone", 499),
        "ContentTooLarge": ("request.body_too_large", 413),
        "DeadlineExceeded": ("request.deadline_exceeded", 504),
        "HeadersTooLarge": ("request.headers_too_large", 431),
        "InvalidBody": ("request.invalid_body", 400),
        "InvalidPath": ("request.bad_path", 400),
        "KeyConflict": ("kv.conflict", 409),
        "MessageTooLarge": ("fabric.message_too_large", 413),
        "MethodNotAllowed": ("route.method_not_allowed", 405),
        "NoLiveWorker": ("route.no_live_worker", 503),
        "Overloaded": ("ingress.overloaded", 503),
        "PoisonMessage": ("worker.poison", 502),
        "PublishUnconfirmed": ("fabric.publish_unconfirmed", 503),
        "RequestError": ("request.bad", 400),
        "RequestTimeout": ("request.timeout", 408),
        "RouteNotFound": ("route.not_found", 404),
        "ShuttingDown": ("ingress.shutting_down", 503),
        "UnsupportedMedia": ("request.unsupported_media_type", 415),
        "WorkerCrashed": ("worker.crashed", 502),
    }
    assert {name: known.get(name) for name in promised} == promised


def test_facts_are_kept_apart_from_the_message() -> None:
    error = GatiError("the pool is gone", pool="shop", attempts=3)

    assert str(error) == "the pool is gone"
    assert error.facts == {"pool": "shop", "attempts": 3}


def test_method_not_allowed_lists_the_methods_that_are() -> None:
    assert MethodNotAllowed("PUT is not", allow=("GET", "POST")).allow == ("GET", "POST")


def test_handler_error_keeps_status_and_code_of_its_author() -> None:
    error = HandlerError("out of stock", 409, code="shop.out_of_stock", context={"sku": "a"})

    assert (error.status_code, error.error_code, error.facts["context"]) == (409, "shop.out_of_stock", {"sku": "a"})
    assert HandlerError("oops").error_code == "handler.error"


@pytest.mark.parametrize("status_code", [0, 200, 399, 600])
def test_handler_error_refuses_a_status_that_is_no_error(status_code: int) -> None:
    with pytest.raises(ValueError, match=f"between 400 and 599, not {status_code}"):
        HandlerError("what", status_code)
