"""`gati routes`, `gati doctor`, `gati trace` and `gati dead` against a real broker, as separate processes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from gati_core.errors import MalformedDescriptor, PoisonMessage
from gati_core.fabric import Fabric, KvBucket, stream_state
from gati_core.fabric.inspection import read_subject
from gati_core.settings import FabricSettings
from gati_core.wire import PROTOCOL, RequestDescriptor, TopicMessage, TraceRecord, encode
from tests.helpers.gati_dev import gati


@pytest.fixture
def environ(gati_fabric_settings: FabricSettings) -> dict[str, str]:
    """What makes a command talk to the test's fabric."""
    return {"GATI_NATS_URL": gati_fabric_settings.nats_url, "GATI_NAMESPACE": gati_fabric_settings.namespace}


async def bury_request(fabric: Fabric, path: str = "/orders") -> int:
    descriptor = RequestDescriptor(PROTOCOL, "r-1", "reply", 2, 1, "POST", path, body=b"x")
    return await fabric.dead_letters.bury(
        stage="req",
        pool="",
        subject="t.req.5.0",
        data=encode(descriptor),
        error=PoisonMessage("never finished"),
        attempts=3,
        request_id="r-1",
        headers={"Idempotency-Key": "k-1"},
    )


async def bury_garbage(fabric: Fabric) -> int:
    error = MalformedDescriptor("8 bytes on t.req.5.0: no array [really]")
    return await fabric.dead_letters.bury(
        stage="req", pool="", subject="t.req.5.0", data=b"\x00garbage", error=error, attempts=1
    )


async def test_dead_letters_are_listed_newest_first(
    gati_open_fabric: Fabric, environ: dict[str, str], tmp_path: Path
) -> None:
    await bury_request(gati_open_fabric)
    await bury_garbage(gati_open_fabric)

    listed = gati("dead", "list", directory=tmp_path, environ=environ)
    newest = json.loads(gati("dead", "list", "--limit", "1", "--json", directory=tmp_path, environ=environ).stdout)

    rows = [line.split()[0] for line in listed.stdout.splitlines()]
    assert rows == ["NUMBER", "2", "1"], listed.stderr
    assert "never finished" in listed.stdout
    assert "[really]" in listed.stdout
    assert [letter["sequence"] for letter in newest] == [2]


async def test_no_dead_letters_are_said_to_be_none(
    gati_open_fabric: Fabric, environ: dict[str, str], tmp_path: Path
) -> None:
    assert gati("dead", "list", directory=tmp_path, environ=environ).stdout == "no dead letters\n"


async def test_a_dead_letter_is_shown_with_cause_headers_and_message(
    gati_open_fabric: Fabric, environ: dict[str, str], tmp_path: Path
) -> None:
    number = await bury_request(gati_open_fabric)
    garbage = await bury_garbage(gati_open_fabric)

    shown = gati("dead", "show", str(number), directory=tmp_path, environ=environ).stdout
    shown_garbage = gati("dead", "show", str(garbage), directory=tmp_path, environ=environ).stdout

    for text in ("never finished", "worker.poison", "Idempotency-Key: k-1", '"/orders"'):
        assert text in shown
    assert "00 67 61 72" in shown_garbage


async def test_a_requeued_request_is_back_on_its_stream_under_a_new_id(
    gati_open_fabric: Fabric, environ: dict[str, str], tmp_path: Path
) -> None:
    number = await bury_request(gati_open_fabric)

    done = gati("dead", "requeue", str(number), directory=tmp_path, environ=environ)

    assert done.returncode == 0, done.stderr
    assert f"requeued dead letter {number} as request " in done.stdout
    assert done.stdout.split()[-1] != "r-1"
    subjects = gati_open_fabric.subjects
    assert (await stream_state(gati_open_fabric.connection, subjects.req_stream)).messages == 1
    assert (await stream_state(gati_open_fabric.connection, subjects.dead_stream)).messages == 0


async def test_requeueing_everything_reports_what_holds_no_request(
    gati_open_fabric: Fabric, environ: dict[str, str], tmp_path: Path
) -> None:
    await bury_request(gati_open_fabric)
    await bury_garbage(gati_open_fabric)

    done = gati("dead", "requeue", "--all", directory=tmp_path, environ=environ)

    assert done.returncode == 1
    assert "requeued dead letter 1" in done.stdout
    assert "dead letter 2 holds no request" in done.stderr
    assert (await stream_state(gati_open_fabric.connection, gati_open_fabric.subjects.dead_stream)).messages == 1


async def test_a_requeued_event_goes_to_its_group_and_one_of_nobody_says_what_to_do(
    gati_open_fabric: Fabric, environ: dict[str, str], tmp_path: Path
) -> None:
    subjects, letters = gati_open_fabric.subjects, gati_open_fabric.dead_letters
    event = encode(TopicMessage(PROTOCOL, "orders", 1, "w1", "", encode({"sku": "ada-42"})))
    await gati_open_fabric.topology.ensure_topic_group("shop", "billing", "orders")
    for group in ("shop~billing", "shop~gone"):
        await letters.bury(
            stage="topic",
            pool=group,
            subject=subjects.topic_durable("orders"),
            data=event,
            error=PoisonMessage("never finished"),
            attempts=3,
        )

    shown = gati("dead", "show", "1", directory=tmp_path, environ=environ)
    done = gati("dead", "requeue", "--all", directory=tmp_path, environ=environ)

    assert "shop~billing" in shown.stdout
    assert '"sku": "ada-42"' in shown.stdout
    assert done.returncode == 1
    assert done.stdout == "requeued dead letter 1 for group billing of app shop\n"
    assert "start a worker of that app" in done.stderr
    assert [letter.pool for letter in await letters.newest()] == ["shop~gone"]
    found = await read_subject(
        gati_open_fabric.connection,
        subjects.topic_stream,
        subjects.topic_group("shop", "billing", "orders"),
        limit=2,
    )
    assert found == [event]


async def keep_trace(fabric: Fabric, *records: TraceRecord) -> None:
    for record in records:
        await fabric.publisher.send(fabric.subjects.trace(record.request_id), encode(record))


async def test_a_traced_request_is_shown_in_order_and_as_json(
    gati_open_fabric: Fabric, environ: dict[str, str], tmp_path: Path
) -> None:
    def record(request_id: str, seq: int, event: str, duration_us: int = -1) -> TraceRecord:
        return TraceRecord(PROTOCOL, request_id, "worker", "w1", seq, seq * 1000, event, "place", duration_us)

    await keep_trace(
        gati_open_fabric,
        record("r-1", 1, "handler:start"),
        record("r-2", 1, "handler:start"),
        record("r-1", 2, "handler:end", 1000),
    )
    await gati_open_fabric.publisher.send(gati_open_fabric.subjects.trace("r-1"), b"\x00")

    shown = gati("trace", "r-1", directory=tmp_path, environ=environ)
    listed = json.loads(gati("trace", "r-1", "--json", directory=tmp_path, environ=environ).stdout)

    assert shown.returncode == 0, shown.stderr
    assert [line.split() for line in shown.stdout.splitlines()[3:]] == [
        ["0.000", "handler:start", "place"],
        ["1.000", "1.000", "handler:end", "place"],
    ]
    assert "left out: 1 bytes" in shown.stderr
    assert [(each["request_id"], each["event"], each["duration_us"]) for each in listed] == [
        ("r-1", "handler:start", -1),
        ("r-1", "handler:end", 1000),
    ]


async def test_a_request_without_a_trace_says_how_to_get_one(
    gati_open_fabric: Fabric, environ: dict[str, str], tmp_path: Path
) -> None:
    none = gati("trace", "r-9", directory=tmp_path, environ=environ)
    wrong = gati("trace", "r.>", directory=tmp_path, environ=environ)
    await gati_open_fabric.connection.jetstream().delete_stream(gati_open_fabric.subjects.trace_stream)
    no_stream = gati("trace", "r-9", directory=tmp_path, environ=environ)

    assert (none.returncode, "x-gati-flags: trace" in none.stderr, "60 minutes" in none.stderr) == (1, True, True)
    assert (wrong.returncode, "request id 'r.>'" in wrong.stderr) == (2, True)
    assert (no_stream.returncode, "GATI_FABRIC_TOPOLOGY=apply" in no_stream.stderr) == (1, True)
    assert "Traceback" not in none.stderr + wrong.stderr + no_stream.stderr


@pytest.mark.parametrize("arguments", [("show", "99"), ("requeue", "99")])
async def test_a_number_that_does_not_exist_is_a_clear_error(
    gati_open_fabric: Fabric, environ: dict[str, str], tmp_path: Path, arguments: tuple[str, str]
) -> None:
    failed = gati("dead", *arguments, directory=tmp_path, environ=environ)

    assert failed.returncode == 1
    assert "there is no dead letter 99" in failed.stderr
    assert "Traceback" not in failed.stderr


async def test_requeue_wants_numbers_or_all(tmp_path: Path) -> None:
    refused = gati("dead", "requeue", directory=tmp_path)

    assert refused.returncode == 2
    assert "--all" in refused.stderr


async def test_doctor_names_what_is_wrong_and_fails(
    gati_open_fabric: Fabric, environ: dict[str, str], tmp_path: Path
) -> None:
    await bury_request(gati_open_fabric)
    pools = KvBucket(gati_open_fabric.connection, gati_open_fabric.subjects.pools_bucket)
    await pools.put("worker.broken.w1", b'{"worker": 1}')

    examined = gati("doctor", "--json", directory=tmp_path, environ={**environ, "GATI_INGRESS_PORT": "1"})

    assert examined.returncode == 1
    checks = {(check["name"], check["status"]) for check in json.loads(examined.stdout)["checks"]}
    expected = {
        ("broker", "ok"),
        ("jetstream", "ok"),
        ("stream", "ok"),
        ("consumer", "ok"),
        ("routers", "fail"),
        ("workers", "warn"),
        ("announcement", "warn"),
        ("dead letters", "warn"),
        ("ingress", "fail"),
    }
    assert expected <= checks, examined.stdout


async def test_a_malformed_announcement_does_not_hide_the_routes(
    gati_open_fabric: Fabric, environ: dict[str, str], tmp_path: Path
) -> None:
    pools = KvBucket(gati_open_fabric.connection, gati_open_fabric.subjects.pools_bucket)
    await pools.put("worker.broken.w1", b"\x00")

    shown = gati("routes", directory=tmp_path, environ=environ)

    assert shown.returncode == 0
    assert "no routes yet" in shown.stdout
    assert "refused: worker.broken.w1" in shown.stderr


@pytest.mark.parametrize("command", [("routes",), ("trace", "r-1"), ("dead", "list"), ("dead", "show", "1")])
async def test_a_broker_without_a_fabric_is_a_clear_error(
    gati_fabric_settings: FabricSettings, tmp_path: Path, command: tuple[str, ...]
) -> None:
    environ = {"GATI_NAMESPACE": "nobody-there"}

    failed = gati(*command, "--nats-url", gati_fabric_settings.nats_url, directory=tmp_path, environ=environ)

    assert failed.returncode == 1
    assert "holds no fabric 'nobody-there'" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    "command", [("routes",), ("doctor",), ("trace", "r-1"), ("dead", "list"), ("dead", "requeue", "1")]
)
async def test_no_broker_is_one_clear_line_within_seconds(tmp_path: Path, command: tuple[str, ...]) -> None:
    began = time.monotonic()

    failed = gati(*command, "--nats-url", "nats://me:secret@127.0.0.1:1", directory=tmp_path)

    assert failed.returncode == 1
    assert "no broker answers at nats://me:***@127.0.0.1:1" in failed.stderr + failed.stdout
    assert "gati dev" in failed.stderr + failed.stdout
    assert "Traceback" not in failed.stderr
    assert "secret" not in failed.stderr + failed.stdout
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("url", ["nonsense", "nats://", "http://127.0.0.1:1", "nats://127.0.0.1:99999"])
async def test_an_address_that_is_none_is_a_clear_error(tmp_path: Path, url: str) -> None:
    failed = gati("routes", "--nats-url", url, directory=tmp_path)

    assert failed.returncode in (1, 2)
    assert "Traceback" not in failed.stderr


async def test_help_and_version_need_no_broker(tmp_path: Path) -> None:
    assert gati("--version", directory=tmp_path).stdout.startswith("gati 0.")
    for command in ((), ("dev",), ("routes",), ("doctor",), ("trace",), ("dead",), ("dead", "requeue")):
        shown = gati(*command, "--help", directory=tmp_path)
        assert shown.returncode == 0
        assert "Usage: gati" in shown.stdout
