"""Task `recommend`: the shipped weights, through the same calls the engine makes."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import Any

import pytest
import torch

from consumer.codec import Decoder, Encoder, load_schema
from consumer.errors import BadRecord, Fatal
from consumer.models.recommend import WEIGHTS, Recommender
from consumer.purchases import FEATURES, MAX_PRODUCTS
from consumer.records import Event
from consumer.task import Device, Item, State
from consumer.tasks import recommend
from consumer.tasks.recommend import RecommendTask
from tests.tasks.grocers import click, product

NOW = 1_512_086_400_000
DAY = 86_400_000
WORDS = json.loads((WEIGHTS / "vocabulary.json").read_text())
MILK, BANANAS, UNSEEN = "FLUID MILK WHITE ONLY", "BANANAS", "DREAMT-OF TYPE"


def shop() -> dict[str, Event]:
    """Two products of each type that the model knows."""
    kinds = enumerate(WORDS["types"])
    rows = [product(f"{i}-{v}", kind, popularity=10.0 - v) for i, kind in kinds for v in range(2)]
    return {row["id"]: row for row in rows}


def of(kind: str, version: int = 0) -> str:
    return f"{WORDS['types'].index(kind)}-{version}"


@pytest.fixture(scope="module")
def loaded() -> RecommendTask:
    torch.set_num_threads(1)
    made = RecommendTask()
    made.load(Device("cpu", "bf16"))
    return made


@pytest.fixture
def task(loaded: RecommendTask) -> RecommendTask:
    stock(loaded, shop())
    return loaded


def stock(task: RecommendTask, rows: dict[str, Event]) -> None:
    task.table = {"products": rows}
    task._catalogue = None


def answers(task: RecommendTask, events: list[Event], states: dict[str, State] | None = None) -> list[Event]:
    """All events in one batch; states live under the user."""
    states = defaultdict(State) if states is None else states
    recalled = [task.recall(event, states[event["user"]]) for event in events]
    items = task.prepare(events, recalled)
    assert all(isinstance(item, Item) for item in items), items
    outputs = task.run([item.value for item in items if isinstance(item, Item)])
    results = [task.finish(event, output, State()) for event, output in zip(events, outputs, strict=True)]
    return [result for result in results if result is not None]


def household(name: str, count: int = 60, seed: int = 0) -> list[Event]:
    chance = random.Random(f"{name}{seed}")
    liked = chance.sample(WORDS["types"], 12)
    times = sorted(NOW - chance.randrange(200 * DAY) for _ in range(count))
    return [click(name, of(chance.choice(liked), chance.randrange(2)), time) for time in times]


def flat(result: Event) -> list[Any]:
    return [(one["product"], one["reason"]) for one in (*result["buy_again"], *result["something_new"])]


def chances(result: Event) -> list[float]:
    return [one["score"] for one in (*result["buy_again"], *result["something_new"])]


def test_habits_come_again_and_the_rest_is_new(task: RecommendTask) -> None:
    """Milk every week and beans once: milk stands first, with its reason; nothing new was bought before."""
    milk = [click("a", of(MILK, 1), NOW - (30 - 7 * week) * DAY) for week in range(4)]
    events = [*milk, click("a", of("PLUMS"), NOW - 90 * DAY), click("a", of(BANANAS), NOW, "view")]
    result = answers(task, events)[-1]
    assert [one["type"] for one in result["buy_again"]] == [MILK, "PLUMS"]
    first = result["buy_again"][0]
    assert first["product"] == of(MILK, 1) and first["name"] == of(MILK, 1)
    assert first["reason"] == "this type was bought 4 times, last 9 days ago"
    assert result["known_purchases"] == 5
    assert len(result["something_new"]) == 10
    assert not {MILK, BANANAS, "PLUMS"} & {one["type"] for one in result["something_new"]}
    for part in (result["buy_again"], result["something_new"]):
        found = [one["score"] for one in part]
        assert found == sorted(found, reverse=True) and found[-1] > 0 and found[0] < 1


def test_neighbours_padding_and_order_do_not_matter(task: RecommendTask) -> None:
    events = [event for name in "abcde" for event in household(name, 5 + 20 * "abcde".index(name))]
    together = answers(task, events)
    states: dict[str, State] = defaultdict(State)
    alone = [answers(task, [event], states)[0] for event in events]
    mixed = sorted(events, key=lambda event: event["time"])  # each household's own order stays
    again = dict(zip([e["id"] for e in mixed], answers(task, mixed), strict=True))
    for event, one, other in zip(events, together, alone, strict=True):
        assert flat(one) == flat(other) == flat(again[event["id"]])
        assert chances(one) == pytest.approx(chances(other), abs=1e-5)
        assert chances(one) == pytest.approx(chances(again[event["id"]]), abs=1e-5)


def test_the_order_of_purchases_does_not_matter_either(task: RecommendTask) -> None:
    """Late events: heat, counts and last times do not depend on the order, so neither does the next answer."""
    events, last = household("a"), click("a", of(MILK), NOW, "view")
    shuffled = random.Random(1).sample(events, len(events))
    one, other = answers(task, [*events, last])[-1], answers(task, [*shuffled, last])[-1]
    assert flat(one) == flat(other)
    assert chances(one) == pytest.approx(chances(other), abs=1e-3)


def test_an_unknown_customer_gets_what_is_popular(task: RecommendTask) -> None:
    (result,) = answers(task, [click("new", of("PLUMS"), NOW, "view")])
    assert result["buy_again"] == [] and result["known_purchases"] == 0
    assert {MILK, BANANAS} <= {one["type"] for one in result["something_new"]}
    assert {one["reason"] for one in result["something_new"]} == {
        "popular with all customers; nothing is known of this one"
    }
    (unknown,) = answers(task, [click("new", "not in the table", NOW)])
    assert unknown["known_purchases"] == 1 and unknown["buy_again"] == []
    assert "nothing is known" in unknown["something_new"][0]["reason"]


def test_a_new_product_stands_first_in_its_type_while_it_is_new(task: RecommendTask) -> None:
    rows = shop() | {"fresh": product("fresh", MILK, popularity=0.0, added_at=NOW - 29 * DAY)}
    stock(task, rows)
    found = {
        days: next(
            one
            for one in answers(task, [click("new", of("PLUMS"), NOW + days * DAY, "view")])[0][
                "something_new"
            ]
            if one["type"] == MILK
        )
        for days in (-30, 0, 2)
    }
    assert {days: one["product"] for days, one in found.items()} == {-30: of(MILK), 0: "fresh", 2: of(MILK)}
    assert found[0]["reason"].startswith("new in the shop; popular")


def test_a_type_that_the_model_never_saw_counts_as_the_best_of_its_category(task: RecommendTask) -> None:
    category, slot = next((c, s) for c, s in WORDS["categories"].items() if WORDS["types"][s] == MILK)
    rows = {k: row for k, row in shop().items() if row["type"] != MILK}
    stock(task, rows | {"oat": product("oat", UNSEEN, category=category), "odd": product("odd", UNSEEN)})
    events = [
        click("a", "oat", NOW - DAY),
        click("a", "odd", NOW - DAY),
        click("b", of("PLUMS"), NOW, "view"),
    ]
    first, second, stranger = answers(task, events)
    assert slot == WORDS["types"].index(MILK)
    oat = next(one for one in stranger["something_new"] if one["product"] == "oat")
    assert oat["type"] == UNSEEN
    assert first["buy_again"] == [] and [one["product"] for one in second["buy_again"]] == ["oat"]
    assert all(
        one["product"] != "odd" for result in (first, second, stranger) for one in result["something_new"]
    )


def test_what_is_withdrawn_is_never_recommended(task: RecommendTask) -> None:
    rows = shop()
    stock(task, rows)
    events = [click("a", of(MILK), NOW - 9 * DAY), click("a", of(BANANAS), NOW - 9 * DAY)]
    states: dict[str, State] = defaultdict(State)
    answers(task, events, states)
    for name in (of(MILK), of(BANANAS, 0), of(BANANAS, 1)):
        rows[name] = {**rows[name], "available": False}  # the same table: nothing tells the task
    look = click("a", of("PLUMS"), NOW, "view")
    for _ in range(2):
        (result,) = answers(task, [look], states)
        assert [one["product"] for one in result["buy_again"]] == [of(MILK, 1)]
        assert "what the customer took is not available" in result["buy_again"][0]["reason"]
        task._catalogue = None  # and read anew
    for name in list(rows):
        if rows[name]["type"] == MILK:
            del rows[name]
    assert answers(task, [look], states)[0]["buy_again"] == []


def test_the_table_is_read_anew_when_it_has_grown(task: RecommendTask) -> None:
    rows = {of(kind): shop()[of(kind)] for kind in WORDS["types"][:200] if kind not in (MILK, BANANAS)}
    stock(task, rows)
    look = click("new", "x", NOW, "view")
    shown = {one["type"] for one in answers(task, [look])[0]["something_new"]}
    rows[of(BANANAS)] = shop()[of(BANANAS)]
    for event in range(1, 12):
        found = {one["type"] for one in answers(task, [look])[0]["something_new"]}
        assert (BANANAS in found) == (event * recommend.ROWS_AN_EVENT_CHANGED >= len(rows))
        assert len(found & shown) >= 9


def test_state_is_bounded_and_only_purchases_are_kept(task: RecommendTask) -> None:
    state = State()
    for kind in ("view", "cart", "other"):
        task.recall(click("a", of(MILK), NOW, kind), state)
    assert state == {}
    for number in range(3 * MAX_PRODUCTS):
        name = f"{number:04}".ljust(recommend.MAX_ID_BYTES, "x")
        task.recall(click("a", name, NOW + number * 1000), state)
        assert len(state["bought"]) <= MAX_PRODUCTS
    assert f"{3 * MAX_PRODUCTS - 1:04}".ljust(recommend.MAX_ID_BYTES, "x") in state["bought"]
    assert all(not name.startswith("0000") for name in state["bought"])
    assert len(json.dumps(state).encode()) < 65_536
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"product": ""}, "bad_product"),
        ({"product": "9" * 49}, "bad_product"),
        ({"product": "\x00" * 12}, "bad_product"),
        ({"product": "9" * 1_000_000}, "bad_product"),
        ({"time": -1}, "bad_time"),
        ({"time": -(1 << 63)}, "bad_time"),
        ({"time": (1 << 63) - 1}, "bad_time"),
    ],
)
def test_hostile_clicks_are_refused_and_leave_no_trace(
    task: RecommendTask, change: dict[str, Any], reason: str
) -> None:
    state = State()
    good = click("a", of(MILK), NOW)
    task.recall(good, state)
    before = json.dumps(state)
    bad = {**good, **change}
    made = task.prepare([bad, good], [task.recall(bad, state), task.recall({**good, "kind": "view"}, state)])
    assert isinstance(made[0], BadRecord) and made[0].reason == reason and isinstance(made[1], Item)
    assert json.dumps(state) == before


def test_odd_but_possible_times_get_an_answer(task: RecommendTask) -> None:
    """The earliest and latest times that are accepted, in any order: finite chances, no purchase lost."""
    events = [click("a", of(MILK), time) for time in (recommend.MAX_MS - 1, 0, NOW, 0, recommend.MAX_MS - 1)]
    events.append(click("a", of(BANANAS), NOW, "view"))
    for result in answers(task, events):
        assert all(0 < chance < 1 for chance in chances(result))
    assert answers(task, events)[-1]["known_purchases"] == 5


def test_results_fit_their_schema(task: RecommendTask) -> None:
    schema = load_schema("recommendation")
    origin = {"event_id": "1", "source_topic": "t", "source_partition": 0, "source_offset": 1}
    model = {"model": "recommend", "model_version": task.version, "produced_at": 1}
    rows = [{**origin, **model, **result} for result in answers(task, [task.example, *household("a", 9)])]
    read = Decoder(schema, [schema]).decode_many(Encoder(schema).encode_many(rows))  # type: ignore[arg-type]
    assert [flat(row) for row in read if isinstance(row, dict)] == [flat(row) for row in rows]


def test_warm_up_knows_no_table() -> None:
    task = RecommendTask(k="3")
    task.load(Device())
    (made,) = task.prepare([task.example], [None])
    assert isinstance(made, Item)
    for item in (made, task.largest()):
        (result,) = task.run([item.value])
        assert result["something_new"] == [] == result["buy_again"]


@pytest.mark.parametrize("k", ["many", "0", "-3", "2.5", 101])
def test_a_number_of_products_that_is_none_is_refused(k: Any) -> None:
    with pytest.raises(Fatal, match="option k"):
        RecommendTask(k=k)


def test_only_what_was_bought_is_given_as_a_reason() -> None:
    """Type 1 speaks for type 2; padding, whose row of the table is an item vector, for nothing."""
    torch.manual_seed(0)
    model = Recommender(4).requires_grad_(False).eval()
    model.table[4] = 9.0  # in all rows below, some random customers' chances would be nothing at all
    model.table[1, 2] = 0.5
    slots = torch.tensor([[1, 4, 4], [0, 1, 3]])
    features = torch.zeros(2, 3, FEATURES)
    rows = model(slots, features, torch.zeros(2, 4, dtype=torch.bool), 3)
    reasons = [
        {int(kind): int(why) for kind, chance, why in row[:, 2:].tolist() if chance > 0} for row in rows
    ]
    assert reasons == [{2: 0, 0: -1, 3: -1}, {2: 1}]
