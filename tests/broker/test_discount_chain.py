"""Discounts on a real broker while workers are killed: none twice, no budget overspent, state equal to a replay."""

from __future__ import annotations

import io
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from consumer.state import Store
from consumer.task import Device
from consumer.tasks.discount import DiscountTask
from tests.broker.rig import CLICK, CLICK_FRAME, ROOT, Rig, assert_each_once, avro, frame_of

CAMPAIGN = json.loads((ROOT / "schemas" / "campaign.avsc").read_text())
DECISION = json.loads((ROOT / "schemas" / "discount_decision.avsc").read_text())
FRAME = frame_of(DECISION)
PARTITIONS = 3
DAY_MS = 86_400_000
BEGIN_MS = 1_700_000_000_000
BUDGET = 9_000
OFFERED = {
    "id": "spring", "categories": ["shoes"], "kind": "percent", "value": 20, "currency": "USD",
    "start": BEGIN_MS, "end": BEGIN_MS + 60 * DAY_MS, "valid_hours": 48, "budget": BUDGET, "shares": PARTITIONS,
    "cooldown_hours": 24, "margin": 0.9, "margin_floor": 0.1, "incremental": 1.0,
}  # fmt: skip
QUICK = ("--session-timeout-ms", "3000", "--transaction-timeout-ms", "3000", "--max-chunk-records", "40")


@pytest.fixture
def rig(bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(bootstrap_servers, unique_name("discount"), tmp_path, partitions=PARTITIONS)
    rig.create()
    admin = AdminClient({"bootstrap.servers": rig.servers})
    compact = {"cleanup.policy": "compact"}
    topics = [
        NewTopic(f"{rig.group}-state", PARTITIONS, 1, config=compact),
        NewTopic(f"{rig.name}-campaigns", 1, 1, config=compact),
    ]
    for made in admin.create_topics(topics).values():
        made.result(timeout=30)
    yield rig
    rig.close()


def clicks(count: int) -> list[dict[str, Any]]:
    """Views, carts and purchases of thirty customers over twenty days, in time order."""
    chance = random.Random(7)
    return [
        {
            "id": f"c-{n}",
            "user": f"user-{chance.randrange(30)}",
            "product": f"p-{chance.randrange(5)}",
            "kind": chance.choice(["view", "cart", "cart", "purchase"]),
            "time": BEGIN_MS + n * 20 * DAY_MS // count,
            "category": "shoes",
            "price": 1_000,
            "currency": "USD",
        }
        for n in range(count)
    ]


def decision(message: Message) -> dict[str, Any]:
    value = message.value()
    assert value is not None and value.startswith(FRAME)
    found = fastavro.schemaless_reader(io.BytesIO(value[len(FRAME) :]), DECISION, None)
    assert isinstance(found, dict)
    return found


def replayed(read: list[Message]) -> tuple[dict[str, Any], Store]:
    """What one worker that never fails says of the input, event by event, and what it remembers then."""
    task, store = DiscountTask(), Store()
    task.table = {"campaigns": {"spring": fastavro_row(CAMPAIGN, OFFERED)}}
    task.load(Device())
    said: dict[str, Any] = {}
    for number in range(PARTITIONS):
        store.open((read[0].topic() or "", number), 1)
    for message in read:
        event = fastavro_row(CLICK, None, (message.value() or b"")[len(CLICK_FRAME) :])
        record: Any = message
        recalled = store.use("recall", record, partial(task.recall, event))
        (item,) = task.prepare([event], [recalled])
        (output,) = task.run([item.value])  # type: ignore[union-attr]
        said[event["id"]] = store.use("finish", record, partial(task.finish, event, output))
    return said, store


def fastavro_row(schema: dict[str, Any], row: dict[str, Any] | None, data: bytes = b"") -> dict[str, Any]:
    """A row as a reader gets it, defaults filled in."""
    plain = {**schema, "name": schema["name"]}
    found = fastavro.schemaless_reader(io.BytesIO(data or avro(plain, row or {})), plain, None)
    assert isinstance(found, dict)
    return {
        name: int(value.timestamp() * 1000) if hasattr(value, "timestamp") else value
        for name, value in found.items()
    }


def assert_never_overspent(read: list[Message], offers: dict[str, Any]) -> None:
    """By an outsider's books: what was redeemed and what still can be stays within each partition's share."""
    spent: dict[int, int] = defaultdict(int)
    open_offers: dict[str, Any] = {}
    for message in read:
        event = fastavro_row(CLICK, None, (message.value() or b"")[len(CLICK_FRAME) :])
        user, number, now = event["user"], message.partition() or 0, event["time"]
        mine = open_offers.get(user)
        if mine is not None and (
            now > mine["until"] or (event["kind"], event["product"]) == ("purchase", mine["product"])
        ):
            if now <= mine["until"]:
                spent[number] += mine["cost"]
            del open_offers[user]
        if event["id"] in offers:
            assert user not in open_offers, "two open offers"
            offer = offers[event["id"]]
            open_offers[user] = {**offer, "until": int(offer["until"].timestamp() * 1000)}
        held = sum(
            o["cost"] for o in open_offers.values() if o["source_partition"] == number and now <= o["until"]
        )
        assert spent[number] + held <= BUDGET // PARTITIONS
    assert spent, "nothing was redeemed"


def test_no_discount_twice_and_no_budget_overspent(rig: Rig) -> None:
    producer = Producer({"bootstrap.servers": rig.servers, "enable.idempotence": True})
    producer.produce(f"{rig.name}-campaigns", frame_of(CAMPAIGN) + avro(CAMPAIGN, OFFERED), "spring")
    events = clicks(2_400)
    carts = [event["id"] for event in events if event["kind"] == "cart"]
    everything = rig.tail(rig.source)
    tail = rig.tail()
    changelog = rig.tail(f"{rig.group}-state")
    flags = ("--table-topics", f"campaigns={rig.name}-campaigns", *QUICK)
    workers = [rig.worker("discount", *flags) for _ in range(2)]
    for part in range(4):
        for event in events[part * 600 : (part + 1) * 600]:
            producer.produce(rig.source, CLICK_FRAME + avro(CLICK, event), event["user"])
        assert producer.flush(30) == 0
        tail.count(len(carts) * part // 4 + 60, 90, workers[1])
        workers.pop(0).kill()
        workers.append(rig.worker("discount", *flags))
    tail.count(len(carts), 120, workers[0])
    for worker in workers:
        worker.wait_said("is ready on")  # it listens to signals by then
        assert worker.stop() == 0, worker.said()[-3000:]
    tail.read(1.0)
    decisions = [decision(message) for message in tail.of(rig.out)]
    assert tail.of(rig.dead) == []
    assert_each_once((each["event_id"] for each in decisions), carts)

    offers = [each for each in decisions if each["decision"] == "offer"]
    coupons = [each["coupon"] for each in offers]
    assert offers, "nothing is ever offered: this proves nothing"
    assert any(each["reason"] == "budget_spent" for each in decisions), "the budget is never short"
    assert len(coupons) == len(set(coupons))

    input_order = sorted(everything.count(len(events)), key=lambda m: (m.partition() or 0, m.offset() or 0))
    assert_never_overspent(input_order, {each["event_id"]: each for each in offers})
    calm, store = replayed(input_order)
    own = ("decision", "reason", "coupon", "cost", "budget_left")
    for each in decisions:
        wanted = calm[each["event_id"]]
        assert {name: each[name] for name in own} == {name: wanted.get(name) for name in own}, each[
            "event_id"
        ]

    rows = sorted(changelog.read(1.0), key=lambda m: (m.partition() or 0, m.offset() or 0))
    kept: dict[tuple[int, bytes], bytes] = {}
    for row in rows:
        place = (row.partition() or 0, row.key() or b"")
        kept.pop(place, None)
        if row.value() is not None:
            kept[place] = row.value() or b""
    replay = {
        (number, key): value
        for number in range(PARTITIONS)
        for key, value in store.contents((rig.source, number)).items()
    }
    assert kept == replay
