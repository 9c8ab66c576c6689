"""From version 1 to version 3 under load: nothing fails, and what may run once runs once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import anyio

from gati_core.timescape import fabric_registry, with_status
from tests.helpers.publishing import Shop, running_shop
from tests.helpers.waiting import eventually

NOTES = """
import os
from gati_core import VersionedRequest, VersionedResponse

@app.before
async def note(gctx, lctx) -> None:
    with open(os.environ["ROLLED_NOTES"], "a") as notes:
        notes.write(lctx.request_id + "\\n")
"""
FIRST = """
@app.transformer("order", from_version="v1.0"{to})
class PriceToCents:
    @staticmethod
    def forward_request(request):
        request.body["cents"] = round(float(request.body.pop("price")) * 100)

    @staticmethod
    def backward_response(response):
        response.body["price"] = f"{{response.body.pop('cents') / 100:.2f}}"
"""
SECOND = """
@app.transformer("order", from_version="v2.0")
class WithCurrency:
    @staticmethod
    def forward_request(request):
        request.body["currency"] = "EUR"

    @staticmethod
    def backward_response(response):
        del response.body["currency"]
"""
OLD = {"sku": "a", "price": "1.50"}
ANY = {**OLD, "cents": 150, "currency": "EUR"}


async def test_two_breaking_releases_and_the_end_of_the_old_ones_go_unnoticed(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    async with running_shop(tmp_path, ROLLED_NOTES=str(notes)) as shop:
        first = await shop.build("1.0", fields="sku: str\n    price: str", bottom=NOTES)
        second = await shop.build("2.0", fields="sku: str\n    cents: int", bottom=NOTES + FIRST.format(to=""))
        third = await shop.build(
            "3.0",
            fields="sku: str\n    cents: int\n    currency: str",
            bottom=NOTES + FIRST.format(to=', to_version="v2.0"') + SECOND,
        )
        await _publish(shop, first)
        answers: Counter[tuple[str, int]] = Counter()
        ran: Counter[str] = Counter()
        is_over = False

        async def ask(client: str) -> None:
            body, headers = (OLD, {"x-gati-version": "v1.0"}) if client == "old" else (ANY, {})
            while not is_over:
                answer = await shop.order(body, **headers)
                answers[client, answer.status_code] += 1
                ran[answer.headers.get("x-ran", "")] += 1
                if client == "old":
                    assert answer.json() == OLD, answer.text

        async def answered(more: int) -> None:
            """Wait until both clients have had that many more answers."""
            before = dict(answers)

            def have_answers() -> bool:
                return all(answers[client, 200] >= before.get((client, 200), 0) + more for client in ("old", "any"))

            await eventually(have_answers, within_s=30)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(ask, "old")
                tasks.start_soon(ask, "any")
            await answered(100)
            await _publish(shop, second)
            await answered(100)
            await _publish(shop, third)
            await answered(100)
            for number in (0, 1):
                await _end(shop, number)
                await answered(100)
            is_over = True

    assert {status for _, status in answers} == {200}
    assert set(ran) == {"1.0", "2.0", "3.0"}
    runs = Counter(notes.read_text().split())
    assert set(runs.values()) == {1}
    assert len(runs) == answers.total()


async def _publish(shop: Shop, wheel: Path) -> None:
    done = await shop.run("publish", wheel)
    assert done.returncode == 0, done.stderr


async def _end(shop: Shop, number: int) -> None:
    registry = fabric_registry(shop.inside)
    tsv = (await registry.timeline("shop", "order")).versions[number].tsv
    await registry.change(
        "shop", "order", lambda before: with_status(before, tsv, "deactivated", now_ms=1, actor="user:test")
    )
