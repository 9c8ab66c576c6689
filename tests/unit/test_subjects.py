"""Names on the broker."""

from __future__ import annotations

import pytest
from hypothesis import given

from gati_core.errors import RegistrationError
from gati_core.wire import LANES, PRIORITIES, Subjects, for_namespace, token
from gati_testing import strategies


@given(name=strategies.tokens())
def test_a_valid_token_is_returned_as_it_is(name: str) -> None:
    assert token(name, "pool") == name


@given(name=strategies.bad_tokens())
def test_text_that_would_change_a_subject_is_refused(name: str) -> None:
    with pytest.raises(RegistrationError, match="pool"):
        token(name, "pool")


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", ">", "a\n", "ä", "-a", "_a", "a" * 65, "$JS", "a\0"])
def test_refused_tokens_by_example(name: str) -> None:
    names = Subjects("gati")
    for build in (names.work_filter, names.work_consumer, names.cancel, names.app_bucket):
        with pytest.raises(RegistrationError):
            build(name)
    with pytest.raises(RegistrationError):
        names.work("pool", name)
    with pytest.raises(RegistrationError):
        names.work(name, "handler")
    with pytest.raises(RegistrationError):
        Subjects(name)


def test_names_are_those_of_the_design() -> None:
    names = Subjects("gati")

    assert names.req(5) == "gati.req.5.0"
    assert names.req(10, 3) == "gati.req.10.3"
    assert names.work("shop", "place_order") == "gati.work.shop.place_order"
    assert names.work_filter("shop") == "gati.work.shop.>"
    assert names.reply("i1", "7") == "gati.reply.i1.7"
    assert names.reply_filter("i1") == "gati.reply.i1.*"
    assert names.cancel("shop") == "gati.cancel.shop"
    assert names.dead("work", "shop") == "gati.dead.work.shop"
    assert (names.req_stream, names.work_stream, names.dead_stream) == ("gati_REQ", "gati_WORK", "gati_DEAD")
    assert (names.pools_bucket, names.bodies_bucket, names.app_bucket("x")) == (
        "gati_pools",
        "gati_bodies",
        "gati_app_x",
    )
    assert names.member_key("worker", "shop", "i1") == "worker.shop.i1"


def test_topics_of_the_fabric_of_a_request_and_its_events_never_meet() -> None:
    names = Subjects("gati")

    assert names.topic("orders") == "gati.topic.orders"
    assert names.topic_durable("orders") == "gati.topic.orders.durable"
    assert names.local("r-1", "orders") == "gati.local.r-1.orders"
    assert names.local_event("r-1", "orders") == "gati.local.r-1._orders"
    for build in (names.topic, names.topic_durable, lambda name: names.local("r", name)):
        with pytest.raises(RegistrationError):
            build("_orders")


def test_groups_whose_names_run_into_one_another_have_consumers_of_their_own() -> None:
    names = {Subjects.topic_consumer(*parts) for parts in (("a", "b-c", "d"), ("a-b", "c", "d"), ("a", "b", "c-d"))}

    assert len(names) == 3
    assert Subjects.topic_consumer("shop", "billing", "orders") == "topic-shop~billing~orders"
    assert Subjects("gati").topic_group("shop", "billing", "orders") == "gati.topic.orders.group.shop~billing"


def test_every_priority_belongs_to_exactly_one_lane() -> None:
    """F2: consumers of a work queue must not overlap."""
    names = Subjects("gati")
    filters = [subject for lane in LANES for subject in names.lane_filters(lane)]

    assert sorted(filters) == sorted(f"gati.req.{priority}.>" for priority in PRIORITIES)
    assert len({names.lane_consumer(lane) for lane in LANES}) == len(LANES)


@given(one=strategies.tokens(), other=strategies.tokens())
def test_namespaces_share_no_name(one: str, other: str) -> None:
    if one == other:
        return
    mine, theirs = Subjects(one), Subjects(other)

    for names in ("req_stream", "work_stream", "dead_stream", "advisory_stream", "pools_bucket", "bodies_bucket"):
        assert getattr(mine, names) != getattr(theirs, names)
    assert mine.req(5).split(".")[0] != theirs.req(5).split(".")[0]


def test_names_of_one_namespace_are_built_once() -> None:
    assert for_namespace("gati") is for_namespace("gati")
